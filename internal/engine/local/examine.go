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
	ids, err := currentRange()
	switch {
	case err != nil:
		add(Fault, "users", "%v", err)
	case ids.perVolume:
		add(Fine, "users", "root: each volume and its sandboxes have uids that belong to nobody on this host")
		if c := findCgroups(installation(dir)); c.cpu() && c.memory() {
			add(Fine, "limits", "%s, disk, processes, open files", c)
		} else {
			add(Notable, "limits", "disk, processes, open files; %s, so sandboxes that ask for more limits are refused", c)
		}
	case ids.single:
		add(Notable, "users", "rootless with one uid: everything in a sandbox is root there and you on this host; "+
			"install newuidmap (package uidmap) and give yourself a range in /etc/subuid and /etc/subgid for an ordinary user inside")
		add(Notable, "limits", "disk, processes, open files; CPU and memory only as root")
	default:
		add(Fine, "users", "rootless with your range of /etc/subuid")
		add(Notable, "limits", "disk, processes, open files; CPU and memory only as root")
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
