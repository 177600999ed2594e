package guest_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// picture is what a tree holds, one line per entry.
func picture(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%q %v %s", strings.TrimPrefix(path, root+"/"), fi.Mode(), fi.ModTime().UTC().Format(time.DateTime))
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line = fmt.Sprintf("%q -> %q", strings.TrimPrefix(path, root+"/"), target)
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(b), b[:min(len(b), 8)])
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A directory that goes out and in again is the same, links, modes, times and bytes.
func TestTreesComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"empty": nil, "d/e/f": []byte("x"), "large": everyByte(3 << 20), "ü/a\nb": []byte("y"), "caf\xe9/\xff": []byte("z"), "secret": []byte("s"),
		strings.Repeat("long/", 60) + strings.Repeat("n", 200): []byte("deep"),
	} {
		if _, err := c.WriteFile(t.Context(), dir+"/"+name, bytes.NewReader(content), 0); err != nil {
			t.Fatal(err)
		}
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink("d/e", dir+"/inner"), os.Symlink("/etc/passwd", dir+"/outer"), os.Symlink("nowhere\xff", dir+"/d/dangling"), os.Mkdir(dir+"/nothing in it", 0o700),
		syscall.Mkfifo(dir+"/fifo", 0o600), os.Chmod(dir+"/secret", 0o400), os.Chmod(dir+"/large", 0o755), os.Chmod(dir+"/d/e", 0o750))
	then := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	must(os.Chtimes(dir+"/large", then, then), os.Chtimes(dir+"/d/e", then, then))
	want := slices.DeleteFunc(picture(t, dir), func(line string) bool { return strings.Contains(line, "fifo") })
	for _, format := range []string{guest.FormatTar, guest.FormatTarGz, guest.FormatZip} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			r, err := c.ReadTree(t.Context(), dir, format)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err := errors.Join(err, r.Close()); err != nil {
				t.Fatal(err)
			}
			to := t.TempDir() + "/made/here"
			done, err := c.WriteTree(t.Context(), to, format, "", bytes.NewReader(b))
			if err != nil || done.Entries != len(want) || done.Refused != 0 || len(done.Errors) != 0 {
				t.Errorf("%+v, %v", done, err)
			}
			got := picture(t, to)
			for i := range max(len(got), len(want)) {
				if i >= len(got) || i >= len(want) || got[i] != want[i] {
					t.Fatalf("%d entries, want %d; at %d:\n%s\nwant\n%s", len(got), len(want), i, strings.Join(got[i:], "\n"), strings.Join(want[i:], "\n"))
				}
			}
		})
	}
}

func TestTreesRefuse(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	if _, err := c.WriteFile(t.Context(), dir+"/f", strings.NewReader("x"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := c.ReadTree(t.Context(), dir+"/f", guest.FormatTar)
	wantRefused(t, err, 400, "not_a_directory", "path")
	_, err = c.ReadTree(t.Context(), dir+"/none", guest.FormatZip)
	wantRefused(t, err, 404, "no_such_file", "path")
	_, err = c.ReadTree(t.Context(), dir, "rar")
	wantRefused(t, err, 400, "bad_format", "format")
	_, err = c.WriteTree(t.Context(), dir, "rar", "", strings.NewReader(""))
	wantRefused(t, err, 400, "bad_format", "format")
	_, err = c.WriteTree(t.Context(), dir+"/f", guest.FormatTar, "", strings.NewReader(""))
	wantRefused(t, err, 400, "not_a_directory", "path")
	whole := tarOf(t, tar.Header{Name: "a", Size: 2, Mode: 0o600}, "aa", tar.Header{Name: "b", Size: 100_000, Mode: 0o600}, strings.Repeat("b", 100_000))
	for format, garbage := range map[string]string{guest.FormatTar: strings.Repeat("garbage", 200), guest.FormatTarGz: "garbage", guest.FormatZip: "garbage"} {
		_, err = c.WriteTree(t.Context(), dir+"/"+format, format, "", strings.NewReader(garbage))
		wantRefused(t, err, 400, "bad_archive", "")
		wantAlone(t, dir+"/"+format)
	}
	// What was whole is there, what wasn't is not.
	_, err = c.WriteTree(t.Context(), dir+"/half", guest.FormatTar, "", bytes.NewReader(whole[:50_000]))
	wantRefused(t, err, 400, "bad_archive", "")
	wantAlone(t, dir+"/half", "a")
	broken := errors.New("broken")
	if _, err = c.WriteTree(t.Context(), dir+"/broken", guest.FormatTar, "", io.MultiReader(bytes.NewReader(whole[:50_000]), errReader{broken})); !errors.Is(err, broken) {
		t.Error(err)
	}
}

// tarOf makes a tar of headers, each perhaps followed by content.
func tarOf(t *testing.T, parts ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range parts {
		var err error
		switch p := p.(type) {
		case tar.Header:
			err = w.WriteHeader(&p)
		case string:
			_, err = io.WriteString(w, p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An archive that was made to hurt writes nothing outside of its directory, not by names and not through links, and each entry that isn't
// written is told.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	file := func(name string) tar.Header { return tar.Header{Name: name, Size: 4, Mode: 0o6777} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	hard := func(name, to string) tar.Header { return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink} }
	for name, tc := range map[string]struct {
		parts   []any
		written []string
		codes   []string // of what was refused
	}{
		"up and out":         {[]any{file("../evil"), "evil", file("a/../../evil"), "evil", file("good"), "good"}, []string{"good"}, []string{"bad_name", "bad_name"}},
		"up and within":      {[]any{file("a/../b"), "evil"}, nil, []string{"bad_name"}},
		"absolute":           {[]any{file("/OUT/evil"), "evil"}, nil, []string{"bad_name"}},
		"through a link":     {[]any{link("l", "OUT"), file("l/evil"), "evil"}, []string{"l"}, []string{"not_a_directory"}},
		"through two":        {[]any{link("l", ".."), link("l/m", ".."), file("l/m/evil"), "evil"}, []string{"l"}, []string{"not_a_directory", "not_a_directory"}},
		"through an inner":   {[]any{file("d/x"), "good", link("l", "d"), file("l/evil"), "evil"}, []string{"d", "l"}, []string{"not_a_directory"}},
		"onto a link":        {[]any{link("l", "OUT/victim"), file("l"), "good"}, []string{"l"}, nil},
		"one that was there": {[]any{file("there/evil"), "evil", file("there"), "good"}, []string{"there"}, []string{"not_a_directory"}},
		"a directory's link": {[]any{link("l", "OUT"), tar.Header{Name: "l/", Typeflag: tar.TypeDir, Mode: 0o777}, file("l/evil"), "evil"}, []string{"l"}, []string{"not_a_directory", "not_a_directory"}},
		"a link's directory": {[]any{file("d/x"), "good", link("d", "OUT"), file("d/y"), "good"}, []string{"d"}, []string{"is_directory"}},
		"another's file":     {[]any{hard("h", "/OUT/victim"), hard("i", "../victim"), hard("j", "none"), file("f"), "good", hard("k", "f"), file("k"), "more"}, []string{"f", "k"}, []string{"bad_name", "bad_name", "no_such_file"}},
		"a file by a link":   {[]any{link("l", "OUT/victim"), hard("h", "l"), link("m", "OUT"), hard("i", "m/victim")}, []string{"l", "m"}, []string{"not_a_file", "not_a_directory"}},
		"devices":            {[]any{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, tar.Header{Name: "sda", Typeflag: tar.TypeBlock}, tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}}, nil, []string{"not_a_file", "not_a_file", "not_a_file"}},
		"nothing but itself": {[]any{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o000}, file("."), "evil", file("./a//./b"), "good"}, []string{"a"}, nil},
		"a file as a parent": {[]any{file("f"), "good", file("f/x"), "evil"}, []string{"f"}, []string{"not_a_directory"}},
		"too long":           {[]any{file(strings.Repeat("n", 300)), "evil", file(strings.Repeat("d/", 300) + "x"), "evil"}, nil, []string{"bad_path", "bad_name"}},
		"no target":          {[]any{tar.Header{Name: "l", Typeflag: tar.TypeSymlink}}, nil, []string{"bad_name"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			out, root := base+"/out", base+"/root"
			for _, dir := range []string{out, root} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(out+"/victim", []byte("safe"), 0o600); err != nil {
				t.Fatal(err)
			}
			written := tc.written
			if strings.HasPrefix(name, "one that was") {
				if err := os.Symlink(out, root+"/there"); err != nil {
					t.Fatal(err)
				}
			}
			parts := slices.Clone(tc.parts)
			for i, p := range parts {
				if h, ok := p.(tar.Header); ok {
					h.Name, h.Linkname = strings.ReplaceAll(h.Name, "/OUT", out), strings.ReplaceAll(h.Linkname, "OUT", out)
					parts[i] = h
				}
			}
			done, err := c.WriteTree(t.Context(), root, guest.FormatTar, "", bytes.NewReader(tarOf(t, parts...)))
			if err != nil {
				t.Fatal(err)
			}
			var codes []string
			for _, e := range done.Errors {
				codes = append(codes, e.Code)
			}
			if !slices.Equal(codes, tc.codes) || done.Refused != len(tc.codes) {
				t.Errorf("refused: %+v", done.Errors)
			}
			wantAlone(t, base, "out", "root")
			wantAlone(t, out, "victim")
			wantAlone(t, root, written...)
			if b, err := os.ReadFile(out + "/victim"); err != nil || string(b) != "safe" {
				t.Errorf("%q, %v", b, err)
			}
			for _, line := range picture(t, root) {
				if strings.Contains(line, "6576696c") || strings.HasPrefix(strings.Fields(line)[1], "u") {
					t.Errorf("written: %s", line)
				}
			}
		})
	}
}

// A zip's names are as hostile, and its list of files can be.
func TestHostileZips(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	base := t.TempDir()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	add := func(name string, mode fs.FileMode, content string) {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(mode)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(f, content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("../evil", 0o600, "evil")
	add("/evil", 0o600, "evil")
	add("link", 0o777|fs.ModeSymlink, base)
	add("link/evil", 0o600, "evil")
	add("pipe", 0o600|fs.ModeNamedPipe, "")
	add("good", 0o711, "good")
	add("nul\x00", 0o600, "evil")
	add("empty link", 0o777|fs.ModeSymlink, "")
	add("broken", 0o600, strings.Repeat("broken", 100))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	in := b.Bytes()
	at := bytes.Index(in, []byte("broken")) + len("broken") + 3
	in[at] ^= 0xff // in what was deflated
	done, err := c.WriteTree(t.Context(), base+"/root", guest.FormatZip, "", bytes.NewReader(in))
	if err != nil || done.Entries != 2 || done.Refused != 7 || done.Errors[len(done.Errors)-1].Name != "broken" {
		t.Errorf("%+v, %v", done, err)
	}
	wantAlone(t, base, "root")
	wantAlone(t, base+"/root", "good", "link")

	b.Reset()
	w = zip.NewWriter(&b)
	for i := range 2000 {
		if _, err := w.CreateHeader(&zip.FileHeader{Name: fmt.Sprint(i), Comment: strings.Repeat("c", 10_000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = c.WriteTree(t.Context(), base+"/list", guest.FormatZip, "", &b)
	wantRefused(t, err, 400, "too_many_entries", "")
	wantAlone(t, base+"/list")
}

// A few bytes that stand for a great many end in a refusal, before they are that many.
func TestBombs(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	const piece, pieces = 16 << 20, 64
	squeeze := func(from io.Reader) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		if _, err := io.Copy(w, from); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "zeros", Size: piece * pieces, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	bomb := slices.Concat(squeeze(&head), bytes.Repeat(squeeze(io.LimitReader(zeros{}, piece)), pieces))
	_, err := c.WriteTree(t.Context(), dir, guest.FormatTarGz, "", bytes.NewReader(bomb))
	wantRefused(t, err, 400, "archive_bomb", "")
	wantAlone(t, dir)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// What is unpacked belongs to the agent, whatever the archive says, or to whom it is wished.
func TestUnpackedFilesHaveAnOwner(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	c := newClient(t, func(cfg *guest.Config) { cfg.AgentUID, cfg.AgentGID = agent, agent })
	in := tarOf(t, tar.Header{Name: "d/e/f", Size: 1, Uid: 7, Gid: 7, Mode: 0o600}, "x", tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "f", Uid: 7})
	for owner, id := range map[string]int{"": agent, "root": 0, "1234:1234": 1234} {
		dir := t.TempDir() + "/new"
		if _, err := c.WriteTree(t.Context(), dir, guest.FormatTar, owner, bytes.NewReader(in)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"", "/d", "/d/e", "/d/e/f", "/d/l"} {
			if f, err := c.Stat(t.Context(), dir+name); err != nil || f.UID != id || f.GID != id {
				t.Errorf("%q for %q: %+v, %v", name, owner, f, err)
			}
		}
	}
}

// A file that loses its end while it is packed ends the archive early, never as if it were whole.
func TestTreeThatShrinks(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/f", nil, 0o600), os.Truncate(dir+"/f", 64<<20)); err != nil {
		t.Fatal(err)
	}
	r, err := c.ReadTree(t.Context(), dir, guest.FormatTar)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() // only read from
	if _, err := io.ReadFull(r, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/f", 1<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); !errors.Is(err, guest.ErrLost) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// FuzzUnpack unpacks anything: nothing outside of the directory may change.
func FuzzUnpack(f *testing.F) {
	add := func(parts ...any) { f.Add(tarOf(&testing.T{}, parts...), uint8(0)) }
	add(tar.Header{Name: "a", Size: 1, Mode: 0o600}, "x", tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "l/x", Size: 1}, "y")
	add(tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../victim"}, tar.Header{Name: "../x", Size: 1}, "y")
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range []string{"a", "../b", "c/d"} {
		if _, err := w.Create(name); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes(), uint8(2))
	f.Add([]byte("\x1f\x8b\x08garbage"), uint8(1))
	formats := []string{guest.FormatTar, guest.FormatTarGz, guest.FormatZip}
	f.Fuzz(func(t *testing.T, in []byte, format uint8) {
		base := t.TempDir()
		if err := os.WriteFile(base+"/victim", []byte("safe"), 0o600); err != nil {
			t.Fatal(err)
		}
		c := newClient(t, nil)
		_, err := c.WriteTree(t.Context(), base+"/root", formats[int(format)%len(formats)], "", bytes.NewReader(in))
		if e := (*guest.Error)(nil); err != nil && (!errors.As(err, &e) || e.Status >= 500) {
			t.Fatal(err)
		}
		wantAlone(t, base, "root", "victim")
		if b, err := os.ReadFile(base + "/victim"); err != nil || string(b) != "safe" {
			t.Fatalf("%q, %v", b, err)
		}
		if err := filepath.WalkDir(base+"/root", func(path string, _ fs.DirEntry, err error) error {
			if strings.HasPrefix(filepath.Base(path), ".sandlot-tmp-") {
				t.Errorf("left behind: %s", path)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}
