package guest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func withGateway(cfg *guest.Config) { cfg.GatewayAddr = "127.0.0.1:0" }

// program is an HTTP client inside the sandbox.
func program(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(t *testing.T, p *http.Client, s *guest.Server, path string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s%s", s.GatewayAddr(), path), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close() // only read from
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func TestGateway(t *testing.T) {
	t.Parallel()
	s := newServer(t, withGateway)
	left := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("GET /stream", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		for i := 0; r.Context().Err() == nil; i++ {
			_, _ = fmt.Fprintln(w, i)
			if rc.Flush() != nil {
				break
			}
			if i == 5 {
				<-r.Context().Done()
			}
		}
		close(left)
	})
	dial(t, s, mux)
	p := program(t)

	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			want := strings.Repeat(fmt.Sprint(i), 300_000)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://%s/echo", s.GatewayAddr()), strings.NewReader(want))
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := p.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close() // only read from
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != want {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()

	// A stream arrives as it is written, and the gateway learns that the program has gone.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/stream", s.GatewayAddr()), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // only read from
	lines := bufio.NewScanner(resp.Body)
	for i := range 6 {
		if !lines.Scan() || lines.Text() != fmt.Sprint(i) {
			t.Fatalf("%q, %v", lines.Text(), lines.Err())
		}
	}
	cancel()
	<-left
}

func TestGatewayHalfClose(t *testing.T) {
	t.Parallel()
	s := newServer(t, withGateway)
	dial(t, s, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "got %s", b)
	}))
	conn, err := net.Dial("tcp", s.GatewayAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // the test is over
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil || !strings.HasSuffix(string(b), "got hello") {
		t.Errorf("%q, %v", b, err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log(err)
	}
}

func TestGatewayWaitsForAHost(t *testing.T) {
	t.Parallel()
	s := newServer(t, withGateway)
	first := dial(t, s, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "first") }))
	p := program(t)
	if got, err := get(t, p, s, "/"); err != nil || got != "first" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	p.CloseIdleConnections()
	answer := make(chan string, 1)
	go func() {
		got, err := get(t, program(t), s, "/")
		answer <- fmt.Sprint(got, err)
	}()
	dial(t, s, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "second") }))
	if got := <-answer; got != "second<nil>" {
		t.Error(got)
	}
	// The newest host is asked.
	dial(t, s, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "third") }))
	if err := dial(t, s, nil).Close(); err != nil { // and then it isn't the newest any more
		t.Fatal(err)
	}
	for {
		got, err := get(t, program(t), s, "/")
		if err == nil && got == "third" {
			break
		}
		if err == nil && got != "the gateway is not connected at the moment\n" { // still the last one
			t.Fatalf("%q", got)
		}
	}
}

func TestGatewayGivesUp(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(cfg *guest.Config) {
		withGateway(cfg)
		cfg.GatewayWait = 50 * time.Millisecond
	})
	if got, err := get(t, program(t), s, "/"); err == nil {
		t.Errorf("%q", got)
	}
}

func TestGatewayThatIsLostResets(t *testing.T) {
	t.Parallel()
	s := newServer(t, withGateway)
	begun := make(chan struct{})
	c := dial(t, s, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-r.Context().Done()
	}))
	go func() {
		<-begun
		_ = c.Close()
	}()
	if got, err := get(t, program(t), s, "/"); err == nil {
		t.Errorf("%q was taken for the whole answer", got)
	}
}

func TestGatewayAddressInUse(t *testing.T) {
	t.Parallel()
	s := newServer(t, withGateway)
	_, err := guest.NewServer(guest.Config{StateDir: t.TempDir(), Workdir: "/", GatewayAddr: s.GatewayAddr().String()})
	if err == nil {
		t.Error("two guests have one port")
	}
	if a := newServer(t, nil).GatewayAddr(); a != nil {
		t.Error(a)
	}
}

// More programs than the gateway serves at once wait for their turn.
func TestGatewayQueues(t *testing.T) {
	t.Parallel()
	s := newServer(t, withGateway)
	dial(t, s, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	var wg sync.WaitGroup
	for range 400 {
		wg.Go(func() {
			p := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			if got, err := get(t, p, s, "/"); err != nil || got != "ok" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	wg.Wait()
}

// A sandbox that has taken over its guest can't make the host serve any number of streams.
func TestClientHangsUpOnTooMany(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	session, err := yamux.Server(there, cfg)
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	c, err := guest.NewClient(here, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), session.Close() })
	const most = 256
	answers := make(chan error, most+20)
	for i := range most + 20 {
		st, err := session.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		if i < most { // in this order, so that the last ones are those too many
			if _, err := io.WriteString(st, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		go func() {
			b, err := io.ReadAll(st)
			if err == nil && len(b) == 0 {
				err = io.EOF
			}
			answers <- err
		}()
	}
	for range 20 {
		if err := <-answers; err == nil {
			t.Error("answered without the handler")
		}
	}
	close(release)
	for range most {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}
