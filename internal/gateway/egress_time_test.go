package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandlot-dev/sandlot/internal/gateway"
)

// duplex is a connection in memory that can be ended in one direction, as a stream of the guest's can.
type duplex struct{ in, out net.Conn }

func newDuplex() (here, there *duplex) {
	a, b := net.Pipe()
	c, d := net.Pipe()
	return &duplex{a, c}, &duplex{d, b}
}

func (d *duplex) Read(p []byte) (int, error)         { return d.in.Read(p) }
func (d *duplex) Write(p []byte) (int, error)        { return d.out.Write(p) }
func (d *duplex) CloseWrite() error                  { return d.out.Close() }
func (d *duplex) Close() error                       { return errors.Join(d.in.Close(), d.out.Close()) }
func (d *duplex) LocalAddr() net.Addr                { return d.in.LocalAddr() }
func (d *duplex) RemoteAddr() net.Addr               { return d.in.RemoteAddr() }
func (d *duplex) SetReadDeadline(t time.Time) error  { return d.in.SetReadDeadline(t) }
func (d *duplex) SetWriteDeadline(t time.Time) error { return d.out.SetWriteDeadline(t) }
func (d *duplex) SetDeadline(t time.Time) error {
	return errors.Join(d.in.SetReadDeadline(t), d.out.SetWriteDeadline(t))
}

// once is a listener with one connection.
type once struct {
	net.Listener
	conn chan net.Conn
	done chan struct{}
}

func (o *once) Accept() (net.Conn, error) {
	select {
	case c := <-o.conn:
		return c, nil
	case <-o.done:
		return nil, net.ErrClosed
	}
}

func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return &net.UnixAddr{} }

// inMemory runs test in a bubble whose time is fast, with a program's connection to the proxy, and serve as the only server of the world.
func inMemory(t *testing.T, serve func(net.Conn), test func(*testing.T, *world, *duplex)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{policy: gateway.Policy{Mode: "egress", Allow: []string{"*"}}, names: map[string][]string{"good.example": {publicIP}}}
		var wg sync.WaitGroup
		w.dial = func(context.Context) (net.Conn, error) {
			here, there := newDuplex()
			wg.Go(func() {
				defer there.Close()
				serve(there)
			})
			return here, nil
		}
		gw, err := gateway.New(w.config())
		if err != nil {
			t.Fatal(err)
		}
		// With the limits of the guest's client.
		srv := &http.Server{Handler: gw.Handler(box), ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute}
		ln := &once{conn: make(chan net.Conn, 1), done: make(chan struct{})}
		here, there := newDuplex()
		ln.conn <- there
		wg.Go(func() { _ = srv.Serve(ln) })
		defer func() {
			_ = here.Close()
			close(ln.done)
			_ = srv.Close()
			wg.Wait()
		}()
		test(t, w, here)
	})
}

// The time limits of HTTP don't cut a tunnel; only idleness does, in the end.
func TestTunnelOutlivesTheLimitsOfHTTP(t *testing.T) {
	inMemory(t, func(conn net.Conn) { _, _ = io.Copy(conn, conn) }, func(t *testing.T, w *world, conn *duplex) {
		_, _ = io.WriteString(conn, "CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
		r := bufio.NewReader(conn)
		if res, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect}); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", res, err)
		}
		for i := range 4 {
			time.Sleep(29 * time.Minute)
			_, _ = fmt.Fprintln(conn, i)
			if line, err := r.ReadString('\n'); err != nil || line != fmt.Sprintln(i) {
				t.Fatalf("after %d silences: %q, %v", i+1, line, err)
			}
		}
		start := time.Now()
		if b, err := io.ReadAll(r); len(b) != 0 || time.Since(start) != 30*time.Minute {
			t.Errorf("%q, %v after %v", b, err, time.Since(start))
		}
		if c := <-w.records; c.Reason != gateway.ReasonCut || c.BytesIn != 8 {
			t.Errorf("%+v", c)
		}
	})
}

// A program that has ended its own direction and then doesn't read is taken for gone; one that reads slowly isn't.
func TestTunnelNoticesWhoHasGone(t *testing.T) {
	pour := func(conn net.Conn) {
		for {
			if _, err := conn.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	}
	inMemory(t, pour, func(t *testing.T, w *world, conn *duplex) {
		_, _ = io.WriteString(conn, "CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := conn.Read(make([]byte, 1<<10)); err != nil { // that it is connected
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute) // not reading alone is no sign
		start := time.Now()
		_ = conn.CloseWrite()
		if c := <-w.records; !c.Allowed || time.Since(start) != time.Minute {
			t.Errorf("%+v after %v", c, time.Since(start))
		}
	})
	inMemory(t, pour, func(t *testing.T, w *world, conn *duplex) {
		_, _ = io.WriteString(conn, "CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := conn.Read(make([]byte, 1<<10)); err != nil { // that it is connected
			t.Fatal(err)
		}
		_ = conn.CloseWrite()
		for range 20 {
			time.Sleep(50 * time.Second)
			if _, err := conn.Read(make([]byte, 64<<10)); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if c := <-w.records; !c.Allowed || time.Since(start) != time.Minute {
			t.Errorf("%+v after %v", c, time.Since(start))
		}
	})
}

// A program that goes while it is sent an answer frees the connection, though nobody reads.
func TestForwardNoticesWhoHasGone(t *testing.T) {
	pour := func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		for {
			if _, err := conn.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	}
	inMemory(t, pour, func(t *testing.T, w *world, conn *duplex) {
		_, _ = io.WriteString(conn, "GET http://good.example/ HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := io.ReadFull(conn, make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_ = conn.CloseWrite() // as the tunnel does, which then leaves the rest unread
		start := time.Now()
		if c := <-w.records; c.Reason != gateway.ReasonCut || time.Since(start) > time.Second {
			t.Errorf("%+v after %v", c, time.Since(start))
		}
	})
}
