package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/fake"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func (r *rig) suspend(t *testing.T, id sandbox.ID) sandbox.Sandbox {
	t.Helper()
	sb, err := r.m.Suspend(within(t), r.account, id)
	if err != nil || sb.State != sandbox.Suspended {
		t.Fatalf("suspend: %s, %v", sb.State, err)
	}
	return sb
}

func (r *rig) resume(t *testing.T, id sandbox.ID) sandbox.Sandbox {
	t.Helper()
	sb, err := r.m.Resume(within(t), r.account, id)
	if err != nil || sb.State != sandbox.Running {
		t.Fatalf("resume: %s, %v", sb.State, err)
	}
	return sb
}

// touch makes the file that a script waits for.
func (r *rig) touch(t *testing.T, sb sandbox.Sandbox, name string) {
	t.Helper()
	c, err := r.m.Guest(within(t), r.account, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteFile(within(t), info.Workdir+"/"+name, strings.NewReader(""), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A run goes on where it was, its viewers never notice, and the time in between doesn't count.
func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "echo one; while ! test -e go; do sleep 0.02; done; echo two; exit 6")
	seen := make(chan string, 1)
	began := make(chan struct{})
	go func() {
		var all string
		for f, err := range r.m.Output(within(t), run, 0) {
			if err != nil {
				all += err.Error()
				break
			}
			if f.Kind == guest.Stdout {
				if all == "" {
					close(began)
				}
				all += string(f.Data)
			}
		}
		seen <- all
	}()
	<-began

	suspended := r.suspend(t, sb.ID)
	if suspended.SuspendedAt.IsZero() || suspended.SuspendedUntil.Sub(suspended.SuspendedAt) != 30*24*time.Hour || suspended.ExpiresAt != sb.ExpiresAt {
		t.Errorf("it is %+v", suspended)
	}
	again := r.suspend(t, sb.ID)
	if again.Version != suspended.Version {
		t.Error("a second suspend changes it")
	}
	if got, err := r.m.Run(t.Context(), r.account, run.ID); err != nil || got.State != sandbox.RunRunning {
		t.Errorf("the run is %+v, %v", got, err)
	}
	_, err := r.m.StartRun(within(t), sandbox.Run{Account: r.account, Sandbox: sb.ID, Kind: sandbox.RunExec}, guest.Command{Argv: []string{"true"}}, nil)
	wantProblem(t, err, sandbox.ErrState, "sandbox_suspended", "")
	_, err = r.m.Guest(within(t), r.account, sb.ID)
	wantProblem(t, err, sandbox.ErrState, "sandbox_suspended", "")

	back := r.resume(t, sb.ID)
	if moved := back.ExpiresAt.Sub(sb.ExpiresAt); moved <= 0 || moved > time.Minute || !back.SuspendedAt.IsZero() || !back.SuspendedUntil.IsZero() {
		t.Errorf("its deadline moved by %v: %+v", moved, back)
	}
	c, err := r.m.Guest(within(t), r.account, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := c.Info(within(t)); err != nil || info.Deadline.Before(back.ExpiresAt) {
		t.Errorf("the guest says %+v, %v; the sandbox expires at %v", info, err, back.ExpiresAt)
	}
	r.resume(t, sb.ID)
	r.touch(t, sb, "go")
	if got := <-seen; got != "one\ntwo\n" {
		t.Errorf("a viewer saw %q", got)
	}
	if got, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || got.State != sandbox.RunExited || *got.ExitCode != 6 {
		t.Errorf("it ended as %+v, %v", got, err)
	}
	want := []string{"running", "suspending", "suspended", "resuming", "running"}
	if kinds := r.kinds(t, sb.ID); len(kinds) < len(want) || !slices.Equal(kinds[len(kinds)-len(want):], want) {
		t.Errorf("the events are %v", kinds)
	}
}

func TestSuspendWrongStates(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	_, err := r.m.Suspend(within(t), r.account, "sbx_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7")
	wantProblem(t, err, sandbox.ErrNotFound, "sandbox_not_found", "")
	sb := r.running(t)
	_, err = r.m.Suspend(within(t), "another", sb.ID)
	wantProblem(t, err, sandbox.ErrNotFound, "sandbox_not_found", "")
	r.resume(t, sb.ID) // of what runs: nothing to do
	r.suspend(t, sb.ID)
	if _, err := r.m.Terminate(within(t), r.account, sb.ID, ""); err != nil {
		t.Fatal(err)
	}
	if left := r.held(t); len(left) > 0 {
		t.Errorf("the engine still holds %v", left)
	}
	for _, do := range []func(context.Context, string, sandbox.ID) (sandbox.Sandbox, error){r.m.Suspend, r.m.Resume} {
		_, err := do(within(t), r.account, sb.ID)
		wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
	}
}

// What the engine refuses leaves the sandbox as it was, and says why.
func TestSuspendRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "while ! test -e go; do sleep 0.02; done; echo end")
	no := &sandbox.Problem{Class: sandbox.ErrState, Code: "cannot_suspend", Detail: "There is a socket."}
	r.hooks.set(fake.Suspend, func(context.Context, engine.Ref) error { return no })
	_, err := r.m.Suspend(within(t), r.account, sb.ID)
	wantProblem(t, err, sandbox.ErrState, "cannot_suspend", "")
	if got := r.reach(t, sb.ID, sandbox.Running); !got.SuspendedAt.IsZero() || got.ExpiresAt.Before(sb.ExpiresAt) {
		t.Errorf("it is %+v", got)
	}
	r.touch(t, sb, "go")
	if got := r.output(t, run); got != "end\n" {
		t.Errorf("it says %q", got)
	}
	r.hooks.set(fake.Suspend, nil)
	r.suspend(t, sb.ID)

	r.hooks.set(fake.Resume, func(context.Context, engine.Ref) error { return errors.New("no reason that is for people") })
	_, err = r.m.Resume(within(t), r.account, sb.ID)
	wantProblem(t, err, sandbox.ErrUnavailable, "refused", "")
	if got := r.reach(t, sb.ID, sandbox.Suspended); got.SuspendedAt.IsZero() {
		t.Errorf("it is %+v", got)
	}
	r.hooks.set(fake.Resume, nil)
	r.resume(t, sb.ID)
	if n := len(slices.DeleteFunc(r.kinds(t, sb.ID), func(k string) bool { return k != "refused" })); n != 2 {
		t.Errorf("%d refusals were told", n)
	}
}

// A server that died in the middle, at either end of the engine's work, leaves what the next one completes.
func TestRestartDuringSuspendAndResume(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		op   fake.Op
		from sandbox.State
		over sandbox.State
		to   sandbox.State
	}{
		{fake.Suspend, sandbox.Running, sandbox.Suspending, sandbox.Suspended},
		{fake.Suspended, sandbox.Running, sandbox.Suspending, sandbox.Suspended},
		{fake.Resume, sandbox.Suspended, sandbox.Resuming, sandbox.Running},
		{fake.Resumed, sandbox.Suspended, sandbox.Resuming, sandbox.Running},
	} {
		t.Run(string(c.op), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.start(t, nil)
			sb := r.running(t)
			run := r.sh(t, sb, "while ! test -e go; do sleep 0.02; done; echo end")
			do := r.m.Suspend
			if c.from == sandbox.Suspended {
				r.suspend(t, sb.ID)
				do = r.m.Resume
			}
			reached := make(chan struct{})
			r.hooks.set(c.op, func(ctx context.Context, _ engine.Ref) error {
				close(reached)
				<-ctx.Done() // as if it took for ever
				return ctx.Err()
			})
			asked := make(chan error, 1)
			go func() { _, err := do(within(t), r.account, sb.ID); asked <- err }()
			<-reached
			r.stop()
			wantProblem(t, <-asked, sandbox.ErrUnavailable, "shutting_down", "")
			if got, err := r.store.Sandbox(t.Context(), "", sb.ID); err != nil || got.State != c.over {
				t.Fatalf("it is %s, %v", got.State, err)
			}
			r.hooks.set(c.op, nil)
			r.start(t, nil)
			r.reach(t, sb.ID, c.to)
			if c.to == sandbox.Suspended {
				r.resume(t, sb.ID)
			}
			r.touch(t, sb, "go")
			if got := r.output(t, run); got != "end\n" {
				t.Errorf("it says %q", got)
			}
		})
	}
}

// A server restart, and what the engine lists, leave a suspended sandbox alone; another ending of it is told.
func TestSuspendedIsKept(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, func(c *lifecycle.Config) { c.OrphanGrace = time.Nanosecond })
	sb := r.running(t)
	r.suspend(t, sb.ID)
	r.stop()
	if _, err := r.store.Amend(t.Context(), sb.ID, sb.Run, func(s *sandbox.Sandbox) { s.ExpiresAt = time.Now().Add(-time.Hour) }); err != nil {
		t.Fatal(err)
	}
	r.start(t, func(c *lifecycle.Config) { c.OrphanGrace = time.Nanosecond })
	for _, pass := range []func(*lifecycle.Manager, context.Context) error{lifecycle.ReapOnce, lifecycle.ReconcileOnce} {
		if err := pass(r.m, t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := r.reach(t, sb.ID, sandbox.Suspended, sandbox.Stopping, sandbox.Error); got.State != sandbox.Suspended {
		t.Fatalf("it is %+v", got)
	}
	r.stop()
	r.world.Kill(engine.Ref{ID: sb.ID, Run: sb.Run})
	r.start(t, nil)
	if got := r.reach(t, sb.ID, sandbox.Terminated, sandbox.Error); got.State != sandbox.Error || !strings.Contains(got.Reason, "not there any more") {
		t.Errorf("it is %+v", got)
	}
}

func TestSuspendedForTooLong(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, func(c *lifecycle.Config) { c.MaxSuspended = time.Second })
	sb := r.running(t)
	r.suspend(t, sb.ID)
	got := r.reach(t, sb.ID, sandbox.Terminated, sandbox.Error)
	if got.State != sandbox.Terminated || got.Reason != "It was suspended for longer than 1 s." {
		t.Errorf("it is %+v", got)
	}
	if left := r.held(t); len(left) > 0 {
		t.Errorf("the engine still holds %v", left)
	}
}

// Who ends a sandbox in the middle of its suspension doesn't wait for that.
func TestTerminateDuringSuspend(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	reached := make(chan struct{})
	r.hooks.set(fake.Suspend, func(ctx context.Context, _ engine.Ref) error {
		close(reached)
		<-ctx.Done()
		return fmt.Errorf("aborted: %w", ctx.Err())
	})
	asked := make(chan error, 1)
	go func() { _, err := r.m.Suspend(within(t), r.account, sb.ID); asked <- err }()
	<-reached
	if got, err := r.m.Terminate(within(t), r.account, sb.ID, ""); err != nil || got.State != sandbox.Terminated {
		t.Errorf("%s, %v", got.State, err)
	}
	wantProblem(t, <-asked, sandbox.ErrState, "sandbox_not_running", "")
}
