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
		run.whenClosed(func() { go run.exit(1) })
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
		next.hear(func(name string) error {
			if signals = append(signals, name); name == "SIGKILL" {
				go next.finish(func(r *sandbox.Run) { r.State, r.Signal = sandbox.RunSignaled, name })
			}
			return nil
		})
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
	run.whenClosed(func() { go run.exit(0) })
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
		w.runner.setUse(500 * time.Millisecond)
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
			w.runner.setUse(0)
			switch len(told) {
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
