package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/image/imagetest"
	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestResolvePlace follows the links of an image as the kernel does.
func TestResolvePlace(t *testing.T) {
	t.Parallel()
	link := func(name, target string) imagetest.File { return imagetest.File{Name: name, Link: target} }
	dir := func(name string) imagetest.File { return imagetest.File{Name: name, Mode: fs.ModeDir | 0o755} }
	layer := imagetest.Layer(t, dir("var"), dir("var/opt"), dir("a"), dir("a/b"), imagetest.File{Name: "file", Mode: 0o644},
		link("opt", "var/opt"), link("abs", "/a/b"), link("up", "../../../a"), link("chain", "abs/../b"), link("nowhere", "/none"), link("half", "a/none/x"),
		link("loop", "loop"), link("to-file", "file"), link("a/rel", "b"), link("root", "/"), link("var/deep", "nothing"))
	name := filepath.Join(t.TempDir(), "image")
	open := func(context.Context) (io.ReadCloser, error) { return layer.Uncompressed() }
	if _, err := rootfs.Write(t.Context(), name, []rootfs.Layer{open}, rootfs.Limits{}); err != nil {
		t.Fatal(err)
	}
	root, err := rootfs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for in, want := range map[string]string{
		"/a": "/a", "/a/b": "/a/b", "/new": "/new", "/new/x/y": "/new/x/y", "/opt": "/var/opt", "/opt/sandlot/claude": "/var/opt/sandlot/claude", "/abs/new": "/a/b/new",
		"/up/b": "/a/b", "/chain": "/a/b", "/chain/x": "/a/b/x", "/a/rel": "/a/b", "/a/rel/n": "/a/b/n", "/root": "/", "/root/a": "/a", "/": "/",
	} {
		if got, err := resolvePlace(root, in); err != nil || got != want {
			t.Errorf("%s leads to %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{"/nowhere": "/none", "/half/y": "/a/none/x/y", "/var/deep/z": "/var/nothing/z", "/a/new": "/a/new"} {
		if got, err := followPlace(root, in, true); err != nil || got != want {
			t.Errorf("%s can be made as %q, %v, want %q", in, got, err, want)
		}
	}
	many := make([]string, 3000)
	for i := range many {
		many[i] = fmt.Sprintf("/volumes/number/%d", i)
	}
	if dirs, err := missingVolumes(root, many[:1000], []string{"/workspace"}); err != nil || len(dirs) != 1000 {
		t.Errorf("%d of 1000 volumes are to be made: %v", len(dirs), err)
	}
	if dirs, err := missingVolumes(root, []string{"/opt/work/x", "/opt/worked", "/var/opt/work"}, []string{"/var/opt/work"}); err != nil || !slices.Equal(dirs, []string{"/var/opt/worked"}) {
		t.Errorf("outside of what is mounted, %q are to be made: %v", dirs, err)
	}
	if _, err := missingVolumes(root, many, nil); !errors.Is(err, sandbox.ErrInvalid) {
		t.Errorf("3000 volumes: %v", err)
	}
	for in, want := range map[string]error{
		"/nowhere": errNowhere, "/nowhere/x": errNowhere, "/half": errNowhere, "/half/y": errNowhere, "/loop": errNowhere, "/loop/x": errNowhere, "/var/deep": errNowhere,
		"/file": errNoDirectory, "/file/x": errNoDirectory, "/to-file": errNoDirectory,
	} {
		if got, err := resolvePlace(root, in); !errors.Is(err, want) {
			t.Errorf("%s leads to %q, %v, want %v", in, got, err, want)
		}
	}
}
