package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// listener listens on loopback and does what serve says with each connection.
func listener(t *testing.T, address string, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		if strings.Contains(address, "::1") {
			t.Skip("no IPv6 here: ", err)
		}
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
				defer conn.Close() // the test looks at the other end
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close() // ends Accept
		wg.Wait()
	})
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

// closedPort is a port on which nothing listens.
func closedPort(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // which is the point
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

func dialPort(t *testing.T, c *guest.Client, port uint16) halfCloser {
	t.Helper()
	conn, err := c.DialPort(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(halfCloser)
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// All that was sent arrives, in both directions at once, and half a close is only half a close.
func TestDialPort(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			port := listener(t, address, func(conn *net.TCPConn) {
				all, err := io.ReadAll(conn)
				if err != nil {
					t.Error(err)
				}
				_, _ = conn.Write(slices.Concat([]byte("got "), all))
			})
			c := newClient(t, nil)
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					sent := make([]byte, 700_000)
					_, _ = rand.Read(sent) // never fails
					conn := dialPort(t, c, port)
					if n, err := conn.Write(sent); n != len(sent) || err != nil {
						t.Errorf("%d, %v", n, err)
					}
					if err := conn.CloseWrite(); err != nil {
						t.Error(err)
					}
					if _, err := conn.Write([]byte("x")); err == nil {
						t.Error("written after the end")
					}
					got, err := io.ReadAll(conn)
					if err != nil || !bytes.Equal(got, slices.Concat([]byte("got "), sent)) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// A program that has said all may still listen.
func TestPortEndsFirst(t *testing.T) {
	t.Parallel()
	heard := make(chan string, 1)
	port := listener(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "hello")
		_ = conn.CloseWrite()
		all, err := io.ReadAll(conn)
		if err != nil {
			t.Error(err)
		}
		heard <- string(all)
	})
	conn := dialPort(t, newClient(t, nil), port)
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	for _, part := range []string{"and ", "more"} {
		if _, err := io.WriteString(conn, part); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.Close()
	if got := <-heard; got != "and more" {
		t.Errorf("%q", got)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// A program that breaks a connection off hasn't ended it.
func TestPortResets(t *testing.T) {
	t.Parallel()
	port := listener(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "half")
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.SetLinger(0)
	})
	conn := dialPort(t, newClient(t, nil), port)
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("x"))
	if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
}

// The program learns at once that the host has hung up, also while neither side takes what the other sends.
func TestHostHangsUp(t *testing.T) {
	t.Parallel()
	left := make(chan error, 1)
	port := listener(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		_, err := io.Copy(conn, endlessReader{})
		left <- err
	})
	c := newClient(t, nil)
	conn := dialPort(t, c, port)
	if _, err := io.ReadFull(conn, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if err := <-left; err == nil {
		t.Error("it could go on")
	}

	// A Read and a Write that wait end with the connection.
	deaf := listener(t, "127.0.0.1:0", func(conn *net.TCPConn) { <-left })
	conn = dialPort(t, c, deaf)
	ends := make(chan error, 2)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		ends <- err
	}()
	go func() {
		_, err := io.Copy(onlyWriter{conn}, endlessReader{})
		ends <- err
	}()
	select {
	case err := <-ends:
		t.Fatalf("it ended by itself: %v", err)
	case <-time.After(100 * time.Millisecond): // there is no event for nothing happening
	}
	_ = conn.Close()
	for range 2 {
		if err := <-ends; err == nil {
			t.Error("no error")
		}
	}
	left <- nil
}

type endlessReader struct{}

func (endlessReader) Read(b []byte) (int, error) { return len(b), nil }

type onlyWriter struct{ io.Writer }

// Deadlines pass without harm to what comes later.
func TestPortDeadline(t *testing.T) {
	t.Parallel()
	port := listener(t, "127.0.0.1:0", func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	conn := dialPort(t, newClient(t, nil), port)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 1))
	if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
		t.Errorf("%v", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 9)); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestPortRefusals(t *testing.T) {
	t.Parallel()
	s := newServer(t, withGateway)
	c := dial(t, s, nil)
	_, err := c.DialPort(t.Context(), closedPort(t))
	wantRefused(t, err, 404, "port_closed", "port")
	_, err = c.DialPort(t.Context(), uint16(s.GatewayAddr().(*net.TCPAddr).Port))
	wantRefused(t, err, 409, "port_reserved", "port")
	_, err = c.DialPort(t.Context(), 0)
	wantRefused(t, err, 400, "bad_port", "port")

	h := raw(t, s)
	for _, port := range []string{"65536", "-1", "x", "3000/connect/x", "+80", "0x50"} {
		resp, err := h.Post("http://guest/v1/ports/"+port+"/connect", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("port %s: %s", port, resp.Status)
		}
	}
}

// A guest that ends resets what is open, and gives nobody an early end.
func TestPortOfALostGuest(t *testing.T) {
	t.Parallel()
	reset := make(chan error, 1)
	port := listener(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		_, err := io.Copy(io.Discard, conn)
		reset <- err
	})
	s := newServer(t, nil)
	c := dial(t, s, nil)
	conn := dialPort(t, c, port)
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	s.Shutdown(t.Context())
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the host: %v", err)
	}
	if err := <-reset; err == nil {
		t.Error("the program took it for the end")
	}
	if _, err := c.DialPort(t.Context(), port); !errors.Is(err, guest.ErrLost) {
		t.Errorf("%v", err)
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	s := newServer(t, withGateway)
	c := dial(t, s, nil)
	nothing := func(*net.TCPConn) {}
	want := []uint16{listener(t, "127.0.0.1:0", nothing), listener(t, "0.0.0.0:0", nothing), listener(t, ":0", nothing)}
	if ln, err := net.Listen("tcp", "[::1]:0"); err == nil {
		defer ln.Close() // the test is over
		want = append(want, uint16(ln.Addr().(*net.TCPAddr).Port))
	}
	elsewhere := listener(t, "127.0.0.2:0", nothing)
	all, err := c.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	find := func(port uint16) (guest.Port, bool) {
		i := slices.IndexFunc(all, func(p guest.Port) bool { return p.Port == port })
		if i < 0 {
			return guest.Port{}, false
		}
		return all[i], true
	}
	for _, port := range want {
		if p, ok := find(port); !ok || p.PID != os.Getpid() || p.Process == "" {
			t.Errorf("port %d: %+v in %+v", port, p, all)
		}
	}
	for _, port := range []uint16{elsewhere, closedPort(t), uint16(s.GatewayAddr().(*net.TCPAddr).Port)} {
		if p, ok := find(port); ok && p.PID == os.Getpid() {
			t.Errorf("it can't be reached, but is listed: %+v", p)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b guest.Port) int { return int(a.Port) - int(b.Port) }) {
		t.Errorf("not in order: %+v", all)
	}
}

// The host takes nothing on trust when a sandbox answers in its guest's place.
func TestClientBelievesNoPort(t *testing.T) {
	t.Parallel()
	switched := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sandlot-port\r\n\r\n"
	for name, tc := range map[string]struct {
		says  string
		dials bool
	}{
		"nothing":            {"", false},
		"not HTTP":           {"hello\r\n\r\n", false},
		"endless headers":    {"HTTP/1.1 101 OK\r\n" + strings.Repeat("A: "+strings.Repeat("a", 1000)+"\r\n", 200), false},
		"a bare no":          {"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", false},
		"an endless no":      {"HTTP/1.1 400 No\r\nContent-Length: 99999999\r\n\r\n" + strings.Repeat(" ", 200_000), false},
		"yes, but no switch": {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false},
		"a huge segment":     {switched + "\xff\xff\xff\xff" + strings.Repeat("x", 100_000), true},
		"half a segment":     {switched + "\x00\x00\x00\x09x", true},
		"half a header":      {switched + "\x00\x00", true},
		"no end":             {switched, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(conn, tc.says)
				_ = conn.Close()
			})
			conn, err := c.DialPort(t.Context(), 80)
			if (err == nil) != tc.dials {
				t.Fatalf("dial: %v", err)
			}
			if err != nil {
				return
			}
			defer conn.Close() // the test is over
			if b, err := io.ReadAll(conn); err == nil {
				t.Errorf("%q was taken for all", b)
			}
		})
	}
	t.Run("ports", func(t *testing.T) {
		t.Parallel()
		c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `[{"port":9,"pid":-4,"process":"`+strings.Repeat("n", 500)+`"},{"port":0},{"port":7,"process":"a\u001b[2Jb"},{"port":9}]`)
		})
		all, err := c.Ports(t.Context())
		if err != nil || len(all) != 2 || all[0].Port != 7 || all[0].Process != "a\uFFFD[2Jb" || all[1].PID != 0 || len(all[1].Process) != 64 {
			t.Errorf("%+v, %v", all, err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		t.Parallel()
		asked, over := make(chan struct{}), make(chan struct{})
		c := hostile(t, func(http.ResponseWriter, *http.Request) {
			close(asked)
			<-over
		})
		defer close(over)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-asked
			cancel()
		}()
		if _, err := c.DialPort(ctx, 80); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// A guest that goes on sending after the host has hung up gets no further connections for those that it holds.
func TestClientBoundsWhatItHolds(t *testing.T) {
	t.Parallel()
	const most = 512
	over := make(chan struct{})
	c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close() // the test is over
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\n\r\n")
		_ = rw.Flush()
		<-over // and never hangs up
	})
	defer close(over)
	for range most {
		conn, err := c.DialPort(t.Context(), 80)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if conn, err := c.DialPort(ctx, 80); err == nil {
		_ = conn.Close()
		t.Error("one more")
	}
}

// A well-behaved guest's places come back.
func TestPlacesComeBack(t *testing.T) {
	t.Parallel()
	port := listener(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil {
			_, _ = io.WriteString(conn, line)
		}
	})
	c := newClient(t, nil)
	for i := range 520 {
		conn, err := c.DialPort(t.Context(), port)
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if i%100 == 0 {
			_, _ = io.WriteString(conn, "hi\n")
			if b, err := io.ReadAll(conn); err != nil || string(b) != "hi\n" {
				t.Errorf("%q, %v", b, err)
			}
		}
		_ = conn.Close()
	}
}
