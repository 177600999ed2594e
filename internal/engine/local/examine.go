package local

import (
	"fmt"
	"os"
	"strings"
)

// Level says how much a Finding matters.
type Level int

// The levels of a finding.
const (
	Fine    Level = iota
	Notable       // it works, with a limit that the text names
	Fault         // sandboxes don't work; the text says what to do
)

// Finding is one fact about this host.
type Finding struct {
	Level Level
	What  string
	Found string
}

// Examine looks at what this host has for sandboxes whose data is in dir. It starts nothing.
func Examine(dir string) []Finding {
	var out []Finding
	add := func(l Level, what, format string, args ...any) {
		out = append(out, Finding{l, what, fmt.Sprintf(format, args...)})
	}
	var c cgroups
	ids, err := currentRange()
	switch {
	case err != nil:
		add(Fault, "users", "%v", err)
	case ids.perVolume:
		add(Fine, "users", "root: each volume and its sandboxes have uids that belong to nobody on this host")
		c = hostCgroups(installation(dir)) // not the engine's own, which has a directory of its own in dir
		defer c.close()
	case ids.single:
		add(Notable, "users", "rootless with one uid: everything in a sandbox is root there and you on this host; "+
			"install newuidmap (package uidmap) and give yourself a range in /etc/subuid and /etc/subgid for an ordinary user inside")
	default:
		add(Fine, "users", "rootless with your range of /etc/subuid")
	}
	if err == nil {
		out = append(out, examineLimits(c, ids)...)
	}
	if g, err := findGPUs(""); err == nil {
		add(Fine, "GPU", "%d of NVIDIA's, driver %s", len(g.devices), g.version)
	} else if _, gone := os.Stat("/dev/nvidiactl"); gone != nil {
		add(Fine, "GPU", "none; sandboxes that ask for one are refused")
	} else {
		add(Notable, "GPU", "none for sandboxes: %v", err)
	}
	if err == nil {
		examineNetwork(ids, installation(dir), add)
	}
	if n, err := free(dir); err != nil {
		add(Fault, "disk", "%v", err)
	} else if n < minFree {
		add(Fault, "disk", "%s has only %d MiB left: free some, or use another --data", dir, n>>20)
	} else if n < 4<<30 {
		add(Notable, "disk", "%s has only %d MiB left", dir, n>>20)
	} else {
		add(Fine, "disk", "%s has %d GiB left", dir, n>>30)
	}
	if data, err := os.ReadFile("/proc/sys/vm/max_map_count"); err == nil {
		var n int
		if _, err := fmt.Sscan(strings.TrimSpace(string(data)), &n); err == nil && n < 65530 {
			add(Notable, "memory maps", "vm.max_map_count is %d: large programs in a sandbox may fail; as root: sysctl -w vm.max_map_count=262144", n)
		}
	}
	return out
}

// examineLimits says what keeps which limit of a sandbox.
func examineLimits(c cgroups, ids idRange) []Finding {
	level := Fine
	say := func(what, controller, otherwise string) string {
		if by := c.by(controller, ""); by != "" {
			return what + " by " + by
		}
		level = Notable
		return what + " " + otherwise
	}
	parts := []string{
		say("memory", "memory", "by a watchdog, so a burst may go over it for a moment"),
		say("CPU", "cpu", "by whole cores, and a fraction of one by priority only"),
		"disk by gVisor (a volume is not limited)",
		"processes and open files inside by rlimits",
		"output by the helper",
	}
	text := strings.Join(parts, "; ")
	switch {
	case level == Notable && ids.perVolume:
		text += "; this host has no cgroup for the first that Sandlot may use: mount /sys/fs/cgroup writable, with its controllers"
	case level == Notable:
		text += "; as root, with cgroups, the first are exact"
	}
	if ids.perVolume && !c.has("pids") {
		text += "; no pids cgroup, so gVisor's own processes on the host are not counted"
	}
	return []Finding{{level, "limits", text}}
}
