package lifecycle_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/fake"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// limiting is an engine that says that it keeps every limit, on a machine with 4 cores and 1 GiB.
var limiting = fake.Config{
	Limits: sandbox.LimitedBy{
		CPU: sandbox.ByAffinity, Memory: sandbox.ByWatchdog, PIDs: sandbox.ByRlimit, OpenFiles: sandbox.ByRlimit, Disk: sandbox.ByGVisor,
	},
	CPUs: 4, MemoryMiB: 1024,
}

// limited makes a sandbox with limits and waits until it runs.
func (r *rig) limited(t *testing.T) sandbox.Sandbox {
	t.Helper()
	sb, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account, CPU: 0.5, MemoryMiB: 100, PIDs: 100, OpenFiles: 200, OutputKiBS: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if sb, err = r.m.WaitReady(within(t), r.account, sb.ID); err != nil {
		t.Fatal(err)
	}
	return sb
}

func TestLimitsAreRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.claims = limiting
	r.start(t, nil)
	want := limiting.Limits
	want.Output = sandbox.ByGuest
	if s := r.limited(t).Spec; s.CPU != 0.5 || s.MemoryMiB != 100 || s.PIDs != 100 || s.OpenFiles != 200 || s.OutputKiBS != 1000 || s.LimitedBy != want {
		t.Errorf("it is %+v", s)
	}
	if s := r.running(t).Spec; s.CPU != 0 || s.MemoryMiB != 0 || s.PIDs != sandbox.DefaultPIDs || s.OpenFiles != sandbox.DefaultOpenFiles || s.OutputKiBS != 0 {
		t.Errorf("by default it is %+v", s)
	}
}

func TestMoreThanTheMachineHas(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.claims = limiting
	r.start(t, nil)
	for field, req := range map[string]lifecycle.Request{
		"cpu":        {CPU: 4.5},
		"memory_mib": {MemoryMiB: 1025},
	} {
		req.Account = r.account
		_, err := r.m.Create(t.Context(), req)
		wantProblem(t, err, sandbox.ErrInvalid, "over_capacity", field)
	}
	for field, req := range map[string]lifecycle.Request{
		"cpu":        {CPU: 0.001},
		"memory_mib": {MemoryMiB: 63},
	} {
		req.Account = r.account
		_, err := r.m.Create(t.Context(), req)
		wantProblem(t, err, sandbox.ErrInvalid, "invalid_request", field)
	}
	if _, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account, CPU: 4, MemoryMiB: 1024}); err != nil {
		t.Errorf("all that it has: %v", err)
	}
}

// When memory runs short, the guest ends the run that uses the most of it, and nothing else.
func TestGuestEndsTheLargestRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.claims = limiting
	r.start(t, nil)
	sb := r.limited(t)
	small := r.sh(t, sb, "exec sleep 600")
	large := r.sh(t, sb, `x=$(head -c 20000000 /dev/zero | tr '\0' x); echo $$; sleep 600; echo "$x"`)
	var pid int
	for f, err := range r.m.Output(within(t), large, 0) {
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range strings.TrimSpace(string(f.Data)) {
			pid = pid*10 + int(c-'0')
		}
		break
	}
	r.world.UseMemory(func() int64 { // the memory is short for as long as it is there
		if unix.Kill(pid, 0) == nil {
			return 95 << 20
		}
		return 5 << 20
	})
	got, err := r.m.WaitRun(within(t), r.account, large.ID)
	if err != nil || got.State != sandbox.RunOOM || got.Signal != "SIGKILL" || got.ExitCode != nil || got.Reason == "" {
		t.Errorf("the large run is %+v, %v", got, err)
	}
	if got, err := r.m.Run(t.Context(), r.account, small.ID); err != nil || got.State != sandbox.RunRunning {
		t.Errorf("the small run is %+v, %v", got, err)
	}
	if got, err := r.m.Sandbox(t.Context(), r.account, sb.ID); err != nil || got.State != sandbox.Running {
		t.Errorf("the sandbox is %+v, %v", got, err)
	}
}

// A sandbox that the host ended for its memory says so, and so do its runs; one that crashed never does. A server that comes back later
// says the same.
func TestSandboxOutOfMemory(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kill       func(w *fake.World, ref engine.Ref)
		run        sandbox.RunState
		says, away bool
	}{
		"out of memory":                    {(*fake.World).KillOOM, sandbox.RunOOM, true, false},
		"out of memory while nobody looks": {(*fake.World).KillOOM, sandbox.RunOOM, true, true},
		"a crash":                          {(*fake.World).Kill, sandbox.RunLost, false, false},
		"a crash while nobody looks":       {(*fake.World).Kill, sandbox.RunLost, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.claims = limiting
			r.start(t, nil)
			sb := r.limited(t)
			run := r.sh(t, sb, "exec sleep 600")
			if c.away {
				r.stop()
			}
			c.kill(r.world, engine.Ref{ID: sb.ID, Run: sb.Run})
			if c.away {
				r.start(t, nil)
			}
			got := r.reach(t, sb.ID, sandbox.Terminated, sandbox.Error)
			if got.State != sandbox.Error || strings.Contains(got.Reason, "Out of memory: the sandbox used more than its 100 MiB.") != c.says {
				t.Errorf("the sandbox is %s: %s", got.State, got.Reason)
			}
			end, err := r.m.Run(t.Context(), r.account, run.ID)
			if err != nil || end.State != c.run || end.ExitCode != nil || end.Signal != "" || strings.Contains(end.Reason, "Out of memory") != c.says {
				t.Errorf("the run is %+v, %v", end, err)
			}
		})
	}
}
