package server_test

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
	"github.com/sandlot-dev/sandlot/internal/store"
)

func TestMain(m *testing.M) {
	// Where the tests run without a terminal, SIGHUP may be ignored, and so it would be by what they start, for good.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	goleak.VerifyTestMain(m)
}

var errUnexpected = errors.New("not expected by this test, with a secret: hunter2")

// stubManager answers what a test tells it to; what it wasn't told is errUnexpected.
type stubManager struct {
	server.Manager // what no test needs

	create    func(lifecycle.Request) (sandbox.Sandbox, error)
	waitReady func(context.Context, sandbox.ID) (sandbox.Sandbox, error)
	get       func(account string, id sandbox.ID) (sandbox.Sandbox, error)
	list      func(sandbox.Filter) ([]sandbox.Sandbox, string, error)
	terminate func(context.Context, sandbox.ID) (sandbox.Sandbox, error)
	suspend   func(context.Context, sandbox.ID) (sandbox.Sandbox, error) // and resume
	startRun  func(sandbox.Run, guest.Command) (sandbox.Run, error)
	output    func(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error]
	run       func(id string) (sandbox.Run, error)
	signal    func(run, sig string) error
	guest     func(sandbox.ID) (*guest.Client, error)
}

func (m *stubManager) Create(_ context.Context, r lifecycle.Request) (sandbox.Sandbox, error) {
	if m.create == nil {
		return sandbox.Sandbox{}, errUnexpected
	}
	return m.create(r)
}

func (m *stubManager) WaitReady(ctx context.Context, _ string, id sandbox.ID) (sandbox.Sandbox, error) {
	if m.waitReady == nil {
		return sandbox.Sandbox{}, errUnexpected
	}
	return m.waitReady(ctx, id)
}

func (m *stubManager) Sandbox(_ context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error) {
	if m.get == nil {
		return sandbox.Sandbox{}, errUnexpected
	}
	return m.get(account, id)
}

func (m *stubManager) Sandboxes(_ context.Context, f sandbox.Filter) ([]sandbox.Sandbox, string, error) {
	if m.list == nil {
		return nil, "", errUnexpected
	}
	return m.list(f)
}

func (m *stubManager) Terminate(ctx context.Context, _ string, id sandbox.ID, _ string) (sandbox.Sandbox, error) {
	if m.terminate == nil {
		return sandbox.Sandbox{}, errUnexpected
	}
	return m.terminate(ctx, id)
}

func (m *stubManager) Suspend(ctx context.Context, _ string, id sandbox.ID) (sandbox.Sandbox, error) {
	if m.suspend == nil {
		return sandbox.Sandbox{}, errUnexpected
	}
	return m.suspend(ctx, id)
}

func (m *stubManager) Resume(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error) {
	return m.Suspend(ctx, account, id)
}

func (m *stubManager) Guest(_ context.Context, _ string, id sandbox.ID) (*guest.Client, error) {
	if m.guest == nil {
		return nil, errUnexpected
	}
	return m.guest(id)
}

func (m *stubManager) StartRun(_ context.Context, r sandbox.Run, cmd guest.Command, _ func(context.Context, sandbox.Run) error) (sandbox.Run, error) {
	if m.startRun == nil {
		return sandbox.Run{}, errUnexpected
	}
	return m.startRun(r, cmd)
}

func (m *stubManager) RunShort(ctx context.Context, r sandbox.Run, cmd guest.Command) (sandbox.Run, []guest.Frame, error) {
	r, err := m.StartRun(ctx, r, cmd, nil)
	return r, nil, err
}

func (m *stubManager) Output(ctx context.Context, r sandbox.Run, offset int64) iter.Seq2[guest.Frame, error] {
	if m.output == nil {
		return func(yield func(guest.Frame, error) bool) { yield(guest.Frame{}, errUnexpected) }
	}
	return m.output(ctx, r, offset)
}

func (m *stubManager) Run(_ context.Context, _, id string) (sandbox.Run, error) {
	if m.run == nil {
		return sandbox.Run{}, errUnexpected
	}
	return m.run(id)
}

func (m *stubManager) WaitRun(ctx context.Context, account, id string) (sandbox.Run, error) {
	return m.Run(ctx, account, id)
}

func (m *stubManager) Runs(ctx context.Context, f sandbox.RunFilter) ([]sandbox.Run, string, error) {
	r, err := m.Run(ctx, f.Account, "run_1")
	return []sandbox.Run{r}, "", err
}

func (m *stubManager) Signal(_ context.Context, _, run, sig string) error {
	if m.signal == nil {
		return errUnexpected
	}
	return m.signal(run, sig)
}

type otherSessions = server.Sessions

// stubSessions is the same for sessions.
type stubSessions struct {
	otherSessions // what no test needs

	prompt func(claude.Prompt) (claude.Turn, error)
	events func(ctx context.Context, session string, after int64, follow bool) iter.Seq2[sandbox.SessionEvent, error]
	get    func(id string) (sandbox.Session, bool, error)
	turn   sandbox.Turn
}

func (s *stubSessions) Prompt(_ context.Context, _ string, p claude.Prompt) (claude.Turn, error) {
	if s.prompt == nil {
		return claude.Turn{}, errUnexpected
	}
	return s.prompt(p)
}

func (s *stubSessions) Events(ctx context.Context, _, session string, after int64, follow bool) iter.Seq2[sandbox.SessionEvent, error] {
	if s.events == nil {
		return func(yield func(sandbox.SessionEvent, error) bool) { yield(sandbox.SessionEvent{}, errUnexpected) }
	}
	return s.events(ctx, session, after, follow)
}

func (s *stubSessions) Session(_ context.Context, _, id string) (claude.State, error) {
	if s.get == nil {
		return claude.State{}, errUnexpected
	}
	ses, busy, err := s.get(id)
	st := claude.State{Session: ses, Activity: claude.Idle}
	if busy {
		st.Activity = claude.Working
	}
	return st, err
}

func (s *stubSessions) Sessions(ctx context.Context, _ string) ([]claude.State, error) {
	st, err := s.Session(ctx, "", "ses_1")
	return []claude.State{st}, err
}

func (s *stubSessions) Interrupt(ctx context.Context, _, session string) error {
	_, err := s.Session(ctx, "", session)
	return err
}

func (s *stubSessions) Turn(context.Context, string, string, string) (sandbox.Turn, error) {
	return s.turn, nil
}

// rig is a server over stubs and a real store.
type rig struct {
	*client.Client
	URL      string
	Key      string
	Account  string
	Store    *store.Store
	Manager  *stubManager
	Sessions *stubSessions
	Log      *servertest.Log
	Stop     func() // shuts the server down and waits; may be called twice
}

// newRig starts a server. change may alter its configuration first.
func newRig(t *testing.T, change func(*server.Config)) *rig {
	t.Helper()
	ctx := t.Context()
	st, err := store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{Store: st, Manager: &stubManager{}, Sessions: &stubSessions{}, Log: &servertest.Log{}}
	r.Account, r.Key = servertest.AddAccount(t, st, "first")
	cfg := server.Config{
		Manager: r.Manager, Sessions: r.Sessions, Store: st, Secrets: servertest.Secrets(t, st), Version: "1.2.3",
		Log: slog.New(slog.NewTextHandler(r.Log, &slog.HandlerOptions{Level: slog.LevelDebug})), Grace: 2 * time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(serving, ln) }()
	r.Stop = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(r.Stop)
	r.URL = "http://" + ln.Addr().String()
	r.Client = client.New(r.URL, r.Key)
	r.Backoff = time.Millisecond
	t.Cleanup(r.HTTP.CloseIdleConnections)
	return r
}

// agedStore issues sign-in tokens that have expired.
type agedStore struct{ r *rig }

func (s agedStore) AddSignin(ctx context.Context, hash []byte, account string, expires time.Time) error {
	return s.r.Store.AddSignin(ctx, hash, account, expires.Add(-time.Hour))
}
