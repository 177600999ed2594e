package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Terminals is what the server needs of lifecycle.Manager for terminals.
type Terminals interface {
	Look(ctx context.Context, run sandbox.Run) (guest.Run, error)
	Input(ctx context.Context, run sandbox.Run, at int64, b []byte, last bool) error
	Resize(ctx context.Context, run sandbox.Run, size guest.Size) error
	EndRun(ctx context.Context, account, id, signal string, grace time.Duration) (sandbox.Run, error)
}

const (
	scrollback = 256 << 10 // bytes of history that a viewer gets who doesn't say from where on
	minWindow  = 64 << 10
	maxText    = 64 << 10 // bytes of a JSON frame
	maxSide    = 2000     // columns or rows
	hangupTime = 3 * time.Second
)

const aboutTerminal = `A WebSocket. Without ` + "`run`" + ` it starts a program on a terminal (default: the user's shell), with it one comes back to a program that runs or
has run. Leaving ends nothing; DELETE of the run does.

Binary frames are bytes, of output from the server and of input to it. Text frames are JSON with a ` + "`type`" + `.
To the server: ` + "`resize`" + ` (cols, rows), ` + "`signal`" + ` (signal; INT, QUIT and TSTP go to the program in front, as the characters that a keyboard sends),
` + "`take`" + ` (be the one who writes), ` + "`eof`" + ` (no more input), ` + "`ack`" + ` (offset), ` + "`ping`" + `.
From it: first ` + "`start`" + ` (run, writer, offset of the output that follows, live: where the output ended when the viewer came, input: the offset of the
viewer's next byte of input), then ` + "`gap`" + ` (from, to: output that is no longer there), ` + "`writer`" + ` (writer, input), ` + "`ack`" + ` (input: what of it the
program's terminal has taken), ` + "`resize`" + ` (the writer has given the terminal another size), ` + "`stream`" + ` (with tty=false: which of stdout and stderr follows),
` + "`error`" + ` (a frame was refused), and last ` + "`exit`" + ` (state, exit_code, signal, reason); then it closes with 1000. When the server stops it closes with 1001.

The first viewer writes, the others watch; what they type is dropped until they take over. A connection that broke is opened again with run and after=OFFSET,
the offset of start and what came since: nothing is missing and nothing comes twice. Of input that was not acknowledged, what is before the new start's input was taken, and
the rest is sent again.`

func (s *Server) terminalRoutes(h huma.API) {
	tags := []string{"Runs"}
	add(s, h, strict(huma.Operation{
		OperationID: "terminal", Method: http.MethodGet, Path: "/sandbox/{id}/terminal", Tags: tags, Summary: "Sit at a terminal",
		Description: aboutTerminal, Responses: map[string]*huma.Response{"101": {Description: "A WebSocket"}, "default": answers(h, nil, "")["default"]},
	}), s.terminal)
	add(s, h, strict(huma.Operation{
		OperationID: "end-run", Method: http.MethodDelete, Path: "/sandbox/{id}/run/{run}", Tags: tags, Summary: "End a run",
		Description: "Sends SIGHUP to a terminal, SIGTERM to what has none, and SIGKILL to all of it if that doesn't help. Answers with the run when it has ended; one that has is left as it is.",
	}), s.endRun)
}

type terminalInput struct {
	SandboxInput
	Run      string   `query:"run" doc:"Come back to this run, of kind terminal or exec. Default: start one."`
	After    int64    `query:"after" default:"-1" minimum:"-1" doc:"With run: begin after so many bytes of output. Default: with the last 256 KiB."`
	Argv     []string `query:"argv,explode" doc:"What to start: the program and its arguments, one argv each. Default: the user's shell."`
	Env      []string `query:"env,explode" doc:"NAME=value, added to the environment; may be repeated. TERM is xterm-256color unless it is given."`
	Dir      string   `query:"dir" doc:"Working directory, as for exec."`
	User     string   `query:"user" maxLength:"200" doc:"As for exec."`
	Cols     int      `query:"cols" minimum:"0" maximum:"2000" doc:"Default: 80."`
	Rows     int      `query:"rows" minimum:"0" maximum:"2000" doc:"Default: 24."`
	TTY      string   `query:"tty" enum:"true,false" default:"true" doc:"false: start the program with pipes instead of a terminal, as a run of kind exec."`
	Readonly string   `query:"readonly" enum:"true,false" default:"false" doc:"Only watch."`
	Take     string   `query:"take" enum:"true,false" default:"false" doc:"Be the writer, whoever is now."`
	Window   int64    `query:"window" minimum:"0" doc:"Send at most so many bytes of output, at least 65536, beyond what was acknowledged. Default: as many as the connection takes."`
}

func (s *Server) terminal(ctx context.Context, c *call, in *terminalInput) (*huma.StreamResponse, error) {
	if p := s.mayUpgrade(c); p != nil {
		return nil, p
	}
	v := &viewer{
		s: s, readonly: in.Readonly == "true", takes: in.Take == "true", poke: make(chan struct{}, 1), acked: make(chan struct{}, 1),
		size: guest.Size{Rows: uint16(in.Rows), Cols: uint16(in.Cols)}, //nolint:gosec // at most maxSide
	}
	if in.Cols == 0 || in.Rows == 0 {
		v.size = guest.Size{}
	}
	if in.Window > 0 {
		v.window = max(in.Window, minWindow)
	}
	var err error
	if in.Run == "" {
		err = v.start(ctx, c, in)
	} else {
		err = v.find(ctx, c, in)
	}
	if err != nil {
		return nil, err
	}
	if p := s.hub.join(ctx, v.run, v.seen, v); p != nil {
		return nil, p
	}
	return s.socket(c, v), nil
}

// start starts a program.
func (v *viewer) start(ctx context.Context, c *call, in *terminalInput) error {
	if in.After >= 0 {
		return sandbox.Invalid("after", "goes with run: what is started now has written nothing yet")
	}
	if v.readonly {
		return sandbox.Invalid("readonly", "goes with run: nobody could write to what is started now")
	}
	env := map[string]string{}
	if in.TTY == "true" {
		env["TERM"] = "xterm-256color"
	}
	for _, kv := range in.Env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return sandbox.Invalid("env", "%q is not NAME=value", kv)
		}
		env[name] = value
	}
	run := sandbox.Run{
		ID: sandbox.NewID(sandbox.PrefixRun), Account: c.account, Sandbox: sandbox.ID(in.ID), Kind: sandbox.RunTerminal, Argv: in.Argv,
	}
	if run.Argv == nil {
		run.Argv = []string{} // known to the guest
	}
	cmd := guest.Command{
		ID: run.ID, Argv: in.Argv, Shell: len(in.Argv) == 0, Env: env, Dir: in.Dir, User: in.User, Open: true, Stdio: guest.StdioPTY, Size: v.size,
	}
	if in.TTY != "true" {
		run.Kind, cmd.Stdio = sandbox.RunExec, guest.StdioPipes
	}
	var err error
	v.run, err = v.s.cfg.Manager.StartRun(ctx, run, cmd, nil)
	v.seen = guest.Run{State: guest.StateRunning}
	return err
}

// find finds a program to come back to, and where its output begins for v.
func (v *viewer) find(ctx context.Context, c *call, in *terminalInput) error {
	if len(in.Argv) > 0 || len(in.Env) > 0 || in.Dir != "" || in.User != "" {
		return sandbox.Invalid("run", "is there already: argv, env, dir and user are for starting one")
	}
	var err error
	if v.run, err = v.s.run(ctx, c, &RunInput{SandboxInput: in.SandboxInput, Run: in.Run}); err != nil {
		return err
	}
	if v.run.Kind != sandbox.RunTerminal && v.run.Kind != sandbox.RunExec {
		return refuse(http.StatusConflict, "not_a_terminal", "%s is a run of kind %s: nobody can sit at it. Follow its events instead.", v.run.ID, v.run.Kind)
	}
	v.offset = max(in.After, 0)
	v.seen, err = v.s.cfg.Manager.Look(ctx, v.run)
	switch p := (*sandbox.Problem)(nil); {
	case errors.As(err, &p) && (errors.Is(p.Class, sandbox.ErrGone) || errors.Is(p.Class, sandbox.ErrNotFound)):
		return nil // what is left of it is told as output, or that nothing is
	case err != nil:
		return err
	case v.offset > v.seen.Next:
		return sandbox.Invalid("after", "is beyond the output, which has %d bytes", v.seen.Next)
	}
	v.live = v.seen.Next
	if in.After < 0 && v.seen.Next-v.seen.First > scrollback {
		v.offset = v.lineAfter(ctx, v.seen.Next-scrollback)
	}
	return nil
}

// lineAfter returns where the first line after offset begins, so that history doesn't begin within a character or a command to the
// terminal. If none is near it is offset.
func (v *viewer) lineAfter(ctx context.Context, offset int64) int64 {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for f, err := range v.s.cfg.Manager.Output(ctx, v.run, offset) {
		if i := bytes.IndexByte(f.Data, '\n'); err == nil && i >= 0 && f.Kind != guest.Gap && f.Kind != guest.End {
			return f.Offset + int64(i) + 1
		}
		break
	}
	return offset
}

// viewer is one WebSocket at a terminal.
type viewer struct {
	s        *Server
	t        *terminal
	run      sandbox.Run
	seen     guest.Run // as it was when the viewer came
	readonly bool
	takes    bool
	window   int64 // 0 = none
	offset   int64 // where its output begins
	live     int64
	poke     chan struct{} // of size 1: there is news
	acked    chan struct{} // of size 1: used has changed

	// Guarded by t's lock.
	size guest.Size // what the viewer wants; zero = has no wish
	news news
	full bool  // it is not read from: the program takes no input
	used int64 // output that it has acknowledged
}

// deaf implements conversation.
func (v *viewer) deaf() bool {
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	return v.full
}

// talk implements conversation: it shows the program's output and its end.
func (v *viewer) talk(ctx context.Context, conn *websocket.Conn) closing {
	defer v.leave()
	if err := v.send(ctx, conn, v.hello()); err != nil {
		return closing{}
	}
	ctx, cancel := context.WithCancel(ctx)
	var told sync.WaitGroup
	told.Go(func() { v.keepUp(ctx, conn) })
	defer told.Wait()
	defer cancel()
	end, err := v.show(ctx, conn)
	if err == nil {
		err = v.send(ctx, conn, end)
	}
	switch {
	case err == nil:
		return closing{websocket.StatusNormalClosure, "the run has ended"}
	case ctx.Err() != nil:
		return closing{}
	default: // the peer is gone, which can't be told, or the output can't be read
		p := problemOf(err)
		if p.Code == "shutting_down" {
			return closing{websocket.StatusGoingAway, "the server is shutting down"}
		}
		_ = v.send(ctx, conn, api.TerminalFrame{Type: api.FrameError, Problem: &p.Problem})
		return closing{websocket.StatusInternalError, p.Code}
	}
}

// hello is the first frame.
func (v *viewer) hello() api.TerminalFrame {
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	v.news.writer, v.news.size = false, false // the frame says it
	v.used = v.offset
	f := api.TerminalFrame{
		Type: api.FrameStart, Run: v.run.ID, Writer: new(v.t.writer == v), Offset: new(v.offset), Live: new(v.live), Input: new(v.t.next()),
	}
	if v.t.writer != v {
		f.Cols, f.Rows = int(v.t.size.Cols), int(v.t.size.Rows)
	}
	return f
}

// send sends a JSON frame.
func (v *viewer) send(ctx context.Context, conn *websocket.Conn, f api.TerminalFrame) error {
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode a frame: %w", err)
	}
	return v.write(ctx, conn, websocket.MessageText, b)
}

// write sends a frame to a peer that takes something now and then.
func (v *viewer) write(ctx context.Context, conn *websocket.Conn, kind websocket.MessageType, b []byte) error {
	ctx, cancel := v.s.writing(ctx)
	defer cancel()
	return conn.Write(ctx, kind, b)
}

// keepUp tells the viewer what has changed, when it takes it.
func (v *viewer) keepUp(ctx context.Context, conn *websocket.Conn) {
	for {
		select {
		case <-v.poke:
		case <-ctx.Done():
			return
		}
		for _, f := range v.frames() {
			if v.send(ctx, conn, f) != nil {
				return // whoever reads or shows finds out too
			}
		}
	}
}

// show sends the program's output until its end, which it returns.
func (v *viewer) show(ctx context.Context, conn *websocket.Conn) (api.TerminalFrame, error) {
	stream := guest.Stdout
	for f, err := range v.s.cfg.Manager.Output(ctx, v.run, v.offset) {
		switch {
		case errors.Is(err, sandbox.ErrGone): // how it ended stands in its row
			return v.exit(ctx)
		case err != nil:
			return api.TerminalFrame{}, err
		case f.Kind == guest.End:
			return v.exit(ctx)
		case f.Kind == guest.Gap:
			gap := api.TerminalFrame{Type: api.FrameGap, From: new(v.offset), To: new(f.Offset)}
			if len(f.Data) == 8 {
				gap.From = new(int64(binary.BigEndian.Uint64(f.Data))) //nolint:gosec // an offset of ours
			}
			err = v.send(ctx, conn, gap)
		default:
			if f.Kind != stream && v.run.Kind == sandbox.RunExec {
				name := "stdout"
				if f.Kind == guest.Stderr {
					name = "stderr"
				}
				if err = v.send(ctx, conn, api.TerminalFrame{Type: api.FrameStream, Stream: name}); err != nil {
					return api.TerminalFrame{}, err
				}
				stream = f.Kind
			}
			if err = v.room(ctx, f.Offset); err == nil {
				err = v.write(ctx, conn, websocket.MessageBinary, f.Data)
			}
		}
		if err != nil {
			return api.TerminalFrame{}, err
		}
	}
	return api.TerminalFrame{}, fmt.Errorf("the output of %s stopped without an end", v.run.ID)
}

// exit is the last frame.
func (v *viewer) exit(ctx context.Context) (api.TerminalFrame, error) {
	run, err := v.s.cfg.Manager.WaitRun(ctx, v.run.Account, v.run.ID)
	return api.TerminalFrame{Type: api.FrameExit, State: string(run.State), ExitCode: run.ExitCode, Signal: run.Signal, Reason: run.Reason}, err
}

// room waits until the viewer's window is open for output at offset.
func (v *viewer) room(ctx context.Context, offset int64) error {
	if v.window == 0 {
		return nil
	}
	for {
		v.t.mu.Lock()
		used := v.used
		v.t.mu.Unlock()
		if offset-used < v.window {
			return nil
		}
		select {
		case <-v.acked:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read implements conversation.
func (v *viewer) read(ctx context.Context, conn *websocket.Conn) error {
	conn.SetReadLimit(-1) // of binary frames a piece is read at a time
	buf := make([]byte, 16<<10)
	for {
		kind, r, err := conn.Reader(ctx)
		if err != nil {
			return err
		}
		if kind == websocket.MessageText {
			b, err := io.ReadAll(io.LimitReader(r, maxText+1))
			if err != nil {
				return err
			}
			if len(b) > maxText {
				return closing{websocket.StatusMessageTooBig, "a JSON frame is too long"}
			}
			if err := v.obey(ctx, b); err != nil {
				return err
			}
			continue
		}
		for {
			n, err := r.Read(buf)
			if err != nil && !errors.Is(err, io.EOF) {
				return err // what comes with it is not unmasked
			}
			if errW := v.enter(ctx, buf[:n]); errW != nil {
				return errW
			}
			if err != nil {
				break
			}
		}
	}
}

// obey does what a JSON frame says.
func (v *viewer) obey(ctx context.Context, b []byte) error {
	var f api.TerminalFrame
	if err := json.Unmarshal(b, &f); err != nil {
		return closing{websocket.StatusPolicyViolation, "a text frame is not JSON of the expected kind"}
	}
	var bad *problem
	switch f.Type {
	case api.FramePing:
		v.note(func(n *news) { n.pong = true })
	case api.FrameAck:
		v.ack(f)
	case api.FrameTake:
		bad = v.take()
	case api.FrameResize:
		bad = v.resize(f)
	case api.FrameEOF:
		v.endInput()
	case api.FrameSignal:
		bad = v.signal(ctx, f.Signal)
	default:
		bad = refuse(http.StatusBadRequest, "unknown_frame", "There is no frame of type %q.", f.Type)
	}
	if bad != nil {
		v.note(func(n *news) { n.refused = bad })
	}
	return nil
}

// ack notes what the viewer has used.
func (v *viewer) ack(f api.TerminalFrame) {
	v.t.mu.Lock()
	if f.Offset != nil {
		v.used = max(v.used, *f.Offset)
	}
	v.t.mu.Unlock()
	select {
	case v.acked <- struct{}{}:
	default:
	}
}

// signal sends a signal as who sits at the terminal.
func (v *viewer) signal(ctx context.Context, name string) *problem {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	v.t.mu.Lock()
	writes := v.t.writer == v
	char, byHand := characters[name]
	byHand = byHand && v.run.Kind == sandbox.RunTerminal
	if writes && byHand && !v.t.closed && v.t.queued < maxInput {
		v.t.push(piece{data: []byte{char}, ours: true})
	}
	v.t.mu.Unlock()
	switch {
	case !writes:
		return refuse(http.StatusConflict, "not_the_writer", "Somebody else writes here. Take over first.")
	case byHand:
		return nil
	}
	if err := v.s.cfg.Manager.Signal(ctx, v.run.Account, v.run.ID, name); err != nil {
		return problemOf(err)
	}
	return nil
}

func (s *Server) endRun(ctx context.Context, c *call, in *RunInput) (*body[api.Run], error) {
	ctx, cancel := c.long(ctx)
	defer cancel()
	run, err := s.run(ctx, c, in)
	if err != nil {
		return nil, err
	}
	signal := "SIGTERM"
	if run.Kind == sandbox.RunTerminal {
		signal = "SIGHUP"
	}
	if run, err = s.cfg.Manager.EndRun(ctx, c.account, run.ID, signal, hangupTime); err != nil {
		return nil, err
	}
	return &body[api.Run]{fromRun(run)}, nil
}
