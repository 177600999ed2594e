package local

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// rootFile is the name of a sandbox's root in its bundle: a hard link of the image's, so that the image may go while the sandbox lives.
const rootFile = "root.erofs"

// imageFile names the image in a sandbox's directory.
const imageFile = "image"

// hostImage is the image "host" of this start.
type hostImage struct {
	digest string
	mounts []Mount // what completes it
}

// additions are what completes an image's root.
type additions struct {
	mounts []Mount
	dirs   []string // to be made where they are missing
}

// linkRoot links the root of spec's image into a bundle and returns what completes it.
func (e *Engine) linkRoot(ctx context.Context, k string, spec sandbox.Spec, name string) (additions, error) {
	digest := spec.Image.Digest
	if spec.Image.IsHost() {
		digest = e.host.digest
	}
	if err := os.WriteFile(filepath.Join(e.sandboxDir(k), imageFile), []byte(digest), 0o600); err != nil {
		return additions{}, err
	}
	img, err := e.images.Link(ctx, digest, name)
	if err != nil {
		return additions{}, fmt.Errorf("getting the image: %w", err)
	}
	root, err := rootfs.Open(name)
	if err != nil {
		return additions{}, fmt.Errorf("reading the image: %w", err)
	}
	defer root.Close()
	mounted, err := e.checkPlaces(root, spec)
	if err != nil {
		return additions{}, err
	}
	if img.Config.Labels[hostLabel] != "" {
		return additions{mounts: slices.Clone(e.host.mounts)}, nil
	}
	add := additions{mounts: e.loader.missingIn(root, filepath.Join(e.stage.dir, loaderDir))}
	if spec.Volume.ID != "" { // a build's commands see what the image has, as with Docker
		add.dirs, err = missingVolumes(root, img.Config.Volumes, mounted)
	}
	return add, err
}

// agent is the uid and gid that user processes have inside: those of the image's user, if it names one.
func (e *Engine) agent(spec sandbox.Spec) (uid, gid int) {
	if e.ids.single {
		return 0, 0
	}
	u, g, ok := strings.Cut(spec.Image.Settings.Agent, ":")
	uid, errU := strconv.Atoi(u)
	gid, errG := strconv.Atoi(g)
	if !ok || errU != nil || errG != nil || uid < 0 || gid < 0 || uid >= rangeSize || gid >= rangeSize {
		return agentID, agentID
	}
	return uid, gid
}

// rangeFor returns the host's uid that stands for root in a sandbox of spec: its volume's, or without a volume one of its own.
func (e *Engine) rangeFor(spec sandbox.Spec) (uint32, error) {
	if spec.Volume.ID != "" && spec.Volume.ID != slotVolume {
		uid, gid := e.agent(spec)
		_, base, err := e.volumeFor(spec.Volume, uid, gid)
		return base, err
	}
	if !e.ids.perVolume {
		return 0, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n, err := e.nextRange()
	if err != nil {
		return 0, fmt.Errorf("taking a range of uids: %w", err)
	}
	return rangeFirst + n*rangeSize, nil
}

// settingsOf translates an image's settings, with its user looked up.
func settingsOf(img image.Image) (sandbox.ImageSettings, error) {
	s := sandbox.ImageSettings{User: img.Config.User, Workdir: img.Config.Workdir, Entrypoint: img.Config.Entrypoint, Cmd: img.Config.Cmd}
	for _, kv := range img.Config.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			if s.Env == nil {
				s.Env = map[string]string{}
			}
			s.Env[k] = v
		}
	}
	if s.User == "" {
		return s, nil
	}
	root, err := rootfs.Open(img.Root)
	if err != nil {
		return s, fmt.Errorf("reading the image: %w", err)
	}
	defer root.Close()
	s.Agent, err = lookupAgent(root, s.User)
	return s, err
}

const maxAccountFile = 4 << 20

// lookupAgent finds the uid and gid of an image's USER: a name or a number, perhaps with a group behind a colon.
func lookupAgent(root *rootfs.FS, user string) (string, error) {
	unknown := func(what, name, file string) error {
		return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "unknown_user", Field: "image.registry",
			Detail: fmt.Sprintf("The image wants to run as %s %.100q, which is not in its %s. Set another with the Dockerfile command USER.", what, name, file)}
	}
	name, group, _ := strings.Cut(user, ":")
	uid, gid, found := -1, 0, false
	if err := eachLine(root, "/etc/passwd", func(f []string) {
		if found || len(f) < 4 || f[0] != name && f[2] != name {
			return
		}
		u, errU := strconv.Atoi(f[2])
		g, errG := strconv.Atoi(f[3])
		if errU == nil && errG == nil {
			uid, gid, found = u, g, true
		}
	}); err != nil {
		return "", err
	}
	if !found {
		n, err := strconv.Atoi(name)
		if err != nil {
			return "", unknown("user", name, "/etc/passwd")
		}
		uid = n
	}
	if group != "" {
		n, err := strconv.Atoi(group)
		if err != nil {
			n = -1
			if err := eachLine(root, "/etc/group", func(f []string) {
				if len(f) >= 3 && f[0] == group && n < 0 {
					if g, err := strconv.Atoi(f[2]); err == nil {
						n = g
					}
				}
			}); err != nil {
				return "", err
			}
		}
		if n < 0 {
			return "", unknown("group", group, "/etc/group")
		}
		gid = n
	}
	if uid < 0 || gid < 0 || uid >= rangeSize || gid >= rangeSize {
		return "", &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "unknown_user", Field: "image.registry",
			Detail: fmt.Sprintf("The image wants to run as %.100q, whose number is not below %d.", user, rangeSize)}
	}
	return fmt.Sprintf("%d:%d", uid, gid), nil
}

// eachLine calls fn with the fields of each line of a file of an image. One that isn't there, or is no file, has no lines.
func eachLine(root *rootfs.FS, name string, fn func([]string)) error {
	fi, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking a user up in the image: %w", err)
	}
	b, err := root.ReadFile(name, maxAccountFile)
	if err != nil {
		return fmt.Errorf("looking a user up in the image: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		fn(strings.Split(strings.TrimSpace(line), ":"))
	}
	return nil
}

// loaderDir is where the loader is below Config.Dir.
const loaderDir = "loader"

// loader is this machine's C library. Programs that are mounted into sandboxes (the CLI, above all) were made for it; where an image has
// another one or none, they find it where their program header says and where it looks for libraries.
type loader struct {
	program string // the dynamic loader, by the name that programs have for it: /lib64/ld-linux-x86-64.so.2
	dir     string // holds the loader and the libraries
	libs    string // where the loader looks for them: /lib/x86_64-linux-gnu
}

// newLoader copies the loader and the libraries that the programs below the mounts need into dir. Where they need none, or this
// machine's are not to be found, there is no loader: an image without the right library then can't run those programs.
func newLoader(dir string, mounts []Mount) (*loader, error) {
	var l *loader
	for _, m := range mounts {
		for _, program := range programsIn(m.Source) {
			interp, needed, err := dependencies(program)
			if err != nil || interp == "" {
				continue // no program, or one that needs nothing
			}
			real, err := filepath.EvalSymlinks(interp)
			if err != nil {
				continue // it can't run on this machine either
			}
			l = &loader{program: interp, dir: dir, libs: strings.TrimPrefix(filepath.Dir(real), "/usr")}
			if err := l.take(real, filepath.Base(interp)); err != nil {
				return nil, err
			}
			if err := l.takeAll(needed, filepath.Dir(real)); err != nil {
				return nil, err
			}
		}
	}
	return l, nil
}

func programsIn(dir string) []string {
	found, _ := filepath.Glob(filepath.Join(dir, "bin", "*")) // the pattern is well formed
	return found
}

// dependencies reads which loader and libraries a program wants.
func dependencies(program string) (interp string, needed []string, err error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return "", nil, err
			}
			interp = strings.TrimRight(string(b), "\x00")
		}
	}
	needed, err = f.ImportedLibraries()
	return interp, needed, err
}

// takeAll copies libraries and what they need in turn.
func (l *loader) takeAll(names []string, from string) error {
	seen := map[string]bool{}
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if seen[name] || strings.Contains(name, "/") {
			continue
		}
		seen[name] = true
		real, err := filepath.EvalSymlinks(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the program will say what it misses, if it does
		}
		if err != nil {
			return err
		}
		if err := l.take(real, name); err != nil {
			return err
		}
		if _, more, err := dependencies(real); err == nil {
			names = append(names, more...)
		}
	}
	return nil
}

func (l *loader) take(real, name string) error {
	data, err := os.ReadFile(real)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	fresh := filepath.Join(l.dir, "."+name+".new")
	// Renamed into place: running sandboxes keep the file that they have mapped.
	return errors.Join(os.WriteFile(fresh, data, 0o755), os.Chmod(fresh, 0o755), os.Rename(fresh, filepath.Join(l.dir, name)))
}

// missingIn returns what must be mounted for an image that has not this machine's C library, which gVisor finds in dir.
func (l *loader) missingIn(root *rootfs.FS, dir string) []Mount {
	if l == nil {
		return nil
	}
	if _, err := root.Stat(l.program); err == nil {
		return nil
	}
	if _, err := root.Stat(l.libs); err == nil {
		return nil // it has libraries of its own there, which must not be hidden
	}
	mounts := []Mount{{Source: dir, Target: l.libs}}
	if filepath.Dir(l.program) != l.libs {
		mounts = append(mounts, Mount{Source: filepath.Join(dir, filepath.Base(l.program)), Target: l.program})
	}
	return mounts
}
