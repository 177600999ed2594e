package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// TestSuspend suspends a sandbox, kills the server, and finds a process of it where it was: also when the server is killed while it
// suspends or resumes.
func TestSuspend(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	const script = `i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; while ! test -e go.$i; do sleep 0.01; done; done; echo end; exit 7`
	var run string
	for e, err := range s.Exec(within(t), sb.ID, api.Exec{Argv: []string{"bash", "-c", script}}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Start != nil {
			run = e.Start.ID
		}
		if len(e.Data) > 0 {
			break // it counts
		}
	}
	step := 0
	advance := func() {
		t.Helper()
		for range 10 {
			step++
			if _, err := s.WriteFile(within(t), sb.ID, fmt.Sprintf("/workspace/go.%d", step), strings.NewReader("")); err != nil {
				t.Fatal(err)
			}
		}
	}
	restart := func() {
		t.Helper()
		s.kill(t)
		s = start(t, options{data: s.data})
	}
	wantState := func(want string) {
		t.Helper()
		if got, err := s.Sandbox(within(t), sb.ID); err != nil || got.State != want {
			t.Fatalf("it is %s (%s), %v; want %s", got.State, got.Reason, err, want)
		}
	}

	advance()
	if got, err := s.Suspend(within(t), sb.ID); err != nil || got.State != "suspended" || got.SuspendedAt == nil || got.SuspendedUntil == nil {
		t.Fatalf("suspend: %+v, %v", got, err)
	}
	if n := runtimes(t, s.data); n != 0 {
		t.Errorf("%d processes of it live", n)
	}
	_, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"true"}})
	if client.Code(err) != "sandbox_suspended" {
		t.Errorf("exec: %v", err)
	}
	restart()
	wantState("suspended")
	if list, err := s.Sandboxes(within(t), client.Filter{States: []string{"suspended"}}); err != nil || len(list.Sandboxes) != 1 {
		t.Errorf("suspended are %+v, %v", list, err)
	}
	if got, err := s.Resume(within(t), sb.ID); err != nil || got.State != "running" || !got.ExpiresAt.After(sb.ExpiresAt) {
		t.Fatalf("resume: %+v, %v", got, err)
	}
	advance()

	for _, c := range []struct {
		do       func(*client.Client, context.Context, string) (api.Sandbox, error)
		over, to string
	}{{(*client.Client).Suspend, "suspending", "suspended"}, {(*client.Client).Resume, "resuming", "running"}} {
		seen, err := s.Events(within(t), sb.ID, 0, 500)
		if err != nil {
			t.Fatal(err)
		}
		after := seen.Events[len(seen.Events)-1].Seq
		done := make(chan error, 1)
		ctx, old := within(t), s.Client
		go func() { _, err := c.do(old, ctx, sb.ID); done <- err }()
		waitEvent(t, s, sb.ID, after, c.over)
		restart() // while the engine works on it
		<-done    // an error, or it was quicker
		waitEvent(t, s, sb.ID, after, c.to)
		wantState(c.to)
	}
	advance()
	advance()

	var out strings.Builder
	var end *api.Run
	for e, err := range s.RunEvents(within(t), sb.ID, run, 0) {
		if err != nil {
			t.Fatal(err)
		}
		out.Write(e.Data)
		if e.Exit != nil {
			end = e.Exit
		}
	}
	var want strings.Builder
	for i := 1; i <= 40; i++ {
		fmt.Fprintln(&want, i)
	}
	if out.String() != want.String()+"end\n" || end == nil || end.ExitCode == nil || *end.ExitCode != 7 {
		t.Errorf("it wrote %q and ended as %+v", out.String(), end)
	}
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, s.data)
}

// waitEvent waits until an event of this kind has come after seq.
func waitEvent(t *testing.T, s *server, id string, seq int64, kind string) {
	t.Helper()
	for e, err := range s.FollowEvents(within(t), id, seq) {
		if err != nil {
			t.Fatalf("waiting for %s: %v", kind, err)
		}
		if e.Kind == kind {
			return
		}
	}
	t.Fatalf("no event %s came", kind)
}

// TestSuspendTurn suspends a sandbox in which Claude is at work. Its call to the model breaks, and it goes on by itself.
func TestSuspendTurn(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	session := begin(t, s, sb.ID, "slow stream, and then run: echo still here")
	if _, err := s.Suspend(within(t), sb.ID); err != nil {
		t.Fatal(err)
	}
	if ses, err := s.Session(within(t), session); err != nil || !ses.Busy {
		t.Errorf("the session is %+v, %v", ses, err)
	}
	if _, err := s.Resume(within(t), sb.ID); err != nil {
		t.Fatal(err)
	}
	var u turn
	for e, err := range s.FollowSession(within(t), session, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == "line" {
			u.read(t, e.Data.(json.RawMessage))
		}
		if e.Kind == "end" {
			if !strings.Contains(string(e.Data.(json.RawMessage)), `"exited"`) {
				t.Errorf("the turn ended as %s", e.Data)
			}
			break
		}
	}
	if r := u.find("result", ""); r == nil || r.IsError {
		t.Errorf("result: %+v", r)
	}
	again := prompt(t, s, sb.ID, api.Prompt{Prompt: "How many turns do you remember?", Session: session})
	if r := again.find("result", ""); r == nil || r.IsError {
		t.Errorf("the next turn: %+v", r)
	}
}
