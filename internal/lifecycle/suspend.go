package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// suspendLimit bounds a suspension or a resumption: gigabytes of memory on a slow disk take minutes.
const suspendLimit = 30 * time.Minute

// Suspend puts a running sandbox on disk, with its processes, and returns when it holds neither CPU nor memory any more, or when ctx is
// done; then it goes on without the caller. It joins one that is under way, and does nothing to what is suspended. If the engine
// refuses, that is a Problem, and the sandbox runs on.
func (m *Manager) Suspend(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error) {
	return m.change(ctx, account, id, sandbox.Running, sandbox.Suspending, sandbox.Suspended)
}

// Resume brings a suspended sandbox back and returns when it runs, or when ctx is done; then it goes on without the caller. It joins one
// that is under way, and does nothing to what runs. If the engine refuses, that is a Problem, and the sandbox stays suspended. The
// time in which it was suspended doesn't count as lifetime.
func (m *Manager) Resume(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error) {
	return m.change(ctx, account, id, sandbox.Suspended, sandbox.Resuming, sandbox.Running)
}

// change moves a sandbox from a state over a passing one to another, and waits until it is there.
func (m *Manager) change(ctx context.Context, account string, id sandbox.ID, from, over, to sandbox.State) (sandbox.Sandbox, error) {
	sb, err := m.cfg.Store.Sandbox(ctx, account, id)
	if err != nil {
		return sb, err
	}
	if e, ok := m.engines[sb.Engine]; ok && !sb.State.Terminal() {
		if _, ok := engine.As[engine.Suspender](e); !ok {
			return sb, &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "unsupported", Detail: fmt.Sprintf("The engine %s can't suspend sandboxes.", sb.Engine)}
		}
	}
	switch sb.State {
	case to:
		return sb, nil
	case over: // joined below
	case from:
		m.refuse(id, nil)
		moved, err := m.cfg.Store.Transition(ctx, sb.ID, sb.Run, over, func(s *sandbox.Sandbox) {
			if over == sandbox.Suspending {
				s.SuspendedAt = time.Now().UTC()
				s.SuspendedUntil = s.SuspendedAt.Add(m.cfg.MaxSuspended)
			}
		})
		if err != nil && !errors.Is(err, sandbox.ErrState) { // that somebody else was quicker shows below
			return moved, err
		}
		m.poke(id)
	default:
		return sb, unchangeable(sb, over)
	}
	if m.keep(sb, false) == nil {
		return sb, m.unkept(sb)
	}
	err = m.until(ctx, func() (bool, error) {
		now, err := m.cfg.Store.Sandbox(ctx, account, id)
		if err == nil {
			sb = now
		}
		return sb.State != over, err
	})
	switch {
	case err != nil:
		return sb, fmt.Errorf("waiting until %s is %s: %w", id, to, err)
	case sb.State == to:
		return sb, nil
	case sb.State == from:
		if err := m.refused(id); err != nil {
			return sb, err
		}
		return sb, &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "refused", Detail: fmt.Sprintf("The sandbox is %s as before. Its events say why.", sb.State)}
	default:
		return sb, unchangeable(sb, over)
	}
}

// unchangeable says why a sandbox can't go into state over.
func unchangeable(sb sandbox.Sandbox, over sandbox.State) error {
	switch {
	case sb.State == sandbox.Resuming:
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_resuming", Detail: "The sandbox is being resumed. Wait until it runs."}
	case sb.State == sandbox.Suspending:
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_suspending", Detail: "The sandbox is being suspended. Wait until it is."}
	case sb.State == sandbox.Running && over == sandbox.Resuming, sb.State == sandbox.Suspended && over == sandbox.Suspending: // it was changed meanwhile
		return &sandbox.Problem{Class: sandbox.ErrConflict, Code: "changed", Detail: fmt.Sprintf("The sandbox was changed at the same time; it is %s.", sb.State)}
	default:
		return notRunning(sb)
	}
}

// refuse notes why the engine did not do what was asked, for those who wait for it.
func (m *Manager) refuse(id sandbox.ID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.refusals, id)
		return
	}
	const most = 1000 // nobody waits for the answer to that many questions
	for old := range m.refusals {
		if len(m.refusals) < most {
			break
		}
		delete(m.refusals, old)
	}
	m.refusals[id] = err
}

func (m *Manager) refused(id sandbox.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refusals[id]
}

// awake takes the time in which a sandbox was suspended off its lifetime.
func awake(sb *sandbox.Sandbox, now time.Time) {
	if !sb.SuspendedAt.IsZero() {
		sb.ExpiresAt = sb.ExpiresAt.Add(max(now.Sub(sb.SuspendedAt), 0)).UTC().Truncate(time.Microsecond)
	}
	sb.SuspendedAt, sb.SuspendedUntil = time.Time{}, time.Time{}
}

// suspend does what Suspending asks for. A server that died in the middle has left the row so; the engine then goes on from what it
// finds.
func (k *keeper) suspend(ctx context.Context, sb sandbox.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, suspendLimit)
	defer cancel()
	p, ok := engine.As[engine.Suspender](k.engine)
	if !ok {
		return k.fail(ctx, sb, "It was to be suspended by an engine that can't.")
	}
	began := time.Now()
	err := p.Suspend(ctx, refOf(sb))
	if err == nil {
		k.setClient(nil)
		k.m.log.Info("a sandbox is suspended", "sandbox", sb.ID, "took", time.Since(began))
		return k.moved(k.m.cfg.Store.Transition(ctx, sb.ID, sb.Run, sandbox.Suspended, nil))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	k.m.log.Warn("a sandbox could not be suspended", "sandbox", sb.ID, "err", err)
	switch st, inspectErr := k.inspect(ctx, sb); {
	case inspectErr != nil:
		return errors.Join(err, inspectErr)
	case st.Phase == engine.PhaseGone:
		return k.lost(ctx, sb, st)
	case st.Phase == engine.PhaseSuspended: // but not all is freed yet
		return err
	}
	return k.refuse(ctx, sb, sandbox.Running, err, "It could not be suspended and goes on")
}

// rest does what Suspended asks for: nothing, as long as the engine has it.
func (k *keeper) rest(ctx context.Context, sb sandbox.Sandbox) error {
	k.setClient(nil)
	if st, err := k.inspect(ctx, sb); err == nil && st.Phase == engine.PhaseGone {
		return k.lost(ctx, sb, engine.Status{Phase: engine.PhaseGone, Reason: "what was suspended is not there any more"})
	}
	<-ctx.Done()
	return nil
}

// resume does what Resuming asks for.
func (k *keeper) resume(ctx context.Context, sb sandbox.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, suspendLimit)
	defer cancel()
	p, ok := engine.As[engine.Suspender](k.engine)
	if !ok {
		return k.fail(ctx, sb, "It was to be resumed by an engine that can't.")
	}
	began := time.Now()
	err := p.Resume(ctx, refOf(sb), sb.Spec)
	if err == nil {
		woken := sb
		awake(&woken, time.Now()) // so that the guest is told the new deadline
		if _, err := k.connect(ctx, woken); err != nil {
			k.m.log.Warn("a guest can't be reached yet", "sandbox", sb.ID, "err", err) // hold tries again
		}
		k.m.log.Info("a sandbox is resumed", "sandbox", sb.ID, "took", time.Since(began))
		return k.moved(k.m.cfg.Store.Transition(ctx, sb.ID, sb.Run, sandbox.Running, func(s *sandbox.Sandbox) {
			s.ExpiresAt, s.SuspendedAt, s.SuspendedUntil = woken.ExpiresAt, time.Time{}, time.Time{}
		}))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	k.m.log.Warn("a sandbox could not be resumed", "sandbox", sb.ID, "err", err)
	switch st, inspectErr := k.inspect(ctx, sb); {
	case inspectErr != nil:
		return errors.Join(err, inspectErr)
	case st.Phase == engine.PhaseSuspended:
		return k.refuse(ctx, sb, sandbox.Suspended, err, "It could not be resumed and stays suspended")
	case st.Phase == engine.PhaseGone:
		return k.lost(ctx, sb, st)
	default:
		return err // it is half there; the next pass asks again
	}
}

// inspect asks the engine how the run is.
func (k *keeper) inspect(ctx context.Context, sb sandbox.Sandbox) (engine.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	return k.engine.Inspect(ctx, refOf(sb))
}

// refuse moves a sandbox back to where it was before it was asked to be suspended or resumed.
func (k *keeper) refuse(ctx context.Context, sb sandbox.Sandbox, back sandbox.State, err error, text string) error {
	p := (*sandbox.Problem)(nil)
	if !errors.As(err, &p) {
		p = &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "refused", Detail: text + ". The server's log tells why.", Err: err}
	}
	k.m.refuse(sb.ID, p)
	k.m.tell(ctx, sb, "refused", "%s: %s", text, p.Detail)
	settle, cancel := settled(ctx)
	defer cancel()
	return k.moved(k.m.cfg.Store.Transition(settle, sb.ID, sb.Run, back, func(s *sandbox.Sandbox) {
		if back == sandbox.Running {
			awake(s, time.Now())
		}
	}))
}
