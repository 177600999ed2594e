package claude_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// typed is what a line of input says to Claude.
func typed(in map[string]any) any {
	content, _ := field(in, "message", "content").([]any)
	if len(content) != 1 {
		return nil
	}
	return field(content[0], "text")
}

func (w *world) state(session string) claude.State {
	w.t.Helper()
	return must[claude.State](w.t)(w.Session(w.t.Context(), w.account, session))
}

// queue puts a prompt behind those that are there.
func (w *world) queue(session, text string) claude.Turn {
	w.t.Helper()
	turn := must[claude.Turn](w.t)(w.Prompt(w.t.Context(), w.account, claude.Prompt{Session: session, Text: text, Author: "key_q"}))
	if !turn.Queued || turn.Turn.State != sandbox.TurnQueued || turn.Run.ID != "" {
		w.t.Fatalf("the turn doesn't wait: %+v", turn)
	}
	return turn
}

// ended reads up to the end of a turn.
func (w *world) ended(session, turn string) ending {
	w.t.Helper()
	e := w.until(session, 0, func(e sandbox.SessionEvent) bool { return e.Kind == sandbox.SessionEnd && e.Turn == turn })
	return endOf(w.t, []sandbox.SessionEvent{e})
}

func TestQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	first, run := w.prompt(claude.Prompt{Text: "one"})
	ses := first.Session.ID
	second, third, fourth := w.queue(ses, "two"), w.queue(ses, "three"), w.queue(ses, "four")
	if _, err := w.EditTurn(ctx, w.account, ses, third.Turn.ID, "three and a half", "key_e"); err != nil {
		t.Error(err)
	}
	gone := must[sandbox.Turn](t)(w.CancelTurn(ctx, w.account, ses, second.Turn.ID, "key_c"))
	if gone.State != sandbox.TurnCancelled || gone.EndedAt.IsZero() {
		t.Errorf("cancelled: %+v", gone)
	}
	for _, err := range []error{
		func() error { _, err := w.EditTurn(ctx, w.account, ses, first.Turn.ID, "x", ""); return err }(),
		func() error { _, err := w.CancelTurn(ctx, w.account, ses, first.Turn.ID, ""); return err }(),
	} {
		wantProblem(t, err, sandbox.ErrConflict, "turn_running", "")
	}
	_, err := w.CancelTurn(ctx, w.account, ses, second.Turn.ID, "")
	wantProblem(t, err, sandbox.ErrConflict, "turn_ended", "")
	_, err = w.CancelTurn(ctx, w.account, ses, "trn_none", "")
	wantProblem(t, err, sandbox.ErrNotFound, "turn_not_found", "")
	_, err = w.EditTurn(ctx, w.account, ses, third.Turn.ID, " ", "")
	wantProblem(t, err, sandbox.ErrInvalid, "invalid_request", "prompt")
	if _, err = w.CancelTurn(ctx, "another account", ses, third.Turn.ID, ""); !errors.Is(err, sandbox.ErrNotFound) {
		t.Error(err)
	}

	w.restart()
	st := w.state(ses)
	if st.Activity != claude.Working || st.Turn == nil || st.Turn.ID != first.Turn.ID || len(st.Queue) != 2 || st.Queue[0].Text != "three and a half" ||
		st.Queue[1].Text != "four" || st.Process == nil || st.Process.Run != first.Run.ID {
		t.Errorf("state %+v", st)
	}
	run.stdout(line(1))
	run.result()
	if got := typed(run.input(t, 1)); got != "three and a half" {
		t.Errorf("the second prompt is %v", got)
	}
	run.stdout(line(2))
	run.result()
	if got := typed(run.input(t, 2)); got != "four" {
		t.Errorf("the third prompt is %v", got)
	}
	run.result()
	if e := w.ended(ses, fourth.Turn.ID); e.Outcome != "done" || e.Run != first.Run.ID {
		t.Errorf("end %+v", e)
	}
	var story []string
	for _, e := range w.stored(ses) {
		name := map[string]string{first.Turn.ID: "1", second.Turn.ID: "2", third.Turn.ID: "3", fourth.Turn.ID: "4"}[e.Turn]
		story = append(story, name+string(e.Kind))
	}
	if got := strings.Join(story, " "); got != "1prompt 2queue 3queue 4queue 3queue 2queue 1line 1line 1end 3prompt 3line 3line 3end 4prompt 4line 4end" {
		t.Errorf("the log is %s", got)
	}
	if st := w.state(ses); st.Activity != claude.Idle || st.Turns != 3 || st.Process == nil || len(w.runner.all()) != 1 {
		t.Errorf("state %+v", st)
	}
}

func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, _ := w.prompt(claude.Prompt{Text: "one"})
	var wg sync.WaitGroup
	var mu sync.Mutex
	full := 0
	for range 30 {
		wg.Go(func() {
			_, err := w.Prompt(t.Context(), w.account, claude.Prompt{Session: first.Session.ID, Text: "more"})
			if err == nil {
				return
			}
			wantProblem(t, err, sandbox.ErrQuota, "queue_full", "session")
			mu.Lock()
			defer mu.Unlock()
			full++
		})
	}
	wg.Wait()
	if st := w.state(first.Session.ID); len(st.Queue) != 20 || full != 10 {
		t.Errorf("%d wait, %d were refused", len(st.Queue), full)
	}
}

// TestLongPrompt: ten megabytes are written whole, once, and behind a turn that runs.
func TestLongPrompt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, run := w.prompt(claude.Prompt{Text: "one"})
	text := strings.Repeat("0123456789abcdef", 10<<20/16)
	w.queue(first.Session.ID, text)
	w.restart()
	run.result()
	if got := typed(run.input(t, 1)); got != text {
		t.Errorf("the prompt has %d bytes", len(fmt.Sprint(got)))
	}
}

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

func ptr[T any](v T) *T { return &v }

func TestLiveChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	ses := turn.Session.ID
	st := must[claude.State](t)(w.Update(ctx, w.account, ses, claude.Change{Title: ptr(" A\nname"), Model: ptr("m-2"), PermissionMode: ptr("plan"), By: "key_1"}))
	if st.Title != "A" || st.Model != "m-2" || st.PermissionMode != "plan" || st.Process.Model != "m-2" {
		t.Errorf("state %+v", st)
	}
	if in := run.input(t, 1); field(in, "request", "subtype") != "set_model" || field(in, "request", "model") != "m-2" {
		t.Errorf("input %v", in)
	}
	in := run.input(t, 2)
	if field(in, "request", "subtype") != "set_permission_mode" || field(in, "request", "mode") != "plan" {
		t.Errorf("input %v", in)
	}
	run.stdout(fmt.Sprintf(`{"type":"control_response","response":{"subtype":"error","request_id":%q,"error":"no such mode"}}`, in["request_id"]))
	w.until(ses, 0, func(e sandbox.SessionEvent) bool {
		return e.Kind == sandbox.SessionNotice && strings.Contains(string(e.Data), `"refused"`) && strings.Contains(string(e.Data), "no such mode")
	})
	if _, err := w.Update(ctx, w.account, ses, claude.Change{Model: ptr("m-2")}); err != nil { // nothing new
		t.Error(err)
	}
	run.result()
	w.ended(ses, turn.Turn.ID)

	// A prompt that wants something else has it switched first; one that doesn't say goes on with that.
	for _, p := range []claude.Prompt{{Text: "a", PermissionMode: "default"}, {Text: "b", Model: "m-3"}, {Text: "c"}} {
		p.Session = ses
		turn, same := w.prompt(p)
		if same != run {
			t.Fatal("another process")
		}
		run.result()
		w.ended(ses, turn.Turn.ID)
	}
	var story []string
	for i := 3; i < 8; i++ {
		in := run.input(t, i)
		if in["type"] == "user" {
			story = append(story, fmt.Sprint(typed(in)))
		} else {
			story = append(story, fmt.Sprint(field(in, "request", "mode"), field(in, "request", "model")))
		}
	}
	if got := strings.Join(story, " "); got != "default<nil> a <nil>m-3 b c" {
		t.Errorf("the input is %s", got)
	}
	run.mustBeAll(t, 8)

	// What the CLI changes by itself is known too.
	run.stdout(`{"type":"system","subtype":"status","permissionMode":"acceptEdits"}`, `{"type":"system","subtype":"init","session_id":"8376a34f-3fc4-4557-8346-d2fca6da814c"}`)
	run.exit(0)
	w.until(ses, 0, func(e sandbox.SessionEvent) bool { return strings.Contains(string(e.Data), "process_ended") })
	if st := w.state(ses); st.PermissionMode != "acceptEdits" || st.UUID != "8376a34f-3fc4-4557-8346-d2fca6da814c" || st.Process != nil {
		t.Errorf("state %+v", st)
	}
	for _, bad := range []claude.Change{{Title: ptr(" ")}, {Model: ptr("a b")}, {PermissionMode: ptr("")}, {PermissionMode: ptr("x")}} {
		if _, err := w.Update(ctx, w.account, ses, bad); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	// Without a process it is noted, and the next one begins with it.
	if _, err := w.Update(ctx, w.account, ses, claude.Change{Model: ptr("")}); err != nil {
		t.Error(err)
	}
	_, run = w.prompt(claude.Prompt{Session: ses, Text: "d"})
	if !slices.Contains(run.cmd.Argv, "--permission-mode=acceptEdits") || slices.ContainsFunc(run.cmd.Argv, func(s string) bool { return strings.HasPrefix(s, "--model") }) {
		t.Errorf("argv %q", run.cmd.Argv)
	}
}

// transcript has the CLI's file of a session be there.
func (w *world) transcript(ses sandbox.Session) {
	w.files.mu.Lock()
	defer w.files.mu.Unlock()
	w.files.files[path.Join("/workspace/.sandlot/home/.claude/projects/-workspace", ses.UUID+".jsonl")] = `{"type":"user","message":{}}` + "\n"
}

func TestIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		turn, run := w.prompt(claude.Prompt{Text: "go"})
		ses := turn.Session.ID
		w.transcript(turn.Session)
		run.onClose = func() { go run.exit(1) }
		run.stdout(line(1))
		time.Sleep(time.Hour) // a turn that runs keeps it
		run.result()
		w.ended(ses, turn.Turn.ID)
		begin := time.Now()
		w.until(ses, 0, func(e sandbox.SessionEvent) bool { return strings.Contains(string(e.Data), "process_ended") })
		if took := time.Since(begin); took != 10*time.Minute {
			t.Errorf("it was kept for %v", took)
		}
		again, next := w.prompt(claude.Prompt{Text: "on", Session: ses})
		if next == run || !slices.Contains(next.cmd.Argv, "--resume="+turn.Session.UUID) {
			t.Errorf("argv %q", next.cmd.Argv)
		}
		w.until(ses, again.After, func(e sandbox.SessionEvent) bool {
			return e.Kind == sandbox.SessionNotice && e.Turn == again.Turn.ID && strings.Contains(string(e.Data), `"restored":{"conversation":true,"background_processes":false`)
		})
		next.result()
		w.ended(ses, again.Turn.ID)

		// One that doesn't end when its input does is made to.
		var signals []string
		next.onSignal = func(name string) error {
			if signals = append(signals, name); name == "SIGKILL" {
				go next.finish(func(r *sandbox.Run) { r.State, r.Signal = sandbox.RunSignaled, name })
			}
			return nil
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if !slices.Equal(signals, []string{"SIGTERM", "SIGKILL"}) || w.state(ses).Process != nil {
			t.Errorf("signals %v", signals)
		}
	})
}

// TestAnotherSandbox goes on with a session in another sandbox on its volume: the process in the first one ends before.
func TestAnotherSandbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.sandbox("work", "/workspace")
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	ses := turn.Session.ID
	w.transcript(turn.Session)
	run.onClose = func() { go run.exit(0) }
	queued := must[claude.Turn](t)(w.Prompt(t.Context(), w.account, claude.Prompt{Sandbox: other.ID, Session: ses, Text: "there"}))
	if !queued.Queued {
		t.Errorf("turn %+v", queued)
	}
	run.stdout(line(1))
	run.result()
	e := w.until(ses, 0, func(e sandbox.SessionEvent) bool { return strings.Contains(string(e.Data), `"restored"`) })
	if !strings.Contains(string(e.Data), fmt.Sprintf(`"sandbox":%q,"previous_sandbox":%q`, other.ID, w.sb.ID)) || e.Turn != queued.Turn.ID {
		t.Errorf("notice %s", e.Data)
	}
	next := w.runner.get(e.Run)
	next.stdout(line(2))
	next.result()
	if end := w.ended(ses, queued.Turn.ID); end.Outcome != "done" {
		t.Errorf("end %+v", end)
	}
	if st := w.state(ses); st.Sandbox != other.ID || st.Process.Sandbox != other.ID {
		t.Errorf("state %+v", st)
	}
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		turn, run := w.prompt(claude.Prompt{Text: "go"})
		begin := time.Now()
		w.runner.use = 500 * time.Millisecond
		var told []string
		for e, err := range w.Events(t.Context(), w.account, turn.Session.ID, 0, true) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind != sandbox.SessionNotice {
				continue
			}
			var n struct {
				Subtype, Process string
				Seconds          int
			}
			if err := json.Unmarshal(e.Data, &n); err != nil {
				t.Fatal(err)
			}
			told = append(told, fmt.Sprint(n.Subtype, n.Seconds, n.Process, int(time.Since(begin).Seconds())))
			switch w.runner.use = 0; len(told) {
			case 2:
				run.stdout(line(1))
			case 3:
				run.result()
			}
			if len(told) == 3 {
				break
			}
		}
		if got := strings.Join(told, " "); got != "quiet61busy61 quiet122idle122 quiet61idle183" {
			t.Errorf("told %s", got)
		}
		w.ended(turn.Session.ID, turn.Turn.ID)
		for _, e := range w.stored(turn.Session.ID) {
			if e.Kind == sandbox.SessionNotice {
				t.Errorf("it is kept: %s", e.Data)
			}
		}
	})
}

// TestResultOfAnother: the CLI may do something by itself before it takes a prompt up, say because a background task has ended.
func TestResultOfAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	ses := turn.Session.ID
	run.input(t, 0)
	const result = `{"type":"result","subtype":"success","num_turns":1,"result":"%s"}`
	run.stdout(fmt.Sprintf(result, "another"), fmt.Sprintf(`{"type":"user","message":{},"uuid":%q,"isReplay":true}`, turn.Turn.UUID),
		line(1), fmt.Sprintf(result, "ours"))
	w.ended(ses, turn.Turn.ID)
	var lines []string
	for _, e := range w.stored(ses) {
		lines = append(lines, string(e.Data))
	}
	if len(lines) != 5 || !strings.Contains(lines[1], "another") || !strings.Contains(lines[3], "ours") {
		t.Errorf("the log is\n%s", strings.Join(lines, "\n"))
	}
	run.stdout(fmt.Sprintf(result, "nobody's"))
	again, _ := w.prompt(claude.Prompt{Session: ses, Text: "on"})
	run.stdout(`{"type":"result","subtype":"success","num_turns":0}`) // as of a command of its own
	w.ended(ses, again.Turn.ID)
}

// TestSandboxIsTerminated: a prompt that waits when its sandbox ends fails with the reason, and the session stays usable.
func TestSandboxIsTerminated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	ses := turn.Session.ID
	run.stdout(line(1))
	queued := w.queue(ses, "more")
	w.transcript(turn.Session)
	w.runner.setEnded(&sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_not_running", Detail: "The sandbox has ended."})
	run.lose("The sandbox has ended.")
	if e := w.ended(ses, turn.Turn.ID); e.Outcome != "lost" || e.State != "lost" {
		t.Errorf("end %+v", e)
	}
	if e := w.ended(ses, queued.Turn.ID); e.Outcome != "failed" || e.Reason != "The sandbox has ended." {
		t.Errorf("end %+v", e)
	}
	_, err := w.Prompt(t.Context(), w.account, claude.Prompt{Session: ses, Text: "again"})
	wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
	w.runner.setEnded(nil)
	again, run := w.prompt(claude.Prompt{Session: ses, Text: "again"})
	run.result()
	w.ended(ses, again.Turn.ID)
}

// TestInputThatIsNotTaken: the write is repeated until it is, and comes once.
func TestInputThatIsNotTaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.runner.setMute(true)
		turn, run := w.prompt(claude.Prompt{Text: "go"})
		time.Sleep(5 * time.Second)
		w.runner.setMute(false)
		if typed(run.input(t, 0)) != "go" {
			t.Error("another prompt")
		}
		run.result()
		w.ended(turn.Session.ID, turn.Turn.ID)
		run.mustBeAll(t, 1)
	})
}

// TestSuspended: a process whose sandbox is suspended is neither ended nor talked about, and the session can't go on elsewhere meanwhile.
func TestSuspended(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		ctx := t.Context()
		other := w.sandbox("work", "/workspace")
		turn, run := w.prompt(claude.Prompt{Text: "go"})
		ses := turn.Session.ID
		run.input(t, 0)
		for _, state := range []sandbox.State{sandbox.Suspending, sandbox.Suspended} {
			must[sandbox.Sandbox](t)(w.store.Transition(ctx, w.sb.ID, "1", state, nil))
		}
		time.Sleep(time.Hour)
		run.result()
		w.ended(ses, turn.Turn.ID)
		time.Sleep(time.Hour)
		for _, e := range w.stored(ses) {
			if e.Seq > 3 {
				t.Errorf("it is told %s", e.Data)
			}
		}
		if st := w.state(ses); st.Process == nil || st.Process.Closed || st.LastSeq != 3 {
			t.Errorf("state %+v", st)
		}
		_, err := w.Prompt(ctx, w.account, claude.Prompt{Sandbox: other.ID, Session: ses, Text: "there"})
		wantProblem(t, err, sandbox.ErrState, "session_suspended", "session")
	})
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
