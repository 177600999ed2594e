package claude_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/gateway"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

var update = flag.Bool("update", false, "write the golden transcript anew")

// hostRunner runs the CLI on this host, in the place of a sandbox. SANDLOT_TEST_CLAUDE names its program.
type hostRunner struct {
	*fakeRunner
	program string
	env     map[string]string
	procs   sync.WaitGroup

	requestsMu sync.Mutex
	requests   [][]byte // to the model
}

func (h *hostRunner) asked(body []byte) {
	h.requestsMu.Lock()
	defer h.requestsMu.Unlock()
	h.requests = append(h.requests, body)
}

// conversations returns the messages of the requests to the model that come with tools.
func (h *hostRunner) conversations(t *testing.T) (all [][]modelMessage) {
	t.Helper()
	h.requestsMu.Lock()
	defer h.requestsMu.Unlock()
	for _, body := range h.requests {
		var req struct {
			Tools    []any
			Messages []modelMessage
		}
		if json.Unmarshal(body, &req) == nil && len(req.Tools) > 0 {
			all = append(all, req.Messages)
		}
	}
	return all
}

type modelMessage struct {
	Role    string
	Content json.RawMessage
}

type modelBlock struct {
	Type, ID, Text string
	ToolUse        string `json:"tool_use_id"`
	Content        any
	IsError        bool `json:"is_error"`
}

// blocks are those of a message; none if it is a bare string.
func (m modelMessage) blocks() (b []modelBlock) {
	_ = json.Unmarshal(m.Content, &b)
	return b
}

func newHost(t *testing.T, changes ...func(*claude.Config)) (*world, *hostRunner) {
	t.Helper()
	program := os.Getenv("SANDLOT_TEST_CLAUDE")
	if program == "" {
		if os.Getenv("SANDLOT_MUST_RUN") != "" {
			t.Fatal("must not be skipped: SANDLOT_TEST_CLAUDE doesn't name the program of Claude Code")
		}
		t.Skip("SANDLOT_TEST_CLAUDE doesn't name the program of Claude Code; `make test` sets it")
	}
	w := newWorld(t)
	w.stop()
	w.sb = w.sandbox("host", must[string](t)(filepath.EvalSymlinks(t.TempDir())))

	demo := gateway.NewDemo()
	demo.Pace, demo.Slow = -1, 20*time.Millisecond
	gw := must[*gateway.Gateway](t)(gateway.New(gateway.Config{Demo: demo, Secret: []byte("a secret of the tests' own")}))
	h := &hostRunner{fakeRunner: w.runner, program: program, env: claude.Env(os.Getuid() == 0)}
	toModel := gw.Handler(w.sb.ID)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what is cut off the model refuses
		h.asked(body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		toModel.ServeHTTP(rw, r)
	}))
	t.Cleanup(srv.Close)
	for k, v := range gw.Env(w.sb.ID) {
		h.env[k] = strings.ReplaceAll(v, "http://"+guest.Gateway, srv.URL) // of the API and of the proxy
	}
	h.env["XDG_CACHE_HOME"], h.env["TMPDIR"] = t.TempDir(), t.TempDir()
	t.Cleanup(func() {
		for _, f := range h.all() {
			if f.onSignal != nil {
				_ = f.onSignal("SIGKILL") // it may have ended
			}
		}
		h.procs.Wait()
	})

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	cfg := claude.Config{Runner: h, Store: w.store, Files: func(context.Context, string, sandbox.ID) (claude.Files, error) { return hostFiles{}, nil }}
	for _, change := range changes {
		change(&cfg)
	}
	w.Sessions = claude.NewSessions(cfg)
	go func() { done <- w.Serve(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w, h
}

func (h *hostRunner) StartRun(ctx context.Context, run sandbox.Run, cmd guest.Command, insert func(context.Context, sandbox.Run) error) (sandbox.Run, error) {
	run, err := h.fakeRunner.StartRun(ctx, run, cmd, insert)
	if err != nil {
		return run, err
	}
	f := h.get(run.ID)
	p := exec.Command(h.program, cmd.Argv[1:]...)
	p.Dir = cmd.Dir
	stdin, err := p.StdinPipe()
	if err != nil {
		return run, err
	}
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	for _, env := range []map[string]string{h.env, cmd.Env} {
		for k, v := range env {
			p.Env = append(p.Env, k+"="+v)
		}
	}
	p.Stdout, p.Stderr = journal{f, guest.Stdout}, journal{f, guest.Stderr}
	if err := p.Start(); err != nil {
		return run, err
	}
	f.onInput = func(b []byte) { _, _ = stdin.Write(b) } // it may have ended
	f.onClose = func() { _ = stdin.Close() }
	f.onSignal = func(name string) error {
		return syscall.Kill(-p.Process.Pid, map[string]syscall.Signal{"SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM, "SIGKILL": syscall.SIGKILL}[name])
	}
	h.procs.Go(func() {
		err := p.Wait()
		status, ok := p.ProcessState.Sys().(syscall.WaitStatus)
		f.finish(func(r *sandbox.Run) {
			switch {
			case ok && status.Signaled():
				r.State, r.Signal = sandbox.RunSignaled, "SIG"+strings.ToUpper(status.Signal().String())
			case ok:
				code := status.ExitStatus()
				r.State, r.ExitCode = sandbox.RunExited, &code
			default:
				r.State, r.Reason = sandbox.RunLost, err.Error()
			}
		})
	})
	return run, nil
}

func (h *hostRunner) Output(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error] {
	return h.fakeRunner.Output(ctx, run, offset)
}

type journal struct {
	f    *fakeRun
	kind guest.Kind
}

func (j journal) Write(p []byte) (int, error) {
	j.f.write(j.kind, string(p))
	return len(p), nil
}

// hostFiles is this host's file system, as far as sessions look at it.
type hostFiles struct{ claude.Files }

func hostError(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return notThere(err.Error())
	}
	return err
}

func (hostFiles) ReadFile(_ context.Context, name string) (io.ReadCloser, guest.File, error) {
	f, err := os.Open(name)
	return f, guest.File{}, hostError(err)
}

func (hostFiles) WriteFile(_ context.Context, name string, r io.Reader, mode fs.FileMode) (guest.File, error) {
	data, err := io.ReadAll(r)
	if err == nil {
		err = os.WriteFile(name, data, mode)
	}
	return guest.File{}, hostError(err)
}

func (hostFiles) ReadDir(_ context.Context, name string) ([]guest.File, error) {
	entries, err := os.ReadDir(name)
	var list []guest.File
	for _, e := range entries {
		list = append(list, guest.File{Name: e.Name(), Type: map[bool]string{true: "directory", false: "file"}[e.IsDir()]})
	}
	return list, hostError(err)
}

// said is what a line of the CLI tells, in short: what a golden transcript holds.
func said(t *testing.T, ev sandbox.SessionEvent) string {
	t.Helper()
	var l struct {
		Type, Subtype, Result string
		IsError               bool `json:"is_error"`
		Message               struct {
			Model   string
			Content json.RawMessage
		}
	}
	if err := json.Unmarshal(ev.Data, &l); err != nil {
		return "not JSON: " + string(ev.Data)
	}
	parts := []string{l.Type}
	if l.Subtype != "" {
		parts = append(parts, l.Subtype)
	}
	var blocks []struct {
		Type, Name string
		IsError    bool `json:"is_error"`
	}
	if json.Unmarshal(l.Message.Content, &blocks) == nil {
		for _, b := range blocks {
			parts = append(parts, strings.TrimSpace(b.Type+" "+b.Name))
			if b.IsError {
				parts = append(parts, "failed")
			}
		}
	}
	if l.IsError {
		parts = append(parts, "error")
	}
	return strings.Join(parts, " ")
}

// turn runs a prompt to its end.
func (w *world) turn(session, text string) (claude.Turn, []sandbox.SessionEvent) {
	w.t.Helper()
	turn := must[claude.Turn](w.t)(w.Prompt(w.t.Context(), w.account, claude.Prompt{Sandbox: w.sb.ID, Session: session, Text: text}))
	return turn, w.collect(turn.Session.ID, turn.After)
}

func transcript(t *testing.T, evs []sandbox.SessionEvent) string {
	t.Helper()
	var lines []string
	for _, ev := range evs {
		if ev.Kind != sandbox.SessionPartial {
			lines = append(lines, said(t, ev))
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

func resultOf(t *testing.T, evs []sandbox.SessionEvent) string {
	t.Helper()
	for _, ev := range slices.Backward(evs) {
		var l struct{ Type, Result string }
		if json.Unmarshal(ev.Data, &l) == nil && l.Type == "result" {
			return l.Result
		}
	}
	t.Fatalf("no result in\n%s", show(evs))
	return ""
}

// TestRealMainJob is the main job with the real CLI and the demo model: what is on disk, what is in the log, and then what a second
// turn remembers.
func TestRealMainJob(t *testing.T) {
	t.Parallel()
	w, _ := newHost(t)
	turn, evs := w.turn("", "Show me what you can do")

	script := must[[]byte](t)(os.ReadFile(filepath.Join(w.sb.Spec.Workdir, "hello.sh")))
	if !strings.HasPrefix(string(script), "#!/bin/sh\n") {
		t.Errorf("hello.sh is %q", script)
	}
	result := resultOf(t, evs)
	for _, want := range []string{"## Done", "5 squared is 25", "place:  " + w.sb.Spec.Workdir} {
		if !strings.Contains(result, want) {
			t.Errorf("no %q in the result:\n%s", want, result)
		}
	}
	partials := 0
	for _, ev := range evs {
		if ev.Kind == sandbox.SessionPartial {
			partials++
		}
	}
	if partials < 20 {
		t.Errorf("%d partial lines", partials)
	}
	if e := endOf(t, evs); e.State != "exited" || e.Outcome != "done" {
		t.Errorf("end %+v", e)
	}
	golden := filepath.Join("testdata", "mainjob-"+claude.Version+".txt")
	got := transcript(t, evs)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(must[[]byte](t)(os.ReadFile(golden))); got != want {
		t.Errorf("the CLI's lines are\n%s\nand were\n%s", got, want)
	}

	_, evs = w.turn(turn.Session.ID, "Do you remember?")
	if result := resultOf(t, evs); !strings.Contains(result, "2 of your prompts") || !strings.Contains(result, "1. Show me what you can do") {
		t.Errorf("the second turn says %s", result)
	}
	// In a new session the file is there already, and not read yet.
	_, evs = w.turn("", "The same again")
	if result := resultOf(t, evs); !strings.Contains(result, "## Done") {
		t.Errorf("a second session says %s", result)
	}
}

func TestRealVariants(t *testing.T) {
	t.Parallel()
	w, _ := newHost(t)
	for _, tt := range []struct {
		prompt string
		result string // part of it
		lines  string // that must be there
		end    string
	}{
		{"run: echo $((6*7)); pwd", "\n42\n", "assistant tool_use Bash", "done"},
		{"write notes/a.txt: Hello, file", "Hello, file", "assistant tool_use Write", "done"},
		{"tool error please", "Exit code 1", "user tool_result failed", "done"},
		{"code blocks", "```go", "result success", "done"},
		{"long answer", "Part 60", "result success", "done"},
		{"overloaded", "tried again", "system api_retry", "done"},
		{"api error", "This is the API error", "result success error", "failed"},
	} {
		_, evs := w.turn("", tt.prompt)
		e := endOf(t, evs)
		if got := resultOf(t, evs); !strings.Contains(got, tt.result) {
			t.Errorf("%s: %s", tt.prompt, got)
		}
		if got := transcript(t, evs); !strings.Contains(got, tt.lines) {
			t.Errorf("%s: no %q in\n%s", tt.prompt, tt.lines, got)
		}
		if e.Outcome != tt.end || e.ExitCode != nil {
			t.Errorf("%s: end %+v", tt.prompt, e)
		}
	}
	if text, err := os.ReadFile(filepath.Join(w.sb.Spec.Workdir, "notes", "a.txt")); err != nil || string(text) != "Hello, file\n" {
		t.Errorf("notes/a.txt is %q, %v", text, err)
	}
}

// TestRealInterrupt stops a turn in the middle of its answer, kills another, and goes on with the session all the same.
func TestRealInterrupt(t *testing.T) {
	t.Parallel()
	w, h := newHost(t)
	stop := func(session, prompt string, how func(run string) error) (string, []sandbox.SessionEvent) {
		t.Helper()
		turn := must[claude.Turn](t)(w.Prompt(t.Context(), w.account, claude.Prompt{Sandbox: w.sb.ID, Session: session, Text: prompt}))
		n := 0
		for e, err := range w.Events(t.Context(), w.account, turn.Session.ID, turn.After, true) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == sandbox.SessionPartial {
				n++
			}
			if n == 10 {
				if err := how(turn.Run.ID); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		return turn.Session.ID, w.collect(turn.Session.ID, turn.After)
	}
	var session string
	session, evs := stop("", "slow stream", func(run string) error {
		return w.Interrupt(t.Context(), w.account, must[sandbox.Run](t)(w.store.Run(t.Context(), "", run)).Session)
	})
	if e := endOf(t, evs); e.State != "exited" || e.Outcome != "interrupted" {
		t.Errorf("end %+v", e)
	}
	_, evs = stop(session, "slow stream", func(run string) error { return h.Signal(t.Context(), "", run, "SIGKILL") })
	if e := endOf(t, evs); e.State != "signaled" || e.ExitCode != nil {
		t.Errorf("end %+v", e)
	}
	_, evs = w.turn(session, "remember")
	if got := resultOf(t, evs); !strings.Contains(got, "of your prompts") || !strings.Contains(got, "slow stream") {
		t.Errorf("then it says %s", got)
	}
}
