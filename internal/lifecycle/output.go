package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Output yields a run's output from offset on and goes on until after its End frame, over connections that are lost and made again. What
// isn't there any more is a gap. When the sandbox or its copy of the output is gone, it yields what was recorded here; then comes End if the
// run's end was observed, else an error of class ErrGone. Without recordings, that error comes at once.
func (m *Manager) Output(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error] {
	return func(yield func(guest.Frame, error) bool) {
		v := &viewer{m: m, run: run, offset: offset, yield: yield}
		if err := v.view(ctx); err != nil {
			yield(guest.Frame{}, err)
		}
	}
}

// OutputNow is Output of what there is now: it doesn't wait for more, and ends without an End frame if the run goes on.
func (m *Manager) OutputNow(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error] {
	return func(yield func(guest.Frame, error) bool) {
		v := &viewer{m: m, run: run, offset: offset, yield: yield, now: true}
		if err := v.view(ctx); err != nil {
			yield(guest.Frame{}, err)
		}
	}
}

// viewer is one reading of a run's output.
type viewer struct {
	m       *Manager
	run     sandbox.Run
	now     bool // only what there is
	noTail  bool // the guest's files were of no use
	rec     *recording
	offset  int64 // everything before it has been handed on
	yield   func(guest.Frame, error) bool
	stopped bool // all was handed on, or nobody wants more
}

// view reads where the output is to be had: in the recording, which costs the guest nothing, as far as that goes, then from the guest.
func (v *viewer) view(ctx context.Context) error {
	if v.rec = v.m.takeRecording(v.run.Account, v.run.ID); v.rec != nil {
		defer v.rec.release()
	}
	for failures := 0; ; failures++ {
		if failures > 0 && !pause(ctx, backoff(failures, 20*time.Millisecond, time.Second)) {
			return ctx.Err()
		}
		before := v.offset
		if err := v.replay(ctx, false); err != nil || v.stopped {
			return err
		}
		if err := v.atRest(ctx); err != nil || v.stopped {
			return err
		}
		k, c, err := v.m.reach(ctx, v.run)
		if err == nil {
			err = v.pass(ctx, k, c)
			if v.stopped {
				return nil
			}
			err = v.m.lasting(ctx, v.run, err)
		}
		if v.rec != nil && errors.Is(err, sandbox.ErrGone) {
			return v.last(ctx, err)
		}
		if err != nil {
			return err
		}
		if v.offset != before {
			failures = -1
		}
	}
}

// hand hands a frame on.
func (v *viewer) hand(f guest.Frame) {
	v.offset = f.Offset
	if f.Kind == guest.Stdout || f.Kind == guest.Stderr {
		v.offset += int64(len(f.Data))
	}
	v.stopped = !v.yield(f, nil) || f.Kind == guest.End
}

// replay hands on what the recording holds, and waits for more as long as that comes there. Unless it is the last there is, it returns at
// the first gap: the guest may have what is missing.
func (v *viewer) replay(ctx context.Context, last bool) error {
	if v.rec == nil {
		return nil
	}
	p := v.rec.From(v.offset)
	defer p.Close()
	for !v.stopped {
		f, changed, err := p.Next()
		switch {
		case err == nil && f.Kind == guest.Gap && !last:
			return nil
		case err == nil:
			v.hand(f)
		case !errors.Is(err, guest.ErrNoMore) || last || !v.rec.live.Load():
			return nil
		case v.now:
			v.stopped = true
		default:
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// atRest hands on what was recorded of a run in a suspended sandbox, gaps and all: the guest can't be asked for a long time.
func (v *viewer) atRest(ctx context.Context) error {
	if v.rec == nil {
		return nil
	}
	sb, err := v.m.cfg.Store.Sandbox(ctx, v.run.Account, v.run.Sandbox)
	if err == nil && sb.State == sandbox.Suspended {
		err = v.replay(ctx, true)
		v.stopped = v.stopped || v.now
	}
	return err
}

// last hands on what was recorded of a run whose guest doesn't have it any more, for the reason that gone tells.
func (v *viewer) last(ctx context.Context, gone error) error {
	if err := v.replay(ctx, true); err != nil || v.stopped {
		return err
	}
	run, err := v.m.WaitRun(ctx, v.run.Account, v.run.ID)
	if err != nil {
		return err
	}
	if run.OutputNext > v.offset {
		if v.hand(guest.GapFrame(v.offset, run.OutputNext)); v.stopped {
			return nil
		}
	}
	if run.State == sandbox.RunLost {
		return gone
	}
	end, err := json.Marshal(guest.Run{
		ID: run.ID, State: guest.State(run.State), Code: run.ExitCode, Signal: run.Signal, StartedAt: run.StartedAt, EndedAt: run.EndedAt, Next: v.offset,
	})
	if err != nil {
		return err
	}
	v.hand(guest.Frame{Kind: guest.End, Offset: v.offset, Data: end})
	return nil
}

// reach finds the guest of a run as long as its sandbox may still have one.
func (m *Manager) reach(ctx context.Context, run sandbox.Run) (*keeper, *guest.Client, error) {
	for {
		sb, err := m.cfg.Store.Sandbox(ctx, run.Account, run.Sandbox)
		if err != nil {
			return nil, nil, err
		}
		if sb.State.Terminal() {
			return nil, nil, &sandbox.Problem{Class: sandbox.ErrGone, Code: "sandbox_gone", Detail: "The sandbox has ended, and the output with it. " + sb.Reason}
		}
		if !m.mayRetry(sb.ID) { // it is stopping, and the engine can't do it; no connection will come
			if err := m.until(ctx, func() (bool, error) {
				sb, err = m.cfg.Store.Sandbox(ctx, run.Account, run.Sandbox)
				return sb.State.Terminal(), err
			}); err != nil {
				return nil, nil, err
			}
			continue
		}
		k := m.keep(sb, false)
		if k == nil {
			return nil, nil, m.unkept(sb)
		}
		c, err := k.connection(ctx)
		if err == nil {
			return k, c, nil
		}
		if !errors.Is(err, errKept) {
			return nil, nil, err
		}
	}
}

// pass hands on frames from one connection, to the end of the run or of the connection.
func (v *viewer) pass(ctx context.Context, k *keeper, c *guest.Client) error {
	defer k.reading()()
	if v.rec != nil && !v.now && !v.noTail {
		if t := k.tail(ctx, v.run, v.offset); t != nil {
			defer t.Close()
			return v.tail(ctx, t)
		}
	}
	for f, err := range c.Output(ctx, v.run.ID, v.offset, !v.now) {
		if err != nil {
			return err
		}
		if v.hand(f); v.stopped {
			return nil
		}
	}
	if v.now {
		v.stopped = true
		return nil
	}
	return guest.ErrLost
}

// tail hands on what the guest writes to its files, until the recording is the better source. A run is read so when it writes much, so
// looking again often is little beside that.
func (v *viewer) tail(ctx context.Context, t *guest.Tail) error {
	const (
		first = time.Millisecond
		most  = 20 * time.Millisecond
		idle  = 2 * time.Second
	)
	wait, since := first, time.Now()
	for {
		f, err := t.Next()
		if err == nil {
			if v.hand(f); v.stopped {
				return nil
			}
			wait, since = first, time.Now()
			continue
		}
		if _, _, ended := v.rec.Bounds(); ended || v.rec.live.Load() {
			return nil
		}
		if time.Since(since) > idle {
			v.noTail = true // the guest is asked next, which tells what is wrong
			return guest.ErrLost
		}
		if !pause(ctx, wait) {
			return ctx.Err()
		}
		wait = min(2*wait, most)
	}
}

// tail opens the files of a run's journal, if the engine has them on this host; nil if not.
func (k *keeper) tail(ctx context.Context, run sandbox.Run, offset int64) *guest.Tail {
	p, ok := engine.As[engine.Journals](k.engine)
	if !ok {
		return nil
	}
	sb, err := k.m.cfg.Store.Sandbox(ctx, run.Account, run.Sandbox)
	if err != nil {
		return nil
	}
	dir, err := p.GuestState(refOf(sb))
	if err != nil {
		return nil
	}
	t, err := guest.OpenTail(dir, run.ID, offset)
	if err != nil {
		return nil
	}
	return t
}

// lasting returns err unless it is one that passes: a lost connection, or a run that is about to be started.
func (m *Manager) lasting(ctx context.Context, run sandbox.Run, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, guest.ErrLost) {
		return nil
	}
	if e := (*guest.Error)(nil); !errors.As(err, &e) || e.Status != 404 {
		return refused(err)
	}
	now, err := m.cfg.Store.Run(ctx, run.Account, run.ID)
	if err != nil {
		return err
	}
	if now.State == sandbox.RunRunning {
		return nil
	}
	return &sandbox.Problem{Class: sandbox.ErrGone, Code: "output_gone", Detail: "The output of the run is not kept any more."}
}
