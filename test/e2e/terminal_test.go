package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// tty is a program on a terminal of this machine, which a person would sit at.
type tty struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	ended  chan struct{}

	mu   sync.Mutex
	news chan struct{}
	out  strings.Builder
}

// atTerminal runs the binary on a terminal.
func atTerminal(t *testing.T, s *server, args ...string) *tty {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	u := &tty{t: t, cmd: exec.CommandContext(within(t), path, args...), ended: make(chan struct{}), news: make(chan struct{})}
	u.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TERM=xterm-256color", "SANDLOT_DATA=" + s.data}
	if u.master, err = pty.StartWithSize(u.cmd, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(u.ended)
		buf := make([]byte, 4096)
		for {
			n, err := u.master.Read(buf)
			u.mu.Lock()
			u.out.Write(buf[:n])
			close(u.news)
			u.news = make(chan struct{})
			u.mu.Unlock()
			if err != nil {
				return // the last one has closed it
			}
		}
	}()
	t.Cleanup(func() {
		_ = u.cmd.Process.Kill() // it has ended, mostly
		<-u.ended
		_ = u.master.Close()
	})
	return u
}

func (u *tty) types(text string) {
	u.t.Helper()
	if _, err := io.WriteString(u.master, text); err != nil {
		u.t.Fatal(err)
	}
}

// shows waits until the terminal has shown what matches, and returns the last group, or all of it.
func (u *tty) shows(pattern string) string {
	u.t.Helper()
	return u.until(pattern, func(out string) string { return out }, nil)
}

var (
	column   = regexp.MustCompile(`\x1b\[\d*[CG]`)
	controls = regexp.MustCompile(`\x1b(\[[^a-zA-Z]*[a-zA-Z]|\][^\x07]*\x07|.)`)
)

// draws is shows for the words on a screen that a program draws.
func (u *tty) draws(pattern string) {
	u.t.Helper()
	u.until(pattern, func(out string) string {
		return strings.ReplaceAll(controls.ReplaceAllString(column.ReplaceAllString(out, " "), ""), "  ", " ")
	}, nil)
}

// until waits until what read makes of the output matches. Every second it does again, if there is that.
func (u *tty) until(pattern string, read func(string) string, again func()) string {
	u.t.Helper()
	re := regexp.MustCompile(pattern)
	late := time.After(patience)
	for {
		u.mu.Lock()
		out, news := u.out.String(), u.news
		u.mu.Unlock()
		if m := re.FindStringSubmatch(read(out)); m != nil {
			return m[len(m)-1]
		}
		select {
		case <-news:
		case <-time.After(time.Second):
			if again != nil {
				again()
			}
		case <-u.ended:
			u.t.Fatalf("it ended before it showed %s: %q", pattern, out)
		case <-late:
			u.t.Fatalf("it doesn't show %s: %q", pattern, out)
		}
	}
}

// exits waits for its end and returns the exit code.
func (u *tty) exits() int {
	u.t.Helper()
	<-u.ended
	err := u.cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	if err != nil {
		u.t.Fatal(err)
	}
	return 0
}

// settings is what stty says of our side of a terminal.
func (u *tty) settings() string {
	u.t.Helper()
	cmd := exec.CommandContext(within(u.t), "stty", "-a")
	cmd.Stdin = u.master
	out, err := cmd.CombinedOutput()
	if err != nil {
		u.t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestShell sits at a real terminal: raw mode, size, signals, exit code, leaving and coming back.
func TestShell(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{Name: "otter"})
	u := atTerminal(t, s, "shell", "otter")
	u.shows(`\$ $`)
	if !strings.Contains(u.settings(), "-icanon") {
		t.Error("the terminal is not raw")
	}
	u.types("stty size; id -un; echo $TERM\r")
	u.shows(`30 100\r\nagent\r\nxterm-256color`)
	if err := pty.Setsize(u.master, &pty.Winsize{Rows: 20, Cols: 70}); err != nil {
		t.Fatal(err)
	}
	u.types("while [ \"$(stty size)\" != '20 70' ]; do sleep 0.1; done; echo re''sized\r")
	u.shows("resized")
	u.types("echo wait''ing; sleep 1000\r")
	u.shows("waiting")
	u.until(`\rwaiting\r\n[\s\S]*\$ $`, func(out string) string { return out }, func() { u.types("\x03") }) // one in the instant between two programs is for the shell
	u.types("echo code $?\r")
	u.shows("code 130")
	if out, err := exec.LookPath("vim"); err == nil && out == "/usr/bin/vim" {
		u.types("vim -u NONE note\r")
		u.shows("\x1b\\[\\?1049h[\\s\\S]*~")
		u.types("iwritten in vim\x1b:wq\r")
		u.shows("\x1b\\[\\?1049l")
		u.types("cat note\r")
		u.shows(`\rwritten in vim\r\n`)
	}

	// Leave in the middle of something, and come back.
	u.types("sleep 1; echo after''wards\r")
	u.types("\r~.")
	run := u.shows(`sandlot shell --run (run_\w+)`)
	if code := u.exits(); code != 0 {
		t.Errorf("leaving ends with %d", code)
	}
	if set := u.settings(); strings.Contains(set, "-icanon") || strings.Contains(set, "-echo ") {
		t.Errorf("the terminal was left as %s", set)
	}
	u = atTerminal(t, s, "shell", "--run", run)
	u.shows("afterwards")
	u.types("~~;exit 7\r")
	if code := u.exits(); code != 7 {
		t.Errorf("it ended with %d: %q", code, u.out.String())
	}
	if got, err := s.Run(within(t), sb.ID, run); err != nil || got.Kind != "terminal" || got.ExitCode == nil || *got.ExitCode != 7 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestCommandsOfTheMachine uses the plain commands, by the data directory alone.
func TestCommandsOfTheMachine(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	env := []string{"SANDLOT_DATA=" + s.data}
	id, err := sandlot(t, env, "create", "--name", "heron", "--env", "GREETING=hello")
	if err != nil || !strings.HasPrefix(id, "sbx_") {
		t.Fatalf("%v: %s", err, id)
	}
	if out, err := sandlot(t, env, "ls"); err != nil || !strings.Contains(out, "heron") || !strings.Contains(out, "running") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := sandlot(t, []string{"SANDLOT_URL=" + s.url, "SANDLOT_API_KEY=" + adminKey}, "ls", "--json"); err != nil || !strings.Contains(out, `"name": "heron"`) {
		t.Errorf("%v: %s", err, out)
	}
	if fi, err := os.Stat(filepath.Join(s.data, "cli.key")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key of the commands: %v, %v", fi, err)
	}
	for name, c := range map[string]struct {
		args        []string
		stdin       string
		out, errOut string
		code        int
	}{
		"exec":              {[]string{"exec", "heron", "--", "sh", "-c", "echo $GREETING; echo oops >&2; exit 3"}, "", "hello\n", "oops\n", 3},
		"exec reads":        {[]string{"exec", "heron", "--", "tr", "a-z", "A-Z"}, "some text", "SOME TEXT", "", 0},
		"exec of a signal":  {[]string{"exec", "heron", "--", "sh", "-c", "kill -TERM $$"}, "", "", "", 143},
		"exec as root":      {[]string{"exec", "-u", "root", "-w", "/", "heron", "--", "sh", "-c", "id -un; pwd"}, "", "root\n/\n", "", 0},
		"a shell in a pipe": {[]string{"shell", "heron"}, "echo one\nexit 4\n", "one\n", "", 4},
		"no such sandbox":   {[]string{"shell", "nobody"}, "", "", "sandlot: there is no sandbox \"nobody\"; `sandlot ls` lists them\n", 1},
		"no such run":       {[]string{"shell", "--run", "run_nope"}, "", "", "sandlot: there is no run run_nope in any of your sandboxes\n", 1},
		"no sandbox":        {[]string{"shell"}, "", "", "sandlot: say which sandbox; `sandlot ls` lists them\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := binary()
			if err != nil {
				t.Fatal(err)
			}
			var out, errOut strings.Builder
			cmd := exec.CommandContext(within(t), path, c.args...)
			cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.stdin), &out, &errOut
			err = cmd.Run()
			if cmd.ProcessState.ExitCode() != c.code || out.String() != c.out || errOut.String() != c.errOut {
				t.Errorf("%v; %q, %q", err, out.String(), errOut.String())
			}
		})
	}
	if out, err := sandlot(t, env, "exec", "heron", "--json", "--", "echo", "x"); err != nil || !strings.Contains(out, `"stdout": "x\n"`) {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := sandlot(t, env, "rm", "heron"); err != nil || out != id {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := sandlot(t, env, "ls"); err != nil || strings.Contains(out, "heron") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestShellOverAKilledServer kills the server while somebody types. The program goes on, and each byte comes once, both ways.
func TestShellOverAKilledServer(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	o := options{args: []string{"--demo-model", "--listen=127.0.0.1:" + port}}
	s := start(t, o)
	sb := create(t, s, api.CreateSandbox{})
	term, err := s.Terminal(t.Context(), sb.ID, client.TerminalOptions{Argv: []string{"sh", "-c", "stty raw -echo; echo ready; cat"}})
	if err != nil {
		t.Fatal(err)
	}
	const lines = 2000
	want := "ready\n"
	for i := range lines {
		want += fmt.Sprintf("line %d\n", i)
	}
	began, typed, killed := make(chan struct{}), make(chan error, 1), make(chan struct{})
	go func() {
		<-began
		for i := range lines {
			if i == lines/2 {
				close(killed)
			}
			if _, err := fmt.Fprintf(term, "line %d\n", i); err != nil {
				typed <- err
				return
			}
		}
		typed <- nil
	}()
	next := make(chan *server, 1)
	go func() {
		<-killed
		s.kill(t)
		o.data = s.data
		next <- start(t, o)
	}()
	got, cuts, once := "", 0, sync.OnceFunc(func() { close(began) })
	for e, err := range term.Events() {
		if err != nil {
			t.Fatal(err)
		}
		got += string(e.Data)
		if strings.Contains(got, "ready\n") {
			once()
		}
		if e.Cut != nil {
			cuts++
		}
		if len(got) >= len(want) {
			break
		}
	}
	if err := <-typed; err != nil {
		t.Error(err)
	}
	if got != want {
		t.Errorf("%d bytes came of %d", len(got), len(want))
	}
	if cuts == 0 {
		t.Error("the connection was never cut")
	}
	if _, err := (<-next).Terminate(within(t), sb.ID); err != nil {
		t.Error(err)
	}
}

// freePort is a port that nobody listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err = errors.Join(err, ln.Close()); err != nil {
		t.Fatal(err)
	}
	return port
}

// TestRequirement47PTY is requirement 4.7: the CLI on a terminal. Its own screen comes up without a newcomer's questions, takes a prompt,
// asks for permission, and goes on when that is given.
func TestRequirement47PTY(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	u := atTerminal(t, s, "shell", sb.ID, "--", "claude")
	u.draws("Claude Code")
	u.draws("shortcuts")
	u.mu.Lock()
	first := column.ReplaceAllString(u.out.String(), " ")
	u.mu.Unlock()
	for _, question := range []string{"Choose the text style", "trust the files", "trust this folder", "Do you want to use this API key", "missing or broken", "Select login method"} {
		if strings.Contains(first, question) {
			t.Errorf("it begins with %q", question)
		}
	}
	u.types("Write a small script and run it.")
	u.draws(`run it\.`)
	u.types("\r")
	u.draws("Do you want to create")
	u.types("\r")
	u.draws("requires approval")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if body, err := s.ReadFile(ctx, sb.ID, "/workspace/hello.sh"); err != nil {
		t.Errorf("what Claude was allowed to write is not there: %v", err)
	} else {
		_ = body.Close()
	}
	if run, err := s.Runs(within(t), sb.ID); err != nil || len(run.Runs) != 1 || run.Runs[0].State != "running" {
		t.Errorf("%+v, %v", run, err)
	} else if ended, err := s.EndRun(within(t), sb.ID, run.Runs[0].ID); err != nil || ended.State == "running" {
		t.Errorf("%+v, %v", ended, err)
	}
	u.exits() // with what, is the CLI's own affair
}
