package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Terminate brings a sandbox to its end and returns when it is there, or when ctx is done; then the end goes on without the
// caller. It joins an end that is under way. A sandbox that has ended is a Problem with code "already_terminated".
func (m *Manager) Terminate(ctx context.Context, account string, id sandbox.ID, reason string) (sandbox.Sandbox, error) {
	sb, err := m.cfg.Store.Sandbox(ctx, account, id)
	if err != nil {
		return sb, err
	}
	if sb.State.Terminal() {
		return sb, &sandbox.Problem{Class: sandbox.ErrConflict, Code: "already_terminated", Detail: fmt.Sprintf("The sandbox ended at %s.", sb.EndedAt.Format(time.RFC3339))}
	}
	if sb.State != sandbox.Stopping {
		stopped, err := m.stopping(ctx, sb, cmp.Or(reason, "It was asked to end."), false)
		if err != nil && !errors.Is(err, sandbox.ErrState) { // that somebody else was quicker is as good
			return stopped, err
		}
		if err == nil {
			sb = stopped
		}
	}
	m.poke(id)
	m.forgive(id)
	if m.keep(sb, false) == nil {
		return sb, m.unkept(sb)
	}
	err = m.until(ctx, func() (bool, error) {
		now, err := m.cfg.Store.Sandbox(ctx, account, id)
		if err == nil {
			sb = now
		}
		return sb.State.Terminal(), err
	})
	if err != nil {
		return sb, fmt.Errorf("waiting for the end of %s: %w", id, err)
	}
	return sb, nil
}

// forgive lets a sandbox that could not be destroyed be tried again at once.
func (m *Manager) forgive(id sandbox.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.retries, id)
}

// destroy does what Stopping asks for: quiet what runs, destroy, record how the runs and the sandbox ended. What the engine
// can't destroy stays Stopping; the reap pass comes back to it.
func (k *keeper) destroy(ctx context.Context, sb sandbox.Sandbox) (again bool, err error) {
	if c, _ := k.current(); c != nil {
		k.quiet(ctx, c)
		k.rescue(ctx, c, sb.Account)
	}
	k.salvage(ctx)
	err = k.destroyRun(ctx, sb)
	k.setClient(nil)
	if err != nil {
		if ctx.Err() == nil {
			k.m.failed(ctx, sb, err)
		}
		return false, nil
	}
	k.m.forgive(sb.ID)
	if k.m.cfg.Gateway != nil {
		k.m.cfg.Gateway.Forget(sb.ID)
	}
	settle, cancel := settled(ctx)
	defer cancel()
	if err := k.endRuns(settle, sb); err != nil {
		return false, err
	}
	if sb.StartedAt.IsZero() && sb.Spec.Volume.Name == ownVolume(sb.ID) {
		if err := k.dropVolume(settle, sb); err != nil {
			return false, err
		}
	}
	end := sandbox.Terminated
	if sb.Fault {
		end = sandbox.Error
	}
	return true, k.moved(k.m.cfg.Store.Transition(settle, sb.ID, sb.Run, end, nil))
}

func (k *keeper) destroyRun(ctx context.Context, sb sandbox.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, destroyLimit)
	defer cancel()
	return k.engine.Destroy(ctx, refOf(sb))
}

// failed notes that a sandbox could not be destroyed. People are told once.
func (m *Manager) failed(ctx context.Context, sb sandbox.Sandbox, err error) {
	m.mu.Lock()
	r := m.retries[sb.ID]
	r.failures++
	wait := backoff(r.failures, time.Second, 5*time.Minute)
	r.next = time.Now().Add(wait)
	m.retries[sb.ID] = r
	m.mu.Unlock()
	m.log.Error("a sandbox could not be destroyed", "sandbox", sb.ID, "failures", r.failures, "again_in", wait, "err", err)
	if r.failures == 1 {
		m.tell(ctx, sb, "stuck", "The engine could not end it; this is tried again until it succeeds. %s", plain(err))
	}
}

// quiet asks what runs to end, kills what doesn't, records the ends that it sees, and gives those who read the output a moment
// to come to its end. It takes about the grace at most.
func (k *keeper) quiet(ctx context.Context, c *guest.Client) {
	list, cancel := context.WithTimeout(ctx, k.m.cfg.Grace)
	defer cancel()
	all, err := c.Runs(list)
	if err != nil {
		k.m.log.Warn("a guest doesn't say what runs", "sandbox", k.id, "err", err)
		return
	}
	rows, err := k.running(ctx)
	if err != nil {
		k.m.log.Warn("the store doesn't say what runs", "sandbox", k.id, "err", err)
	}
	ours := make(map[string]bool) // of what the guest tells, only this may end rows
	for _, r := range rows {
		ours[r.ID] = true
	}
	var running []string
	for _, r := range all {
		if r.State == guest.StateRunning {
			running = append(running, r.ID)
		}
	}
	for _, round := range []struct {
		signal string
		grace  time.Duration
	}{{"SIGTERM", k.m.cfg.Grace}, {"SIGKILL", time.Second}} {
		running = k.signalAll(ctx, c, running, ours, round.signal, round.grace)
	}
	k.drain(ctx)
}

// signalAll signals runs, waits for their ends and records those of ours. It returns those that go on.
func (k *keeper) signalAll(ctx context.Context, c *guest.Client, ids []string, ours map[string]bool, signal string, grace time.Duration) (left []string) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for _, id := range ids {
		_ = c.Signal(ctx, id, signal) // it may have ended by itself; Wait tells
	}
	for _, id := range ids {
		ended, err := c.Wait(ctx, id)
		if err == nil && ours[id] {
			err = k.m.record(ctx, id, ended)
		}
		if err != nil {
			left = append(left, id)
		}
	}
	return left
}

// drain gives readers of output a moment to come to its end.
func (k *keeper) drain(ctx context.Context) {
	k.mu.Lock()
	if k.readers == 0 {
		k.mu.Unlock()
		return
	}
	if k.drained == nil {
		k.drained = make(chan struct{})
	}
	drained := k.drained
	k.mu.Unlock()
	const moment = 2 * time.Second // a reader that is slower than that must not keep a sandbox alive
	select {
	case <-drained:
	case <-time.After(moment):
	case <-ctx.Done():
	}
}

// reading counts a reader of output; the function that it returns takes it off again.
func (k *keeper) reading() (done func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.readers++
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.readers--; k.readers == 0 && k.drained != nil {
			close(k.drained)
			k.drained = nil
		}
	}
}

// endRuns records that the runs whose end nobody saw are lost.
func (k *keeper) endRuns(ctx context.Context, sb sandbox.Sandbox) error {
	runs, err := k.running(ctx)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if err := k.m.lose(ctx, r.Account, r.ID, "The sandbox ended. "+sb.Reason); err != nil {
			return err
		}
	}
	return nil
}

// ownVolume is the name of the volume of a sandbox that asked for none.
func ownVolume(id sandbox.ID) string { return strings.ToLower(string(id)) }

// dropVolume removes the volume that was made for a sandbox alone which never ran: nobody has seen it.
func (k *keeper) dropVolume(ctx context.Context, sb sandbox.Sandbox) error {
	if dirs, ok := engine.As[engine.VolumeDirs](k.engine); ok {
		if err := dirs.DeleteVolume(ctx, sb.Spec.Volume); err != nil {
			return err
		}
	}
	return k.m.cfg.Store.ForgetVolume(ctx, sb.Spec.Volume.ID)
}
