package server_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// shelf is a sandbox with a directory to put files in.
type shelf struct {
	*servertest.Server
	sb  api.Sandbox
	dir string
}

func newShelf(t *testing.T) shelf {
	t.Helper()
	s := servertest.New(t, servertest.Config{})
	return shelf{s, create(t, s), t.TempDir()} // the fake engine has no root of its own
}

// ask sends a request about a file and reads the answer.
func (s shelf) ask(t *testing.T, method, rest string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+"/sandbox/"+s.sb.ID+"/files"+s.dir+rest, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.Key)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := s.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestFileRangesOverHTTP(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	data := strings.Repeat("0123456789", 50_000)
	f, err := s.PutFile(t.Context(), s.sb.ID, s.dir+"/f", strings.NewReader(data), client.WriteOptions{Mode: "0640"})
	if err != nil || f.Mode != "0640" || f.ETag == "" || f.UID != os.Getuid() {
		t.Fatalf("%+v, %v", f, err)
	}
	for name, tc := range map[string]struct {
		method string
		header []string
		status int
		body   string
		want   map[string]string // of the header
	}{
		"whole":           {"GET", nil, 200, data, map[string]string{"Content-Length": "500000", "ETag": f.ETag, "Accept-Ranges": "bytes", "Last-Modified": f.ModTime.Format(http.TimeFormat)}},
		"head":            {"HEAD", nil, 200, "", map[string]string{"Content-Length": "500000", "ETag": f.ETag, "Content-Type": "application/octet-stream"}},
		"part":            {"GET", []string{"Range", "bytes=65536-65545"}, 206, data[65536:65546], map[string]string{"Content-Length": "10", "Content-Range": "bytes 65536-65545/500000"}},
		"end":             {"GET", []string{"Range", "bytes=-3"}, 206, "789", nil},
		"behind the end":  {"GET", []string{"Range", "bytes=500000-"}, 416, "range_not_satisfiable", map[string]string{"Content-Range": "bytes */500000"}},
		"many":            {"GET", []string{"Range", "bytes=" + strings.Repeat("0-0,", 99) + "1-1"}, 416, "too_many_ranges", nil},
		"unchanged":       {"GET", []string{"If-None-Match", f.ETag}, 304, "", map[string]string{"ETag": f.ETag}},
		"changed":         {"GET", []string{"If-Match", `"x"`}, 412, "changed", nil},
		"part of another": {"GET", []string{"Range", "bytes=0-1", "If-Range", `"x"`}, 200, data, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res, got := s.ask(t, tc.method, "/f", nil, tc.header...)
			if tc.status >= 400 {
				var p api.Problem
				if err := json.Unmarshal([]byte(got), &p); err != nil || p.Code != tc.body {
					t.Errorf("%s", got)
				}
			} else if got != tc.body {
				t.Errorf("%d bytes, want %d, or others", len(got), len(tc.body))
			}
			if res.StatusCode != tc.status {
				t.Errorf("status %d", res.StatusCode)
			}
			for name, v := range tc.want {
				if got := res.Header.Get(name); got != v {
					t.Errorf("%s: %q, want %q", name, got, v)
				}
			}
		})
	}
	res, got := s.ask(t, "GET", "/f", nil, "Range", "bytes=0-1,5-6")
	if res.StatusCode != 206 || !strings.HasPrefix(res.Header.Get("Content-Type"), "multipart/byteranges; boundary=") || !strings.Contains(got, "bytes 5-6/500000\r\n\r\n56\r\n") &&
		!strings.Contains(got, "\r\n\r\n56\r\n") {
		t.Errorf("several ranges: %d %q", res.StatusCode, got)
	}
	r, err := s.ReadRange(t.Context(), s.sb.ID, s.dir+"/f", 499_990, 100, f.ETag)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || string(b) != data[499_990:] {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := s.ReadRange(t.Context(), s.sb.ID, s.dir+"/f", 0, -1, `"x"`); client.Code(err) != "changed" {
		t.Error(err)
	}
}

// A file that shrinks while it is read ends in a connection that is cut, never in a short answer.
func TestFileThatShrinksOverHTTP(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	if err := errors.Join(os.WriteFile(s.dir+"/f", nil, 0o600), os.Truncate(s.dir+"/f", 64<<20)); err != nil {
		t.Fatal(err)
	}
	r, err := s.ReadFile(t.Context(), s.sb.ID, s.dir+"/f")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }() // it was only read
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.dir+"/f", 1<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestConditionalWritesOverHTTP(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	put := func(content string, how client.WriteOptions) (api.File, error) {
		return s.PutFile(t.Context(), s.sb.ID, s.dir+"/f", strings.NewReader(content), how)
	}
	first, err := put("one", client.WriteOptions{IfNoneMatch: "*"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put("x", client.WriteOptions{IfNoneMatch: "*"}); problem(t, err).Status != 412 || client.Code(err) != "exists" {
		t.Error(err)
	}
	second, err := put("two", client.WriteOptions{IfMatch: first.ETag})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put("x", client.WriteOptions{IfMatch: first.ETag}); problem(t, err).Status != 412 || client.Code(err) != "changed" {
		t.Error(err)
	}
	res, got := s.ask(t, "PUT", "/f", strings.NewReader("three"), "If-Match", second.ETag, api.HeaderMode, "751")
	var f api.File
	if err := json.Unmarshal([]byte(got), &f); err != nil || res.StatusCode != 200 || f.Mode != "0751" || res.Header.Get("ETag") != f.ETag || f.ETag == second.ETag {
		t.Errorf("%d %s", res.StatusCode, got)
	}
}

// Names are bytes: whatever a path can hold goes through an address, and back.
func TestNamesOverHTTP(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	ctx := t.Context()
	for _, name := range []string{" ", "a b", "100%", "%41", "?x=1", "#frag", "new\nline", "tab\t", "ü", "caf\xe9", "\xff", "a;b,c&d=e+f", `"q"`, "...", "~", strings.Repeat("n", 255), "back\\slash", "\x7f"} {
		path := s.dir + "/" + name
		f, err := s.WriteFile(ctx, s.sb.ID, path, strings.NewReader(name))
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		r, err := s.ReadFile(ctx, s.sb.ID, path)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		b, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || string(b) != name {
			t.Errorf("%q: %q, %v", name, b, err)
		}
		if onDisk, err := os.ReadFile(path); err != nil || string(onDisk) != name {
			t.Errorf("%q: on disk %q, %v", name, onDisk, err)
		}
		list, err := s.ReadDir(ctx, s.sb.ID, s.dir)
		if err != nil || len(list.Entries) != 1 {
			t.Fatalf("%q: %+v, %v", name, list, err)
		}
		e := list.Entries[0]
		if e != f || strings.ToValidUTF8(name, "\uFFFD") != e.Name {
			t.Errorf("%q: %+v, %+v", name, e, f)
		}
		if e.Escaped != "" { // which is an address as it stands
			rest := strings.TrimPrefix(e.Escaped, s.dir)
			if res, got := s.ask(t, "GET", rest, nil); res.StatusCode != 200 || got != name {
				t.Errorf("%q: %d %q", name, res.StatusCode, got)
			}
		} else if e.Name != name {
			t.Errorf("%q is %q and has no other form", name, e.Name)
		}
		to := s.dir + "/to " + name[:min(len(name), 200)]
		if _, err := s.Move(ctx, s.sb.ID, path, to, false); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := os.Lstat(to); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if err := s.Remove(ctx, s.sb.ID, to); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := s.WriteFile(ctx, s.sb.ID, s.dir+"/nul\x00", strings.NewReader("")); problem(t, err).Code != "bad_path" {
		t.Error(err)
	}
	for _, long := range []string{strings.Repeat("n", 256), strings.Repeat("d/", 2100)} {
		if _, err := s.WriteFile(ctx, s.sb.ID, s.dir+"/"+long, strings.NewReader("")); problem(t, err).Code != "bad_path" {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) > 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestDirectoriesOverHTTP(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	for i := range 25 {
		if err := os.WriteFile(fmt.Sprintf("%s/f%02d", s.dir, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("f00", s.dir+"/link"); err != nil {
		t.Fatal(err)
	}
	var names []string
	pages := 0
	for cursor := ""; pages == 0 || cursor != ""; pages++ {
		page, err := s.ReadDirPage(t.Context(), s.sb.ID, s.dir, cursor, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			names = append(names, e.Name)
		}
		cursor = page.NextCursor
	}
	if pages != 3 || len(names) != 26 || names[25] != "link" {
		t.Errorf("%d pages: %q", pages, names)
	}
	if l, err := s.Stat(t.Context(), s.sb.ID, s.dir+"/link"); err != nil || l.Type != "symlink" || l.Target != "f00" {
		t.Errorf("%+v, %v", l, err)
	}
	for query, want := range map[string]string{
		"?limit=0": "invalid_request", "?limit=20001": "invalid_request", "?cursor=!": "invalid_request", "?cursor=Li4vLi4": "invalid_request", "?nonsense=1": "invalid_request",
		"?format=rar": "invalid_request",
	} {
		var p api.Problem
		if res, got := s.ask(t, "GET", query, nil); res.StatusCode != 400 || json.Unmarshal([]byte(got), &p) != nil || p.Code != want {
			t.Errorf("%s: %d %s", query, res.StatusCode, got)
		}
	}
	var list api.FileList
	if res, got := s.ask(t, "GET", "?contains=F1", nil); res.StatusCode != 200 || json.Unmarshal([]byte(got), &list) != nil || len(list.Entries) != 10 {
		t.Errorf("%d %s", res.StatusCode, got)
	}
}

func TestFileOperationsOverHTTP(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	ctx, id := t.Context(), s.sb.ID
	if d, err := s.MakeDir(ctx, id, s.dir+"/a/b"); err != nil || d.Type != "directory" || d.Mode != "0755" {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := s.MakeDir(ctx, id, s.dir+"/a/b"); problem(t, err).Status != 409 || client.Code(err) != "exists" {
		t.Error(err)
	}
	if _, err := s.WriteFile(ctx, id, s.dir+"/a/b/f", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Chmod(ctx, id, s.dir+"/a/b/f", "0711"); err != nil || f.Mode != "0711" {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := s.Copy(ctx, id, s.dir+"/a", s.dir+"/c", false); err != nil || f.Path != s.dir+"/c" {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := s.Move(ctx, id, s.dir+"/a/b/f", s.dir+"/c/b/f", false); problem(t, err).Code != "exists" {
		t.Error(err)
	}
	if _, err := s.Move(ctx, id, s.dir+"/a/b/f", s.dir+"/c/b/f", true); err != nil {
		t.Error(err)
	}
	for body, field := range map[string]string{
		`{"op":"move"}`: "body.to", `{"op":"move","to":"x"}`: "body.to", `{"op":"mkdir","to":"/x"}`: "body.to", `{"op":"chmod"}`: "body.mode", `{"op":"chmod","mode":"9"}`: "body.mode",
		`{"op":"chmod","mode":"77777"}`: "body.mode", `{"op":"copy","to":"/x","mode":"1"}`: "body.mode", `{"op":"steal"}`: "body.op", `{}`: "body.op", `{"op":"move","to":"/x","to_escaped":"/x"}`: "body.to_escaped",
		`{"op":"move","to_escaped":"/%zz"}`: "body.to_escaped", `{"op":"chmod","mode":"1","owner":"root"}`: "body.owner", `{"op":"mkdir","owner":"no such"}`: "body.owner", `{"op":"mkdir","x":1}`: "body.x",
	} {
		res, got := s.ask(t, "POST", "/a", strings.NewReader(body), "Content-Type", "application/json")
		var p api.Problem
		if err := json.Unmarshal([]byte(got), &p); err != nil || res.StatusCode != 400 || len(p.Errors) == 0 || p.Errors[0].Location != field {
			t.Errorf("%s: %d %s", body, res.StatusCode, got)
		}
	}
	if res, got := s.ask(t, "DELETE", "/c?recursive=false", nil); res.StatusCode != 409 || !strings.Contains(got, "not_empty") {
		t.Errorf("%d %s", res.StatusCode, got)
	}
	if err := s.Remove(ctx, id, s.dir+"/c"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, id, "/"); problem(t, err).Code != "bad_path" {
		t.Error(err)
	}
}

func TestArchivesOverHTTP(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	ctx, id := t.Context(), s.sb.ID
	for name, content := range map[string]string{"in/a": "1", "in/d/b": "22"} {
		if _, err := s.PutFile(ctx, id, s.dir+"/"+name, strings.NewReader(content), client.WriteOptions{Mode: "0755"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"tar", "tar.gz", "zip"} {
		r, err := s.Download(ctx, id, s.dir+"/in", format)
		if err != nil {
			t.Fatal(err)
		}
		done, err := s.Upload(ctx, id, s.dir+"/out-"+format, format, "", r)
		if err := errors.Join(err, r.Close()); err != nil || done.Entries != 3 || done.Bytes != 3 || done.Refused != 0 {
			t.Errorf("%s: %+v, %v", format, done, err)
		}
		if f, err := s.Stat(ctx, id, s.dir+"/out-"+format+"/d/b"); err != nil || f.Size != 2 || f.Mode != "0755" {
			t.Errorf("%s: %+v, %v", format, f, err)
		}
	}
	res, _ := s.ask(t, "GET", "/in?format=zip", nil)
	if got := res.Header.Get("Content-Disposition"); got != "attachment; filename=in.zip" || !strings.Contains(res.Header.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("%q, %v", got, res.Header)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"../evil", "good"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	done, err := s.Upload(ctx, id, s.dir+"/hostile", "tar", "", &b)
	if err != nil || done.Entries != 1 || done.Refused != 1 || len(done.Errors) != 1 || done.Errors[0].Name != "../evil" || done.Errors[0].Code != "bad_name" {
		t.Errorf("%+v, %v", done, err)
	}
	if _, err := s.Upload(ctx, id, s.dir+"/x", "zip", "", strings.NewReader("no zip")); problem(t, err).Code != "bad_archive" {
		t.Error(err)
	}
	if res, got := s.ask(t, "PUT", "/x?format=tar&mode=600", strings.NewReader("")); res.StatusCode != 400 || !strings.Contains(got, "format") {
		t.Errorf("%d %s", res.StatusCode, got)
	}
	if _, err := s.Upload(ctx, id, s.dir+"/broken", "tar", "", io.MultiReader(strings.NewReader(strings.Repeat("x", 100)), brokenReader{})); err == nil {
		t.Error("half an archive was taken")
	}
}

func TestWatchOverHTTP(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	steps := []struct {
		event, path, from string
		next              func() error
	}{
		{"ready", "", "", func() error { return os.WriteFile(s.dir+"/f", []byte("1"), 0o600) }},
		{"created", "/f", "", func() error { return os.Rename(s.dir+"/f", s.dir+"/g") }},
		{"moved", "/g", "/f", func() error { return os.Mkdir(s.dir+"/d", 0o700) }},
		{"created", "/d", "", func() error { return os.WriteFile(s.dir+"/d/caf\xe9", nil, 0o600) }},
		{"created", "/d/caf\uFFFD", "", func() error { return os.RemoveAll(s.dir + "/d") }},
		{"removed", "/d", "", func() error { return os.RemoveAll(s.dir) }},
	}
	i := 0
	for e, err := range s.Watch(ctx, s.sb.ID, s.dir, true) {
		if err != nil {
			t.Fatal(err)
		}
		if i == len(steps) { // what was in it may be told before the watch ends
			if e.Name != "removed" {
				t.Errorf("%+v", e)
			}
			continue
		}
		if e.Name == "modified" || e.Name == "removed" && e.File.Path == s.dir+"/d/caf\uFFFD" {
			continue
		}
		want := steps[i]
		i++
		if e.Name != want.event || e.File.Path != s.dir+want.path || want.from != "" && e.From != s.dir+want.from || strings.Contains(want.path, "\uFFFD") != (e.File.Escaped != "") {
			t.Fatalf("%+v %+v, want %+v", e, e.File, want)
		}
		if err := want.next(); err != nil {
			t.Fatal(err)
		}
	}
	if i != len(steps) {
		t.Errorf("the watch ended after %d of %d steps", i, len(steps))
	}
	for _, tc := range []struct {
		name string
		code string
	}{{s.dir + "/none", "no_such_file"}, {"/etc/passwd", "not_a_directory"}} {
		for _, err := range s.Watch(ctx, s.sb.ID, tc.name, true) {
			if client.Code(err) != tc.code {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
	}
	// Who comes back is told that something may be missing.
	dir := t.TempDir()
	req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/sandbox/"+s.sb.ID+"/files"+filepath.ToSlash(dir)+"?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.Key)
	req.Header.Set(api.HeaderLastEventID, "7")
	res, err := s.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }() // only read from
	var seen []string
	for e, err := range client.ReadEvents(res.Body) {
		if err != nil {
			t.Fatal(err)
		}
		if seen = append(seen, e.Name); len(seen) == 2 {
			break
		}
	}
	if fmt.Sprint(seen) != "[ready resync]" {
		t.Errorf("%q", seen)
	}
}
