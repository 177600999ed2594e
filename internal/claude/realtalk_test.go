package claude_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// asks begins a turn that will ask something, and returns that.
func (w *world) asks(session, text, mode string) (claude.Turn, sandbox.Ask) {
	w.t.Helper()
	turn := must[claude.Turn](w.t)(w.Prompt(w.t.Context(), w.account, claude.Prompt{Sandbox: w.sb.ID, Session: session, Text: text, PermissionMode: mode}))
	return turn, w.nextAsk(turn.Session.ID, turn.After)
}

func (w *world) nextAsk(session string, after int64) sandbox.Ask {
	w.t.Helper()
	return w.askOf(w.until(session, after, kind(sandbox.SessionAsk)))
}

// told reports whether a notice has text in it.
func told(evs []sandbox.SessionEvent, text string) bool {
	return slices.ContainsFunc(evs, func(e sandbox.SessionEvent) bool {
		return e.Kind == sandbox.SessionNotice && strings.Contains(string(e.Data), text)
	})
}

func (w *world) decide(a sandbox.Ask, d claude.Decision) {
	w.t.Helper()
	d.By = "key_1"
	if _, err := w.Answer(w.t.Context(), w.account, a.Session, a.ID, d); err != nil {
		w.t.Fatalf("decide %s: %v", a.Tool, err)
	}
}

// TestRealPermission lets the real CLI use a tool, denies it, leaves it open, and stops with it.
func TestRealPermission(t *testing.T) {
	t.Parallel()
	w, _ := newHost(t, func(c *claude.Config) { c.PromptTimeout = 3 * time.Second })
	file := filepath.Join(w.sb.Spec.Workdir, "permission.txt")

	turn, a := w.asks("", "ask permission", "default")
	ses := turn.Session.ID
	if a.Kind != sandbox.AskTool || a.Tool != "Bash" || !strings.Contains(string(a.Input), "permission.txt") || !strings.Contains(string(a.Suggestions), "addRules") {
		t.Errorf("ask %+v", a)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("it was done unasked")
	}
	w.decide(a, claude.Decision{Allow: true})
	if got := resultOf(t, w.collect(ses, turn.After)); !strings.Contains(got, "allowed by you") {
		t.Errorf("allowed, it says %s", got)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "allowed by you\n" {
		t.Errorf("the file has %q, %v", text, err)
	}

	turn, a = w.asks(ses, "ask permission", "")
	w.decide(a, claude.Decision{Message: "Not today."})
	if got := resultOf(t, w.collect(ses, turn.After)); !strings.Contains(got, "I may not") || !strings.Contains(got, "Not today.") {
		t.Errorf("denied, it says %s", got)
	}

	turn, a = w.asks(ses, "ask permission", "")
	if got := resultOf(t, w.collect(ses, turn.After)); !strings.Contains(got, "Nobody decided this within 3s") {
		t.Errorf("left alone, it says %s", got)
	}
	if a = must[sandbox.Ask](t)(w.Ask(t.Context(), w.account, ses, a.ID)); a.State != sandbox.AskExpired {
		t.Errorf("ask %+v", a)
	}

	turn, a = w.asks(ses, "ask permission", "")
	w.decide(a, claude.Decision{Interrupt: true})
	if e := endOf(t, w.collect(ses, turn.After)); e.Outcome != "interrupted" {
		t.Errorf("stopped, it ended as %+v", e)
	}

	turn, a = w.asks(ses, "ask permission", "")
	if err := w.Interrupt(t.Context(), w.account, ses); err != nil {
		t.Fatal(err)
	}
	if e := endOf(t, w.collect(ses, turn.After)); e.Outcome != "interrupted" {
		t.Errorf("interrupted, it ended as %+v", e)
	}
	if a = must[sandbox.Ask](t)(w.Ask(t.Context(), w.account, ses, a.ID)); a.State != sandbox.AskWithdrawn {
		t.Errorf("ask %+v", a)
	}

	// For the session: the next time it doesn't ask.
	turn, a = w.asks(ses, "run: sh -c 'echo fine'", "")
	w.decide(a, claude.Decision{Allow: true, Session: true})
	w.collect(ses, turn.After)
	next, evs := w.turn(ses, "run: sh -c 'echo fine'")
	if got := resultOf(t, evs); !strings.Contains(got, "fine") || strings.Contains(show(evs), " ask {") {
		t.Errorf("allowed for the session, it did\n%s", show(evs))
	}
	if next.Run.ID != turn.Run.ID {
		t.Error("it was not one process")
	}
}

func TestRealQuestion(t *testing.T) {
	t.Parallel()
	w, _ := newHost(t)
	turn, a := w.asks("", "ask me a question", "") // also where no permission is asked for
	if a.Kind != sandbox.AskQuestion {
		t.Errorf("ask %+v", a)
	}
	w.decide(a, claude.Decision{Allow: true, Answers: map[string]string{"Which colour should it have?": "Green", "What should it be able to do?": "Swim, Fly"}})
	if got := resultOf(t, w.collect(turn.Session.ID, turn.After)); !strings.Contains(got, `"Which colour should it have?"="Green"`) || !strings.Contains(got, "Swim, Fly") {
		t.Errorf("it was told %s", got)
	}
}

func TestRealPlan(t *testing.T) {
	t.Parallel()
	w, _ := newHost(t)
	turn, a := w.asks("", "make a plan", "plan")
	ses := turn.Session.ID
	if a.Kind != sandbox.AskPlan || !strings.Contains(string(a.Input), "Write a script that greets") {
		t.Errorf("ask %+v", a)
	}
	w.decide(a, claude.Decision{Message: "Make it shorter."})
	if got := resultOf(t, w.collect(ses, turn.After)); !strings.Contains(got, "Make it shorter.") {
		t.Errorf("refused, it says %s", got)
	}
	turn, a = w.asks(ses, "make a plan again", "")
	w.decide(a, claude.Decision{Allow: true, Permissions: json.RawMessage(`[{"type":"setMode","mode":"bypassPermissions","destination":"session"}]`)})
	if got := resultOf(t, w.collect(ses, turn.After)); !strings.Contains(got, "5 squared is 25") {
		t.Errorf("approved, it says %s", got)
	}
	if st := w.state(ses); st.PermissionMode != "bypassPermissions" {
		t.Errorf("the mode is now %s", st.PermissionMode)
	}
}

// TestRealQueue queues prompts behind a slow turn, changes the model and mode meanwhile, and stops the slow one.
func TestRealQueue(t *testing.T) {
	t.Parallel()
	w, _ := newHost(t)
	ctx := t.Context()
	first := must[claude.Turn](t)(w.Prompt(ctx, w.account, claude.Prompt{Sandbox: w.sb.ID, Text: "slow stream", PermissionMode: "default"}))
	ses := first.Session.ID
	w.until(ses, first.After, kind(sandbox.SessionPartial))
	second := w.queue(ses, "ask permission")
	third := w.queue(ses, "remember")
	if _, err := w.Update(ctx, w.account, ses, claude.Change{Model: ptr("claude-sonnet-4-5"), PermissionMode: ptr("bypassPermissions")}); err != nil {
		t.Fatal(err)
	}
	if err := w.Interrupt(ctx, w.account, ses); err != nil {
		t.Fatal(err)
	}
	if e := w.ended(ses, first.Turn.ID); e.Outcome != "interrupted" || e.State != "exited" {
		t.Errorf("the first ended as %+v", e)
	}
	for _, turn := range []claude.Turn{second, third} { // the mode has changed, so it doesn't ask
		if e := w.ended(ses, turn.Turn.ID); e.Outcome != "done" || e.Run != first.Run.ID {
			t.Errorf("%s ended as %+v", turn.Turn.Text, e)
		}
	}
	evs := w.stored(ses)
	if got := resultOf(t, evs); !strings.Contains(got, "3 of your prompts") {
		t.Errorf("it remembers %s", got)
	}
	models := map[string]bool{}
	for _, e := range evs {
		var l struct{ Type, Subtype, Model string }
		if json.Unmarshal(e.Data, &l) == nil && l.Type == "system" && l.Subtype == "init" {
			models[l.Model] = true
		}
	}
	if !models["claude-sonnet-4-5"] || len(models) != 2 {
		t.Errorf("models %v", models)
	}
}

// TestRealIdle: a process that has nothing to do ends, and the next goes on with the conversation, also after /clear.
func TestRealIdle(t *testing.T) {
	t.Parallel()
	w, _ := newHost(t, func(c *claude.Config) { c.Idle = 200 * time.Millisecond })
	ended := func(session string, after int64) {
		t.Helper()
		w.until(session, after, func(e sandbox.SessionEvent) bool { return strings.Contains(string(e.Data), `"process_ended"`) })
	}
	turn, _ := w.turn("", "one")
	ses := turn.Session.ID
	ended(ses, turn.After)
	again, evs := w.turn(ses, "remember")
	if got := resultOf(t, evs); !strings.Contains(got, "2 of your prompts") || again.Run.ID == turn.Run.ID {
		t.Errorf("it remembers %s", got)
	}
	if !told(evs, `"restored":{"conversation":true,"background_processes":false`) {
		t.Errorf("it doesn't say that it was restored:\n%s", show(evs))
	}
	ended(ses, again.After)
	cleared, _ := w.turn(ses, "/clear")
	if st := w.state(ses); st.UUID == turn.Session.UUID {
		t.Error("the CLI's name for the conversation is the same after /clear")
	}
	ended(ses, cleared.After)
	_, evs = w.turn(ses, "remember")
	if got := resultOf(t, evs); !strings.Contains(got, "1 of your prompts") {
		t.Errorf("after /clear it remembers %s", got)
	}
}

// TestRealRepair kills the CLI in the middle of a tool. The next process knows what was cut off, and the model gets a conversation in
// which each use of a tool has its result.
func TestRealRepair(t *testing.T) {
	t.Parallel()
	w, h := newHost(t)
	turn := must[claude.Turn](t)(w.Prompt(t.Context(), w.account, claude.Prompt{Sandbox: w.sb.ID, Text: "long command 100"}))
	ses := turn.Session.ID
	w.until(ses, turn.After, func(e sandbox.SessionEvent) bool {
		return e.Kind == sandbox.SessionLine && strings.Contains(string(e.Data), `"tool_use"`)
	})
	waitFor(t, filepath.Join(w.sb.Spec.Workdir, "long.txt")) // the tool runs
	if err := h.Signal(t.Context(), "", turn.Run.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if e := w.ended(ses, turn.Turn.ID); e.Outcome != "failed" || e.State != "signaled" {
		t.Errorf("end %+v", e)
	}
	_, evs := w.turn(ses, "remember")
	if got := resultOf(t, evs); !strings.Contains(got, "2 of your prompts") {
		t.Errorf("it remembers %s", got)
	}
	if !told(evs, `"subtype":"repaired"`) {
		t.Errorf("it doesn't say that it was repaired:\n%s", show(evs))
	}
	all := h.conversations(t)
	wantResults(t, all[len(all)-1], 1, "The process ended before this finished")
	// And it stays so.
	_, evs = w.turn(ses, "run: echo fine")
	if got := resultOf(t, evs); !strings.Contains(got, "fine") {
		t.Errorf("then it says %s", got)
	}
	all = h.conversations(t)
	wantResults(t, all[len(all)-1], 2, "The process ended before this finished")
}

// waitFor waits for a file that another process makes.
func waitFor(t *testing.T, name string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(name); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s was not made", name)
		}
	}
}

// wantResults checks that a conversation has so many uses of tools, each with its result right behind it, and one that says text.
func wantResults(t *testing.T, messages []modelMessage, uses int, text string) {
	t.Helper()
	open := map[string]bool{}
	said := false
	for _, m := range messages {
		if m.Role == "assistant" && len(open) > 0 {
			t.Errorf("before their results Claude goes on: %v", open)
		}
		for _, b := range m.blocks() {
			switch b.Type {
			case "tool_use":
				open[b.ID] = true
				uses--
			case "tool_result":
				if !open[b.ToolUse] {
					t.Errorf("a result of nothing: %+v", b)
				}
				delete(open, b.ToolUse)
				said = said || b.IsError && strings.Contains(fmt.Sprint(b.Content), text)
			}
		}
	}
	if uses != 0 || len(open) > 0 || !said {
		t.Errorf("%d uses too few, without a result: %v, said %v", uses, open, said)
	}
}
