package local_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// connect dials a sandbox's guest and sets it up.
func connect(t *testing.T, e *local.Engine, ref engine.Ref) *guest.Client {
	t.Helper()
	conn, err := e.Dial(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Setup(t.Context(), guest.Setup{Env: map[string]string{"PATH": "/usr/bin:/bin"}, Deadline: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	return c
}

// background starts a shell script whose input stays open.
func background(t *testing.T, c *guest.Client, script string) string {
	t.Helper()
	id := sandbox.NewID(sandbox.PrefixRun)
	if _, err := c.Start(t.Context(), guest.Command{ID: id, Argv: []string{"/bin/bash", "-c", script}, Open: true}); err != nil {
		t.Fatal(err)
	}
	return id
}

// echo is a script that counts the lines of its input in its own memory.
const echo = `i=0; while read x; do i=$((i+1)); echo $i; done`

// say gives a script of echo one line, and wants its number for an answer, after all earlier ones.
func say(t *testing.T, c *guest.Client, id string, number int) {
	t.Helper()
	if err := c.WriteStdin(t.Context(), id, strings.NewReader("x\n"), false); err != nil {
		t.Fatal(err)
	}
	var want, got strings.Builder
	for i := 1; i <= number; i++ {
		fmt.Fprintln(&want, i)
	}
	for f, err := range c.Output(t.Context(), id, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		got.Write(f.Data)
		if got.Len() >= want.Len() {
			break
		}
	}
	if got.String() != want.String() {
		t.Fatalf("it wrote %q, want %q", got.String(), want.String())
	}
}

// What can't be put on disk is refused with a reason, and harms nothing.
func TestSuspendRefused(t *testing.T) {
	e, cfg := newEngine(t)
	ref := create(t, e, spec())
	c := connect(t, e, ref)
	id := background(t, c, echo)
	say(t, c, id, 1)
	// A second guest is a program that listens on a Unix socket, here one in the volume.
	listener := background(t, c, "exec "+guest.Program+" --socket-dir=/workspace/s --state-dir=/tmp/state --workdir=/workspace --gateway= & "+
		"while ! test -S s/guest.sock; do sleep 0.01; done; echo ready; wait")
	for f, err := range c.Output(t.Context(), listener, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(f.Data), "ready") {
			break
		}
	}
	for range 2 {
		err := e.Suspend(t.Context(), ref)
		p := (*sandbox.Problem)(nil)
		if !errors.As(err, &p) || p.Code != "cannot_suspend" || !errors.Is(err, sandbox.ErrState) || !strings.Contains(p.Detail, "Unix socket in the volume") {
			t.Fatalf("suspend: %v", err)
		}
		if st, err := e.Inspect(t.Context(), ref); err != nil || st.Phase != engine.PhaseRunning {
			t.Fatalf("it is %+v, %v", st, err)
		}
	}
	wantImages(t, cfg, ref)
	c = connect(t, e, ref)
	say(t, c, id, 2)
	if err := c.Signal(t.Context(), listener, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), listener); err != nil {
		t.Fatal(err)
	}
	if err := e.Suspend(t.Context(), ref); err != nil {
		t.Fatalf("once the socket is gone: %v", err)
	}
	wantImages(t, cfg, ref, "checkpoint")
	if err := e.Resume(t.Context(), ref, spec()); err != nil {
		t.Fatal(err)
	}
	wantImages(t, cfg, ref)
	say(t, connect(t, e, ref), id, 3)
}

// wantImages checks which images of a sandbox there are, and that nobody else can read them: they hold all its secrets.
func wantImages(t *testing.T, cfg local.Config, ref engine.Ref, want ...string) {
	t.Helper()
	dir := filepath.Join(cfg.Dir, "sandboxes", string(ref.ID)+"-"+ref.Run)
	found, err := filepath.Glob(filepath.Join(dir, "checkpoint*"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, path := range found {
		got = append(got, filepath.Base(path))
		err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err == nil && fi.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %o", p, fi.Mode().Perm())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("its images are %v, want %v", got, want)
	}
	if stores, _ := filepath.Glob(filepath.Join(dir, "bundle", "*", ".gvisor.filestore.*")); (len(stores) == 0) != (len(want) > 0) {
		t.Errorf("with images %v its filestores are %v", want, stores)
	}
}

// gVisor is killed in the middle: the sandbox is gone, or suspended, and never something else.
func TestKilledDuringSuspend(t *testing.T) {
	e, cfg := newEngine(t)
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, 30 * time.Millisecond, 60 * time.Millisecond} {
		ref := create(t, e, spec())
		if out, code := sh(t, e, ref, guest.UserAgent, "head -c 20000000 /dev/urandom >/dev/shm/ballast"); code != 0 {
			t.Fatal(out)
		}
		done := make(chan error, 1)
		go func() { done <- e.Suspend(t.Context(), ref) }()
		<-time.After(delay) // at any moment
		killAny(t, cfg.Dir, ref)
		err := <-done
		st, inspectErr := e.Inspect(t.Context(), ref)
		for inspectErr == nil && st.Phase == engine.PhaseStarting { // it is ending
			st, inspectErr = e.Inspect(t.Context(), ref)
		}
		t.Logf("killed after %v: %s, %v", delay, st.Phase, err)
		switch {
		case inspectErr != nil:
			t.Error(inspectErr)
		case err == nil && st.Phase == engine.PhaseSuspended:
			if err := e.Resume(t.Context(), ref, spec()); err != nil {
				t.Error(err)
			} else if out, _ := sh(t, e, ref, guest.UserAgent, "wc -c </dev/shm/ballast"); strings.TrimSpace(out) != "20000000" {
				t.Errorf("it came back with %q", out)
			}
		case err != nil && st.Phase == engine.PhaseGone:
		default:
			t.Errorf("killed after %v: %v, and its phase is %s", delay, err, st.Phase)
		}
		destroy(t, e, ref)
	}
}

// killAny kills gVisor's process of a sandbox if there is one.
func killAny(t *testing.T, dir string, ref engine.Ref) {
	t.Helper()
	for _, pid := range pids(t) {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone is no match
		if bytes.HasPrefix(cmdline, []byte("runsc-sandbox")) && bytes.Contains(cmdline, []byte(string(ref.ID))) && bytes.Contains(cmdline, []byte(dir)) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
	}
}

// The environment by which a test starts this binary anew as a server that is to be killed.
const (
	victimEnv    = "SANDLOT_LOCAL_TEST_VICTIM" // what it does: "suspend" or "resume"
	victimDir    = "SANDLOT_LOCAL_TEST_DIR"
	victimRef    = "SANDLOT_LOCAL_TEST_REF"
	victimVolume = "SANDLOT_LOCAL_TEST_VOLUME"
)

// TestVictim is such a server.
func TestVictim(t *testing.T) {
	do := os.Getenv(victimEnv)
	if do == "" {
		t.Skip("only for TestKilledServer")
	}
	dir := os.Getenv(victimDir)
	e, err := local.Open(local.Config{Dir: filepath.Join(dir, "local"), Guest: filepath.Join(dir, "guest", filepath.Base(guest.Program)), Runtime: os.Getenv(runtimeEnv)})
	if err != nil {
		t.Fatal(err)
	}
	ref, sp := engine.Ref{ID: sandbox.ID(os.Getenv(victimRef)), Run: "1"}, spec()
	sp.Volume.ID = os.Getenv(victimVolume)
	if _, err := unix.Write(1, []byte("now\n")); err != nil { // os.Stdout is /dev/null while the engine is open
		t.Fatal(err)
	}
	if do == "suspend" {
		err = e.Suspend(t.Context(), ref)
	} else {
		err = e.Resume(t.Context(), ref, sp)
	}
	if err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// A server that is killed in the middle of a suspension or a resumption leaves what the next one completes: nothing is lost, and nothing
// runs twice.
func TestKilledServer(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv(childEnv) != "" {
		t.Skip("the server of an ordinary user is a child of what would be killed")
	}
	dir := workDir(t)
	cfg := config(t, dir)
	e := open(t, cfg)
	sp := spec()
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	if _, err := e.Create(t.Context(), ref, sp); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // by the engine that is open then
		if err := errors.Join(e.Destroy(context.WithoutCancel(t.Context()), ref), e.Close()); err != nil {
			t.Error(err)
		}
	})
	c := connect(t, e, ref)
	id := background(t, c, echo)
	say(t, c, id, 1)
	number := 2
	whole := map[string]time.Duration{} // how long each takes when nobody is killed
	for _, part := range []float64{100, 0, 0.3, 0.6, 0.75, 0.9} {
		for _, do := range []string{"suspend", "resume"} {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			delay := time.Minute
			if part < 100 {
				delay = time.Duration(part * float64(whole[do]))
			}
			if took := runVictim(t, cfg, do, dir, ref, sp, delay); part == 100 {
				whole[do] = took
			}
			e = open(t, cfg)
			st, err := e.Inspect(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s killed after %v of %v: it is %s", do, delay, whole[do], st.Phase)
			if want := map[string]engine.Phase{"suspend": engine.PhaseSuspended, "resume": engine.PhaseRunning}[do]; part == 100 && st.Phase != want {
				t.Errorf("%s of a server that was not killed leaves it %s", do, st.Phase)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if do == "suspend" {
				err = e.Suspend(ctx, ref)
				if err == nil {
					wantImages(t, cfg, ref, "checkpoint")
				}
			} else {
				err = e.Resume(ctx, ref, sp)
				if err == nil {
					wantImages(t, cfg, ref)
				}
			}
			cancel()
			if err != nil {
				t.Fatalf("%s after a server was killed %v into it: %v", do, delay, err)
			}
		}
		say(t, connect(t, e, ref), id, number)
		number++
	}
}

// runVictim starts a server that suspends or resumes, and kills it so long after it has begun, unless it has ended by then. It returns
// how long it took.
func runVictim(t *testing.T, cfg local.Config, do, dir string, ref engine.Ref, sp sandbox.Spec, delay time.Duration) time.Duration {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestVictim$")
	cmd.Args[0] = "victim" // by the other name it would become gVisor
	cmd.Env = append(os.Environ(), victimEnv+"="+do, victimDir+"="+dir, victimRef+"="+string(ref.ID), victimVolume+"="+sp.Volume.ID,
		runtimeEnv+"="+cfg.Runtime)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "now" {
		t.Log(lines.Text())
	}
	if lines.Text() != "now" {
		t.Fatal("it ended before it began")
	}
	began := time.Now()
	kill := time.AfterFunc(delay, func() { _ = cmd.Process.Kill() }) // it may have ended
	defer kill.Stop()
	for lines.Scan() {
		t.Log(lines.Text())
	}
	took := time.Since(began)
	_ = cmd.Wait() // it was killed, or what it left tells
	return took
}

// What would fill the host's disk is refused before anything is touched.
func TestSuspendWithoutSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := workDir(t)
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=360m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cfg := config(t, dir)
	e := open(t, cfg)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	ref := create(t, e, spec())
	if out, code := sh(t, e, ref, guest.UserAgent, "head -c 100000000 /dev/urandom >/dev/shm/ballast"); code != 0 {
		t.Fatal(out)
	}
	id := background(t, connect(t, e, ref), echo)
	err := e.Suspend(t.Context(), ref)
	if p := (*sandbox.Problem)(nil); !errors.As(err, &p) || p.Code != "no_space" || !errors.Is(err, sandbox.ErrUnavailable) {
		t.Errorf("suspend: %v", err)
	}
	wantImages(t, cfg, ref)
	say(t, connect(t, e, ref), id, 1)
	destroy(t, e, ref)
}
