package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// expired is the reason of a sandbox that is past its deadline.
func expired(sb sandbox.Sandbox) string {
	if sb.State == sandbox.Suspended {
		return fmt.Sprintf("It was suspended for longer than %s.", span(sb.SuspendedUntil.Sub(sb.SuspendedAt)))
	}
	return fmt.Sprintf("It reached its time limit of %s.", span(sb.Spec.Timeout))
}

// reapOnce stops the sandboxes that are past their deadline, and takes up again those that could not be destroyed, each after
// a time that grows with its failures. It is safe beside itself.
func (m *Manager) reapOnce(ctx context.Context) error {
	due, err := m.cfg.Store.Due(ctx, time.Now(), 0)
	if err != nil {
		return err
	}
	var errs []error
	for _, sb := range due {
		if sb.State == sandbox.Stopping {
			if m.mayRetry(sb.ID) {
				m.keep(sb, false)
			}
			continue
		}
		m.log.Info("a sandbox reached its time limit", "sandbox", sb.ID)
		stopped, err := m.stopping(ctx, sb, expired(sb), false)
		if err != nil {
			if !errors.Is(err, sandbox.ErrState) { // somebody was quicker
				errs = append(errs, err)
			}
			continue
		}
		m.poke(sb.ID)
		m.keep(stopped, false)
	}
	return errors.Join(errs...)
}

func (m *Manager) mayRetry(id sandbox.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !time.Now().Before(m.retries[id].next)
}

// reconcileOnce compares rows and engines, both ways. Every live row gets a keeper, which finds out itself whether the engine still
// has the sandbox. What an engine has that no live row wants is destroyed, but only after a grace and only if the store
// has said so plainly: on doubt it is left alone. It is safe beside itself.
func (m *Manager) reconcileOnce(ctx context.Context) error {
	errs := []error{m.adopt(ctx)}
	for _, e := range m.cfg.Engines {
		errs = append(errs, m.sweep(ctx, e))
	}
	return errors.Join(errs...)
}

func (m *Manager) adopt(ctx context.Context) error {
	f := sandbox.Filter{States: sandbox.LiveStates()}
	for {
		page, next, err := m.cfg.Store.Sandboxes(ctx, f)
		if err != nil {
			return err
		}
		for _, sb := range page {
			if m.mayRetry(sb.ID) {
				m.keep(sb, false)
			}
			if sb.State == sandbox.Running {
				m.poke(sb.ID) // so that it looks for runs whose end nobody sees to
			}
		}
		if next == "" {
			return nil
		}
		f.Cursor = next
	}
}

// orphan names a run that no row seems to want.
type orphan struct {
	engine, run string
	id          sandbox.ID
}

func (m *Manager) sweep(ctx context.Context, e engine.Engine) error {
	name := e.Capabilities().Name
	still := make(map[orphan]time.Time) // the orphans of this pass; the others are forgotten
	var errs []error
	for item, err := range e.List(ctx) {
		if err != nil {
			errs = append(errs, fmt.Errorf("list what %s holds: %w", name, err))
			continue
		}
		is, err := m.orphaned(ctx, name, item.Ref)
		if err != nil {
			errs = append(errs, err)
		}
		if !is {
			continue
		}
		o := orphan{name, item.Ref.Run, item.Ref.ID}
		still[o] = m.firstSeen(o, item.Since)
		if time.Since(still[o]) < m.cfg.OrphanGrace {
			continue
		}
		m.log.Warn("an orphan is destroyed", "engine", name, "sandbox", item.Ref.ID, "run", item.Ref.Run, "since", item.Since)
		if err := m.destroyOrphan(ctx, e, item.Ref); err != nil {
			errs = append(errs, fmt.Errorf("destroy an orphan of %s: %w", name, err))
			continue
		}
		delete(still, o)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for o := range m.seen {
		if o.engine == name {
			delete(m.seen, o)
		}
	}
	for o, at := range still {
		m.seen[o] = at
	}
	return errors.Join(errs...)
}

// orphaned reports whether the store says that no live row wants ref.
func (m *Manager) orphaned(ctx context.Context, engineName string, ref engine.Ref) (bool, error) {
	sb, err := m.cfg.Store.Sandbox(ctx, "", ref.ID)
	if errors.Is(err, sandbox.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up what %s holds: %w", engineName, err)
	}
	switch {
	case sb.Engine != engineName: // how so? leave it alone
		return false, nil
	case sb.Run == ref.Run && sb.State.Live():
		return false, nil
	case sb.State.Terminal() && time.Since(sb.EndedAt) < m.cfg.OrphanGrace:
		return false, nil
	}
	return true, nil
}

// firstSeen is when an orphan was made, or, if the engine doesn't know, when a pass saw it first.
func (m *Manager) firstSeen(o orphan, since time.Time) time.Time {
	if !since.IsZero() {
		return since
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if at, ok := m.seen[o]; ok {
		return at
	}
	return time.Now()
}

func (m *Manager) destroyOrphan(ctx context.Context, e engine.Engine, ref engine.Ref) error {
	ctx, cancel := context.WithTimeout(ctx, destroyLimit)
	defer cancel()
	return e.Destroy(ctx, ref)
}
