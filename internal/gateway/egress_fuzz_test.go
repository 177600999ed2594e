package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/gateway"
	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// anyName resolves every name, to addresses of all kinds.
type anyName struct{}

func (anyName) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr(publicIP), netip.MustParseAddr("::ffff:10.0.0.1")}, nil
}

// FuzzProxyRequest sends any bytes. They may make the proxy connect to a public address only, and where they make it send a plain request,
// that is one request and nothing behind it.
func FuzzProxyRequest(f *testing.F) {
	for _, s := range []string{
		"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\nhello",
		"CONNECT [::1]:80 HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST http://2130706433:80/?a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"POST http://good.example:81 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: x, upgrade\r\nUpgrade: h2c\r\n\r\nhello" +
			"GET http://127.0.0.1/ HTTP/1.0\r\n\r\n",
		"POST http://good.example/ HTTP/1.1\r\nHost: x\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n",
		"OPTIONS http://good.example HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "GET //good.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		// In a tunnel, and after an upgrade, anything may follow.
		plain := !bytes.Contains(data, []byte("CONNECT")) && !bytes.Contains(bytes.ToLower(data), []byte("upgrade"))
		var wg sync.WaitGroup
		dial := func(_ context.Context, _, address string) (net.Conn, error) {
			ap, err := netip.ParseAddrPort(address)
			if err != nil || !netguard.Public(ap.Addr()) || ap.Port() == 0 {
				t.Errorf("connected to %s", address)
			}
			here, there := newDuplex()
			wg.Go(func() {
				defer there.Close()
				fakeServer(t, there, plain)
			})
			return here, nil
		}
		gw, err := gateway.New(gateway.Config{Demo: http.NotFoundHandler(), Secret: secret, EgressIdle: wait,
			Policy: func(context.Context, sandbox.ID) (gateway.Policy, error) {
				return gateway.Policy{Mode: "egress", Allow: []string{"*:*"}}, nil
			},
			Egress: netguard.Dialer{Resolver: anyName{}, Dial: dial},
			Record: func(c gateway.Connection) {
				if c.Allowed && (c.Host == "" || c.Port == 0) || !c.Allowed && c.Reason == "" {
					t.Errorf("%+v", c)
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ln := &once{conn: make(chan net.Conn, 1), done: make(chan struct{})}
		here, there := newDuplex()
		ln.conn <- there
		// The server ends the connection when nothing more comes, or when it has been refused.
		srv := &http.Server{Handler: gw.Handler(box), ReadTimeout: wait, IdleTimeout: wait}
		wg.Go(func() { _ = srv.Serve(ln) })
		wg.Go(func() { _, _ = here.Write(data) }) // it may not be read to its end
		_, _ = io.Copy(io.Discard, here)
		_ = here.Close()
		close(ln.done)
		_ = srv.Shutdown(context.Background())
		wg.Wait()
	})
}

// wait is how long the fuzzed proxy is patient.
const wait = 20 * time.Millisecond

// fakeServer answers one request. A plain one must be alone and make sense.
func fakeServer(t *testing.T, conn net.Conn, plain bool) {
	var all bytes.Buffer
	r := bufio.NewReader(io.TeeReader(conn, &all))
	req, err := http.ReadRequest(r)
	if err == nil {
		_, err = io.Copy(io.Discard, req.Body)
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	_, _ = io.Copy(io.Discard, r)
	switch {
	case !plain:
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe): // it was cut off
	case err != nil:
		t.Errorf("sent %q: %v", all.Bytes(), err)
	default:
		again := bufio.NewReader(&all)
		if req, err = http.ReadRequest(again); err == nil {
			_, err = io.Copy(io.Discard, req.Body)
		}
		if rest, _ := io.ReadAll(again); err != nil || len(rest) > 0 {
			t.Errorf("%q came behind a request to %s, %v", rest, req.Host, err)
		}
	}
}
