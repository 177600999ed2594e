package lifecycle_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// startWith starts a script in sb; between the row and the process, meanwhile happens.
func (r *rig) startWith(ctx context.Context, sb sandbox.Sandbox, script string, meanwhile func()) (sandbox.Run, error) {
	insert := func(ctx context.Context, run sandbox.Run) error {
		err := r.store.InsertRun(ctx, run)
		meanwhile()
		return err
	}
	return r.m.StartRun(ctx, sandbox.Run{Account: r.account, Sandbox: sb.ID, Kind: sandbox.RunExec}, guest.Command{Argv: []string{"sh", "-c", script}}, insert)
}

// A connection that is lost between the row and the process delays the start, no more.
func TestStartOverALostConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, func(c *lifecycle.Config) {
		c.EnvOf = func(sb sandbox.Sandbox) map[string]string { return map[string]string{"WHERE": sb.Spec.Workdir} }
	})
	sb := r.running(t)
	run, err := r.startWith(within(t), sb, "echo $WHERE; exit 8", r.eng.cut)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.output(t, run); got != "/workspace\n" {
		t.Errorf("it says %q", got)
	}
	if end, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || end.State != sandbox.RunExited || *end.ExitCode != 8 {
		t.Errorf("it ended as %+v, %v", end, err)
	}
}

func TestStartWhileTheSandboxEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*rig, sandbox.Sandbox){
		"terminated": func(r *rig, sb sandbox.Sandbox) {
			if _, err := r.m.Terminate(within(t), r.account, sb.ID, ""); err != nil {
				t.Error(err)
			}
		},
		"dead": func(r *rig, sb sandbox.Sandbox) { r.world.Kill(engine.Ref{ID: sb.ID, Run: sb.Run}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.start(t, nil)
			sb := r.running(t)
			run, err := r.startWith(within(t), sb, "true", func() { end(r, sb) })
			wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
			if got, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || got.State != sandbox.RunLost {
				t.Errorf("the run is %+v, %v", got, err)
			}
		})
	}
}

// A caller that leaves between the row and the process leaves a row that comes to an end.
func TestStartWithoutItsCaller(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	ctx, cancel := context.WithCancel(t.Context())
	run, err := r.startWith(ctx, sb, "true", cancel)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	if got, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || got.State == sandbox.RunRunning {
		t.Errorf("the run is %+v, %v", got, err)
	}
}

// A reader of output that stalls keeps a sandbox alive for a moment only.
func TestStalledReader(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "echo on; exec sleep 600")
	reading, read, stall := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		for range r.m.Output(within(t), run, 0) {
			close(reading)
			<-stall
			return
		}
	}()
	<-reading
	began := time.Now()
	if _, err := r.m.Terminate(within(t), r.account, sb.ID, ""); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	close(stall)
	<-read
	if got, err := r.m.Run(t.Context(), r.account, run.ID); err != nil || got.State != sandbox.RunSignaled {
		t.Errorf("the run is %+v, %v", got, err)
	}
}

// What a guest tells of a run is believed only if it makes sense, and only for the run that was asked for.
func TestRecordBelievesOnlySense(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	r.stop()
	nine := 9
	future := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		told  guest.Run
		state sandbox.RunState
	}{
		"exited":           {guest.Run{State: guest.StateExited, Code: &nine, EndedAt: future}, sandbox.RunExited},
		"exited, no code":  {guest.Run{State: guest.StateExited}, sandbox.RunLost},
		"signaled":         {guest.Run{State: guest.StateSignaled, Signal: "SIGSEGV"}, sandbox.RunSignaled},
		"signaled by what": {guest.Run{State: guest.StateSignaled}, sandbox.RunLost},
		"timeout":          {guest.Run{State: guest.StateTimeout, Signal: "SIGKILL"}, sandbox.RunTimeout},
		"out of memory":    {guest.Run{State: guest.StateOOM, Signal: "SIGKILL"}, sandbox.RunOOM},
		"oom, but exited":  {guest.Run{State: guest.StateOOM, Code: &nine}, sandbox.RunLost},
		"success!":         {guest.Run{State: "success"}, sandbox.RunLost},
	} {
		run := sandbox.Run{ID: sandbox.NewID(sandbox.PrefixRun), Account: r.account, Sandbox: sb.ID, State: sandbox.RunRunning}
		if err := r.store.InsertRun(t.Context(), run); err != nil {
			t.Fatal(err)
		}
		if err := lifecycle.Record(r.m, t.Context(), run.ID, c.told); err != nil {
			t.Fatal(err)
		}
		got, err := r.store.Run(t.Context(), "", run.ID)
		if err != nil || got.State != c.state || (got.ExitCode != nil) != (c.state == sandbox.RunExited) || got.EndedAt.After(time.Now()) {
			t.Errorf("%s: it is %+v, %v", name, got, err)
		}
	}
}

// A short run is over when its start is answered: with its end recorded, and all of its output.
func TestRunShort(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	short := func(script string) (sandbox.Run, []guest.Frame) {
		t.Helper()
		run, output, err := r.m.RunShort(within(t), sandbox.Run{Account: r.account, Sandbox: sb.ID, Kind: sandbox.RunExec}, guest.Command{Argv: []string{"sh", "-c", script}})
		if err != nil {
			t.Fatal(err)
		}
		return run, output
	}
	run, output := short("echo hello; exit 8")
	stored, err := r.m.Run(t.Context(), r.account, run.ID)
	if err != nil || run.State != sandbox.RunExited || run.ExitCode == nil || *run.ExitCode != 8 || stored.State != run.State || *stored.ExitCode != 8 || stored.EndedAt.IsZero() {
		t.Errorf("it is %+v, recorded as %+v, %v", run, stored, err)
	}
	if len(output) != 2 || string(output[0].Data) != "hello\n" || output[1].Kind != guest.End {
		t.Errorf("output %+v", output)
	}
	if got := r.output(t, run); got != "hello\n" {
		t.Errorf("who comes later reads %q", got)
	}
	run, output = short("head -c 100000 /dev/zero; exit 8")
	if output != nil || run.State != sandbox.RunRunning {
		t.Errorf("what writes much is %+v, with %d frames", run, len(output))
	}
	if run, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || run.State != sandbox.RunExited || *run.ExitCode != 8 {
		t.Errorf("what writes much ended as %+v, %v", run, err)
	}
}
