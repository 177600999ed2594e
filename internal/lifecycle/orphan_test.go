package lifecycle_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/fake"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

// ageless is an engine that doesn't know when its runs were made.
type ageless struct{ engine.Engine }

func (e ageless) List(ctx context.Context) iter.Seq2[engine.Listed, error] {
	return func(yield func(engine.Listed, error) bool) {
		for item, err := range e.Engine.List(ctx) {
			item.Since = time.Time{}
			if !yield(item, err) {
				return
			}
		}
	}
}

// mute is a store that doesn't answer for sandboxes.
type mute struct{ *store.Store }

func (mute) Sandbox(context.Context, string, sandbox.ID) (sandbox.Sandbox, error) {
	return sandbox.Sandbox{}, errors.New("the disk is on fire")
}

func TestOrphans(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	wanted, ended := r.running(t), r.running(t)
	if _, err := r.m.Terminate(within(t), r.account, ended.ID, ""); err != nil {
		t.Fatal(err)
	}
	spec := wanted.Spec
	bring := func(id sandbox.ID, run string) {
		if _, err := r.eng.Create(t.Context(), engine.Ref{ID: id, Run: run}, spec); err != nil {
			t.Fatal(err)
		}
	}
	unknown := sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox))
	bring(unknown, "1")
	bring(ended.ID, "1")  // came back from the dead
	bring(wanted.ID, "0") // another run of one that lives
	r.stop()

	pass := func(change func(*lifecycle.Config)) (*lifecycle.Manager, error) {
		r.open(t, func(c *lifecycle.Config) {
			if change != nil {
				change(c)
			}
		})
		return r.m, lifecycle.ReconcileOnce(r.m, t.Context())
	}
	stop := func(m *lifecycle.Manager) { // ends the keepers that the pass began
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if err := m.Serve(done); err != nil {
			t.Error(err)
		}
	}

	// Within the grace, or in doubt, nothing happens.
	m, err := pass(nil)
	stop(m)
	if err != nil || len(r.held(t)) != 4 {
		t.Fatalf("the engine holds %v, %v", r.held(t), err)
	}
	m, err = pass(func(c *lifecycle.Config) { c.OrphanGrace, c.Store = time.Nanosecond, mute{r.store} })
	stop(m)
	if err == nil || len(r.held(t)) != 4 {
		t.Fatalf("the engine holds %v, %v", r.held(t), err)
	}
	r.hooks.set(fake.List, failing(1))
	m, err = pass(func(c *lifecycle.Config) { c.OrphanGrace = time.Nanosecond })
	stop(m)
	if err == nil || len(r.held(t)) != 4 {
		t.Fatalf("the engine holds %v, %v", r.held(t), err)
	}

	// An engine that doesn't know ages: the grace counts from when a pass saw them first.
	m, err = pass(func(c *lifecycle.Config) {
		c.OrphanGrace, c.Engines = 100*time.Millisecond, []engine.Engine{ageless{c.Engines[0]}}
	})
	if err != nil || len(r.held(t)) != 4 {
		t.Fatalf("the engine holds %v, %v", r.held(t), err)
	}
	r.hooks.set(fake.Destroy, failing(1))
	late := time.After(time.Minute)
	for len(r.held(t)) > 1 {
		if err := lifecycle.ReconcileOnce(m, t.Context()); err != nil && !strings.Contains(err.Error(), "boom") {
			t.Fatal(err)
		}
		select {
		case <-late:
			t.Fatalf("the engine still holds %v", r.held(t))
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop(m)
	if left := r.held(t); left[0] != wanted.ID {
		t.Errorf("the engine holds %v, not %s", left, wanted.ID)
	}
	if got := r.reach(t, wanted.ID, sandbox.Running); got.Reason != "" {
		t.Errorf("it is %+v", got)
	}
}

// renamed is an engine under another name.
type renamed struct{ engine.Engine }

func (e renamed) Capabilities() engine.Capabilities {
	caps := e.Engine.Capabilities()
	caps.Name = "another"
	return caps
}

func TestEngineIsNotOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "exec sleep 600")
	r.stop()
	r.start(t, func(c *lifecycle.Config) {
		c.Engines, c.OrphanGrace = []engine.Engine{renamed{c.Engines[0]}}, time.Nanosecond
	})
	if err := lifecycle.ReconcileOnce(r.m, t.Context()); err != nil {
		t.Error(err)
	}
	_, err := r.m.Guest(t.Context(), r.account, sb.ID)
	wantProblem(t, err, sandbox.ErrUnavailable, "engine_not_open", "")
	for _, err := range r.m.Output(t.Context(), run, 0) {
		wantProblem(t, err, sandbox.ErrUnavailable, "engine_not_open", "")
	}
	_, err = r.m.Terminate(t.Context(), r.account, sb.ID, "")
	wantProblem(t, err, sandbox.ErrUnavailable, "engine_not_open", "")
	if left := r.held(t); len(left) != 1 {
		t.Errorf("the engine holds %v", left)
	}
}
