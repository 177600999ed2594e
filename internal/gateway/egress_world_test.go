package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/gateway"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// publicIP is where the names of the tests lead: a public address, which the world connects to a server of the test instead.
const publicIP = "93.184.215.14"

// world is a sandbox's proxy with everything around it: a real guest and its tunnel, names, and an internet of one address.
type world struct {
	gw     *gateway.Gateway
	guest  *guest.Server
	client *guest.Client
	addr   string // of the proxy, as the programs of the sandbox see it
	log    *buffer

	mu       sync.Mutex
	policy   gateway.Policy                          // guarded by mu
	err      error                                   // guarded by mu: instead of a policy
	names    map[string][]string                     // guarded by mu: answers, the first one first
	upstream string                                  // guarded by mu: the address behind publicIP
	dialed   []string                                // guarded by mu
	records  chan gateway.Connection                 // of what has ended
	dial     func(context.Context) (net.Conn, error) // instead of upstream
}

func (w *world) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	host = strings.TrimSuffix(host, ".")
	answers := w.names[host]
	if len(answers) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(answers) > 1 {
		w.names[host] = answers[1:]
	}
	return []netip.Addr{netip.MustParseAddr(answers[0])}, nil
}

// connect is the internet.
func (w *world) connect(ctx context.Context, _, address string) (net.Conn, error) {
	w.mu.Lock()
	w.dialed = append(w.dialed, address)
	upstream := w.upstream
	w.mu.Unlock()
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !netguard.Public(ap.Addr()) {
		return nil, fmt.Errorf("%s is not public: %w", address, err)
	}
	if w.dial != nil {
		return w.dial(ctx)
	}
	if upstream == "" {
		return nil, errors.New("nobody is there")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", upstream)
}

func (w *world) connections() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.dialed, " ")
}

func (w *world) set(p gateway.Policy, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policy, w.err = p, err
}

func (w *world) config() gateway.Config {
	w.log = &buffer{}
	w.records = make(chan gateway.Connection, 1000)
	return gateway.Config{
		Demo: gateway.NewDemo(), Secret: secret, Log: slog.New(slog.NewTextHandler(w.log, nil)),
		Policy: func(_ context.Context, id sandbox.ID) (gateway.Policy, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if id != box {
				return gateway.Policy{}, errors.New("not this sandbox")
			}
			return w.policy, w.err
		},
		Egress: netguard.Dialer{Resolver: w, Dial: w.connect},
		Record: func(c gateway.Connection) { w.records <- c },
	}
}

// newWorld has good.example and others lead to upstream, which everything is allowed to reach.
func newWorld(t *testing.T, upstream string, change func(*gateway.Config)) *world {
	t.Helper()
	w := &world{
		upstream: upstream, policy: gateway.Policy{Mode: "egress", Allow: []string{"*:*"}},
		names: map[string][]string{
			"good.example": {publicIP}, "other.example": {publicIP}, "rebind.example": {publicIP, "127.0.0.1"}, "private.example": {"10.1.2.3"},
			"metadata.google.internal": {"169.254.169.254"}, "localhost": {"127.0.0.1"}, "six.example": {"::1"},
		},
	}
	cfg := w.config()
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.gw, err = gateway.New(cfg); err != nil {
		t.Fatal(err)
	}
	w.guest, err = guest.NewServer(guest.Config{StateDir: t.TempDir(), Workdir: t.TempDir(), AgentUID: os.Getuid(), AgentGID: os.Getgid(),
		GatewayAddr: "127.0.0.1:0", Version: "test", Grace: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.guest.Shutdown(context.Background()) })
	here, there := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = w.guest.ServeConn(context.Background(), there) // it ends with the client
	}()
	if w.client, err = guest.NewClient(here, w.gw.Handler(box)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.client.Close()
		<-served
	})
	w.addr = w.guest.GatewayAddr().String()
	return w
}

// program is an HTTP client that uses the proxy.
func (w *world) program(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: w.addr}), DisableCompression: true, ExpectContinueTimeout: time.Minute}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (w *world) open(t *testing.T) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

// raw sends bytes and returns the first answer.
func (w *world) raw(t *testing.T, request string) (int, string, http.Header) {
	t.Helper()
	conn := w.open(t)
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK && method == http.MethodConnect {
		return res.StatusCode, "", res.Header
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return res.StatusCode, string(body), res.Header
}

// connectTo opens a tunnel.
func (w *world) connectTo(t *testing.T, target string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	conn := w.open(t)
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: whatever\r\n\r\n", target); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT %s: %v, %v", target, res, err)
	}
	return conn, r
}

// listen accepts connections until the test has ended, and waits for what serves them.
func listen(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}
