package local_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/enginetest"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// The environment by which a test starts this binary anew as an ordinary user.
const (
	guestEnv   = "SANDLOT_TEST_GUEST"   // path of the guest's program
	runtimeEnv = "SANDLOT_TEST_RUNTIME" // path of a program that becomes gVisor
	childEnv   = "SANDLOT_LOCAL_TEST_CHILD"
)

func TestMain(m *testing.M) {
	local.Main()
	if err := local.EnterNamespaces(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Most tests wait for something most of the time, so there may be more of them at once than cores.
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		if err := p.Value.Set(strconv.Itoa(max(4, runtime.GOMAXPROCS(0)))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	for _, dir := range built {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// built are the directories of what was built for this process.
var built []string

// guestProgram and runtimeProgram return the programs that an engine needs: those that were built before, or fresh builds.
// The runtime is a program of its own because gVisor's sentry doesn't start in one that has the race detector in it.
var (
	guestProgram   = sync.OnceValues(func() (string, error) { return program(guestEnv, "sandlot-guest", "../../../cmd/sandlot-guest") })
	runtimeProgram = sync.OnceValues(func() (string, error) { return program(runtimeEnv, "runtime", "../../../test/runtime") })
)

func program(env, name, source string) (string, error) {
	if path := os.Getenv(env); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "sandlot-programs-")
	if err != nil {
		return "", err
	}
	built = append(built, dir)
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-o", path, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w: %s", name, err, out)
	}
	return path, os.Chmod(dir, 0o755)
}

// config is that of an engine that works in dir, with the programs copied to where every user can reach them.
func config(t *testing.T, dir string) local.Config {
	t.Helper()
	g, err := guestProgram()
	if err != nil {
		t.Fatal(err)
	}
	r, err := runtimeProgram()
	if err != nil {
		t.Fatal(err)
	}
	return local.Config{
		Dir:     filepath.Join(dir, "local"),
		Guest:   copyFile(t, g, filepath.Join(dir, "guest", filepath.Base(guest.Program))),
		Runtime: reachable(t, r),
	}
}

// reachable returns a program, or a copy of it where not every user can reach it. By default the runtime is /proc/self/exe, which needs no walk.
func reachable(t *testing.T, path string) string {
	t.Helper()
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm()&0o001 == 0 {
			return copyFile(t, path, filepath.Join(openDir(t), "runtime"))
		}
		if dir == filepath.Dir(dir) {
			return path
		}
	}
}

// openDir is a directory that every user can reach.
func openDir(t *testing.T) string {
	t.Helper()
	dir := workDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyFile(t *testing.T, from, to string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}

func spec() sandbox.Spec {
	return sandbox.Spec{
		Image: sandbox.Image{Source: sandbox.HostImage}, Volume: sandbox.Volume{ID: sandbox.NewID(sandbox.PrefixVolume), Name: "test"}, Workdir: "/workspace",
		DiskMiB: 256, Timeout: time.Hour, Network: sandbox.Network{Mode: sandbox.NetworkNone},
	}
}

func open(t *testing.T, cfg local.Config) *local.Engine {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	e, err := local.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// workDir is a directory for an engine. It is closed to others, as a home often is.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandlot-local-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestContract runs the engine's contract on real gVisor, as whoever runs the tests, and counts what is left behind.
func TestContract(t *testing.T) {
	cfg := config(t, workDir(t))
	before := traces(t, cfg.Dir)
	t.Cleanup(func() {
		for trace := range traces(t, cfg.Dir) {
			if !before[trace] {
				t.Errorf("left behind: %s", trace)
			}
		}
	})
	e := open(t, cfg)
	t.Logf("agent is root: %v", e.Capabilities().AgentIsRoot)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	enginetest.Run(t, harness(cfg))
}

func harness(cfg local.Config) enginetest.Harness {
	return enginetest.Harness{
		Open:     func(t *testing.T) engine.Engine { return open(t, cfg) },
		Spec:     func(*testing.T) sandbox.Spec { return spec() },
		Kill:     func(t *testing.T, ref engine.Ref) { killRuntime(t, cfg.Dir, ref, "runsc-sandbox") },
		Isolated: true,
		Slow:     true,
	}
}

// killRuntime kills gVisor's process of one role, as the host's OOM killer would.
func killRuntime(t *testing.T, dir string, ref engine.Ref, role string) {
	t.Helper()
	killContainer(t, dir, containerOf(dir, ref), role)
}

func killContainer(t *testing.T, dir, key, role string) {
	t.Helper()
	found := false
	for _, pid := range pids(t) {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone is no match
		if strings.HasPrefix(string(cmdline), role) && bytes.Contains(cmdline, []byte(key)) && bytes.Contains(cmdline, []byte(dir)) {
			found = true
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !found {
		t.Fatalf("no %s of %s", role, key)
	}
}

func pids(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// traces lists what sandboxes of an engine in dir could leave on this host: children of this process, mounts, cgroups.
func traces(t *testing.T, dir string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	self := strconv.Itoa(os.Getpid())
	for _, pid := range pids(t) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err == nil && strings.Contains(string(status), "\nPPid:\t"+self+"\n") {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // empty for a zombie
			found[fmt.Sprintf("process %d %q %.30q", pid, cmdline, status)] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		// As real root this process has one of its own, for all engines; an ordinary user may not even make its place.
		if os.Getenv(childEnv) != "" || !strings.Contains(line, " /run/sandlot tmpfs ") {
			found["mount "+line] = true
		}
	}
	// gVisor's way of opening a directory for a gofer leaves a thread in that one's mounts.
	threads, err := filepath.Glob("/proc/self/task/*/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range threads {
		if ns, err := os.Readlink(link); err == nil {
			found["threads in "+ns] = true
		}
	}
	// A thread that can't come back from a gofer's or sentry's network waits for ever where gVisor starts them.
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	found[fmt.Sprintf("%d threads where sandboxes are started", bytes.Count(stacks, []byte("specutils.StartInNS.func")))] = true
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} { // the engine's own goes with it, if it is empty
		groups, err := filepath.Glob(pattern + local.Installation(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups {
			found["cgroup "+g] = true
		}
	}
	return found
}

// TestContractRootless runs the contract as two kinds of ordinary user: with one uid, and with a range of subordinate uids.
func TestContractRootless(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		t.Skip("this is the child")
	}
	if os.Getuid() != 0 {
		t.Skip("only root can become other users; TestContract ran rootless")
	}
	t.Parallel() // the children count what is their own
	for name, id := range map[string]func(t *testing.T) (uid, gid uint32){
		"OneUID": func(*testing.T) (uint32, uint32) { return 54321, 54321 },
		"Range": func(t *testing.T) (uint32, uint32) {
			u, err := user.Lookup("sandlot-test") // test/setup.sh makes it
			if err != nil {
				skip(t, "there is no user sandlot-test with a range of subordinate uids: "+err.Error())
			}
			uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
			gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
			if errUID != nil || errGID != nil {
				t.Fatal(errUID, errGID)
			}
			return uint32(uid), uint32(gid)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uid, gid := id(t)
			dir := openDir(t)
			home := filepath.Join(dir, "home")
			if err := os.Mkdir(home, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(home, int(uid), int(gid)); err != nil {
				t.Fatal(err)
			}
			cfg := config(t, dir)
			self := copyFile(t, "/proc/self/exe", filepath.Join(dir, "local.test"))
			tests := "-test.run=^Test(Contract$|Socket|Orphans|CPU|Suspend|Wall|Pool(Adopts|Volumes|Dead|Suspends))"
			if name == "Range" { // what the number of uids makes a difference to
				tests = "-test.run=^Test(Contract$|Wall)"
			}
			cmd := exec.CommandContext(t.Context(), self, tests, "-test.v")
			cmd.Dir = home
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, guestEnv + "=" + cfg.Guest, runtimeEnv + "=" + cfg.Runtime, childEnv + "=" + name,
				climbEnv + "=" + climber(t, dir)}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS: TestContract")) {
				t.Fatalf("as uid %d: %v\n%s", uid, err, out)
			}
			t.Logf("as uid %d:\n%s", uid, out)
			want := map[string]bool{"OneUID": true, "Range": false}[name]
			if got := bytes.Contains(out, []byte("agent is root: true")); got != want {
				t.Errorf("AgentIsRoot = %v, want %v", got, want)
			}
		})
	}
}

// skip skips, unless tests that need an installed tool must run.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("SANDLOT_MUST_RUN") != "" {
		t.Fatal("must not be skipped: " + why)
	}
	t.Skip(why)
}

// sh runs a shell command in a sandbox as user and returns its output and exit code.
func sh(t *testing.T, e engine.Engine, ref engine.Ref, as, command string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := e.Dial(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Setup(ctx, guest.Setup{Env: map[string]string{"PATH": "/usr/bin:/bin"}, Deadline: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	id := sandbox.NewID(sandbox.PrefixRun)
	if _, err := c.Start(ctx, guest.Command{ID: id, Argv: []string{"/bin/sh", "-c", command}, User: as}); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for f, err := range c.Output(ctx, id, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == guest.Stdout || f.Kind == guest.Stderr {
			out.Write(f.Data)
		}
	}
	run, err := c.Wait(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if run.Code == nil {
		t.Fatalf("%q ended as %+v, output %q", command, run, out.String())
	}
	return out.String(), *run.Code
}
