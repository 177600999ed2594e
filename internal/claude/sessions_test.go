package claude_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func partial(n int) string {
	return fmt.Sprintf(`{"type":"stream_event","event":{"type":"content_block_delta","n":%d}}`, n)
}

func line(n int) string {
	return fmt.Sprintf(`{"type":"assistant","message":{"n":%d}}`, n)
}

func TestTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "  Write a test\nand run it\n", Model: "claude-x[1m]", Author: "key_1"})

	uuid := turn.Session.UUID
	want := []string{claude.Program, "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose", "--include-partial-messages",
		"--replay-user-messages", "--permission-prompt-tool", "stdio", "--allow-dangerously-skip-permissions", "--session-id=" + uuid, "--permission-mode=bypassPermissions", "--model=claude-x[1m]"}
	if !slices.Equal(run.cmd.Argv, want) || !slices.Equal(turn.Run.Argv, want) {
		t.Errorf("argv %q", run.cmd.Argv)
	}
	if run.cmd.Stdio != guest.StdioPTYStdout || run.cmd.User != guest.UserAgent || run.cmd.Dir != "/workspace" || !run.cmd.Open || len(run.cmd.Stdin) != 0 || run.cmd.Env["CLAUDE_CONFIG_DIR"] != "/workspace/.sandlot/home/.claude" {
		t.Errorf("command %+v", run.cmd)
	}
	in := run.input(t, 0)
	content, _ := field(in, "message", "content").([]any)
	if in["type"] != "user" || in["session_id"] != uuid || field(in, "message", "role") != "user" || len(content) != 1 ||
		field(content[0], "text") != "  Write a test\nand run it\n" || in["uuid"] != turn.Turn.UUID {
		t.Errorf("input %v", in)
	}
	ses := turn.Session
	if ses.Title != "Write a test" || ses.Turns != 1 || ses.Volume != w.sb.Spec.Volume.ID || len(uuid) != 36 || uuid[14] != '4' || turn.After != 0 {
		t.Errorf("turn %+v", turn)
	}
	if !w.busy(ses.ID) {
		t.Error("it isn't busy")
	}
	run.stdout(`{"type":"system","subtype":"init"}`, "", partial(1), line(1)+"\r", "not JSON")
	run.write(guest.Stderr, "a warning\n")
	run.write(guest.Stdout, `{"type":"res`)
	run.write(guest.Stdout, `ult"}`) // the end of the last line is missing
	run.exit(0)

	all := w.collect(ses.ID, 0)
	var got []string
	last := int64(0)
	for _, e := range all {
		got = append(got, string(e.Kind))
		if last++; last == 3 && e.Kind != sandbox.SessionPartial {
			last++ // who comes late gets no partial
		}
		if e.Seq != last || e.Run != run.run.ID || e.At.IsZero() {
			t.Errorf("event %+v", e)
		}
	}
	if s := strings.Join(got, " "); s != "prompt line partial line line line end" && s != "prompt line line line line end" {
		t.Errorf("kinds %s", s)
	}
	stored := w.stored(ses.ID)
	wantData := []string{fmt.Sprintf(`{"type":"prompt","text":"  Write a test\nand run it\n","run":%q,"turn":%q,"author":"key_1","model":"claude-x[1m]","permission_mode":"bypassPermissions"}`,
		run.run.ID, turn.Turn.ID),
		`{"type":"system","subtype":"init"}`, line(1), "not JSON", `{"type":"result"}`,
		fmt.Sprintf(`{"type":"end","turn":%q,"outcome":"done","run":%q,"state":"exited","exit_code":null}`, turn.Turn.ID, run.run.ID)}
	if len(stored) < len(wantData) {
		t.Fatalf("stored\n%s", show(stored))
	}
	for i, e := range stored[:len(wantData)] { // after that it may be said that the process has ended
		if string(e.Data) != wantData[i] {
			t.Errorf("event %d is %s, want %s", i, e.Data, wantData[i])
		}
	}
	if stored[2].Seq != 4 {
		t.Errorf("a partial takes no number:\n%s", show(stored))
	}
	list := must[[]claude.State](t)(w.Sessions.Sessions(t.Context(), w.account))
	if len(list) != 1 || list[0].ID != ses.ID {
		t.Errorf("list %+v", list)
	}
}

func TestPromptIsChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.sandbox("other", "/workspace")
	turn, run := w.prompt(claude.Prompt{Text: "first"})
	for _, tt := range []struct {
		name        string
		p           claude.Prompt
		class       error
		code, field string
	}{
		{"empty", claude.Prompt{Sandbox: w.sb.ID}, sandbox.ErrInvalid, "invalid_request", "prompt"},
		{"blank", claude.Prompt{Sandbox: w.sb.ID, Text: " \n\t"}, sandbox.ErrInvalid, "invalid_request", "prompt"},
		{"huge", claude.Prompt{Sandbox: w.sb.ID, Text: strings.Repeat("x", 10<<20+1)}, sandbox.ErrInvalid, "invalid_request", "prompt"},
		{"model", claude.Prompt{Sandbox: w.sb.ID, Text: "x", Model: "a b"}, sandbox.ErrInvalid, "invalid_request", "model"},
		{"flag as model", claude.Prompt{Sandbox: w.sb.ID, Text: "x", Model: "-x"}, sandbox.ErrInvalid, "invalid_request", "model"},
		{"mode", claude.Prompt{Sandbox: w.sb.ID, Text: "x", PermissionMode: "--yolo"}, sandbox.ErrInvalid, "invalid_request", "permission_mode"},
		{"odd session", claude.Prompt{Sandbox: w.sb.ID, Text: "x", Session: "../x"}, sandbox.ErrNotFound, "session_not_found", "session"},
		{"no such session", claude.Prompt{Sandbox: w.sb.ID, Text: "x", Session: sandbox.NewID("ses_")}, sandbox.ErrNotFound, "session_not_found", ""},
		{"no such sandbox", claude.Prompt{Sandbox: "sbx_x", Text: "x"}, sandbox.ErrNotFound, "sandbox_not_found", ""},
		{"another volume", claude.Prompt{Sandbox: other.ID, Text: "x", Session: turn.Session.ID}, sandbox.ErrConflict, "session_elsewhere", "session"},
	} {
		_, err := w.Prompt(t.Context(), w.account, tt.p)
		t.Run(tt.name, func(t *testing.T) { wantProblem(t, err, tt.class, tt.code, tt.field) })
	}
	if _, err := w.Prompt(t.Context(), "another account", claude.Prompt{Sandbox: w.sb.ID, Text: "x"}); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("another account: %v", err)
	}
	for _, err := range w.Events(t.Context(), "another account", turn.Session.ID, 0, true) {
		if !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("another account's events: %v", err)
		}
	}
	run.exit(0)
	w.collect(turn.Session.ID, 0)
	if n := len(w.stored(turn.Session.ID)); n != 2 {
		t.Errorf("%d events after refusals", n)
	}
}

func TestTitles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for prompt, want := range map[string]string{
		strings.Repeat("ü", 100): strings.Repeat("ü", 79) + "…",
		"\n\n a\tb \nc":          "a b",
	} {
		turn, run := w.prompt(claude.Prompt{Text: prompt})
		if turn.Session.Title != want {
			t.Errorf("title %q, want %q", turn.Session.Title, want)
		}
		run.exit(0)
	}
}

// TestNextTurn shows what the second turn of a session asks the CLI for, by what the first left on the volume.
func TestNextTurn(t *testing.T) {
	t.Parallel()
	const head = "/workspace/.sandlot/home/.claude/projects/"
	user := `{"type":"queue-operation"}` + "\n" + `{"parentUuid":null,"type":"user","message":{}}` + "\n"
	for _, tt := range []struct {
		name     string
		answered bool   // the first turn had an answer
		file     string // what the transcript is called; UUID stands for the session's
		content  string
		want     string // the flag of the second turn
		code     string // or the problem
	}{
		{"as it should be", true, head + "-workspace/UUID.jsonl", user, "--resume=", ""},
		{"a long first line", true, head + "-workspace/UUID.jsonl", `{"a":"` + strings.Repeat("x", 9000) + "\"}\n" + user, "--resume=", ""},
		{"nothing was ever written", false, "", "", "--session-id=", ""},
		{"other sessions only", false, head + "-workspace/other.jsonl", user, "--session-id=", ""},
		{"a file beside the directories", false, head + "note.txt", "x", "--session-id=", ""},
		{"broken off early", false, head + "-workspace/UUID.jsonl", `{"type":"queue-operation"}` + "\n", "--session-id=", ""},
		{"transcript lost", true, "", "", "", "transcript_missing"},
		{"other workdir", true, head + "-elsewhere/UUID.jsonl", user, "", "session_elsewhere"},
		{"other workdir, but empty", false, head + "-elsewhere/UUID.jsonl", "", "--session-id=", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			turn, run := w.prompt(claude.Prompt{Text: "one"})
			run.stdout(`{"type":"system","subtype":"init"}`)
			if tt.answered {
				run.stdout(line(1))
			}
			run.exit(0)
			first := w.collect(turn.Session.ID, 0)
			file := strings.Replace(tt.file, "UUID", turn.Session.UUID, 1)
			if file != "" {
				w.files.files[file] = tt.content
			}
			if tt.code != "" {
				_, err := w.Prompt(t.Context(), w.account, claude.Prompt{Sandbox: w.sb.ID, Session: turn.Session.ID, Text: "two"})
				wantProblem(t, err, sandbox.ErrConflict, tt.code, "session")
				if w.busy(turn.Session.ID) {
					t.Error("it stays busy")
				}
				return
			}
			again, run := w.prompt(claude.Prompt{Text: "two", Session: turn.Session.ID})
			if !slices.Contains(run.cmd.Argv, tt.want+turn.Session.UUID) {
				t.Errorf("argv %q", run.cmd.Argv)
			}
			if again.After != first[len(first)-1].Seq || again.Session.Turns != 2 || again.Session.Title != "one" {
				t.Errorf("turn %+v", again)
			}
			if _, there := w.files.files[file]; there != (tt.file != "" && tt.name != "broken off early") {
				t.Errorf("%s there: %v", file, there)
			}
			run.exit(0)
			if evs := w.collect(turn.Session.ID, again.After); evs[0].Kind != sandbox.SessionPrompt || len(evs) != 3 ||
				!strings.Contains(string(evs[1].Data), fmt.Sprintf(`"restored":{"conversation":%v,`, tt.want == "--resume=")) {
				t.Errorf("second turn\n%s", show(evs))
			}
		})
	}
	t.Run("no guest", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		turn, run := w.prompt(claude.Prompt{Text: "one"})
		run.exit(0)
		w.collect(turn.Session.ID, 0)
		w.files.err = &sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_not_running", Detail: "It isn't running."}
		_, err := w.Prompt(t.Context(), w.account, claude.Prompt{Sandbox: w.sb.ID, Session: turn.Session.ID, Text: "two"})
		wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
	})
}

// TestPartialsAreSeenLive reads along while the process writes.
func TestPartialsAreSeenLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n := 0
	var kinds []string
	for e, err := range w.Events(ctx, w.account, turn.Session.ID, turn.After, true) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, string(e.Kind))
		if e.Seq != int64(len(kinds)) {
			t.Fatalf("number %d at place %d", e.Seq, len(kinds))
		}
		// What was written is there before the next thing is written.
		switch n++; {
		case n == 7:
			run.exit(0)
		case n%3 == 0:
			run.stdout(line(n))
		default:
			run.stdout(partial(n))
		}
		if e.Kind == sandbox.SessionEnd {
			break
		}
	}
	if got := strings.Join(kinds, " "); got != "prompt partial partial line partial partial line end" {
		t.Errorf("kinds %s", got)
	}
	if got := len(w.stored(turn.Session.ID)); got != 4 {
		t.Errorf("%d events are stored", got)
	}
}

// TestRestartNumbersAlike breaks a turn off at many places and compares what is stored with an unbroken one.
func TestRestartNumbersAlike(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	var output strings.Builder
	for i := range 60 {
		if i%3 == 2 {
			output.WriteString(line(i) + "\n")
		} else {
			output.WriteString(partial(i) + "\n")
		}
	}
	var chunks []string
	for s := output.String(); s != ""; {
		n := min(len(s), 1+rnd.IntN(300))
		chunks, s = append(chunks, s[:n]), s[n:]
	}
	play := func(broken bool) string {
		w := newWorld(t)
		turn, run := w.prompt(claude.Prompt{Text: "go"})
		for i, c := range chunks {
			run.write(guest.Stdout, c)
			if i%4 == 0 {
				run.write(guest.Stderr, "noise between\n")
			}
			if broken && i%5 == 0 {
				w.restart()
			}
		}
		if broken {
			w.stop()
			run.exit(0) // ends while nobody is there
			w.serve()
		} else {
			run.exit(0)
		}
		w.collect(turn.Session.ID, 0)
		return strings.NewReplacer(run.run.ID, "RUN", turn.Turn.ID, "TURN").Replace(show(w.stored(turn.Session.ID)))
	}
	want, got := play(false), play(true)
	if got != want {
		t.Errorf("broken\n%s\n\nunbroken\n%s", got, want)
	}
	if !strings.Contains(want, "\n62 end {") {
		t.Error(want)
	}
}

func TestReadersAgree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	results := make([][]sandbox.SessionEvent, 8)
	var readers sync.WaitGroup
	for i := range results {
		readers.Go(func() { results[i] = w.collect(turn.Session.ID, 0) })
	}
	for i := range 3000 {
		if i%10 == 0 {
			run.stdout(line(i))
		} else {
			run.stdout(partial(i))
		}
	}
	run.exit(0)
	readers.Wait()
	stored := w.stored(turn.Session.ID)
	if len(stored) != 302 {
		t.Fatalf("%d events stored", len(stored))
	}
	for i, evs := range results {
		var lasting []sandbox.SessionEvent
		var last int64
		for _, e := range evs {
			if e.Seq <= last {
				t.Fatalf("reader %d got %d after %d", i, e.Seq, last)
			}
			if last = e.Seq; e.Kind != sandbox.SessionPartial {
				lasting = append(lasting, e)
			}
		}
		if show(lasting) != show(stored) {
			t.Errorf("reader %d got %d lasting events", i, len(lasting))
		}
	}
}

// TestSlowReader takes its first event, and the next when the ring has long moved on.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	turn, run := w.prompt(claude.Prompt{Text: "go"})
	first := true
	partials := 0
	for e, err := range w.Events(t.Context(), w.account, turn.Session.ID, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if first {
			first = false
			long := strings.Repeat("x", 2000)
			for i := range 6000 {
				run.stdout(fmt.Sprintf(`{"type":"stream_event","x":%q,"n":%d}`, long, i))
			}
			run.exit(0)
			w.collect(turn.Session.ID, 6001)
		}
		if e.Kind == sandbox.SessionPartial {
			partials++
		}
		if e.Kind == sandbox.SessionEnd {
			if e.Seq != 6002 {
				t.Errorf("the end has number %d", e.Seq)
			}
			break
		}
	}
	if partials == 0 || partials > 4096 || partials*2000 > 4<<20 {
		t.Errorf("%d partials of 6000 were kept", partials)
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	t.Run("it obeys", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		turn, run := w.prompt(claude.Prompt{Text: "go"})
		run.input(t, 0)
		if err := w.Interrupt(t.Context(), w.account, turn.Session.ID); err != nil {
			t.Fatal(err)
		}
		if in := run.input(t, 1); in["type"] != "control_request" || field(in, "request", "subtype") != "interrupt" {
			t.Errorf("input %v", in)
		}
		run.stdout(`{"type":"result","subtype":"error_during_execution","is_error":true,"num_turns":2}`)
		if e := endOf(t, w.collect(turn.Session.ID, 0)); e.State != "exited" || e.Outcome != "interrupted" || !strings.Contains(e.Reason, "interrupted") {
			t.Errorf("end %+v", e)
		}
		wantProblem(t, w.Interrupt(t.Context(), w.account, turn.Session.ID), sandbox.ErrState, "session_idle", "")
		if err := w.Interrupt(t.Context(), w.account, "ses_x"); !errors.Is(err, sandbox.ErrNotFound) {
			t.Error(err)
		}
		again, same := w.prompt(claude.Prompt{Text: "on", Session: turn.Session.ID})
		if same != run || again.Run.ID != turn.Run.ID {
			t.Error("the process did not live on")
		}
	})
	t.Run("it must be made to", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer w.stop()
			turn, run := w.prompt(claude.Prompt{Text: "go"})
			begin := time.Now()
			run.hear(func(signal string) error {
				if signal == "SIGKILL" {
					go run.finish(func(r *sandbox.Run) { r.State, r.Signal = sandbox.RunSignaled, signal })
				}
				if signal == "SIGTERM" {
					return errors.New("it can't be told")
				}
				return nil
			})
			for range 2 { // the second starts no second escalation
				if err := w.Interrupt(t.Context(), w.account, turn.Session.ID); err != nil {
					t.Fatal(err)
				}
			}
			e := endOf(t, w.collect(turn.Session.ID, 0))
			if e.State != "signaled" || e.Signal != "SIGKILL" || e.ExitCode != nil || e.Outcome != "interrupted" || time.Since(begin) != 10*time.Second {
				t.Errorf("end %+v after %v", e, time.Since(begin))
			}
			if got := w.runner.signalled(); !slices.Equal(got, []string{"SIGTERM", "SIGKILL"}) {
				t.Errorf("signals %v", got)
			}
		})
	})
	t.Run("over a restart", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer func() { w.stop() }()
			turn, run := w.prompt(claude.Prompt{Text: "go"})
			run.input(t, 0)
			w.runner.setMute(true)
			if err := w.Interrupt(t.Context(), w.account, turn.Session.ID); err != nil {
				t.Fatal(err)
			}
			w.stop()
			w.runner.setMute(false)
			run.hear(func(signal string) error {
				go run.finish(func(r *sandbox.Run) { r.State, r.Signal = sandbox.RunSignaled, signal })
				return nil
			})
			w.serve()
			if in := run.input(t, 1); field(in, "request", "subtype") != "interrupt" {
				t.Errorf("input %v", in)
			}
			if e := endOf(t, w.collect(turn.Session.ID, 0)); e.Signal != "SIGTERM" || e.Outcome != "interrupted" {
				t.Errorf("end %+v", e)
			}
		})
	})
}
