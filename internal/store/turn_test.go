package store_test

import (
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

// newTurn is a turn of ses that waits.
func newTurn(ses sandbox.Session) sandbox.Turn {
	return sandbox.Turn{ID: sandbox.NewID(sandbox.PrefixTurn), Account: ses.Account, Session: ses.ID, Sandbox: ses.Sandbox, State: sandbox.TurnQueued,
		Text: "do it", Model: "m", PermissionMode: "plan", Author: "key_1", UUID: "u", CreatedAt: time.UnixMicro(1700000000000001).UTC()}
}

func write(t *testing.T, s *store.Store, w sandbox.SessionWrite) {
	t.Helper()
	if err := s.WriteSession(t.Context(), w); err != nil {
		t.Fatal(err)
	}
}

func TestTurns(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	sb := admit(t, s, account(t, s, "a"), nil)
	ses := newSession(t, s, sb)
	first, second := newTurn(ses), newTurn(ses)
	write(t, s, sandbox.SessionWrite{Session: ses.ID, NewTurns: []sandbox.Turn{first, second}})
	first.Number, second.Number = 1, 2
	open := must[[]sandbox.Turn](t)(s.OpenTurns(ctx, ses.ID))
	if !reflect.DeepEqual(open, []sandbox.Turn{first, second}) {
		t.Fatalf("open turns %+v", open)
	}
	if busy := must[[]string](t)(s.BusySessions(ctx)); !reflect.DeepEqual(busy, []string{ses.ID}) {
		t.Errorf("busy %v", busy)
	}

	second.Text = "do something else"
	write(t, s, sandbox.SessionWrite{Session: ses.ID, Text: &second})
	first.State, first.Run, first.Taken, first.Seq, first.StartedAt = sandbox.TurnRunning, "run_1", true, 1, first.CreatedAt
	write(t, s, sandbox.SessionWrite{Session: ses.ID, Turns: []sandbox.Turn{first}})
	also := second
	also.State = sandbox.TurnRunning
	wantClass(t, s.WriteSession(ctx, sandbox.SessionWrite{Session: ses.ID, Turns: []sandbox.Turn{also}}), sandbox.ErrConflict)
	wantClass(t, s.WriteSession(ctx, sandbox.SessionWrite{Session: ses.ID, Text: &first}), sandbox.ErrConflict)
	first.State, first.Interrupted, first.Reason, first.EndSeq, first.EndedAt = sandbox.TurnInterrupted, true, "why", 9, first.CreatedAt
	write(t, s, sandbox.SessionWrite{Session: ses.ID, Turns: []sandbox.Turn{first}})
	if got := must[sandbox.Turn](t)(s.Turn(ctx, ses.ID, first.ID)); !reflect.DeepEqual(got, first) {
		t.Errorf("got  %+v\nwant %+v", got, first)
	}
	if open := must[[]sandbox.Turn](t)(s.OpenTurns(ctx, ses.ID)); !reflect.DeepEqual(open, []sandbox.Turn{second}) {
		t.Errorf("open turns %+v", open)
	}
	_, err := s.Turn(ctx, newSession(t, s, sb).ID, first.ID)
	wantClass(t, err, sandbox.ErrNotFound)
	second.State = sandbox.TurnCancelled
	write(t, s, sandbox.SessionWrite{Session: ses.ID, Turns: []sandbox.Turn{second}})
	if busy := must[[]string](t)(s.BusySessions(ctx)); len(busy) != 0 {
		t.Errorf("busy %v", busy)
	}
	none := first
	none.ID = "trn_none"
	wantClass(t, s.WriteSession(ctx, sandbox.SessionWrite{Session: ses.ID, Turns: []sandbox.Turn{none}}), sandbox.ErrConflict)
}

// TestFirstAnswerWins has many answer at once, and checks that a loser has changed nothing.
func TestFirstAnswerWins(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	sb := admit(t, s, account(t, s, "a"), nil)
	ses := newSession(t, s, sb)
	at := time.UnixMicro(1700000000000001).UTC()
	ask := sandbox.Ask{ID: sandbox.NewID(sandbox.PrefixAsk), Account: ses.Account, Session: ses.ID, Turn: "trn_1", Run: "run_1", Request: "r", Kind: sandbox.AskTool,
		Tool: "Bash", ToolUse: "toolu", Agent: "agent", Title: "t", Description: "d", Reason: "why", Input: []byte(`{"a":1}`), Suggestions: []byte("null"),
		Answer: []byte("null"), State: sandbox.AskPending, CreatedAt: at, ExpiresAt: at.Add(time.Hour)}
	older := ask
	older.ID, older.State = sandbox.NewID(sandbox.PrefixAsk), sandbox.AskLost
	write(t, s, sandbox.SessionWrite{Session: ses.ID, NewAsks: []sandbox.Ask{ask, older}})
	if all := must[[]sandbox.Ask](t)(s.Asks(ctx, ses.ID, false, 0)); !reflect.DeepEqual(all, []sandbox.Ask{ask, older}) {
		t.Errorf("asks %+v", all)
	}
	if all := must[[]sandbox.Ask](t)(s.Asks(ctx, ses.ID, true, 0)); !reflect.DeepEqual(all, []sandbox.Ask{ask}) {
		t.Errorf("pending asks %+v", all)
	}
	var wg sync.WaitGroup
	var wins atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			a := ask
			a.State, a.Answer, a.AnsweredBy, a.AnsweredAt = sandbox.AskDenied, []byte(`{"n":1}`), string(rune('a'+i)), at
			err := s.WriteSession(ctx, sandbox.SessionWrite{Session: ses.ID, Settled: []sandbox.Ask{a},
				Events: []sandbox.SessionEvent{{Seq: int64(i) + 1, Kind: sandbox.SessionAnswer}}})
			if err == nil {
				wins.Add(1)
				return
			}
			wantClass(t, err, sandbox.ErrConflict)
		})
	}
	wg.Wait()
	got := must[sandbox.Ask](t)(s.Ask(ctx, ses.ID, ask.ID))
	if evs := must[[]sandbox.SessionEvent](t)(s.SessionEvents(ctx, ses.ID, 0, 0)); wins.Load() != 1 || got.State != sandbox.AskDenied || len(evs) != 1 {
		t.Errorf("%d won: %+v, %d events", wins.Load(), got, len(evs))
	}
}

func TestProcessesAndInputs(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	sb := admit(t, s, account(t, s, "a"), nil)
	ses, run := newSession(t, s, sb), newRun(sb)
	_, err := s.Process(ctx, ses.ID)
	wantClass(t, err, sandbox.ErrNotFound)
	p := sandbox.Process{Run: run.ID, Session: ses.ID, Sandbox: sb.ID, Stdin: 3, Model: "m", PermissionMode: "plan"}
	ins := []sandbox.Input{{Run: run.ID, At: 0, Data: []byte("abc")}, {Run: run.ID, At: 3, Data: []byte{}, Close: true}}
	w := begin(ses, run, event(1, run.ID, sandbox.SessionPrompt, `{}`))
	w.Process, w.Inputs = &p, ins
	write(t, s, w)
	if got := must[[]sandbox.Input](t)(s.Inputs(ctx, run.ID)); fmt.Sprint(got) != fmt.Sprint(ins) {
		t.Errorf("inputs %+v", got)
	}
	p.Closed = true
	write(t, s, sandbox.SessionWrite{Session: ses.ID, Process: &p})
	if got := must[sandbox.Process](t)(s.Process(ctx, ses.ID)); got != p {
		t.Errorf("process %+v", got)
	}
	if err := s.InputWritten(ctx, ins[0]); err != nil {
		t.Fatal(err)
	}
	if got := must[[]sandbox.Input](t)(s.Inputs(ctx, run.ID)); fmt.Sprint(got) != fmt.Sprint(ins[1:]) {
		t.Errorf("inputs %+v", got)
	}
	write(t, s, sandbox.SessionWrite{Session: ses.ID, Gone: run.ID})
	if got := must[[]sandbox.Input](t)(s.Inputs(ctx, run.ID)); len(got) != 0 {
		t.Errorf("inputs %+v", got)
	}
	if busy := must[[]string](t)(s.BusySessions(ctx)); len(busy) != 0 {
		t.Errorf("busy %v", busy)
	}
}

// TestForeignName: what the CLI calls its session comes out of a sandbox, and must not take another session's name.
func TestForeignName(t *testing.T) {
	t.Parallel()
	s := open(t)
	sb := admit(t, s, account(t, s, "a"), nil)
	mine, other := newSession(t, s, sb), newSession(t, s, sb)
	thief := mine
	thief.UUID, thief.Title = other.UUID, "new"
	write(t, s, sandbox.SessionWrite{Session: mine.ID, Update: &thief})
	if got := must[sandbox.Session](t)(s.Session(t.Context(), "", mine.ID)); got.UUID != mine.UUID || got.Title != "new" {
		t.Errorf("the session is %+v", got)
	}
}
