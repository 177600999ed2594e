package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// asked begins a turn that asks something, leaves, and returns the session and what is asked.
func asked(t *testing.T, s *server, sandbox string, in api.Prompt) (session string, ask api.Ask) {
	t.Helper()
	for e, err := range s.Prompt(within(t), sandbox, in) {
		if err != nil {
			t.Fatal(err)
		}
		var d struct{ Session, Prompt string }
		if e.Name == "session" || e.Name == "ask" {
			if err := json.Unmarshal([]byte(e.Data), &d); err != nil {
				t.Fatal(err)
			}
		}
		if e.Name == "session" {
			session = d.Session
		}
		if e.Name != "ask" {
			continue
		}
		ask, err := s.Ask(within(t), session, d.Prompt)
		if err != nil {
			t.Fatal(err)
		}
		return session, ask
	}
	t.Fatal("Claude did not ask")
	return "", api.Ask{}
}

// untilEvent follows a session until an event is as wanted, and returns all up to it.
func untilEvent(t *testing.T, s *server, session string, is func(api.SessionEvent) bool) (all []api.SessionEvent) {
	t.Helper()
	for e, err := range s.FollowSession(within(t), session, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, e); is(e) {
			return all
		}
	}
	t.Fatal("the session's stream ended")
	return nil
}

func isEnd(turn string) func(api.SessionEvent) bool {
	return func(e api.SessionEvent) bool {
		return e.Kind == "end" && strings.Contains(fmt.Sprintf("%s", e.Data), turn)
	}
}

// TestAskSurvivesKill kills the server while Claude waits for a decision, and another prompt waits for that. The next server shows both, takes
// the decision, and the same process of the CLI goes on.
func TestAskSurvivesKill(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{Volume: "asked"})
	session, ask := asked(t, s, sb.ID, api.Prompt{Prompt: "ask permission", PermissionMode: "default"})
	queued := make(chan string, 1)
	go func() {
		defer close(queued)
		for e, err := range s.Prompt(within(t), sb.ID, api.Prompt{Prompt: "remember", Session: session}) {
			var start api.SessionStart
			if err == nil && e.Name == "session" && json.Unmarshal([]byte(e.Data), &start) == nil {
				queued <- start.Turn
			}
		}
	}()
	second := <-queued
	s.kill(t)
	for range queued { // its stream was cut
	}

	s = start(t, options{data: s.data})
	ses, err := s.Session(within(t), session)
	if err != nil || ses.State != "waiting" || len(ses.Prompts) != 1 || ses.Prompts[0].ID != ask.ID || len(ses.Queue) != 1 || ses.Process == nil || ses.Process.Run != ask.Run {
		t.Fatalf("after the restart the session is %+v, %v", ses, err)
	}
	decided, err := s.Answer(within(t), session, ask.ID, api.Answer{Behavior: "allow"})
	if err != nil || decided.State != "allowed" {
		t.Fatalf("decided %+v, %v", decided, err)
	}
	if _, err := s.Answer(within(t), session, ask.ID, api.Answer{Behavior: "deny"}); client.Code(err) != "already_answered" {
		t.Errorf("the second decision: %v", err)
	}
	var u turn
	all := untilEvent(t, s, session, isEnd(second))
	kinds := map[string]int{}
	for _, e := range all {
		kinds[e.Kind]++
		if e.Kind == "line" {
			u.read(t, e.Data.(json.RawMessage))
		}
		if e.Kind == "end" && (!strings.Contains(fmt.Sprintf("%s", e.Data), `"outcome":"done"`) || e.Seq == 0) {
			t.Errorf("a turn ended as %s", e.Data)
		}
	}
	if kinds["prompt"] != 2 || kinds["ask"] != 1 || kinds["answer"] != 1 || kinds["end"] != 2 {
		t.Errorf("the log has %v", kinds)
	}
	if r := u.lines[len(u.lines)-1]; r.Type != "result" || !strings.Contains(r.Result, "2 of your prompts") {
		t.Errorf("in the end Claude says %+v", r)
	}
	if text, err := os.ReadFile(filepath.Join(s.data, "local", "volumes", sb.VolumeID, "permission.txt")); err != nil || string(text) != "allowed by you\n" {
		t.Errorf("the file has %q, %v", text, err)
	}
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, s.data)
}

// TestClaudeIsKilled kills the CLI in the middle of a tool. The turn fails, and the next one knows what was cut off.
func TestClaudeIsKilled(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	session := ""
	for e, err := range s.Prompt(within(t), sb.ID, api.Prompt{Prompt: "long command 100"}) {
		if err != nil {
			if client.Code(err) != "run_signaled" {
				t.Errorf("the turn's stream ended with %v", err)
			}
			break
		}
		if e.Name == "session" {
			var start api.SessionStart
			if err := json.Unmarshal([]byte(e.Data), &start); err != nil {
				t.Fatal(err)
			}
			session = start.Session
		}
		if strings.HasPrefix(e.Data, `{"type":"assistant"`) && strings.Contains(e.Data, `"tool_use"`) {
			kill := `while ! test -e /workspace/long.txt; do sleep 0.05; done
				for p in /proc/[0-9]*; do case $(tr '\0' ' ' < $p/cmdline) in */claude\ -p*) kill -9 ${p#/proc/};; esac; done`
			if run, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"sh", "-c", kill}, User: "root"}); err != nil || run.State != "exited" {
				t.Errorf("kill: %+v, %v", run, err)
			}
		}
	}
	ses, err := s.Session(within(t), session)
	if err != nil || ses.State != "idle" || ses.Process != nil {
		t.Errorf("the session is %+v, %v", ses, err)
	}
	again := prompt(t, s, sb.ID, api.Prompt{Prompt: "remember", Session: session})
	if r := again.find("result", ""); r == nil || !strings.Contains(r.Result, "2 of your prompts") {
		t.Errorf("the next turn: %+v", r)
	}
	log, err := s.SessionEvents(within(t), session, 0)
	if err != nil {
		t.Fatal(err)
	}
	if all := fmt.Sprint(log); !strings.Contains(all, "subtype:repaired") || !strings.Contains(all, "subtype:restored") {
		t.Errorf("the log doesn't say what was repaired: %s", all)
	}
}

// TestRequirementsOfTalk has the requirements that are met by the way Claude is run, by their numbers.
func TestRequirementsOfTalk(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	session, ask := asked(t, s, sb.ID, api.Prompt{Prompt: "ask permission", PermissionMode: "default"})
	t.Run("4.7 PTY for the Claude CLI", func(t *testing.T) {
		script := `for p in /proc/[0-9]*; do case $(tr '\0' ' ' < $p/cmdline) in */claude\ -p*) readlink $p/fd/0 $p/fd/1;; esac; done`
		run, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"sh", "-c", script}})
		if err != nil || !strings.HasPrefix(run.Stdout, "pipe:") || !strings.Contains(run.Stdout, "\n/") || strings.Count(run.Stdout, "pipe:") != 1 {
			t.Errorf("Claude's input and output are %q %q, %v", run.Stdout, run.Stderr, err)
		}
		log, err := s.SessionEvents(within(t), session, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range log.Events {
			if _, ok := e.Data.(map[string]any); e.Kind == "line" && !ok {
				t.Errorf("a line is not the JSON that the CLI wrote: %q", e.Data)
			}
		}
	})
	if _, err := s.Answer(within(t), session, ask.ID, api.Answer{Behavior: "deny", Interrupt: true}); err != nil {
		t.Error(err)
	}
	untilEvent(t, s, session, isEnd(ask.Turn))
}
