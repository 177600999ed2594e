package gateway_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/gateway"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func TestProxyForwards(t *testing.T) {
	t.Parallel()
	var token string
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		for _, h := range []string{"Proxy-Authorization", "Proxy-Connection", "X-Private", "Keep-Alive", "Connection-Only", "X-Api-Key", "Authorization", "X-Forwarded-For"} {
			if v := r.Header.Get(h); v != "" && h != "X-Forwarded-For" {
				t.Errorf("%s: %s reached the server", h, v)
			}
		}
		for _, vs := range r.Header {
			if strings.Contains(strings.Join(vs, ""), token) {
				t.Errorf("the sandbox's token reached the server: %v", r.Header)
			}
		}
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.WriteHeader(http.StatusTeapot)
		_, _ = fmt.Fprintf(w, "%s %s %s %s %s", r.Method, r.Host, r.RequestURI, body, r.Trailer.Get("X-Length"))
		w.Header().Set("X-Sum", "42")
	})
	w := newWorld(t, upstream, nil)
	token = w.gw.Token(box)
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", "http://GOOD.example:80/a%2Fb?x=%zz;y", io.MultiReader(strings.NewReader("hel"), strings.NewReader("lo")))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-Length": {"5"}}
	for k, v := range map[string]string{"Proxy-Authorization": "Basic x", "Proxy-Connection": "keep-alive", "X-Api-Key": token, "Authorization": "Bearer " + token,
		"Connection": "X-Private, close", "X-Private": "secret", "Expect": "100-continue"} {
		req.Header.Set(k, v)
	}
	res, err := w.program(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusTeapot || string(body) != "PATCH good.example /a%2Fb?x=%zz;y hello 5" {
		t.Errorf("%d %q, %v", res.StatusCode, body, err)
	}
	if res.Trailer.Get("X-Sum") != "42" || res.Header.Get("Keep-Alive") != "" {
		t.Errorf("%v, %v", res.Header, res.Trailer)
	}
	c := <-w.records
	if !c.Allowed || c.Sandbox != box || c.Host != "good.example" || c.Port != 80 || c.Method != "PATCH" || c.Reason != "" || c.BytesIn < 40 || c.BytesOut < 5 || c.Start.IsZero() {
		t.Errorf("%+v", c)
	}
}

// A stream arrives as it is written, a redirect is the program's business, and a host that was allowed may be down.
func TestProxyAnswers(t *testing.T) {
	t.Parallel()
	more := make(chan struct{})
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
			return
		}
		_, _ = fmt.Fprintln(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-more
		_, _ = fmt.Fprintln(w, "second")
	})
	w := newWorld(t, upstream, nil)
	p := w.program(t)
	get := func(u string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), "GET", u, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := p.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	lines := bufio.NewReader(get("http://good.example/").Body)
	if s, err := lines.ReadString('\n'); err != nil || s != "first\n" {
		t.Errorf("%q, %v", s, err)
	}
	close(more)
	if s, err := io.ReadAll(lines); err != nil || string(s) != "second\n" {
		t.Errorf("%q, %v", s, err)
	}
	if res := get("http://good.example/away"); res.StatusCode != http.StatusFound || res.Header.Get("Location") != "http://169.254.169.254/" {
		t.Errorf("%v", res)
	}
	if res := get("http://nowhere.example/"); res.StatusCode != http.StatusBadGateway || res.Header.Get("X-Sandlot-Reason") != gateway.ReasonUnresolved {
		t.Errorf("%v", res)
	}
	w.mu.Lock()
	w.upstream = ""
	w.mu.Unlock()
	if res := get("http://good.example/"); res.StatusCode != http.StatusBadGateway || res.Header.Get("X-Sandlot-Reason") != gateway.ReasonUnreachable {
		t.Errorf("%v", res)
	}
	if got := w.connections(); strings.Contains(got, "169.254") || strings.Count(got, publicIP) != 3 {
		t.Error(got)
	}
}

func TestProxyUpgrades(t *testing.T) {
	t.Parallel()
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "chat" {
			t.Errorf("%v", r.Header)
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
		_, _ = io.Copy(conn, buf)
		_, _ = io.WriteString(conn, "bye")
	})
	w := newWorld(t, upstream, nil)
	conn := w.open(t)
	_, _ = io.WriteString(conn, "GET http://good.example/chat HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", res, err)
	}
	_, _ = io.WriteString(conn, "hello ")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "hello bye" {
		t.Errorf("%q, %v", b, err)
	}
	if c := <-w.records; c.BytesOut < 6 || c.BytesIn < 9 {
		t.Errorf("%+v", c)
	}
}

func TestTunnelCarriesAnything(t *testing.T) {
	t.Parallel()
	upstream := listen(t, func(conn *net.TCPConn) { // its own greeting first, then what it got, after the other has ended
		_, _ = io.WriteString(conn, "welcome\n")
		b, _ := io.ReadAll(conn)
		_, _ = conn.Write(b)
	})
	w := newWorld(t, upstream, nil)
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			conn, r := w.connectTo(t, "good.example:443")
			if s, err := r.ReadString('\n'); err != nil || s != "welcome\n" {
				t.Errorf("%q, %v", s, err)
			}
			_, _ = conn.Write(data)
			_ = conn.CloseWrite()
			if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, data) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	for range 8 {
		if c := <-w.records; c.BytesOut != 3<<20 || c.BytesIn != 3<<20+8 || c.Port != 443 || c.Method != "CONNECT" || c.Reason != "" {
			t.Errorf("%+v", c)
		}
	}
	if c := w.gw.Egress(box); c != (gateway.Counters{Allowed: 8, BytesIn: 8*3<<20 + 64, BytesOut: 8 * 3 << 20}) {
		t.Errorf("%+v", c)
	}
	w.gw.Forget(box)
	if c := w.gw.Egress(box); c != (gateway.Counters{}) {
		t.Errorf("%+v", c)
	}
}

// What a program sends before the answer to its CONNECT is not lost, and a server may end its direction first.
func TestTunnelHalfCloses(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	upstream := listen(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "that is all")
		_ = conn.CloseWrite()
		b, _ := io.ReadAll(conn)
		got <- string(b)
	})
	w := newWorld(t, upstream, nil)
	conn := w.open(t)
	_, _ = io.WriteString(conn, "CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\nearly ")
	if b, err := io.ReadAll(conn); err != nil || string(b) != "HTTP/1.1 200 Connection established\r\n\r\nthat is all" {
		t.Errorf("%q, %v", b, err)
	}
	_, _ = io.WriteString(conn, "late")
	_ = conn.CloseWrite()
	if s := <-got; s != "early late" {
		t.Error(s)
	}
}

// A download that a program leaves half read doesn't hold its place.
func TestTunnelEndsWithItsProgram(t *testing.T) {
	t.Parallel()
	upstream := listen(t, func(conn *net.TCPConn) {
		for {
			if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	w := newWorld(t, upstream, nil)
	conn, r := w.connectTo(t, "good.example:443")
	if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
		t.Fatal(err)
	}
	// The proxy can't tell this from a program that has only ended its own direction: so the policy does here what time would do.
	_ = conn.SetLinger(0)
	_ = conn.Close()
	w.set(gateway.Policy{Mode: "none"}, nil)
	w.gw.PolicyChanged(t.Context(), box)
	if c := <-w.records; c.Reason != gateway.ReasonCut {
		t.Errorf("%+v", c)
	}
}

func TestEverythingEndsWithTheConnectionToTheGuest(t *testing.T) {
	t.Parallel()
	var gone sync.WaitGroup
	gone.Add(2)
	upstream := listen(t, func(conn *net.TCPConn) {
		defer gone.Done()
		b := bufio.NewReader(conn)
		line, _ := b.ReadString('\n')
		if strings.HasPrefix(line, "GET") {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		}
		_, _ = io.Copy(io.Discard, b)
	})
	w := newWorld(t, upstream, nil)
	conn, r := w.connectTo(t, "good.example:443")
	_, _ = io.WriteString(conn, "hello\n")
	plain := w.open(t)
	_, _ = io.WriteString(plain, "GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n")
	answer := bufio.NewReader(plain)
	if _, err := http.ReadResponse(answer, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Close(); err != nil {
		t.Fatal(err)
	}
	gone.Wait()
	if b, err := io.ReadAll(r); err == nil && len(b) > 0 {
		t.Errorf("%q", b)
	}
	if b, err := io.ReadAll(answer); err == nil && len(b) > 4 {
		t.Errorf("half an answer was ended like a whole one: %q", b)
	}
	for range 2 {
		if c := <-w.records; c.Reason != gateway.ReasonCut {
			t.Errorf("%+v", c)
		}
	}
	if c := w.gw.Egress(box); c.Active != 0 {
		t.Errorf("%+v", c)
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	upstream := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	w := newWorld(t, upstream, nil)
	for _, c := range []struct {
		mode   string
		allow  string
		err    error
		target string
		reason string // "" = allowed
	}{
		{"egress", "*", errors.New("the database is locked"), "good.example:80", gateway.ReasonPolicy},
		{"", "*", nil, "good.example:80", gateway.ReasonNoNetwork},
		{"none", "*", nil, "good.example:80", gateway.ReasonNoNetwork},
		{"something new", "*", nil, "good.example:80", gateway.ReasonNoNetwork},
		{"egress", "", nil, "good.example:80", gateway.ReasonNotAllowed},
		{"egress", "good.example", nil, "good.example:80", ""},
		{"egress", "good.example", nil, "good.example.:80", ""},
		{"egress", "good.example", nil, "other.example:80", gateway.ReasonNotAllowed},
		{"egress", "good.example", nil, "good.example:8080", gateway.ReasonNotAllowed},
		{"egress", "good.example:8080", nil, "good.example:8080", ""},
		{"egress", "good.example", nil, publicIP + ":80", gateway.ReasonNotAllowed},
		{"egress", "*", nil, publicIP + ":80", ""},
		{"egress", "*", nil, "private.example:80", gateway.ReasonAddress},
		{"egress", "10.0.0.0/8 *", nil, "10.1.2.3:80", gateway.ReasonAddress},
		{"egress", "good.example http://nonsense", nil, "good.example:80", gateway.ReasonPolicy},
		{"open", "", nil, "good.example:8080", ""},
		{"open", "", nil, "private.example:80", gateway.ReasonAddress},
	} {
		w.set(gateway.Policy{Mode: sandbox.NetworkMode(c.mode), Allow: strings.Fields(c.allow)}, c.err)
		for _, request := range []string{"GET http://%[1]s/ HTTP/1.1\r\nHost: %[1]s\r\nConnection: close\r\n\r\n", "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n"} {
			status, body, header := w.raw(t, fmt.Sprintf(request, c.target))
			want := http.StatusOK
			if c.reason != "" {
				want = http.StatusForbidden
			}
			if status != want || header.Get("X-Sandlot-Reason") != c.reason || c.reason != "" && !strings.HasPrefix(body, "Sandlot: ") ||
				strings.Contains(body, "database") || strings.Contains(body, "10.1.2.3") && c.target != "10.1.2.3:80" {
				t.Errorf("%+v: %s: %d %q %v", c, request[:4], status, body, header)
			}
			if r := <-w.records; r.Allowed != (c.reason == "") || r.Reason != c.reason {
				t.Errorf("%+v: %+v", c, r)
			}
		}
	}
	if c := w.gw.Egress(box); c.Allowed != 10 || c.Refused != 24 {
		t.Errorf("%+v", c)
	}
	if log := w.log.String(); strings.Count(log, "connection of a sandbox") != 20 || !strings.Contains(log, "there are many") || !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "database is locked") {
		t.Errorf("refusals in the log:\n%s", log)
	}
}

// Without a policy nothing gets out, and another sandbox's handler goes by another policy.
func TestNoPolicyIsNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "", func(cfg *gateway.Config) { cfg.Policy = nil })
	if status, _, h := w.raw(t, "CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"); status != http.StatusForbidden || h.Get("X-Sandlot-Reason") != gateway.ReasonNoNetwork {
		t.Errorf("%d %v", status, h)
	}
	w = newWorld(t, "", nil)
	srv := httptest.NewServer(w.gw.Handler("sbx_two"))
	t.Cleanup(srv.Close)
	w.addr = srv.Listener.Addr().String()
	if status, _, h := w.raw(t, "CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"); status != http.StatusForbidden || h.Get("X-Sandlot-Reason") != gateway.ReasonPolicy {
		t.Errorf("%d %v", status, h)
	}
	if got := w.connections(); got != "" {
		t.Error(got)
	}
}

// A change of the policy ends what it doesn't allow any more, and nothing else.
func TestPolicyChangesLive(t *testing.T) {
	t.Parallel()
	upstream := listen(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	w := newWorld(t, upstream, nil)
	kept, r := w.connectTo(t, "good.example:443")
	lost, lostAnswer := w.connectTo(t, "other.example:443")
	w.set(gateway.Policy{Mode: "egress", Allow: []string{"good.example"}}, nil)
	w.gw.PolicyChanged(t.Context(), box)
	w.gw.PolicyChanged(t.Context(), "sbx_unknown")
	if b, err := io.ReadAll(lostAnswer); len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
	_ = lost.Close()
	if c := <-w.records; c.Host != "other.example" || c.Reason != gateway.ReasonCut || !c.Allowed {
		t.Errorf("%+v", c)
	}
	_, _ = io.WriteString(kept, "still here\n")
	if s, err := r.ReadString('\n'); err != nil || s != "still here\n" {
		t.Errorf("%q, %v", s, err)
	}
}

// A sandbox with every connection taken is told so, and still reaches the model.
func TestProxyHasRoomForTheModel(t *testing.T) {
	t.Parallel()
	upstream := listen(t, func(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) })
	w := newWorld(t, upstream, nil)
	var first *net.TCPConn
	for range 192 {
		first, _ = w.connectTo(t, "good.example:443")
	}
	if status, body, h := w.raw(t, "CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"); status != http.StatusServiceUnavailable || h.Get("X-Sandlot-Reason") != gateway.ReasonTooMany {
		t.Errorf("%d %s", status, body)
	}
	model := func(target string) {
		t.Helper()
		status, body, _ := w.raw(t, "GET "+target+"/v1/models HTTP/1.1\r\nHost: x\r\nX-Api-Key: "+w.gw.Token(box)+"\r\nConnection: close\r\n\r\n")
		if status != http.StatusOK || !strings.Contains(body, gateway.DemoModel) {
			t.Errorf("%d %s", status, body)
		}
	}
	model("")
	model("http://127.0.0.1:39100") // by a program that knows no NO_PROXY
	<-w.records                     // of the one too many
	_ = first.Close()
	<-w.records
	w.connectTo(t, "good.example:443")
}

func TestProxyEndsIdleConnections(t *testing.T) {
	t.Parallel()
	upstream := listen(t, func(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) })
	w := newWorld(t, upstream, func(cfg *gateway.Config) { cfg.EgressIdle = 50 * time.Millisecond })
	_, r := w.connectTo(t, "good.example:443")
	_, _ = io.ReadAll(r) // ends at all
	plain := w.open(t)
	_, _ = io.WriteString(plain, "GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n")
	if b, _ := io.ReadAll(plain); len(b) != 0 {
		t.Errorf("no answer became %q", b)
	}
	for range 2 {
		if c := <-w.records; c.Reason != gateway.ReasonCut {
			t.Errorf("%+v", c)
		}
	}
}

func TestProxyEnv(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "", nil)
	env := w.gw.Env(box)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		if env[name] != "http://127.0.0.1:39100" {
			t.Errorf("%s=%s", name, env[name])
		}
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
		if list := "," + env["NO_PROXY"] + ","; !strings.Contains(list, ","+host+",") || env["no_proxy"] != env["NO_PROXY"] {
			t.Errorf("%s: %s", host, list)
		}
	}
}
