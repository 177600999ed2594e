package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// ent is an entry of a layer: a header and a body.
type ent struct {
	tar.Header
	body string
}

func file(name, body string) ent {
	return ent{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func dir(name string) ent {
	return ent{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, ""}
}

func symlink(name, target string) ent {
	return ent{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, ""}
}

func hardlink(name, target string) ent {
	return ent{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, ""}
}

func (e ent) with(change func(*tar.Header)) ent {
	change(&e.Header)
	return e
}

// archive is the tar of some entries.
func archive(t testing.TB, ents ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range ents {
		e.Size = int64(len(e.body))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layer is a layer with these bytes.
func layer(b []byte) rootfs.Layer {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// image writes layers to a file and opens it.
func image(t testing.TB, layers ...[]byte) *rootfs.FS {
	t.Helper()
	f, _, err := write(t, rootfs.Limits{}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	img, err := rootfs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	return img
}

func write(t testing.TB, l rootfs.Limits, layers ...[]byte) (string, rootfs.Stats, error) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "root.erofs")
	ls := make([]rootfs.Layer, len(layers))
	for i, b := range layers {
		ls[i] = layer(b)
	}
	stats, err := rootfs.Write(t.Context(), f, ls, l)
	return f, stats, err
}

func attr(i fs.FileInfo) *rootfs.Attr { return i.Sys().(*rootfs.Attr) }

// list tells of every path but the root what it is, in a few words.
func list(t testing.TB, img *rootfs.FS) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := img.Walk("/", func(name string, i fs.FileInfo) error {
		a := attr(i)
		s := ""
		switch i.Mode().Type() {
		case 0:
			b, err := fs.ReadFile(img, name)
			if err != nil {
				return err
			}
			s = string(b)
		case fs.ModeDir:
			s = "dir"
		case fs.ModeSymlink:
			s = "-> " + a.Link
		default:
			s = fmt.Sprintf("%v %d:%d", i.Mode(), a.Major, a.Minor)
		}
		if name != "/" {
			all[name] = s
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMerge(t *testing.T) {
	long, target := strings.Repeat("n", 255), strings.Repeat("t", 4095)
	deep := strings.Repeat("d/", 1500) + "f"
	deepDirs := map[string]string{"/" + deep: "x"}
	for i := 1; i <= 1500; i++ {
		deepDirs["/"+deep[:2*i-1]] = "dir"
	}
	tests := map[string]struct {
		layers [][]ent
		want   map[string]string
	}{
		"Nothing":    {},
		"EmptyLayer": {[][]ent{{}, {file("a", "1")}, {}}, map[string]string{"/a": "1"}},
		"Whiteout": {[][]ent{{file("d/a", "1"), file("d/b", "2")}, {file("d/.wh.a", "")}},
			map[string]string{"/d": "dir", "/d/b": "2"}},
		"WhiteoutOfDirectory": {[][]ent{{file("d/x/a", "1"), file("d/b", "2")}, {file("d/.wh.x", "")}},
			map[string]string{"/d": "dir", "/d/b": "2"}},
		"WhiteoutThenMadeAgain": {[][]ent{{file("d/old", "1")}, {file(".wh.d", "")}, {dir("d"), file("d/new", "2")}},
			map[string]string{"/d": "dir", "/d/new": "2"}},
		"WhiteoutAndMadeAgainInOneLayer": {[][]ent{{file("d/old", "1")}, {file(".wh.d", ""), dir("d"), file("d/new", "2")}},
			map[string]string{"/d": "dir", "/d/new": "2"}},
		"WhiteoutAfterWhatItsLayerMade": {[][]ent{{file("d/old", "1"), file("x", "0")}, {dir("d"), file("d/new", "2"), file(".wh.d", ""), file("x", "3"), file(".wh.x", "")}},
			map[string]string{"/d": "dir", "/d/new": "2", "/x": "3"}},
		"WhiteoutOfNothing":  {[][]ent{{file(".wh.a", ""), file("no/.wh.a", "")}}, map[string]string{}},
		"WhiteoutOfHardLink": {[][]ent{{file("a", "1"), hardlink("b", "a")}, {file(".wh.a", "")}}, map[string]string{"/b": "1"}},
		"WhiteoutThroughLink": {[][]ent{{file("usr/lib/a", "1"), symlink("lib", "usr/lib")}, {file("lib/.wh.a", "")}},
			map[string]string{"/usr": "dir", "/usr/lib": "dir", "/lib": "-> usr/lib"}},
		"AufsOwnFiles": {[][]ent{{file(".wh..wh.aufs", "x"), dir(".wh..wh.plnk"), file("a", "1")}}, map[string]string{"/a": "1"}},
		"Opaque": {[][]ent{{file("d/a", "1"), file("d/e/b", "2"), file("k", "3")}, {dir("d"), file("d/.wh..wh..opq", ""), file("d/c", "4")}},
			map[string]string{"/d": "dir", "/d/c": "4", "/k": "3"}},
		"OpaqueLast": {[][]ent{{file("d/a", "1"), file("d/e/b", "2")}, {file("d/e/c", "4"), file("d/.wh..wh..opq", "")}},
			map[string]string{"/d": "dir", "/d/e": "dir", "/d/e/c": "4"}},
		"OpaqueRoot": {[][]ent{{file("d/a", "1")}, {file(".wh..wh..opq", ""), file("b", "2")}}, map[string]string{"/b": "2"}},
		"OpaqueTwice": {[][]ent{{file("d/a", "1")}, {file("d/.wh..wh..opq", ""), file("d/b", "2"), file("d/.wh..wh..opq", "")}, {file("d/.wh..wh..opq", ""), file("d/c", "3")}},
			map[string]string{"/d": "dir", "/d/c": "3"}},
		"FileForDirectory":        {[][]ent{{file("d/a/b", "1")}, {file("d", "2")}}, map[string]string{"/d": "2"}},
		"DirectoryForFile":        {[][]ent{{file("d", "1")}, {dir("d"), file("d/a", "2")}}, map[string]string{"/d": "dir", "/d/a": "2"}},
		"ImpliedDirectoryForFile": {[][]ent{{file("d", "1")}, {file("d/a", "2")}}, map[string]string{"/d": "dir", "/d/a": "2"}},
		"DirectoryForLink": {[][]ent{{file("x/a", "1"), symlink("d", "x")}, {dir("d"), file("d/b", "2")}},
			map[string]string{"/x": "dir", "/x/a": "1", "/d": "dir", "/d/b": "2"}},
		"LinkForDirectory": {[][]ent{{file("x/a", "1"), file("d/b", "2")}, {symlink("d", "x")}},
			map[string]string{"/x": "dir", "/x/a": "1", "/d": "-> x"}},
		"DirectoryStays": {[][]ent{{file("d/a", "1")}, {dir("d"), file("d/b", "2")}},
			map[string]string{"/d": "dir", "/d/a": "1", "/d/b": "2"}},
		"LastOfOneLayerWins": {[][]ent{{file("a", "1"), file("./a", "2"), dir("b"), file("b", "3"), file("/a", "4")}},
			map[string]string{"/a": "4", "/b": "3"}},
		"HardLinkAcrossLayers": {[][]ent{{file("a", "1")}, {hardlink("d/b", "a")}, {file("a", "2")}},
			map[string]string{"/a": "2", "/d": "dir", "/d/b": "1"}},
		"HardLinkAbsolute": {[][]ent{{file("a", "1"), hardlink("b", "/a")}}, map[string]string{"/a": "1", "/b": "1"}},
		"HardLinkToLink": {[][]ent{{symlink("a", "nowhere"), hardlink("b", "a")}},
			map[string]string{"/a": "-> nowhere", "/b": "-> nowhere"}},
		"HardLinkThroughLink": {[][]ent{{file("x/a", "1"), symlink("y", "x"), hardlink("b", "y/a")}},
			map[string]string{"/x": "dir", "/x/a": "1", "/y": "-> x", "/b": "1"}},
		"HardLinkOverItsTwin": {[][]ent{{file("a", "1"), hardlink("b", "a"), hardlink("b", "a")}}, map[string]string{"/a": "1", "/b": "1"}},
		"DirectoryThroughLink": {[][]ent{{dir("usr/lib"), symlink("lib", "usr/lib")}, {file("lib/a", "1")}},
			map[string]string{"/usr": "dir", "/usr/lib": "dir", "/usr/lib/a": "1", "/lib": "-> usr/lib"}},
		"DirectoryThroughAbsoluteLink": {[][]ent{{symlink("l", "/etc/x")}, {file("l/passwd", "evil")}},
			map[string]string{"/l": "-> /etc/x", "/etc": "dir", "/etc/x": "dir", "/etc/x/passwd": "evil"}},
		"DirectoryThroughLinkOut": {[][]ent{{symlink("a/l", "../../../../../tmp")}, {file("a/l/f", "1")}},
			map[string]string{"/a": "dir", "/a/l": "-> ../../../../../tmp", "/tmp": "dir", "/tmp/f": "1"}},
		"AbsolutePath": {[][]ent{{file("/a/b", "1"), file("//c", "2"), file("/../d", "3")}},
			map[string]string{"/a": "dir", "/a/b": "1", "/c": "2", "/d": "3"}},
		"DotDotInside": {[][]ent{{file("a/../b", "1"), file("./c/./d", "2")}}, map[string]string{"/b": "1", "/c": "dir", "/c/d": "2"}},
		"LinkOut": {[][]ent{{symlink("a", "../../../etc/passwd"), symlink("b", "/etc/shadow")}},
			map[string]string{"/a": "-> ../../../etc/passwd", "/b": "-> /etc/shadow"}},
		"LongName": {[][]ent{{file(long, "1"), file("d/"+long, "2")}}, map[string]string{"/" + long: "1", "/d": "dir", "/d/" + long: "2"}},
		"DeepPath": {[][]ent{{file(deep, "x")}}, deepDirs},
		"NotUTF8": {[][]ent{{file("d/\xff\xfe", "1"), symlink("\x80", "\x81")}},
			map[string]string{"/d": "dir", "/d/\xff\xfe": "1", "/\x80": "-> \x81"}},
		"NamesAtDot": {[][]ent{{file("-", "1"), file(" ", "2"), file(".\x01", "3"), file("...", "4"), file("..a", "5")}},
			map[string]string{"/-": "1", "/ ": "2", "/.\x01": "3", "/...": "4", "/..a": "5"}},
		"LongTarget": {
			[][]ent{{symlink("a", target[:4032]), symlink("b", target[:4033]), symlink("c", target), hardlink("d", "c")}},
			map[string]string{"/a": "-> " + target[:4032], "/b": "-> " + target[:4033], "/c": "-> " + target, "/d": "-> " + target},
		},
		"WhiteoutName": {[][]ent{{file(".wh.d/a", "1")}}, map[string]string{"/.wh.d": "dir", "/.wh.d/a": "1"}},
		"GlobalHeader": {[][]ent{{{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "x"}}, ""}, file("a", "1")}},
			map[string]string{"/a": "1"}},
		"RootAsEntries": {[][]ent{{dir("."), dir("/"), file("./a", "1")}}, map[string]string{"/a": "1"}},
		"SpecialFiles": {[][]ent{{
			{tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
			{tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o600, Devmajor: 0xfff, Devminor: 0xfffff}, ""},
			{tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600}, ""},
			{tar.Header{Typeflag: tar.TypeCont, Name: "cont", Mode: 0o600}, "1"},
		}}, map[string]string{"/null": "Dcrw-rw-rw- 1:3", "/disk": "Drw------- 4095:1048575", "/pipe": "prw------- 0:0", "/cont": "1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			layers := make([][]byte, len(tt.layers))
			for i, l := range tt.layers {
				layers[i] = archive(t, l...)
			}
			got := list(t, image(t, layers...))
			if tt.want == nil {
				tt.want = map[string]string{}
			}
			if !maps.Equal(got, tt.want) {
				t.Errorf("got\n%q\nwant\n%q", got, tt.want)
			}
		})
	}
}

// TestMetadata looks at everything that an inode holds.
func TestMetadata(t *testing.T) {
	when := time.Date(2024, 2, 29, 1, 2, 3, 456789012, time.UTC)
	before := time.Date(1901, 1, 1, 0, 0, 0, 0, time.UTC)
	set := func(mode int64, uid, gid int, at time.Time) func(*tar.Header) {
		return func(h *tar.Header) {
			h.Mode, h.Uid, h.Gid, h.ModTime, h.Format = mode, uid, gid, at, tar.FormatPAX
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\xff", "comment": "x"}
		}
	}
	img := image(t,
		archive(t, dir("kept").with(set(0o700, 5, 6, when)), dir("changed").with(set(0o700, 5, 6, when)), file("kept/x", "")),
		archive(t,
			dir(".").with(set(0o1777, 1, 2, when)),
			file("suid", "x").with(set(0o4755, 65535, 65536, when)),
			file("sgid", "").with(set(0o102750, 4294967294, 0, before)), // some archives have the type's bits, too
			dir("sticky").with(set(0o1777, 1000, 1000, when)),
			symlink("link", "suid").with(set(0o600, 3, 4, when)),
			hardlink("twin", "suid").with(func(h *tar.Header) { h.Mode, h.Uid = 0o600, 9 }),
			file("implied/f", "").with(set(0o600, 7, 7, when)),
			file("kept/y", ""),
			dir("changed").with(func(h *tar.Header) { h.Mode = 0o711 }),
		))
	xattrs := map[string]string{"user.a": "1", "security.capability": "\x01\x00\x00\x02\x00\xff"}
	tests := map[string]struct {
		mode     fs.FileMode
		uid, gid uint32
		at       time.Time
		nlink    uint32
		xattrs   map[string]string
	}{
		"/":          {fs.ModeDir | fs.ModeSticky | 0o777, 1, 2, when, 6, xattrs},
		"/suid":      {fs.ModeSetuid | 0o755, 65535, 65536, when, 2, xattrs},
		"/twin":      {fs.ModeSetuid | 0o755, 65535, 65536, when, 2, xattrs},
		"/sgid":      {fs.ModeSetgid | 0o750, 4294967294, 0, before, 1, xattrs},
		"/sticky":    {fs.ModeDir | fs.ModeSticky | 0o777, 1000, 1000, when, 2, xattrs},
		"/link":      {fs.ModeSymlink | 0o777, 3, 4, when, 1, xattrs},
		"/implied":   {fs.ModeDir | 0o755, 0, 0, when, 2, nil},
		"/implied/f": {0o600, 7, 7, when, 1, xattrs},
		"/kept":      {fs.ModeDir | 0o700, 5, 6, when, 2, xattrs},
		"/kept/y":    {0o644, 0, 0, time.Unix(0, 0), 1, nil},
		"/changed":   {fs.ModeDir | 0o711, 0, 0, time.Unix(0, 0), 2, nil},
	}
	for name, want := range tests {
		i, err := img.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		a := attr(i)
		if i.Mode() != want.mode || a.UID != want.uid || a.GID != want.gid || !i.ModTime().Equal(want.at) || a.Nlink != want.nlink {
			t.Errorf("%s: %v %d:%d %v %d links, want %+v", name, i.Mode(), a.UID, a.GID, i.ModTime().UTC(), a.Nlink, want)
		}
		if !maps.Equal(a.Xattrs, want.xattrs) {
			t.Errorf("%s: attributes %q, want %q", name, a.Xattrs, want.xattrs)
		}
	}
	one, _ := img.Lstat("suid")
	two, _ := img.Lstat("twin")
	if attr(one).Ino != attr(two).Ino {
		t.Error("hard links have different inodes")
	}
}

// TestFormats reads the same tree from every format of tar.
func TestFormats(t *testing.T) {
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		in := func(h *tar.Header) { h.Format = format }
		name := strings.Repeat("a", 90) + "/" + strings.Repeat("b", 90)
		got := list(t, image(t, archive(t, file(name, "1").with(in), symlink("l", name[:99]).with(in))))
		want := map[string]string{"/" + name[:90]: "dir", "/" + name: "1", "/l": "-> " + name[:99]}
		if !maps.Equal(got, want) {
			t.Errorf("%v: got %q", format, got)
		}
	}
}

// TestLargeDirectories has directories that fill blocks in every way: lookup and listing must agree on them.
func TestLargeDirectories(t *testing.T) {
	for _, size := range []int{1, 10, 100, 255} {
		var ents []ent
		want := map[string]string{"/d": "dir"}
		for i := range 600 {
			name := fmt.Sprintf("%0*d", size, i)
			if size < 3 {
				name = fmt.Sprint(i)
			}
			ents = append(ents, file("d/"+name, name))
			want["/d/"+name] = name
		}
		for n := 0; n < len(ents); n += 43 { // other lengths of the last block
			img := image(t, archive(t, append([]ent{dir("d")}, ents[:n]...)...))
			got, err := img.ReadDir("d")
			if err != nil || len(got) != n {
				t.Fatalf("%d names of %d bytes: %d, %v", n, size, len(got), err)
			}
		}
		img := image(t, archive(t, ents...))
		if got := list(t, img); !maps.Equal(got, want) {
			t.Errorf("names of %d bytes: %d entries, want %d", size, len(got), len(want))
		}
		if _, err := img.Lstat("d/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// TestContents has files of every length around that of a block and of the buffer, with zeros here and there.
func TestContents(t *testing.T) {
	var ents []ent
	want := map[string]string{}
	for _, n := range []int{0, 1, 4095, 4096, 4097, 8192, 3*4096 + 5, 1 << 20, 1<<20 + 1, 3<<20 - 1} {
		for fill, at := range map[string]func(i int) byte{
			"full":  func(i int) byte { return byte(i%251 + 1) },
			"zero":  func(int) byte { return 0 },
			"begin": func(i int) byte { return byte(i%251+1) * byte(min(1, i/4096)) },
			"gaps":  func(i int) byte { return byte(i%251+1) * byte(i/4096%2) },
			"last":  func(i int) byte { return byte(1 - min(1, n-1-i)) },
		} {
			b := make([]byte, n)
			for i := range b {
				b[i] = at(i)
			}
			name := fmt.Sprintf("%s-%d", fill, n)
			ents = append(ents, file("other", name), file(name, string(b))) // "other" is replaced each time
			want["/"+name] = string(b)
		}
	}
	want["/other"] = strings.TrimPrefix(ents[len(ents)-1].Name, "/")
	got := list(t, image(t, archive(t, ents...)))
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s is different", name)
		}
	}
}

// TestDeterministic writes an image twice.
func TestDeterministic(t *testing.T) {
	var ents []ent
	for i := range 2000 {
		ents = append(ents, file(fmt.Sprintf("d%d/%d", i%50, i), fmt.Sprint(i)).with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.b": "2"}
		}))
	}
	a := archive(t, ents...)
	b := archive(t, append(ents[:100:100], file("d1/.wh..wh..opq", ""), file(".wh.d2", ""))...)
	var files [2][]byte
	for i := range files {
		name, _, err := write(t, rootfs.Limits{}, a, b)
		if err != nil {
			t.Fatal(err)
		}
		if files[i], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Error("two files of the same layers differ")
	}
}

func TestStats(t *testing.T) {
	name, stats, err := write(t, rootfs.Limits{}, archive(t, file("d/a", "123"), hardlink("d/b", "d/a"), file("c", "0")), archive(t, file("c", "12")))
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if want := (rootfs.Stats{Entries: 5, Bytes: 5, Size: st.Size()}); stats != want {
		t.Errorf("%+v, want %+v", stats, want)
	}
	if left := dirNames(t, filepath.Dir(name)); !slices.Equal(left, []string{"root.erofs"}) {
		t.Errorf("left behind: %q", left)
	}
}

func dirNames(t testing.TB, dir string) []string {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range ents {
		names = append(names, e.Name())
	}
	return names
}

// badLayer checks that err is what a bad layer gives, naming what is at fault.
func badLayer(t *testing.T, err error, says string) {
	t.Helper()
	var p *sandbox.Problem
	if !errors.As(err, &p) || !errors.Is(err, sandbox.ErrInvalid) || p.Code != "bad_layer" {
		t.Fatalf("error %v, want a bad_layer", err)
	}
	if !strings.Contains(p.Detail, says) {
		t.Errorf("it says %q, want %q in it", p.Detail, says)
	}
}
