package claude_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

var errKilled = errors.New("the server was killed")

// life is one server's: after so many steps it is killed, and nothing that it does has an effect any more.
type life struct {
	mu   sync.Mutex
	left int    // steps; negative = for ever
	stop func() // ends its goroutines, which a kill would do
}

func newLife(steps int) *life { return &life{left: steps} }

// step counts one; with an error the server has been killed.
func (l *life) step() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left == 0 {
		return errKilled
	}
	if l.left--; l.left == 0 {
		go l.stop()
		return errKilled
	}
	return nil
}

func (l *life) killed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left == 0
}

// do is a step before and one after something: the server may be killed when it is done, but not yet known to be.
func (l *life) do(something func() error) error {
	if err := l.step(); err != nil {
		return err
	}
	if err := something(); err != nil {
		return err
	}
	return l.step()
}

// mortalStore and mortalRunner are what a server has that is killed.
type mortalStore struct {
	*store.Store
	*life
}

func (s mortalStore) WriteSession(ctx context.Context, w sandbox.SessionWrite) error {
	return s.do(func() error { return s.Store.WriteSession(ctx, w) })
}

func (s mortalStore) InputWritten(ctx context.Context, in sandbox.Input) error {
	return s.do(func() error { return s.Store.InputWritten(ctx, in) })
}

type mortalRunner struct {
	*fakeRunner
	*life
}

func (r mortalRunner) StartRun(ctx context.Context, run sandbox.Run, cmd guest.Command, insert func(context.Context, sandbox.Run) error) (out sandbox.Run, err error) {
	err = r.do(func() error {
		out, err = r.fakeRunner.StartRun(ctx, run, cmd, func(ctx context.Context, run sandbox.Run) error {
			if err := insert(ctx, run); err != nil {
				return err
			}
			return r.step()
		})
		return err
	})
	return out, err
}

func (r mortalRunner) WriteStdin(ctx context.Context, run sandbox.Run, at int64, data []byte, last bool) (taken int64, err error) {
	err = r.do(func() error {
		taken, err = r.fakeRunner.WriteStdin(ctx, run, at, data, last)
		return err
	})
	return taken, err
}

func (r mortalRunner) Output(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error] {
	return func(yield func(guest.Frame, error) bool) {
		for f, err := range r.fakeRunner.Output(ctx, run, offset) {
			if r.killed() {
				yield(guest.Frame{}, errKilled)
				return
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

// serveMortal starts sessions that are killed after so many steps.
func (w *world) serveMortal(steps int) *life {
	l := newLife(steps)
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	w.Sessions = claude.NewSessions(claude.Config{Runner: mortalRunner{w.runner, l}, Store: mortalStore{w.store, l},
		Files: func(context.Context, string, sandbox.ID) (claude.Files, error) { return w.files, nil }})
	done := make(chan error, 1)
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
	l.stop = w.stop
	go func(s *claude.Sessions) { done <- s.Serve(ctx) }(w.Sessions)
	return l
}

// converse plays the CLI in a process: it asks before it does what it is told.
func converse(f *fakeRun, ended *sync.WaitGroup) {
	lines := make(chan []byte, 100)
	var rest []byte
	f.onInput = func(b []byte) {
		rest = append(rest, b...)
		for {
			line, more, ok := bytes.Cut(rest, []byte("\n"))
			if !ok {
				return
			}
			lines <- bytes.Clone(line)
			rest = more
		}
	}
	f.onClose = func() { close(lines) }
	ended.Go(func() {
		for l := range lines {
			var in struct{ Type, UUID string }
			if json.Unmarshal(l, &in) != nil {
				continue
			}
			switch in.Type {
			case "user":
				f.stdout(fmt.Sprintf(`{"type":"user","isReplay":true,"uuid":%q}`, in.UUID), partial(1), line(2), partial(3),
					`{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{}}}`)
			case "control_response":
				f.stdout(partial(4), line(5), `{"type":"result","subtype":"success","num_turns":2}`)
			}
		}
	})
}

// TestKilledAtEveryStep kills the server at each step of a turn with a decision in it, and has the next one go on. Whatever the moment, Claude
// gets the prompt and the decision once, and the log tells them once.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for step := 1; ; step++ {
		survived := false
		ok := t.Run(fmt.Sprint("step ", step), func(t *testing.T) { survived = killedAt(t, step) })
		if survived || !ok {
			if step < 15 {
				t.Errorf("a turn has only %d steps", step)
			}
			return
		}
	}
}

func killedAt(t *testing.T, step int) (survived bool) {
	w := newWorld(t)
	w.stop()
	var clis sync.WaitGroup
	defer clis.Wait()
	defer func() {
		w.stop()
		for _, f := range w.runner.all() {
			if f.onClose != nil {
				f.onClose()
			}
		}
	}()
	w.runner.onRun = func(f *fakeRun) { converse(f, &clis) }
	l := w.serveMortal(step)
	// again is what a client does whose request got no answer: it looks whether the next server knows of it, and else tries again.
	again := func() {
		if !l.killed() {
			return
		}
		w.stop()
		w.losesWhatNeverBegan()
		w.serve()
		l = newLife(-1)
	}
	ctx := t.Context()
	for len(must[[]sandbox.Session](t)(w.store.Sessions(ctx, w.account, 0))) == 0 {
		_, err := w.Prompt(ctx, w.account, claude.Prompt{Sandbox: w.sb.ID, Text: "go"})
		if err != nil && !l.killed() {
			t.Fatalf("prompt: %v", err)
		}
		again()
	}
	ses := must[[]sandbox.Session](t)(w.store.Sessions(ctx, w.account, 0))[0]
	w.transcript(ses)
	decided := false
	for deadline := time.Now().Add(time.Minute); ; {
		again()
		asks, err := w.Asks(ctx, w.account, ses.ID, false)
		if err == nil && len(asks) == 1 && !decided {
			if asks[0].State == sandbox.AskPending {
				_, err = w.Answer(ctx, w.account, ses.ID, asks[0].ID, claude.Decision{Allow: true, By: "key_1"})
			}
			decided = err == nil
		}
		if st, err := w.Session(ctx, w.account, ses.ID); err == nil && decided && !st.Busy() && !l.killed() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it doesn't end: %+v\n%s", w.state(ses.ID), show(w.stored(ses.ID)))
		}
		time.Sleep(time.Millisecond) // the client asks again
	}
	w.checkOnce(ses.ID)
	return !l.killed() && l.left >= 0
}

// losesWhatNeverBegan does what the manager of sandboxes does with runs that no guest knows.
func (w *world) losesWhatNeverBegan() {
	w.t.Helper()
	for _, run := range must[[]sandbox.Run](w.t)(w.store.RunningRuns(w.t.Context())) {
		if w.runner.get(run.ID) != nil {
			continue
		}
		f := &fakeRun{r: w.runner, run: run, changed: make(chan struct{}), typed: make(chan struct{})}
		w.runner.mu.Lock()
		w.runner.runs[run.ID] = f
		w.runner.mu.Unlock()
		f.lose("Perhaps it was never started.")
	}
}

// checkOnce checks that everything is there once.
func (w *world) checkOnce(session string) {
	w.t.Helper()
	input := ""
	for _, f := range w.runner.all() {
		f.mu.Lock()
		input += string(f.stdin)
		f.mu.Unlock()
	}
	if strings.Count(input, `"type":"user"`) != 1 || strings.Count(input, `"type":"control_response"`) != 1 {
		w.t.Errorf("Claude was given\n%s", input)
	}
	var story []string
	var last int64
	for _, e := range w.stored(session) {
		if e.Seq <= last {
			w.t.Errorf("%d after %d", e.Seq, last)
		}
		last = e.Seq
		if e.Kind != sandbox.SessionNotice {
			story = append(story, string(e.Kind))
		}
	}
	if got := strings.Join(story, " "); got != "prompt line line ask answer line line end" {
		w.t.Errorf("the log is %s:\n%s", got, show(w.stored(session)))
	}
	if t := must[[]sandbox.Turn](w.t)(w.store.OpenTurns(w.t.Context(), session)); len(t) != 0 {
		w.t.Errorf("turns are open: %+v", t)
	}
}
