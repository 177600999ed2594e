package enginetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// limits are the promises about what a sandbox can't use up. Which of them an engine gives, its Capabilities say.
var limits = []promise{
	{"MemoryEndsTheLargestRun", memoryEndsTheLargestRun},
	{"MemoryEndsTheSandbox", memoryEndsTheSandbox},
	{"CrashIsNotOutOfMemory", crashIsNotOutOfMemory},
	{"ProgramsSeeTheirLimits", programsSeeTheirLimits},
	{"PIDLimit", pidLimit},
	{"OpenFileLimit", openFileLimit},
	{"DiskLimit", diskLimit},
	{"OutputLimit", outputLimit},
	{"GPUIsRefusedWithTheReason", gpuIsRefused},
}

// reopeningLimits are those that need an engine of their own.
var reopeningLimits = []promise{
	{"MemoryLimitSurvivesReopen", memoryLimitSurvivesReopen},
	{"CPULimit", cpuLimit}, // which is measured, so nothing else runs
}

// eater is a script that wants more than 600 MiB of memory: no line of it ends, so tail keeps all.
const eater = "head -c 700M /dev/zero | tail"

func (s suite) limited(t *testing.T, by string, what string) {
	t.Helper()
	if by == "" {
		t.Skipf("this engine doesn't limit %s", what)
	}
}

// setUp tells a sandbox's guest the limits of its spec, as whoever drives an engine does.
func (b box) dialLimited(t *testing.T) *guest.Client {
	t.Helper()
	c := b.dialOnly(t, nil)
	err := c.Setup(within(t), guest.Setup{Env: env(), Deadline: time.Now().Add(time.Hour), Limits: guest.Limits{
		Memory: b.spec.MemoryMiB << 20, PIDs: b.spec.PIDs, OpenFiles: b.spec.OpenFiles, Output: b.spec.OutputKiBS << 10,
	}})
	if err != nil {
		t.Fatalf("set the guest up: %v", err)
	}
	return c
}

// Before the memory is used up the guest ends what uses the most of it; the rest of the sandbox goes on, and its neighbour too.
func memoryEndsTheLargestRun(t *testing.T, s suite) {
	s.limited(t, s.e.Capabilities().Limits.Memory, "memory")
	b := s.create(t, func(spec *sandbox.Spec) { spec.MemoryMiB = 300 })
	c := b.dialLimited(t)
	small, err := c.Start(within(t), named(guest.Command{Argv: []string{"sleep", "600"}}))
	if err != nil {
		t.Fatal(err)
	}
	// Slow enough for a loaded machine to see it in time: 50 MiB, a moment, and so on.
	r := sh(t, c, "(i=0; while [ $i -lt 14 ]; do head -c 50M /dev/zero; sleep 0.3; i=$((i+1)); done) | tail")
	if r.run.State != guest.StateOOM || r.run.Signal != "SIGKILL" || r.run.Code != nil {
		t.Errorf("the run that used it up: %v", r)
	}
	if now, err := c.Run(within(t), small.ID); err != nil || now.State != guest.StateRunning {
		t.Errorf("the other run: %+v, %v", now, err)
	}
	// What was killed gives its memory back. On a busy machine that takes seconds, in which there is none for others.
	var after result
	eventually(t, "there is memory for a run after it", func() bool {
		after = sh(t, c, "head -c 50M /dev/zero | tail | wc -c")
		return after.exited(0) || after.run.State != guest.StateOOM
	})
	if !after.exited(0) {
		t.Errorf("a run after it: %v", after)
	}
}

// A guest that doesn't act, or not in time, doesn't save the sandbox.
func memoryEndsTheSandbox(t *testing.T, s suite) {
	s.limited(t, s.e.Capabilities().Limits.Memory, "memory")
	b, neighbour := s.create(t, func(spec *sandbox.Spec) { spec.MemoryMiB = 200 }), s.create(t, nil).dial(t, nil)
	b.useUp(t, b.dial(t, nil))
	if got := output(t, neighbour, "echo alive"); got != "alive\n" {
		t.Errorf("its neighbour says %q", got)
	}
	b.destroy(t)
	s.wantGone(t, b.ref)
}

// useUp uses up a sandbox's memory and checks that it ends by that, and that the engine says so.
func (b box) useUp(t *testing.T, c *guest.Client) {
	t.Helper()
	if _, err := c.Start(within(t), named(guest.Command{Argv: []string{"/bin/sh", "-c", eater}})); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-within(t).Done():
		t.Fatalf("more than its %d MiB were used", b.spec.MemoryMiB)
	}
	b.wantOOM(t)
}

func (b box) wantOOM(t *testing.T) {
	t.Helper()
	eventually(t, "the phase becomes gone", func() bool { return b.phase(t, b.ref) == engine.PhaseGone })
	if st, err := b.e.Inspect(within(t), b.ref); err != nil || !st.OOM || !strings.Contains(st.Reason, fmt.Sprintf("%d MiB", b.spec.MemoryMiB)) {
		t.Errorf("its end is told as %+v, %v", st, err)
	}
}

// A limit holds and its end is told the same over a restart of the engine's process.
func memoryLimitSurvivesReopen(t *testing.T, s suite) {
	s.e = s.h.Open(t)
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	t.Cleanup(func() { // by the engine that is open then
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := errors.Join(s.e.Destroy(ctx, ref), s.e.Close()); err != nil {
			t.Errorf("destroy and close: %v", err)
		}
	})
	reopen := func() {
		if err := s.e.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		s.e = s.h.Open(t)
	}
	s.limited(t, s.e.Capabilities().Limits.Memory, "memory")
	spec := s.h.Spec(t)
	spec.MemoryMiB = 200
	b := s.createAs(t, ref, spec)
	reopen()
	b.suite = s
	b.useUp(t, b.dial(t, nil))
	reopen()
	b.suite = s
	b.wantOOM(t)
	b.destroy(t)
	s.wantGone(t, ref)
}

func crashIsNotOutOfMemory(t *testing.T, s suite) {
	if s.h.Kill == nil {
		t.Skip("the harness can't kill a run from outside")
	}
	b := s.create(t, func(spec *sandbox.Spec) {
		if s.e.Capabilities().Limits.Memory != "" {
			spec.MemoryMiB = 200
		}
	})
	s.h.Kill(t, b.ref)
	eventually(t, "the phase becomes gone", func() bool { return s.phase(t, b.ref) == engine.PhaseGone })
	if st, err := s.e.Inspect(within(t), b.ref); err != nil || st.OOM || st.Reason == "" {
		t.Errorf("its end is told as %+v, %v", st, err)
	}
}

// Programs size their heaps and pools by what they see.
func programsSeeTheirLimits(t *testing.T, s suite) {
	s.isolated(t)
	caps := s.e.Capabilities()
	s.limited(t, caps.Limits.Memory, "memory")
	s.limited(t, caps.Limits.CPU, "the CPU")
	c := s.create(t, func(spec *sandbox.Spec) { spec.MemoryMiB, spec.CPU = 300, 0.5 }).dial(t, nil)
	got := strings.Fields(output(t, c, "grep MemTotal /proc/meminfo | tr -dc 0-9; echo; nproc"))
	if len(got) != 2 || got[0] != fmt.Sprint(300<<10) || got[1] != "1" && got[1] != "2" {
		t.Errorf("they see %q", got)
	}
}

// A twentieth of a core takes twenty times as long. The same work is done at the same time without a limit, so a busy machine changes little.
func cpuLimit(t *testing.T, s suite) {
	s.e = s.h.Open(t)
	t.Cleanup(func() { // after the sandboxes
		if err := s.e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	by := s.e.Capabilities().Limits.CPU
	s.limited(t, by, "the CPU")
	if by != sandbox.ByCgroup1 && by != sandbox.ByCgroup2 {
		t.Skipf("a fraction of a core is not kept exactly by %s", by)
	}
	const work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
	slow := s.create(t, func(spec *sandbox.Spec) { spec.CPU = 0.05 }).dial(t, nil)
	fast := s.create(t, nil).dial(t, nil)
	took := make(chan time.Duration, 1)
	go func() {
		r, err := slow.Start(within(t), named(guest.Command{Argv: []string{"/bin/sh", "-c", work}}))
		if err == nil {
			r, err = slow.Wait(within(t), r.ID)
		}
		if err != nil {
			t.Errorf("the work: %v", err)
		}
		took <- r.EndedAt.Sub(r.StartedAt)
	}()
	r := sh(t, fast, work)
	without, with := r.run.EndedAt.Sub(r.run.StartedAt), <-took
	t.Logf("%v with a twentieth of a core, %v without a limit: %.1f times", with, without, float64(with)/float64(without))
	if !r.exited(0) || with < without*2 {
		t.Errorf("with the limit %v, without %v", with, without)
	}
}

func pidLimit(t *testing.T, s suite) {
	s.limited(t, s.e.Capabilities().Limits.PIDs, "the number of processes")
	b := s.create(t, func(spec *sandbox.Spec) { spec.PIDs = 60 })
	for name, c := range map[string]*guest.Client{"by the spec": b.dial(t, nil), "told again": b.dialLimited(t)} {
		// A forked copy that only waits is quicker than a program.
		r := sh(t, c, "i=0; while [ $i -lt 100 ]; do (read x < /dev/null; sleep 20) & i=$((i+1)); done; echo all of them")
		if r.exited(0) || strings.Contains(string(r.stdout), "all") || !strings.Contains(strings.ToLower(string(r.stderr)), "fork") {
			t.Errorf("%s: 100 processes of 60: %v", name, r)
		}
		// The guest itself is not held up: one more that needs no other.
		sh(t, c, "kill -KILL -1")
		eventually(t, "there is room again", func() bool { return sh(t, c, "(true); (true)").exited(0) })
	}
}

func openFileLimit(t *testing.T, s suite) {
	s.limited(t, s.e.Capabilities().Limits.OpenFiles, "open files")
	b := s.create(t, func(spec *sandbox.Spec) { spec.OpenFiles = 100 })
	const script = `for i in {1..%d}; do exec {fd}</dev/null || exit 7; done`
	for name, c := range map[string]*guest.Client{"by the spec": b.dial(t, nil), "told again": b.dialLimited(t)} {
		bash := func(script, user string) result {
			return run(t, c, guest.Command{Argv: []string{"bash", "-c", script}, User: user})
		}
		for _, user := range []string{guest.UserAgent, guest.UserRoot} {
			if r := bash(fmt.Sprintf(script, 80), user); !r.exited(0) {
				t.Errorf("%s, %s: 80 files of 100: %v", name, user, r)
			}
			if r := bash(fmt.Sprintf(script, 120), user); r.exited(0) || !strings.Contains(string(r.stderr), "Too many open files") {
				t.Errorf("%s, %s: 120 files of 100: %v", name, user, r)
			}
			if r := bash("ulimit -n 200", user); r.exited(0) {
				t.Errorf("%s, %s: it can be raised: %v", name, user, r)
			}
		}
		// The guest has more: it holds some for each of many.
		var ids []string
		for range 50 {
			r, err := c.Start(within(t), named(guest.Command{Argv: []string{"sleep", "600"}}))
			if err != nil {
				t.Fatalf("%s: many at once: %v", name, err)
			}
			ids = append(ids, r.ID)
		}
		for _, id := range ids {
			if err := c.Signal(within(t), id, "SIGKILL"); err != nil {
				t.Error(err)
			}
		}
	}
}

func diskLimit(t *testing.T, s suite) {
	s.limited(t, s.e.Capabilities().Limits.Disk, "the writable layer")
	c := s.create(t, func(spec *sandbox.Spec) { spec.DiskMiB = 32 }).dial(t, nil)
	r := sh(t, c, "dd if=/dev/zero of=/var/tmp/big bs=1M count=64")
	if r.exited(0) || !strings.Contains(string(r.stderr), "No space left") {
		t.Errorf("64 MiB into 32: %v", r)
	}
	if got := output(t, c, "echo the journal and the volume are elsewhere | tee file; cat file"); strings.Count(got, "elsewhere") != 2 {
		t.Errorf("with a full disk: %q", got)
	}
	output(t, c, "rm /var/tmp/big && dd if=/dev/zero of=/var/tmp/small bs=1M count=16 && rm /var/tmp/small")
}

func outputLimit(t *testing.T, s suite) {
	s.limited(t, s.e.Capabilities().Limits.Output, "output")
	const kib, size = 128, 400 << 10
	c := s.create(t, func(spec *sandbox.Spec) { spec.OutputKiBS = kib }).dialLimited(t)
	r := sh(t, c, fmt.Sprintf("head -c %d /dev/zero; exit 3", size))
	// A second's worth comes at once, and so does what is in the pipe at the end.
	least := time.Duration(float64(size-kib<<10-64<<10) / (kib << 10) * float64(time.Second) * 0.9)
	if took := r.run.EndedAt.Sub(r.run.StartedAt); !r.exited(3) || len(r.stdout) != size || took < least {
		t.Errorf("%d bytes in %v, at least %v were to be taken: %s %v", len(r.stdout), took, least, r.run.State, r.run.Code)
	}
}

func gpuIsRefused(t *testing.T, s suite) {
	caps := s.e.Capabilities()
	if caps.GPUs > 0 {
		t.Skip("this machine has GPUs")
	}
	if caps.NoGPU == "" {
		t.Error("it isn't said why there is none")
	}
	ref, spec := s.newRef(t), s.h.Spec(t)
	spec.GPU = "1"
	if _, err := s.e.Create(within(t), ref, spec); err == nil || !strings.Contains(err.Error(), caps.NoGPU) {
		t.Errorf("the error is %v", err)
	}
	s.wantGone(t, ref)
}
