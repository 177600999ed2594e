package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// seat joins our standard streams to a terminal in a sandbox.
type seat struct {
	ctx     context.Context // ends when somebody wants us to end
	c       *client.Client
	t       *client.Terminal
	sandbox string
	stdin   int
	raw     bool // our terminal is in raw mode
	leave   func()
	modes   modes

	mu   sync.Mutex
	away *time.Timer // tells that the connection is away
	told bool        // it has
}

// run passes everything on, both ways, and leaves our terminal as it was. It returns how the program ended, nil if that is still to come.
func (s *seat) run(leave context.Context) (*api.TerminalFrame, error) {
	if s.raw {
		old, err := term.MakeRaw(s.stdin)
		if err != nil {
			return nil, fmt.Errorf("this terminal can't be used raw: %w", err)
		}
		defer func() {
			_, _ = os.Stdout.Write(s.modes.undo()) // a closed terminal is no reason to fail
			_ = term.Restore(s.stdin, old)         // it is there, or nobody sees it
		}()
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGHUP)
	defer signal.Stop(signals)
	done := make(chan struct{})
	defer close(done)
	go s.watch(signals, done)
	go s.typing(leave)

	for e, err := range s.t.Events() {
		if err != nil {
			return nil, s.broken(leave, err)
		}
		if e.Exit != nil {
			s.back()
			return e.Exit, nil
		}
		if err := s.show(e); err != nil {
			return nil, fmt.Errorf("standard output: %w", err)
		}
	}
	return nil, s.broken(leave, errLeft)
}

// broken says why the conversation is over before the program is.
func (s *seat) broken(leave context.Context, err error) error {
	if s.ctx.Err() != nil && !s.raw { // an interrupt: the program is ended too, as if it had been ours
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 10*time.Second)
		defer cancel()
		if _, err := s.c.EndRun(ctx, s.sandbox, s.t.Run()); err != nil {
			return err
		}
		return exitCode(130)
	}
	if errors.Is(context.Cause(leave), errLeft) {
		s.say("left; it goes on: sandlot shell --run %s", s.t.Run())
		return nil
	}
	return err
}

// show shows one thing that happened.
func (s *seat) show(e client.TerminalEvent) error {
	switch {
	case e.Cut != nil:
		s.gone()
		return nil
	case e.Gap != nil:
		s.say("%d bytes of output are missing here", e.Gap.To-e.Gap.From)
	case e.Refused != nil:
		s.say("%s", e.Refused.Detail)
	}
	s.back()
	if len(e.Data) == 0 {
		if !e.Writer && s.raw {
			s.say("somebody else writes here; ~t takes over")
		}
		return nil
	}
	out := os.Stdout
	if e.Stream == "stderr" {
		out = os.Stderr
	}
	b := e.Data
	if s.raw {
		if e.History { // our terminal would answer questions that were answered long ago
			b = questions.ReplaceAll(b, nil)
		}
		s.modes.note(b)
	}
	_, err := out.Write(b)
	return err
}

// questions are what programs ask a terminal.
var questions = regexp.MustCompile("\x1b\\[[>=?]?[0-9;]*c|\x1b\\[\\??[0-9]*n|\x1b\\[>[0-9]*q|\x1b\\[\\?u|\x1b\\[(1[1-9]|2[01])(;[0-9]*)*t|" +
	"\x1b\\[\\??[0-9;]*\\$p|\x1b\\][0-9;]*;\\?(\x07|\x1b\\\\)|\x1bP[+$]q[^\x1b]*\x1b\\\\")

// modes remembers what a program has made of our terminal.
type modes struct{ on [][]byte }

var modeSwitch = regexp.MustCompile("\x1b\\[\\?(1049|1047|47|25|1000|1002|1003|1004|1006|1015|2004|1)([hl])")

func (m *modes) note(b []byte) {
	for _, f := range modeSwitch.FindAllSubmatch(b, -1) {
		mode, set := bytes.Clone(f[1]), f[2][0] == 'h'
		if string(mode) == "25" { // the cursor, which is on without it
			set = !set
		}
		m.on = deleteBytes(m.on, mode)
		if set {
			m.on = append(m.on, mode)
		}
	}
}

func deleteBytes(list [][]byte, b []byte) [][]byte {
	var out [][]byte
	for _, o := range list {
		if !bytes.Equal(o, b) {
			out = append(out, o)
		}
	}
	return out
}

// undo returns what makes our terminal as it was.
func (m *modes) undo() []byte {
	var out []byte
	for _, mode := range m.on {
		end := "l"
		if string(mode) == "25" {
			end = "h"
		}
		out = append(out, "\x1b[?"+string(mode)+end...)
	}
	if len(m.on) > 0 {
		out = append(out, "\x1b[0m"...)
	}
	return out
}

// say tells the person something.
func (s *seat) say(format string, args ...any) {
	text := "sandlot: " + fmt.Sprintf(format, args...)
	if s.raw {
		fmt.Fprint(os.Stderr, "\r\n", text, "\r\n")
		return
	}
	fmt.Fprintln(os.Stderr, text)
}

// gone notes that the connection is away, and tells so when it stays away.
func (s *seat) gone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away == nil {
		s.away = time.AfterFunc(patience, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.away != nil {
				s.told = true
				s.say("the connection is lost; trying to come back (~. leaves)")
			}
		})
	}
}

// back notes that it is there.
func (s *seat) back() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil {
		s.away.Stop()
		s.away = nil
	}
	if s.told {
		s.told = false
		s.say("back")
	}
}

// watch passes on what our terminal's owner does to us.
func (s *seat) watch(signals <-chan os.Signal, done <-chan struct{}) {
	for {
		select {
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				s.leave()
				return
			}
			if cols, rows := size(); s.raw && cols > 0 {
				_ = s.t.Resize(cols, rows) // the next connection knows it too
			}
		case <-s.ctx.Done():
			s.leave()
			return
		case <-done:
			return
		}
	}
}

// typing passes our standard input on. What is typed at our terminal is looked at first.
func (s *seat) typing(leave context.Context) {
	if !s.raw && term.IsTerminal(s.stdin) { // it was not asked for
		_ = s.t.CloseInput() // told again by the next connection
		return
	}
	var esc escape
	buf := make([]byte, 32<<10)
	for leave.Err() == nil {
		n, err := os.Stdin.Read(buf)
		b := buf[:n]
		var act byte
		if s.raw {
			b, act = esc.filter(b)
		}
		if _, errW := s.t.Write(b); errW != nil && !errors.Is(errW, client.ErrNotWriter) {
			return
		}
		switch act {
		case '.':
			s.leave()
			return
		case 't':
			_ = s.t.Take() // without a connection there is nothing to take
		case '?':
			s.say("~. leaves, ~t takes over, ~~ types a ~")
		}
		if errors.Is(err, io.EOF) {
			_ = s.t.CloseInput() // as above
			return
		}
		if err != nil {
			s.leave()
			return
		}
	}
}

// escape finds what a person says to us, and not to the program: ~ and a character at the beginning of a line.
type escape struct {
	inLine bool // something stands before what comes
	held   bool // a ~ that may be one
}

// filter returns what is for the program, and what is for us; 0 = nothing.
func (e *escape) filter(b []byte) (out []byte, act byte) {
	out = make([]byte, 0, len(b)+1)
	for _, c := range b {
		if e.held {
			e.held = false
			switch c {
			case '.', 't', '?':
				act, e.inLine = c, false
				continue
			case '~':
				out, e.inLine = append(out, c), true
				continue
			}
			out, e.inLine = append(out, '~'), true
		}
		if c == '~' && !e.inLine {
			e.held = true
			continue
		}
		out = append(out, c)
		e.inLine = c != '\r' && c != '\n' && c != 3 && c != 4
	}
	return out, act
}
