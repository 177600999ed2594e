package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/fake"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a real store and a fake engine, with at most one manager at a time on them.
type rig struct {
	store   *store.Store
	world   *fake.World
	account string
	runs    string // where output is recorded
	hooks   hooks
	claims  fake.Config // what the engine says that it can do

	m    *lifecycle.Manager
	eng  *wrapped
	stop func() // ends the manager as a restart of the server would
}

// hooks lets tests change how the engine behaves at any time.
type hooks struct {
	mu sync.Mutex
	by map[fake.Op]func(ctx context.Context, ref engine.Ref) error
}

func (h *hooks) set(op fake.Op, do func(ctx context.Context, ref engine.Ref) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil {
		h.by = make(map[fake.Op]func(context.Context, engine.Ref) error)
	}
	h.by[op] = do
}

func (h *hooks) call(ctx context.Context, op fake.Op, ref engine.Ref) error {
	h.mu.Lock()
	do := h.by[op]
	h.mu.Unlock()
	if do == nil {
		return nil
	}
	return do(ctx, ref)
}

// failing is a hook that fails n times.
func failing(n int) func(context.Context, engine.Ref) error {
	var mu sync.Mutex
	return func(context.Context, engine.Ref) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n >= 0 {
			return errors.New("boom")
		}
		return nil
	}
}

// wrapped is an engine whose connections can be cut.
type wrapped struct {
	engine.Engine
	mu    sync.Mutex
	conns []net.Conn
}

func (e *wrapped) Unwrap() engine.Engine { return e.Engine }

func (e *wrapped) Dial(ctx context.Context, ref engine.Ref) (net.Conn, error) {
	c, err := e.Engine.Dial(ctx, ref)
	if err == nil {
		e.mu.Lock()
		e.conns = append(e.conns, c)
		e.mu.Unlock()
	}
	return c, err
}

// cut breaks every connection.
func (e *wrapped) cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.conns {
		_ = c.Close()
	}
	e.conns = nil
}

type gateway struct{}

func (gateway) Handler(sandbox.ID) http.Handler { return http.NotFoundHandler() }

func (gateway) CheckPolicy(sandbox.Network) error { return nil }

func (gateway) Build(sandbox.Network) (http.Handler, map[string]string, func()) {
	return http.NotFoundHandler(), nil, func() {}
}

func (gateway) PolicyChanged(context.Context, sandbox.ID) {}

func (gateway) Forget(sandbox.ID) {}

func (gateway) Env(id sandbox.ID) map[string]string {
	return map[string]string{"ANTHROPIC_API_KEY": "token of " + string(id)}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	st, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "sandlot.db"))
	if err != nil {
		t.Fatal(err)
	}
	a, _, err := st.EnsureAccount(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{store: st, world: fake.NewWorld(t.TempDir()), account: a.ID, runs: filepath.Join(t.TempDir(), "runs")}
	t.Cleanup(func() {
		if err := errors.Join(r.world.Close(), st.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// start begins a manager; change, if not nil, changes its configuration.
func (r *rig) start(t *testing.T, change func(*lifecycle.Config)) {
	t.Helper()
	r.open(t, change)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	m, eng := r.m, r.eng
	go func() { served <- m.Serve(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-served, eng.Close()); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(r.stop)
}

// open makes a manager that doesn't serve.
func (r *rig) open(t *testing.T, change func(*lifecycle.Config)) {
	t.Helper()
	claims := r.claims
	claims.Hook = r.hooks.call
	r.eng = &wrapped{Engine: fake.Open(r.world, claims)}
	cfg := lifecycle.Config{
		Store: r.store, Engines: []engine.Engine{r.eng}, Gateway: gateway{},
		Env: map[string]string{"PATH": "/usr/bin:/bin", "OURS": "ours", "BOTH": "ours"},
		Log: slog.New(slog.NewTextHandler(logTo{t}, nil)), Grace: 2 * time.Second,
		ReapEvery: 20 * time.Millisecond, ReconcileEvery: time.Hour, RunsDir: r.runs,
	}
	if change != nil {
		change(&cfg)
	}
	m, err := lifecycle.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
}

// logTo writes to a test's log.
type logTo struct{ t *testing.T }

func (l logTo) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// running makes a sandbox and waits until it runs.
func (r *rig) running(t *testing.T) sandbox.Sandbox {
	t.Helper()
	sb, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account})
	if err != nil {
		t.Fatal(err)
	}
	sb, err = r.m.WaitReady(within(t), r.account, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// sh starts a shell script.
func (r *rig) sh(t *testing.T, sb sandbox.Sandbox, script string) sandbox.Run {
	t.Helper()
	run, err := r.m.StartRun(within(t), sandbox.Run{Account: r.account, Sandbox: sb.ID, Kind: sandbox.RunExec},
		guest.Command{Argv: []string{"sh", "-c", script}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// output reads a run's output to its end.
func (r *rig) output(t *testing.T, run sandbox.Run) string {
	t.Helper()
	var out bytes.Buffer
	for f, err := range r.m.Output(within(t), run, 0) {
		if err != nil {
			t.Fatalf("output: %v", err)
		}
		if f.Kind == guest.Stdout {
			out.Write(f.Data)
		}
	}
	return out.String()
}

// reach waits until the sandbox is in one of the states.
func (r *rig) reach(t *testing.T, id sandbox.ID, states ...sandbox.State) sandbox.Sandbox {
	t.Helper()
	ctx := within(t)
	changed := r.store.Watch(ctx)
	for {
		sb, err := r.store.Sandbox(ctx, "", id)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(states, sb.State) {
			return sb
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("it is %s, waited for %v", sb.State, states)
		}
	}
}

// kinds lists the kinds of the sandbox's events.
func (r *rig) kinds(t *testing.T, id sandbox.ID) []string {
	t.Helper()
	evs, err := r.store.Events(t.Context(), r.account, id, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, ev := range evs {
		if ev.Text == "" {
			t.Errorf("event %s says nothing", ev.Kind)
		}
		kinds = append(kinds, ev.Kind)
	}
	return kinds
}

// held lists what the engine holds.
func (r *rig) held(t *testing.T) (ids []sandbox.ID) {
	t.Helper()
	for item, err := range fake.Open(r.world, fake.Config{}).List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, item.Ref.ID)
	}
	return ids
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func wantProblem(t *testing.T, err error, class error, code, field string) {
	t.Helper()
	p := (*sandbox.Problem)(nil)
	if !errors.As(err, &p) || !errors.Is(err, class) || p.Code != code || p.Field != field || p.Detail == "" {
		t.Errorf("the error is %v (%+v), want class %q, code %s, field %q", err, p, class, code, field)
	}
}
