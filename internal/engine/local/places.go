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
func (e *Engine) checkPlaces(root *rootfs.FS, spec sandbox.Spec) error {
	all := []place{}
	for _, name := range []string{"/proc", "/dev", "/sys", "/tmp", path.Dir(guest.Program), guest.SocketDir, guest.StateDir} {
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
			return unsuitable(p.field, "%s %w", p.name, err)
		}
		all[i].real = real
		for _, other := range all[:i] {
			if within(real, other.real) != within(p.name, other.name) || within(other.real, real) != within(other.name, p.name) {
				return unsuitable(p.field, "%s leads to %s, and %s to %s: one would hide the other", p.name, real, other.name, other.real)
			}
		}
	}
	return nil
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

// resolvePlace follows name as a sandbox's kernel will. What isn't there can be made, unless a link leads there.
func resolvePlace(root *rootfs.FS, name string) (string, error) {
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
		case errors.Is(err, fs.ErrNotExist) && byLink:
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
