package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// tree makes a directory that stands for the hierarchies of a host, and returns it with the mounts that tell of it.
func tree(t *testing.T, mounts string) (dir, table string) {
	t.Helper()
	dir = t.TempDir()
	table = strings.ReplaceAll(mounts, "ROOT", dir)
	for line := range strings.Lines(table) {
		if err := os.MkdirAll(strings.Fields(line)[1], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir, table
}

const (
	mountsV2 = "cgroup2 ROOT cgroup2 rw 0 0\n"
	mountsV1 = "cgroup ROOT/memory cgroup rw,memory 0 0\ncgroup ROOT/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n" +
		"cgroup ROOT/pids cgroup rw,pids 0 0\ncgroup2 ROOT/unified cgroup2 rw 0 0\n"
)

func TestPlace(t *testing.T) {
	t.Parallel()
	all := sandbox.Spec{MemoryMiB: 300, CPU: 1.5, PIDs: 100}
	cmd := exec.CommandContext(t.Context(), "sleep", "600") // without children
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // it is killed
	pid := strconv.Itoa(cmd.Process.Pid)
	const memory = "448790528" // 300 MiB and what gVisor itself may use
	for name, c := range map[string]struct {
		mounts string
		spec   sandbox.Spec
		want   map[string]string // by the path below the root
		by     string
	}{
		"v2": {mountsV2, all, map[string]string{
			"ours/box/memory.max": memory, "ours/box/memory.swap.max": "0", "ours/box/memory.oom.group": "1", "ours/box/cpu.max": "150000 100000",
			"ours/box/pids.max": "600", "ours/box/cgroup.procs": pid,
		}, sandbox.ByCgroup2},
		"v2, nothing asked": {mountsV2, sandbox.Spec{}, map[string]string{
			"ours/box/pids.max": "12588", "ours/box/cgroup.procs": pid, "ours/box/memory.max": "", "ours/box/cpu.max": "",
		}, sandbox.ByCgroup2},
		"v1": {mountsV1, all, map[string]string{
			"memory/ours/box/memory.limit_in_bytes": memory, "memory/ours/box/memory.memsw.limit_in_bytes": memory, "memory/ours/box/cgroup.procs": pid,
			"cpu,cpuacct/ours/box/cpu.cfs_quota_us": "150000", "cpu,cpuacct/ours/box/cgroup.procs": pid,
			"pids/ours/box/pids.max": "600", "pids/ours/box/cgroup.procs": pid,
		}, sandbox.ByCgroup1},
		"v1, nothing asked": {mountsV1, sandbox.Spec{}, map[string]string{
			"pids/ours/box/pids.max": "12588", "memory/ours/box/cgroup.procs": "", "cpu,cpuacct/ours/box/cgroup.procs": "",
		}, sandbox.ByCgroup1},
		"none": {"", all, nil, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, table := tree(t, c.mounts)
			g := findCgroups("ours", strings.NewReader(table))
			for _, controller := range controllers {
				if by := g.by(controller, "other"); by != c.by {
					t.Errorf("%s is limited by %s", controller, by)
				}
			}
			if err := g.place("box", c.spec, cmd.Process.Pid, 0); err != nil {
				t.Fatal(err)
			}
			for path, want := range c.want {
				got, err := os.ReadFile(filepath.Join(dir, path))
				if string(got) != want || (err != nil) != (want == "") {
					t.Errorf("%s is %q, want %q; %v", path, got, want, err)
				}
			}
		})
	}
}

func TestCgroup2HandsControllersDown(t *testing.T) {
	t.Parallel()
	dir, table := tree(t, mountsV2)
	findCgroups("ours", strings.NewReader(table))
	for _, path := range []string{"cgroup.subtree_control", "ours/cgroup.subtree_control"} {
		if got, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(got) != "+pids" { // the last of them
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	// A controller that the kernel doesn't hand down is not to be had; it is no reason to have none.
	dir, table = tree(t, mountsV2)
	if err := os.Mkdir(filepath.Join(dir, "cgroup.subtree_control"), 0o755); err != nil { // nothing can be written
		t.Fatal(err)
	}
	if g := findCgroups("ours", strings.NewReader(table)); g.by("memory", "") != "" {
		t.Errorf("memory is limited by %q", g.by("memory", ""))
	}
}

func TestOOMKills(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mounts, file, text string
		want               int
	}{
		"v1":            {mountsV1, "memory/ours/box/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2},
		"v1, none":      {mountsV1, "memory/ours/box/memory.oom_control", "oom_kill_disable 1\nunder_oom 1\noom_kill 0\n", 0},
		"v2":            {mountsV2, "ours/box/memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 1\noom_group_kill 1\n", 1},
		"v2, only near": {mountsV2, "ours/box/memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 0\noom_group_kill 0\n", 0},
		"no cgroup":     {mountsV2, "ours/another/memory.events", "oom_kill 1\n", 0},
	} {
		dir, table := tree(t, c.mounts)
		g := findCgroups("ours", strings.NewReader(table))
		path := filepath.Join(dir, c.file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if n := g.oomKills("box"); n != c.want {
			t.Errorf("%s: %d", name, n)
		}
	}
}

// What a host can't do exactly is said.
func TestExamineLimits(t *testing.T) {
	t.Parallel()
	_, table := tree(t, mountsV1)
	whole := findCgroups("ours", strings.NewReader(table))
	for name, c := range map[string]struct {
		c     cgroups
		ids   idRange
		level Level
		says  []string
	}{
		"root":            {whole, idRange{perVolume: true}, Fine, []string{"memory by cgroup v1", "CPU by cgroup v1", "disk by gVisor"}},
		"root, no cgroup": {cgroups{}, idRange{perVolume: true}, Notable, []string{"watchdog", "whole cores", "mount /sys/fs/cgroup", "no pids cgroup"}},
		"rootless":        {cgroups{}, idRange{}, Notable, []string{"watchdog", "as root"}},
	} {
		found := examineLimits(c.c, c.ids)
		if len(found) != 1 || found[0].Level != c.level || found[0].What != "limits" {
			t.Errorf("%s: %+v", name, found)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(found[0].Found, s) {
				t.Errorf("%s: %q isn't in %q", name, s, found[0].Found)
			}
		}
	}
}

func TestTellSentry(t *testing.T) {
	t.Parallel()
	e := &Engine{}
	limited, _ := e.resources(sandbox.Spec{MemoryMiB: 300, CPU: 2.5})
	none, scheduler := e.resources(sandbox.Spec{})
	if scheduler != nil {
		t.Errorf("without a limit: %+v", scheduler)
	}
	given := []string{"runsc-sandbox", "--root=/r", "boot", "--spec-fd=9", "--total-memory", "8000000000", "sbx_1-1"}
	want := []string{"runsc-sandbox", "--root=/r", "boot", "--spec-fd=9", "--total-memory", "314572800", "--cpu-num=3", "sbx_1-1"}
	got := tellSentry(given, *limited, 8)
	if !slices.Equal(got, want) {
		t.Errorf("it is told %q", got)
	}
	if again := tellSentry(got, *limited, 8); !slices.Equal(again, want) {
		t.Errorf("told twice it is %q", again)
	}
	want[6] = "--cpu-num=2"
	if got := tellSentry(given, *limited, 2); !slices.Equal(got, want) {
		t.Errorf("on two cores it is told %q", got)
	}
	if got := tellSentry(given, *none, 8); !slices.Equal(got, given) {
		t.Errorf("without a limit it is told %q", got)
	}
	if got := takeResources([]string{"sandlot", "serve"}); !slices.Equal(got, []string{"sandlot", "serve"}) {
		t.Errorf("another process is told %q", got)
	}
}

func TestNice(t *testing.T) {
	t.Parallel()
	for cpu, want := range map[float64]int{1: 0, 2: 0, 0.8: 1, 0.5: 3, 1.5: 1, 0.1: 10, 0.001: 19} {
		if got := niceOf(cpu); got != want {
			t.Errorf("%v cores have priority %d, want %d", cpu, got, want)
		}
	}
}
