package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/sandlot-dev/sandlot/api"
)

// TerminalOptions say what to sit down at. The zero value is a new terminal with the user's shell.
type TerminalOptions struct {
	Run      string // come back to this run; default: start one
	FromHere bool   // with Run: begin after Offset; default: with some history
	Offset   int64

	Argv  []string          // what to start; default: the user's shell
	Env   map[string]string // of it; TERM is xterm-256color unless it is there
	Dir   string
	User  string
	NoPTY bool // with pipes instead of a terminal

	Cols, Rows int
	ReadOnly   bool // only watch
	Take       bool // be the writer, whoever is now
}

// TerminalEvent is one thing that happened at a terminal. At most one of Data, Gap, Exit, Cut and Refused is set; none of them when it
// only tells that Writer, Cols or Rows have changed, or that a connection that was cut is there again.
type TerminalEvent struct {
	Offset  int64 // bytes of output up to here, this event's included
	Data    []byte
	Stream  string // "stdout", or "stderr" if there is no terminal
	History bool   // Data was written before we came
	Gap     *api.Gap
	Exit    *api.TerminalFrame // the last event
	Cut     error              // the connection is lost; it is made again
	Refused *api.Problem       // something that was asked of the server

	Writer     bool // whether we are the one who writes
	Cols, Rows int  // what somebody else, who writes, has made of the terminal; 0 = not known
}

// ErrNotWriter says that somebody else writes at a terminal.
var ErrNotWriter = errors.New("somebody else writes at this terminal")

// maxUnacked is how much input is kept, in case it has to be sent again, before a write waits.
const maxUnacked = 128 << 10

// Terminal is a seat at a terminal, or at any program that takes input. A connection that breaks is made again: no output is missing or
// comes twice, and neither does input. Its methods may be used while Events is being read, which must go on for anything to happen.
type Terminal struct {
	c       *Client
	sandbox string
	o       TerminalOptions
	leave   context.CancelFunc
	ctx     context.Context

	sending sync.Mutex // held while input is sent, so that it goes in order

	mu      sync.Mutex
	conn    *websocket.Conn // nil while there is none
	changed chan struct{}   // closed and replaced when something below has changed
	run     string
	offset  int64 // of the next byte of output
	live    int64
	writer  bool
	base    int64  // the offset of pending[0]
	pending []byte // input that was not acknowledged
	eof     bool   // input ends after it
	over    error  // why nothing more can be written
	first   *api.TerminalFrame
}

// Terminal sits down at a terminal of a sandbox. Leaving, by Close or by ctx's end, does not end what runs there.
func (c *Client) Terminal(ctx context.Context, sandbox string, o TerminalOptions) (*Terminal, error) {
	t := &Terminal{c: c, sandbox: sandbox, o: o, run: o.Run, changed: make(chan struct{})}
	t.ctx, t.leave = context.WithCancel(ctx)
	start, err := t.connect(true)
	if err != nil {
		t.leave()
		return nil, err
	}
	t.first = &start
	return t, nil
}

// Run is the ID of the run.
func (t *Terminal) Run() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.run
}

// Offset is how much of the output was seen.
func (t *Terminal) Offset() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.offset
}

// Close leaves.
func (t *Terminal) Close() error {
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	if conn != nil {
		_ = conn.Close(websocket.StatusNormalClosure, "") // the server notices in any case
	}
	t.leave()
	t.finish(io.ErrClosedPipe)
	return nil
}

// query says what we want of the server.
func (t *Terminal) query(first bool) url.Values {
	q := url.Values{}
	set := func(name string, is bool, value string) {
		if is {
			q.Set(name, value)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.o
	set("run", t.run != "", t.run)
	set("readonly", o.ReadOnly, "true")
	set("cols", o.Cols > 0, strconv.Itoa(o.Cols))
	set("rows", o.Rows > 0, strconv.Itoa(o.Rows))
	if !first {
		q.Set("after", strconv.FormatInt(t.offset, 10))
		set("take", t.writer, "true")
		return q
	}
	set("take", o.Take, "true")
	set("after", o.Run != "" && o.FromHere, strconv.FormatInt(o.Offset, 10))
	set("dir", o.Dir != "", o.Dir)
	set("user", o.User != "", o.User)
	set("tty", o.NoPTY && o.Run == "", "false")
	q["argv"] = o.Argv
	for name, value := range o.Env {
		q.Add("env", name+"="+value)
	}
	return q
}

// connect opens a connection and takes its first frame.
func (t *Terminal) connect(first bool) (api.TerminalFrame, error) {
	target := t.c.base + segments("sandbox", t.sandbox, "terminal") + "?" + t.query(first).Encode()
	h := http.Header{}
	if t.c.key != "" {
		h.Set("Authorization", "Bearer "+t.c.key)
	} else {
		h.Set("Origin", t.c.base) // with a cookie the server wants to know whose page it is
	}
	conn, res, err := websocket.Dial(t.ctx, target, &websocket.DialOptions{HTTPClient: t.c.HTTP, HTTPHeader: h}) //nolint:bodyclose // nothing to close, says Dial
	if err != nil {
		if res != nil && res.StatusCode != http.StatusSwitchingProtocols {
			err = readProblem(res)
		}
		return api.TerminalFrame{}, fmt.Errorf("terminal of %s: %w", t.sandbox, err)
	}
	conn.SetReadLimit(-1) // the server is whom we chose
	f, _, err := read(t.ctx, conn)
	if err == nil && (f.Type != api.FrameStart || f.Offset == nil || f.Input == nil || f.Writer == nil) {
		err = fmt.Errorf("the first frame is of type %q", f.Type)
	}
	if err != nil {
		_ = conn.CloseNow()
		return f, fmt.Errorf("terminal of %s: %w: %w", t.sandbox, ErrCut, err)
	}
	t.begin(conn, f)
	return f, nil
}

// begin takes up a connection: input that the server doesn't know of is sent again.
func (t *Terminal) begin(conn *websocket.Conn, f api.TerminalFrame) {
	t.sending.Lock()
	defer t.sending.Unlock()
	t.mu.Lock()
	t.conn, t.run, t.writer = conn, f.Run, *f.Writer
	t.offset = *f.Offset
	if f.Live != nil {
		t.live = *f.Live
	}
	if taken := *f.Input - t.base; t.writer && taken >= 0 && taken <= int64(len(t.pending)) {
		t.pending = t.pending[taken:]
	} else {
		t.pending = nil // somebody else has written
	}
	t.base = *f.Input
	again, eof := t.pending, t.eof
	t.wake()
	t.mu.Unlock()
	if len(again) > 0 {
		_ = conn.Write(t.ctx, websocket.MessageBinary, again) // an error is the reader's too
	}
	if eof {
		_ = t.frame(conn, api.TerminalFrame{Type: api.FrameEOF}) // an error is the reader's too
	}
}

// wake tells who waits that something has changed. The lock is held.
func (t *Terminal) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// finish says that nothing more can be written.
func (t *Terminal) finish(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over == nil {
		t.over = err
	}
	t.conn = nil
	t.wake()
}

// Write sends input. It waits while the program doesn't take what was sent before. Input that was accepted is lost only with the
// terminal, or with the right to write.
func (t *Terminal) Write(b []byte) (int, error) {
	written := 0
	for {
		n, wait, err := t.put(b[written:])
		if written += n; err != nil || written == len(b) {
			return written, err
		}
		if wait == nil {
			continue
		}
		select {
		case <-wait:
		case <-t.ctx.Done():
			return written, t.ctx.Err()
		}
	}
}

// put sends as much of b as may be unacknowledged; if that is nothing it returns what to wait for.
func (t *Terminal) put(b []byte) (int, <-chan struct{}, error) {
	t.sending.Lock()
	defer t.sending.Unlock()
	t.mu.Lock()
	switch {
	case t.over != nil:
		t.mu.Unlock()
		return 0, nil, t.over
	case t.eof:
		t.mu.Unlock()
		return 0, nil, io.ErrClosedPipe
	case !t.writer && t.conn != nil:
		t.mu.Unlock()
		return 0, nil, ErrNotWriter
	}
	n := min(len(b), maxUnacked-len(t.pending))
	if n == 0 {
		defer t.mu.Unlock()
		return 0, t.changed, nil
	}
	t.pending = append(t.pending, b[:n]...)
	conn := t.conn
	t.mu.Unlock()
	if conn != nil {
		_ = conn.Write(t.ctx, websocket.MessageBinary, b[:n]) // it is sent again if that fails
	}
	return n, nil, nil
}

// CloseInput tells the program that there is no more input.
func (t *Terminal) CloseInput() error {
	t.sending.Lock()
	defer t.sending.Unlock()
	t.mu.Lock()
	t.eof = true
	conn := t.conn
	t.mu.Unlock()
	return t.frame(conn, api.TerminalFrame{Type: api.FrameEOF})
}

// Resize says how large our window is, and makes the terminal that large if we are the writer.
func (t *Terminal) Resize(cols, rows int) error {
	t.mu.Lock()
	t.o.Cols, t.o.Rows = cols, rows // of the next connection too
	conn := t.conn
	t.mu.Unlock()
	return t.frame(conn, api.TerminalFrame{Type: api.FrameResize, Cols: cols, Rows: rows})
}

// Signal sends a signal ("SIGINT") to the program.
func (t *Terminal) Signal(name string) error {
	return t.ask(api.TerminalFrame{Type: api.FrameSignal, Signal: name})
}

// Take makes us the writer.
func (t *Terminal) Take() error { return t.ask(api.TerminalFrame{Type: api.FrameTake}) }

func (t *Terminal) ask(f api.TerminalFrame) error {
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	if conn == nil {
		return ErrCut
	}
	return t.frame(conn, f)
}

// frame sends a JSON frame, if there is a connection.
func (t *Terminal) frame(conn *websocket.Conn, f api.TerminalFrame) error {
	if conn == nil {
		return nil
	}
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode a frame: %w", err)
	}
	return conn.Write(t.ctx, websocket.MessageText, b)
}

// read reads one frame: JSON, or bytes.
func read(ctx context.Context, conn *websocket.Conn) (f api.TerminalFrame, data []byte, err error) {
	kind, b, err := conn.Read(ctx)
	if err != nil || kind == websocket.MessageBinary {
		return f, b, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, nil, fmt.Errorf("a text frame that is not JSON: %w", err)
	}
	return f, nil, nil
}

// Events yields what happens, up to the program's end. It is read once.
func (t *Terminal) Events() iter.Seq2[TerminalEvent, error] {
	return func(yield func(TerminalEvent, error) bool) {
		defer func() { _ = t.Close() }() // always nil
		for start := t.first; ; {
			if !yield(t.event(TerminalEvent{Cols: start.Cols, Rows: start.Rows}), nil) {
				return
			}
			cut := t.follow(yield)
			if cut == nil {
				return
			}
			t.lose()
			if t.ctx.Err() == nil && comesBack(cut) && !yield(t.event(TerminalEvent{Cut: cut}), nil) {
				return
			}
			var err error
			if start, err = t.reconnect(cut); err != nil {
				yield(TerminalEvent{}, err)
				return
			}
		}
	}
}

// event completes e.
func (t *Terminal) event(e TerminalEvent) TerminalEvent {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Offset, e.Writer = t.offset, t.writer
	return e
}

// lose forgets the connection.
func (t *Terminal) lose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != nil {
		_ = t.conn.CloseNow() // it is broken
	}
	t.conn = nil
}

// reconnect opens the connection again after err, as long as that may help.
func (t *Terminal) reconnect(err error) (*api.TerminalFrame, error) {
	for pause := t.c.Backoff; ; pause = min(2*pause, 40*t.c.Backoff) {
		if t.ctx.Err() != nil {
			return nil, t.ctx.Err()
		}
		if !comesBack(err) {
			return nil, err
		}
		if err := sleep(t.ctx, pause); err != nil {
			return nil, err
		}
		start, errNow := t.connect(false)
		if errNow == nil {
			return &start, nil
		}
		err = errNow
	}
}

// comesBack reports whether another connection may do better.
func comesBack(err error) bool {
	switch websocket.CloseStatus(err) {
	case websocket.StatusPolicyViolation, websocket.StatusMessageTooBig, websocket.StatusUnsupportedData, websocket.StatusProtocolError:
		return false
	}
	p, ok := errors.AsType[*api.Problem](err)
	return !ok || p.Retryable || p.Status == http.StatusBadGateway || p.Status == http.StatusServiceUnavailable
}

// follow yields what comes over one connection. It returns nil when there is nothing more to yield, else why the connection ended.
func (t *Terminal) follow(yield func(TerminalEvent, error) bool) error {
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	if conn == nil {
		return ErrCut
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	go t.probe(ctx, conn)
	stream := "stdout"
	for {
		f, data, err := read(t.ctx, conn)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCut, err)
		}
		e, tell := TerminalEvent{}, true
		switch f.Type {
		case "":
			if tell = len(data) > 0; tell {
				t.mu.Lock()
				t.offset += int64(len(data))
				e = TerminalEvent{Data: data, Stream: stream, History: t.offset <= t.live}
				t.mu.Unlock()
			}
		case api.FrameStream:
			stream, tell = f.Stream, false
		case api.FrameGap:
			if f.From != nil && f.To != nil {
				t.mu.Lock()
				t.offset = *f.To
				t.mu.Unlock()
				e.Gap = &api.Gap{From: *f.From, To: *f.To}
			}
		case api.FrameAck:
			t.acknowledge(f.Input)
			tell = false
		case api.FrameWriter:
			t.hand(f)
		case api.FrameResize:
			e.Cols, e.Rows = f.Cols, f.Rows
		case api.FrameError:
			e.Refused = f.Problem
			if f.Problem == nil {
				tell = false
			}
		case api.FrameExit:
			t.finish(io.ErrClosedPipe)
			e.Exit = &f
			yield(t.event(e), nil)
			return nil
		default: // of a newer server
			tell = false
		}
		if tell && !yield(t.event(e), nil) {
			return nil
		}
	}
}

// acknowledge forgets input that the program's terminal has taken.
func (t *Terminal) acknowledge(input *int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if input == nil {
		return
	}
	if taken := *input - t.base; taken > 0 && taken <= int64(len(t.pending)) {
		t.base, t.pending = *input, t.pending[taken:]
		t.wake()
	}
}

// hand takes or gives up the right to write.
func (t *Terminal) hand(f api.TerminalFrame) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.writer
	t.writer = f.Writer != nil && *f.Writer
	if t.writer && !was && f.Input != nil {
		t.base = *f.Input
	}
	if t.writer != was {
		t.pending = nil
	}
	t.wake()
}

// probe cuts a connection on which nobody answers. While input waits the server doesn't hear us, so silence says nothing then.
func (t *Terminal) probe(ctx context.Context, conn *websocket.Conn) {
	waits := func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return len(t.pending) > 0
	}
	for {
		if sleep(ctx, probeEvery) != nil {
			return
		}
		if waits() {
			continue
		}
		short, cancel := context.WithTimeout(ctx, probeEvery)
		err := conn.Ping(short)
		cancel()
		if err != nil && ctx.Err() == nil && !waits() {
			_ = conn.CloseNow() // the reader sees it
			return
		}
	}
}

// probeEvery is how often a silent connection is tried.
const probeEvery = 15 * time.Second
