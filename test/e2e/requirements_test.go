package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// TestRequirements has a test for each line of what was asked of runs, by its number, on the real binary with the real CLI.
func TestRequirements(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{Volume: "requirements"})
	for _, r := range []struct {
		name string
		test func(*testing.T, *server, api.Sandbox)
	}{
		{"4.1 output as server-sent events", wantEvents},
		{"4.2 in real time", wantRealTime},
		{"4.3 each line flushed", wantFlushed},
		{"4.4 completion event", wantDone},
		{"4.5 errors are streamed", wantErrorsStreamed},
		{"4.6 cleaned up on interruption", wantCleanUp},
		{"4.8 ANTHROPIC_API_KEY is passed", wantKey},
		{"4.9 the working directory is the volume", wantVolume},
		{"4.10 stream-json output", wantStreamJSON},
		{"6.6 POST claude answers with a stream", wantClaude},
		{"6.7 the prompt is in the body", wantPrompt},
	} {
		t.Run(r.name, func(t *testing.T) { r.test(t, s, sb) })
	}
	t.Run("5.1 terminate", func(t *testing.T) { wantTerminated(t, s) })
	t.Run("5.2 processes are stopped gracefully", func(t *testing.T) { wantGrace(t, s) })
	t.Run("5.3 resources are released", func(t *testing.T) { wantReleased(t, s) })
}

// raw returns the whole body of a streamed answer.
func raw(t *testing.T, s *server, method, path string, in any) string {
	t.Helper()
	res, err := s.send(t, method, path, api.ContentTypeEvents, in)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("the content type is %q", ct)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantClaude(t *testing.T, s *server, sb api.Sandbox) {
	res, err := s.send(t, "POST", "/sandbox/"+sb.ID+"/claude", api.ContentTypeEvents, api.Prompt{Prompt: "run: echo streamed-$((6*6))"})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	session := res.Header.Get(api.HeaderSession)
	if res.StatusCode != 200 || session == "" {
		t.Fatalf("%s, session %q", res.Status, session)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"event: session\n", session, `"type":"assistant"`, "streamed-36", `"type":"result"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("there is no %q in\n%s", want, b)
		}
	}
}

func wantPrompt(t *testing.T, s *server, sb api.Sandbox) {
	if body := raw(t, s, "POST", "/sandbox/"+sb.ID+"/claude", map[string]any{"prompt": "run: printf '%s' über | wc -c; echo über"}); !strings.Contains(body, `5\nüber`) {
		t.Errorf("the prompt did not arrive:\n%s", body)
	}
	for name, in := range map[string]any{"none": map[string]any{}, "empty": api.Prompt{}, "not text": map[string]any{"prompt": 7}, "a typo": map[string]any{"promt": "x"}} {
		res, err := s.send(t, "POST", "/sandbox/"+sb.ID+"/claude", api.ContentTypeEvents, in)
		if err == nil {
			res.Body.Close()
			t.Errorf("%s: %s", name, res.Status)
		} else if p := (*api.Problem)(nil); !errors.As(err, &p) || p.Status != 400 || !strings.Contains(fmt.Sprint(p.Detail, p.Errors), "prom") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func wantEvents(t *testing.T, s *server, sb api.Sandbox) {
	body := raw(t, s, "POST", "/sandbox/"+sb.ID+"/exec", api.Exec{Argv: []string{"sh", "-c", "echo out; sleep 0.2; echo err >&2"}})
	for _, want := range []string{"event: start\n", "id: 4\nevent: output\ndata: {\"stream\":\"stdout\",\"data\":\"out\\n\"}\n\n",
		"id: 8\nevent: output\ndata: {\"stream\":\"stderr\",\"data\":\"err\\n\"}\n\n", "event: exit\n", `"exit_code":0`} {
		if !strings.Contains(body, want) {
			t.Errorf("there is no %q in\n%s", want, body)
		}
	}
}

// A line arrives while the program that wrote it waits for what only its reader can do.
func wantRealTime(t *testing.T, s *server, sb api.Sandbox) {
	var got string
	for e, err := range s.Exec(within(t), sb.ID, api.Exec{Argv: []string{"sh", "-c", "echo one; until [ -e seen ]; do sleep 0.01; done; echo two"}}) {
		if err != nil {
			t.Fatal(err)
		}
		if got += string(e.Data); string(e.Data) == "one\n" {
			say(t, s, sb.ID, "touch seen")
		}
	}
	if got != "one\ntwo\n" {
		t.Errorf("%q", got)
	}
}

// Each line comes as an event of its own, before the next one is written.
func wantFlushed(t *testing.T, s *server, sb api.Sandbox) {
	const lines = 20
	run, n, taken := "", 0, int64(0)
	next := func() {
		t.Helper()
		var err error
		if taken, err = s.WriteStdin(within(t), sb.ID, run, taken, strings.NewReader(fmt.Sprintf("line %d\n", n)), n == lines-1); err != nil {
			t.Fatal(err)
		}
	}
	for e, err := range s.Exec(within(t), sb.ID, api.Exec{Argv: []string{"cat"}, StdinOpen: true}) {
		switch {
		case err != nil:
			t.Fatal(err)
		case e.Start != nil:
			run = e.Start.ID
			next()
		case e.Data != nil:
			if want := fmt.Sprintf("line %d\n", n); string(e.Data) != want {
				t.Fatalf("%q, want %q", e.Data, want)
			}
			if n++; n < lines {
				next()
			}
		}
	}
	if n != lines {
		t.Errorf("%d lines", n)
	}
}

func wantDone(t *testing.T, s *server, sb api.Sandbox) {
	for path, in := range map[string]any{"exec": api.Exec{Argv: []string{"false"}}, "claude": api.Prompt{Prompt: "Say hello."}} {
		if body := raw(t, s, "POST", "/sandbox/"+sb.ID+"/"+path, in); !strings.HasSuffix(body, "\ndata: [DONE]\n\n") || strings.Count(body, "\ndata: [DONE]\n") != 1 {
			t.Errorf("%s ends with %q", path, body[max(0, len(body)-200):])
		}
	}
}

// A CLI that is killed in the middle of its answer is an error event, then the completion event.
func wantErrorsStreamed(t *testing.T, s *server, sb api.Sandbox) {
	res, err := s.send(t, "POST", "/sandbox/"+sb.ID+"/claude", api.ContentTypeEvents, api.Prompt{Prompt: "slow stream"})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	session := res.Header.Get(api.HeaderSession)
	killed, failed, last := false, false, ""
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		line := lines.Text()
		if strings.Contains(line, "stream_event") && !killed {
			killed = true
			runs, err := s.RunsWhere(within(t), sb.ID, client.RunFilter{States: []string{"running"}, Kind: "claude"})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range runs.Runs { // those of other sessions wait for their next prompt
				if r.Session != session {
					continue
				}
				if err := s.Signal(within(t), sb.ID, r.ID, "SIGKILL"); err != nil {
					t.Fatal(err)
				}
			}
		}
		failed = failed || line == "event: error"
		if line != "" {
			last = line
		}
	}
	if !killed || !failed || last != "data: [DONE]" {
		t.Errorf("killed %v, an error event %v, and last came %q", killed, failed, last)
	}
}

// Who asked for it takes the run along when they leave; else it goes on.
func wantCleanUp(t *testing.T, s *server, sb api.Sandbox) {
	attached := false
	ids := map[string]string{}
	for name, detach := range map[string]*bool{"attached": &attached, "detached": nil} {
		ctx, leave := context.WithCancel(t.Context())
		for e, err := range s.Exec(ctx, sb.ID, api.Exec{Argv: []string{"sh", "-c", "sleep 600 & echo on; wait"}, Detach: detach}) {
			if err != nil {
				break
			}
			if e.Start != nil {
				ids[name] = e.Start.ID
			}
			if e.Data != nil {
				leave()
			}
		}
		leave()
	}
	for e, err := range s.RunEvents(within(t), sb.ID, ids["attached"], 0) {
		if err != nil || e.Exit != nil && e.Exit.State != "signaled" {
			t.Errorf("the attached one: %+v, %v", e, err)
		}
	}
	if run, err := s.Run(within(t), sb.ID, ids["detached"]); err != nil || run.State != "running" {
		t.Errorf("the detached one: %+v, %v", run, err)
	}
	if err := s.Signal(within(t), sb.ID, ids["detached"], "SIGKILL"); err != nil {
		t.Error(err)
	}
}

// The CLI finds the variable, with a token of its sandbox in it; that it works is seen by every prompt. TestKeyStaysOutside looks for the real key.
func wantKey(t *testing.T, s *server, sb api.Sandbox) {
	other := create(t, s, api.CreateSandbox{})
	mine, theirs := say(t, s, sb.ID, `printf %s "$ANTHROPIC_API_KEY"`), say(t, s, other.ID, `printf %s "$ANTHROPIC_API_KEY"`)
	if len(mine) < 20 || mine == theirs {
		t.Errorf("the keys are %q and %q", mine, theirs)
	}
	if u := prompt(t, s, sb.ID, api.Prompt{Prompt: "Say hello."}); u.find("result", "") == nil || u.find("result", "").IsError {
		t.Errorf("a prompt ends as %+v", u.find("result", ""))
	}
}

func wantVolume(t *testing.T, s *server, sb api.Sandbox) {
	u := prompt(t, s, sb.ID, api.Prompt{Prompt: "Say hello."})
	if l := u.find("system", "init"); l == nil || l.CWD != sb.Workdir {
		t.Errorf("Claude works in %+v, not in %s", l, sb.Workdir)
	}
	if got := say(t, s, sb.ID, "pwd; echo kept >of-the-volume"); got != sb.Workdir+"\n" {
		t.Errorf("a program works in %q", got)
	}
	other := create(t, s, api.CreateSandbox{Volume: "requirements"})
	if got := say(t, s, other.ID, "cat of-the-volume"); got != "kept\n" {
		t.Errorf("another sandbox on the volume finds %q", got)
	}
}

// Every line that comes is the CLI's own JSON, from init over partial messages to the result.
func wantStreamJSON(t *testing.T, s *server, sb api.Sandbox) {
	var kinds []string
	for e, err := range s.Prompt(within(t), sb.ID, api.Prompt{Prompt: "Say hello."}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Name != api.EventMessage {
			continue
		}
		var l line
		if err := json.Unmarshal([]byte(e.Data), &l); err != nil {
			t.Fatalf("%v: %s", err, e.Data)
		}
		kinds = append(kinds, l.Type)
	}
	all := strings.Join(kinds, " ")
	for _, want := range []string{"system", "stream_event", "assistant", "result"} {
		if !strings.Contains(all, want) {
			t.Errorf("there is no %s: %s", want, all)
		}
	}
}

func wantTerminated(t *testing.T, s *server) {
	sb := create(t, s, api.CreateSandbox{})
	run := ""
	ctx, leave := context.WithCancel(t.Context())
	for e, err := range s.Exec(ctx, sb.ID, api.Exec{Argv: []string{"sh", "-c", "echo last words; exec sleep 600"}}) {
		if err != nil {
			break
		}
		if e.Start != nil {
			run = e.Start.ID
		}
		if e.Data != nil {
			leave()
		}
	}
	leave()
	ended, err := s.Terminate(within(t), sb.ID)
	if err != nil || ended.State != "terminated" || ended.EndedAt == nil {
		t.Errorf("%+v, %v", ended, err)
	}
	if _, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"true"}}); client.Code(err) != "sandbox_not_running" {
		t.Errorf("a program in it: %v", err)
	}
	// What its runs wrote, and how they ended, is still told.
	var got string
	for e, err := range s.RunEvents(within(t), sb.ID, run, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got += string(e.Data)
		if e.Exit != nil && e.Exit.Signal != "SIGTERM" {
			t.Errorf("it ended as %+v", e.Exit)
		}
	}
	if got != "last words\n" {
		t.Errorf("it wrote %q", got)
	}
}

// A program that wants to tidy up when it is asked to end has the time to.
func wantGrace(t *testing.T, s *server) {
	sb := create(t, s, api.CreateSandbox{Volume: "grace"})
	ctx, leave := context.WithCancel(t.Context())
	script := `trap 'sleep 0.5; echo tidied >tidy; exit 0' TERM; echo ready; while :; do sleep 0.05; done`
	for e, err := range s.Exec(ctx, sb.ID, api.Exec{Argv: []string{"sh", "-c", script}}) {
		if err != nil {
			break
		}
		if e.Data != nil {
			leave()
		}
	}
	leave()
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Fatal(err)
	}
	again := create(t, s, api.CreateSandbox{Volume: "grace"})
	if got := say(t, s, again.ID, "cat tidy"); got != "tidied\n" {
		t.Errorf("it left %q", got)
	}
}

func wantReleased(t *testing.T, s *server) {
	list, err := s.Sandboxes(within(t), client.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range list.Sandboxes {
		if _, err := s.Terminate(within(t), sb.ID); err != nil && client.Code(err) != "already_terminated" {
			t.Error(err)
		}
	}
	wantNothingLeft(t, s.data)
}

// TestRunsOutliveServers kills the server again and again while a run writes and is fed. Each server after it tells all of the rest and takes
// all of the rest, each byte once; the exit code is right, also when the run ended while there was no server.
func TestRunsOutliveServers(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	const kills, lines = 3, 3000
	counts := startQuietly(t, s, sb.ID, api.Exec{Argv: []string{"sh", "-c",
		fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); [ $((i %% 100)) = 0 ] && sleep 0.2; done; exit 7", lines)}})
	echoes := startQuietly(t, s, sb.ID, api.Exec{Argv: []string{"sh", "-c", "cat; exit 8"}, StdinOpen: true})
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	var got []byte
	fed := ""
	for kill := range kills + 1 {
		feed := fmt.Sprintf("fed %d\n", kill)
		at := int64(len(fed))
		fed += feed
		for range 2 { // as who doesn't know whether it was taken
			if taken, err := s.WriteStdin(within(t), sb.ID, echoes, at, strings.NewReader(feed), false); err != nil || taken != int64(len(fed)) {
				t.Fatal(taken, err)
			}
		}
		for e, err := range s.RunEvents(within(t), sb.ID, counts, int64(len(got))) {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, e.Data...); e.Gap != nil {
				t.Errorf("a gap: %+v", e.Gap)
			}
			if e.Exit != nil && (e.Exit.ExitCode == nil || *e.Exit.ExitCode != 7) {
				t.Errorf("it ended as %+v", e.Exit)
			}
			if kill < kills && len(got) > (kill+1)*want.Len()/(kills+2) {
				break
			}
		}
		if kill < kills {
			s.kill(t)
			s = start(t, options{data: s.data})
		}
	}
	if string(got) != want.String() {
		t.Errorf("%d bytes came, not %d", len(got), want.Len())
	}
	if _, err := s.WriteStdin(within(t), sb.ID, echoes, int64(len(fed)), strings.NewReader("end"), true); err != nil {
		t.Fatal(err)
	}
	out, exit := readRun(t, s, sb.ID, echoes)
	if out != fed+"end" || exit.ExitCode == nil || *exit.ExitCode != 8 {
		t.Errorf("it was fed %q, and ended as %+v", out, exit)
	}

	// A run that ends while there is no server.
	alone := startQuietly(t, s, sb.ID, api.Exec{Argv: []string{"sh", "-c", "until [ -e go ]; do sleep 0.02; done; echo alone; exit 9"}})
	ends := startQuietly(t, s, sb.ID, api.Exec{Argv: []string{"sh", "-c", "sleep 1; touch go"}})
	s.kill(t)
	s = start(t, options{data: s.data})
	if out, exit := readRun(t, s, sb.ID, alone); out != "alone\n" || *exit.ExitCode != 9 {
		t.Errorf("it wrote %q and ended as %+v", out, exit)
	}
	readRun(t, s, sb.ID, ends)

	// The runtime dies: what runs is lost at once, what ended is not, and all that was written is there.
	lost := startQuietly(t, s, sb.ID, api.Exec{Argv: []string{"sh", "-c", "echo lost; exec sleep 600"}})
	for list := (api.RunEventList{}); len(list.Events) == 0; {
		var err error
		if list, err = s.RunEventsNow(within(t), sb.ID, lost, 0); err != nil {
			t.Fatal(err)
		}
	}
	killed := time.Now()
	killRuntimes(t, s.data)
	if out, exit := readRun(t, s, sb.ID, lost); out != "lost\n" || exit.State != "lost" || exit.ExitCode != nil || time.Since(killed) > 10*time.Second {
		t.Errorf("%v after the runtime's death: %q, %+v", time.Since(killed), out, exit)
	}
	if out, exit := readRun(t, s, sb.ID, counts); out != want.String() || *exit.ExitCode != 7 {
		t.Errorf("what had ended is %d bytes, %+v", len(out), exit)
	}
}

// startQuietly starts a program and leaves it.
func startQuietly(t *testing.T, s *server, sandbox string, in api.Exec) string {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for e, err := range s.Exec(ctx, sandbox, in) {
		if err != nil {
			t.Fatal(err)
		}
		return e.Start.ID
	}
	t.Fatal("it never started")
	return ""
}

// readRun reads all of a run.
func readRun(t *testing.T, s *server, sandbox, run string) (out string, exit api.Run) {
	t.Helper()
	for e, err := range s.RunEvents(within(t), sandbox, run, 0) {
		if err != nil {
			t.Fatal(err)
		}
		out += string(e.Data)
		if e.Exit != nil {
			exit = *e.Exit
		}
	}
	return out, exit
}

// killRuntimes kills gVisor's processes that work for a data directory.
func killRuntimes(t *testing.T, data string) {
	t.Helper()
	pids := runtimePIDs(t, data)
	if len(pids) == 0 {
		t.Fatal("there is no runtime")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
	}
}
