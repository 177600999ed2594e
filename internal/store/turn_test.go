package store_test

import (
	"testing"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestUnfinishedTurns(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	sb := admit(t, s, account(t, s, "a"), nil)
	var runs []sandbox.Run
	for _, uuid := range []string{"1", "2", "3"} {
		ses := sandbox.Session{ID: sandbox.NewID(sandbox.PrefixSession), Account: sb.Account, Sandbox: sb.ID, Volume: "v", UUID: uuid}
		if err := s.InsertSession(ctx, ses); err != nil {
			t.Fatal(err)
		}
		run := newRun(sb)
		run.Kind, run.Session = sandbox.RunClaude, ses.ID
		if err := s.BeginTurn(ctx, ses, run, sandbox.SessionEvent{Seq: 1, Run: run.ID, Kind: sandbox.SessionPrompt}); err != nil {
			t.Fatal(err)
		}
		runs = append(runs, run)
	}
	// One runs, one ended unseen, one is complete.
	for i, kind := range []sandbox.SessionEventKind{sandbox.SessionLine, sandbox.SessionLine, sandbox.SessionEnd} {
		ev := sandbox.SessionEvent{Seq: 2, Run: runs[i].ID, Kind: kind}
		if err := s.AppendSessionEvents(ctx, runs[i].Session, []sandbox.SessionEvent{ev}, runs[i].ID, 5); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			runs[i].State = sandbox.RunExited
			if err := s.EndRun(ctx, runs[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := must[[]sandbox.Run](t)(s.UnfinishedTurns(ctx))
	if len(got) != 2 || got[0].ID != runs[0].ID || got[1].ID != runs[1].ID || got[1].State != sandbox.RunExited || got[1].Mirrored != 5 {
		t.Errorf("got %+v", got)
	}
}
