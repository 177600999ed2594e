package claude

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestSplitterDependsOnBytesAlone deals the same bytes out in many ways.
func TestSplitterDependsOnBytesAlone(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4))
	const text = "one\n\ntwo\r\n  \nthree, which is longer than the others\nfour\r\nfive"
	split := func(most int) string {
		var got []string
		s := splitter{line: func(data []byte, next int64) { got = append(got, fmt.Sprintf("%s@%d", data, next)) }}
		for at := 0; at < len(text); {
			n := min(len(text)-at, 1+rnd.IntN(most))
			s.write([]byte(text[at:at+n]), int64(at))
			at += n
		}
		s.finish(int64(len(text)))
		return strings.Join(got, "|")
	}
	want := "one@4|two@10|three, which is longer than the others@52|four@58|five@62"
	for most := range 70 {
		if got := split(most + 1); got != want {
			t.Fatalf("got %s", got)
		}
	}
}

// TestTerminalSequencesSayNothing has what the CLI was seen to write at its end on a terminal.
func TestTerminalSequencesSayNothing(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"\x1b[?1006l\x1b[?1003l\x1b(B\x0f\x1b[>4m\x1b[<u\x1b[?25h\x1b7\x1b[r\x1b8\x1b]0;\x07\x1b[?25h": "",
		"\x1b]0;a title\x1b\\{\"type\":\"x\"}":                                                         `{"type":"x"}`,
		"{\"odd\":\"\x1b[1m\"}":                                                                        "{\"odd\":\"\x1b[1m\"}",
		"\x1b[1mError\x1b[0m":                                                                          "Error",
	} {
		var got string
		s := splitter{line: func(data []byte, _ int64) { got += string(data) }}
		s.write([]byte(in+"\r\n"), 0)
		if got != want {
			t.Errorf("%q gave %q", in, got)
		}
	}
}

func TestProjectDirs(t *testing.T) {
	t.Parallel()
	long := "/" + strings.Repeat("a", 250)
	for _, tt := range []struct {
		name, workdir string
		want          bool
	}{
		{"-workspace", "/workspace", true},
		{"-workspace", "/work", false},
		{"-tmp-w-s-x---Z", "/tmp/w_s.x ü-Z", true}, // as seen
		{"-a--b", "/a🙂b", true},                    // two units of UTF-16
		{"-a-b", "/a🙂b", false},
		{"-" + strings.Repeat("a", 199) + "-sqvzba", long, true},
		{"-" + strings.Repeat("a", 250), long, false},
	} {
		if got := isProjectDir(tt.name, tt.workdir); got != tt.want {
			t.Errorf("%s for %s: %v", tt.name, tt.workdir, got)
		}
	}
}

func TestEnv(t *testing.T) {
	t.Parallel()
	for _, root := range []bool{false, true} {
		env := Env(root)
		if (env["IS_SANDBOX"] == "1") != root || env["HOME"] != "/workspace/.sandlot/home" || env["DISABLE_AUTOUPDATER"] != "1" ||
			!strings.Contains(env["PATH"], MountPoint+"/bin") || env["ANTHROPIC_API_KEY"] != "" {
			t.Errorf("root %v: %v", root, env)
		}
	}
}

func TestCommandKeepsTheUsersHome(t *testing.T) {
	t.Parallel()
	cmd := command(sandbox.Turn{PermissionMode: "plan"}, "u", true, sandbox.Spec{Workdir: "/w", Env: map[string]string{"HOME": "/h"}}, "run_1")
	if _, ok := cmd.Env["HOME"]; ok || cmd.Env["CLAUDE_CONFIG_DIR"] != "/w/.sandlot/home/.claude" ||
		!slices.Contains(cmd.Argv, "--resume=u") || !slices.Contains(cmd.Argv, "--permission-mode=plan") {
		t.Errorf("command %+v", cmd)
	}
	for own, want := range map[string]string{"": guest.Shell, "/opt/bash": ""} {
		cmd := command(sandbox.Turn{}, "u", false, sandbox.Spec{Workdir: "/w", Env: map[string]string{"CLAUDE_CODE_SHELL": own}}, "run_1")
		if got := cmd.Env["CLAUDE_CODE_SHELL"]; got != want {
			t.Errorf("with the shell %q of the sandbox's maker the command's is %q, want %q", own, got, want)
		}
	}
}

// oneFile is a file system that holds what is written to it.
type oneFile struct {
	mu      sync.Mutex
	files   map[string]string
	readErr error
	writes  int
	full    bool
}

func (o *oneFile) ReadFile(_ context.Context, name string) (io.ReadCloser, guest.File, error) {
	if o.readErr != nil {
		return nil, guest.File{}, o.readErr
	}
	s, ok := o.files[name]
	if !ok {
		return nil, guest.File{}, &guest.Error{Status: 404, Code: "no_such_file", Detail: name}
	}
	return io.NopCloser(strings.NewReader(s)), guest.File{}, nil
}

func (o *oneFile) CreateFile(ctx context.Context, name string, r io.Reader, mode fs.FileMode) (guest.File, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.files[name]; ok {
		return guest.File{}, &guest.Error{Status: 409, Code: "exists", Detail: name}
	}
	return o.WriteFile(ctx, name, r, mode)
}

func (o *oneFile) WriteFile(_ context.Context, name string, r io.Reader, mode fs.FileMode) (guest.File, error) {
	if o.full || mode != 0o600 {
		return guest.File{}, &guest.Error{Status: 507, Code: "no_space"}
	}
	data, err := io.ReadAll(r)
	o.files[name] = string(data)
	o.writes++
	return guest.File{}, err
}

func (o *oneFile) ReadDir(context.Context, string) ([]guest.File, error) { return nil, nil }
func (o *oneFile) Remove(context.Context, string) error                  { return nil }

func TestPrepare(t *testing.T) {
	t.Parallel()
	const name = "/w/.sandlot/home/.claude/.claude.json"
	sb := sandbox.Sandbox{ID: "sbx_1", Spec: sandbox.Spec{Workdir: "/w"}}
	token := "sk-sandlot-" + strings.Repeat("t", 30)
	withToken := FirstRun{Token: func(sandbox.ID) string { return token }}
	for _, tt := range []struct {
		name string
		run  FirstRun
		old  string
		want string // of the JSON, white space aside; "" = as it was
	}{
		{"fresh", FirstRun{}, "", `{"bypassPermissionsModeAccepted":true,"hasCompletedOnboarding":true,"projects":{"/w":{"hasCompletedProjectOnboarding":true,"hasTrustDialogAccepted":true}},"theme":"dark"}`},
		{"the user's own", withToken, `{"theme":"light","big":12345678901234567890,"projects":{"/w":{"hasTrustDialogAccepted":false},"/x":{}},"customApiKeyResponses":{"approved":["a"]}}`,
			`{"big":12345678901234567890,"bypassPermissionsModeAccepted":true,"customApiKeyResponses":{"approved":["a","tttttttttttttttttttt"],"rejected":[]},"hasCompletedOnboarding":true,` +
				`"projects":{"/w":{"hasCompletedProjectOnboarding":true,"hasTrustDialogAccepted":false},"/x":{}},"theme":"light"}`},
		{"odd forms", withToken, `{"projects":7,"customApiKeyResponses":{"approved":"x","rejected":0},"theme":"x","hasCompletedOnboarding":0,"bypassPermissionsModeAccepted":0}`, ""},
		{"not JSON", withToken, `{broken`, ""},
		{"null", withToken, `null`, ""},
		{"a list", withToken, `[]`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := &oneFile{files: map[string]string{}}
			if tt.old != "" {
				files.files[name] = tt.old
			}
			if err := tt.run.prepare(t.Context(), files, sb); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(strings.Fields(files.files[name]), "")
			if want := tt.want; got != want && (want != "" || files.files[name] != tt.old) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if files.files["/w/.sandlot/.gitignore"] != "*\n" {
				t.Errorf("files %v", files.files)
			}
			writes := files.writes
			if err := tt.run.prepare(t.Context(), files, sb); err != nil || files.writes != writes {
				t.Errorf("the second time: %v, %d writes more", err, files.writes-writes)
			}
		})
	}
	for _, files := range []*oneFile{
		{readErr: errors.New("no"), files: map[string]string{name: "{}"}}, {full: true, files: map[string]string{}},
		{full: true, files: map[string]string{"/w/.sandlot/.gitignore": ""}},
	} {
		if err := (FirstRun{}).prepare(t.Context(), files, sb); err == nil {
			t.Errorf("no error from %+v", files)
		}
	}
}

func TestTokensDontPileUp(t *testing.T) {
	t.Parallel()
	var state []byte
	for i := range 80 {
		fresh, err := mergeSettings(state, "/w", fmt.Sprintf("%020d", i))
		if err != nil {
			t.Fatal(err)
		}
		state = fresh
	}
	if n := strings.Count(string(state), "\"00000000"); n != maxApproved || !strings.Contains(string(state), "079\"") {
		t.Errorf("%d tokens", n)
	}
}

// cli plays the CLI for the self-test.
type cli struct {
	answers []func(argv []string, env map[string]string) trialRun // one for each start
	started []guest.Command
	failAt  string
	last    trialRun
}

func (c *cli) Start(_ context.Context, cmd guest.Command) (guest.Run, error) {
	if c.failAt == "start" {
		return guest.Run{}, errors.New("no")
	}
	c.last = c.answers[min(len(c.started), len(c.answers)-1)](cmd.Argv, cmd.Env)
	c.started = append(c.started, cmd)
	return guest.Run{}, nil
}

func (c *cli) Output(context.Context, string, int64, bool) iter.Seq2[guest.Frame, error] {
	return func(yield func(guest.Frame, error) bool) {
		if c.failAt == "output" {
			yield(guest.Frame{}, errors.New("no"))
			return
		}
		_ = yield(guest.Frame{Kind: guest.Stdout, Data: []byte(c.last.stdout)}, nil) &&
			yield(guest.Frame{Kind: guest.Stderr, Data: []byte(c.last.stderr)}, nil) && yield(guest.Frame{Kind: guest.End}, nil)
	}
}

func (c *cli) Wait(context.Context, string) (guest.Run, error) {
	if c.failAt == "wait" {
		return guest.Run{}, errors.New("no")
	}
	return c.last.run, nil
}

func TestSelfTest(t *testing.T) {
	t.Parallel()
	exit := func(code int, stdout, stderr string) trialRun {
		return trialRun{run: guest.Run{State: guest.StateExited, Code: &code}, stdout: stdout, stderr: stderr}
	}
	good := func(argv []string, _ map[string]string) trialRun {
		if slices.Contains(argv, "--version") {
			return exit(0, Version+" (Claude Code)\n", "")
		}
		return exit(1, `{"type":"system","subtype":"init"}`+"\n"+`{"type":"result","is_error":true}`, "")
	}
	segv := func([]string, map[string]string) trialRun {
		return trialRun{run: guest.Run{State: guest.StateSignaled, Signal: "SIGSEGV"}, stderr: "oh no"}
	}
	abort := func([]string, map[string]string) trialRun { return exit(134, "", "") }
	needsNoJIT := func(argv []string, env map[string]string) trialRun {
		if env["BUN_JSC_useJIT"] == "0" {
			return good(argv, env)
		}
		return segv(argv, env)
	}
	type answers = []func([]string, map[string]string) trialRun
	for _, tt := range []struct {
		name   string
		cli    cli
		env    string // of BUN_JSC_useJIT
		starts int
		code   string
		text   string
	}{
		{"well", cli{answers: answers{good}}, "", 2, "", ""},
		{"crashes once", cli{answers: answers{segv, good}}, "", 3, "", ""},
		{"crashes in the turn once", cli{answers: answers{good, abort, good}}, "", 4, "", ""},
		{"crashes with JIT", cli{answers: answers{needsNoJIT}}, "0", 4, "", ""},
		{"crashes always", cli{answers: answers{segv}}, "", 3, "claude_crashes", "SIGSEGV"},
		{"another version", cli{answers: answers{func([]string, map[string]string) trialRun { return exit(0, "1.0.0 (Claude Code)", "") }}}, "", 1, "claude_unusable", "1.0.0"},
		{"no such program", cli{answers: answers{func([]string, map[string]string) trialRun { return exit(127, "", "") }}}, "", 1, "claude_unusable", "code 127 and said: nothing"},
		{"no turn", cli{answers: answers{good, func([]string, map[string]string) trialRun { return exit(1, "", "unknown option") }}}, "", 2, "claude_unusable", "unknown option"},
		{"no start", cli{failAt: "start"}, "", 0, "-", ""},
		{"no output", cli{failAt: "output", answers: answers{good}}, "", 1, "-", ""},
		{"no wait", cli{failAt: "wait", answers: answers{good}}, "", 1, "-", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			env, err := selfTest(t.Context(), &tt.cli)
			if len(tt.cli.started) != tt.starts || env["BUN_JSC_useJIT"] != tt.env || (err != nil) != (tt.code != "") {
				t.Fatalf("env %v, error %v, %d starts", env, err, len(tt.cli.started))
			}
			if p := (*sandbox.Problem)(nil); tt.code != "" && tt.code != "-" && (!errors.As(err, &p) || p.Code != tt.code || !strings.Contains(p.Detail, tt.text)) {
				t.Errorf("error %v", err)
			}
		})
	}
}
