package local

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// cgroups places sandboxes in cgroups of their own, v1 or v2. gVisor's own code for that would, on v1, move the calling
// process along. The zero value, a host that has none we may use, limits nothing.
type cgroups struct {
	dirs map[string]string // by controller: our directory in its hierarchy, the same one on v2; none that is not to be had
	v2   bool
}

// controllers are those that sandboxes are limited by.
var controllers = []string{"memory", "cpu", "pids"}

func (c cgroups) has(controller string) bool { return c.dirs[controller] != "" }

// by names what limits a controller's resource, or says else.
func (c cgroups) by(controller, otherwise string) string {
	switch {
	case !c.has(controller):
		return otherwise
	case c.v2:
		return sandbox.ByCgroup2
	default:
		return sandbox.ByCgroup1
	}
}

// installation names our directory in the hierarchies, so that two servers on one host don't meet.
func installation(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "sandlot-" + hex.EncodeToString(sum[:4])
}

// hostCgroups looks for hierarchies of this host in which a directory can be made.
func hostCgroups(name string) cgroups {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return cgroups{}
	}
	defer f.Close()
	return findCgroups(name, f)
}

// findCgroups is hostCgroups with the mounts to look at.
func findCgroups(name string, mounts io.Reader) cgroups {
	v1, v2 := parseMounts(mounts)
	c := cgroups{dirs: map[string]string{}}
	for controller, mount := range v1 {
		if dir := filepath.Join(mount, name); usable(dir) {
			c.dirs[controller] = dir
		}
	}
	if len(v1) > 0 || v2 == "" {
		return c
	}
	// v2: the controllers must be handed down twice, to our directory and from there to the sandboxes'.
	dir := filepath.Join(v2, name)
	if !usable(dir) {
		return c
	}
	c.v2 = true
	for _, controller := range controllers {
		down := []byte("+" + controller)
		if os.WriteFile(filepath.Join(v2, "cgroup.subtree_control"), down, 0) == nil &&
			os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), down, 0) == nil {
			c.dirs[controller] = dir
		}
	}
	return c
}

func usable(dir string) bool {
	err := os.Mkdir(dir, 0o755)
	return err == nil || errors.Is(err, fs.ErrExist)
}

// parseMounts reads /proc/self/mounts: where each v1 controller is, and where v2 is.
func parseMounts(r io.Reader) (v1 map[string]string, v2 string) {
	v1 = map[string]string{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			continue
		}
		switch f[2] {
		case "cgroup":
			for _, option := range strings.Split(f[3], ",") {
				if slices.Contains(controllers, option) {
					v1[option] = f[1]
				}
			}
		case "cgroup2":
			v2 = f[1]
		}
	}
	return v1, v2
}

const (
	cpuPeriodUS = 100_000

	// gvisorMiB is what gVisor's own processes may use beside the sandbox's memory: about 50 idle, more with many processes.
	gvisorMiB = 128

	// A process inside costs some on the host, and gVisor itself has some.
	hostPerProcess, hostProcesses = 3, 300
)

// setting is a value for a file of a cgroup.
type setting struct {
	controller, file, value string
	optional                bool // not every kernel has the file
}

// settings are what spec asks of the sandbox's cgroups.
func (c cgroups) settings(spec sandbox.Spec) []setting {
	var all []setting
	add := func(controller, v1, v2, value string, optional bool) {
		file := v1
		if c.v2 {
			file = v2
		}
		if c.has(controller) && file != "" {
			all = append(all, setting{controller, file, value, optional})
		}
	}
	if spec.MemoryMiB > 0 {
		bytes := strconv.FormatInt((spec.MemoryMiB+gvisorMiB)<<20, 10)
		add("memory", "memory.limit_in_bytes", "memory.max", bytes, false)
		add("memory", "memory.memsw.limit_in_bytes", "", bytes, true) // memory and swap together
		add("memory", "", "memory.swap.max", "0", true)
		add("memory", "", "memory.oom.group", "1", true) // half a sandbox is of no use
	}
	if spec.CPU > 0 {
		quota := strconv.FormatInt(int64(spec.CPU*cpuPeriodUS), 10)
		if c.v2 {
			quota += " " + strconv.Itoa(cpuPeriodUS)
		}
		add("cpu", "cpu.cfs_quota_us", "cpu.max", quota, false)
	}
	// The processes inside are counted by gVisor's kernel. This is for what breaks out of it.
	add("pids", "pids.max", "pids.max", strconv.FormatInt(cmp.Or(spec.PIDs, sandbox.DefaultPIDs)*hostPerProcess+hostProcesses, 10), false)
	return all
}

// place moves the processes, and the children they have so far, under spec's limits.
func (c cgroups) place(k string, spec sandbox.Spec, pids ...int) error {
	var placed []string
	for _, s := range c.settings(spec) {
		dir := filepath.Join(c.dirs[s.controller], k)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, s.file), []byte(s.value), 0); err != nil && !s.optional {
			return err
		}
		if !slices.Contains(placed, dir) {
			placed = append(placed, dir)
		}
	}
	for _, dir := range placed {
		// Each process first, and then its children: those that it starts later are where it is.
		for all, i := livingPIDs(pids), 0; i < len(all); i++ {
			err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(all[i])), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("placing process %d: %w", all[i], err)
			}
			all = appendChildren(all, all[i])
		}
	}
	return nil
}

// oomKills is how many processes of the run the host's kernel has killed because its memory was used up.
func (c cgroups) oomKills(k string) int {
	if !c.has("memory") {
		return 0
	}
	file := "memory.oom_control"
	if c.v2 {
		file = "memory.events"
	}
	data, err := os.ReadFile(filepath.Join(c.dirs["memory"], k, file))
	if err != nil {
		return 0 // it has no cgroup, or none any more
	}
	for line := range strings.Lines(string(data)) {
		var n int
		if _, err := fmt.Sscanf(line, "oom_kill %d", &n); err == nil {
			return n
		}
	}
	return 0
}

// descendants returns the processes and all below them.
func descendants(pids []int) []int {
	all := livingPIDs(pids)
	for i := 0; i < len(all); i++ {
		all = appendChildren(all, all[i])
	}
	return all
}

func livingPIDs(pids []int) []int {
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return pid <= 0 })
}

// appendChildren adds the children of a process that all lacks.
func appendChildren(all []int, parent int) []int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent)) // the pattern is well formed
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil && !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
	}
	return all
}

// remove takes the run's cgroups away; its processes have been killed.
func (c cgroups) remove(ctx context.Context, k string) error {
	var errs []error
	for _, dir := range c.dirs {
		errs = append(errs, removeCgroup(ctx, filepath.Join(dir, k)))
	}
	return errors.Join(errs...)
}

// close takes our own directories away, unless sandboxes live in them.
func (c cgroups) close() {
	for _, dir := range c.dirs {
		_ = unix.Rmdir(dir) // what is in use stays
	}
}

func removeCgroup(ctx context.Context, dir string) error {
	// The kernel lets go of a killed process's cgroup a little after its end.
	for try := 0; ; try++ {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || try == 400 {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for cgroup %s to be empty: %w", dir, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
