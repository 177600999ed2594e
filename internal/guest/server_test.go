package guest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func TestInfo(t *testing.T) {
	t.Parallel()
	deadline := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	s := newServer(t, func(cfg *guest.Config) { cfg.Deadline = deadline })
	c := dial(t, s, nil)
	i, err := c.Info(t.Context())
	if err != nil || i.Version != "test" || i.Ready || !i.Deadline.Equal(deadline) || i.AgentUID != os.Getuid() || i.StartedAt.IsZero() {
		t.Errorf("%+v, %v", i, err)
	}
	later := deadline.Add(time.Hour)
	for range 2 {
		if err := c.Setup(t.Context(), guest.Setup{Deadline: later}); err != nil {
			t.Fatal(err)
		}
		if err := c.Setup(t.Context(), guest.Setup{}); err != nil { // which doesn't change the deadline
			t.Fatal(err)
		}
	}
	if i, err = c.Info(t.Context()); err != nil || !i.Ready || !i.Deadline.Equal(later) {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]guest.Config{
		"nothing":          {},
		"relative state":   {StateDir: "x", Workdir: "/"},
		"relative workdir": {StateDir: t.TempDir(), Workdir: "x"},
		"state is a file":  {StateDir: file, Workdir: "/"},
	} {
		if _, err := guest.NewServer(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// raw speaks HTTP to the guest without the client.
func raw(t *testing.T, s *guest.Server) *http.Client {
	t.Helper()
	here, there := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.ServeConn(context.Background(), there) }()
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = t.Output()
	session, err := yamux.Client(here, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = session.Close()
		<-served
	})
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return session.Open() },
	}}
}

func TestAPIRefuses(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	h := raw(t, s)
	c := setUp(t, dial(t, s, nil))
	cmd := shell("sleep 60")
	cmd.ID = "it"
	start(t, c, cmd)
	for name, tc := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"an unknown path":        {"GET", "/v1/nope", "", 404, ""},
		"another method":         {"DELETE", "/v1/runs", "", 405, ""},
		"no JSON":                {"POST", "/v1/runs", "hello", 400, "bad_request"},
		"half JSON":              {"POST", "/v1/runs", `{"id":`, 400, "bad_request"},
		"an unknown field":       {"POST", "/v1/runs", `{"id":"x","argv":["true"],"arvg":[]}`, 400, "bad_request"},
		"another type":           {"POST", "/v1/runs", `{"id":"x","argv":"true"}`, 400, "bad_request"},
		"two values":             {"POST", "/v1/runs", `{"id":"x","argv":["true"]}{}`, 400, "bad_request"},
		"too much":               {"POST", "/v1/runs", `{"id":"` + strings.Repeat("x", 33<<20), 400, "too_large"},
		"unknown in setup":       {"POST", "/v1/setup", `{"environment":{}}`, 400, "bad_request"},
		"unknown in signal":      {"POST", "/v1/runs/it/signal", `{"sig":"INT"}`, 400, "bad_request"},
		"unknown in resize":      {"POST", "/v1/runs/it/resize", `{"height":2}`, 400, "bad_request"},
		"a size out of range":    {"POST", "/v1/runs/it/resize", `{"rows":70000,"cols":1}`, 400, "bad_request"},
		"an offset in words":     {"GET", "/v1/runs/it/output?offset=two", "", 400, "bad_offset"},
		"too much stdin at once": {"POST", "/v1/runs/it/stdin", strings.Repeat("x", 1<<20), 400, "too_large"},
		"a mode in words":        {"PUT", "/v1/files?path=/tmp/x&mode=rw", "", 400, "bad_mode"},
		"a mode out of range":    {"PUT", "/v1/files?path=/tmp/x&mode=4777", "", 400, "bad_mode"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, "http://guest"+tc.path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := h.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close() // only read from
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tc.status || !strings.Contains(string(b), tc.code) {
				t.Errorf("%d %s, %v; want %d %s", resp.StatusCode, b, err, tc.status, tc.code)
			}
		})
	}
	kill(t, c, "it")
}

// A connection that is cut in the middle of an upload leaves nothing behind.
func TestUploadThatIsCut(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	dir := t.TempDir()
	c := dial(t, s, nil)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := c.WriteFile(t.Context(), dir+"/f", r, 0)
		done <- err
	}()
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_ = w.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-done; err == nil {
		t.Error("it was taken for a whole file")
	}
	s.Shutdown(t.Context()) // when this returns, so have the handlers
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestShutdownEndsEverything(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(cfg *guest.Config) { cfg.Grace = 200 * time.Millisecond })
	c := setUp(t, dial(t, s, nil))
	polite := shell("trap 'echo bye; exit 2' TERM; echo ready; while :; do sleep 0.02; done")
	rude := shell(forest)
	start(t, c, polite)
	start(t, c, rude)
	waitFor(t, c, polite.ID, "ready")
	pids := forestOf(t, c, rude.ID)
	ends := make(chan *result, 2)
	for _, id := range []string{polite.ID, rude.ID} {
		go func() { ends <- follow(t, c, id, 0) }()
	}
	down := make(chan struct{})
	go func() {
		defer close(down)
		s.Shutdown(context.Background())
	}()
	for range 2 { // who follows a run reads its true end
		res := <-ends
		switch res.end.ID {
		case polite.ID:
			wantExit(t, res.end, 2)
			if got := res.stdout.String(); got != "ready\nbye\n" {
				t.Errorf("%q", got)
			}
		case rude.ID:
			if res.end.Signal != "SIGKILL" || res.end.State != guest.StateSignaled {
				t.Errorf("%+v", res.end)
			}
		}
	}
	<-down
	<-s.Done()
	wantGone(t, pids)
	<-c.Done()
	s.Shutdown(t.Context()) // again
	here, there := net.Pipe()
	if err := s.ServeConn(t.Context(), there); err != nil {
		t.Error(err)
	}
	if _, err := here.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestNoStartDuringShutdown(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(cfg *guest.Config) { cfg.Grace = time.Minute })
	c := setUp(t, dial(t, s, nil))
	leave := filepath.Join(t.TempDir(), "leave")
	cmd := shell("trap 'echo asked' TERM; echo ready; while [ ! -e " + leave + " ]; do sleep 0.02; done")
	start(t, c, cmd)
	waitFor(t, c, cmd.ID, "ready")
	go s.Shutdown(context.Background())
	waitFor(t, c, cmd.ID, "asked")
	_, err := c.Start(t.Context(), shell("true"))
	wantRefused(t, err, 409, "shutting_down", "")
	if err := os.WriteFile(leave, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
}

func TestDeadlineEndsTheGuest(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(cfg *guest.Config) { cfg.Deadline = time.Now().Add(time.Hour) })
	c := setUp(t, dial(t, s, nil))
	cmd := shell("sleep 60")
	start(t, c, cmd)
	if err := c.Setup(t.Context(), guest.Setup{Deadline: time.Now().Add(100 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	if res := follow(t, c, cmd.ID, 0); res.end.Signal != "SIGTERM" {
		t.Errorf("%+v", res.end)
	}
	<-s.Done()
}

func TestServeOnAListener(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	path := filepath.Join(t.TempDir(), "s")
	listen := func() (context.CancelFunc, chan error) {
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, ln) }()
		return cancel, served
	}
	connect := func() *guest.Client {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := guest.NewClient(conn, nil)
		if err != nil {
			t.Fatal(err)
		}
		return setUp(t, c)
	}
	cancel, served := listen()
	a, b := connect(), connect()
	cmd := shell("cat")
	cmd.Open = true
	start(t, a, cmd)
	if _, err := b.Run(t.Context(), cmd.ID); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-b.Done() // a context that ends takes the connections along
	cancel, served = listen()
	defer cancel()
	c := connect()
	if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("still there"), true); err != nil {
		t.Error(err)
	}
	if got := follow(t, c, cmd.ID, 0).stdout.String(); got != "still there" {
		t.Errorf("%q", got)
	}
	s.Shutdown(t.Context())
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-c.Done()
	_ = b.Close()
}

func TestServeTellsABrokenListener(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	ln := &brokenListener{errs: []error{syscall.EMFILE, syscall.ECONNABORTED, errors.New("broken")}} // the first two pass
	if err := s.Serve(t.Context(), ln); err == nil || !strings.Contains(err.Error(), "broken") || len(ln.errs) > 0 {
		t.Error(err)
	}
}

type brokenListener struct {
	net.Listener
	errs []error
}

func (l *brokenListener) Accept() (net.Conn, error) {
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}

func (*brokenListener) Close() error { return nil }
