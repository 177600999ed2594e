package sandbox

// LimitedBy says what keeps a sandbox within each of its limits: one of the By constants; "" = nothing does.
type LimitedBy struct {
	CPU       string `json:"cpu,omitempty"`
	Memory    string `json:"memory,omitempty"`
	PIDs      string `json:"pids,omitempty"`
	Disk      string `json:"disk,omitempty"`
	OpenFiles string `json:"open_files,omitempty"`
	Output    string `json:"output,omitempty"`
}

// What may keep a limit.
const (
	ByCgroup1  = "cgroup v1" // the host's kernel, exactly
	ByCgroup2  = "cgroup v2" // the host's kernel, exactly
	ByGVisor   = "gvisor"    // gVisor itself, exactly
	ByRlimit   = "rlimit"    // the kernel inside, exactly
	ByGuest    = "guest"     // the helper inside
	ByWatchdog = "watchdog"  // the server looks ten times a second: a burst may go over it for a moment
	ByAffinity = "affinity"  // whole cores of the host, rounded up; a fraction of one is a lower priority on it
)

// The limits of a sandbox that asks for none. The others are not limited then.
const (
	DefaultDiskMiB   = 10240
	DefaultPIDs      = 4096
	DefaultOpenFiles = 1 << 16
)
