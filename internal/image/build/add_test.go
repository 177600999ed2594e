package build_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// web is a server of files for ADD, and the rig that asks it.
func web(t *testing.T, cfg build.Config, handle http.HandlerFunc) (*rig, string) {
	t.Helper()
	srv := httptest.NewServer(handle)
	t.Cleanup(srv.Close)
	r := newRig(t, image.Settings{})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	if cfg.Transport == nil {
		cfg.Transport = transport
	}
	cfg.Dir = t.TempDir()
	t.Cleanup(func() {
		if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
			t.Errorf("downloads left %v, %v", left, err)
		}
	})
	r.b = build.New(cfg)
	return r, srv.URL
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(h[:])
}

const modified = "Thu, 01 Jan 2026 00:00:00 GMT"

func TestAdd(t *testing.T) {
	r, url := web(t, build.Config{}, func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("asked with %v", req.Header)
		}
		switch req.URL.Path {
		case "/dir/tool.tgz", "/moved":
			w.Header().Set("Last-Modified", modified)
			w.Header().Set("Content-Encoding", "gzip") // it says so of an archive, which must stay one
			io.WriteString(w, "\x1f\x8bgz")
		case "/go":
			http.Redirect(w, req, "/moved?x=1", http.StatusFound)
		default:
			io.WriteString(w, "at "+req.URL.Path)
		}
	})
	for name, tc := range map[string]struct {
		command string
		path    string
		want    string
	}{
		"to file":         {"ADD " + url + "/dir/tool.tgz /x", "x", "-rw------- 0:0 \x1f\x8bgz"},
		"to directory":    {"ADD " + url + "/dir/tool.tgz /opt/app", "opt/app/tool.tgz", "-rw------- 0:0 \x1f\x8bgz"},
		"to new dir":      {"ADD --chown=agent --chmod=755 " + url + "/dir/tool.tgz /n/", "n/tool.tgz", "-rwxr-xr-x 1000:1001 \x1f\x8bgz"},
		"by redirect":     {"ADD " + url + "/go /n/", "n/go", "-rw------- 0:0 \x1f\x8bgz"},
		"query":           {"ADD " + url + "/a/b?c=d/e /n/", "n/b", "-rw------- 0:0 at /a/b"},
		"no name":         {"ADD " + url + " /x", "x", "-rw------- 0:0 at /"},
		"checksum":        {"ADD --checksum=" + sum("at /f") + " " + url + "/f /x", "x", "-rw------- 0:0 at /f"},
		"several":         {"ADD " + url + "/a " + url + "/dir/tool.tgz /n/", "n/a", "-rw------- 0:0 at /a"},
		"several, second": {"ADD " + url + "/a " + url + "/dir/tool.tgz /n/", "n/tool.tgz", "-rw------- 0:0 \x1f\x8bgz"},
		"with heredoc":    {"ADD " + url + "/a <<b /n/\nx\nb", "n/b", "-rw-r--r-- 0:0 x\n"},
	} {
		t.Run(name, func(t *testing.T) {
			img := r.must(tc.command)
			if got := r.added(img)[tc.path]; got != tc.want {
				t.Errorf("%s is %q, want %q", tc.path, got, tc.want)
			}
			if strings.HasSuffix(tc.path, "tool.tgz") && img.files[tc.path].ModTime.UTC().Format(http.TimeFormat) != modified {
				t.Errorf("time is %v", img.files[tc.path].ModTime)
			}
		})
	}
	_, _, err := r.build(r.request("ADD " + url + "/ /opt/app/"))
	problem(t, err, "dockerfile_invalid", "names no file")
}

func TestAddCache(t *testing.T) {
	var heads, bodies atomic.Int64
	content, etag := "one", `"1"`
	r, url := web(t, build.Config{}, func(w http.ResponseWriter, req *http.Request) {
		heads.Add(1)
		switch req.URL.Path {
		case "/etag":
			w.Header().Set("ETag", etag)
		case "/modified":
			w.Header().Set("Last-Modified", modified)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		io.WriteString(w, content)
		bodies.Add(1)
	})
	for _, step := range []struct {
		about, path, content, etag string
		made                       int
	}{
		{"first", "/etag", "one", `"1"`, 1},
		{"same tag", "/etag", "one", `"1"`, 0},
		{"new tag", "/etag", "two", `"2"`, 1},
		{"other URL", "/modified", "two", "", 1},
		{"same date", "/modified", "two", "", 0},
		{"same date, other size", "/modified", "three", "", 1},
		{"no version", "/plain", "three", "", 1},
		{"same content", "/plain", "three", "", 0},
		{"other content", "/plain", "seven", "", 1},
	} {
		content, etag = step.content, step.etag
		before := r.images.appends
		img := r.must("ADD " + url + step.path + " /x")
		if got := r.images.appends - before; got != step.made || string(img.files["x"].Data) != step.content {
			t.Errorf("%s: %d layers made, content %q", step.about, got, img.files["x"].Data)
		}
	}
	before := heads.Load()
	for range 2 {
		r.must("ADD --checksum=" + sum("seven") + " " + url + "/plain /x")
	}
	if got := heads.Load() - before; got != 1 {
		t.Errorf("with a checksum the server was asked %d times", got)
	}
}

func TestAddRefuses(t *testing.T) {
	big := strings.Repeat("x", 64<<10)
	closing := errors.New("guard")
	for name, tc := range map[string]struct {
		command string // URL stands for the server
		handle  http.HandlerFunc
		code    string
		class   error
		text    string
	}{
		"not found":  {"ADD URL/a?key=hush /x", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, "dockerfile_invalid", sandbox.ErrInvalid, "answered 404"},
		"broken":     {"ADD URL/a /x", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, "add_failed", sandbox.ErrUnavailable, "answered 502"},
		"not a file": {"ADD URL/a /x", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "dockerfile_invalid", sandbox.ErrInvalid, "answered 204"},
		"redirects": {"ADD URL/a /x", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/a", http.StatusFound) }, "dockerfile_invalid",
			sandbox.ErrInvalid, "redirected more than 10 times"},
		"redirect to a file": {"ADD URL/a /x", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "add_failed",
			sandbox.ErrUnavailable, "unsupported protocol scheme"},
		"declared too large": {"ADD URL/a /x", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			io.WriteString(w, big)
		}, "dockerfile_invalid", sandbox.ErrInvalid, "larger than"},
		"grows too large": {"ADD URL/a /x", func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			io.WriteString(w, big)
		}, "dockerfile_invalid", sandbox.ErrInvalid, "larger than"},
		"checksum": {"ADD --checksum=" + sum("right") + " URL/a /x", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "wrong") },
			"dockerfile_invalid", sandbox.ErrInvalid, "its checksum is " + sum("wrong")},
		"cut": {"ADD URL/a /x", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
		}, "add_failed", sandbox.ErrUnavailable, "unexpected EOF"},
		"head stalls": {"ADD URL/a /x", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "add_failed", sandbox.ErrUnavailable, "sent nothing for"},
		"body stalls": {"ADD URL/a /x", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "some")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "add_failed", sandbox.ErrUnavailable, "sent nothing for"},
		"guard": {"ADD http://metadata.internal/a /x", nil, "private_address", sandbox.ErrInvalid, "line 1: ADD http://metadata.internal/a /x: metadata.internal is private"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := build.Config{MaxAdd: 32 << 10}
			if strings.Contains(name, "stalls") {
				cfg.Stall = 100 * time.Millisecond
			}
			if tc.handle == nil {
				cfg.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
					return nil, &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "private_address", Detail: "metadata.internal is private", Err: closing}
				})
			}
			r, url := web(t, cfg, tc.handle)
			_, _, err := r.build(r.request(strings.ReplaceAll(tc.command, "URL", url)))
			problem(t, err, tc.code, tc.text, "line 1: ADD ")
			if !errors.Is(err, tc.class) || len(r.images.cache) != 0 {
				t.Errorf("class of %v, cached %v", err, r.images.cache)
			}
		})
	}
	r := newRig(t, image.Settings{})
	_, _, err := r.build(r.request("ADD http://example.com/a /x"))
	problem(t, err, "add_unsupported", "fetches no URLs")
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestAddChanging has a file that is another one when it is asked for again.
func TestAddChanging(t *testing.T) {
	var n atomic.Int64
	r, url := web(t, build.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, n.Add(1)))
	})
	_, _, err := r.build(r.request("ADD " + url + "/a " + url + "/b /x/"))
	problem(t, err, "add_failed", "changed while")
}

// TestAddLeaving has the build that asked leave while another waits for the same file.
func TestAddLeaving(t *testing.T) {
	asked, more := make(chan struct{}, 2), make(chan struct{})
	var n atomic.Int64
	r, url := web(t, build.Config{}, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("ETag", `"1"`)
		io.WriteString(w, "begin ")
		w.(http.Flusher).Flush()
		asked <- struct{}{}
		if n.Add(1) == 1 {
			select {
			case <-more:
			case <-req.Context().Done():
			}
		}
		io.WriteString(w, "end")
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := r.b.Build(ctx, r.request("ADD "+url+"/a /x")); !errors.Is(err, context.Canceled) {
			t.Errorf("the one that left got %v", err)
		}
	})
	<-asked
	wg.Go(func() {
		req := r.request("ADD " + url + "/a /x")
		req.Report = nil
		id, _, err := r.b.Build(t.Context(), req)
		if err != nil {
			t.Errorf("the one that stayed got %v", err)
			return
		}
		if got := string(r.images.get(id).files["x"].Data); got != "begin end" {
			t.Errorf("the file is %q", got)
		}
	})
	<-asked
	cancel()
	close(more)
	wg.Wait()
}
