package server

import (
	"context"
	"net/http"
	"slices"
	"sync"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	maxInput   = 256 << 10 // bytes of input that wait for one program; who types more is not read from
	inputPiece = 64 << 10  // of them that are handed on at a time
	maxViewers = 100       // of one run
)

// hub holds the terminals that somebody is at.
type hub struct {
	manager Manager
	life    context.Context // ends with the server
	end     context.CancelFunc
	work    sync.WaitGroup

	mu   sync.Mutex
	open map[string]*terminal // by run
}

func newHub(m Manager) *hub {
	h := &hub{manager: m, open: map[string]*terminal{}}
	h.life, h.end = context.WithCancel(context.Background())
	return h
}

// stop ends what is done for terminals and waits. Their programs go on.
func (h *hub) stop() {
	h.end()
	h.work.Wait()
}

// terminal is one run as its viewers share it: one of them writes, and what is written goes to the program in order.
type terminal struct {
	hub *hub
	run sandbox.Run

	mu      sync.Mutex
	viewers []*viewer // in the order in which they came
	writer  *viewer   // one of viewers, or nil
	size    guest.Size
	sized   guest.Size // what the guest was told last
	sizing  bool       // somebody tells it

	input   []piece
	queued  int   // bytes of input
	at      int64 // the offset of input[0] in what the guest has taken
	typed   int64 // the same without what viewers haven't typed themselves
	flying  int64 // bytes of viewers that are being handed on, before input[0]
	ending  bool  // there is no input after what waits
	closed  bool  // the program takes no input any more
	feeding bool  // somebody hands input on
	room    chan struct{}
}

// piece is input that waits.
type piece struct {
	data []byte
	ours bool // a signal as a character, and no byte of a viewer's
}

// join adds a viewer to a run's terminal.
func (h *hub) join(ctx context.Context, run sandbox.Run, seen guest.Run, v *viewer) *problem {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.open[run.ID]
	if t == nil {
		t = &terminal{hub: h, run: run, at: seen.Stdin, typed: seen.Stdin, closed: seen.State != guest.StateRunning, room: make(chan struct{})}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.viewers) >= maxViewers {
		p := refuse(http.StatusTooManyRequests, "too_many_viewers", "%d viewers are at this terminal already.", maxViewers)
		p.Retryable = true
		return p
	}
	h.open[run.ID] = t
	v.t = t
	t.viewers = append(t.viewers, v)
	if !v.readonly && (t.writer == nil || v.takes) {
		t.hand(v)
	}
	v.news = news{} // what it is told first says all of it
	return nil
}

// leave is the end of join.
func (v *viewer) leave() {
	h, t := v.t.hub, v.t
	h.mu.Lock()
	defer h.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.viewers = slices.DeleteFunc(t.viewers, func(o *viewer) bool { return o == v })
	if t.writer == v {
		t.writer = nil
		if i := slices.IndexFunc(t.viewers, func(o *viewer) bool { return !o.readonly }); i >= 0 {
			t.hand(t.viewers[i])
		}
	}
	t.drop()
}

// drop forgets a terminal that nobody is at and that has nothing to do. Both locks are held.
func (t *terminal) drop() {
	if len(t.viewers) == 0 && !t.feeding && !t.sizing {
		delete(t.hub.open, t.run.ID)
	}
}

// hand makes v the writer and tells who is concerned. The lock is held.
func (t *terminal) hand(v *viewer) {
	if t.writer == v {
		return
	}
	if old := t.writer; old != nil {
		old.tell(func(n *news) { n.writer = true })
	}
	t.writer = v
	v.tell(func(n *news) { n.writer = true })
	t.crowd()
	if v.size != (guest.Size{}) {
		t.resize(v.size)
	}
}

// crowd wakes those who wait for room. The lock is held.
func (t *terminal) crowd() {
	close(t.room)
	t.room = make(chan struct{})
}

// next is the offset that the next byte of input gets, as viewers count. The lock is held.
func (t *terminal) next() int64 {
	n := t.typed + t.flying
	for _, p := range t.input {
		if !p.ours {
			n += int64(len(p.data))
		}
	}
	return n
}

// enter queues what v has typed. While there is no room it waits; only who types waits.
func (v *viewer) enter(ctx context.Context, b []byte) error {
	for {
		wait := v.offer(&b)
		if wait == nil {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// offer queues as much of b as there is room for and returns what tells when to offer the rest; nil when nothing is left.
func (v *viewer) offer(b *[]byte) <-chan struct{} {
	t := v.t
	t.mu.Lock()
	defer t.mu.Unlock()
	v.full = false
	switch {
	case t.writer != v: // it may not know yet
		return nil
	case t.closed || t.ending: // nobody reads it, and nobody need wait for that
		t.typed += int64(len(*b))
		v.tell(func(n *news) { n.ack = true })
		return nil
	}
	if n := min(len(*b), maxInput-t.queued); n > 0 {
		t.push(piece{data: (*b)[:n]})
		*b = (*b)[n:]
	}
	if len(*b) == 0 {
		return nil
	}
	v.full = true
	return t.room
}

// push adds to what waits. The lock is held.
func (t *terminal) push(p piece) {
	t.queued += len(p.data)
	last := len(t.input) - 1
	if last >= 0 && !p.ours && !t.input[last].ours && len(t.input[last].data) < inputPiece {
		t.input[last].data = append(t.input[last].data, p.data...)
	} else {
		t.input = append(t.input, piece{data: slices.Clone(p.data), ours: p.ours})
	}
	t.feed()
}

// feed makes sure that somebody hands input on. The lock is held.
func (t *terminal) feed() {
	if !t.feeding {
		t.feeding = true
		t.hub.work.Go(t.handOn)
	}
}

// handOn gives the program what waits, in order and each byte once, until there is none or it takes no more.
func (t *terminal) handOn() {
	for {
		t.mu.Lock()
		if t.closed || len(t.input) == 0 && !t.ending {
			t.mu.Unlock()
			break
		}
		if t.sizing { // what is typed after a resize finds the new size
			room := t.room
			t.mu.Unlock()
			<-room
			continue
		}
		var p piece
		if len(t.input) > 0 {
			p = t.input[0]
			if len(p.data) > inputPiece {
				p.data = p.data[:inputPiece]
			}
			t.input[0].data = t.input[0].data[len(p.data):] // what is added goes elsewhere
			if len(t.input[0].data) == 0 {
				t.input = t.input[1:]
			}
		}
		if !p.ours {
			t.flying = int64(len(p.data))
		}
		at, last := t.at, t.ending && len(t.input) == 0
		t.mu.Unlock()
		err := t.hub.manager.Input(t.hub.life, t.run, at, p.data, last)
		t.mu.Lock()
		t.queued -= len(p.data)
		t.at += int64(len(p.data))
		t.typed += t.flying
		t.flying = 0
		if err != nil || last {
			t.closed = true // it has ended, or reads no more
			t.typed, t.input, t.queued = t.next(), nil, 0
		}
		if w := t.writer; w != nil && !p.ours {
			w.tell(func(n *news) { n.ack = true })
		}
		t.crowd()
		t.mu.Unlock()
	}
	t.hub.mu.Lock()
	defer t.hub.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.feeding = false
	if !t.closed && (len(t.input) > 0 || t.ending) { // it came just now
		t.feed()
	}
	t.drop()
}

// take makes v the writer.
func (v *viewer) take() *problem {
	if v.readonly {
		return refuse(http.StatusForbidden, "read_only", "This viewer may only watch.")
	}
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	v.t.hand(v)
	return nil
}

// resize notes which size v wants, and gives it to the terminal if v is the writer.
func (v *viewer) resize(f api.TerminalFrame) *problem {
	if f.Cols < 1 || f.Rows < 1 || f.Cols > maxSide || f.Rows > maxSide {
		return refuse(http.StatusBadRequest, "bad_size", "A terminal has 1 to %d columns and rows.", maxSide)
	}
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	v.size = guest.Size{Rows: uint16(f.Rows), Cols: uint16(f.Cols)} //nolint:gosec // at most maxSide
	if v.t.writer == v {
		v.t.resize(v.size)
	}
	return nil
}

// endInput tells the program, when it has read all that waits, that there is no more.
func (v *viewer) endInput() {
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	if v.t.writer == v && !v.t.closed {
		v.t.ending = true
		v.t.feed()
	}
}

// resize gives the terminal a size and tells who is concerned. The lock is held.
func (t *terminal) resize(size guest.Size) {
	if t.size != size {
		t.size = size
		for _, v := range t.viewers {
			if v != t.writer {
				v.tell(func(n *news) { n.size = true })
			}
		}
	}
	if !t.sizing && t.sized != size {
		t.sizing = true
		t.hub.work.Go(t.pass)
	}
}

// pass tells the guest the newest size.
func (t *terminal) pass() {
	for {
		t.mu.Lock()
		size := t.size
		t.mu.Unlock()
		err := t.hub.manager.Resize(t.hub.life, t.run, size) // no terminal, or none any more: nobody misses its size
		t.hub.mu.Lock()
		t.mu.Lock()
		t.sized = size
		t.sizing = err == nil && t.size != size
		done := !t.sizing
		t.crowd()
		t.drop()
		t.mu.Unlock()
		t.hub.mu.Unlock()
		if done {
			return
		}
	}
}

// characters are the signals that who sits at a terminal sends as characters: only the terminal knows who is in front of it.
var characters = map[string]byte{"SIGINT": 3, "SIGQUIT": 28, "SIGTSTP": 26}

// news is what a viewer is to be told when it has time.
type news struct {
	writer, ack, size, pong bool
	refused                 *problem // the newest one
}

// note is tell for who doesn't hold the lock.
func (v *viewer) note(change func(*news)) {
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	v.tell(change)
}

// tell notes something for v without waiting. The terminal's lock is held.
func (v *viewer) tell(note func(*news)) {
	note(&v.news)
	select {
	case v.poke <- struct{}{}:
	default:
	}
}

// frames takes what v is to be told.
func (v *viewer) frames() []api.TerminalFrame {
	t := v.t
	t.mu.Lock()
	defer t.mu.Unlock()
	n := v.news
	v.news = news{}
	var out []api.TerminalFrame
	if n.ack && t.writer == v {
		out = append(out, api.TerminalFrame{Type: api.FrameAck, Input: new(t.typed)})
	}
	if n.writer {
		f := api.TerminalFrame{Type: api.FrameWriter, Writer: new(t.writer == v)}
		if t.writer == v {
			f.Input = new(t.next())
		}
		out = append(out, f)
	}
	if n.size && t.writer != v {
		out = append(out, api.TerminalFrame{Type: api.FrameResize, Cols: int(t.size.Cols), Rows: int(t.size.Rows)})
	}
	if n.refused != nil {
		out = append(out, api.TerminalFrame{Type: api.FrameError, Problem: &n.refused.Problem})
	}
	if n.pong {
		out = append(out, api.TerminalFrame{Type: api.FramePong})
	}
	return out
}
