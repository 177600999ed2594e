package store_test

import (
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

func newRun(sb sandbox.Sandbox) sandbox.Run {
	return sandbox.Run{ID: sandbox.NewID(sandbox.PrefixRun), Account: sb.Account, Sandbox: sb.ID, Kind: sandbox.RunExec,
		Argv: []string{"echo", "a b", ""}, State: sandbox.RunRunning}
}

func TestRuns(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	sb := admit(t, s, account(t, s, "a"), nil)
	first, second := newRun(sb), newRun(sb)
	for _, r := range []sandbox.Run{first, second} {
		if err := s.InsertRun(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	wantClass(t, s.InsertRun(ctx, first), sandbox.ErrConflict)
	stray := newRun(sb)
	stray.Sandbox = "sbx_none"
	wantClass(t, s.InsertRun(ctx, stray), sandbox.ErrNotFound)

	got := must[sandbox.Run](t)(s.Run(ctx, sb.Account, first.ID))
	if got.StartedAt.IsZero() || got.ExitCode != nil {
		t.Errorf("the run is %+v", got)
	}
	first.StartedAt = got.StartedAt
	if !reflect.DeepEqual(got, first) {
		t.Errorf("got  %+v\nwant %+v", got, first)
	}
	_, err := s.Run(ctx, account(t, s, "b"), first.ID)
	wantClass(t, err, sandbox.ErrNotFound)
	all, _, err := s.Runs(ctx, sandbox.RunFilter{Account: sb.Account, Sandbox: sb.ID})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[0].ID != second.ID || all[1].ID != first.ID {
		t.Errorf("the runs are %+v", all)
	}

	wantClass(t, s.EndRun(ctx, first), sandbox.ErrState) // it is running
	seven := 7
	first.State, first.ExitCode = sandbox.RunExited, &seven
	if err := s.EndRun(ctx, first); err != nil {
		t.Fatal(err)
	}
	late := first
	late.State, late.ExitCode, late.Reason = sandbox.RunLost, nil, "too late"
	if err := s.EndRun(ctx, late); err != nil {
		t.Fatal(err)
	}
	got = must[sandbox.Run](t)(s.Run(ctx, sb.Account, first.ID))
	if got.State != sandbox.RunExited || got.ExitCode == nil || *got.ExitCode != 7 || got.Reason != "" || got.EndedAt.IsZero() {
		t.Errorf("the run is %+v", got)
	}
	running := must[[]sandbox.Run](t)(s.RunningRuns(ctx))
	if len(running) != 1 || running[0].ID != second.ID {
		t.Errorf("running are %+v", running)
	}
}

func newSession(t *testing.T, s *store.Store, sb sandbox.Sandbox) sandbox.Session {
	t.Helper()
	id := sandbox.NewID(sandbox.PrefixSession)
	if err := s.InsertSession(t.Context(), sandbox.Session{ID: id, Account: sb.Account, Sandbox: sb.ID, Volume: "vol_1", Title: "Hi", UUID: "uuid of " + id}); err != nil {
		t.Fatal(err)
	}
	return must[sandbox.Session](t)(s.Session(t.Context(), sb.Account, id))
}

func event(seq int64, run string, kind sandbox.SessionEventKind, data string) sandbox.SessionEvent {
	return sandbox.SessionEvent{Seq: seq, Run: run, Kind: kind, Data: []byte(data)}
}

// begin is the write that begins a run of ses and records ev.
func begin(ses sandbox.Session, run sandbox.Run, ev sandbox.SessionEvent) sandbox.SessionWrite {
	ses.Turns++
	ses.Sandbox = run.Sandbox
	return sandbox.SessionWrite{Session: ses.ID, Update: &ses, Begin: &run, Events: []sandbox.SessionEvent{ev}}
}

// lines is the write of a run's output.
func lines(session string, evs []sandbox.SessionEvent, run string, mirrored int64) sandbox.SessionWrite {
	return sandbox.SessionWrite{Session: session, Events: evs, Run: run, Mirrored: mirrored}
}

func TestSessionsAreListedByUse(t *testing.T) {
	t.Parallel()
	s := open(t)
	sb := admit(t, s, account(t, s, "a"), nil)
	first, second := newSession(t, s, sb), newSession(t, s, sb)
	run := newRun(sb)
	if err := s.WriteSession(t.Context(), begin(first, run, event(1, run.ID, sandbox.SessionPrompt, `{}`))); err != nil {
		t.Fatal(err)
	}
	all := must[[]sandbox.Session](t)(s.Sessions(t.Context(), sb.Account, 0))
	if len(all) != 2 || all[0].ID != first.ID || all[1].ID != second.ID {
		t.Errorf("sessions are %+v", all)
	}
	if len(must[[]sandbox.Session](t)(s.Sessions(t.Context(), account(t, s, "b"), 0))) != 0 {
		t.Error("another account sees them")
	}
	_, err := s.Session(t.Context(), account(t, s, "b"), first.ID)
	wantClass(t, err, sandbox.ErrNotFound)
	wantClass(t, s.InsertSession(t.Context(), first), sandbox.ErrConflict)
}

func TestBeginARun(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	acc := account(t, s, "a")
	old, sb := admit(t, s, acc, nil), admit(t, s, acc, nil)
	ses := newSession(t, s, old)

	// Of many prompts at once one is taken.
	var wg sync.WaitGroup
	var won atomic.Value
	var wins atomic.Int32
	for range 8 {
		wg.Go(func() {
			run := newRun(sb)
			err := s.WriteSession(ctx, begin(ses, run, event(1, run.ID, sandbox.SessionPrompt, `{"type":"prompt"}`)))
			if err == nil {
				won.Store(run)
				wins.Add(1)
				return
			}
			wantClass(t, err, sandbox.ErrConflict)
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d prompts were taken", wins.Load())
	}
	run := won.Load().(sandbox.Run)
	got := must[sandbox.Session](t)(s.Session(ctx, acc, ses.ID))
	if got.Turns != 1 || got.LastSeq != 1 || got.Sandbox != sb.ID || got.UpdatedAt.Before(ses.UpdatedAt) {
		t.Errorf("the session is %+v", got)
	}
	if all, _, err := s.Runs(ctx, sandbox.RunFilter{Account: acc, Sandbox: sb.ID}); err != nil || len(all) != 1 || all[0].Session != ses.ID {
		t.Errorf("the runs are %+v", all)
	}

	// While it runs there is no other, though its number is free.
	next := newRun(sb)
	wantClass(t, s.WriteSession(ctx, begin(got, next, event(2, next.ID, sandbox.SessionPrompt, `{}`))), sandbox.ErrConflict)
	if again := must[sandbox.Session](t)(s.Session(ctx, acc, ses.ID)); again != got {
		t.Errorf("a refused turn left something: %+v", again)
	}
	run.State = sandbox.RunLost
	if err := s.EndRun(ctx, run); err != nil {
		t.Fatal(err)
	}
	wantClass(t, s.WriteSession(ctx, begin(got, next, event(1, next.ID, sandbox.SessionPrompt, `{}`))), sandbox.ErrConflict)
	if err := s.WriteSession(ctx, begin(got, next, event(2, next.ID, sandbox.SessionPrompt, `{}`))); err != nil {
		t.Error(err)
	}
	none := ses
	none.ID = "ses_none"
	wantClass(t, s.WriteSession(ctx, begin(none, newRun(sb), event(1, "", sandbox.SessionPrompt, `{}`))), sandbox.ErrNotFound)
}

func TestAppendSessionEventsExactlyOnce(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	sb := admit(t, s, account(t, s, "a"), nil)
	ses, run := newSession(t, s, sb), newRun(sb)
	if err := s.WriteSession(ctx, begin(ses, run, event(1, run.ID, sandbox.SessionPrompt, `{}`))); err != nil {
		t.Fatal(err)
	}
	line := func(seq int64) sandbox.SessionEvent { return event(seq, run.ID, sandbox.SessionLine, "not \xff JSON") }
	partial := event(3, run.ID, sandbox.SessionPartial, `{}`)
	if err := s.WriteSession(ctx, lines(ses.ID, []sandbox.SessionEvent{line(2), partial, line(4)}, run.ID, 100)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		session  string
		evs      []sandbox.SessionEvent
		run      string
		mirrored int64
		class    error
	}{
		"again":            {ses.ID, []sandbox.SessionEvent{line(4)}, run.ID, 120, sandbox.ErrConflict},
		"begins too early": {ses.ID, []sandbox.SessionEvent{line(4), line(5)}, run.ID, 120, sandbox.ErrConflict},
		"out of order":     {ses.ID, []sandbox.SessionEvent{line(6), line(5)}, run.ID, 120, sandbox.ErrConflict},
		"offset goes back": {ses.ID, []sandbox.SessionEvent{line(5)}, run.ID, 99, sandbox.ErrConflict},
		"no such run":      {ses.ID, []sandbox.SessionEvent{line(5)}, "run_none", 120, sandbox.ErrConflict},
		"no such session":  {"ses_none", []sandbox.SessionEvent{line(5)}, run.ID, 120, sandbox.ErrNotFound},
		"another session":  {newSession(t, s, sb).ID, []sandbox.SessionEvent{line(5)}, run.ID, 120, sandbox.ErrConflict},
	} {
		t.Run(name, func(t *testing.T) {
			wantClass(t, s.WriteSession(ctx, lines(c.session, c.evs, c.run, c.mirrored)), c.class)
			got := must[sandbox.Run](t)(s.Run(ctx, "", run.ID))
			evs := must[[]sandbox.SessionEvent](t)(s.SessionEvents(ctx, ses.ID, 0, 0))
			if got.Mirrored != 100 || len(evs) != 3 {
				t.Errorf("mirrored %d, %d events", got.Mirrored, len(evs))
			}
		})
	}
	if err := s.WriteSession(ctx, lines(ses.ID, nil, run.ID, 130)); err != nil {
		t.Error(err)
	}
	if err := s.WriteSession(ctx, lines(ses.ID, []sandbox.SessionEvent{{Seq: 5, Run: run.ID, Kind: sandbox.SessionEnd}}, "", 0)); err != nil {
		t.Error(err)
	}
	var seqs []int64
	for _, ev := range must[[]sandbox.SessionEvent](t)(s.SessionEvents(ctx, ses.ID, 1, 0)) {
		seqs = append(seqs, ev.Seq)
		if ev.Kind == sandbox.SessionLine && string(ev.Data) != "not \xff JSON" || ev.At.IsZero() || ev.Run != run.ID {
			t.Errorf("event is %+v", ev)
		}
	}
	if !reflect.DeepEqual(seqs, []int64{2, 4, 5}) {
		t.Errorf("the numbers are %v", seqs)
	}
	if got := must[[]sandbox.SessionEvent](t)(s.SessionEvents(ctx, ses.ID, 0, 2)); len(got) != 2 {
		t.Errorf("%d events on a page of 2", len(got))
	}
}
