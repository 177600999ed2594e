package claude_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// ask has the fake CLI ask for a permission, and returns the row.
func (w *world) ask(run *fakeRun, session, request, input string) sandbox.Ask {
	w.t.Helper()
	run.stdout(fmt.Sprintf(`{"type":"control_request","request_id":%q,"request":{"subtype":"can_use_tool","tool_name":"Bash","display_name":"Shell","input":%s,`+
		`"permission_suggestions":[{"type":"addRules","rules":[{"toolName":"Bash"}],"behavior":"allow","destination":"localSettings"}],"tool_use_id":"toolu_1","agent_id":"a1"}}`,
		request, input))
	e := w.until(session, 0, func(e sandbox.SessionEvent) bool {
		return e.Kind == sandbox.SessionAsk && w.askOf(e).Request == request
	})
	return w.askOf(e)
}

func (w *world) askOf(e sandbox.SessionEvent) sandbox.Ask {
	w.t.Helper()
	var d struct{ Prompt string }
	if err := json.Unmarshal(e.Data, &d); err != nil {
		w.t.Fatal(err)
	}
	for _, ses := range must[[]sandbox.Session](w.t)(w.store.Sessions(w.t.Context(), w.account, 0)) {
		if a, err := w.Ask(w.t.Context(), w.account, ses.ID, d.Prompt); err == nil {
			return a
		}
	}
	w.t.Fatalf("there is no ask %s", d.Prompt)
	return sandbox.Ask{}
}

// TestFirstDecisionCounts has two clients decide at once, many times.
func TestFirstDecisionCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go", PermissionMode: "default"})
	ses := turn.Session.ID
	run.input(t, 0)
	for round := range 10 {
		request := fmt.Sprint("r", round)
		a := w.ask(run, ses, request, `{"command":"ls"}`)
		if a.State != sandbox.AskPending || a.Turn != turn.Turn.ID || a.Tool != "Bash" || a.Title != "Shell" || a.Agent != "a1" || a.Run != turn.Run.ID {
			t.Fatalf("ask %+v", a)
		}
		if st := w.state(ses); st.Activity != claude.Waiting || len(st.Asks) != 1 || st.Asks[0].ID != a.ID {
			t.Errorf("state %+v", st)
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() {
				_, errs[i] = w.Answer(t.Context(), w.account, ses, a.ID, claude.Decision{Allow: i == 0, By: fmt.Sprint("key_", i)})
			})
		}
		wg.Wait()
		winner := slices.Index(errs, nil)
		if winner < 0 || errs[1-winner] == nil {
			t.Fatalf("errors %v", errs)
		}
		wantProblem(t, errs[1-winner], sandbox.ErrConflict, "already_answered", "")
		if !strings.Contains(errs[1-winner].Error(), fmt.Sprint("by key_", winner)) {
			t.Errorf("it doesn't say who: %v", errs[1-winner])
		}
		in := run.input(t, round+1)
		want := []string{"allow", "deny"}[winner]
		if field(in, "response", "request_id") != request || field(in, "response", "response", "behavior") != want {
			t.Errorf("the CLI was told %v", in)
		}
		if winner == 0 && field(in, "response", "response", "updatedInput", "command") != "ls" {
			t.Errorf("without its input: %v", in)
		}
		got := must[sandbox.Ask](t)(w.Ask(t.Context(), w.account, ses, a.ID))
		if got.AnsweredBy != fmt.Sprint("key_", winner) || got.AnsweredAt.IsZero() || !strings.Contains(string(got.Answer), want) {
			t.Errorf("row %+v", got)
		}
	}
	run.result()
	w.ended(ses, turn.Turn.ID)
	n := 0
	for _, e := range w.stored(ses) {
		if e.Kind == sandbox.SessionAnswer {
			n++
		}
	}
	run.mustBeAll(t, 11)
	if n != 10 {
		t.Errorf("%d answers are in the log", n)
	}
}

// mustBeAll checks that no more lines of input came.
func (f *fakeRun) mustBeAll(t *testing.T, lines int) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := strings.Count(string(f.stdin), "\n"); n != lines {
		t.Errorf("%d lines of input came, not %d:\n%.3000s", n, lines, f.stdin)
	}
}

func TestDecisions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go", PermissionMode: "default"})
	ses, n := turn.Session.ID, 0
	run.input(t, 0)
	const questions = `{"questions":[{"question":"Which?","header":"W","options":[],"multiSelect":false}]}`
	for _, tt := range []struct {
		name  string
		tool  string
		input string
		d     claude.Decision
		want  string // what the CLI is told, or the field at fault
		bad   bool
	}{
		{"deny", "Bash", `{}`, claude.Decision{}, `{"behavior":"deny","message":"The user doesn't want this."}`, false},
		{"deny with words", "Bash", `{}`, claude.Decision{Message: "No!"}, `{"behavior":"deny","message":"No!"}`, false},
		{"other input", "Bash", `{"command":"rm"}`, claude.Decision{Allow: true, Input: json.RawMessage(`{"command":"ls"}`)},
			`{"behavior":"allow","updatedInput":{"command":"ls"}}`, false},
		{"rules", "Bash", `{}`, claude.Decision{Allow: true, Permissions: json.RawMessage(`[{"type":"setMode"}]`)},
			`{"behavior":"allow","updatedInput":{},"updatedPermissions":[{"type":"setMode"}]}`, false},
		{"session", "Bash", `{}`, claude.Decision{Allow: true, Session: true},
			`{"behavior":"allow","updatedInput":{},"updatedPermissions":[{"behavior":"allow","destination":"session","rules":[{"toolName":"Bash"}],"type":"addRules"}]}`, false},
		{"answers", "AskUserQuestion", questions, claude.Decision{Allow: true, Answers: map[string]string{"Which?": "That"}},
			`{"behavior":"allow","updatedInput":{"answers":{"Which?":"That"},"questions":[{"question":"Which?","header":"W","options":[],"multiSelect":false}]}}`, false},
		{"no answers", "AskUserQuestion", questions, claude.Decision{Allow: true}, "answers", true},
		{"other answers", "AskUserQuestion", questions, claude.Decision{Allow: true, Answers: map[string]string{"Who?": "I"}}, "answers", true},
		{"answers to no question", "Bash", `{}`, claude.Decision{Allow: true, Answers: map[string]string{"Who?": "I"}}, "answers", true},
		{"input is no object", "Bash", `{}`, claude.Decision{Allow: true, Input: json.RawMessage(`[]`)}, "updated_input", true},
		{"rules are no list", "Bash", `{}`, claude.Decision{Allow: true, Permissions: json.RawMessage(`{}`)}, "updated_permissions", true},
		{"deny and answer", "Bash", `{}`, claude.Decision{Input: json.RawMessage(`{}`)}, "behavior", true},
		{"allow and stop", "Bash", `{}`, claude.Decision{Allow: true, Interrupt: true}, "interrupt", true},
		{"many words", "Bash", `{}`, claude.Decision{Message: strings.Repeat("x", 20_001)}, "message", true},
	} {
		request := "r-" + tt.name
		run.stdout(fmt.Sprintf(`{"type":"control_request","request_id":%q,"request":{"subtype":"can_use_tool","tool_name":%q,"input":%s}}`, request, tt.tool, tt.input))
		a := w.askOf(w.until(ses, 0, func(e sandbox.SessionEvent) bool {
			return e.Kind == sandbox.SessionAsk && w.askOf(e).Request == request
		}))
		if tt.tool == "Bash" && tt.name == "session" {
			// Without a suggestion the tool as a whole is meant.
			if a.Kind != sandbox.AskTool || string(a.Suggestions) != "null" {
				t.Errorf("ask %+v", a)
			}
		}
		_, err := w.Answer(t.Context(), w.account, ses, a.ID, tt.d)
		if tt.bad {
			wantProblem(t, err, sandbox.ErrInvalid, "invalid_request", tt.want)
			run.stdout(fmt.Sprintf(`{"type":"control_cancel_request","request_id":%q}`, request))
			w.until(ses, 0, func(e sandbox.SessionEvent) bool {
				return e.Kind == sandbox.SessionAnswer && strings.Contains(string(e.Data), a.ID) && strings.Contains(string(e.Data), `"withdrawn"`)
			})
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		n++
		got, _ := json.Marshal(field(run.input(t, n), "response", "response"))
		var x, y any
		if json.Unmarshal(got, &x) != nil || json.Unmarshal([]byte(tt.want), &y) != nil || fmt.Sprint(x) != fmt.Sprint(y) {
			t.Errorf("%s: the CLI was told %s, want %s", tt.name, got, tt.want)
		}
	}
	a := w.ask(run, ses, "last", `{}`)
	if _, err := w.Answer(t.Context(), w.account, ses, a.ID, claude.Decision{Interrupt: true}); err != nil {
		t.Fatal(err)
	}
	run.stdout(`{"type":"result","subtype":"error_during_execution","is_error":true,"num_turns":3}`)
	if e := w.ended(ses, turn.Turn.ID); e.Outcome != "interrupted" {
		t.Errorf("end %+v", e)
	}
	all := must[[]sandbox.Ask](t)(w.Asks(t.Context(), w.account, ses, false))
	if pending := must[[]sandbox.Ask](t)(w.Asks(t.Context(), w.account, ses, true)); len(all) != 15 || len(pending) != 0 {
		t.Errorf("%d asks, %d pending", len(all), len(pending))
	}
}

// TestExpiry: what nobody decides is denied in the end, also if the server was down at that time.
func TestExpiry(t *testing.T) {
	t.Parallel()
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprint("down ", down), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer func() { w.stop() }()
				turn, run := w.prompt(claude.Prompt{Text: "go"})
				a := w.ask(run, turn.Session.ID, "r", `{}`)
				begin := time.Now()
				if down {
					w.stop()
					time.Sleep(time.Hour)
					w.serve()
				}
				in := run.input(t, 1)
				if field(in, "response", "response", "behavior") != "deny" || !strings.Contains(fmt.Sprint(in), "Nobody decided this within 30m0s") {
					t.Errorf("the CLI was told %v", in)
				}
				if took := time.Since(begin); !down && took != 30*time.Minute || down && took != time.Hour {
					t.Errorf("after %v", took)
				}
				synctest.Wait()
				_, err := w.Answer(t.Context(), w.account, turn.Session.ID, a.ID, claude.Decision{Allow: true})
				wantProblem(t, err, sandbox.ErrConflict, "already_answered", "")
				if got := must[sandbox.Ask](t)(w.Ask(t.Context(), w.account, turn.Session.ID, a.ID)); got.State != sandbox.AskExpired || got.AnsweredBy != "" {
					t.Errorf("row %+v", got)
				}
				run.mustBeAll(t, 2)
			})
		})
	}
}

// TestAskEndsWithItsProcess: nobody can answer a process that has ended.
func TestAskEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	ses := turn.Session.ID
	a := w.ask(run, ses, "r", `{}`)
	run.stdout(`{"type":"control_request","request_id":"q","request":{"subtype":"hook_callback"}}`)
	if in := run.input(t, 1); field(in, "response", "subtype") != "error" || field(in, "response", "request_id") != "q" {
		t.Errorf("an unknown request was answered with %v", in)
	}
	run.finish(func(r *sandbox.Run) { r.State, r.Signal = sandbox.RunSignaled, "SIGKILL" })
	if e := w.ended(ses, turn.Turn.ID); e.Outcome != "failed" || e.State != "signaled" || e.Signal != "SIGKILL" {
		t.Errorf("end %+v", e)
	}
	_, err := w.Answer(t.Context(), w.account, ses, a.ID, claude.Decision{Allow: true})
	wantProblem(t, err, sandbox.ErrConflict, "already_answered", "")
	if got := must[sandbox.Ask](t)(w.Ask(t.Context(), w.account, ses, a.ID)); got.State != sandbox.AskLost {
		t.Errorf("row %+v", got)
	}
	if st := w.state(ses); st.Activity != claude.Idle || st.Process != nil {
		t.Errorf("state %+v", st)
	}
}

// TestTooManyAsks: what runs in a sandbox may be anything, and can't fill the server with what it asks.
func TestTooManyAsks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	ses := turn.Session.ID
	long := strings.Repeat("x", 100_000)
	for i := range 60 {
		run.stdout(fmt.Sprintf(`{"type":"control_request","request_id":"r%d","request":{"subtype":"can_use_tool","tool_name":%q,"title":%q,"description":%q}}`, i, long, long, long))
	}
	for i := 1; i <= 10; i++ {
		if in := run.input(t, i); field(in, "response", "subtype") != "error" || field(in, "response", "request_id") != fmt.Sprint("r", 49+i) {
			t.Errorf("input %v", in)
		}
	}
	st := w.state(ses)
	if a := st.Asks[0]; len(st.Asks) != 50 || len(a.Tool) > 300 || len(a.Title) > 5000 || len(a.Description) > 5000 || string(a.Input) != "{}" {
		t.Errorf("%d asks, %.100v", len(st.Asks), a)
	}
	run.stdout(`{"response":{"request_id":"r55","error":"Sandlot doesn't know this request: too many are open"},"type":"control_response"}`, line(1))
	run.result()
	w.ended(ses, turn.Turn.ID)
	for _, e := range w.stored(ses) {
		if strings.Contains(string(e.Data), "too many") {
			t.Error("what the CLI repeats of ours is in the log")
		}
	}
}
