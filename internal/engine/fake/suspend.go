package fake

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

var _ engine.Suspender = (*Engine)(nil)

// never is longer than any test.
const never = 1000 * time.Hour

// Suspend stops the run's processes and puts its guest out of reach.
func (e *Engine) Suspend(ctx context.Context, ref engine.Ref) error {
	if err := e.hook(ctx, Suspend, ref); err != nil {
		return err
	}
	r, err := e.w.living(ref)
	if err != nil {
		return fmt.Errorf("fake: suspend: %w", err)
	}
	if err := r.suspend(ctx); err != nil {
		return fmt.Errorf("fake: suspend: %w", err)
	}
	return e.hook(ctx, Suspended, ref)
}

// Resume lets them go on.
func (e *Engine) Resume(ctx context.Context, ref engine.Ref, _ sandbox.Spec) error {
	if err := e.hook(ctx, Resume, ref); err != nil {
		return err
	}
	r, err := e.w.living(ref)
	if err != nil {
		return fmt.Errorf("fake: resume: %w", err)
	}
	r.resume()
	return e.hook(ctx, Resumed, ref)
}

func (w *World) living(ref engine.Ref) (*run, error) {
	r, ok := w.find(ref)
	if !ok || r.isGone() {
		return nil, fmt.Errorf("%w: %s run %s", sandbox.ErrNotFound, ref.ID, ref.Run)
	}
	return r, nil
}

func (r *run) suspend(ctx context.Context) error {
	select { // one at a time
	case r.making <- struct{}{}:
		defer func() { <-r.making }()
	case <-r.gone:
		return r.goneErr()
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.status().Phase == engine.PhaseSuspended {
		return nil
	}
	conn, err := r.dial()
	if err != nil {
		return err
	}
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	all, err := c.Runs(ctx)
	if err == nil {
		err = c.Suspend(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", sandbox.ErrUnavailable, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspended = true
	for _, p := range all {
		if p.State == guest.StateRunning && syscall.Kill(-p.PID, syscall.SIGSTOP) == nil {
			r.stopped = append(r.stopped, p.PID)
		}
	}
	return nil
}

func (r *run) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.suspended {
		return
	}
	for _, pid := range r.stopped {
		_ = syscall.Kill(-pid, syscall.SIGCONT) // it may have been killed
	}
	r.suspended, r.stopped = false, nil
	r.server.Resume()
}
