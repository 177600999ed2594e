package claude

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	framesAhead = 16      // frames read ahead of the store
	maxBatch    = 256     // lines recorded at once
	batchBytes  = 1 << 20 // or so many bytes
	stderrTail  = 4 << 10

	// lostNumbers is what the numbers skip when a new server finds the output of a process gone: its predecessor may have given
	// numbers to partial lines that nobody can count any more.
	lostNumbers = 1 << 20

	batchDelay = 50 * time.Millisecond // or after so long, though more is coming

	// patience is how often the output of a process that has ended is tried to be read before it is given up.
	patience = 8

	firstBackoff, maxBackoff = 200 * time.Millisecond, 30 * time.Second
)

// follow takes the output of p over into the store until its end is recorded, or ctx is done.
func (c *conv) follow(ctx context.Context, p *process) {
	whole := c.read(ctx, p)
	if ctx.Err() != nil {
		return
	}
	var run sandbox.Run
	if !c.insist(ctx, "its end can't be read", func() (err error) {
		run, err = c.s.runner.WaitRun(ctx, p.run.Account, p.Run)
		return err
	}) {
		return
	}
	c.insist(ctx, "its end can't be recorded", func() error { return c.end(ctx, p, run, whole) })
}

// insist tries something until it works; false if ctx ended first.
func (c *conv) insist(ctx context.Context, problem string, try func() error) bool {
	for backoff := firstBackoff; ; backoff = min(2*backoff, maxBackoff) {
		err := try()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		c.s.log.WarnContext(ctx, "following a process of Claude: "+problem+"; trying again", "session", c.id, "err", err)
		pause(ctx, backoff)
	}
}

// pause waits; false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// read takes the output over. It returns false if it is gone before its end, or can't be read though the process has ended.
func (c *conv) read(ctx context.Context, p *process) (whole bool) {
	backoff := firstBackoff
	for tries := 1; ctx.Err() == nil; tries++ {
		before := p.at
		end, err := c.pass(ctx, p)
		if err == nil {
			return end
		}
		if p.at > before {
			tries, backoff = 1, firstBackoff
		}
		c.s.log.WarnContext(ctx, "reading what Claude says broke off; trying again", "session", c.id, "run", p.Run, "err", err)
		if run, rerr := c.s.store.Run(ctx, "", p.Run); rerr == nil && run.State != sandbox.RunRunning && tries > patience {
			c.s.log.ErrorContext(ctx, "the rest of what Claude said is given up", "session", c.id, "run", p.Run, "err", err)
			return false
		}
		pause(ctx, backoff)
		backoff = min(2*backoff, maxBackoff)
	}
	return false
}

// pass reads the output from where p is. Without an error it is at its end (true), or gone.
func (c *conv) pass(ctx context.Context, p *process) (end bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	items := make(chan item, framesAhead)
	done := make(chan struct{})
	defer func() {
		cancel()
		<-done
	}()
	from := p.at
	go func() {
		defer close(done)
		defer close(items)
		for f, err := range c.s.runner.Output(ctx, p.run, from) {
			select {
			case items <- item{f, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		var it item
		var ok bool
		select {
		case it, ok = <-items:
		default: // nothing is waiting: record what there is before waiting for more
			if err := c.flush(ctx, true); err != nil {
				return false, err
			}
			it, ok = <-items
		}
		switch {
		case !ok && ctx.Err() != nil:
			return false, ctx.Err()
		case !ok:
			return false, errors.New("the output stopped without an end")
		case it.err != nil && isGone(it.err):
			return false, nil
		case it.err != nil:
			return false, it.err
		}
		c.mu.Lock()
		end := p.frame(it.frame)
		c.mu.Unlock()
		if end {
			return true, nil
		}
		if err := c.flush(ctx, false); err != nil {
			return false, err
		}
	}
}

type item struct {
	frame guest.Frame
	err   error
}

// flush records the batch, if it is full, or anyway.
func (c *conv) flush(ctx context.Context, anyway bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	full := len(c.batch.Events) >= maxBatch || c.bytes >= batchBytes || len(c.batch.Events) > 0 && time.Since(c.since) >= batchDelay
	if !c.dirty() || !full && !anyway {
		return nil
	}
	err := c.commit(ctx, sandbox.SessionWrite{})
	c.poke()
	return err
}

// frame takes one frame; true at the end of the run. The caller holds the conv's mu.
func (p *process) frame(f guest.Frame) bool {
	switch f.Kind {
	case guest.End:
		return true
	case guest.Gap:
		from := p.at
		if len(f.Data) == 8 {
			from = max(from, int64(binary.BigEndian.Uint64(f.Data)))
		}
		if f.Offset > p.at {
			p.split.gap(from, f.Offset)
			p.at = f.Offset
		}
		return false
	}
	data := f.Data
	if known := p.at - f.Offset; known > 0 { // seen before a connection was made anew
		data = data[min(known, int64(len(data))):]
	}
	at := p.at
	p.at = max(p.at, f.Offset+int64(len(f.Data)))
	switch f.Kind {
	case guest.Stdout:
		p.spoke = time.Now()
		p.split.write(data, max(at, f.Offset))
	case guest.Stderr:
		p.stderr = append(p.stderr, data...)
		if n := len(p.stderr) - stderrTail; n > 0 {
			p.stderr = append(p.stderr[:0], p.stderr[n:]...)
		}
	}
	return false
}

// line takes one line of p's output; next is the offset after it.
func (c *conv) line(p *process, data []byte, next int64) {
	p.seen = next
	ev := sandbox.SessionEvent{Run: p.Run, Kind: kindOf(data), Data: bytes.Clone(data)}
	if c.turn != nil {
		ev.Turn = c.turn.ID
		c.turn.quietAt = p.spoke.Add(c.s.quiet)
	}
	if ev.Kind == sandbox.SessionPartial {
		ev.Seq, ev.At = c.next, p.spoke
		c.next++
		c.hub.partial(ev, len(c.batch.Events) == 0)
		return
	}
	if !c.understand(p, ev) {
		c.add(ev)
	}
	p.lasting = next
}

// understand does what a line means for us beside being passed on. It returns true if it has dealt with the line.
func (c *conv) understand(p *process, ev sandbox.SessionEvent) bool {
	uuid := ""
	if c.turn != nil && !c.turn.Taken {
		uuid = c.turn.UUID
	}
	h, ok := readHead(ev.Data, uuid)
	if !ok {
		return false
	}
	switch h.Type {
	case "user":
		if !h.IsReplay || h.UUID != uuid {
			return false
		}
		c.turn.Taken = true // the CLI has begun with our prompt; the line says nothing that the prompt event doesn't
		c.batch.Turns = append(c.batch.Turns, c.turn.Turn)
		return true
	case "system":
		c.learn(p, h)
	case "result":
		c.add(ev)
		c.result(p, h)
		return true
	case "control_request":
		c.add(ev)
		c.asked(p, h)
		return true
	case "control_cancel_request":
		c.add(ev)
		if i := c.pending(func(a sandbox.Ask) bool { return a.Run == p.Run && a.Request == h.RequestID }); i >= 0 {
			c.settle(i, sandbox.AskWithdrawn)
		}
		return true
	case "control_response":
		if h.isEcho() {
			return true // the answer event says it
		}
		c.add(ev)
		what, ours := p.controls[h.Response.RequestID]
		delete(p.controls, h.Response.RequestID)
		if ours && h.Response.Subtype == "error" {
			c.add(noticeEvent(p.Run, ev.Turn, notice{Subtype: "refused", Text: "Claude Code refused " + what + ": " + h.Response.Error}))
		}
		return true
	}
	return false
}

// learn takes over what the CLI says of itself: the name of its conversation changes with /clear, and the permission mode with a plan
// that was approved.
func (c *conv) learn(p *process, h head) {
	ses, row := c.ses, p.Process
	if h.Subtype == "init" && isUUID(h.SessionID) {
		ses.UUID = h.SessionID
	}
	if slices.Contains(permissionModes, h.PermissionMode) {
		row.PermissionMode, ses.PermissionMode = h.PermissionMode, h.PermissionMode
	}
	if ses != c.ses {
		c.ses = ses
		c.batch.Update = &ses
	}
	if row != p.Process {
		p.restore(row)
		c.batch.Process = &row
	}
}

// result ends the turn that runs. Not if it is of something that the CLI did by itself before it took the prompt up; its own commands
// it doesn't tell to have taken up.
func (c *conv) result(p *process, h head) {
	t := c.turn
	if t == nil || t.Run != p.Run || !t.Taken && !t.Interrupted && h.NumTurns > 0 {
		return
	}
	failed := h.IsError || h.Subtype != "success" && h.Subtype != ""
	switch {
	case t.Interrupted && failed:
		c.endTurn(sandbox.TurnInterrupted, "It was interrupted on request.", endData{State: sandbox.RunExited})
	case failed:
		reason := h.resultText()
		if reason == "" {
			reason = "Claude ended the turn with " + strings.ToValidUTF8(h.Subtype, "?") + "."
		}
		c.endTurn(sandbox.TurnFailed, reason, endData{State: sandbox.RunExited})
	default:
		c.endTurn(sandbox.TurnDone, "", endData{State: sandbox.RunExited})
	}
	p.idle = time.Now()
}

// endTurn ends the turn that runs.
func (c *conv) endTurn(state sandbox.TurnState, reason string, end endData) {
	t := c.turn
	t.State, t.Reason, t.EndedAt, t.EndSeq = state, reason, time.Now(), c.next
	end.Type, end.Turn, end.Outcome, end.Run, end.Reason = "end", t.ID, state, t.Run, reason
	if end.Reason == "" && end.State != sandbox.RunExited {
		end.Reason = t.Reason
	}
	c.add(sandbox.SessionEvent{Run: t.Run, Turn: t.ID, Kind: sandbox.SessionEnd, Data: encode(end)})
	c.batch.Turns = append(c.batch.Turns, t.Turn)
	c.turn = nil
}

// asked takes what the CLI asks.
func (c *conv) asked(p *process, h head) {
	if h.Request.Subtype != "can_use_tool" {
		p.input(&c.batch, refusalLine(h.RequestID, h.Request.Subtype), false)
		return
	}
	if len(c.asks) >= maxPending || len(h.RequestID) > maxName {
		p.input(&c.batch, refusalLine(h.RequestID, "too many are open"), false)
		return
	}
	a := askOf(h)
	now := time.Now()
	a.Account, a.Session, a.Run, a.CreatedAt, a.ExpiresAt = c.ses.Account, c.id, p.Run, now, now.Add(c.s.promptTimeout)
	if c.turn != nil {
		a.Turn = c.turn.ID
	}
	c.asks = append(c.asks, a)
	c.batch.NewAsks = append(c.batch.NewAsks, a)
	c.add(askEvent(a))
}

// settle ends a pending ask that nobody answered.
func (c *conv) settle(i int, state sandbox.AskState) {
	a := c.asks[i]
	a.State, a.AnsweredAt = state, time.Now()
	c.asks = slices.Delete(c.asks, i, i+1)
	c.batch.Settled = append(c.batch.Settled, a)
	c.add(answerEvent(a))
}

// end records the end of p. It may be tried again.
func (c *conv) end(ctx context.Context, p *process, run sandbox.Run, whole bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.split.finish(p.at)
	resumed := p.resumed
	if !whole && resumed { // numbers that readers have seen must not come again
		c.next += lostNumbers
		p.resumed = false
	}
	for len(c.asks) > 0 {
		c.settle(0, sandbox.AskLost)
	}
	if t := c.turn; t != nil && t.Run == p.Run {
		if resumed && !whole && startsAgain(t, run, p) {
			anew := newTurn(t.Turn)
			anew.Run, anew.State, anew.tries = "", sandbox.TurnQueued, t.tries+1
			c.batch.Turns = append(c.batch.Turns, anew.Turn)
			c.queue = slices.Insert(c.queue, 0, anew)
			c.turn = nil
		} else {
			c.died(p, run)
		}
	} else if c.gone != p { // nobody would know why the next turn begins in a new process
		c.gone = p
		c.add(noticeEvent(p.Run, "", notice{Subtype: "process_ended", Text: "The process of Claude Code has ended" + p.why(run) +
			". The next prompt starts another, which goes on with the conversation."}))
	}
	if err := c.commit(ctx, sandbox.SessionWrite{Gone: p.Run}); err != nil {
		return err
	}
	c.proc = nil
	close(p.ended)
	c.poke()
	return nil
}

// startsAgain reports whether a turn can be begun anew as if it never had been: the server that began it died, and nothing of its process
// was ever seen. It is tried once.
func startsAgain(t *turn, run sandbox.Run, p *process) bool {
	return run.State == sandbox.RunLost && p.at == 0 && !t.Interrupted && t.tries == 0
}

// died ends a turn whose process has ended.
func (c *conv) died(p *process, run sandbox.Run) {
	end := endData{State: run.State, ExitCode: run.ExitCode, Signal: run.Signal}
	said := strings.TrimSpace(strings.ToValidUTF8(string(p.stderr), "?"))
	switch {
	case c.turn.Interrupted && run.State != sandbox.RunLost:
		c.endTurn(sandbox.TurnInterrupted, "It was interrupted on request.", end)
	case run.State == sandbox.RunLost:
		c.endTurn(sandbox.TurnLost, run.Reason, end)
	case run.Reason != "":
		c.endTurn(sandbox.TurnFailed, run.Reason, end)
	case said != "":
		c.endTurn(sandbox.TurnFailed, said, end)
	case run.State == sandbox.RunExited && run.ExitCode != nil && *run.ExitCode == 0:
		c.endTurn(sandbox.TurnFailed, "Claude Code ended before it had answered.", end)
	default:
		c.endTurn(sandbox.TurnFailed, "", end)
	}
}

// why says why a process ended that had no turn.
func (p *process) why(run sandbox.Run) string {
	switch {
	case p.Closed:
		return ", for it had nothing to do"
	case run.Reason != "":
		return ": " + strings.TrimSuffix(run.Reason, ".")
	case run.Signal != "":
		return " by " + run.Signal
	case run.ExitCode != nil && *run.ExitCode != 0:
		return fmt.Sprintf(" with code %d", *run.ExitCode)
	}
	return " by itself"
}
