package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/fake"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestCreateFailsAtEachPoint(t *testing.T) {
	t.Parallel()
	boom := func(context.Context, engine.Ref) error { return errors.New("boom") }
	for name, c := range map[string]struct {
		op      fake.Op
		prepare error
	}{
		"before anything is made": {op: fake.Create}, "half made": {op: fake.Made}, "reply lost": {op: fake.Created},
		"guest out of reach": {op: fake.Dial}, "not prepared": {prepare: errors.New("boom")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.start(t, func(cfg *lifecycle.Config) {
				cfg.Prepare = func(context.Context, *guest.Client, sandbox.Sandbox) error { return c.prepare }
			})
			r.hooks.set(c.op, boom)
			sb, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account})
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.m.WaitReady(within(t), r.account, sb.ID)
			wantProblem(t, err, sandbox.ErrUnavailable, "create_failed", "")
			got := r.reach(t, sb.ID, sandbox.Error)
			if !strings.Contains(got.Reason, "boom") || !got.StartedAt.IsZero() || got.EndedAt.IsZero() {
				t.Errorf("it is %+v", got)
			}
			if left := r.held(t); len(left) > 0 {
				t.Errorf("the engine still holds %v", left)
			}
			kinds := r.kinds(t, sb.ID)
			if tail := kinds[len(kinds)-2:]; !slices.Equal(tail, []string{"stopping", "error"}) {
				t.Errorf("the events are %v", kinds)
			}
		})
	}
}

// What can't be destroyed stays visible as stopping, is tried again by itself, and at once when somebody asks.
func TestDestroyFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	patient, impatient := r.running(t), r.running(t)
	r.hooks.set(fake.Destroy, failing(2))
	for _, sb := range []sandbox.Sandbox{patient, impatient} {
		ctx, cancel := context.WithCancel(t.Context())
		changed := r.store.Watch(ctx)
		go func() { // leaves when it has heard that the first try failed
			for !slices.Contains(r.kinds(t, sb.ID), "stuck") {
				<-changed
			}
			cancel()
		}()
		got, err := r.m.Terminate(ctx, r.account, sb.ID, "")
		if !errors.Is(err, context.Canceled) || got.State != sandbox.Stopping {
			t.Errorf("it is %+v, %v", got, err)
		}
		_, err = r.m.Guest(t.Context(), r.account, sb.ID)
		wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
	}
	got, err := r.m.Terminate(within(t), r.account, impatient.ID, "another reason")
	if err != nil || got.State != sandbox.Terminated || got.Reason != "It was asked to end." {
		t.Errorf("it is %+v, %v", got, err)
	}
	r.reach(t, patient.ID, sandbox.Terminated)
	want := []string{"stopping", "stuck", "terminated"}
	for _, sb := range []sandbox.Sandbox{patient, impatient} {
		if kinds := r.kinds(t, sb.ID); !slices.Equal(kinds[len(kinds)-3:], want) {
			t.Errorf("the events are %v", kinds)
		}
	}
}

func TestTerminateIsJoined(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			got, err := r.m.Terminate(within(t), r.account, sb.ID, "")
			if errors.Is(err, sandbox.ErrConflict) { // came when all was over
				return
			}
			if err != nil || got.State != sandbox.Terminated {
				t.Errorf("it is %+v, %v", got, err)
			}
		})
	}
	callers.Wait()
}

func TestTerminateDuringCreate(t *testing.T) {
	t.Parallel()
	for _, op := range []fake.Op{fake.Create, fake.Made, fake.Created, fake.Dial} {
		t.Run(string(op), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.start(t, nil)
			there := make(chan struct{}, 100)
			r.hooks.set(op, func(ctx context.Context, _ engine.Ref) error { // hangs
				there <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			})
			sb, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account})
			if err != nil {
				t.Fatal(err)
			}
			<-there
			_, err = r.m.Guest(t.Context(), r.account, sb.ID)
			wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
			got, err := r.m.Terminate(within(t), r.account, sb.ID, "Not wanted.")
			if err != nil || got.State != sandbox.Terminated || got.Reason != "Not wanted." {
				t.Errorf("it is %+v, %v", got, err)
			}
			if left := r.held(t); len(left) > 0 {
				t.Errorf("the engine still holds %v", left)
			}
		})
	}
}

// Processes are asked to end, then made to; each end is recorded as it was, and who follows the output sees it.
func TestTerminateIsGraceful(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	polite := r.sh(t, sb, `trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.02; done`)
	stubborn := r.sh(t, sb, `trap '' TERM; echo ready; while :; do sleep 0.02; done`)
	type seen struct {
		text string
		end  guest.Run
	}
	follow := func(run sandbox.Run) (ready chan struct{}, all chan seen) {
		ready, all = make(chan struct{}), make(chan seen, 1)
		go func() {
			var s seen
			defer func() { all <- s }()
			for f, err := range r.m.Output(within(t), run, 0) {
				if err != nil {
					t.Errorf("output: %v", err)
					return
				}
				if s.text == "" {
					close(ready)
				}
				switch f.Kind {
				case guest.Stdout:
					s.text += string(f.Data)
				case guest.End:
					s.end, _ = f.Run()
				}
			}
		}()
		return ready, all
	}
	politeReady, politeAll := follow(polite)
	stubbornReady, stubbornAll := follow(stubborn)
	<-politeReady
	<-stubbornReady
	if _, err := r.m.Terminate(within(t), r.account, sb.ID, ""); err != nil {
		t.Fatal(err)
	}
	if s := <-politeAll; s.text != "ready\nbye\n" || s.end.Code == nil || *s.end.Code != 7 {
		t.Errorf("the polite one: %+v", s)
	}
	if s := <-stubbornAll; s.text != "ready\n" || s.end.Signal != "SIGKILL" {
		t.Errorf("the stubborn one: %+v", s)
	}
	if run, err := r.m.Run(t.Context(), r.account, polite.ID); err != nil || run.State != sandbox.RunExited || *run.ExitCode != 7 {
		t.Errorf("the polite one: %+v, %v", run, err)
	}
	if run, err := r.m.Run(t.Context(), r.account, stubborn.ID); err != nil || run.State != sandbox.RunSignaled || run.Signal != "SIGKILL" {
		t.Errorf("the stubborn one: %+v, %v", run, err)
	}
}

func TestEngineProcessDies(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "echo on; exec sleep 600")
	ready, ended := make(chan struct{}, 10), make(chan error, 1)
	go func() {
		var last error
		for _, err := range r.m.Output(within(t), run, 0) {
			if last = err; err == nil {
				ready <- struct{}{}
			}
		}
		ended <- last
	}()
	<-ready
	r.world.Kill(engine.Ref{ID: sb.ID, Run: sb.Run})
	got := r.reach(t, sb.ID, sandbox.Error)
	if !strings.Contains(got.Reason, "ended unexpectedly") || !strings.Contains(got.Reason, "it was killed") {
		t.Errorf("the reason is %q", got.Reason)
	}
	end, err := r.m.WaitRun(within(t), r.account, run.ID)
	if err != nil || end.State != sandbox.RunLost || end.ExitCode != nil || end.Reason == "" {
		t.Errorf("the run is %+v, %v", end, err)
	}
	wantProblem(t, <-ended, sandbox.ErrGone, "sandbox_gone", "")
	if left := r.held(t); len(left) > 0 {
		t.Errorf("the engine still holds %v", left)
	}
}

// A new manager finds what its predecessor left, and runs go on as if nothing had been.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	over := r.sh(t, sb, "exit 4")
	if _, err := r.m.WaitRun(within(t), r.account, over.ID); err != nil {
		t.Fatal(err)
	}
	goes := r.sh(t, sb, "echo before; read line; echo $line; exit 5") // stdin is closed: it ends at once
	stays := r.sh(t, sb, "echo one; while ! test -e go; do sleep 0.02; done; echo two; exit 6")
	var offset int64
	for f, err := range r.m.Output(within(t), stays, 0) {
		if err != nil {
			t.Fatal(err)
		}
		offset = f.Offset + int64(len(f.Data))
		break // in the middle
	}
	r.stop()

	// A run that the old server has recorded, and then it died.
	never := sandbox.Run{ID: sandbox.NewID(sandbox.PrefixRun), Account: r.account, Sandbox: sb.ID, State: sandbox.RunRunning}
	if err := r.store.InsertRun(t.Context(), never); err != nil {
		t.Fatal(err)
	}
	r.start(t, nil)
	for id, want := range map[string]int{over.ID: 4, goes.ID: 5} {
		if run, err := r.m.WaitRun(within(t), r.account, id); err != nil || run.State != sandbox.RunExited || *run.ExitCode != want {
			t.Errorf("it ended as %+v, %v, want exit code %d", run, err, want)
		}
	}
	if run, err := r.m.WaitRun(within(t), r.account, never.ID); err != nil || run.State != sandbox.RunLost {
		t.Errorf("what was never started is %+v, %v", run, err)
	}
	for _, err := range r.m.Output(within(t), never, 0) {
		wantProblem(t, err, sandbox.ErrGone, "output_gone", "")
	}
	if got := r.reach(t, sb.ID, sandbox.Running); got.Version != sb.Version {
		t.Errorf("something changed it: %+v", got)
	}
	c, err := r.m.Guest(within(t), r.account, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteFile(within(t), info.Workdir+"/go", strings.NewReader(""), 0o644); err != nil {
		t.Fatal(err)
	}
	var rest string
	for f, err := range r.m.Output(within(t), stays, offset) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == guest.Stdout {
			rest += string(f.Data)
		}
	}
	if rest != "two\n" {
		t.Errorf("from offset %d on it says %q", offset, rest)
	}
	if run, err := r.m.WaitRun(within(t), r.account, stays.ID); err != nil || *run.ExitCode != 6 {
		t.Errorf("it ended as %+v, %v", run, err)
	}
	if got := r.output(t, goes); got != "before\n\n" {
		t.Errorf("read again it says %q", got)
	}
}

// A server that died in the middle of a create, wherever that was, leaves what the next one completes.
func TestRestartDuringCreate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		left   fake.Op // how far the dead one came
		broken bool    // and the engine can't go on from there
	}{
		"nothing made": {left: fake.Create}, "half made": {left: fake.Made}, "half made and broken": {left: fake.Made, broken: true},
		"reply lost": {left: fake.Created}, "reply lost, then dead": {left: fake.Created, broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.start(t, nil)
			stuck := make(chan struct{})
			r.hooks.set(c.left, func(ctx context.Context, _ engine.Ref) error {
				close(stuck)
				<-ctx.Done()
				return ctx.Err()
			})
			sb, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account})
			if err != nil {
				t.Fatal(err)
			}
			<-stuck
			r.stop()
			if got := r.reach(t, sb.ID, sandbox.Creating); got.Reason != "" {
				t.Errorf("it is %+v", got)
			}
			r.hooks.set(c.left, nil)
			if c.broken {
				r.hooks.set(fake.Create, failing(1))
			}
			r.start(t, nil)
			if _, err := r.m.WaitReady(within(t), r.account, sb.ID); err != nil {
				t.Fatal(err)
			}
			if left := r.held(t); len(left) != 1 {
				t.Errorf("the engine holds %v", left)
			}
			if got := r.output(t, r.sh(t, sb, "echo works")); got != "works\n" {
				t.Errorf("it says %q", got)
			}
		})
	}
}

func TestRestartDuringStop(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "exec sleep 600")
	r.stop()
	if _, err := r.store.Transition(t.Context(), sb.ID, sb.Run, sandbox.Stopping, func(s *sandbox.Sandbox) { s.Reason, s.Fault = "Because.", true }); err != nil {
		t.Fatal(err)
	}
	r.start(t, nil)
	if got := r.reach(t, sb.ID, sandbox.Error); got.Reason != "Because." {
		t.Errorf("it is %+v", got)
	}
	if got, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || got.State != sandbox.RunLost {
		t.Errorf("its run is %+v, %v", got, err)
	}
}

// Connections come and go; runs and those who follow them don't notice.
func TestConnectionsAreCut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "i=0; while [ $i -lt 150 ]; do echo $i; i=$((i+1)); sleep 0.005; done; exit 9")
	var got strings.Builder
	var want strings.Builder
	cuts := 0
	for f, err := range r.m.Output(within(t), run, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == guest.Stdout {
			got.Write(f.Data)
			if got.Len() > 50*(cuts+1) && cuts < 5 {
				r.eng.cut()
				cuts++
			}
		}
	}
	for i := range 150 {
		fmt.Fprintln(&want, i)
	}
	if got.String() != want.String() {
		t.Errorf("after %d cuts the output is %q", cuts, got.String())
	}
	if end, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || *end.ExitCode != 9 {
		t.Errorf("it ended as %+v, %v", end, err)
	}
	r.hooks.set(fake.Dial, failing(1))
	r.hooks.set(fake.Inspect, failing(2)) // on doubt it is taken to be there
	r.eng.cut()
	if got := r.output(t, r.sh(t, sb, "echo again")); got != "again\n" {
		t.Errorf("it says %q", got)
	}
	if got := r.reach(t, sb.ID, sandbox.Running); got.Reason != "" {
		t.Errorf("it is %+v", got)
	}
}

func TestGuestRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run, err := r.m.StartRun(within(t), sandbox.Run{Account: r.account, Sandbox: sb.ID, Kind: sandbox.RunExec}, guest.Command{Argv: []string{"/no/such"}}, nil)
	p := (*sandbox.Problem)(nil)
	if !errors.As(err, &p) || !errors.Is(err, sandbox.ErrInvalid) || p.Code != "no_such_program" {
		t.Errorf("the error is %v", err)
	}
	if got, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || got.State != sandbox.RunLost || got.Reason == "" {
		t.Errorf("the run is %+v, %v", got, err)
	}
	conflict := func(context.Context, sandbox.Run) error { return sandbox.ErrConflict }
	if _, err := r.m.StartRun(within(t), sandbox.Run{Account: r.account, Sandbox: sb.ID}, guest.Command{Argv: []string{"true"}}, conflict); !errors.Is(err, sandbox.ErrConflict) {
		t.Errorf("the error is %v", err)
	}
	sleeping := r.sh(t, sb, "exec sleep 600")
	if err := r.m.Signal(within(t), r.account, sleeping.ID, "SIGNOTHING"); !errors.Is(err, sandbox.ErrInvalid) {
		t.Errorf("a bad signal: %v", err)
	}
	if err := r.m.Signal(within(t), r.account, sleeping.ID, "SIGINT"); err != nil {
		t.Error(err)
	}
	if got, err := r.m.WaitRun(within(t), r.account, sleeping.ID); err != nil || got.State != sandbox.RunSignaled || got.Signal != "SIGINT" {
		t.Errorf("the run is %+v, %v", got, err)
	}
	late, err := r.m.StartRun(within(t), sandbox.Run{Account: r.account, Sandbox: sb.ID}, guest.Command{Argv: []string{"sleep", "600"}, Timeout: 50 * time.Millisecond}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.m.WaitRun(within(t), r.account, late.ID); err != nil || got.State != sandbox.RunTimeout {
		t.Errorf("the run is %+v, %v", got, err)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	got := r.reach(t, sb.ID, sandbox.Terminated, sandbox.Error)
	if got.State != sandbox.Terminated || got.Reason != "It reached its time limit of 1 s." || got.EndedAt.Before(sb.ExpiresAt) {
		t.Errorf("it is %+v", got)
	}
	if left := r.held(t); len(left) > 0 {
		t.Errorf("the engine still holds %v", left)
	}
}

// A server that comes back after the deadline finds the sandbox gone; that is no fault.
func TestDeadlineWhileNobodyServes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	r.stop()
	r.world.Kill(engine.Ref{ID: sb.ID, Run: sb.Run})
	if _, err := r.store.Amend(t.Context(), sb.ID, sb.Run, func(s *sandbox.Sandbox) { s.ExpiresAt = time.Now().Add(-time.Minute) }); err != nil {
		t.Fatal(err)
	}
	r.start(t, func(c *lifecycle.Config) { c.ReapEvery = time.Hour })
	if got := r.reach(t, sb.ID, sandbox.Terminated, sandbox.Error); got.State != sandbox.Terminated {
		t.Errorf("it is %+v", got)
	}
}
