package local

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// place is where something is mounted over an image's root.
type place struct {
	name  string
	field string // of a request, whose fault it is if it can't be mounted there
	real  string // where the image's links lead
}

const imageField = "image.registry"

// checkPlaces refuses an image over which a sandbox can't be mounted: where a directory is needed it has a file, or a link that leads nowhere,
// or links so that one mount would hide another. gVisor says no to some of it in words that help nobody, and yes to the rest.
// It returns where all of it really is.
func (e *Engine) checkPlaces(root *rootfs.FS, spec sandbox.Spec) (mounted []string, err error) {
	all := []place{{name: "/tmp", field: imageField}} // where nothing is mounted
	for _, name := range []string{"/proc", "/dev", "/sys", path.Dir(guest.Program), guest.SocketDir, guest.StateDir} {
		all = append(all, place{name: name, field: imageField})
	}
	for _, m := range e.cfg.Mounts {
		all = append(all, place{name: m.Target, field: imageField})
	}
	if spec.Volume.ID != "" {
		all = append(all, place{name: spec.Workdir, field: "workdir"})
	}
	for i, p := range all {
		real, err := resolvePlace(root, p.name)
		if err != nil {
			return nil, unsuitable(p.field, "%s %w", p.name, err)
		}
		all[i].real = real
		for _, other := range all[:i] {
			if within(real, other.real) != within(p.name, other.name) || within(other.real, real) != within(other.name, p.name) {
				return nil, unsuitable(p.field, "%s leads to %s, and %s to %s: one would hide the other", p.name, real, other.name, other.real)
			}
		}
		if i > 0 {
			mounted = append(mounted, real)
		}
	}
	return mounted, nil
}

// within reports whether a path is another one, or below it.
func within(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

func unsuitable(field, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	code, what := "unsuitable_image", "Take another image, or make it a directory with the Dockerfile command RUN."
	if field == "workdir" {
		code, what = "invalid_request", "A volume can be mounted only at a directory. Take another workdir."
	}
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: code, Field: field, Detail: fmt.Sprintf("In the image, %.500s. %s", err, what)}
}

var (
	errNoDirectory = errors.New("is no directory")
	errNowhere     = errors.New("leads nowhere")
)

// maxVolumes bounds the directories that an image wants for its volumes, and the length of their names: they are told on a command line.
const maxVolumes = 64 << 10

// missingVolumes returns those of an image's volumes for which it has no directory. As with Docker, what it has stays as it is, and what
// it lacks is an empty directory of root's, if need be at the end of a link that leads nowhere. What is mounted is not the image's.
func missingVolumes(root *rootfs.FS, volumes, mounted []string) ([]string, error) {
	var missing []string
	size := 0
	for _, v := range volumes {
		name := path.Join("/", v)
		real, err := followPlace(root, name, true)
		if err != nil {
			return nil, unsuitable(imageField, "the volume %s %w", name, err)
		}
		if slices.ContainsFunc(mounted, func(dir string) bool { return within(real, dir) }) {
			continue
		}
		if _, err := root.Lstat(real); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("looking for the image's volume %s: %w", name, err)
		}
		if size += len(real) + 16; size > maxVolumes {
			return nil, unsuitable(imageField, "there are more volumes than fit on a command line: their names are longer than %d KiB", maxVolumes>>10)
		}
		missing = append(missing, real)
	}
	return missing, nil
}

// resolvePlace follows name as a sandbox's kernel will. What isn't there can be made, unless a link leads there.
func resolvePlace(root *rootfs.FS, name string) (string, error) {
	return followPlace(root, name, false)
}

// followPlace does it; with dangling, what a link leads to can be made too.
func followPlace(root *rootfs.FS, name string, dangling bool) (string, error) {
	const maxLinks = 40 // as the kernel's
	at, rest := "/", strings.Split(name, "/")
	links, brought := 0, 0 // how many links there were, and how much of rest they have brought
	for len(rest) > 0 {
		c, byLink := rest[0], brought > 0
		rest, brought = rest[1:], max(brought-1, 0)
		switch c {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, c)
		fi, err := root.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist) && byLink && !dangling:
			return "", errNowhere
		case errors.Is(err, fs.ErrNotExist):
			return path.Join(append([]string{next}, rest...)...), nil
		case err != nil:
			return "", err
		case fi.Mode().Type() == fs.ModeSymlink:
			if links++; links > maxLinks {
				return "", errNowhere
			}
			target := fi.Sys().(*rootfs.Attr).Link
			if path.IsAbs(target) {
				at = "/"
			}
			parts := strings.Split(target, "/")
			rest, brought = slices.Concat(parts, rest), brought+len(parts)
		case !fi.IsDir():
			return "", errNoDirectory
		default:
			at = next
		}
	}
	return at, nil
}
