package claude

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// conv is a session that somebody works on: what stands in the store of it, and its one writer. All that is written to a session goes
// through commit, under mu, so that numbers are given out once and rows and log can't disagree. While it has a process, or a
// turn that waits, its driver does what is due: see drive.
type conv struct {
	s    *Sessions
	id   string
	hub  *hub
	wake chan struct{} // of size 1: the driver should look

	refs int // guarded by Sessions.mu

	mu      sync.Mutex
	loaded  bool            // guarded by mu, like all below
	ses     sandbox.Session // but for LastSeq
	next    int64           // number of the next event
	proc    *process        // nil = none lives
	turn    *turn           // that runs; nil = none
	queue   []*turn         // that wait, in order
	asks    []sandbox.Ask   // that are pending
	batch   sandbox.SessionWrite
	bytes   int       // of the batch
	since   time.Time // when the first of the batch was put there
	driving bool
	gone    *process  // whose end without a turn is in the batch
	retryAt time.Time // when a turn that could not be started may be tried again
}

// turn is a turn that has not ended.
type turn struct {
	sandbox.Turn
	begun   chan struct{} // closed when it runs, or never will
	err     error         // why it never will; read after begun
	waiting bool          // somebody waits for it to begin, and is told err
	tries   int
	stopAt  time.Time // when it was asked to stop
	quietAt time.Time // when it is next told that nothing comes
}

func newTurn(t sandbox.Turn) *turn { return &turn{Turn: t, begun: make(chan struct{})} }

// process is the CLI's process that lives.
type process struct {
	sandbox.Process
	run     sandbox.Run
	resumed bool // a server before this one has followed it too
	split   splitter
	at      int64 // after the last byte of output that was looked at
	seen    int64 // after the last line
	lasting int64 // after the last line that is stored
	stderr  []byte

	inputs   []sandbox.Input // that may not have been written yet
	writing  bool
	writeAt  time.Time         // when to try again
	failures int               // of writes, one after the other
	controls map[string]string // our requests that were not answered yet, and what they are
	spoke    time.Time         // when it last said something
	idle     time.Time         // since when it has had no turn
	stopping time.Time         // when it was told to end
	stage    int               // how far it was made to
	insistAt time.Time         // not before then, the next time
	ended    chan struct{}
}

// Signals for a process that doesn't end when it is told to, and how long it is given before each.
var insistence = []struct {
	grace  time.Duration
	signal string
}{{graceInterrupt, "SIGTERM"}, {graceTerminate, "SIGKILL"}}

// conv returns a session's conv, loaded. It must be given back with release.
func (s *Sessions) conv(ctx context.Context, session string) (*conv, error) {
	c := s.attach(session)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loaded {
		return c, nil
	}
	if err := c.load(ctx); err != nil {
		s.release(c)
		return nil, err
	}
	return c, nil
}

func (s *Sessions) attach(session string) *conv {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.convs[session]
	if c == nil {
		c = &conv{s: s, id: session, hub: s.hubs.attach(session), wake: make(chan struct{}, 1)}
		s.convs[session] = c
	}
	c.refs++
	return c
}

func (s *Sessions) release(c *conv) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.refs--; c.refs > 0 {
		return
	}
	delete(s.convs, c.id)
	c.hub.end()
	s.hubs.release(c.hub)
}

// load reads what the store knows of the session.
func (c *conv) load(ctx context.Context) error {
	st := c.s.store
	ses, err := st.Session(ctx, "", c.id)
	if err != nil {
		return err
	}
	proc, err := c.loadProcess(ctx)
	if err != nil {
		return err
	}
	turns, err := st.OpenTurns(ctx, c.id)
	if err != nil {
		return err
	}
	asks, err := st.Asks(ctx, c.id, true, 0)
	if err != nil {
		return err
	}
	c.ses, c.next, c.proc, c.asks = ses, ses.LastSeq+1, proc, asks
	for _, t := range turns {
		if t.State == sandbox.TurnQueued {
			c.queue = append(c.queue, newTurn(t))
			continue
		}
		c.turn = newTurn(t)
		close(c.turn.begun)
		c.turn.quietAt = time.Now().Add(c.s.quiet)
		if t.Interrupted {
			c.turn.stopAt = time.Now()
		}
	}
	c.hub.begin(ses.LastSeq)
	c.loaded = true
	return nil
}

func (c *conv) loadProcess(ctx context.Context) (*process, error) {
	row, err := c.s.store.Process(ctx, c.id)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	run, err := c.s.store.Run(ctx, "", row.Run)
	if err != nil {
		return nil, err
	}
	inputs, err := c.s.store.Inputs(ctx, row.Run)
	if err != nil {
		return nil, err
	}
	p := c.newProcess(row, run)
	p.resumed, p.inputs = true, inputs
	if row.Closed {
		p.stopping = time.Now()
	}
	return p, nil
}

func (c *conv) newProcess(row sandbox.Process, run sandbox.Run) *process {
	now := time.Now()
	p := &process{Process: row, run: run, at: run.Mirrored, seen: run.Mirrored, lasting: run.Mirrored, controls: map[string]string{},
		spoke: now, idle: now, ended: make(chan struct{})}
	p.split.line = func(data []byte, next int64) { c.line(p, data, next) }
	return p
}

// commit does what is due for the session as one: what the output has led to, and w. It numbers w's events. With an error nothing has
// changed. The caller holds mu.
func (c *conv) commit(ctx context.Context, w sandbox.SessionWrite) error {
	own := len(w.Events)
	next := c.next
	for i := range w.Events {
		w.Events[i].Seq = next
		if w.Events[i].At.IsZero() {
			w.Events[i].At = time.Now()
		}
		next++
	}
	b := c.batch
	w.Session = c.id
	w.Events = append(b.Events[:len(b.Events):len(b.Events)], w.Events...)
	w.Turns = append(b.Turns[:len(b.Turns):len(b.Turns)], w.Turns...)
	w.NewAsks = append(b.NewAsks[:len(b.NewAsks):len(b.NewAsks)], w.NewAsks...)
	w.Settled = append(b.Settled[:len(b.Settled):len(b.Settled)], w.Settled...)
	w.Inputs = append(b.Inputs[:len(b.Inputs):len(b.Inputs)], w.Inputs...)
	if w.Update == nil {
		w.Update = b.Update
	}
	if w.Process == nil {
		w.Process = b.Process
	}
	p := c.proc
	if p != nil {
		w.Run, w.Mirrored = p.Run, p.lasting
		if own > 0 { // the numbers of the partials before these events are taken for good
			w.Mirrored = p.seen
		}
	}
	if err := c.s.store.WriteSession(ctx, w); err != nil {
		return err
	}
	if p != nil {
		p.lasting = w.Mirrored
		p.inputs = append(p.inputs, w.Inputs...)
	}
	c.next = next
	c.batch, c.bytes = sandbox.SessionWrite{}, 0
	c.hub.stored(next - 1)
	return nil
}

// dirty reports whether the output has led to something that isn't stored yet.
func (c *conv) dirty() bool {
	b := &c.batch
	return len(b.Events)+len(b.Turns)+len(b.NewAsks)+len(b.Settled)+len(b.Inputs) > 0 || b.Update != nil || b.Process != nil
}

// add puts an event that the output has led to into the batch.
func (c *conv) add(ev sandbox.SessionEvent) {
	ev.Seq, ev.At = c.next, time.Now()
	c.next++
	if len(c.batch.Events) == 0 {
		c.since = ev.At
	}
	c.batch.Events = append(c.batch.Events, ev)
	c.bytes += len(ev.Data)
}

// poke has the driver look, and makes one if there is none.
func (c *conv) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
	if c.driving || c.proc == nil && c.turn == nil && len(c.queue) == 0 && !c.dirty() {
		return
	}
	c.driving = true
	s := c.s
	s.attach(c.id) // for the driver
	if !s.later(c.drive) {
		c.driving = false
		s.release(c)
	}
}

// input has p given data, for the same commit as whatever it belongs to: w gets the rows.
func (p *process) input(w *sandbox.SessionWrite, data []byte, last bool) (undo func()) {
	before := p.Process
	in := sandbox.Input{Run: p.Run, At: p.Stdin, Data: data, Close: last}
	p.Stdin += int64(len(data))
	p.Closed = p.Closed || last
	row := p.Process
	w.Process = &row
	w.Inputs = append(w.Inputs, in)
	return func() { p.restore(before) }
}

// restore takes changes of p back. What names it never changes, and is read without mu.
func (p *process) restore(before sandbox.Process) {
	p.Stdin, p.Closed, p.Model, p.PermissionMode = before.Stdin, before.Closed, before.Model, before.PermissionMode
}

// give is a commit of w that also gives p some input.
func (c *conv) give(ctx context.Context, p *process, w sandbox.SessionWrite, data []byte, last bool) error {
	undo := p.input(&w, data, last)
	if err := c.commit(ctx, w); err != nil {
		undo()
		return err
	}
	c.poke()
	return nil
}

// writeInputs writes what p has not got yet, piece by piece. Only one does so at a time.
func (c *conv) writeInputs(ctx context.Context, p *process) {
	var err error
	for err == nil {
		c.mu.Lock()
		if len(p.inputs) == 0 {
			p.writing = false
			c.mu.Unlock()
			return
		}
		in := p.inputs[0]
		c.mu.Unlock()
		short, cancel := context.WithTimeout(ctx, inputLimit)
		_, err = c.s.runner.WriteStdin(short, p.run, in.At, in.Data, in.Close)
		cancel()
		if err == nil {
			err = c.s.store.InputWritten(ctx, in)
		}
		c.mu.Lock()
		switch {
		case err == nil:
			p.inputs, p.failures = p.inputs[1:], 0
		case isGone(err) || isEnded(err):
			p.inputs = nil // its end says the rest
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.writing = false
	p.writeAt = time.Now().Add(min(inputPause<<p.failures, maxBackoff))
	p.failures = min(p.failures+1, 10)
	if ctx.Err() == nil && len(p.inputs) > 0 {
		c.s.log.WarnContext(ctx, "a process of Claude did not take its input; trying again", "session", c.id, "run", p.Run, "err", err)
	}
	c.poke()
}

const (
	inputLimit = 30 * time.Second // for one piece of input to be taken
	inputPause = time.Second      // before one that was not is tried again
)

// isEnded reports whether err says that a process takes no more input.
func isEnded(err error) bool {
	if p := (*sandbox.Problem)(nil); errors.As(err, &p) {
		return p.Code == "run_ended" || p.Code == "stdin_closed"
	}
	e := (*guest.Error)(nil)
	return errors.As(err, &e) && (e.Code == "run_ended" || e.Code == "stdin_closed")
}

// pending returns the place of a pending ask; -1 if there is none.
func (c *conv) pending(is func(sandbox.Ask) bool) int {
	for i, a := range c.asks {
		if is(a) {
			return i
		}
	}
	return -1
}
