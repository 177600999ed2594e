package local

import (
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// gVisor shows a sandbox the memory and the cores that the cgroup has which gVisor itself made. Ours are not made by it, and some
// hosts have none. So its sentry is told here, on its way to it, what the specification says: by that programs size their heaps and
// pools, and the guest sees how much of it is used.

// ociResources is what a specification says of the limits. gVisor itself doesn't act on it, see ignore-cgroups.
func ociResources(spec sandbox.Spec) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if spec.MemoryMiB > 0 {
		limit := spec.MemoryMiB << 20
		r.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	if spec.CPU > 0 {
		quota, period := int64(spec.CPU*cpuPeriodUS), uint64(cpuPeriodUS)
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	return r
}

// tellResources changes a sentry's arguments to what its specification says; those of other processes it returns as they are.
func tellResources(args []string, most int) []string {
	boot := slices.Index(args, "boot")
	if filepath.Base(args[0]) != string(roleSentry) && args[0] != "/proc/self/exe" || boot < 0 || len(args) < boot+2 {
		return args
	}
	fd := -1
	for i, a := range args {
		if value, ok := strings.CutPrefix(a, "--spec-fd="); ok {
			fd, _ = strconv.Atoi(value) // ours; and else there is no such descriptor
		} else if a == "--spec-fd" && i+1 < len(args) {
			fd, _ = strconv.Atoi(args[i+1])
		}
	}
	var spec struct {
		Linux struct {
			Resources specs.LinuxResources `json:"resources"`
		} `json:"linux"`
	}
	// Read by position: gVisor reads it too.
	if fd < 3 || json.NewDecoder(io.NewSectionReader(specFile(fd), 0, math.MaxInt64)).Decode(&spec) != nil {
		return args
	}
	out, id := slices.Clone(args[:len(args)-1]), args[len(args)-1]
	set := func(flag, value string) {
		i := slices.IndexFunc(out, func(a string) bool { return a == flag || strings.HasPrefix(a, flag+"=") })
		switch {
		case i < 0:
			out = append(out, flag+"="+value)
		case out[i] == flag && i+1 < len(out):
			out[i+1] = value
		default:
			out[i] = flag + "=" + value
		}
	}
	if m := spec.Linux.Resources.Memory; m != nil && m.Limit != nil {
		set("--total-memory", strconv.FormatInt(*m.Limit, 10))
	}
	if c := spec.Linux.Resources.CPU; c != nil && c.Quota != nil && c.Period != nil {
		// Programs that see one core leave out locks, and a quota is no core: what it allows may run at once on several.
		n := max(2, int(math.Ceil(float64(*c.Quota)/float64(*c.Period))))
		set("--cpu-num", strconv.Itoa(min(n, most)))
	}
	return append(out, id)
}

// specFile reads a descriptor that stays its owner's.
type specFile int

func (f specFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := unix.Pread(int(f), b, off)
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return max(n, 0), err
}

// hostMemoryMiB is how much memory this host has.
func hostMemoryMiB() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(uint64(info.Totalram) * uint64(info.Unit) >> 20)
}

// cores is how many cores of this host this process may use.
func cores() int { return goruntime.NumCPU() }

// limitedBy says what keeps each limit of a sandbox here.
func (e *Engine) limitedBy() sandbox.LimitedBy {
	return sandbox.LimitedBy{
		CPU:       e.cgroups.by("cpu", sandbox.ByAffinity),
		Memory:    e.cgroups.by("memory", sandbox.ByWatchdog),
		PIDs:      sandbox.ByRlimit,
		Disk:      sandbox.ByGVisor,
		OpenFiles: sandbox.ByRlimit,
		Output:    sandbox.ByGuest,
	}
}

// withCores calls start on a thread that may only use as many of this host's cores as cpu needs, so that all processes that it starts
// may use no others, ever. A share of a core is a lower priority on it. cpu = 0 is no limit.
func withCores(cpu float64, start func() error) error {
	if cpu <= 0 {
		return start()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and what was set for it.
		goruntime.LockOSThread()
		if err := confineCores(cpu); err != nil {
			done <- err
			return
		}
		done <- start()
	}()
	return <-done
}

// nextCore spreads sandboxes over the cores.
var nextCore atomic.Int64

func confineCores(cpu float64) error {
	var all, some unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	var ours []int
	for i := range len(all) * 64 {
		if all.IsSet(i) {
			ours = append(ours, i)
		}
	}
	n := min(int(math.Ceil(cpu)), len(ours))
	for first := int(nextCore.Add(int64(n))); n > 0; n-- {
		some.Set(ours[(first+n)%len(ours)])
	}
	if err := unix.SchedSetaffinity(0, &some); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	nice := niceOf(cpu)
	if nice == 0 {
		return nil
	}
	now, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 - nice
	if err != nil {
		return os.NewSyscallError("getpriority", err)
	}
	// On Linux this is of the thread alone.
	return os.NewSyscallError("setpriority", unix.Setpriority(unix.PRIO_PROCESS, 0, min(19, 20-now+nice)))
}

// niceOf is the priority at which a share of ⌈cpu⌉ cores gets cpu/⌈cpu⌉ of what an ordinary process gets: each step is a factor of 1.25.
func niceOf(cpu float64) int {
	share := cpu / math.Ceil(cpu)
	return min(19, int(math.Round(-math.Log(share)/math.Log(1.25))))
}
