// Package lifecycle makes sandboxes, keeps them, and brings them to an end: the only package that changes their state, and the
// portable type over the engines. The row comes first; whatever dies in between, a pass finds the row and goes on.
//
// Each live sandbox has one keeper, a goroutine that reads the row, does what the state asks for (make it, hold the connection to
// its guest, destroy it) and reads again. Who wants a sandbox to stop writes that into the row and pokes the keeper.
package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Store is what the manager needs of store.Store.
type Store interface {
	EnsureVolume(ctx context.Context, account, name string) (sandbox.Volume, error)
	ForgetVolume(ctx context.Context, id string) error
	Admit(ctx context.Context, sb sandbox.Sandbox) error
	Transition(ctx context.Context, id sandbox.ID, run string, to sandbox.State, change func(*sandbox.Sandbox)) (sandbox.Sandbox, error)
	Amend(ctx context.Context, id sandbox.ID, run string, change func(*sandbox.Sandbox)) (sandbox.Sandbox, error)
	Sandbox(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error)
	Sandboxes(ctx context.Context, f sandbox.Filter) (all []sandbox.Sandbox, next string, err error)
	Due(ctx context.Context, now time.Time, limit int) ([]sandbox.Sandbox, error)
	AppendEvent(ctx context.Context, ev sandbox.Event) (int64, error)
	Watch(ctx context.Context) <-chan struct{}

	InsertRun(ctx context.Context, r sandbox.Run) error
	Run(ctx context.Context, account, id string) (sandbox.Run, error)
	Runs(ctx context.Context, f sandbox.RunFilter) (all []sandbox.Run, next string, err error)
	RunningRuns(ctx context.Context) ([]sandbox.Run, error)
	EndRun(ctx context.Context, r sandbox.Run) error
	ForgetOutput(ctx context.Context, ids []string) error

	PutImage(ctx context.Context, i sandbox.StoredImage) (sandbox.StoredImage, error)
	Image(ctx context.Context, account, id string) (sandbox.StoredImage, error)
	FindImage(ctx context.Context, account, engine, name, recipe string) (sandbox.StoredImage, error)
	Images(ctx context.Context, account string) ([]sandbox.StoredImage, error)
	TouchImage(ctx context.Context, id string) error
	DeleteImage(ctx context.Context, account, id string) error
	ForgetImages(ctx context.Context, before time.Time) error
}

// Secrets opens the secrets of accounts.
type Secrets interface {
	Values(ctx context.Context, account, name string) (map[string]string, error)
}

// Gateway is the way from a sandbox to the model, and to the hosts that its policy allows.
type Gateway interface {
	BuildGateway
	// CheckPolicy says what is wrong with a policy's allow-list, as a Problem.
	CheckPolicy(n sandbox.Network) error
	// PolicyChanged ends the connections of sandbox id that its policy doesn't allow any more.
	PolicyChanged(ctx context.Context, id sandbox.ID)
	// Forget is told that sandbox id has ended.
	Forget(id sandbox.ID)
	// Handler answers the requests that come out of sandbox id.
	Handler(id sandbox.ID) http.Handler
	// Env is what the processes of sandbox id need to find it.
	Env(id sandbox.ID) map[string]string
}

// Config says how a Manager works. Store and Engines are required.
type Config struct {
	Store   Store
	Engines []engine.Engine   // the first is the default
	Gateway Gateway           // nil = none
	Secrets Secrets           // nil = none
	Env     map[string]string // of every process in every sandbox: PATH, …
	// EnvOf adds what depends on the sandbox, such as HOME. nil = nothing.
	EnvOf func(sandbox.Sandbox) map[string]string
	// Prepare is called when a sandbox's guest is up, before the sandbox is running. A sandbox for which it fails ends as Error. It
	// may be called again for the same sandbox. nil = nothing to prepare.
	Prepare func(ctx context.Context, c *guest.Client, sb sandbox.Sandbox) error
	Log     *slog.Logger // nil = silence

	DefaultTimeout time.Duration // of a sandbox that asks for none; default: 1 hour
	MaxTimeout     time.Duration // default: 7 days
	MaxSuspended   time.Duration // for which a sandbox may be suspended; then it ends; default: 30 days
	Grace          time.Duration // that processes have between TERM and KILL when a sandbox ends; default: 5 s
	OrphanGrace    time.Duration // for which what no row wants is left alone; default: 5 minutes
	ReapEvery      time.Duration // default: 2 s
	ReconcileEvery time.Duration // default: 1 minute
	CollectEvery   time.Duration // between two searches for images, and for output, that nobody needs; default: 1 hour

	RunsDir         string        // where the output of runs is kept beside the sandboxes; "" = nowhere
	RunBytes        int64         // of one run's output, its beginning and its end; default: 4 MiB
	AccountRunBytes int64         // of all output of an account, the newest; default: 1 GiB
	RunRetention    time.Duration // for which output is kept; default: 30 days
}

// Limits on single steps. An engine that takes longer is taken to hang.
const (
	createLimit = 10 * time.Minute

	prepareImageLimit = time.Hour
	connectLimit      = 20 * time.Second
	prepareLimit      = 2 * time.Minute
	destroyLimit      = time.Minute
	settleLimit       = 30 * time.Second // for what must be recorded though its caller is gone
	deadlineGrace     = 30 * time.Second // after which a guest ends itself, though nobody has ended it
	patience          = 10 * time.Second // for a running sandbox's connection to come back
)

// Manager drives every sandbox. All methods are safe for concurrent use. Work needs Serve to be running.
type Manager struct {
	cfg     Config
	log     *slog.Logger
	engines map[string]engine.Engine

	life context.Context // of every goroutine of the manager; ends with Serve
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	closed  bool // no new goroutine may start
	keepers map[sandbox.ID]*keeper
	// refusals are why sandboxes could not be created, suspended or resumed, for those who asked; bounded in number.
	refusals map[sandbox.ID]error
	retries  map[sandbox.ID]retry // of those that could not be destroyed
	seen     map[orphan]time.Time // when a reconcile first saw an orphan whose age the engine doesn't know

	recordings *recordings // nil = none
}

// retry says when to try again what failed.
type retry struct {
	failures int
	next     time.Time
}

// New returns a Manager. It does nothing until Serve.
func New(cfg Config) (*Manager, error) {
	if cfg.Store == nil || len(cfg.Engines) == 0 {
		return nil, errors.New("lifecycle: a store and an engine are needed")
	}
	cfg.DefaultTimeout = cmp.Or(cfg.DefaultTimeout, time.Hour)
	cfg.MaxTimeout = cmp.Or(cfg.MaxTimeout, 7*24*time.Hour)
	cfg.MaxSuspended = cmp.Or(cfg.MaxSuspended, 30*24*time.Hour)
	cfg.Grace = cmp.Or(cfg.Grace, 5*time.Second)
	cfg.OrphanGrace = cmp.Or(cfg.OrphanGrace, 5*time.Minute)
	cfg.ReapEvery = cmp.Or(cfg.ReapEvery, 2*time.Second)
	cfg.ReconcileEvery = cmp.Or(cfg.ReconcileEvery, time.Minute)
	cfg.CollectEvery = cmp.Or(cfg.CollectEvery, time.Hour)
	cfg.RunBytes = cmp.Or(cfg.RunBytes, 4<<20)
	cfg.AccountRunBytes = cmp.Or(cfg.AccountRunBytes, 1<<30)
	cfg.RunRetention = cmp.Or(cfg.RunRetention, 30*24*time.Hour)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{
		cfg: cfg, log: cfg.Log, engines: make(map[string]engine.Engine),
		keepers: make(map[sandbox.ID]*keeper), retries: make(map[sandbox.ID]retry), seen: make(map[orphan]time.Time),
		refusals: make(map[sandbox.ID]error),
	}
	if cfg.RunsDir != "" {
		m.recordings = &recordings{dir: cfg.RunsDir, bytes: cfg.RunBytes, open: make(map[string]*recording)}
	}
	for _, e := range cfg.Engines {
		name := e.Capabilities().Name
		if _, twice := m.engines[name]; twice || name == "" {
			return nil, fmt.Errorf("lifecycle: two engines are called %q, or one has no name", name)
		}
		m.engines[name] = e
	}
	m.life, m.end = context.WithCancel(context.Background())
	return m, nil
}

// Serve takes up every sandbox that there is, then reaps and reconciles until ctx is done. When it returns, nothing of the manager
// runs any more; the sandboxes do. It can be called once.
func (m *Manager) Serve(ctx context.Context) error {
	defer m.stop()
	var loops sync.WaitGroup
	defer loops.Wait()
	loops.Go(func() { every(ctx, m.log, "reconcile", m.cfg.ReconcileEvery, m.reconcileOnce) })
	loops.Go(func() { every(ctx, m.log, "reap", m.cfg.ReapEvery, m.reapOnce) })
	loops.Go(func() { every(ctx, m.log, "collect images", m.cfg.CollectEvery, m.collectImages) })
	loops.Go(func() { every(ctx, m.log, "collect output", m.cfg.CollectEvery, m.collectOutput) })
	<-ctx.Done()
	return nil
}

func (m *Manager) stop() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.end()
	m.wg.Wait()
}

// every calls pass at once and then at each interval until ctx is done. A pass that fails is told in the log and comes again.
func every(ctx context.Context, log *slog.Logger, name string, interval time.Duration, pass func(context.Context) error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := pass(ctx); err != nil && ctx.Err() == nil {
			log.Error("a pass failed", "pass", name, "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// spawn starts a goroutine of the manager, unless it is ending.
func (m *Manager) spawn(work func(context.Context)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spawnLocked(work)
}

func (m *Manager) spawnLocked(work func(context.Context)) bool {
	if m.closed {
		return false
	}
	m.wg.Go(func() { work(m.life) })
	return true
}

// errClosing is what callers hear while the manager ends.
func errClosing() error {
	return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "shutting_down", Detail: "The server is shutting down; sandboxes go on. Try again soon."}
}

// settled is a context for what must be recorded though ctx may be done.
func settled(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), settleLimit)
}

// pause waits for d and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// backoff is how long to wait after so many failures in a row.
func backoff(failures int, first, most time.Duration) time.Duration {
	d := first
	for range failures - 1 {
		if d *= 2; d >= most {
			return most
		}
	}
	return min(d, most)
}

// Capabilities reports the engines' facts, the default engine's first.
func (m *Manager) Capabilities() []engine.Capabilities {
	var all []engine.Capabilities
	for _, e := range m.cfg.Engines {
		all = append(all, e.Capabilities())
	}
	return all
}

// Sandbox returns one sandbox of account.
func (m *Manager) Sandbox(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error) {
	return m.cfg.Store.Sandbox(ctx, account, id)
}

// Sandboxes lists sandboxes, newest first; next is the cursor of the next page, "" on the last.
func (m *Manager) Sandboxes(ctx context.Context, f sandbox.Filter) (all []sandbox.Sandbox, next string, err error) {
	return m.cfg.Store.Sandboxes(ctx, f)
}

// tell records an event. It is for people; a failure is told in the log only.
func (m *Manager) tell(ctx context.Context, sb sandbox.Sandbox, kind, format string, args ...any) {
	ev := sandbox.Event{Account: sb.Account, Sandbox: sb.ID, Kind: kind, Text: fmt.Sprintf(format, args...)}
	if _, err := m.cfg.Store.AppendEvent(ctx, ev); err != nil && ctx.Err() == nil {
		m.log.Warn("an event was not recorded", "sandbox", sb.ID, "kind", kind, "err", err)
	}
}

// until waits until done says so, looking after each commit of the store.
func (m *Manager) until(ctx context.Context, done func() (bool, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := m.cfg.Store.Watch(ctx)
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-m.life.Done():
			return errClosing()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
