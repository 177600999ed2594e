package claude

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// drive does what is due for the session until there is nothing that could become due. Reading the CLI's output and writing its input
// are goroutines of their own, so that the driver never waits for the CLI.
func (c *conv) drive(ctx context.Context) {
	defer c.s.release(c)
	for ctx.Err() == nil {
		c.mu.Lock()
		act, at := c.due(ctx, time.Now())
		if act == nil && at.IsZero() && c.proc == nil && c.turn == nil && len(c.queue) == 0 && !c.dirty() {
			c.driving = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if act != nil {
			if err := act(ctx); err != nil && ctx.Err() == nil {
				c.s.log.WarnContext(ctx, "a session can't go on; trying again", "session", c.id, "err", err)
				pause(ctx, firstBackoff)
			}
			continue
		}
		c.sleep(ctx, at)
	}
	c.mu.Lock()
	c.driving = false
	c.mu.Unlock()
}

// sleep returns when the driver should look again.
func (c *conv) sleep(ctx context.Context, at time.Time) {
	var timer <-chan time.Time
	if !at.IsZero() {
		t := time.NewTimer(max(time.Until(at), time.Millisecond))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-c.wake:
	case <-timer:
	case <-ctx.Done():
	}
}

// due returns what is to be done now, or else when there will be something; the zero time = when the driver is woken. The caller holds mu.
func (c *conv) due(ctx context.Context, now time.Time) (act func(context.Context) error, at time.Time) {
	sooner := func(t time.Time) bool {
		if !t.After(now) {
			return true
		}
		if at.IsZero() || t.Before(at) {
			at = t
		}
		return false
	}
	for _, a := range c.asks {
		if sooner(a.ExpiresAt) {
			return c.expire, at
		}
	}
	p := c.proc
	if p == nil {
		if len(c.queue) > 0 && c.turn == nil && sooner(c.retryAt) {
			return c.start, at
		}
		return nil, at
	}
	if len(p.inputs) > 0 && !p.writing && sooner(p.writeAt) {
		p.writing = true
		if !c.s.later(func(ctx context.Context) { c.writeInputs(ctx, p) }) {
			return func(ctx context.Context) error { <-ctx.Done(); return nil }, at // the server ends
		}
	}
	if since := c.stopping(p); !since.IsZero() && p.stage < len(insistence) && sooner(c.insistAt(p, since)) {
		return func(ctx context.Context) error { return c.force(ctx, p) }, at
	}
	switch {
	case c.turn != nil:
		if len(c.asks) == 0 && c.s.quiet > 0 && sooner(c.turn.quietAt) {
			t := c.turn
			return func(ctx context.Context) error { return c.tellQuiet(ctx, p, t) }, at
		}
	case p.Closed:
	case len(c.queue) > 0 && c.queue[0].Sandbox == p.Sandbox:
		return c.begin, at
	case len(c.queue) > 0, len(c.asks) == 0 && sooner(p.idle.Add(c.s.idle)):
		return func(ctx context.Context) error { return c.close(ctx, p) }, at
	}
	return nil, at
}

// stopping returns since when p is to end, or the turn in it; zero = it isn't.
func (c *conv) stopping(p *process) time.Time {
	if c.turn != nil && !c.turn.stopAt.IsZero() {
		return c.turn.stopAt
	}
	if c.turn == nil {
		return p.stopping
	}
	return time.Time{}
}

// insistAt is when p gets its next signal.
func (c *conv) insistAt(p *process, since time.Time) time.Time {
	if c.turn == nil {
		since = since.Add(graceClose)
	}
	for _, step := range insistence[:p.stage+1] {
		since = since.Add(step.grace)
	}
	if p.insistAt.After(since) {
		return p.insistAt
	}
	return since
}

// force makes a process end that was asked to, or whose turn was.
func (c *conv) force(ctx context.Context, p *process) error {
	c.mu.Lock()
	signal := insistence[p.stage].signal
	p.stage++
	c.mu.Unlock()
	short, cancel := context.WithTimeout(ctx, signalLimit)
	defer cancel()
	err := c.s.runner.Signal(short, p.run.Account, p.Run, signal)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	c.s.log.WarnContext(ctx, "could not stop a process of Claude", "session", c.id, "run", p.Run, "signal", signal, "err", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.stage == len(insistence) { // the last one must come: perhaps its sandbox is suspended
		p.stage--
		p.insistAt = time.Now().Add(maxBackoff)
	}
	return nil
}

// sleeps reports whether a process's sandbox is suspended: then the process neither hears nor says anything, and that means nothing.
func (c *conv) sleeps(ctx context.Context, p *process) bool {
	sb, err := c.s.runner.Sandbox(ctx, p.run.Account, p.Sandbox)
	return err == nil && sb.State.Live() && sb.State != sandbox.Running
}

// close ends p's input, so that it ends.
func (c *conv) close(ctx context.Context, p *process) error {
	sleeps := c.sleeps(ctx, p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if sleeps && len(c.queue) == 0 {
		p.idle = time.Now()
		return nil
	}
	if c.proc != p || p.Closed || c.turn != nil {
		return nil
	}
	if err := c.give(ctx, p, sandbox.SessionWrite{}, nil, true); err != nil {
		return err
	}
	p.stopping = time.Now()
	return nil
}

// expire denies what nobody has decided in time.
func (c *conv) expire(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := 0; i < len(c.asks); {
		a := c.asks[i]
		if a.ExpiresAt.After(time.Now()) {
			i++
			continue
		}
		message := fmt.Sprintf("Nobody decided this within %s, so it was denied. Go on without it, or stop and say what you need.", c.s.promptTimeout)
		a.Answer = encode(denial{Behavior: behaviorDeny, Message: message})
		a.State, a.AnsweredAt = sandbox.AskExpired, time.Now()
		if err := c.answer(ctx, i, a, sandbox.SessionWrite{}); err != nil {
			return err
		}
	}
	return nil
}

// begin gives the next turn to the process that lives.
func (c *conv) begin(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.proc
	if p == nil || p.Closed || c.turn != nil || len(c.queue) == 0 || c.queue[0].Sandbox != p.Sandbox {
		return nil // it has changed since
	}
	return c.beginTurn(ctx, p, c.queue[0], sandbox.SessionWrite{}, true)
}

// beginTurn records, as one, that t runs in p, its prompt and what the CLI is to be told. w may begin p itself; then p lives after it.
func (c *conv) beginTurn(ctx context.Context, p *process, t *turn, w sandbox.SessionWrite, lives bool) error {
	before, old := p.Process, t.Turn
	row := t.Turn
	if row.Model == "" {
		row.Model = c.ses.Model
	}
	if row.PermissionMode == "" {
		row.PermissionMode = c.ses.PermissionMode
	}
	row.State, row.Run, row.StartedAt = sandbox.TurnRunning, p.Run, time.Now()
	ses := c.ses
	ses.Sandbox, ses.Model, ses.PermissionMode = row.Sandbox, row.Model, row.PermissionMode
	var events []sandbox.SessionEvent
	if row.Seq == 0 {
		ses.Turns++
		row.Seq = c.next
		events = append(events, sandbox.SessionEvent{Run: p.Run, Turn: row.ID, Kind: sandbox.SessionPrompt, Data: encode(promptData{
			Type: "prompt", Text: row.Text, Run: p.Run, Turn: row.ID, Author: row.Author, Model: row.Model, PermissionMode: row.PermissionMode})})
	}
	w.Events = append(events, w.Events...)
	data, named := c.adjust(p, row.Model, row.PermissionMode)
	w.Turns, w.Update = append(w.Turns, row), &ses
	undo := p.input(&w, append(data, userLine(row, c.ses.UUID)...), false)
	if err := c.commit(ctx, w); err != nil {
		undo()
		p.restore(before)
		t.Turn = old
		return err
	}
	for id, what := range named {
		p.controls[id] = what
	}
	if !lives {
		p.inputs = append(p.inputs, w.Inputs...)
		c.proc = p
	}
	now := time.Now()
	t.Turn, c.ses, c.turn, c.queue = row, ses, t, slices.DeleteFunc(c.queue, func(q *turn) bool { return q == t })
	t.quietAt, p.spoke = now.Add(c.s.quiet), now
	p.stage = 0
	c.hub.clear()
	if lives { // else it is known soon whether it does
		close(t.begun)
	}
	c.poke()
	return nil
}

// adjust returns what p must be told to work with that model in that mode, and which of it is ours to hear of. It changes p's own record.
func (c *conv) adjust(p *process, model, mode string) (data []byte, named map[string]string) {
	named = map[string]string{}
	tell := func(what string, request map[string]any) {
		id := newUUID()
		data = append(data, controlLine(id, request)...)
		named[id] = what
	}
	if model != p.Model {
		name := model
		if name == "" {
			name = "default"
		}
		tell("the model "+name, map[string]any{"subtype": "set_model", "model": name})
		p.Model = model
	}
	if mode != p.PermissionMode {
		tell("the permission mode "+mode, map[string]any{"subtype": "set_permission_mode", "mode": mode})
		p.PermissionMode = mode
	}
	return data, named
}

// start begins the next turn in a process of its own, which then lives on.
func (c *conv) start(ctx context.Context) error {
	c.mu.Lock()
	if c.proc != nil || c.turn != nil || len(c.queue) == 0 {
		c.mu.Unlock()
		return nil
	}
	t, ses := c.queue[0], c.ses
	row := t.Turn
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p, err := c.launch(ctx, t, row, ses)
	if p == nil {
		return c.failStart(ctx, t, err)
	}
	c.mu.Lock()
	t.err = err // its log says it too
	c.mu.Unlock()
	close(t.begun)
	c.s.later(func(ctx context.Context) { c.follow(ctx, p) }) // if the server ends, the next one does
	return nil
}

var errWithdrawn = errors.New("claude: the turn does not wait any more")

// launch starts a process for a turn. If it returns a process, that is recorded and must be followed, whatever the error says.
func (c *conv) launch(ctx context.Context, t *turn, row sandbox.Turn, ses sandbox.Session) (*process, error) {
	s := c.s
	sb, err := s.runner.Sandbox(ctx, row.Account, row.Sandbox)
	if err != nil {
		return nil, err
	}
	w, resume, err := s.restore(ctx, sb, ses, row)
	if err != nil {
		return nil, err
	}
	if row.Model == "" {
		row.Model = ses.Model
	}
	if row.PermissionMode == "" {
		row.PermissionMode = ses.PermissionMode
	}
	run := sandbox.Run{ID: sandbox.NewID(sandbox.PrefixRun), Account: row.Account, Sandbox: sb.ID, Kind: sandbox.RunClaude, Session: c.id,
		State: sandbox.RunRunning}
	cmd := command(row, ses.UUID, resume, sb.Spec, run.ID)
	run.Argv = cmd.Argv
	for i := range w.Events {
		w.Events[i].Run = run.ID
	}
	var p *process
	insert := func(ctx context.Context, r sandbox.Run) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.queue) == 0 || c.queue[0] != t || c.proc != nil {
			return errWithdrawn
		}
		fresh := c.newProcess(sandbox.Process{Run: r.ID, Session: c.id, Sandbox: sb.ID, Model: row.Model, PermissionMode: row.PermissionMode}, r)
		w.Begin = &r
		if err := c.beginTurn(ctx, fresh, t, w, false); err != nil {
			return err
		}
		p = fresh
		return nil
	}
	_, err = s.runner.StartRun(ctx, run, cmd, insert)
	return p, err
}

// failStart ends a turn that could not be begun, unless it may be later.
func (c *conv) failStart(ctx context.Context, t *turn, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleLimit)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 || c.queue[0] != t || errors.Is(err, errWithdrawn) {
		return nil
	}
	problem := (*sandbox.Problem)(nil)
	if !t.waiting && t.tries < startTries && (errors.Is(err, sandbox.ErrUnavailable) || !errors.As(err, &problem)) {
		t.tries++
		c.retryAt = time.Now().Add(time.Duration(t.tries) * time.Second)
		c.s.log.WarnContext(ctx, "a turn can't be begun yet", "session", c.id, "turn", t.ID, "err", err)
		return nil
	}
	reason := err.Error()
	if problem != nil || errors.As(err, &problem) {
		reason = problem.Detail
	}
	old := t.Turn
	row := t.Turn
	row.State, row.Reason, row.EndedAt = sandbox.TurnFailed, reason, time.Now()
	w := sandbox.SessionWrite{}
	if !t.waiting { // who waits is told, and nothing has happened; else the log says it
		ses := c.ses
		if row.Seq == 0 {
			ses.Turns++
			row.Seq = c.next
			w.Events = append(w.Events, sandbox.SessionEvent{Turn: row.ID, Kind: sandbox.SessionPrompt, Data: encode(promptData{
				Type: "prompt", Text: row.Text, Turn: row.ID, Author: row.Author, Model: row.Model, PermissionMode: row.PermissionMode})})
		}
		row.EndSeq = c.next + int64(len(w.Events))
		w.Update = &ses
		w.Events = append(w.Events, sandbox.SessionEvent{Turn: row.ID, Kind: sandbox.SessionEnd, Data: encode(endData{
			Type: "end", Turn: row.ID, Outcome: row.State, State: sandbox.RunLost, Reason: reason})})
	}
	w.Turns = append(w.Turns, row)
	t.Turn = row
	if cerr := c.commit(ctx, w); cerr != nil {
		t.Turn = old
		return cerr
	}
	if w.Update != nil {
		c.ses = *w.Update
	}
	c.queue = c.queue[1:]
	t.err = err
	close(t.begun)
	return nil
}

const (
	startTries  = 5
	startLimit  = time.Minute // for starting the CLI
	settleLimit = 10 * time.Second
	signalLimit = 10 * time.Second
	graceClose  = 20 * time.Second // for a process to end by itself when its input has
)

// tellQuiet says that nothing comes, and whether the process is busy all the same.
func (c *conv) tellQuiet(ctx context.Context, p *process, t *turn) error {
	sleeps, state := c.sleeps(ctx, p), ""
	if !sleeps {
		state = c.s.busyState(ctx, p.run)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.turn != t || t.quietAt.After(time.Now()) {
		return nil
	}
	if t.quietAt = time.Now().Add(c.s.quiet); sleeps {
		return nil
	}
	silence := time.Since(p.spoke).Round(time.Second)
	ev := noticeEvent(p.Run, t.ID, notice{Subtype: "quiet", Seconds: int(silence / time.Second), Process: state,
		Text: fmt.Sprintf("Claude Code has said nothing for %s; its processes are %s.", silence, state)})
	ev.Live = true
	if err := c.commit(ctx, sandbox.SessionWrite{Events: []sandbox.SessionEvent{ev}}); err != nil {
		return err
	}
	ev.Seq, ev.At = c.next-1, time.Now()
	c.hub.partial(ev, true)
	return nil
}

// busyState tells whether a run's processes use the processor: "busy", "idle", or "unknown" if they can't be seen.
func (s *Sessions) busyState(ctx context.Context, run sandbox.Run) string {
	ctx, cancel := context.WithTimeout(ctx, signalLimit)
	defer cancel()
	before, err := s.runner.CPUTime(ctx, run.Account, run.ID)
	if err != nil || !pause(ctx, sampleTime) {
		return "unknown"
	}
	after, err := s.runner.CPUTime(ctx, run.Account, run.ID)
	if err != nil {
		return "unknown"
	}
	if after-before >= sampleTime/20 {
		return "busy"
	}
	return "idle"
}

const sampleTime = time.Second
