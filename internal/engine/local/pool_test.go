package local_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/enginetest"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// warm waits until sandboxes of a spec lie ready.
func warm(t *testing.T, e *local.Engine, sp sandbox.Spec) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := local.Warm(ctx, e, sp); err != nil {
		t.Fatalf("nothing lies ready: %v", err)
	}
}

// pooled opens an engine that keeps some sandboxes ready, and closes it.
func pooled(t *testing.T, cfg local.Config) *local.Engine {
	t.Helper()
	e := open(t, cfg)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// containerOf is the ID by which gVisor knows a run.
func containerOf(dir string, ref engine.Ref) string {
	key := string(ref.ID) + "-" + ref.Run
	if id, err := os.ReadFile(filepath.Join(dir, "sandboxes", key, "container")); err == nil {
		return string(id)
	}
	return key
}

// TestContractPooled runs the contract where sandboxes lie ready.
func TestContractPooled(t *testing.T) {
	cfg := config(t, workDir(t))
	cfg.Pool = 2
	before := traces(t, cfg.Dir)
	t.Cleanup(func() {
		for trace := range traces(t, cfg.Dir) {
			if !before[trace] {
				t.Errorf("left behind: %s", trace)
			}
		}
	})
	var taken int
	h := harness(cfg)
	h.Open = func(t *testing.T) engine.Engine {
		e := open(t, cfg)
		warm(t, e, spec())
		return counting{e, &taken}
	}
	enginetest.Run(t, h)
	if t.Cleanup(func() { t.Logf("%d sandboxes were started ahead", taken) }); taken == 0 && !t.Failed() {
		t.Cleanup(func() { // the parallel tests have not run yet
			if taken == 0 {
				t.Error("no sandbox was started ahead")
			}
		})
	}
}

// counting counts what was started ahead.
type counting struct {
	*local.Engine
	taken *int
}

// Close implements engine.Engine.
func (c counting) Close() error {
	*c.taken += local.Taken(c.Engine)
	return c.Engine.Close()
}

// A sandbox that was started ahead is like any other: it has its volume, its limits and its deadline, and nothing else.
func TestPoolAdopts(t *testing.T) {
	cfg := config(t, workDir(t))
	cfg.Pool = 1
	e := pooled(t, cfg)
	sp := spec()
	sp.MemoryMiB, sp.CPU, sp.PIDs, sp.OpenFiles, sp.Workdir, sp.Timeout = 300, 1, 77, 333, "/srv/work", 10*time.Minute
	sp.Env = map[string]string{"SECRET": "of a spec"}
	warm(t, e, sp)
	ref := create(t, e, sp)
	if local.Taken(e) != 1 || !strings.HasPrefix(containerOf(cfg.Dir, ref), "pool-") {
		t.Fatalf("it was not started ahead: %d", local.Taken(e))
	}
	if again, err := e.Create(t.Context(), ref, sp); err != nil || string(again) != string(ref.Handle) && len(ref.Handle) > 0 {
		t.Errorf("made a second time it is %q, %v", again, err)
	}
	if local.Taken(e) != 1 {
		t.Error("made a second time it is another")
	}

	conn, err := e.Dial(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Info(t.Context())
	if left := time.Until(info.Deadline); err != nil || left < 10*time.Minute || left > 12*time.Minute {
		t.Errorf("its deadline is in %v, %v", left, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	out, code := sh(t, e, ref, guest.UserAgent, "ulimit -n; grep processes /proc/self/limits; grep MemTotal /proc/meminfo; pwd; ls -A; echo mine > file; env")
	for _, want := range []string{"333\n", " 77 ", "MemTotal:         307200 kB", "/srv/work\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in it (exit code %d):\n%s", want, code, out)
		}
	}
	if strings.Contains(out, "SECRET") {
		t.Errorf("it knows of what only its maker tells:\n%s", out)
	}
	dir, err := e.VolumeDir(t.Context(), sp.Volume)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(data) != "mine\n" {
		t.Errorf("its volume has %q, %v", data, err)
	}
	if by := e.Capabilities().Limits.Memory; by == sandbox.ByCgroup1 {
		limit, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/memory", local.Installation(cfg.Dir), containerOf(cfg.Dir, ref), "memory.limit_in_bytes"))
		if err != nil || strings.TrimSpace(string(limit)) != fmt.Sprint((300+128)<<20) {
			t.Errorf("the host limits its memory to %q, %v", limit, err)
		}
	}
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "sandboxes", string(ref.ID)+"-*", "bundle", "config.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if data, err := os.ReadFile(files[0]); err != nil || strings.Contains(string(data), "of a spec") || strings.Contains(string(data), "pool-") {
		t.Errorf("its bundle holds what it should not, %v: %s", err, data)
	}

	for l, err := range e.List(t.Context()) {
		if err != nil || l.Ref.ID != ref.ID || l.Phase != engine.PhaseRunning || l.Problem != "" {
			t.Errorf("listed is %+v, %v", l, err)
		}
	}
	destroy(t, e, ref)
	for l, err := range e.List(t.Context()) {
		t.Errorf("after it is destroyed, listed is %+v, %v", l, err)
	}
}

// A volume that is there already can't be brought into what lies ready; one that is used again and again has something ready of its own.
func TestPoolVolumes(t *testing.T) {
	cfg := config(t, workDir(t))
	cfg.Pool = 1
	e := pooled(t, cfg)
	sp := spec()
	warm(t, e, sp)
	first := create(t, e, sp)
	if out, code := sh(t, e, first, guest.UserAgent, "echo first > /workspace/file"); code != 0 {
		t.Fatal(out)
	}
	warm(t, e, spec())
	second := create(t, e, sp) // beside the first
	if local.Taken(e) != 1 {
		t.Errorf("%d were started ahead, though the second has the volume of the first", local.Taken(e))
	}
	warm(t, e, sp)
	if ready := local.Ready(e); !slices.Contains(ready, sp.Volume.ID) {
		t.Fatalf("what lies ready has the volumes %q", ready)
	}
	third := create(t, e, sp)
	if local.Taken(e) != 2 {
		t.Errorf("%d were started ahead, want 2", local.Taken(e))
	}
	for _, ref := range []engine.Ref{first, second, third} {
		if out, code := sh(t, e, ref, guest.UserAgent, "cat /workspace/file; echo more >> /workspace/file"); code != 0 || !strings.HasPrefix(out, "first\n") {
			t.Errorf("on the same volume: %d, %q", code, out)
		}
	}
	for _, ref := range []engine.Ref{first, second, third} {
		destroy(t, e, ref)
	}
	warm(t, e, sp)
	if err := e.DeleteVolume(t.Context(), sp.Volume); err != nil {
		t.Fatal(err)
	}
	if ready := local.Ready(e); slices.Contains(ready, sp.Volume.ID) {
		t.Errorf("with a volume that is deleted there lie %q", ready)
	}
	warm(t, e, spec())
	local.Age(e)
	if ready := local.Ready(e); len(ready) > 0 {
		t.Errorf("hours later there lie %q", ready)
	}
	if left := slotsOf(t, cfg.Dir); len(left) > 0 {
		t.Errorf("left of what was given up: %q", left)
	}
}

// slotsOf lists what there is on this host of sandboxes that lie ready.
func slotsOf(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*", "*pool-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// What lies ready and died is not given to anybody.
func TestPoolDead(t *testing.T) {
	cfg := config(t, workDir(t))
	cfg.Pool = 1
	e := pooled(t, cfg)
	sp := spec()
	warm(t, e, sp)
	ready, err := filepath.Glob(filepath.Join(cfg.Dir, "sandboxes", "pool-*", "ready"))
	if err != nil || len(ready) == 0 {
		t.Fatal(ready, err)
	}
	for _, path := range ready {
		killContainer(t, cfg.Dir, filepath.Base(filepath.Dir(path)), "runsc-sandbox")
	}
	ref := create(t, e, sp)
	if out, code := sh(t, e, ref, guest.UserAgent, "echo alive"); code != 0 || out != "alive\n" || local.Taken(e) != 0 {
		t.Errorf("%d, %q; %d were started ahead", code, out, local.Taken(e))
	}
	destroy(t, e, ref)
}

// TestPoolVictim is a server that is killed while it uses its pool.
func TestPoolVictim(t *testing.T) {
	if os.Getenv(victimEnv) != "pool" {
		t.Skip("only for TestPoolKilled")
	}
	dir := os.Getenv(victimDir)
	e, err := local.Open(local.Config{Dir: filepath.Join(dir, "local"), Guest: filepath.Join(dir, "guest", filepath.Base(guest.Program)),
		Runtime: os.Getenv(runtimeEnv), Pool: 1})
	if err != nil {
		t.Fatal(err)
	}
	ref, sp := engine.Ref{ID: sandbox.ID(os.Getenv(victimRef)), Run: "1"}, spec()
	sp.Volume.ID = os.Getenv(victimVolume)
	if os.Getenv(victimWarm) != "" {
		warm(t, e, sp)
	}
	if _, err := unix.Write(1, []byte("now\n")); err != nil { // os.Stdout is /dev/null while the engine is open
		t.Fatal(err)
	}
	if os.Getenv(victimWarm) == "" {
		warm(t, e, sp)
	} else if _, err := e.Create(t.Context(), ref, sp); err != nil {
		t.Error(err)
	}
	if _, err := unix.Write(1, []byte("done\n")); err != nil {
		t.Fatal(err)
	}
	<-t.Context().Done() // it is killed
}

const victimWarm = "SANDLOT_LOCAL_TEST_WARM"

// A server that is killed while it starts something ahead, or gives it to somebody, leaves nothing that is nobody's: the next one takes it
// away, and keeps what had become somebody's.
func TestPoolKilled(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv(childEnv) != "" {
		t.Skip("the server of an ordinary user is a child of what would be killed")
	}
	dir := workDir(t)
	cfg := config(t, dir)
	whole := map[string]time.Duration{} // how long each takes when nobody is killed
	kept := 0
	for _, what := range []string{"", "warm"} {
		for _, part := range []float64{100, 0, 0.2, 0.4, 0.6, 0.8, 0.95} {
			ref, sp := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}, spec()
			delay := time.Minute
			if part < 100 {
				delay = time.Duration(part * float64(whole[what]))
			}
			if took := runPoolVictim(t, cfg, what, dir, ref, sp, delay); part == 100 {
				whole[what] = took
			}
			e := open(t, cfg)
			adopted := containerOf(cfg.Dir, ref)
			for _, left := range slotsOf(t, cfg.Dir) {
				if !strings.Contains(left, adopted) {
					t.Errorf("killed after %v: left is %s", delay, left)
				}
			}
			for _, pid := range pids(t) {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone is no match
				if s := string(cmdline); strings.HasPrefix(s, "runsc-") && strings.Contains(s, cfg.Dir) && !strings.Contains(s, adopted) {
					t.Errorf("killed after %v: it runs %q", delay, s)
				}
			}
			if strings.HasPrefix(adopted, "pool-") {
				kept++
			}
			if _, err := e.Create(t.Context(), ref, sp); err != nil { // as who finds its row would
				t.Fatalf("killed after %v of %v: %v", delay, whole[what], err)
			}
			if out, code := sh(t, e, ref, guest.UserAgent, "echo mine > /workspace/file"); code != 0 {
				t.Fatalf("killed after %v of %v: %s", delay, whole[what], out)
			}
			data, err := os.ReadFile(filepath.Join(cfg.Dir, "volumes", sp.Volume.ID, "file"))
			if err != nil || string(data) != "mine\n" {
				t.Errorf("killed after %v of %v: its volume has %q, %v", delay, whole[what], data, err)
			}
			t.Logf("%s: killed after %v of %v: it is %s", what, delay, whole[what], adopted)
			if err := errors.Join(e.Destroy(t.Context(), ref), e.Close()); err != nil {
				t.Fatal(err)
			}
			if left := slotsOf(t, cfg.Dir); len(left) > 0 {
				t.Errorf("killed after %v of %v: left is %q", delay, whole[what], left)
			}
		}
	}
	if kept == 0 {
		t.Error("no sandbox that was started ahead outlived its server")
	}
}

// runPoolVictim starts a server that fills its pool, or with "warm" uses what lies in it, and kills it so long after it has begun, or when
// it is done. It returns how long that was.
func runPoolVictim(t *testing.T, cfg local.Config, what, dir string, ref engine.Ref, sp sandbox.Spec, delay time.Duration) time.Duration {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestPoolVictim$")
	cmd.Args[0] = "victim" // by the other name it would become gVisor
	cmd.Env = append(os.Environ(), victimEnv+"=pool", victimWarm+"="+what, victimDir+"="+dir, victimRef+"="+string(ref.ID),
		victimVolume+"="+sp.Volume.ID, runtimeEnv+"="+cfg.Runtime)
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
	for lines.Scan() && lines.Text() != "done" {
		t.Log(lines.Text())
	}
	took := time.Since(began)
	_ = cmd.Process.Kill() // it may have been
	_ = cmd.Wait()         // it was killed
	return took
}

// What can be done with a sandbox by its name can be done though gVisor knows it by another, also by a later server.
func TestPoolSuspends(t *testing.T) {
	cfg := config(t, workDir(t))
	cfg.Pool = 1
	e := open(t, cfg)
	t.Cleanup(func() { // the one that is open then
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	sp := spec()
	sp.MemoryMiB = 400
	warm(t, e, sp)
	ref := create(t, e, sp)
	if local.Taken(e) != 1 {
		t.Fatal("it was not started ahead")
	}
	c := connect(t, e, ref)
	id := background(t, c, "echo of the volume > /workspace/file; echo of the root > /var/tmp/file; "+echo)
	say(t, c, id, 1)
	reopen := func() {
		t.Helper()
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, cfg)
	}
	reopen()
	if !strings.HasPrefix(containerOf(cfg.Dir, ref), "pool-") {
		t.Error("a later server has destroyed it")
	}
	if _, err := e.Snapshot(t.Context(), ref, sp); err != nil {
		t.Errorf("a snapshot of it: %v", err)
	}
	number := 2
	for range 2 { // the second time it has its own name
		if err := e.Suspend(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		reopen()
		if st, err := e.Inspect(t.Context(), ref); err != nil || st.Phase != engine.PhaseSuspended {
			t.Fatalf("suspended it is %+v, %v", st, err)
		}
		if err := e.Resume(t.Context(), ref, sp); err != nil {
			t.Fatal(err)
		}
		c := connect(t, e, ref)
		say(t, c, id, number)
		number++
		if out, code := sh(t, e, ref, guest.UserAgent, "cat /workspace/file /var/tmp/file"); code != 0 || out != "of the volume\nof the root\n" {
			t.Errorf("its files are %q, %d", out, code)
		}
	}
	killRuntime(t, cfg.Dir, ref, "runsc-sandbox")
	for {
		st, err := e.Inspect(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if st.Phase == engine.PhaseGone {
			break
		}
	}
	destroy(t, e, ref)
}
