package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// These tests go through the whole server: store, manager, sessions and real processes.

// create makes a sandbox that runs.
func create(t *testing.T, s *servertest.Server) api.Sandbox {
	t.Helper()
	sb, err := s.Create(t.Context(), api.CreateSandbox{Labels: map[string]string{"for": t.Name()}})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func TestLifeOfASandbox(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	ctx := t.Context()
	sb := create(t, s)
	if sb.State != "running" || sb.StartedAt == nil || sb.EndedAt != nil || sb.Workdir != "/workspace" || sb.Image.Registry != "host" || sb.TimeoutS != 3600 {
		t.Errorf("%+v", sb)
	}
	list, err := s.Sandboxes(ctx, client.Filter{States: []string{"running"}, Labels: map[string]string{"for": t.Name()}})
	if err != nil || len(list.Sandboxes) != 1 || list.Sandboxes[0].ID != sb.ID {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err = s.Sandboxes(ctx, client.Filter{Labels: map[string]string{"for": "others"}}); err != nil || len(list.Sandboxes) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	run, err := s.ExecWait(ctx, sb.ID, api.Exec{Argv: []string{"sh", "-c", "cat; echo err >&2; exit 3"}, Stdin: "in"})
	if err != nil || run.Stdout != "in" || run.Stderr != "err\n" || run.ExitCode == nil || *run.ExitCode != 3 || run.State != "exited" {
		t.Errorf("%+v, %v", run, err)
	}
	if got, err := s.Run(ctx, sb.ID, run.ID); err != nil || got.ExitCode == nil || *got.ExitCode != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	if runs, err := s.Runs(ctx, sb.ID); err != nil || len(runs.Runs) != 1 {
		t.Errorf("%+v, %v", runs, err)
	}
	sb, err = s.Terminate(ctx, sb.ID)
	if err != nil || sb.State != "terminated" || sb.EndedAt == nil {
		t.Errorf("%+v, %v", sb, err)
	}
	if _, err := s.Terminate(ctx, sb.ID); client.Code(err) != "already_terminated" {
		t.Errorf("second terminate: %v", err)
	}
	if _, err := s.ExecWait(ctx, sb.ID, api.Exec{Argv: []string{"true"}}); client.Code(err) != "sandbox_not_running" {
		t.Errorf("exec after the end: %v", err)
	}
	for _, err := range s.Prompt(ctx, sb.ID, api.Prompt{Prompt: "Hi"}) {
		if p := client.Code(err); p != "sandbox_not_running" {
			t.Errorf("prompt after the end: %v", err)
		}
	}
	events, err := s.Events(ctx, sb.ID, 0, 0)
	if err != nil || len(events.Events) < 3 || events.Events[0].Kind != "accepted" {
		t.Errorf("%+v, %v", events, err)
	}
}

func TestRefusalsOfTheManager(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	for name, tt := range map[string]struct {
		in       api.CreateSandbox
		location string
	}{
		"no such image":   {api.CreateSandbox{Image: &api.Image{Registry: "no/such:image"}}, "body.image.registry"},
		"no such engine":  {api.CreateSandbox{Engine: "steam"}, "body.engine"},
		"no such network": {api.CreateSandbox{Network: &api.Network{Mode: "wild"}}, "body.network.mode"},
		"too long":        {api.CreateSandbox{TimeoutS: 1 << 60}, "body.timeout_s"},
		"few processes":   {api.CreateSandbox{PIDs: 1}, "body.pids"},
		"few files":       {api.CreateSandbox{OpenFiles: 1}, "body.open_files"},
		"much output":     {api.CreateSandbox{OutputKiBS: 1 << 40}, "body.output_kib_s"},
		"a GPU":           {api.CreateSandbox{GPU: "1"}, "body.gpu"},
		"relative":        {api.CreateSandbox{Workdir: "here"}, "body.workdir"},
		"bad volume":      {api.CreateSandbox{Volume: "../x"}, "body.volume"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := s.Create(t.Context(), tt.in)
			p := problem(t, err)
			if p.Status != http.StatusBadRequest || len(p.Errors) != 1 || p.Errors[0].Location != tt.location {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestRealOutputIsResumedExactly(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	script := `i=0; while [ $i -lt 200 ]; do echo "line $i"; i=$((i+1)); done; printf '\377\000x'`
	var whole bytes.Buffer
	var offsets []int64
	id := ""
	for e, err := range s.Exec(t.Context(), sb.ID, api.Exec{Argv: []string{"sh", "-c", script}}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Start != nil {
			id = e.Start.ID
		}
		whole.Write(e.Data)
		if e.Data != nil {
			offsets = append(offsets, e.Offset)
		}
	}
	if !bytes.HasSuffix(whole.Bytes(), []byte("line 199\n\xff\x00x")) {
		t.Fatalf("%q", whole.Bytes())
	}
	for _, after := range append(offsets, 0, 1, 777) {
		var rest bytes.Buffer
		for e, err := range s.RunEvents(t.Context(), sb.ID, id, after) {
			if err != nil {
				t.Fatal(err)
			}
			rest.Write(e.Data)
		}
		if !bytes.Equal(rest.Bytes(), whole.Bytes()[after:]) {
			t.Errorf("after %d: %d bytes", after, rest.Len())
		}
	}
}

func TestLeavingLeavesTheRun(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	id := ""
	script := `echo ready; while [ ! -e go ]; do sleep 0.01; done; echo went on`
	for e, err := range s.Exec(ctx, sb.ID, api.Exec{Argv: []string{"sh", "-c", script}}) {
		if err != nil {
			break
		}
		if e.Start != nil {
			id = e.Start.ID
		}
		if string(e.Data) == "ready\n" {
			leave() // it came though the run goes on; and the run goes on though we left
		}
	}
	run, err := s.Run(t.Context(), sb.ID, id)
	if err != nil || run.State != "running" {
		t.Fatalf("%+v, %v", run, err)
	}
	if _, err := s.ExecWait(t.Context(), sb.ID, api.Exec{Argv: []string{"touch", "go"}}); err != nil {
		t.Fatal(err)
	}
	var rest string
	for e, err := range s.RunEvents(t.Context(), sb.ID, id, 0) {
		if err != nil {
			t.Fatal(err)
		}
		rest += string(e.Data)
	}
	if rest != "ready\nwent on\n" {
		t.Errorf("%q", rest)
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	for e, err := range s.Exec(t.Context(), sb.ID, api.Exec{Argv: []string{"sh", "-c", "echo ready; sleep 60"}}) {
		switch {
		case err != nil:
			t.Fatal(err)
		case string(e.Data) == "ready\n":
			runs, err := s.Runs(t.Context(), sb.ID)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Signal(t.Context(), sb.ID, runs.Runs[0].ID, "SIGDANCE"); problem(t, err).Errors[0].Location != "body.signal" {
				t.Error(err)
			}
			if err := s.Signal(t.Context(), sb.ID, runs.Runs[0].ID, "SIGTERM"); err != nil {
				t.Fatal(err)
			}
		case e.Exit != nil && (e.Exit.State != "signaled" || e.Exit.Signal != "SIGTERM" || e.Exit.ExitCode != nil):
			t.Errorf("%+v", e.Exit)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	ctx := t.Context()
	run, err := s.ExecWait(ctx, sb.ID, api.Exec{Argv: []string{"pwd"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.TrimSpace(run.Stdout) // the fake engine has no root of its own
	content := bytes.Repeat([]byte("<script>\x00\xff"), 300_000)
	f, err := s.WriteFile(ctx, sb.ID, dir+"/a/b c.html", bytes.NewReader(content))
	if err != nil || f.Name != "b c.html" || f.Size != int64(len(content)) || f.Type != "file" || f.Mode != "0644" {
		t.Errorf("%+v, %v", f, err)
	}
	r, err := s.ReadFile(ctx, sb.ID, dir+"/a/b c.html")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	_ = r.Close()
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	ls, err := s.ReadDir(ctx, sb.ID, dir+"/a/")
	if err != nil || ls.Path != dir+"/a" || len(ls.Entries) != 1 || ls.Entries[0].Name != "b c.html" {
		t.Errorf("%+v, %v", ls, err)
	}

	req, err := http.NewRequestWithContext(ctx, "HEAD", s.URL+"/sandbox/"+sb.ID+"/files"+dir+"/a/b%20c.html", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.Key)
	req.Header.Set("Accept", "text/html")
	res, err := s.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	h := res.Header
	if h.Get("Content-Type") != "application/octet-stream" || !strings.HasPrefix(h.Get("Content-Disposition"), "attachment") ||
		h.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") || res.ContentLength != int64(len(content)) {
		t.Errorf("a page that a sandbox wrote must not run here: %v", h)
	}

	if ls, err := s.ReadDir(ctx, sb.ID, "/"); err != nil || ls.Path != "/" || len(ls.Entries) == 0 {
		t.Errorf("the root: %+v, %v", ls, err)
	}
	if err := s.Remove(ctx, sb.ID, dir+"/a"); err != nil {
		t.Error(err)
	}
	_, err = s.ReadFile(ctx, sb.ID, dir+"/a/b c.html")
	if p := problem(t, err); p.Status != 404 || p.Code != "no_such_file" {
		t.Errorf("%+v", p)
	}
	if err := s.Remove(ctx, sb.ID, dir+"/a"); problem(t, err).Status != 404 {
		t.Errorf("second remove: %v", err)
	}
	if _, err := s.WriteFile(ctx, sb.ID, dir, strings.NewReader("x")); problem(t, err).Status != 400 {
		t.Errorf("a file in a directory's place: %v", err)
	}
	if _, err := s.WriteFile(ctx, sb.ID, dir+"/half", io.MultiReader(strings.NewReader("x"), brokenReader{})); err == nil {
		t.Error("half a file was taken")
	}
	if _, err := s.ReadFile(ctx, sb.ID, dir+"/half"); problem(t, err).Status != 404 {
		t.Errorf("half a file is there: %v", err)
	}
}

// brokenReader is a body that breaks off.
type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

func TestConversation(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	ctx := t.Context()
	var lines []string
	var last client.Event
	for e, err := range s.Prompt(ctx, sb.ID, api.Prompt{Prompt: "hello"}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Name == "message" {
			lines = append(lines, e.Data)
		}
		last = e
	}
	want := []string{`{"type":"system","subtype":"init"}`, `{"type":"assistant","text":"You said hello"}`, `{"type":"result","subtype":"success","is_error":false}`}
	if !slices.Equal(lines, want) || last.ID == "" {
		t.Errorf("got %q", lines)
	}
	all, err := s.Client.Sessions(ctx)
	if err != nil || len(all.Sessions) != 1 || all.Sessions[0].Title != "hello" || all.Sessions[0].Turns != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	id := all.Sessions[0].ID
	for _, err := range s.Prompt(ctx, sb.ID, api.Prompt{Prompt: "again", Session: id}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	log, err := s.SessionEvents(ctx, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, e := range log.Events {
		kinds = append(kinds, e.Kind)
	}
	if want := strings.Fields("prompt line line line end prompt line line line end"); !slices.Equal(kinds, want) {
		t.Errorf("the log: %q", kinds)
	}
	if err := s.Interrupt(ctx, id); client.Code(err) != "session_idle" {
		t.Errorf("interrupt: %v", err)
	}
}

func TestFailingCLIIsAnErrorEvent(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{CLI: `echo '{"type":"x"}'; exit 1`})
	sb := create(t, s)
	var end error
	for _, err := range s.Prompt(t.Context(), sb.ID, api.Prompt{Prompt: "hello"}) {
		end = err
	}
	if client.Code(end) != "run_failed" {
		t.Errorf("%v", end)
	}
}

func TestInterruptAndLeave(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{CLI: `trap 'exit 130' INT; echo '{"type":"busy"}'; while :; do sleep 0.05; done`})
	sb := create(t, s)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for e, err := range s.Prompt(ctx, sb.ID, api.Prompt{Prompt: "work"}) {
		if err == nil && e.Name == "message" {
			leave()
		}
	}
	all, err := s.Client.Sessions(t.Context())
	if err != nil || len(all.Sessions) != 1 || !all.Sessions[0].Busy {
		t.Fatalf("leaving ended it: %+v, %v", all, err)
	}
	id := all.Sessions[0].ID
	if err := s.Interrupt(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for e, err := range s.FollowSession(t.Context(), id, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == "end" {
			break
		}
	}
}

func TestAccountsAreApart(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	run, err := s.ExecWait(t.Context(), sb.ID, api.Exec{Argv: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range s.Prompt(t.Context(), sb.ID, api.Prompt{Prompt: "hello"}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	mine, err := s.Client.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ses := mine.Sessions[0].ID

	_, key := servertest.AddAccount(t, s.Store, "second")
	other := s.As(t, key)
	ctx := t.Context()
	for name, try := range map[string]func() error{
		"get":       func() error { _, err := other.Sandbox(ctx, sb.ID); return err },
		"terminate": func() error { _, err := other.Terminate(ctx, sb.ID); return err },
		"suspend":   func() error { _, err := other.Suspend(ctx, sb.ID); return err },
		"resume":    func() error { _, err := other.Resume(ctx, sb.ID); return err },
		"exec":      func() error { _, err := other.ExecWait(ctx, sb.ID, api.Exec{Argv: []string{"true"}}); return err },
		"runs":      func() error { _, err := other.Runs(ctx, sb.ID); return err },
		"run":       func() error { _, err := other.Run(ctx, sb.ID, run.ID); return err },
		"signal":    func() error { return other.Signal(ctx, sb.ID, run.ID, "SIGTERM") },
		"read":      func() error { _, err := other.ReadFile(ctx, sb.ID, "/etc/hostname"); return err },
		"write":     func() error { _, err := other.WriteFile(ctx, sb.ID, "/tmp/x", strings.NewReader("")); return err },
		"remove":    func() error { return other.Remove(ctx, sb.ID, "/tmp/x") },
		"events":    func() error { _, err := other.Events(ctx, sb.ID, 0, 0); return err },
		"session":   func() error { _, err := other.Session(ctx, ses); return err },
		"log":       func() error { _, err := other.SessionEvents(ctx, ses, 0); return err },
		"interrupt": func() error { return other.Interrupt(ctx, ses) },
		"prompt": func() (end error) {
			for _, err := range other.Prompt(ctx, sb.ID, api.Prompt{Prompt: "x"}) {
				end = err
			}
			return end
		},
		"run events": func() (end error) {
			for _, err := range other.RunEvents(ctx, sb.ID, run.ID, 0) {
				end = err
			}
			return end
		},
	} {
		if p := problem(t, try()); p.Status != http.StatusNotFound {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if list, err := other.Sandboxes(ctx, client.Filter{}); err != nil || len(list.Sandboxes) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := other.Sessions(ctx); err != nil || len(list.Sessions) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := other.Events(ctx, "", 0, 0); err != nil || len(list.Events) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := s.Sandbox(ctx, sb.ID); err != nil {
		t.Errorf("after all that: %v", err)
	}
	s.Stop()
	if log := s.Log.String(); strings.Contains(log, s.Key) || strings.Contains(log, key) {
		t.Error("a key is in the log")
	}
}

// problem returns the problem that err wraps.
func problem(t *testing.T, err error) *api.Problem {
	t.Helper()
	p, ok := errors.AsType[*api.Problem](err)
	if !ok {
		t.Fatalf("not a problem: %v", err)
	}
	return p
}
