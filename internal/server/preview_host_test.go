package server_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// TestPreviewHosts sends requests whose host is not quite what it seems.
func TestPreviewHosts(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	port := app(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the app") }))
	v := open(t, s, sb.ID, port)
	const (
		theApp = "the app"        // the preview
		theAPI = `"account_name"` // GET /me
		no     = "no_such_preview"
		bad    = "400 Bad Request"
	)
	label, _, _ := strings.Cut(v.host, ".")
	for name, tt := range map[string]struct{ line, headers, want string }{
		"the preview":             {"GET /me HTTP/1.1", "Host: " + v.host, theApp},
		"uppercase":               {"GET /me HTTP/1.1", "Host: " + strings.ToUpper(v.host), theApp},
		"a trailing dot":          {"GET /me HTTP/1.1", "Host: " + v.host + ".", theApp},
		"two":                     {"GET /me HTTP/1.1", "Host: " + v.host + "..", theApp},
		"a port":                  {"GET /me HTTP/1.1", "Host: " + v.host + ":1234", theApp},
		"a dot and a port":        {"GET /me HTTP/1.1", "Host: " + v.host + ".:80", theApp},
		"two ports":               {"GET /me HTTP/1.1", "Host: " + v.host + ":80:90", theApp},
		"absolute form":           {"GET http://" + v.host + "/me HTTP/1.1", "Host: 127.0.0.1", theApp},
		"absolute, other scheme":  {"GET https://" + v.host + "/me HTTP/1.1", "Host: 127.0.0.1", theApp},
		"absolute API":            {"GET http://127.0.0.1/me HTTP/1.1", "Host: " + v.host, theAPI},
		"the API":                 {"GET /me HTTP/1.1", "Host: 127.0.0.1", theAPI},
		"X-Forwarded-Host":        {"GET /me HTTP/1.1", "Host: 127.0.0.1\r\nX-Forwarded-Host: " + v.host + "\r\nForwarded: host=" + v.host, theAPI},
		"X-Forwarded-Host of API": {"GET /me HTTP/1.1", "Host: " + v.host + "\r\nX-Forwarded-Host: 127.0.0.1", theApp},
		"the host itself":         {"GET /me HTTP/1.1", "Host: " + servertest.PreviewHost, theAPI},
		"no host, HTTP/1.0":       {"GET /me HTTP/1.0", "X: y", theAPI},
		"no host":                 {"GET /me HTTP/1.1", "X: y", bad},
		"two hosts":               {"GET /me HTTP/1.1", "Host: 127.0.0.1\r\nHost: " + v.host, bad},
		"a space":                 {"GET /me HTTP/1.1", "Host: " + v.host + " x", bad},
		"an empty label":          {"GET /me HTTP/1.1", "Host: ." + servertest.PreviewHost, no},
		"..":                      {"GET /me HTTP/1.1", "Host: " + label + ".." + servertest.PreviewHost, no},
		"a label before":          {"GET /me HTTP/1.1", "Host: x." + v.host, no},
		"a label between":         {"GET /me HTTP/1.1", "Host: " + label + ".x." + servertest.PreviewHost, no},
		"a user":                  {"GET /me HTTP/1.1", "Host: x@" + v.host, bad},
		"a zero before the port":  {"GET /me HTTP/1.1", "Host: 0" + v.host, no},
		"a sign before the port":  {"GET /me HTTP/1.1", "Host: +" + v.host, no},
		"an underscore":           {"GET /me HTTP/1.1", "Host: " + strings.Replace(v.host, "sbx-", "sbx_", 1), no},
		"a port that is too big":  {"GET /me HTTP/1.1", "Host: 99999" + strings.TrimLeft(v.host, "0123456789"), no},
		"no port":                 {"GET /me HTTP/1.1", "Host: " + strings.TrimLeft(v.host, "0123456789"), no},
		"no ID":                   {"GET /me HTTP/1.1", "Host: 3000-sbx-." + servertest.PreviewHost, no},
		"an ID that overflows":    {"GET /me HTTP/1.1", "Host: 3000-sbx-8zzzzzzzzzzzzzzzzzzzzzzzzz." + servertest.PreviewHost, no},
		"a name that ends so":     {"GET /me HTTP/1.1", "Host: " + label + "x" + servertest.PreviewHost, theAPI},
		"a name that begins so":   {"GET /me HTTP/1.1", "Host: " + v.host + ".evil.example", theAPI},
		"CONNECT":                 {"CONNECT " + v.host + ":80 HTTP/1.1", "Host: " + v.host, "method_not_allowed"},
		"TRACE":                   {"TRACE / HTTP/1.1", "Host: " + v.host, "method_not_allowed"},
	} {
		answer := exchange(t, s, tt.line+"\r\n"+tt.headers+"\r\nAuthorization: Bearer "+s.Key+"\r\n"+api.HeaderPreviewToken+": "+v.Token+"\r\nConnection: close\r\n\r\n")
		if !strings.Contains(answer, tt.want) {
			t.Errorf("%s: want %q, got\n%s", name, tt.want, answer)
		}
	}
}

// exchange sends bytes to the server and returns all it answers.
func exchange(t *testing.T, s *servertest.Server, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // the exchange is over
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

// A request that two servers may take for different ones reaches the sandbox as one, or not at all.
func TestPreviewSmuggling(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	seen := make(chan string, 100)
	port := app(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen <- fmt.Sprintf("%s %d %v %q", r.URL.Path, r.ContentLength, r.TransferEncoding, b)
		_, _ = io.WriteString(w, "ok")
	}))
	v := open(t, s, sb.ID, port)
	const inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	// A request that is refused in the middle may have reached the program by then, with nothing in it.
	early := func(got string) {
		if !strings.HasSuffix(got, ` ""`) || strings.HasPrefix(got, "/smuggled") {
			t.Errorf("the program saw %q", got)
		}
	}
	n := 0
	for name, tt := range map[string]struct{ headers, body, want string }{
		"length and chunks":   {"Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\n" + inner, `-1 [chunked] ""`},
		"two lengths":         {"Content-Length: 1\r\nContent-Length: 2", "xy", ""},
		"a list of lengths":   {"Content-Length: 1, 2", "xy", ""},
		"a signed length":     {"Content-Length: +1", "x", ""},
		"another encoding":    {"Transfer-Encoding: xchunked", "0\r\n\r\n", ""},
		"a hidden encoding":   {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n", ""},
		"a space in a name":   {"Transfer-Encoding : chunked", "0\r\n\r\n", ""},
		"an endless size":     {"Transfer-Encoding: chunked", "fffffffffffffffff\r\n", ""},
		"a hop-by-hop Cookie": {"Content-Length: 1\r\nConnection: close, content-length", "x", `1 [] "x"`},
	} {
		n++
		path := fmt.Sprintf("/%d", n)
		_ = exchange(t, s, "POST "+path+" HTTP/1.1\r\nHost: "+v.host+"\r\n"+api.HeaderPreviewToken+": "+v.Token+"\r\nConnection: close\r\n"+tt.headers+"\r\n\r\n"+tt.body)
		for tt.want != "" {
			got := <-seen
			if other, found := strings.CutPrefix(got, path+" "); found {
				if other != tt.want {
					t.Errorf("%s: the program saw %q, want %q", name, got, tt.want)
				}
				break
			}
			early(got)
		}
	}
	select {
	case more := <-seen:
		early(more)
	default:
	}
}

func TestPreviewHostIsChecked(t *testing.T) {
	t.Parallel()
	for host, ok := range map[string]bool{
		"localhost": true, "localhost:8080": true, "preview.example.com": true, "https://preview.example.com": true, "https://preview.example.com/": true, "http://Preview.Example.com.:80": true,
		"": false, "127.0.0.1:8080": false, "[::1]:80": false, "ftp://x": false, "a..b": false, ".a": false, "a b": false, "*.example.com": false, "x:0": false, "x:99999": false, "x/y": false,
		strings.Repeat("a.", 100) + "b": false,
	} {
		if err := server.CheckPreviewHost(host); (err == nil) != ok {
			t.Errorf("%q: %v", host, err)
		}
	}
}
