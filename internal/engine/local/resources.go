package local

import (
	"encoding/json"
	"io"
	"math"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// What a specification says of limits, gVisor acts on with cgroups, which we don't let it. So its processes are told here, on their way to
// it. The sentry learns what to show as the memory and the cores that there are: by that programs size their heaps and pools, and the guest
// sees how much is used. And where no cgroup limits the CPU, sentry and gofer limit themselves to some cores.

// resources is what a specification says of the limits.
func (e *Engine) resources(spec sandbox.Spec) (*specs.LinuxResources, *specs.Scheduler) {
	r := &specs.LinuxResources{}
	if spec.MemoryMiB > 0 {
		limit := spec.MemoryMiB << 20
		r.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	if spec.CPU <= 0 {
		return r, nil
	}
	quota, period := int64(spec.CPU*cpuPeriodUS), uint64(cpuPeriodUS)
	r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	if e.cgroups.has("cpu") {
		return r, nil
	}
	r.CPU.Cpus = chooseCores(spec.CPU)
	return r, &specs.Scheduler{Policy: specs.SchedOther, Nice: int32(niceOf(spec.CPU))}
}

// takeResources does what the specification of a sentry or gofer says, and returns the arguments that tell gVisor the rest. Arguments of
// other processes are returned as they are.
func takeResources(args []string) []string {
	fd := -1
	for i, a := range args {
		if value, ok := strings.CutPrefix(a, "--spec-fd="); ok {
			fd, _ = strconv.Atoi(value) // ours; and else there is no such descriptor
		} else if a == "--spec-fd" && i+1 < len(args) {
			fd, _ = strconv.Atoi(args[i+1])
		}
	}
	var spec struct {
		Process struct {
			Scheduler *specs.Scheduler `json:"scheduler"`
		} `json:"process"`
		Linux struct {
			Resources specs.LinuxResources `json:"resources"`
		} `json:"linux"`
	}
	// Read by position: gVisor reads it too.
	if fd < 3 || json.NewDecoder(io.NewSectionReader(specFile(fd), 0, math.MaxInt64)).Decode(&spec) != nil {
		return args
	}
	r := spec.Linux.Resources
	if r.CPU != nil && r.CPU.Cpus != "" {
		nice := 0
		if spec.Process.Scheduler != nil {
			nice = int(spec.Process.Scheduler.Nice)
		}
		confine(r.CPU.Cpus, nice)
	}
	if !slices.Contains(args, "boot") {
		return args
	}
	return tellSentry(args, r, goruntime.NumCPU())
}

// tellSentry changes a sentry's arguments to what the resources are. most is how many cores there are.
func tellSentry(args []string, r specs.LinuxResources, most int) []string {
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
	if r.Memory != nil && r.Memory.Limit != nil {
		set("--total-memory", strconv.FormatInt(*r.Memory.Limit, 10))
	}
	if r.CPU != nil && r.CPU.Quota != nil && r.CPU.Period != nil {
		// Programs that see one core leave out locks, and a quota is no core: what it allows may run at once on several.
		n := max(2, int(math.Ceil(float64(*r.CPU.Quota)/float64(*r.CPU.Period))))
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

// nextCore spreads sandboxes over the cores.
var nextCore atomic.Int64

// chooseCores names as many of this host's cores as cpu needs.
func chooseCores(cpu float64) string {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return ""
	}
	var ours []int
	for i := range len(all) * 64 {
		if all.IsSet(i) {
			ours = append(ours, i)
		}
	}
	n := min(int(math.Ceil(cpu)), len(ours))
	var names []string
	for first := int(nextCore.Add(int64(n))); n > 0; n-- {
		names = append(names, strconv.Itoa(ours[(first+n)%len(ours)]))
	}
	return strings.Join(names, ",")
}

// confine lets this process, and what it starts, use only the cores that are named, at a lower priority. It is of the threads, so it is
// done to each until none is new. A host that doesn't let us has the sandbox all the same, for a share of the CPU is no wall.
func confine(names string, nice int) {
	var cores unix.CPUSet
	for _, name := range strings.Split(names, ",") {
		if n, err := strconv.Atoi(name); err == nil {
			cores.Set(n)
		}
	}
	done := map[string]bool{}
	for again := true; again; {
		again = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return // gVisor has started itself over in its own root: what it was before has done it
		}
		for _, t := range threads {
			id, ok := ownNumber(t.Name())
			if !ok || done[t.Name()] {
				continue
			}
			done[t.Name()], again = true, true
			_ = unix.SchedSetaffinity(id, &cores) // see above
			if nice > 0 {
				now, err := unix.Getpriority(unix.PRIO_PROCESS, id) // 20 - nice
				if err == nil && 20-now < nice {
					_ = unix.Setpriority(unix.PRIO_PROCESS, id, nice) // see above
				}
			}
		}
	}
}

// ownNumber translates a thread's number in /proc, which is of the namespace that we come from, to the one by which we can name it.
func ownNumber(thread string) (int, bool) {
	data, err := os.ReadFile("/proc/self/task/" + thread + "/status")
	if err != nil {
		return 0, false // it has ended
	}
	_, rest, ok := strings.Cut(string(data), "\nNSpid:")
	line, _, _ := strings.Cut(rest, "\n")
	numbers := strings.Fields(line)
	if !ok || len(numbers) == 0 {
		return 0, false
	}
	id, err := strconv.Atoi(numbers[len(numbers)-1])
	return id, err == nil
}

// niceOf is the priority at which a share of ⌈cpu⌉ cores gets cpu/⌈cpu⌉ of what an ordinary process gets: each step is a factor of 1.25.
func niceOf(cpu float64) int {
	share := cpu / math.Ceil(cpu)
	return min(19, int(math.Round(-math.Log(share)/math.Log(1.25))))
}
