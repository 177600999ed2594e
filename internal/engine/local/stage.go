package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// stage is where gVisor's processes find what a sandbox is made of. A sandbox of real root runs as nobody of this host, and the
// directories that it needs may lie where nobody else can walk: /root, say, is closed to others. gVisor would have this process
// open them, and lose a thread for ever to each sandbox; and it can't do that for the root directory. So they are bound to places
// of which every directory is open. Only this process and its children see those; the host sees an empty directory.
type stage struct {
	dir    string            // for Config.Dir
	mounts map[string]string // for other sources
	bound  []string          // what close takes away
	mu     sync.Mutex        // guards mounts and bound once the stage is open
}

const stageDir = "/run/sandlot"

// stageOnce makes the directory of all stages of this process.
var stageOnce = sync.OnceValue(func() error {
	if err := os.MkdirAll(stageDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keeping mounts from the host: %w", err)
	}
	return unix.Mount("sandlot", stageDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=1m")
})

// openStage makes dir and sources reachable for the users that sandboxes of ids have. Rootless that is the caller, who reaches them
// anyway; without mounts of our own everybody must.
func openStage(ids idRange, dir string, sources []string) (_ *stage, err error) {
	s := &stage{dir: dir, mounts: map[string]string{}}
	if !ids.perVolume || !ownMounts {
		for _, d := range append([]string{dir}, sources...) {
			s.mounts[d] = d
			if err := walkable(d); err != nil && ids.perVolume {
				return nil, err
			}
		}
		return s, nil
	}
	if err := stageOnce(); err != nil {
		return nil, fmt.Errorf("preparing %s: %w", stageDir, err)
	}
	base, err := os.MkdirTemp(stageDir, installation(dir)+"-")
	if err != nil {
		return nil, err
	}
	s.bound = append(s.bound, base)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.Chmod(base, 0o755); err != nil {
		return nil, err
	}
	if s.dir, err = s.bind(dir, filepath.Join(base, "data")); err != nil {
		return nil, err
	}
	for i, source := range sources {
		if s.mounts[source], err = s.bind(source, filepath.Join(base, strconv.Itoa(i))); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *stage) bind(source, place string) (string, error) {
	if err := os.Mkdir(place, 0o755); err != nil {
		return "", err
	}
	s.bound = append(s.bound, place)
	if err := unix.Mount(source, place, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("binding %s to %s: %w", source, place, err)
	}
	return place, nil
}

// close takes the places away. What runs has its own view of them.
func (s *stage) close() error {
	var errs []error
	for _, place := range slices.Backward(s.bound) {
		// The base is no mount, and neither is a place that could not be bound.
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", place, err))
			continue // never remove what may still lead to data
		}
		errs = append(errs, os.Remove(place))
	}
	s.bound = nil
	return errors.Join(errs...)
}

// walkable refuses a directory to which not every user can walk.
func walkable(dir string) error {
	for d := dir; ; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		if fi.Mode().Perm()&0o001 == 0 {
			return &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "closed_directory",
				Detail: fmt.Sprintf("%s is closed to other users, so sandboxes can't find their files in %s; call EnterNamespaces first, or use another directory", d, dir)}
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}
