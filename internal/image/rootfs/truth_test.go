package rootfs_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
)

// what is all that is known of a path. Directories have no size; what a reader can't see stays empty.
type what struct {
	mode     string
	uid, gid uint32
	size     int64
	mtime    time.Time
	dev      string
	link     string
	xattrs   string
	hash     string
}

// TestTruth merges a real tree of several layers, and compares all paths, with all that is known of them, with what umoci
// unpacks as root. Then a sandbox, and another library, list the same file.
func TestTruth(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "umoci keeps owners for root only")
	}
	layers := realLayers(t)
	want := umoci(t, layers)
	var bodies [][]byte
	for _, l := range layers {
		b, err := os.ReadFile(l)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, b)
	}
	name, stats, err := write(t, rootfs.Limits{}, bodies...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d paths, %+v", len(want), stats)

	t.Run("Open", func(t *testing.T) {
		img, err := rootfs.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		same(t, fromOpen(t, img), want)
	})
	t.Run("Library", func(t *testing.T) {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lib, err := erofs.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		same(t, fromLibrary(t, lib.(fs.ReadLinkFS)), without(want, func(_ string, w *what) bool {
			w.xattrs = "" // they are not in the file system
			return true
		}))
	})
	t.Run("Sandbox", func(t *testing.T) {
		same(t, start(t, name).list(), without(want, func(p string, w *what) bool {
			w.xattrs, w.dev, w.mtime = "", "", w.mtime.Truncate(time.Second)
			return !strings.Contains(w.mode, "c") && !mounted(p) // devices: the package's comment says why
		}))
	})
}

// without changes copies, and leaves out those for which keep is false.
func without(all map[string]what, keep func(string, *what) bool) map[string]what {
	m := map[string]what{}
	for p, w := range all {
		if keep(p, &w) {
			m[p] = w
		}
	}
	return m
}

func same(t *testing.T, got, want map[string]what) {
	t.Helper()
	if len(want) < 100 {
		t.Errorf("only %d paths to compare", len(want))
	}
	n := 0
	for _, p := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[p]
		w := want[p]
		if ok && g.mtime.Equal(w.mtime) {
			g.mtime = w.mtime // also when the time zones differ
		}
		if !ok || g != w {
			if n++; n < 30 {
				t.Errorf("%q: there is %v\n got %+v\nwant %+v", p, ok, g, w)
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			t.Errorf("%q should not be there", p)
		}
	}
	if n >= 30 {
		t.Errorf("%d paths differ", n)
	}
}

// realLayers makes three layers: parts of this machine in GNU's format, and two that do to it what layers can do.
func realLayers(t *testing.T) []string {
	tmp := t.TempDir()
	base := filepath.Join(tmp, "1.tar")
	args := []string{"--create", "--file=" + base, "--format=gnu", "--numeric-owner", "--directory=/"}
	for _, p := range []string{"usr/share/zoneinfo", "usr/lib/git-core", "etc", "usr/share/perl5", "bin/busybox"} {
		if _, err := os.Stat("/" + p); err == nil {
			args = append(args, p)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "tar", args...).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		skip(t, "busybox-static is not installed")
	}
	when := time.Date(2023, 4, 5, 6, 7, 8, 987654321, time.UTC)
	set := func(mode int64, uid, gid int) func(*tar.Header) {
		return func(h *tar.Header) { h.Mode, h.Uid, h.Gid, h.ModTime, h.Format = mode, uid, gid, when, tar.FormatPAX }
	}
	xattr := func(k, v string) func(*tar.Header) {
		return func(h *tar.Header) {
			set(0o755, 0, 0)(h)
			h.PAXRecords = map[string]string{"SCHILY.xattr." + k: v}
		}
	}
	d := func(name string) ent { return dir(name).with(set(0o755, 1, 1)) }
	f := func(name, body string) ent { return file(name, body).with(set(0o640, 2, 3)) }
	two := archive(t,
		d("."), d("usr"), d("usr/lib"), d("usr/share"), d("bin"),
		ent{tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, ModTime: when}, string(busybox)},
		hardlink("bin/sh", "bin/busybox"), symlink("bin/link", "busybox").with(set(0, 4, 5)),
		d("x"), f("x/a", "1"), f("x/b", "2"), hardlink("x/c", "x/b"), d("x/d"), f("x/d/e", "3"), f("x/d/f", "4"),
		d("opq"), f("opq/old", "1"), d("opq/sub"), f("opq/sub/old", "2"),
		d("gone"), f("gone/old", "1"), f("became-dir", "x"), d("became-file"), f("became-file/x", "y"),
		symlink("rel", "x/d").with(set(0, 0, 0)), symlink("abs", "/x/d").with(set(0, 0, 0)), symlink("out", "../../../x").with(set(0, 0, 0)),
		f("huge-owner", "x").with(set(0o600, 4_000_000_000, 70_000)), f("suid", "x").with(set(0o6755, 65535, 65535)), d("sticky").with(set(0o1777, 0, 0)),
		f("cap", "x").with(xattr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")),
		f("user", "x").with(xattr("user.comment", "\x00\xffbytes")), d("user-dir").with(xattr("user.comment", "dir")),
		f("zeros", strings.Repeat("\x00", 100_000)), f("half", strings.Repeat("\x00", 50_000)+"x"), f("empty", ""),
		f(strings.Repeat("n", 255), "long"), f("not-\xff-utf8", "x"), symlink("long", strings.Repeat("t", 4090)).with(set(0, 0, 0)),
		ent{tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600, ModTime: when}, ""},
		ent{tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, ModTime: when, Devmajor: 1, Devminor: 3}, ""},
		ent{tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o600, ModTime: when, Devmajor: 250, Devminor: 300}, ""},
	)
	for i := range 300 {
		two = join(two, archive(t, f(fmt.Sprintf("x/many-%0100d", i), fmt.Sprint(i))))
	}
	three := archive(t,
		file("x/.wh.a", ""), f("x/b", "replaced"), file("x/d/.wh.e", ""), hardlink("x/g", "x/c"), hardlink("new", "x/d/f"),
		d("opq"), file("opq/.wh..wh..opq", ""), f("opq/new", "3"), d("opq/sub"), f("opq/sub/new", "4"),
		file(".wh.gone", ""), d("gone"), f("gone/new", "5"),
		d("became-dir"), f("became-dir/x", "z"), f("became-file", "now"),
		f("rel/through-rel", "1"), f("abs/through-abs", "2"), f("out/through-out", "3"), file("abs/.wh.f", ""),
		f("twice", "1"), f("twice", "2"), f("./dotted/../dotted-file", "x"), f("/absolute", "x"),
	)
	for n, b := range [][]byte{two, three} {
		if err := os.WriteFile(filepath.Join(tmp, fmt.Sprintf("%d.tar", n+2)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := filepath.Join(tmp, "4.tar")
	if err := os.WriteFile(s, sparse(t, "1.0", "sparse", 10<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{base, filepath.Join(tmp, "2.tar"), filepath.Join(tmp, "3.tar"), s}
}

// join makes one archive of two.
func join(a, b []byte) []byte { return append(bytes.Clone(a[:len(a)-1024]), b...) }

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("SANDLOT_MUST_RUN") != "" {
		t.Fatal("must not be skipped: " + why)
	}
	t.Skip(why)
}

// umoci unpacks layers and lists what came of it.
func umoci(t *testing.T, layers []string) map[string]what {
	if _, err := exec.LookPath("umoci"); err != nil {
		skip(t, "umoci is not installed")
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "layout") + ":x"
	run := func(args ...string) {
		if out, err := exec.CommandContext(t.Context(), "umoci", args...).CombinedOutput(); err != nil {
			t.Fatalf("umoci %v: %v: %s", args, err, out)
		}
	}
	run("init", "--layout", filepath.Join(dir, "layout"))
	run("new", "--image", image)
	for _, l := range layers {
		run("raw", "add-layer", "--image", image, l)
	}
	run("unpack", "--image", image, filepath.Join(dir, "bundle"))
	root := filepath.Join(dir, "bundle", "rootfs")
	all := map[string]what{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		st := i.Sys().(*syscall.Stat_t)
		w := what{mode: i.Mode().String(), uid: st.Uid, gid: st.Gid, mtime: i.ModTime()}
		switch i.Mode().Type() {
		case 0:
			w.size, w.hash = i.Size(), hash(t, os.Open, name)
		case fs.ModeSymlink:
			if w.link, err = os.Readlink(name); err != nil {
				return err
			}
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			w.dev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		w.xattrs = hostXattrs(t, name)
		all["/"+strings.TrimPrefix(strings.TrimPrefix(name, root), "/")] = w
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func hostXattrs(t *testing.T, name string) string {
	t.Helper()
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, b)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, k := range strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if k == "" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, k, v)
		if err != nil {
			t.Fatal(err)
		}
		m[k] = string(v[:n])
	}
	return fmt.Sprintf("%q", m)
}

func hash[F io.ReadCloser](t *testing.T, open func(string) (F, error), name string) string {
	t.Helper()
	f, err := open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func fromOpen(t *testing.T, img *rootfs.FS) map[string]what {
	all := map[string]what{}
	err := img.Walk("/", func(name string, i fs.FileInfo) error {
		a := attr(i)
		m := a.Xattrs
		if m == nil {
			m = map[string]string{}
		}
		w := what{mode: i.Mode().String(), uid: a.UID, gid: a.GID, mtime: i.ModTime(), link: a.Link, xattrs: fmt.Sprintf("%q", m)}
		if i.Mode().IsRegular() {
			w.size, w.hash = i.Size(), hash(t, img.Open, name)
		}
		if i.Mode()&fs.ModeDevice != 0 {
			w.dev = fmt.Sprintf("%d:%d", a.Major, a.Minor)
		}
		all[name] = w
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func fromLibrary(t *testing.T, lib fs.ReadLinkFS) map[string]what {
	all := map[string]what{}
	err := fs.WalkDir(lib, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		st := i.Sys().(*erofs.Stat)
		w := what{mode: st.Mode.String(), uid: st.UID, gid: st.GID, mtime: time.Unix(int64(st.Mtime), int64(st.MtimeNs))}
		switch st.Mode.Type() {
		case 0:
			w.size, w.hash = st.Size, hash(t, lib.Open, name)
		case fs.ModeSymlink:
			if w.link, err = lib.ReadLink(name); err != nil {
				return err
			}
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			w.dev = fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
		}
		all[path.Join("/", name)] = w
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
