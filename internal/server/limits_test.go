package server_test

import (
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Limits reach the manager as they were asked for, and are told with what keeps them.
func TestLimitsOnTheWire(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var asked lifecycle.Request
	r.Manager.create = func(q lifecycle.Request) (sandbox.Sandbox, error) {
		asked = q
		return sandbox.Sandbox{ID: live, State: sandbox.Creating, Spec: sandbox.Spec{
			CPU: q.CPU, MemoryMiB: q.MemoryMiB, DiskMiB: q.DiskMiB, PIDs: q.PIDs, OpenFiles: q.OpenFiles, OutputKiBS: q.OutputKiBS, GPU: q.GPU,
			LimitedBy: sandbox.LimitedBy{CPU: sandbox.ByAffinity, Memory: sandbox.ByWatchdog, PIDs: sandbox.ByRlimit, Disk: sandbox.ByGVisor, Output: sandbox.ByGuest},
		}}, nil
	}
	sb, err := r.CreateNoWait(t.Context(), api.CreateSandbox{CPU: 0.5, MemoryMiB: 300, DiskMiB: 100, PIDs: 50, OpenFiles: 200, GPU: "all"})
	if err != nil {
		t.Fatal(err)
	}
	if asked.CPU != 0.5 || asked.MemoryMiB != 300 || asked.DiskMiB != 100 || asked.PIDs != 50 || asked.OpenFiles != 200 || asked.OutputKiBS != 0 || asked.GPU != "all" {
		t.Errorf("the manager is asked for %+v", asked)
	}
	for name, c := range map[string]struct {
		got   api.Limit
		value float64 // 0 = null
		by    string
	}{
		"cpu":        {sb.Limits.CPU, 0.5, "affinity"},
		"memory":     {sb.Limits.Memory, 300, "watchdog"},
		"pids":       {sb.Limits.PIDs, 50, "rlimit"},
		"disk":       {sb.Limits.Disk, 100, "gvisor"},
		"open files": {sb.Limits.OpenFiles, 0, "none"}, // nothing keeps it, so it is none
		"output":     {sb.Limits.Output, 0, "none"},
	} {
		if c.got.By != c.by || (c.got.Value == nil) != (c.value == 0) || c.got.Value != nil && *c.got.Value != c.value {
			t.Errorf("%s: %+v", name, c.got)
		}
	}
	if sb.GPU != "all" {
		t.Errorf("gpu %q", sb.GPU)
	}
}
