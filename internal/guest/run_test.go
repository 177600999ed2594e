package guest_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func TestStreamsAreSeparate(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	res := run(t, c, shell("echo out; echo err >&2; exit 3"))
	if res.stdout.String() != "out\n" || res.stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", res.stdout.String(), res.stderr.String())
	}
	wantExit(t, res.end, 3)
	r, err := c.Wait(t.Context(), res.end.ID)
	if err != nil {
		t.Fatal(err)
	}
	wantExit(t, r, 3)
	if r.First != 0 || r.Next != 8 || r.EndedAt.Before(r.StartedAt) || r.PID == 0 || r.Argv[0] != "sh" {
		t.Errorf("%+v", r)
	}
	if again, err := c.Run(t.Context(), r.ID); err != nil || again.State != r.State {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestEndIsTold(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	for script, want := range map[string]guest.Run{
		"exit 0":         {State: guest.StateExited, Code: new(0)},
		"exit 255":       {State: guest.StateExited, Code: new(255)},
		"kill -TERM $$":  {State: guest.StateSignaled, Signal: "SIGTERM"},
		"kill -KILL $$":  {State: guest.StateSignaled, Signal: "SIGKILL"},
		"kill -RTMIN $$": {State: guest.StateSignaled, Signal: "SIG34"},
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			cmd := shell(script)
			cmd.Argv[0] = "bash"
			got := run(t, c, cmd).end
			if got.State != want.State || got.Signal != want.Signal || (got.Code == nil) != (want.Code == nil) {
				t.Fatalf("%+v", got)
			}
			if want.Code != nil && *got.Code != *want.Code {
				t.Errorf("code %d", *got.Code)
			}
		})
	}
}

func TestStdin(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	t.Run("given at the start", func(t *testing.T) {
		t.Parallel()
		cmd := shell("cat; echo end")
		cmd.Stdin = []byte("hello ")
		if got := run(t, c, cmd).stdout.String(); got != "hello end\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("none is an end at once", func(t *testing.T) {
		t.Parallel()
		wantExit(t, run(t, c, guest.Command{ID: newID(), Argv: []string{"cat"}}).end, 0)
	})
	t.Run("more of it later", func(t *testing.T) {
		t.Parallel()
		big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
		cmd := shell("sha256sum")
		cmd.Stdin, cmd.Open = []byte("first "), true
		start(t, c, cmd)
		if err := c.WriteStdin(t.Context(), cmd.ID, bytes.NewReader(big), false); err != nil {
			t.Fatal(err)
		}
		if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("last"), true); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%x  -\n", sha256.Sum256(slices.Concat([]byte("first "), big, []byte("last"))))
		if got := follow(t, c, cmd.ID, 0).stdout.String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		wantRefused(t, c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("x"), false), 409, "run_ended", "")
	})
	t.Run("closed twice", func(t *testing.T) {
		t.Parallel()
		cmd := shell("cat; sleep 60")
		cmd.Open = true
		start(t, c, cmd)
		for range 2 {
			if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader(""), true); err != nil {
				t.Error(err)
			}
		}
		wantRefused(t, c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("x"), true), 409, "stdin_closed", "")
		kill(t, c, cmd.ID)
	})
	t.Run("closed after the end", func(t *testing.T) {
		t.Parallel()
		cmd := shell("read x")
		cmd.Open = true
		start(t, c, cmd)
		if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("it ends with this\n"), true); err != nil {
			t.Error(err)
		}
		wantExit(t, follow(t, c, cmd.ID, 0).end, 0)
		if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader(""), true); err != nil {
			t.Error(err)
		}
	})
	t.Run("closed by the process", func(t *testing.T) {
		t.Parallel()
		cmd := shell("exec <&-; echo closed; sleep 60")
		cmd.Open = true
		start(t, c, cmd)
		waitFor(t, c, cmd.ID, "closed")
		var err error
		for err == nil { // for a moment the guest itself still has the other end
			err = c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("x"), false)
		}
		wantRefused(t, err, 409, "stdin_closed", "")
		kill(t, c, cmd.ID)
	})
	t.Run("a process that doesn't read", func(t *testing.T) {
		t.Parallel()
		cmd := shell("sleep 60")
		cmd.Open = true
		start(t, c, cmd)
		wrote := make(chan error, 1)
		go func() { wrote <- c.WriteStdin(t.Context(), cmd.ID, bytes.NewReader(make([]byte, 200_000)), false) }()
		kill(t, c, cmd.ID)
		var e *guest.Error // it may see the closed pipe before the end
		if err := <-wrote; !errors.As(err, &e) || e.Code != "run_ended" && e.Code != "stdin_closed" {
			t.Error(err)
		}
	})
	t.Run("a source that fails", func(t *testing.T) {
		t.Parallel()
		cmd := shell("cat")
		cmd.Open = true
		start(t, c, cmd)
		broken := errors.New("broken")
		if err := c.WriteStdin(t.Context(), cmd.ID, errReader{broken}, true); !errors.Is(err, broken) {
			t.Error(err)
		}
		kill(t, c, cmd.ID)
	})
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func kill(t *testing.T, c *guest.Client, id string) {
	t.Helper()
	if err := c.Signal(t.Context(), id, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Wait(t.Context(), id); err != nil || r.Signal != "SIGKILL" || r.State != guest.StateSignaled {
		t.Fatalf("%+v, %v", r, err)
	}
}

// waitFor reads a run's output until text has appeared.
func waitFor(t *testing.T, c *guest.Client, id, text string) string {
	t.Helper()
	var seen []byte
	for f, err := range c.Output(t.Context(), id, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == guest.End {
			t.Fatalf("ended without %q: %q", text, seen)
		}
		seen = append(seen, f.Data...)
		if bytes.Contains(seen, []byte(text)) {
			break
		}
	}
	return string(seen)
}

// wantRefused checks that err is the guest's no, with these words.
func wantRefused(t *testing.T, err error, status int, code, field string) {
	t.Helper()
	var e *guest.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v; want a refusal with %s", err, code)
	}
	if e.Status != status || e.Code != code || e.Field != field || e.Detail == "" || !strings.Contains(e.Error(), code) {
		t.Errorf("%+v; want %d %s at %q", *e, status, code, field)
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newClient(t, func(cfg *guest.Config) { cfg.Workdir = dir })
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("plain", "text", 0o644)
	write("noformat", "just text", 0o755)
	write("nointerp", "#!/does/not/exist\n", 0o755)
	ok := guest.Command{Argv: []string{"true"}}
	for name, tc := range map[string]struct {
		change      func(*guest.Command)
		code, field string
	}{
		"no argv":           {func(c *guest.Command) { c.Argv = nil }, "bad_argv", "argv"},
		"empty program":     {func(c *guest.Command) { c.Argv = []string{""} }, "bad_argv", "argv"},
		"NUL in argv":       {func(c *guest.Command) { c.Argv = []string{"echo", "a\x00b"} }, "bad_argv", "argv"},
		"too long":          {func(c *guest.Command) { c.Argv = []string{"echo", strings.Repeat("x", 1<<20)} }, "bad_argv", "argv"},
		"unknown program":   {func(c *guest.Command) { c.Argv = []string{"no-such-program"} }, "no_such_program", "argv"},
		"unknown path":      {func(c *guest.Command) { c.Argv = []string{"./no-such-program"} }, "no_such_program", "argv"},
		"file as directory": {func(c *guest.Command) { c.Argv = []string{"plain/x"} }, "no_such_program", "argv"},
		"loop of a name":    {func(c *guest.Command) { c.Argv = []string{"/" + strings.Repeat("x", 5000)} }, "no_such_program", "argv"},
		"not in its PATH":   {func(c *guest.Command) { c.Env = map[string]string{"PATH": "/nowhere"} }, "no_such_program", "argv"},
		"no interpreter":    {func(c *guest.Command) { c.Argv = []string{"./nointerp"} }, "no_such_program", "argv"},
		"not executable":    {func(c *guest.Command) { c.Argv = []string{"./plain"} }, "not_executable", "argv"},
		"not executable in PATH": {func(c *guest.Command) {
			c.Argv, c.Env = []string{"plain"}, map[string]string{"PATH": "."}
		}, "not_executable", "argv"},
		"no format":          {func(c *guest.Command) { c.Argv = []string{"./noformat"} }, "not_executable", "argv"},
		"a directory":        {func(c *guest.Command) { c.Argv = []string{"/usr"} }, "not_executable", "argv"},
		"no directory":       {func(c *guest.Command) { c.Dir = "/no/such/dir" }, "bad_dir", "dir"},
		"dir is a file":      {func(c *guest.Command) { c.Dir = "plain" }, "bad_dir", "dir"},
		"dir below a file":   {func(c *guest.Command) { c.Dir = "plain/x" }, "bad_dir", "dir"},
		"NUL in dir":         {func(c *guest.Command) { c.Dir = "/\x00" }, "bad_dir", "dir"},
		"unknown user":       {func(c *guest.Command) { c.User = "no-such-user" }, "no_such_user", "user"},
		"unknown stdio":      {func(c *guest.Command) { c.Stdio = "socket" }, "bad_stdio", "stdio"},
		"negative timeout":   {func(c *guest.Command) { c.Timeout = -1 }, "bad_timeout", "timeout"},
		"empty variable":     {func(c *guest.Command) { c.Env = map[string]string{"": "x"} }, "bad_env", "env"},
		"= in a variable":    {func(c *guest.Command) { c.Env = map[string]string{"a=b": "x"} }, "bad_env", "env"},
		"NUL in a variable":  {func(c *guest.Command) { c.Env = map[string]string{"a": "\x00"} }, "bad_env", "env"},
		"no ID":              {func(c *guest.Command) { c.ID = "" }, "bad_id", "id"},
		"an ID with a slash": {func(c *guest.Command) { c.ID = "../x" }, "bad_id", "id"},
		"an ID too long":     {func(c *guest.Command) { c.ID = strings.Repeat("x", 65) }, "bad_id", "id"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := ok
			cmd.ID = newID()
			tc.change(&cmd)
			for range 2 { // and the second try says the same
				_, err := c.Start(t.Context(), cmd)
				wantRefused(t, err, 400, tc.code, tc.field)
			}
			if tc.field != "id" {
				_, err := c.Run(t.Context(), cmd.ID)
				wantRefused(t, err, 404, "no_such_run", "")
			}
			if tc.field != "id" { // a refused start doesn't use up the ID
				again := ok
				again.ID = cmd.ID
				wantExit(t, run(t, c, again).end, 0)
			}
		})
	}
}

func TestUnknownRun(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	_, err := c.Wait(t.Context(), "nope")
	wantRefused(t, err, 404, "no_such_run", "")
	wantRefused(t, c.Signal(t.Context(), "nope", "SIGINT"), 404, "no_such_run", "")
	wantRefused(t, c.Resize(t.Context(), "nope", guest.Size{Rows: 1, Cols: 1}), 404, "no_such_run", "")
	wantRefused(t, c.WriteStdin(t.Context(), "nope", strings.NewReader("x"), false), 404, "no_such_run", "")
	for _, err := range c.Output(t.Context(), "nope", 0, true) {
		wantRefused(t, err, 404, "no_such_run", "")
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("SANDLOT_TEST_SECRET", "of the guest") // so this test can't be parallel
	c := dial(t, newServer(t, nil), nil)
	if err := c.Setup(t.Context(), guest.Setup{Env: map[string]string{"PATH": os.Getenv("PATH"), "A": "setup", "B": "setup"}}); err != nil {
		t.Fatal(err)
	}
	cmd := guest.Command{ID: newID(), Argv: []string{"env"}}
	cmd.Env = map[string]string{"B": "command", "C": "a\nb"}
	got := run(t, c, cmd).stdout.String()
	user := guest.UserAgent
	if os.Getuid() == 0 {
		user = "root"
	}
	want := map[string]string{"PATH": os.Getenv("PATH"), "A": "setup", "B": "command", "C": "a\nb", "USER": user, "LOGNAME": user}
	for k, v := range want {
		if !strings.Contains(got, k+"="+v+"\n") {
			t.Errorf("no %s=%s in:\n%s", k, v, got)
		}
	}
	if strings.Contains(got, "SECRET") {
		t.Errorf("the guest's environment leaks:\n%s", got)
	}
	// Setup again replaces.
	if err := c.Setup(t.Context(), guest.Setup{Env: map[string]string{"Z": "1"}}); err != nil {
		t.Fatal(err)
	}
	cmd = guest.Command{ID: newID(), Argv: []string{"env"}, Env: map[string]string{"USER": "x", "LOGNAME": "x"}} // found without PATH
	if got := run(t, c, cmd).stdout.String(); got != "LOGNAME=x\nUSER=x\nZ=1\n" {
		t.Errorf("%q", got)
	}
	err := c.Setup(t.Context(), guest.Setup{Env: map[string]string{"a=b": ""}})
	wantRefused(t, err, 400, "bad_env", "env")
}

func TestDirectoryAndRelativePrograms(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "sub", "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "bin", "where"), []byte("#!/bin/sh\npwd\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, func(cfg *guest.Config) { cfg.Workdir = dir })
	for _, tc := range []struct {
		dir, path string
		argv      string
	}{
		{"sub", "", "bin/where"},
		{"sub", "", "./bin/where"},
		{"", "", "sub/bin/where"},
		{dir + "/sub", "", dir + "/sub/bin/where"},
		{"sub", "bin", "where"},
	} {
		cmd := guest.Command{ID: newID(), Argv: []string{tc.argv}, Dir: tc.dir}
		if tc.path != "" {
			cmd.Env = map[string]string{"PATH": tc.path + ":" + os.Getenv("PATH")}
		}
		want := dir + "\n"
		if tc.dir != "" {
			want = dir + "/sub\n"
		}
		if got := run(t, c, cmd).stdout.String(); got != want {
			t.Errorf("%+v: in %q, want %q", tc, got, want)
		}
	}
}

func TestStartIsIdempotent(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	cmd := shell("echo x >>" + dir + "/count; cat")
	cmd.Open = true
	var wg sync.WaitGroup
	pids := make([]int, 20)
	for i := range pids {
		wg.Go(func() {
			r, err := c.Start(t.Context(), cmd)
			if err != nil {
				t.Error(err)
			}
			pids[i] = r.PID
		})
	}
	wg.Wait()
	if slices.Min(pids) != slices.Max(pids) || pids[0] == 0 {
		t.Errorf("pids %v", pids)
	}
	if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("done"), true); err != nil {
		t.Fatal(err)
	}
	wantExit(t, follow(t, c, cmd.ID, 0).end, 0)
	cmd.Argv = []string{"something else"}
	if r := start(t, c, cmd); r.PID != pids[0] || r.State != guest.StateExited {
		t.Errorf("%+v", r)
	}
	if b, err := os.ReadFile(dir + "/count"); err != nil || string(b) != "x\n" {
		t.Errorf("it ran %q, %v", b, err)
	}
	runs, err := c.Runs(t.Context())
	if err != nil || len(runs) != 1 || runs[0].ID != cmd.ID {
		t.Errorf("%+v, %v", runs, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			res := run(t, c, shell(fmt.Sprintf("echo %d; exit %d", i, i)))
			if res.stdout.String() != fmt.Sprintf("%d\n", i) || res.end.Code == nil || *res.end.Code != i {
				t.Errorf("%d: %q, %+v", i, res.stdout.String(), res.end)
			}
		})
	}
	wg.Wait()
	if runs, err := c.Runs(t.Context()); err != nil || len(runs) != 50 {
		t.Errorf("%d runs, %v", len(runs), err)
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	t.Run("reach the group", func(t *testing.T) {
		t.Parallel()
		cmd := shell(`trap 'echo parent; wait; exit 7' USR1
			sh -c 'trap "echo child; exit" USR1; echo ready; while :; do sleep 0.05; done' &
			while :; do sleep 0.05; done`)
		start(t, c, cmd)
		waitFor(t, c, cmd.ID, "ready")
		if err := c.Signal(t.Context(), cmd.ID, "usr1"); err != nil {
			t.Fatal(err)
		}
		res := follow(t, c, cmd.ID, 0)
		wantExit(t, res.end, 7)
		if got := res.stdout.String(); !strings.Contains(got, "parent\n") || !strings.Contains(got, "child\n") {
			t.Errorf("%q", got)
		}
		wantRefused(t, c.Signal(t.Context(), cmd.ID, "SIGINT"), 409, "run_ended", "")
		wantRefused(t, c.Signal(t.Context(), cmd.ID, "SIGKILL"), 409, "run_ended", "")
	})
	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		cmd := shell("sleep 60")
		start(t, c, cmd)
		for _, name := range []string{"", "9", "SIGNOPE", "SIG"} {
			wantRefused(t, c.Signal(t.Context(), cmd.ID, name), 400, "bad_signal", "signal")
		}
		kill(t, c, cmd.ID)
	})
	t.Run("KILL takes the tree", func(t *testing.T) {
		t.Parallel()
		cmd := shell(forest)
		start(t, c, cmd)
		pids := forestOf(t, c, cmd.ID)
		kill(t, c, cmd.ID)
		wantGone(t, pids)
	})
}

// enter types text into a run's terminal.
func enter(t *testing.T, c *guest.Client, id, text string) {
	t.Helper()
	if err := c.WriteStdin(t.Context(), id, strings.NewReader(text), false); err != nil {
		t.Fatal(err)
	}
}

// forest starts processes that don't want to die: in the same group, in a session of their own, and ones that ignore TERM.
const forest = `trap '' TERM
sleep 301 & a=$!
setsid sh -c 'trap "" TERM; echo pid $$; sleep 302' &
(sh -c 'trap "" TERM; echo pid $$; sleep 303 & echo pid $!; wait') &
echo pid $a; echo pid $$
wait; wait; wait`

// forestOf returns the processes of a forest, once all are there.
func forestOf(t *testing.T, c *guest.Client, id string) []int {
	t.Helper()
	var out strings.Builder
	for f, err := range c.Output(t.Context(), id, 0, true) {
		if err != nil || f.Kind == guest.End {
			t.Fatal("it ended too soon", err)
		}
		out.Write(f.Data)
		if strings.Count(out.String(), "pid ") == 5 && strings.HasSuffix(out.String(), "\n") {
			break
		}
	}
	pids := make(map[int]bool)
	for line := range strings.Lines(out.String()) {
		var pid int
		if _, err := fmt.Sscanf(line, "pid %d", &pid); err != nil {
			t.Fatal(line, err)
		}
		pids[pid] = true
	}
	return slices.Collect(maps.Keys(pids))
}

// wantGone checks that the processes have ended, be it that nobody has waited for them.
func wantGone(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !bytes.Contains(b, []byte(") Z ")) {
			t.Errorf("process %d is still there: %s", pid, b)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(cfg *guest.Config) { cfg.Grace = 100 * time.Millisecond })
	t.Run("kills the tree", func(t *testing.T) {
		t.Parallel()
		cmd := shell(forest)
		cmd.Timeout = time.Second
		start(t, c, cmd)
		pids := forestOf(t, c, cmd.ID)
		res := follow(t, c, cmd.ID, 0)
		if res.end.State != guest.StateTimeout || res.end.Signal != "SIGKILL" || res.end.Code != nil {
			t.Errorf("%+v", res.end)
		}
		wantGone(t, pids)
	})
	t.Run("lets it say good-bye", func(t *testing.T) {
		t.Parallel()
		cmd := shell("trap 'echo bye; exit 5' TERM; while :; do sleep 0.02; done")
		cmd.Timeout = 300 * time.Millisecond
		res := run(t, c, cmd)
		if res.end.State != guest.StateTimeout || res.end.Code == nil || *res.end.Code != 5 || res.stdout.String() != "bye\n" {
			t.Errorf("%+v: %q", res.end, res.stdout.String())
		}
	})
	t.Run("is no matter for what ends in time", func(t *testing.T) {
		t.Parallel()
		cmd := shell("exit 1")
		cmd.Timeout = time.Minute
		wantExit(t, run(t, c, cmd).end, 1)
	})
}
