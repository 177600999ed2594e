package claude_test

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestEnds(t *testing.T) {
	t.Parallel()
	seven := 7
	for _, tt := range []struct {
		name   string
		end    func(*fakeRun)
		state  string
		code   *int
		signal string
		reason string
	}{
		{"an error on stderr", func(f *fakeRun) {
			f.write(guest.Stderr, strings.Repeat("x", 10<<10)+"\nError: it is in use.\xff\n")
			f.exit(7)
		}, "exited", &seven, "", "Error: it is in use.?"},
		{"a signal", func(f *fakeRun) {
			f.finish(func(r *sandbox.Run) { r.State, r.Signal = sandbox.RunSignaled, "SIGKILL" })
		}, "signaled", nil, "SIGKILL", ""},
		{"lost", func(f *fakeRun) { f.lose("the sandbox has ended") }, "lost", nil, "", "the sandbox has ended"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			turn, run := w.prompt(claude.Prompt{Text: "go"})
			run.stdout(line(1))
			tt.end(run)
			e := endOf(t, w.collect(turn.Session.ID, 0))
			if e.State != tt.state || e.Signal != tt.signal || !strings.HasSuffix(e.Reason, tt.reason) || len(e.Reason) > 5000 {
				t.Errorf("end %+v", e)
			}
			if (e.ExitCode == nil) != (tt.code == nil) || e.ExitCode != nil && *e.ExitCode != *tt.code {
				t.Errorf("exit code %v", e.ExitCode)
			}
		})
	}
}

// TestLostOverARestart: what a reader has seen as a partial must not come again with another meaning.
func TestLostOverARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	run.stdout(line(1), partial(2), partial(3))
	var seen int64
	for e, err := range w.Events(t.Context(), w.account, turn.Session.ID, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if seen = e.Seq; seen == 4 {
			break
		}
	}
	w.stop()
	run.lose("the engine's process ended")
	w.serve()
	evs := w.collect(turn.Session.ID, seen)
	if e := endOf(t, evs); len(evs) != 1 || e.State != "lost" || e.Reason != "the engine's process ended" {
		t.Errorf("events\n%s", show(evs))
	}
	again, run := w.prompt(claude.Prompt{Text: "new"}) // and the account goes on
	run.exit(0)
	w.collect(again.Session.ID, 0)
}

func TestLostWithoutARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	run.stdout(line(1), partial(2), partial(3))
	for e := range w.Events(t.Context(), w.account, turn.Session.ID, 0, true) {
		if e.Seq == 4 {
			break
		}
	}
	run.lose("gone")
	evs := w.collect(turn.Session.ID, 0)
	if last := evs[len(evs)-1]; last.Seq != 5 {
		t.Errorf("events\n%s", show(evs))
	}
}

func TestTheGuestRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.runner.refuse = &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "no_such_program", Detail: "There is no such program."}
	_, err := w.Prompt(t.Context(), w.account, claude.Prompt{Sandbox: w.sb.ID, Text: "go"})
	wantProblem(t, err, sandbox.ErrInvalid, "no_such_program", "")
	list := must[[]claude.State](t)(w.Sessions.Sessions(t.Context(), w.account))
	if len(list) != 1 {
		t.Fatalf("sessions %+v", list)
	}
	evs := w.collect(list[0].ID, 0)
	if e := endOf(t, evs); len(evs) != 2 || e.State != "lost" || e.Reason != "the guest said no" {
		t.Errorf("events\n%s", show(evs))
	}
}

// TestALeavingClient: the caller goes while its process is being started.
func TestALeavingClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.runner.onStart = cancel
	turn := must[claude.Turn](t)(w.Prompt(ctx, w.account, claude.Prompt{Sandbox: w.sb.ID, Text: "go"}))
	run := <-w.runner.started
	run.stdout(line(1))
	run.exit(0)
	if evs := w.collect(turn.Session.ID, 0); len(evs) != 3 {
		t.Errorf("events\n%s", show(evs))
	}
}

func TestOddOutput(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	big := `{"type":"user","data":"` + strings.Repeat("0123456789", 300<<10) + `"}` // 3 MB
	for s := big + "\n"; s != ""; {
		n := min(len(s), guest.MaxFrame)
		run.write(guest.Stdout, s[:n])
		s = s[n:]
	}
	huge := strings.Repeat("y", guest.MaxFrame)
	for range 32<<20/guest.MaxFrame + 1 {
		run.write(guest.Stdout, huge)
	}
	run.stdout("", "\r", "   ", `{"subtype":"x","type":"stream_event"}`, `{"type":"user","text":"\"stream_event\""}`)
	gapAt := strconv.FormatInt(run.next, 10)
	run.change(func() { // the journal was trimmed, in the middle of a line
		run.frames = append(run.frames, guest.Frame{Kind: guest.Gap, Offset: run.next + 100, Data: binary.BigEndian.AppendUint64(nil, uint64(run.next))})
		run.next += 100
	})
	run.stdout(`the end of a line whose beginning is lost"}`, line(9))
	run.change(func() { // a connection made anew may repeat what was read
		run.frames = append(run.frames, guest.Frame{Kind: guest.Stdout, Offset: run.next - 5, Data: []byte("9}}\n\nlast\n")})
		run.next += 5
	})
	run.exit(0)
	evs := w.collect(turn.Session.ID, 0)
	var got []string
	for _, e := range w.stored(turn.Session.ID) {
		if string(e.Data) == big {
			e.Data = []byte("BIG")
		}
		got = append(got, string(e.Data))
	}
	want := []string{"BIG", `{"type":"sandlot","subtype":"line_too_long","bytes":33619968}`, `{"type":"user","text":"\"stream_event\""}`,
		`{"type":"sandlot","subtype":"gap","from":` + gapAt + `,"bytes":100}`, line(9), "last"}
	if s := strings.Join(got[1:len(got)-1], "\n"); s != strings.Join(want, "\n") {
		t.Errorf("stored\n%s\n%s", s, show(evs))
	}
}

func TestOutputThatBreaksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.runner.fails = []error{errors.New("one"), errors.New("two")}
		turn, run := w.prompt(claude.Prompt{Text: "go"})
		run.stdout(line(1), partial(2), line(3))
		run.exit(0)
		evs := w.collect(turn.Session.ID, 0)
		if e := endOf(t, evs); e.State != "exited" || len(w.stored(turn.Session.ID)) != 4 {
			t.Errorf("events\n%s", show(evs))
		}
	})
}

// TestOutputThatStaysBroken: a turn whose end is known must not stay busy for ever.
func TestOutputThatStaysBroken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		turn, run := w.prompt(claude.Prompt{Text: "go"})
		synctest.Wait()
		w.stop()
		for range 100 {
			w.runner.fails = append(w.runner.fails, errors.New("it can't be read"))
		}
		run.exit(3)
		w.serve()
		begin := time.Now()
		e := endOf(t, w.collect(turn.Session.ID, 0))
		if e.State != "exited" || e.ExitCode == nil || *e.ExitCode != 3 || time.Since(begin) > 2*time.Minute {
			t.Errorf("end %+v after %v", e, time.Since(begin))
		}
	})
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	w.stop()
	_, err := w.Prompt(t.Context(), w.account, claude.Prompt{Sandbox: w.sb.ID, Text: "go"})
	_ = err // it may still be taken: Serve was up once; but then the next process follows it
	w.serve()
	if !w.waitBusy(turn.Session.ID) {
		t.Error("the turn was not taken up")
	}
	run.exit(0)
	w.collect(turn.Session.ID, 0)

	idle := claude.NewSessions(claude.Config{Runner: w.runner, Store: w.store})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := idle.Prompt(ctx, w.account, claude.Prompt{Sandbox: w.sb.ID, Text: "go"}); !errors.Is(err, context.Canceled) {
		t.Errorf("before Serve: %v", err)
	}
	if err := idle.Serve(ctx); err != nil {
		t.Errorf("Serve with a ctx that is done: %v", err)
	}
	wantProblem(t, idle.Interrupt(t.Context(), w.account, turn.Session.ID), sandbox.ErrUnavailable, "shutting_down", "")
}

// waitBusy waits for an interrupt to be possible, which is when the turns of the last process were taken up.
func (w *world) waitBusy(session string) bool {
	return w.Interrupt(w.t.Context(), w.account, session) == nil
}
