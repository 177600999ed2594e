package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// keeper drives one sandbox from wherever its row says it is to its end, and holds the connection to its guest.
type keeper struct {
	m      *Manager
	engine engine.Engine
	id     sandbox.ID
	fresh  bool          // this process has admitted the sandbox: nobody else has begun to make it
	done   chan struct{} // closed when the keeper has ended

	mu      sync.Mutex
	step    context.CancelFunc // ends what is being done, so that the row is read again
	client  *guest.Client      // nil while there is no connection
	changed chan struct{}      // closed and replaced when client changes
	watched map[string]bool    // runs whose end somebody here sees to
	readers int                // streams of output that are being read
	drained chan struct{}      // if not nil: closed when readers falls to 0
}

// errKept is what callers get from a keeper that has ended; the row says what to do next.
var errKept = errors.New("lifecycle: the keeper has ended")

// keep makes sure that sb has a keeper and returns it; nil if there can't be one, for the reason that unkept gives.
func (m *Manager) keep(sb sandbox.Sandbox, fresh bool) *keeper {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k, ok := m.keepers[sb.ID]; ok {
		return k
	}
	e, ok := m.engines[sb.Engine]
	if !ok {
		m.log.Warn("a sandbox is left alone: its engine is not open", "sandbox", sb.ID, "engine", sb.Engine)
		return nil
	}
	k := &keeper{
		m: m, engine: e, id: sb.ID, fresh: fresh,
		done: make(chan struct{}), changed: make(chan struct{}), watched: make(map[string]bool),
	}
	if !m.spawnLocked(k.drive) {
		return nil
	}
	m.keepers[sb.ID] = k
	return k
}

// unkept says why there is no keeper for sb.
func (m *Manager) unkept(sb sandbox.Sandbox) error {
	if m.life.Err() != nil {
		return errClosing()
	}
	return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "engine_not_open",
		Detail: fmt.Sprintf("The sandbox is on the engine %q, which this server doesn't have at the moment.", sb.Engine)}
}

// poke makes the keeper of id, if there is one, read its row again.
func (m *Manager) poke(id sandbox.ID) {
	m.mu.Lock()
	k, ok := m.keepers[id]
	m.mu.Unlock()
	if !ok {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.step != nil {
		k.step()
	}
}

// drive reads the row and does what its state asks for, until the sandbox has ended or nothing more can be done now. What is left
// then is taken up by a pass.
func (k *keeper) drive(ctx context.Context) {
	defer k.leave()
	for ctx.Err() == nil {
		again, err := k.once(ctx)
		if err != nil && ctx.Err() == nil {
			k.m.log.Error("a sandbox is left for the next pass", "sandbox", k.id, "err", err)
		}
		if !again || err != nil {
			return
		}
	}
}

// once does one step. again says that the row is to be read anew.
func (k *keeper) once(ctx context.Context) (again bool, err error) {
	// The step's context first and the row after it: who writes the row and pokes then is never missed.
	step, cancel := context.WithCancel(ctx)
	defer cancel()
	k.mu.Lock()
	k.step = cancel
	k.mu.Unlock()
	sb, err := k.m.cfg.Store.Sandbox(ctx, "", k.id)
	if err != nil {
		return false, err
	}
	switch sb.State {
	case sandbox.Creating:
		err = k.create(step, sb)
	case sandbox.Running:
		err = k.hold(step, sb)
	case sandbox.Suspending:
		err = k.suspend(step, sb)
	case sandbox.Suspended:
		err = k.rest(step, sb)
	case sandbox.Resuming:
		err = k.resume(step, sb)
	case sandbox.Stopping:
		return k.destroy(ctx, sb) // not the step's: nobody takes back a stop
	default:
		return false, nil
	}
	if step.Err() != nil {
		return true, nil // it was told to look again; what failed by that is no fault
	}
	return true, err
}

func (k *keeper) leave() {
	k.m.mu.Lock()
	delete(k.m.keepers, k.id)
	k.m.mu.Unlock()
	k.setClient(nil)
	close(k.done)
}

// setClient takes c, or none, in place of the connection that there was, which it closes.
func (k *keeper) setClient(c *guest.Client) {
	k.mu.Lock()
	old := k.client
	k.client = c
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	if old != nil {
		_ = old.Close() // it is of no use any more
	}
}

// current returns the connection, or nil, and a channel that is closed when that changes.
func (k *keeper) current() (*guest.Client, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.client != nil && isDone(k.client) {
		return nil, k.changed
	}
	return k.client, k.changed
}

func isDone(c *guest.Client) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// connection waits for a connection to the guest.
func (k *keeper) connection(ctx context.Context) (*guest.Client, error) {
	for {
		c, changed := k.current()
		if c != nil {
			return c, nil
		}
		select {
		case <-changed:
		case <-k.done:
			return nil, errKept
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// connect opens a connection, tells the guest what every process gets and when to end, and keeps the connection.
func (k *keeper) connect(ctx context.Context, sb sandbox.Sandbox) (*guest.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := k.engine.Dial(ctx, refOf(sb))
	if err != nil {
		return nil, err
	}
	var gateway http.Handler
	if k.m.cfg.Gateway != nil {
		gateway = k.m.cfg.Gateway.Handler(sb.ID)
	}
	c, err := guest.NewClient(conn, gateway)
	if err != nil {
		return nil, err
	}
	if err := k.setup(ctx, c, sb); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	k.setClient(c)
	return c, nil
}

// setup tells the guest what every process gets and when to end.
func (k *keeper) setup(ctx context.Context, c *guest.Client, sb sandbox.Sandbox) error {
	env := maps.Clone(k.m.cfg.Env)
	if env == nil {
		env = make(map[string]string)
	}
	ours := env["PATH"]
	maps.Copy(env, sb.Spec.Image.Settings.Env)
	env["PATH"] = joinPath(sb.Spec.Image.Settings.Env["PATH"], ours)
	if k.m.cfg.EnvOf != nil {
		maps.Copy(env, k.m.cfg.EnvOf(sb))
	}
	maps.Copy(env, sb.Spec.Env)
	if sb.Spec.GPU != "" {
		for name, dir := range k.engine.Capabilities().GPUPaths {
			env[name] = strings.TrimPrefix(env[name]+":"+dir, ":")
		}
	}
	if k.m.cfg.Gateway != nil {
		maps.Copy(env, k.m.cfg.Gateway.Env(sb.ID))
	}
	setup := guest.Setup{Env: env, Deadline: sb.ExpiresAt.Add(deadlineGrace), Limits: guestLimits(sb.Spec)}
	if dir := sb.Spec.StartDir(); dir != sb.Spec.Workdir { // which the guest knows by itself
		setup.Dir = dir
	}
	return c.Setup(ctx, setup)
}

// joinPath is an image's PATH with those directories of ours behind it that it lacks: what the image chose comes first.
func joinPath(image, ours string) string {
	dirs := filepath.SplitList(image)
	for _, d := range filepath.SplitList(ours) {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return strings.Join(dirs, string(filepath.ListSeparator))
}

// hold does what Running asks for: keep the connection, and see when the run is gone.
func (k *keeper) hold(ctx context.Context, sb sandbox.Sandbox) error {
	const steady = time.Second // a connection that lasted so long was a good one
	for failures := 0; ctx.Err() == nil; failures++ {
		c, _ := k.current()
		began := time.Now()
		if c == nil {
			var err error
			if c, err = k.connect(ctx, sb); err != nil {
				k.m.log.Warn("a guest can't be reached", "sandbox", sb.ID, "failures", failures+1, "err", err)
			}
		}
		if c != nil {
			if err := k.watchAll(ctx); err != nil {
				return err
			}
			select {
			case <-c.Done():
			case <-ctx.Done():
				return nil // the connection is kept: what comes next may want it
			}
			if time.Since(began) > steady {
				failures = 0
			}
		}
		switch st, err := k.inspect(ctx, sb); {
		case err == nil && st.Phase == engine.PhaseGone:
			return k.lost(ctx, sb, st)
		case err != nil && ctx.Err() == nil: // it is taken to be there
			k.m.log.Warn("the engine doesn't say how a sandbox is", "sandbox", sb.ID, "err", err)
		}
		pause(ctx, backoff(failures+1, 50*time.Millisecond, 2*time.Second))
	}
	return nil
}

// lost moves a sandbox that ended by itself on to its end. At its deadline that is no fault: its guest was quicker than we.
func (k *keeper) lost(ctx context.Context, sb sandbox.Sandbox, st engine.Status) error {
	if st.OOM {
		return k.outOfMemory(ctx, sb)
	}
	if !time.Now().Before(sb.ExpiresAt) && sb.SuspendedAt.IsZero() {
		return k.moved(k.m.stopping(ctx, sb, expired(sb), false))
	}
	text := "The sandbox's engine process ended unexpectedly."
	if st.Reason != "" {
		text += fmt.Sprintf(" The engine says: %s.", st.Reason)
	}
	k.m.log.Error("a sandbox ended by itself", "sandbox", sb.ID, "reason", st.Reason)
	return k.fail(ctx, sb, text)
}

// outOfMemory moves a sandbox on to its end that used up its memory, after all its runs: they ended by that. If we die in between, the
// engine tells it again.
func (k *keeper) outOfMemory(ctx context.Context, sb sandbox.Sandbox) error {
	k.m.log.Warn("a sandbox used up its memory", "sandbox", sb.ID)
	runs, err := k.running(ctx)
	if err != nil {
		return err
	}
	settle, cancel := settled(ctx)
	defer cancel()
	for _, r := range runs {
		err := k.m.cfg.Store.EndRun(settle, sandbox.Run{
			ID: r.ID, State: sandbox.RunOOM, Reason: usedUp(sb.Spec), OutputNext: k.m.recorded(r.Account, r.ID),
		})
		if err != nil {
			return err
		}
	}
	return k.fail(ctx, sb, usedUp(sb.Spec)+" All that ran in it ended by that. Ask for more memory, or start less at once.")
}

// fail moves a sandbox towards Error.
func (k *keeper) fail(ctx context.Context, sb sandbox.Sandbox, reason string) error {
	return k.moved(k.m.stopping(ctx, sb, reason, true))
}

// stopping moves a sandbox to Stopping, though ctx may be done.
func (m *Manager) stopping(ctx context.Context, sb sandbox.Sandbox, reason string, fault bool) (sandbox.Sandbox, error) {
	ctx, cancel := settled(ctx)
	defer cancel()
	return m.cfg.Store.Transition(ctx, sb.ID, sb.Run, sandbox.Stopping, func(s *sandbox.Sandbox) { s.Reason, s.Fault = reason, fault })
}

// moved is a step's view of a transition: that somebody else was quicker is no error, for the row is read again.
func (k *keeper) moved(_ sandbox.Sandbox, err error) error {
	if errors.Is(err, sandbox.ErrState) || errors.Is(err, sandbox.ErrConflict) {
		return nil
	}
	return err
}
