package local_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/engine/enginetest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Where there is no cgroup, limits are kept by what there is.
func TestLimitsWithoutCgroups(t *testing.T) {
	cfg := config(t, workDir(t))
	cfg.NoCgroups = true
	e := open(t, cfg)
	if by := e.Capabilities().Limits; by.Memory != sandbox.ByWatchdog || by.CPU != sandbox.ByAffinity || by.Disk != sandbox.ByGVisor {
		t.Errorf("they are kept by %+v", by)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	enginetest.RunLimits(t, harness(cfg))
}

// Without a cgroup, gVisor's processes may only use as many cores as are asked for, and a share of one at a lower priority.
func TestCPUWithoutCgroups(t *testing.T) {
	cfg := config(t, workDir(t))
	cfg.NoCgroups = true
	e := open(t, cfg)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 - nice; whoever runs the tests may be nice, and nobody gets a higher priority
	if err != nil {
		t.Fatal(err)
	}
	for cpu, nice := range map[float64]int{0.5: 3, 1: 0} {
		nice = max(nice, 20-own)
		sp := spec()
		sp.CPU = cpu
		ref := create(t, e, sp)
		found := 0
		for _, pid := range pids(t) {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone is no match
			if !strings.HasPrefix(string(cmdline), "runsc-") || !strings.Contains(string(cmdline), string(ref.ID)) {
				continue
			}
			found++
			for _, thread := range threads(t, pid) {
				stat, err := os.ReadFile(thread + "/stat")
				if errors.Is(err, os.ErrNotExist) {
					continue // it has ended
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := allowed(t, thread); got != 1 {
					t.Errorf("%v cores: %s may use %d", cpu, thread, got)
				}
				_, rest, _ := strings.Cut(string(stat), ") ")
				// gVisor makes some of its own a little lower.
				if got, err := strconv.Atoi(strings.Fields(rest)[16]); err != nil || got < nice || got > nice+1 {
					t.Errorf("%v cores: %s has priority %d, want %d; %v", cpu, thread, got, nice, err)
				}
			}
		}
		if found != 2 {
			t.Errorf("%v cores: %d processes", cpu, found)
		}
		destroy(t, e, ref)
	}
}

// threads are the directories in /proc of all threads of a process and its children.
func threads(t *testing.T, pid int) []string {
	t.Helper()
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(all) == 0 {
		t.Fatal(pid, err)
	}
	for _, thread := range all {
		children, err := os.ReadFile(thread + "/children")
		if err != nil {
			t.Fatal(err)
		}
		for _, child := range strings.Fields(string(children)) {
			if n, err := strconv.Atoi(child); err == nil {
				all = append(all, threads(t, n)...)
			}
		}
	}
	return all
}

// allowed is how many cores a thread may use.
func allowed(t *testing.T, thread string) (n int) {
	t.Helper()
	data, err := os.ReadFile(thread + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "Cpus_allowed_list:")
	list, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	for _, part := range strings.Split(list, ",") {
		from, to, ok := strings.Cut(part, "-")
		first, err1 := strconv.Atoi(from)
		last := first
		var err2 error
		if ok {
			last, err2 = strconv.Atoi(to)
		}
		if err1 != nil || err2 != nil {
			t.Fatalf("cores %q", list)
		}
		n += last - first + 1
	}
	return n
}
