package netguard_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// corporate is the proxy of a company: it asks for a password, and answers tunnels by an echo.
type corporate struct {
	mu    sync.Mutex
	asked []string // guarded by mu
}

func (c *corporate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.asked = append(c.asked, r.Method+" "+r.RequestURI)
	c.mu.Unlock()
	if r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("user:pass")) {
		http.Error(w, "who are you?", http.StatusProxyAuthRequired)
		return
	}
	if r.Method != http.MethodConnect {
		_, _ = io.WriteString(w, "answer of "+r.URL.String())
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nwelcome\n")
	_, _ = io.Copy(conn, buf)
}

func (c *corporate) got() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.asked, ", ")
}

func fixed(t *testing.T, s string) func(*url.URL) (*url.URL, error) {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return func(target *url.URL) (*url.URL, error) {
		if strings.HasPrefix(target.Hostname(), "direct") || target.Host == u.Host { // its NO_PROXY
			return nil, nil
		}
		return u, nil
	}
}

func refused(err error) bool {
	var p *sandbox.Problem
	return errors.As(err, &p) && p.Code == netguard.CodeRefused
}

func TestDialerThroughTheServersProxy(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		var c corporate
		srv := httptest.NewUnstartedServer(&c)
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		d := netguard.Dialer{Resolver: &names{of: map[string][]string{"good.example": {"1.1.1.1"}, "private.example": {"10.0.0.1"}}}, Option: "--open-it"}
		if scheme == "https" {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		t.Cleanup(srv.Close)
		d.Proxy = fixed(t, strings.Replace(srv.URL, "://", "://user:pass@", 1))
		conn, err := d.DialContext(t.Context(), "tcp", "good.example:443")
		if scheme == "https" { // its certificate is nobody's
			if err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Error(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "hello")
		if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(conn); err != nil || string(b) != "welcome\nhello" {
			t.Errorf("%q, %v", b, err)
		}
		unknown, err := d.DialContext(t.Context(), "tcp", "only-the-proxy-knows.example:443")
		if err != nil {
			t.Fatal(err)
		}
		_ = unknown.Close()
		for _, no := range []string{"private.example:443", "10.0.0.1:443", "169.254.169.254:80", "metadata.google.internal:80", "intranet:80", "wiki.corp:80", "localhost:80", "127.1:80"} {
			if _, err := d.DialContext(t.Context(), "tcp", no); !refused(err) || !strings.Contains(err.Error(), "--open-it") {
				t.Errorf("%s: %v", no, err)
			}
		}
		if got := c.got(); got != "CONNECT good.example:443, CONNECT only-the-proxy-knows.example:443" {
			t.Error(got)
		}
		d.Proxy = fixed(t, srv.URL) // no password
		if _, err := d.DialContext(t.Context(), "tcp", "good.example:443"); err == nil || !strings.Contains(err.Error(), "407") {
			t.Error(err)
		}
	}
}

// socks speaks as much of SOCKS5 as is needed, and then says to where it was asked.
func socks(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	head := make([]byte, 2)
	_, _ = io.ReadFull(r, head)
	_, _ = r.Discard(int(head[1]))
	_, _ = conn.Write([]byte{5, 0})
	req := make([]byte, 5)
	_, _ = io.ReadFull(r, req)
	name := make([]byte, int(req[4])+2)
	_, _ = io.ReadFull(r, name)
	_, _ = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	said, _ := io.ReadAll(r)
	_, _ = fmt.Fprintf(conn, "%s:%d %s", name[:len(name)-2], binary.BigEndian.Uint16(name[len(name)-2:]), said)
}

func TestDialerThroughSOCKS(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := ln.Accept(); err == nil {
			socks(conn)
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	d := netguard.Dialer{Resolver: &names{}, Proxy: fixed(t, "socks5://"+ln.Addr().String())}
	if _, err := d.DialContext(t.Context(), "tcp", "127.0.0.2:443"); !refused(err) {
		t.Error(err)
	}
	conn, err := d.DialContext(t.Context(), "tcp", "good.example:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "hello")
	_ = conn.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "good.example:443 hello" {
		t.Errorf("%q, %v", b, err)
	}
}

func fetch(ctx context.Context, t *testing.T, tr *http.Transport, u string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

func TestTransport(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "http://evil.example/latest/meta-data", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "hello")
	}))
	t.Cleanup(srv.Close)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	d := &netguard.Dialer{Resolver: &names{of: map[string][]string{"registry.local": {"127.0.0.1"}, "evil.example": {"169.254.169.254"}, "other.local": {"127.0.0.1"}, "localhost": {"127.0.0.1"}}}}
	tr := netguard.Transport(d, []string{"registry.local", "127.0.0.1:" + port, "not a host"})
	t.Cleanup(tr.CloseIdleConnections)
	for u, ok := range map[string]bool{
		srv.URL: true, "http://registry.local:" + port: true, "http://REGISTRY.local.:" + port: true, "http://other.local:" + port: false,
		"http://localhost:" + port: false, "http://127.0.0.2:" + port: false, "http://registry.local:" + port + "/away": false, "http://evil.example/": false,
		"http://2130706433:" + port: false, "http://[::ffff:127.0.0.2]:" + port: false,
	} {
		got, err := fetch(t.Context(), t, tr, u)
		if ok && (err != nil || got != "hello") || !ok && !refused(err) {
			t.Errorf("%s: %q, %v", u, got, err)
		}
	}
	if err := netguard.CheckHosts([]string{"registry.local:5000", "*.corp.example", "10.0.0.1:5000"}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"http://registry.local", "a b", "127.1", "registry.local:0"} {
		if err := netguard.CheckHosts([]string{bad}); err == nil {
			t.Errorf("%q", bad)
		}
	}
}

func TestTransportThroughTheServersProxy(t *testing.T) {
	t.Parallel()
	var c corporate
	srv := httptest.NewServer(&c)
	t.Cleanup(srv.Close)
	d := &netguard.Dialer{Resolver: &names{of: map[string][]string{"good.example": {"1.1.1.1"}, "private.example": {"10.0.0.1"}, "direct.example": {"127.0.0.1"}}}}
	d.Proxy = fixed(t, strings.Replace(srv.URL, "://", "://user:pass@", 1))
	tr := netguard.Transport(d, []string{"registry.corp"})
	t.Cleanup(tr.CloseIdleConnections)
	for u, want := range map[string]string{
		"http://good.example/a?b":   "answer of http://good.example/a?b",
		"http://registry.corp/":     "answer of http://registry.corp/",
		"http://elsewhere.example/": "answer of http://elsewhere.example/",
		"http://private.example/":   "", "http://10.0.0.1/": "", "http://metadata.google.internal/": "", "http://direct.example/": "",
		srv.URL: "", // the proxy itself, which the transport may dial
	} {
		got, err := fetch(t.Context(), t, tr, u)
		if got != want || want == "" && !refused(err) {
			t.Errorf("%s: %q, %v", u, got, err)
		}
	}
	if strings.Contains(c.got(), "private") || strings.Contains(c.got(), "10.0.0.1") || strings.Contains(c.got(), "GET /") {
		t.Error(c.got())
	}
	d.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	open := netguard.Transport(d, nil)
	t.Cleanup(open.CloseIdleConnections)
	if got, err := fetch(t.Context(), t, open, "http://private.example/"); got == "" {
		t.Error(err)
	}
}
