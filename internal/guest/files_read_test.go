package guest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// part reads what headers ask for.
func part(t *testing.T, c *guest.Client, path string, header ...string) (*guest.Content, string, error) {
	t.Helper()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	r, err := c.OpenFile(t.Context(), path, false, h)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(r)
	return r, string(b), errors.Join(err, r.Close())
}

func TestFileRanges(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	path := filepath.Join(t.TempDir(), "f")
	data := everyByte(700_000)
	f, err := c.WriteFile(t.Context(), path, bytes.NewReader(data), 0)
	if err != nil {
		t.Fatal(err)
	}
	n := len(data)
	for name, tc := range map[string]struct {
		header   []string
		status   int
		from, to int // of what comes
	}{
		"all":                {nil, 200, 0, n},
		"the first":          {[]string{"Range", "bytes=0-0"}, 206, 0, 1},
		"the middle":         {[]string{"Range", "bytes=65536-131071"}, 206, 65536, 131072},
		"to the end":         {[]string{"Range", "bytes=699999-"}, 206, n - 1, n},
		"beyond the end":     {[]string{"Range", "bytes=699990-9999999"}, 206, n - 10, n},
		"the last":           {[]string{"Range", "bytes=-5"}, 206, n - 5, n},
		"behind the end":     {[]string{"Range", "bytes=700000-"}, 416, 0, 0},
		"nonsense":           {[]string{"Range", "bytes=x"}, 416, 0, 0},
		"other units":        {[]string{"Range", "lines=1-2"}, 416, 0, 0},
		"same version":       {[]string{"Range", "bytes=1-2", "If-Range", f.ETag}, 206, 1, 3},
		"other version":      {[]string{"Range", "bytes=1-2", "If-Range", `"other"`}, 200, 0, n},
		"not modified":       {[]string{"If-None-Match", f.ETag}, 304, 0, 0},
		"modified":           {[]string{"If-None-Match", `"other"`}, 200, 0, n},
		"not modified since": {[]string{"If-Modified-Since", f.ModTime.Add(1e9).Format(http.TimeFormat)}, 304, 0, 0},
		"matches":            {[]string{"If-Match", f.ETag, "Range", "bytes=3-3"}, 206, 3, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, got, err := part(t, c, path, tc.header...)
			if err != nil || r.Status != tc.status || r.File.Size != int64(n) || r.File.ETag != f.ETag {
				t.Fatalf("%+v, %v", r, err)
			}
			if tc.status == 200 || tc.status == 206 {
				if got != string(data[tc.from:tc.to]) || r.Length != int64(tc.to-tc.from) {
					t.Errorf("%d bytes, %d said, or others", len(got), r.Length)
				}
			}
			if want := fmt.Sprintf("bytes %d-%d/%d", tc.from, tc.to-1, n); tc.status == 206 && r.Range != want {
				t.Errorf("range %q, want %q", r.Range, want)
			}
		})
	}
	t.Run("several", func(t *testing.T) {
		t.Parallel()
		r, got, err := part(t, c, path, "Range", "bytes=0-1,5-6, -1")
		if err != nil || r.Status != 206 || r.Range != "" {
			t.Fatalf("%+v, %v", r, err)
		}
		_, params, err := mime.ParseMediaType(r.Type)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for mr := multipart.NewReader(strings.NewReader(got), params["boundary"]); ; {
			p, err := mr.NextPart()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(p)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, p.Header.Get("Content-Range")+" "+string(b))
		}
		want := fmt.Sprintf("bytes 0-1/%d %s|bytes 5-6/%d %s|bytes %d-%d/%d %s", n, data[:2], n, data[5:7], n-1, n-1, n, data[n-1:])
		if strings.Join(all, "|") != want {
			t.Errorf("%q, want %q", all, want)
		}
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		_, _, err := part(t, c, path, "Range", "bytes="+strings.Repeat("1-1,", 100)+"2-2")
		wantRefused(t, err, 416, "too_many_ranges", "Range")
		_, _, err = part(t, c, path, "If-Match", `"other"`)
		wantRefused(t, err, 412, "changed", "path")
	})
	t.Run("head", func(t *testing.T) {
		t.Parallel()
		r, err := c.OpenFile(t.Context(), path, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || len(b) != 0 || r.Length != int64(n) || r.File.ETag != f.ETag {
			t.Errorf("%d bytes, %+v, %v", len(b), r, err)
		}
		_, err = c.OpenFile(t.Context(), path+"x", true, nil)
		wantRefused(t, err, 404, "no_such_file", "path")
		_, err = c.OpenFile(t.Context(), filepath.Dir(path), true, nil)
		wantRefused(t, err, 400, "is_directory", "path")
	})
}

// Every change of a file changes its ETag, also one that leaves size and time as they were.
func TestETagsTellVersionsApart(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	path := filepath.Join(t.TempDir(), "f")
	seen := map[string]string{}
	note := func(what string) guest.File {
		t.Helper()
		f, err := c.Stat(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if before := seen[f.ETag]; before != "" || f.ETag == "" {
			t.Errorf("after %s the ETag is %q, as after %s", what, f.ETag, before)
		}
		seen[f.ETag] = what
		return f
	}
	write := func(content string) {
		t.Helper()
		if _, err := c.WriteFile(t.Context(), path, strings.NewReader(content), 0); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	f := note("the first write")
	write("two")
	if err := os.Chtimes(path, f.ModTime, f.ModTime); err != nil {
		t.Fatal(err)
	}
	note("a write of the same length with the old time")
	if err := os.WriteFile(path, []byte("longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	note("a write in place")
}

// A file that loses its end while it is read ends in an error, and one that grows is what it was at the beginning.
func TestFilesThatChangeWhileTheyAreRead(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	path := filepath.Join(t.TempDir(), "f")
	const size = 64 << 20
	for name, tc := range map[string]struct {
		to   int64
		want int64 // -1 = an error
	}{"shrinks": {1 << 20, -1}, "grows": {2 * size, size}} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		r, _, err := c.ReadFile(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, tc.to); err != nil { // the rest is far from being on its way
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		_ = r.Close()
		if tc.want < 0 && !errors.Is(err, guest.ErrLost) || tc.want >= 0 && (err != nil || n+100 != tc.want) {
			t.Errorf("%s: %d bytes, %v", name, n+100, err)
		}
	}
}

// Names are bytes, and come back as they went, JSON or not.
func TestNamesAreBytes(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	names := []string{" ", "%41", "?a=b", "#x", "a\nb", "ü", "caf\xe9", "\xff\xfe", `back\slash"quote`, strings.Repeat("n", 255), "-rf", "...", "\x01\x7f", "+ +"}
	for _, name := range names {
		path := dir + "/" + name + "d/" + name[:min(len(name), 200)]
		if len(name) == 255 {
			path = dir + "/" + name
		}
		f, err := c.WriteFile(t.Context(), path, strings.NewReader(name), 0)
		if err != nil || f.Path != path || f.Name != filepath.Base(path) {
			t.Errorf("%q: %+v, %v", name, f, err)
			continue
		}
		if got, f := readFile(t, c, path); got != name || f.Path != path {
			t.Errorf("%q: %q, %+v", name, got, f)
		}
		list, err := c.ReadDir(t.Context(), filepath.Dir(path))
		if err != nil || len(list) < 1 || len(name) < 255 && (list[0].Path != path || list[0].Name != filepath.Base(path)) {
			t.Errorf("%q: %+v, %v", name, list, err)
		}
		to := filepath.Dir(path) + "/" + "m" + name[:min(len(name), 200)]
		if f, err := c.Move(t.Context(), path, to, false); err != nil || f.Path != to {
			t.Errorf("%q: %+v, %v", name, f, err)
		}
		if err := c.Remove(t.Context(), to); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	target := "\xc3("
	if err := os.Symlink(target, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	f, err := c.Stat(t.Context(), dir+"/link")
	if err != nil || f.Target != target {
		t.Errorf("%+v, %v", f, err)
	}
	// Of text there is no other form.
	if b, err := json.Marshal(guest.File{Name: "ü"}); err != nil || strings.Contains(string(b), "raw") {
		t.Errorf("%s, %v", b, err)
	}
}

func TestDirectoriesComeInPages(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	const many = 20_500 // more than one page holds
	one := t.TempDir() + "/one"
	if err := os.WriteFile(one, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		if err := os.Link(one, fmt.Sprintf("%s/f%05d", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.ReadDir(t.Context(), dir)
	wantRefused(t, err, 400, "too_many_entries", "path")
	for _, limit := range []int{0, 7777, 1} {
		var names []string
		for after := ""; ; {
			page, err := c.ReadDirPage(t.Context(), dir, after, "", limit)
			if err != nil {
				t.Fatal(err)
			}
			if limit == 0 && len(names) == 0 && len(page.Entries) != 20_000 || limit > 0 && len(page.Entries) > limit {
				t.Errorf("a page of %d entries with limit %d", len(page.Entries), limit)
			}
			for _, f := range page.Entries {
				names = append(names, f.Name)
			}
			if !page.More || limit == 1 && len(names) == 3 {
				break
			}
			after = page.Entries[len(page.Entries)-1].Name
			// What comes and goes between two pages moves nothing else.
			if err := os.Remove(fmt.Sprintf("%s/f%05d", dir, 0)); err == nil {
				if err := os.WriteFile(dir+"/a new one, before all", nil, 0o600); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = os.Remove(dir + "/a new one, before all") })
			}
		}
		for i, name := range names {
			if want := fmt.Sprintf("f%05d", i); limit == 0 && name != want {
				t.Fatalf("entry %d is %q", i, name)
			}
		}
		if limit == 0 && len(names) != many {
			t.Errorf("%d entries in all", len(names))
		}
	}
	page, err := c.ReadDirPage(t.Context(), dir, "", "F2049", 0)
	if err != nil || len(page.Entries) != 10 || page.Entries[9].Path != dir+"/f20499" {
		t.Errorf("what holds a text: %+v, %v", page, err)
	}
}

// FuzzRange sends any Range: what comes is what the header of the answer says it is.
func FuzzRange(f *testing.F) {
	for _, seed := range []string{"bytes=0-", "bytes=-1", "bytes=1-2,4-5", "bytes=99-", "bytes=-0", "bytes=0-18446744073709551616", "x", "bytes=2-1", "bytes=,,"} {
		f.Add(seed)
	}
	data := everyByte(300)
	path := filepath.Join(f.TempDir(), "f")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Skip() // no header
		}
		c := newClient(t, nil)
		r, got, err := part(t, c, path, "Range", value)
		var e *guest.Error
		switch {
		case errors.As(err, &e) && e.Status == 416, err == nil && r.Status == 416:
		case err != nil:
			t.Fatal(err)
		case r.Status == 200:
			if got != string(data) {
				t.Fatalf("not the whole, but %d bytes", len(got))
			}
		case r.Range != "":
			var from, to, of int
			if _, err := fmt.Sscanf(r.Range, "bytes %d-%d/%d", &from, &to, &of); err != nil || of != len(data) || got != string(data[from:to+1]) {
				t.Fatalf("%q: %q", r.Range, got)
			}
		case !strings.HasPrefix(r.Type, "multipart/byteranges; boundary="):
			t.Fatalf("%+v", r)
		}
	})
}
