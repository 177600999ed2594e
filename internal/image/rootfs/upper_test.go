package rootfs_test

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func xattrA(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1"} }

// gone is a whiteout, as gVisor writes it.
func gone(name string) ent { return ent{tar.Header{Typeflag: tar.TypeChar, Name: name}, ""} }

func opaqueDir(name string) ent {
	return dir(name).with(func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"} })
}

// entries reads an archive as lines.
func entries(t *testing.T, b []byte) (all []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %s", h.Typeflag, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(body) > 0 {
			line += " = " + string(body)
		}
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if s, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				line += fmt.Sprintf(" %s:%q", s, h.PAXRecords[k])
			}
		}
		all = append(all, line)
	}
}

func fromUpper(t *testing.T, drop func(string) bool, ents ...ent) ([]byte, error) {
	t.Helper()
	var out bytes.Buffer
	err := rootfs.FromUpper(bytes.NewReader(archive(t, ents...)), &out, drop)
	return out.Bytes(), err
}

func TestFromUpper(t *testing.T) {
	acl := "\x02\x00\x00\x00\x01\x00\xff"
	in := []ent{
		dir("."), dir("./etc"), gone("./etc/passwd"), file("./etc/new", "n").with(xattrA), opaqueDir("./fresh"), file("./fresh/f", "1"), opaqueDir("./fresh/empty"),
		symlink("./l", "/etc"), file("./z", "same"), hardlink("./fresh/y", "./z"), {tar.Header{Typeflag: tar.TypeFifo, Name: "./p"}, ""},
		{tar.Header{Typeflag: tar.TypeChar, Name: "./c", Devmajor: 1, Devminor: 3}, ""},
		file("./acl", "").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.system.posix_acl_access": base64.RawStdEncoding.EncodeToString([]byte(acl))}
		}),
		dir("./run"), dir("./run/sl"), file("./run/sl/x", ""), dir("./run-not"), gone("./secret"), dir("./\xff"), file("./\xff/g", "h"),
	}
	asked := map[string]bool{}
	got, err := fromUpper(t, func(p string) bool {
		asked[p] = true
		return p == "/run" || p == "/secret"
	}, in...)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`5 ./`, `0 acl system.posix_acl_access:"\x02\x00\x00\x00\x01\x00\xff"`, `3 c`, `5 etc/`, `0 etc/new = n user.a:"1"`, `0 etc/.wh.passwd`,
		`5 fresh/`, `0 fresh/.wh..wh..opq`, `5 fresh/empty/`, `0 fresh/empty/.wh..wh..opq`, `0 fresh/f = 1`, `0 fresh/y = same`,
		`2 l -> /etc`, `6 p`, `5 run-not/`, `1 z -> fresh/y`, "5 \xff/", "0 \xff/g = h",
	}
	if lines := entries(t, got); !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	for _, p := range []string{"/etc/passwd", "/run", "/secret", "/run-not"} {
		if !asked[p] {
			t.Errorf("%s was not asked for", p)
		}
	}
	for _, p := range []string{"/", "/run/sl", "/run/sl/x"} {
		if asked[p] {
			t.Errorf("%s was asked for", p)
		}
	}
	// The order of the entries, which is random in gVisor, and the kind of the reader change nothing.
	for range 5 {
		mixed := slices.Clone(in[1:])
		rand.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		for i := range mixed { // whichever comes first holds the contents
			if mixed[i].Name == "./z" || mixed[i].Name == "./fresh/y" {
				j := i + 1 + slices.IndexFunc(mixed[i+1:], func(e ent) bool { return e.Name == "./z" || e.Name == "./fresh/y" })
				mixed[i], mixed[j] = file(mixed[i].Name, "same"), hardlink(mixed[j].Name, mixed[i].Name)
				break
			}
		}
		var out bytes.Buffer
		r, w := io.Pipe()
		go func() {
			_, err := w.Write(archive(t, append(in[:1:1], mixed...)...))
			w.CloseWithError(err)
		}()
		if err := rootfs.FromUpper(r, &out, func(p string) bool { return p == "/run" || p == "/secret" }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), got) {
			t.Fatalf("got\n%s", strings.Join(entries(t, out.Bytes()), "\n"))
		}
	}
}

// TestFromUpperDroppedName has a hard link whose other name is dropped.
func TestFromUpperDroppedName(t *testing.T) {
	got, err := fromUpper(t, func(p string) bool { return p == "/a" }, dir("."), file("./a", "x"), hardlink("./b", "./a"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := entries(t, got); !slices.Equal(lines, []string{"5 ./", "0 b = x"}) {
		t.Errorf("got %q", lines)
	}
}

// TestFromUpperRefuses says what can't be told in a layer.
func TestFromUpperRefuses(t *testing.T) {
	_, err := fromUpper(t, nil, dir("."), dir("./d"), file("./d/.wh.x", ""))
	var p *sandbox.Problem
	if !errors.As(err, &p) || p.Code != "unsupported_name" || !strings.Contains(p.Detail, "/d/.wh.x") {
		t.Errorf("a name of a whiteout: %v", err)
	}
	if _, err := fromUpper(t, func(p string) bool { return p == "/d" }, dir("."), dir("./d"), file("./d/.wh.x", "")); err != nil {
		t.Errorf("dropped: %v", err)
	}
	for name, e := range map[string]ent{
		"redirect": dir("./d").with(func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "x"} }),
		"link":     hardlink("./b", "./none"),
		"out":      file("../x", ""),
		"type":     {tar.Header{Typeflag: 'V', Name: "./v"}, ""},
		"acl":      file("./a", "").with(func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.system.posix_acl_access": "?"} }),
	} {
		if _, err := fromUpper(t, nil, dir("."), e); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	good := archive(t, dir("."), file("./a", strings.Repeat("x", 3000)))
	for _, n := range []int{100, 700, 2000} {
		if err := rootfs.FromUpper(bytes.NewReader(good[:n]), io.Discard, nil); err == nil {
			t.Errorf("cut at %d: no error", n)
		}
	}
	if err := rootfs.FromUpper(bytes.NewReader(sparse(t, "1.0", "s", 1<<20)), io.Discard, nil); err == nil {
		t.Error("sparse: no error")
	}
}

// TestSnapshot changes a sandbox, makes a layer of its writable layer as gVisor tells it, and compares a new sandbox on both layers with the
// old one.
func TestSnapshot(t *testing.T) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		skip(t, "busybox-static is not installed")
	}
	when := time.Date(2023, 4, 5, 6, 7, 8, 0, time.UTC)
	old := func(h *tar.Header) { h.ModTime = when }
	base := archive(t, dir("bin"), file("bin/busybox", string(busybox)).with(func(h *tar.Header) { h.Mode = 0o755 }), hardlink("bin/sh", "bin/busybox"),
		dir("d").with(old), file("d/gone", "1").with(old), file("d/kept", "2").with(old), file("d/changed", "3").with(old), file("d/sub/x", "4").with(old),
		dir("whole"), file("whole/a", "5"), dir("again"), file("again/old", "6"), file("file-to-dir", "7"), dir("dir-to-file"), file("dir-to-file/x", "8"),
		file("moved", "9").with(old), file("moded", "10").with(old), file("one", "11").with(old), file("private/x", "12"), dir("bigdir"),
	)
	name, _, err := write(t, rootfs.Limits{}, base)
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, name)
	b.sh(`cd /; rm d/gone; echo more >> d/changed; rm -r whole; rm -r again; mkdir again; echo new > again/new
		rm file-to-dir; mkdir file-to-dir; echo 1 > file-to-dir/x; rm -r dir-to-file; echo 2 > dir-to-file; mv moved d/moved
		chmod 4711 moded; chown 1000:70000 moded; ln one two; ln -s /d/kept link; mkfifo pipe; mkdir -m 1777 t; touch -d '2001-02-03 04:05:06' d/kept
		dd if=/dev/zero of=big bs=1M count=3 2>/dev/null; echo end >> big; mkdir -p private/more; i=0; while [ $i -lt 500 ]; do echo $i > bigdir/$i; i=$((i+1)); done`)
	want := b.list()
	upper := filepath.Join(t.TempDir(), "upper.tar")
	b.call("tar", "rootfs-upper", "-file", upper, b.id)
	f, err := os.Open(upper)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var one, two bytes.Buffer
	drop := func(p string) bool { return mounted(p) || p == "/private" }
	if err := rootfs.FromUpper(f, &one, drop); err != nil {
		t.Fatal(err)
	}
	// gVisor writes the entries in another order each time.
	again := filepath.Join(t.TempDir(), "upper.tar")
	b.call("tar", "rootfs-upper", "-file", again, b.id)
	g, err := os.Open(again)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := rootfs.FromUpper(g, &two, drop); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the same content gave two layers")
	}
	next, _, err := write(t, rootfs.Limits{}, base, one.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	got := start(t, next).list()
	delete(want, "/private/more") // dropped, and so its parent is as it was
	private := want["/private"]
	private.mtime = got["/private"].mtime
	want["/private"] = private
	for p, w := range want {
		if g, ok := got[p]; ok && g.mtime.Sub(w.mtime).Abs() <= time.Second { // gVisor rounds, stat cuts
			w.mtime = g.mtime
			want[p] = w
		}
	}
	same(t, got, want)
	if !got["/one"].mtime.Equal(got["/two"].mtime) || got["/one"].hash != got["/two"].hash {
		t.Errorf("hard links differ: %+v, %+v", got["/one"], got["/two"])
	}
}

func FuzzFromUpper(f *testing.F) {
	f.Add(archive(f, dir("."), opaqueDir("./d"), gone("./d/x"), file("./f", "1").with(xattrA), hardlink("./g", "./f"), symlink("./l", "f")))
	f.Add(archive(f, file("../a", "x"), hardlink("b", "../a")))
	f.Add(sparse(f, "1.0", "s", 1<<16))
	f.Add(sparse(f, "gnu", "s", 1<<16))
	f.Fuzz(func(t *testing.T, in []byte) {
		var one, two bytes.Buffer
		if err := rootfs.FromUpper(bytes.NewReader(in), &one, nil); err != nil {
			return
		}
		// From a stream, which can't go back, comes the same; and it is a layer.
		if err := rootfs.FromUpper(io.MultiReader(bytes.NewReader(in)), &two, nil); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Errorf("not the same twice, %v", err)
		}
		entries(t, one.Bytes())
	})
}
