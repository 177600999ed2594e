package guest_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

const agent = 12345

// helperDir holds the built program for as long as the tests run.
var helperDir string

// buildHelper builds cmd/sandlot-guest once.
var buildHelper = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sandlot-guest")
	if err != nil {
		return "", err
	}
	helperDir = dir
	if err := os.Chmod(dir, 0o755); err != nil { // the agent runs it too, in a test
		return "", err
	}
	bin := filepath.Join(dir, "sandlot-guest")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", bin, "github.com/sandlot-dev/sandlot/cmd/sandlot-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// helper is the real program, running.
type helper struct {
	cmd     *exec.Cmd
	dir     string
	client  *guest.Client
	logged  chan struct{} // closed when its log has ended
	waited  chan struct{}
	waitErr error
}

// startHelper runs the program with args after the directories, and connects.
func startHelper(t *testing.T, attr *syscall.SysProcAttr, wrap string, args ...string) *helper {
	t.Helper()
	bin, err := buildHelper()
	if err != nil {
		t.Fatal(err)
	}
	h := &helper{dir: t.TempDir(), logged: make(chan struct{}), waited: make(chan struct{})}
	if err := os.Chmod(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(h.dir), 0o755); err != nil { // so that the agent gets at its workdir
		t.Fatal(err)
	}
	socket := h.path("socket/" + guest.SocketName)
	if err := os.Mkdir(h.path("socket"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, []byte("stale"), 0o666); err != nil {
		t.Fatal(err)
	}
	argv := append([]string{bin, "--socket-dir", h.path("socket"), "--state-dir", h.path("state"), "--workdir", h.path("work"),
		"--gateway", "127.0.0.1:0"}, args...)
	if wrap != "" {
		argv = append([]string{"/bin/sh", "-c", wrap, "sh"}, argv...)
	}
	h.cmd = exec.Command(argv[0], argv[1:]...)
	h.cmd.SysProcAttr = attr
	h.cmd.Env = []string{"SANDLOT_TEST_SECRET=of-the-guest", "PATH=" + os.Getenv("PATH")}
	log, err := h.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
			t.Skip("no namespaces here: ", err)
		}
		t.Fatal(err)
	}
	listening := make(chan struct{})
	go func() {
		defer close(h.logged)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			_, _ = fmt.Fprintln(t.Output(), "helper:", lines.Text())
			if strings.Contains(lines.Text(), "msg=listening") {
				close(listening)
			}
		}
	}()
	go func() {
		<-h.logged
		h.waitErr = h.cmd.Wait()
		close(h.waited)
	}()
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill() // it may have ended
		<-h.waited
	})
	select {
	case <-listening:
	case <-h.waited:
		t.Fatalf("the helper ended: %v", h.waitErr)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if h.client, err = guest.NewClient(conn, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.client.Close() })
	setUp(t, h.client)
	return h
}

func (h *helper) path(name string) string { return filepath.Join(h.dir, name) }

// end sends TERM and checks that the program ends as it should.
func (h *helper) end(t *testing.T) {
	t.Helper()
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-h.waited
	if h.waitErr != nil {
		t.Errorf("after TERM: %v", h.waitErr)
	}
}

// settings are the ways in which the helper runs.
var settings = map[string]struct {
	root bool
	attr func() *syscall.SysProcAttr
	wrap string
	args []string
}{
	"as a child": {args: []string{"--agent", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())}},
	"as PID 1": {
		root: true,
		attr: func() *syscall.SysProcAttr {
			return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
		},
		wrap: `mount --make-rprivate / && mount -t proc proc /proc && exec "$@"`,
		args: []string{"--agent", fmt.Sprintf("%d:%d", agent, agent)},
	},
	"as PID 1 with one uid": {
		attr: func() *syscall.SysProcAttr {
			return &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			}
		},
		wrap: `mount -t proc proc /proc && exec "$@"`,
		args: []string{"--agent", "0:0"},
	},
}

func forEachSetting(t *testing.T, test func(t *testing.T, name string, h *helper)) {
	for name, s := range settings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if s.root && os.Getuid() != 0 {
				t.Skip("only root may")
			}
			var attr *syscall.SysProcAttr
			if s.attr != nil {
				attr = s.attr()
			}
			test(t, name, startHelper(t, attr, s.wrap, append([]string{"--grace", "300ms"}, s.args...)...))
		})
	}
}

// Orphans are reaped, and nobody's exit status is lost to that.
func TestHelperReaps(t *testing.T) {
	t.Parallel()
	forEachSetting(t, func(t *testing.T, name string, h *helper) {
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				res := run(t, h.client, shell(fmt.Sprintf("(setsid sh -c 'exit 1' >/dev/null 2>&1 &); (sleep 0.01 >/dev/null 2>&1 &); exit %d", i)))
				if res.end.Code == nil || *res.end.Code != i {
					t.Errorf("%d: %+v", i, res.end)
				}
			})
		}
		wg.Wait()
		// The dead have $PPID, the guest, as their parent until it has waited for them.
		res := run(t, h.client, shell(`for i in $(seq 200); do
			n=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ") Z $PPID "); [ "$n" = 0 ] && exit 0; sleep 0.02
		done; echo "$n zombies"; exit 1`))
		if wantExit(t, res.end, 0); res.stdout.Len() > 0 {
			t.Error(res.stdout.String())
		}
		if name != "as a child" {
			if got := run(t, h.client, shell("echo $PPID")).stdout.String(); got != "1\n" {
				t.Errorf("the guest is %q", got)
			}
		}
		h.end(t)
	})
}

// TERM to the guest ends everything, also what no run knows any more, and tells the true ends.
func TestHelperEndsAllOnTERM(t *testing.T) {
	t.Parallel()
	forEachSetting(t, func(t *testing.T, name string, h *helper) {
		daemon := h.path("work/daemon")
		if err := syscall.Mkfifo(daemon, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(daemon, 0o666); err != nil {
			t.Fatal(err)
		}
		if name != "as a child" { // there only what belongs to runs is ended
			wantExit(t, run(t, h.client, shell("(setsid sh -c 'trap \"\" TERM; exec >"+daemon+"; sleep 300' 2>/dev/null &)")).end, 0)
		} else {
			go func() { _ = os.WriteFile(daemon, nil, 0) }()
		}
		alive, err := os.Open(daemon) // waits for the daemon
		if err != nil {
			t.Fatal(err)
		}
		defer alive.Close() // only read from
		polite, rude := shell("trap 'echo bye; exit 2' TERM; echo ready; while :; do sleep 0.02; done"), shell("trap '' TERM; echo ready; while :; do sleep 0.02; done")
		start(t, h.client, polite)
		start(t, h.client, rude)
		waitFor(t, h.client, polite.ID, "ready")
		waitFor(t, h.client, rude.ID, "ready")
		ends := make(chan *result, 2)
		for _, id := range []string{polite.ID, rude.ID} {
			go func() { ends <- follow(t, h.client, id, 0) }()
		}
		// Signals that it must survive.
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE} {
			if err := h.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.client.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.end(t)
		for range 2 {
			res := <-ends
			if res.end.ID == polite.ID {
				wantExit(t, res.end, 2)
			} else if res.end.Signal != "SIGKILL" {
				t.Errorf("%+v", res.end)
			}
		}
		if b, err := io.ReadAll(alive); err != nil || len(b) > 0 { // ends when the daemon has
			t.Errorf("%q, %v", b, err)
		}
	})
}

// status returns fields of /proc/self/status of a process that the guest starts.
func status(t *testing.T, c *guest.Client, user string) map[string]string {
	t.Helper()
	res := run(t, c, guest.Command{ID: newID(), Argv: []string{"cat", "/proc/self/status"}, User: user})
	wantExit(t, res.end, 0)
	fields := make(map[string]string)
	for line := range strings.Lines(res.stdout.String()) {
		k, v, _ := strings.Cut(line, ":")
		fields[k] = strings.Join(strings.Fields(v), " ")
	}
	return fields
}

// ownCaps returns the bounding set of the tests.
func ownCaps(t *testing.T) (caps uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "CapBnd:")
	if _, err := fmt.Sscanf(rest, "%x", &caps); err != nil {
		t.Fatal(err)
	}
	return caps
}

// What a sandbox runs holds less than the guest and can't look into it, be it root, be it the same user.
func TestHelperConfines(t *testing.T) {
	t.Parallel()
	forEachSetting(t, func(t *testing.T, name string, h *helper) {
		caps := uint64(0xa80425fb)
		if name != "as PID 1 with one uid" { // a new user namespace has them all
			caps &= ownCaps(t)
		}
		dockers := fmt.Sprintf("%016x", caps)
		privileged := os.Getuid() == 0 || name != "as a child"
		for _, user := range []string{guest.UserRoot, guest.UserAgent} {
			if user == guest.UserRoot && !privileged {
				continue
			}
			uid := "0"
			if user == guest.UserAgent && name == "as PID 1" {
				uid = fmt.Sprint(agent)
			} else if !privileged {
				uid = fmt.Sprint(os.Getuid())
			}
			want := map[string]string{
				"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "CapEff": dockers, "CapPrm": dockers, "CapBnd": dockers,
				"NoNewPrivs": "1", "SigIgn": "0000000000000000", "SigBlk": "0000000000000000", "Uid": strings.Join(slices.Repeat([]string{uid}, 4), " "),
			}
			if uid != "0" {
				want["CapEff"], want["CapPrm"] = "0000000000000000", "0000000000000000"
			}
			if !privileged {
				delete(want, "CapBnd") // it may not drop any
			}
			if name == "as PID 1" && user == guest.UserAgent {
				want["Groups"] = ""
			}
			got := status(t, h.client, user)
			// Whoever started these tests may ignore the two signals of C libraries, and nobody can undo that.
			if ignored, err := strconv.ParseUint(got["SigIgn"], 16, 64); err == nil {
				got["SigIgn"] = fmt.Sprintf("%016x", ignored&^(3<<31))
			}
			for k, v := range want {
				if told, ok := got[k]; ok && told != v { // gVisor leaves some out
					t.Errorf("%s: %s is %q, want %q", user, k, got[k], v)
				}
			}
			spy := shell(`cd /proc/$PPID; for f in environ mem maps auxv; do head -c 1 $f >/dev/null 2>&1 && echo $f; done
				for f in fd/*; do readlink $f && cat $f; done 2>/dev/null; readlink exe cwd; cat ` + h.path("state/runs") + `/*/* 2>/dev/null | head -c 1 >/dev/null; true`)
			spy.User = user
			if got := run(t, h.client, spy).stdout.String(); got != "" {
				t.Errorf("%s sees of the guest: %q", user, got)
			}
			if _, err := h.client.Info(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		h.end(t)
	})
}

func TestHelperPrepares(t *testing.T) {
	t.Parallel()
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprint("used=", used), func(t *testing.T) {
			t.Parallel()
			if os.Getuid() != 0 {
				t.Skip("only root can give files away")
			}
			wrap := `exec "$@"`
			args := []string{"--agent", fmt.Sprintf("%d:%d", agent, agent)}
			if used {
				wrap = `for d; do case $d in */work) mkdir $d; : >$d/x;; esac; done; exec "$@"`
			}
			h := startHelper(t, nil, wrap, args...)
			mode := func(name string) (os.FileMode, uint32) {
				fi, err := os.Stat(h.path(name))
				if err != nil {
					t.Fatal(err)
				}
				return fi.Mode().Perm(), fi.Sys().(*syscall.Stat_t).Uid
			}
			if m, uid := mode("socket/" + guest.SocketName); m != 0o600 || uid != 0 {
				t.Errorf("socket: %o of %d", m, uid)
			}
			if m, uid := mode("state"); m != 0o700 || uid != 0 {
				t.Errorf("state: %o of %d", m, uid)
			}
			want := uint32(agent)
			if used {
				want = 0
			}
			if _, uid := mode("work"); uid != want {
				t.Errorf("workdir of %d, want %d", uid, want)
			}
			if used {
				return
			}
			res := run(t, h.client, shell("pwd; umask; touch mine; id -u; env | grep -c SECRET; cat "+h.path("state")+"/*"))
			if got := res.stdout.String(); got != h.path("work")+"\n0022\n12345\n0\n" {
				t.Errorf("%q", got)
			}
			cmd := shell("id -u; id -un; echo $USER")
			cmd.User = guest.UserRoot
			if got := run(t, h.client, cmd).stdout.String(); got != "0\nroot\nroot\n" {
				t.Errorf("%q", got)
			}
			// A terminal belongs to who runs in it.
			cmd = shell("echo x >$(tty)")
			cmd.Stdio = guest.StdioPTY
			if got := run(t, h.client, cmd).stdout.String(); got != "x\r\n" {
				t.Errorf("%q", got)
			}
			for _, dir := range []string{h.path("state"), "/root"} {
				if fi, err := os.Stat(dir); err == nil && fi.Mode().Perm()&0o001 == 0 {
					cmd = shell("true")
					cmd.Dir = dir
					_, err := h.client.Start(t.Context(), cmd)
					wantRefused(t, err, 400, "bad_dir", "dir")
				}
			}
		})
	}
}

func TestHelperEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	deadline := time.Now().Add(time.Hour)
	h := startHelper(t, nil, "", "--agent", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()), "--deadline", deadline.Format(time.RFC3339Nano))
	if i, err := h.client.Info(t.Context()); err != nil || !i.Deadline.Equal(deadline) {
		t.Errorf("%+v, %v", i, err)
	}
	if err := h.client.Setup(t.Context(), guest.Setup{Deadline: time.Now().Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	cmd := shell("sleep 300")
	start(t, h.client, cmd)
	if got := follow(t, h.client, cmd.ID, 0).end.Signal; got != "SIGTERM" {
		t.Errorf("ended by %q", got)
	}
	<-h.waited
	if h.waitErr != nil {
		t.Error(h.waitErr)
	}
}

func TestHelperRefusesItsArguments(t *testing.T) {
	t.Parallel()
	bin, err := buildHelper()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--help"}, 0, "-deadline"},
		{[]string{"--nope"}, 2, "nope"},
		{[]string{"--agent", "root"}, 2, "not uid:gid"},
		{[]string{"--agent", "1:-1"}, 2, "not uid:gid"},
		{[]string{"--deadline", "soon"}, 2, "soon"},
		{[]string{"more"}, 2, "more"},
		{[]string{"--workdir", "/proc/nope", "--socket-dir", t.TempDir(), "--state-dir", t.TempDir()}, 1, "nope"},
		{[]string{"--workdir", t.TempDir(), "--socket-dir", "/proc/nope", "--state-dir", t.TempDir()}, 1, "nope"},
		{[]string{"--workdir", t.TempDir(), "--socket-dir", t.TempDir(), "--state-dir", "/proc/nope"}, 1, "nope"},
		{[]string{"--workdir", t.TempDir(), "--socket-dir", t.TempDir(), "--state-dir", t.TempDir(), "--gateway", "nowhere"}, 1, "nowhere"},
	} {
		out, err := exec.CommandContext(t.Context(), bin, tc.args...).CombinedOutput()
		var exit *exec.ExitError
		code := 0
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		}
		if code != tc.code || !strings.Contains(string(out), tc.says) {
			t.Errorf("%v: exit %d, %s", tc.args, code, out)
		}
	}
}

// The helper is copied into every sandbox: it must stay small, and hold nothing of the server.
func TestHelperImports(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Standard", "github.com/sandlot-dev/sandlot/cmd/sandlot-guest").Output()
	if err != nil {
		t.Fatal(err)
	}
	const ours = "github.com/sandlot-dev/sandlot/"
	allowed := []string{ours + "cmd/sandlot-guest", ours + "internal/guest", "github.com/hashicorp/yamux", "golang.org/x/sys/unix"}
	banned := []string{"testing", "os/exec", "plugin", "expvar", "net/http/pprof", "html/template", "text/template", "database/sql", "go/ast"}
	var seen int
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
		var p struct {
			ImportPath string
			Standard   bool
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if !p.Standard && !slices.Contains(allowed, p.ImportPath) {
			t.Errorf("%s came in: allow it here if it is worth its size in every sandbox", p.ImportPath)
		}
		if slices.Contains(banned, p.ImportPath) {
			t.Errorf("%s has no place in the helper", p.ImportPath)
		}
	}
	if seen < 50 {
		t.Errorf("only %d packages were looked at", seen)
	}
	bin, err := buildHelper()
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() > 10<<20 {
		t.Errorf("the helper has grown to %d bytes", fi.Size())
	}
}
