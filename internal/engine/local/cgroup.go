package local

import (
	"bufio"
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
	memoryDir, cpuDir string // our directory in each hierarchy; the same one on v2; "" = not to be had
	v2                bool
}

func (c cgroups) cpu() bool    { return c.cpuDir != "" }
func (c cgroups) memory() bool { return c.memoryDir != "" }

func (c cgroups) String() string {
	version := "v1"
	if c.v2 {
		version = "v2"
	}
	switch {
	case c.cpu() && c.memory():
		return "cgroup " + version + ": CPU and memory"
	case c.cpu():
		return "cgroup " + version + ": CPU only"
	case c.memory():
		return "cgroup " + version + ": memory only"
	default:
		return "no cgroup that may be used"
	}
}

// installation names our directory in the hierarchies, so that two servers on one host don't meet.
func installation(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "sandlot-" + hex.EncodeToString(sum[:4])
}

// findCgroups looks for hierarchies in which a directory can be made.
func findCgroups(name string) cgroups {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return cgroups{}
	}
	defer f.Close()
	v1, v2 := parseMounts(f)
	var c cgroups
	for controller, dir := range map[string]*string{"memory": &c.memoryDir, "cpu": &c.cpuDir} {
		if mount, ok := v1[controller]; ok && usable(filepath.Join(mount, name)) {
			*dir = filepath.Join(mount, name)
		}
	}
	if c.cpu() || c.memory() || v2 == "" {
		return c
	}
	// v2: the controllers must be handed down twice, to our directory and from there to the sandboxes'.
	dir := filepath.Join(v2, name)
	for _, d := range []string{v2, dir} {
		if d == dir && !usable(dir) {
			return cgroups{}
		}
		if err := os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), []byte("+cpu +memory"), 0); err != nil {
			return cgroups{}
		}
	}
	return cgroups{memoryDir: dir, cpuDir: dir, v2: true}
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
				if option == "memory" || option == "cpu" {
					v1[option] = f[1]
				}
			}
		case "cgroup2":
			v2 = f[1]
		}
	}
	return v1, v2
}

const cpuPeriodUS = 100_000

// place moves the processes, and the children they have so far, under spec's limits. Without any limit it does nothing.
func (c cgroups) place(k string, spec sandbox.Spec, pids ...int) error {
	limits := map[string]map[string]string{} // directory → file → value
	if spec.MemoryMiB > 0 {
		file := "memory.limit_in_bytes"
		if c.v2 {
			file = "memory.max"
		}
		limits[filepath.Join(c.memoryDir, k)] = map[string]string{file: strconv.FormatInt(spec.MemoryMiB<<20, 10)}
	}
	if spec.CPU > 0 {
		dir := filepath.Join(c.cpuDir, k)
		if limits[dir] == nil {
			limits[dir] = map[string]string{}
		}
		quota := strconv.FormatInt(int64(spec.CPU*cpuPeriodUS), 10)
		if c.v2 {
			limits[dir]["cpu.max"] = quota + " " + strconv.Itoa(cpuPeriodUS)
		} else {
			limits[dir]["cpu.cfs_quota_us"] = quota
		}
	}
	for dir, files := range limits {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for file, value := range files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
				return err
			}
		}
		for _, pid := range descendants(pids) {
			err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("placing process %d: %w", pid, err)
			}
		}
	}
	return nil
}

// descendants returns the processes and all below them.
func descendants(pids []int) []int {
	all := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return pid <= 0 })
	for i := 0; i < len(all); i++ {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i])) // the pattern is well formed
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
	}
	return all
}

// remove takes the run's cgroups away; its processes have been killed.
func (c cgroups) remove(ctx context.Context, k string) error {
	var errs []error
	for _, dir := range []string{c.memoryDir, c.cpuDir} {
		if dir != "" {
			errs = append(errs, removeCgroup(ctx, filepath.Join(dir, k)))
		}
	}
	return errors.Join(errs...)
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
