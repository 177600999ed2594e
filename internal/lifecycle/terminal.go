package lifecycle

import (
	"context"
	"errors"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Look asks the guest what it knows of a run. It waits as long as the sandbox may come back.
func (m *Manager) Look(ctx context.Context, run sandbox.Run) (guest.Run, error) {
	var seen guest.Run
	err := m.insist(ctx, run, func(c *guest.Client) (err error) {
		seen, err = c.Run(ctx, run.ID)
		return err
	})
	return seen, err
}

// Input writes b to a run's input, of which at bytes were taken before, exactly once though connections to the guest are lost, and then
// closes it if last. It returns when the process's end has room for all of it: a process that doesn't read is waited for.
func (m *Manager) Input(ctx context.Context, run sandbox.Run, at int64, b []byte, last bool) error {
	return m.insist(ctx, run, func(c *guest.Client) error { return c.WriteStdinAt(ctx, run.ID, at, b, last) })
}

// Resize changes the size of a run's terminal.
func (m *Manager) Resize(ctx context.Context, run sandbox.Run, size guest.Size) error {
	return m.insist(ctx, run, func(c *guest.Client) error { return c.Resize(ctx, run.ID, size) })
}

// insist does something that may be repeated with the guest of a run, over the next connection if one is lost, until it is done or
// refused.
func (m *Manager) insist(ctx context.Context, run sandbox.Run, do func(*guest.Client) error) error {
	for failures := 0; ; failures++ {
		if failures > 0 && !pause(ctx, backoff(failures, 20*time.Millisecond, time.Second)) {
			return ctx.Err()
		}
		_, c, err := m.reach(ctx, run)
		if err != nil {
			return err
		}
		if err = do(c); err == nil {
			return nil
		}
		if err = m.lasting(ctx, run, err); err != nil {
			return err
		}
	}
}

// EndRun ends a run as a person would, with signal first and KILL after grace, and returns it when it has ended. A run that has ended
// is returned as it is.
func (m *Manager) EndRun(ctx context.Context, account, id, signal string, grace time.Duration) (sandbox.Run, error) {
	for _, sig := range []string{signal, "SIGKILL"} {
		run, err := m.cfg.Store.Run(ctx, account, id)
		if err != nil || run.State != sandbox.RunRunning {
			return run, err
		}
		if err := m.Signal(ctx, account, id, sig); err != nil && !ended(err) {
			return run, err
		}
		if sig == "SIGKILL" {
			break
		}
		short, cancel := context.WithTimeout(ctx, grace)
		run, err = m.WaitRun(short, account, id)
		cancel()
		if err == nil || ctx.Err() != nil {
			return run, err
		}
	}
	return m.WaitRun(ctx, account, id)
}

// ended reports whether err says that a run is over, or about to be.
func ended(err error) bool {
	p := (*sandbox.Problem)(nil)
	return errors.As(err, &p) && p.Code == "run_ended"
}
