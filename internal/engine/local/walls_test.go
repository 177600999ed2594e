package local_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// newEngine opens an engine of its own for a test.
func newEngine(t *testing.T) (*local.Engine, local.Config) {
	t.Helper()
	cfg := config(t, workDir(t))
	e := open(t, cfg)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, cfg
}

// create makes a sandbox that is destroyed at the end.
func create(t *testing.T, e *local.Engine, spec sandbox.Spec) engine.Ref {
	t.Helper()
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	t.Cleanup(func() {
		if err := e.Destroy(context.WithoutCancel(t.Context()), ref); err != nil {
			t.Error(err)
		}
	})
	if _, err := e.Create(t.Context(), ref, spec); err != nil {
		t.Fatal(err)
	}
	return ref
}

func destroy(t *testing.T, e *local.Engine, ref engine.Ref) {
	t.Helper()
	if err := e.Destroy(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// A sandbox's root swaps the guest's socket for a link to a socket of the host. The server must not be led there.
func TestSocketSwappedForALink(t *testing.T) {
	e, cfg := newEngine(t)
	ref := create(t, e, spec())
	host := filepath.Join(cfg.Dir, "host.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", host)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket := guest.SocketDir + "/" + guest.SocketName
	if out, code := sh(t, e, ref, guest.UserRoot, fmt.Sprintf("rm %s && ln -s %s %[1]s", socket, host)); code != 0 {
		t.Fatal(out)
	}
	if conn, err := e.Dial(t.Context(), ref); err == nil {
		t.Errorf("the link was followed to %s", conn.RemoteAddr())
	}
	destroy(t, e, ref)
}

// Whatever the users inside write belongs to nobody of the host, and to nobody of another volume.
func TestFilesBelongToNobodyOfTheHost(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv(childEnv) != "" {
		t.Skip("only real root has ranges to give")
	}
	e, _ := newEngine(t)
	first := map[uint32]bool{}
	for range 2 {
		sp := spec()
		ref := create(t, e, sp)
		for user, want := range map[string]uint32{guest.UserRoot: 0, guest.UserAgent: 1000} {
			if out, code := sh(t, e, ref, user, "cd /workspace && touch by-"+user+" && chmod u+s by-"+user); code != 0 {
				t.Fatal(out)
			}
			dir, err := e.VolumeDir(t.Context(), sp.Volume)
			if err != nil {
				t.Fatal(err)
			}
			fi, err := os.Stat(filepath.Join(dir, "by-"+user))
			if err != nil {
				t.Fatal(err)
			}
			uid := fi.Sys().(*syscall.Stat_t).Uid
			if uid < 1<<30 || uid%(1<<16) != want {
				t.Errorf("a file of %s belongs to uid %d of the host", user, uid)
			}
			if first[uid] {
				t.Errorf("uid %d is in the range of two volumes", uid)
			}
			first[uid] = true
		}
		destroy(t, e, ref)
	}
}

// Orphans are what a server leaves that was killed at a bad moment: processes without a directory, a directory without processes.
func TestOrphansAreListedAndDestroyed(t *testing.T) {
	e, cfg := newEngine(t)
	ref := create(t, e, spec())
	key := string(ref.ID) + "-" + ref.Run
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "sandboxes", key)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(cfg.Dir, "runsc", key+"_sandbox:"+key+".state")); err != nil {
		t.Fatal(err)
	}
	empty := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	if err := os.Mkdir(filepath.Join(cfg.Dir, "sandboxes", string(empty.ID)+"-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	found := map[sandbox.ID]engine.Listed{}
	for l, err := range e.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		found[l.Ref.ID] = l
	}
	if found[ref.ID].Problem == "" || found[empty.ID].Ref.ID == "" || len(found) != 2 {
		t.Errorf("listed: %+v", found)
	}
	destroy(t, e, ref)
	destroy(t, e, empty)
	for l := range e.List(t.Context()) {
		t.Errorf("still listed: %+v", l)
	}
}

// What a build has left whose server was killed is gone when the next server is open: no row would ever want it.
func TestOrphansOfBuilds(t *testing.T) {
	cfg := config(t, workDir(t))
	e := open(t, cfg)
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	build := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "build"}
	ofBuild := spec()
	ofBuild.Volume, ofBuild.Workdir = sandbox.Volume{}, "/"
	for ref, sp := range map[*engine.Ref]sandbox.Spec{&ref: spec(), &build: ofBuild} {
		if _, err := e.Create(t.Context(), *ref, sp); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	next := open(t, cfg)
	defer next.Close()
	for l, err := range next.List(t.Context()) {
		if err != nil || l.Ref.ID != ref.ID {
			t.Errorf("listed: %+v, %v", l, err)
		}
	}
	if out, code := sh(t, next, ref, guest.UserAgent, "echo alive"); code != 0 || out != "alive\n" {
		t.Errorf("the sandbox that is no build's says %d %q", code, out)
	}
	destroy(t, next, ref)
}

// TestLongDirectory works where paths are longer than a socket's address may be.
func TestLongDirectory(t *testing.T) {
	dir := filepath.Join(workDir(t), strings.Repeat("long-", 30))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e := open(t, config(t, dir))
	defer e.Close()
	ref := create(t, e, spec())
	if out, code := sh(t, e, ref, guest.UserAgent, "echo here"); code != 0 || out != "here\n" {
		t.Errorf("%d %q", code, out)
	}
	destroy(t, e, ref)
	for _, dir := range []string{"/run", "/var/run", "/tmp"} {
		if left, _ := filepath.Glob(filepath.Join(dir, "runsc-"+string(ref.ID)+"*")); len(left) > 0 { // the pattern is well formed
			t.Errorf("left behind: %v", left)
		}
	}
}

// TestKilledWhileCreating kills a process that creates a sandbox, at many moments. What it leaves can always be found and destroyed.
func TestKilledWhileCreating(t *testing.T) {
	if os.Getenv(creatorEnv) != "" {
		createForEver(t, spec())
		return
	}
	e, cfg := newEngine(t)
	for i := range 12 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKilledWhileCreating$")
		cmd.Args[0] = "creator" // by the other name it would be gVisor
		cmd.Env = append(os.Environ(), creatorEnv+"="+cfg.Dir, guestEnv+"="+cfg.Guest, runtimeEnv+"="+cfg.Runtime)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it is about to begin
			t.Fatal(err)
		}
		<-time.After(time.Duration(i) * 15 * time.Millisecond) // the moment is the point of this test
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		for l, err := range e.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Destroy(t.Context(), l.Ref); err != nil {
				t.Errorf("killed after %d ms: %v", i*15, err)
			}
		}
	}
	for _, dir := range []string{"sandboxes", "runsc"} {
		if left, err := os.ReadDir(filepath.Join(cfg.Dir, dir)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	for _, pid := range pids(t) {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasPrefix(string(cmdline), "runsc-") && strings.Contains(string(cmdline), cfg.Dir+"/") {
			t.Errorf("process %d is left: %.100q", pid, cmdline)
		}
	}
}

const creatorEnv = "SANDLOT_LOCAL_TEST_CREATOR"

// createForEver is what the killed process does.
func createForEver(t *testing.T, sp sandbox.Spec) {
	e, err := local.Open(local.Config{Dir: os.Getenv(creatorEnv), Guest: os.Getenv(guestEnv), Runtime: os.Getenv(runtimeEnv)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Write(1, []byte("x")); err != nil { // os.Stdout is /dev/null now
		t.Fatal(err)
	}
	for {
		ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
		if _, err := e.Create(t.Context(), ref, sp); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := workDir(t)
	good := config(t, dir)
	for name, change := range map[string]func(*local.Config){
		"a relative directory":  func(c *local.Config) { c.Dir = "here" },
		"a relative guest":      func(c *local.Config) { c.Guest = "guest" },
		"a dynamic runtime":     func(c *local.Config) { c.Runtime = "/bin/sh" },
		"a runtime that isn't":  func(c *local.Config) { c.Runtime = "/nonexistent" },
		"a file as a directory": func(c *local.Config) { c.Dir = c.Guest },
	} {
		cfg := good
		change(&cfg)
		if e, err := local.Open(cfg); err == nil {
			t.Errorf("%s was accepted", name)
			_ = e.Close()
		}
	}
}
