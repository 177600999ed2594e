package lifecycle

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// shortRun is how long RunShort waits for a run to end.
const shortRun = time.Second

// Guest returns the connection to a running sandbox's guest. It waits a little for one that is being made again.
func (m *Manager) Guest(ctx context.Context, account string, id sandbox.ID) (*guest.Client, error) {
	_, c, err := m.live(ctx, account, id)
	return c, err
}

// live finds a running sandbox's keeper and its connection.
func (m *Manager) live(ctx context.Context, account string, id sandbox.ID) (*keeper, *guest.Client, error) {
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		sb, err := m.cfg.Store.Sandbox(ctx, account, id)
		if err != nil {
			return nil, nil, err
		}
		if sb.State != sandbox.Running {
			return nil, nil, notRunning(sb)
		}
		k := m.keep(sb, false)
		if k == nil {
			return nil, nil, m.unkept(sb)
		}
		c, err := k.connection(short)
		switch {
		case err == nil:
			return k, c, nil
		case errors.Is(err, errKept): // the row has changed, or is to be taken up again
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		default:
			return nil, nil, &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "sandbox_unreachable",
				Detail: "The sandbox is running, but its helper doesn't answer at the moment. Try again.", Err: err}
		}
	}
}

// StartRun records run, which names its account, sandbox and kind, and starts cmd in it. The row comes first: insert writes it (nil
// means the store's InsertRun). If the guest refuses the command, the row ends and the error is a Problem. If ctx ends before the
// guest has answered, the run may have been started all the same; its row tells.
func (m *Manager) StartRun(ctx context.Context, run sandbox.Run, cmd guest.Command, insert func(context.Context, sandbox.Run) error) (sandbox.Run, error) {
	run, _, err := m.startRun(ctx, run, cmd, insert)
	return run, err
}

// RunShort is StartRun for who waits for the end: if the run has ended after a moment and has not written much, it returns it ended, with
// all of its output. Else output is nil, and Output and WaitRun tell the rest.
func (m *Manager) RunShort(ctx context.Context, run sandbox.Run, cmd guest.Command) (_ sandbox.Run, output []guest.Frame, err error) {
	cmd.Within = shortRun
	return m.startRun(ctx, run, cmd, nil)
}

func (m *Manager) startRun(ctx context.Context, run sandbox.Run, cmd guest.Command, insert func(context.Context, sandbox.Run) error) (sandbox.Run, []guest.Frame, error) {
	k, c, err := m.live(ctx, run.Account, run.Sandbox)
	if err != nil {
		return run, nil, err
	}
	run.ID = cmp.Or(run.ID, cmd.ID, sandbox.NewID(sandbox.PrefixRun))
	cmd.ID = run.ID
	if run.Argv == nil {
		run.Argv = cmd.Argv
	}
	run.State, run.StartedAt = sandbox.RunRunning, time.Now().UTC().Truncate(time.Microsecond)
	if insert == nil {
		insert = m.cfg.Store.InsertRun
	}
	k.claim(run.ID) // so that nobody takes the row for a run that the guest has forgotten
	if err := insert(ctx, run); err != nil {
		k.unclaim(run.ID)
		return run, nil, err
	}
	started, err := k.start(ctx, c, cmd)
	if err != nil {
		if e := (*guest.Error)(nil); errors.As(err, &e) {
			settle, cancel := settled(ctx)
			defer cancel()
			run.State, run.Reason = sandbox.RunLost, "It was not started. "+e.Detail
			err = errors.Join(refused(err), m.cfg.Store.EndRun(settle, run))
			k.unclaim(run.ID)
			return run, nil, err
		}
		k.watch(run)
		return run, nil, err
	}
	output, err := started.Frames()
	if err == nil && output != nil && m.record(ctx, run.ID, started) == nil {
		m.recordShort(run.Account, run.ID, output)
		k.unclaim(run.ID)
		ended, err := m.cfg.Store.Run(ctx, run.Account, run.ID)
		return ended, output, err
	}
	k.watch(run) // which also asks again about what makes no sense
	return run, nil, nil
}

// start gives cmd to the guest, over the next connection if one is lost: the guest starts an ID once.
func (k *keeper) start(ctx context.Context, c *guest.Client, cmd guest.Command) (guest.Run, error) {
	for failures := 1; ; failures++ {
		started, err := c.Start(ctx, cmd)
		if err == nil || !errors.Is(err, guest.ErrLost) {
			return started, err
		}
		if !pause(ctx, backoff(failures, 20*time.Millisecond, time.Second)) {
			return started, ctx.Err()
		}
		if c, err = k.connection(ctx); err != nil {
			if errors.Is(err, errKept) {
				return started, &sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_not_running", Detail: "The sandbox ended while the process was being started."}
			}
			return started, err
		}
	}
}

// claim marks a run as one whose end is seen to. It reports whether it was not before.
func (k *keeper) claim(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.watched[id] {
		return false
	}
	k.watched[id] = true
	return true
}

func (k *keeper) unclaim(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.watched, id)
}

// running lists the sandbox's runs whose end is not recorded.
func (k *keeper) running(ctx context.Context) ([]sandbox.Run, error) {
	all, err := k.m.cfg.Store.RunningRuns(ctx)
	if err != nil {
		return nil, err
	}
	var ours []sandbox.Run
	for _, r := range all {
		if r.Sandbox == k.id {
			ours = append(ours, r)
		}
	}
	return ours, nil
}

// watchAll sees to the end of each run that a former process has left, and that nobody sees to yet.
func (k *keeper) watchAll(ctx context.Context) error {
	runs, err := k.running(ctx)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if k.claim(r.ID) {
			k.watch(r)
		}
	}
	return nil
}

// watch copies the output of a run that was claimed, and records its end.
func (k *keeper) watch(run sandbox.Run) {
	id, rec := run.ID, k.m.takeRecording(run.Account, run.ID)
	rec.setLive(true)
	over := func() {
		rec.setLive(false)
		rec.release()
		k.unclaim(id)
	}
	ok := k.m.spawn(func(ctx context.Context) {
		defer over()
		for failures := 1; ; failures++ {
			c, err := k.connection(ctx)
			if err != nil {
				return // the end of the sandbox is the end of its runs; or the next process goes on
			}
			ended, err := k.follow(ctx, c, run, rec)
			switch e := (*guest.Error)(nil); {
			case err == nil:
				err = k.m.record(ctx, id, ended)
			case errors.As(err, &e) && e.Status == 404:
				err = k.m.lose(ctx, run.Account, id, "Its end was not seen: the sandbox's helper doesn't know it. Perhaps it was never started.")
			}
			if err == nil {
				return
			}
			if ctx.Err() == nil {
				k.m.log.Warn("the end of a run is not recorded yet", "run", id, "err", err)
			}
			pause(ctx, backoff(failures, 20*time.Millisecond, 10*time.Second))
		}
	})
	if !ok {
		over()
	}
}

// record writes down the end of a run that the guest has seen. Only what makes sense is believed.
func (m *Manager) record(ctx context.Context, id string, ended guest.Run) error {
	run := sandbox.Run{ID: id, EndedAt: time.Now().UTC(), OutputNext: min(max(ended.Next, 0), 1<<62)}
	if !ended.EndedAt.IsZero() && ended.EndedAt.Before(run.EndedAt) {
		run.EndedAt = ended.EndedAt
	}
	switch {
	case ended.State == guest.StateExited && ended.Code != nil:
		run.State, run.ExitCode = sandbox.RunExited, ended.Code
	case ended.State == guest.StateSignaled && ended.Signal != "":
		run.State, run.Signal = sandbox.RunSignaled, ended.Signal
	case ended.State == guest.StateTimeout:
		run.State, run.ExitCode, run.Signal = sandbox.RunTimeout, ended.Code, ended.Signal
		run.Reason = "It ran longer than it was allowed to."
	case ended.State == guest.StateOOM && ended.Signal == "SIGKILL":
		run.State, run.ExitCode, run.Signal = sandbox.RunOOM, ended.Code, ended.Signal
		run.Reason = "The sandbox's memory was nearly used up, and this run used the most of it."
	default:
		run.State, run.Reason = sandbox.RunLost, "The sandbox's helper told its end in a way that makes no sense."
	}
	settle, cancel := settled(ctx)
	defer cancel()
	return m.cfg.Store.EndRun(settle, run)
}

// lose writes down that nobody saw the end of a run.
func (m *Manager) lose(ctx context.Context, account, id, reason string) error {
	settle, cancel := settled(ctx)
	defer cancel()
	return m.cfg.Store.EndRun(settle, sandbox.Run{ID: id, State: sandbox.RunLost, Reason: reason, OutputNext: m.recorded(account, id)})
}

// Run returns one run of account.
func (m *Manager) Run(ctx context.Context, account, id string) (sandbox.Run, error) {
	r, err := m.cfg.Store.Run(ctx, account, id)
	return m.withOutput(r), err
}

// Runs lists runs of a sandbox, newest first; next is the cursor of the next page, "" on the last.
func (m *Manager) Runs(ctx context.Context, f sandbox.RunFilter) (all []sandbox.Run, next string, err error) {
	all, next, err = m.cfg.Store.Runs(ctx, f)
	for i, r := range all {
		all[i] = m.withOutput(r)
	}
	return all, next, err
}

// WaitRun returns once the run's end is recorded. With an error comes what was last known of the run, if anything.
func (m *Manager) WaitRun(ctx context.Context, account, id string) (sandbox.Run, error) {
	var run sandbox.Run
	err := m.until(ctx, func() (bool, error) {
		now, err := m.cfg.Store.Run(ctx, account, id)
		if err == nil {
			run = now
		}
		return now.State != sandbox.RunRunning, err
	})
	return run, err
}

// Signal sends a signal ("SIGINT") to a run's processes.
func (m *Manager) Signal(ctx context.Context, account, id, signal string) error {
	run, err := m.cfg.Store.Run(ctx, account, id)
	if err != nil {
		return err
	}
	if run.State != sandbox.RunRunning {
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "run_ended", Detail: "The run has ended; there is nothing to signal."}
	}
	c, err := m.Guest(ctx, account, run.Sandbox)
	if err != nil {
		return err
	}
	return refused(c.Signal(ctx, id, signal))
}

// WriteStdin writes b to a run's input, of which at bytes were taken before, and then closes it if closeAfter. It may be repeated, also
// after an error: what was taken is not taken again. It waits for the process to read, over connections that are lost and made again, and
// returns how much of the input was taken in all. With at below 0 it comes after whatever the input has come to; then it is not known after
// an error whether it was taken.
func (m *Manager) WriteStdin(ctx context.Context, run sandbox.Run, at int64, b []byte, closeAfter bool) (int64, error) {
	for failures := 1; ; failures++ {
		if at < 0 && run.State != sandbox.RunRunning {
			return 0, &sandbox.Problem{Class: sandbox.ErrState, Code: "run_ended", Detail: "The run has ended; nobody reads its input."}
		}
		c, err := m.Guest(ctx, run.Account, run.Sandbox)
		if err != nil {
			return 0, err
		}
		if at < 0 {
			return appendStdin(ctx, c, run.ID, b, closeAfter)
		}
		err = c.WriteStdinAt(ctx, run.ID, at, b, closeAfter)
		if err == nil {
			return at + int64(len(b)), nil
		}
		if !errors.Is(err, guest.ErrLost) {
			return at, refused(err)
		}
		if !pause(ctx, backoff(failures, 20*time.Millisecond, time.Second)) {
			return at, ctx.Err()
		}
	}
}

func appendStdin(ctx context.Context, c *guest.Client, id string, b []byte, closeAfter bool) (int64, error) {
	err := c.WriteStdin(ctx, id, bytes.NewReader(b), closeAfter)
	var now guest.Run
	if err == nil {
		now, err = c.Run(ctx, id)
	}
	if errors.Is(err, guest.ErrLost) {
		err = &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "stdin_unknown", Err: err,
			Detail: "The connection to the sandbox broke while the input was written: it may have been taken. Name its place with at, and it can be repeated."}
	}
	return now.Stdin, refused(err)
}
