package server_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// follow sends a GET whose answer is read as it comes.
func (p preview) follow(ctx context.Context, t *testing.T, path string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = p.host
	req.Header.Set(api.HeaderPreviewToken, p.Token)
	res, err := p.s.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// socket opens a WebSocket through the preview.
func (p preview) socket(t *testing.T) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(p.s.URL, "http")+"/ws", &websocket.DialOptions{
		Host: p.host, HTTPHeader: http.Header{"Cookie": {"sandlot_preview=" + p.Token}}, HTTPClient: p.s.HTTP,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

// echo is a program with a WebSocket and server-sent events.
func echo(t *testing.T) (port int, events chan string, left chan error) {
	events, left = make(chan string), make(chan error, 1000)
	over := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			left <- err
			return
		}
		conn.SetReadLimit(1 << 20)
		for err == nil {
			var kind websocket.MessageType
			var b []byte
			if kind, b, err = conn.Read(context.Background()); err == nil {
				err = conn.Write(context.Background(), kind, b)
			}
		}
		_ = conn.CloseNow()
		left <- err
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		for {
			select {
			case e := <-events:
				_, _ = fmt.Fprintf(w, "data: %s\n\n", e)
				_ = rc.Flush()
			case <-r.Context().Done():
				left <- r.Context().Err()
				return
			case <-over:
				return
			}
		}
	})
	port = app(t, mux)
	t.Cleanup(func() { close(over) })
	return port, events, left
}

func TestPreviewWebSocket(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	port, _, left := echo(t)
	v := open(t, s, sb.ID, port)
	conn := v.socket(t)
	conn.SetReadLimit(1 << 20)
	for _, size := range []int{0, 1, 70_000, 1 << 19} {
		want := strings.Repeat("ü", size/2)
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		kind, b, err := conn.Read(t.Context())
		if err != nil || kind != websocket.MessageText || string(b) != want {
			t.Fatalf("%v %d bytes, %v", kind, len(b), err)
		}
	}
	if err := conn.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Error(err)
	}
	if err := <-left; websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("the program sees %v", err)
	}
	// A visitor that vanishes.
	conn = v.socket(t)
	_ = conn.CloseNow()
	if err := <-left; err == nil {
		t.Error("the program doesn't notice")
	}
	// It needs a token like everything else, and the page of another sandbox can't open it.
	for name, header := range map[string]http.Header{
		"no token":     {},
		"another page": {"Cookie": {"sandlot_preview=" + v.Token}, "Origin": {"http://" + open(t, s, create(t, s).ID, port).host}},
	} {
		_, res, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(s.URL, "http")+"/ws", &websocket.DialOptions{Host: v.host, HTTPHeader: header, HTTPClient: s.HTTP})
		if err == nil || res == nil || res.StatusCode/100 != 4 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Each event arrives before the next is made, and the program learns that nobody reads any more.
func TestPreviewEvents(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{Change: func(c *server.Config) { c.ReadTimeout, c.PreviewTimeout = 200*time.Millisecond, time.Minute }})
	sb := create(t, s)
	port, events, left := echo(t)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	res := open(t, s, sb.ID, port).follow(ctx, t, "/events")
	lines := bufio.NewScanner(res.Body)
	for i := range 5 {
		events <- fmt.Sprint(i)
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) || !lines.Scan() {
			t.Fatalf("%d: %q, %v", i, lines.Text(), lines.Err())
		}
		time.Sleep(100 * time.Millisecond) // longer than a body may take in all: a stream isn't one
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// What is open ends with its token, with its sandbox and with the server.
func TestPreviewStreamsEnd(t *testing.T) {
	t.Parallel()
	ends := func(t *testing.T, s *servertest.Server, v preview, port int, end func()) {
		conn := v.socket(t)
		if err := conn.Write(t.Context(), websocket.MessageText, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		res := v.follow(t.Context(), t, "/events")
		end()
		if _, _, err := conn.Read(t.Context()); err == nil {
			t.Error("the WebSocket goes on")
		}
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Error("the events came to a good end")
		}
	}
	t.Run("token", func(t *testing.T) {
		t.Parallel()
		s := servertest.New(t, servertest.Config{})
		sb := create(t, s)
		port, _, _ := echo(t)
		v := open(t, s, sb.ID, port)
		var err error
		if v.Preview, err = s.Preview(t.Context(), sb.ID, api.CreatePreview{Port: port, ExpiresS: 4}); err != nil {
			t.Fatal(err)
		}
		ends(t, s, v, port, func() {})
	})
	t.Run("sandbox", func(t *testing.T) {
		t.Parallel()
		s := servertest.New(t, servertest.Config{})
		sb := create(t, s)
		port, _, _ := echo(t)
		ends(t, s, open(t, s, sb.ID, port), port, func() {
			if _, err := s.Terminate(t.Context(), sb.ID); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		s := servertest.New(t, servertest.Config{Change: func(c *server.Config) { c.Grace = time.Hour }})
		sb := create(t, s)
		port, _, _ := echo(t)
		ends(t, s, open(t, s, sb.ID, port), port, s.Stop) // at once: these two have no end to wait for
	})
}

// A program that sends faster than its visitor reads is held back: nothing in between takes up what it likes.
func TestPreviewHoldsBack(t *testing.T) {
	t.Parallel()
	const size, piece = 100 << 20, 1 << 20
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	var sent atomic.Int64
	sum := make(chan [32]byte, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		b := make([]byte, piece)
		for range size / piece {
			n, err := w.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	mux.HandleFunc("PUT /", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if n != size || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		sum <- [32]byte(h.Sum(nil))
	})
	v := open(t, s, sb.ID, app(t, mux))
	var before, during runtime.MemStats
	runtime.GC() // only what is in use counts
	runtime.ReadMemStats(&before)
	res := v.follow(t.Context(), t, "/")
	if _, err := io.CopyN(io.Discard, res.Body, piece); err != nil {
		t.Fatal(err)
	}
	for last := int64(-1); sent.Load() != last; { // until it can't go on
		last = sent.Load()
		time.Sleep(300 * time.Millisecond)
	}
	const most = 32 << 20 // the kernel's buffers of three connections, above all
	runtime.GC()
	runtime.ReadMemStats(&during)
	if n := sent.Load(); n > most {
		t.Errorf("%d bytes were taken though nobody reads", n)
	}
	if grown := int64(during.HeapAlloc) - int64(before.HeapAlloc); grown > most {
		t.Errorf("it takes up %d bytes of memory", grown)
	}
	if n, err := io.Copy(io.Discard, res.Body); n != size-piece || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}

	body := io.LimitReader(zeros{}, size)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL, io.NopCloser(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host, req.ContentLength = v.host, -1
	req.Header.Set(api.HeaderPreviewToken, v.Token)
	up, err := s.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = up.Body.Close()
	h := sha256.New()
	_, _ = io.CopyN(h, zeros{}, size) // never fails
	if up.StatusCode != 200 || <-sum != [32]byte(h.Sum(nil)) {
		t.Errorf("upload: %s", up.Status)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// A body that breaks off, or comes too slowly, is no whole one for the program.
func TestPreviewHalfABody(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{Change: func(c *server.Config) { c.ReadTimeout = 300 * time.Millisecond }})
	sb := create(t, s)
	ends := make(chan error, 1)
	v := open(t, s, sb.ID, app(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		ends <- err
	})))
	answer := exchange(t, s, "POST / HTTP/1.1\r\nHost: "+v.host+"\r\nContent-Length: 100\r\n"+api.HeaderPreviewToken+": "+v.Token+"\r\n\r\nhalf")
	if !strings.Contains(answer, "400 Bad Request") || !strings.Contains(answer, "incomplete_body") {
		t.Errorf("%s", answer)
	}
	if err := <-ends; err == nil {
		t.Error("the program took half a body for a whole one")
	}
}

// More visitors than a sandbox may have are told so, and make room again.
func TestPreviewsAreCounted(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	port, _, _ := echo(t)
	v := open(t, s, sb.ID, port)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	const most = 256
	for range most {
		v.follow(ctx, t, "/events")
	}
	res := v.ask(t, "GET", "/events", "", v.token()...)
	if res.StatusCode != 503 || res.code(t) != "too_many_requests" || res.Header.Get("Retry-After") == "" {
		t.Errorf("%s %s", res.Status, res.body)
	}
	leave()
	for v.ask(t, "HEAD", "/nothing", "", v.token()...).StatusCode != 404 { // as soon as one has gone
	}
}
