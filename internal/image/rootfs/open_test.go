package rootfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestLinks follows links inside the image only, as the kernel would with / there.
func TestLinks(t *testing.T) {
	img := image(t, archive(t,
		file("etc/passwd", "image's"), file("usr/lib/os-release", "release"), file("a/b/c/f", "deep"), file("top", "t"), dir("a/e"),
		symlink("etc/os-release", "../usr/lib/os-release"), symlink("abs", "/etc/passwd"), symlink("out", "../../../../etc/passwd"),
		symlink("dir", "a/b"), symlink("far", "dir/c"), symlink("up", "dir/../e"), symlink("chain", "chain2"), symlink("chain2", "/abs"),
		symlink("loop", "loop2"), symlink("loop2", "loop"), symlink("self", "self/x"), symlink("a/b/c/root", "/"), symlink("nowhere", "no/thing"),
	))
	for name, want := range map[string]string{
		"etc/passwd": "image's", "/etc/passwd": "image's", "etc/os-release": "release", "abs": "image's", "out": "image's", "chain": "image's",
		"dir/c/f": "deep", "far/f": "deep", "far/root/top": "t", "../../top": "t", "/a/../top": "t", "dir/../../top": "t", "far/root/far/f": "deep",
		"./a//b/./c/f": "deep",
	} {
		if b, err := img.ReadFile(name, 100); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v, want %q", name, b, err, want)
		}
	}
	// "dir/.." is a, for the kernel, and the root for who goes by the text.
	if i, err := img.Stat("up"); err != nil || !i.IsDir() {
		t.Errorf("up: %v", err)
	}
	for name, want := range map[string]error{
		"none": fs.ErrNotExist, "etc/none": fs.ErrNotExist, "etc/passwd/x": syscall.ENOTDIR, "loop": syscall.ELOOP, "self": syscall.ELOOP,
		"loop/x": syscall.ELOOP, "nowhere": fs.ErrNotExist, "abs/..": syscall.ENOTDIR, strings.Repeat("x", 300): fs.ErrNotExist,
	} {
		var p *fs.PathError
		if _, err := img.Stat(name); !errors.Is(err, want) || !errors.As(err, &p) || p.Path != name {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if i, err := img.Lstat("loop"); err != nil || i.Mode().Type() != fs.ModeSymlink || i.Name() != "loop" {
		t.Errorf("Lstat of a link: %v, %v", i, err)
	}
	if l, err := img.Readlink("dir/c/root"); err != nil || l != "/" {
		t.Errorf("Readlink: %q, %v", l, err)
	}
	if _, err := img.Readlink("top"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Readlink of a file: %v", err)
	}
	if ents, err := img.ReadDir("far"); err != nil || len(ents) != 2 {
		t.Errorf("ReadDir through links: %v, %v", ents, err)
	}
	if _, err := img.ReadDir("top"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("ReadDir of a file: %v", err)
	}
}

func TestReadFile(t *testing.T) {
	img := image(t, archive(t, file("f", "12345"), dir("d")))
	var p *sandbox.Problem
	if _, err := img.ReadFile("f", 4); !errors.As(err, &p) || p.Code != "file_too_large" {
		t.Errorf("too large: %v", err)
	}
	if b, err := img.ReadFile("f", 5); err != nil || string(b) != "12345" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := img.ReadFile("d", 5); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
}

func TestWalk(t *testing.T) {
	img := image(t, archive(t, file("a/1", ""), file("a/2", ""), file("b/x/3", ""), file("b/4", ""), file("c", ""), symlink("l", "b")))
	walk := func(root string, stop map[string]error) (names []string) {
		err := img.Walk(root, func(name string, i fs.FileInfo) error {
			if base := filepath.Base(name); name != root && base != i.Name() {
				t.Errorf("%s has the name %s", name, i.Name())
			}
			names = append(names, name)
			return stop[name]
		})
		if want := stop["error"]; !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		return names
	}
	errMine := errors.New("mine")
	for _, tt := range []struct {
		root string
		stop map[string]error
		want string
	}{
		{"/", nil, "/ /a /a/1 /a/2 /b /b/4 /b/x /b/x/3 /c /l"},
		{"/", map[string]error{"/a": fs.SkipDir, "/b/4": fs.SkipDir}, "/ /a /b /b/4 /c /l"},
		{"/", map[string]error{"/b": fs.SkipAll}, "/ /a /a/1 /a/2 /b"},
		{"/", map[string]error{"/a/1": errMine, "error": errMine}, "/ /a /a/1"},
		{"/l", nil, "/l /l/4 /l/x /l/x/3"},
		{"/c", nil, "/c"},
		{"/none", map[string]error{"error": fs.ErrNotExist}, ""},
	} {
		if got := strings.Join(walk(tt.root, tt.stop), " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.root, got, tt.want)
		}
	}
}

// TestFS holds it to what fs.FS asks for.
func TestFS(t *testing.T) {
	ents := []ent{symlink("l", "d/a"), {Header: symlink("p", "").Header}}
	ents[1].Typeflag = '6'
	for _, n := range []string{"d/a", "d/b", "d/e/f", "top"} {
		ents = append(ents, file(n, strings.Repeat(n, 3000)))
	}
	if err := fstest.TestFS(strict{image(t, archive(t, ents...))}, "d/a", "d/b", "d/e/f", "top", "l", "p"); err != nil {
		t.Error(err)
	}
}

// strict takes paths as fs.FS does. The package takes others, too, since those of images often begin with a slash.
type strict struct{ img *rootfs.FS }

func (s strict) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return s.img.Open(name)
}

// TestDamagedFiles opens what is not, or no longer, such a file: errors, and never a panic.
func TestDamagedFiles(t *testing.T) {
	name, _, err := write(t, rootfs.Limits{}, archive(t, file("d/a", strings.Repeat("x", 5000)), symlink("l", "d"), file("b", "").with(xattrA), dir("e")))
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) error {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		img, err := rootfs.Open(name)
		if err != nil {
			return err
		}
		defer img.Close()
		return img.Walk("/", func(p string, i fs.FileInfo) error {
			if !i.Mode().IsRegular() {
				return nil
			}
			_, err := fs.ReadFile(img, p)
			return err
		})
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for n, b := range map[string][]byte{
		"empty": nil, "short": good[:1000], "no magic": append(make([]byte, 2048), good[2048:]...), "no inodes": good[:8192],
		"table": append(slices.Clone(good[:len(good)-33]), append([]byte{good[len(good)-33] ^ 1}, good[len(good)-32:]...)...),
	} {
		if err := read(b); err == nil {
			t.Errorf("%s: no error", n)
		}
	}
	for i := 1024; i < len(good); i += 3 { // all over the metadata
		if i > 1152 && i < 3*4096 {
			i = 3 * 4096
		}
		b := slices.Clone(good)
		b[i] ^= 0xff
		_ = read(b) // some of them don't matter
	}
}
