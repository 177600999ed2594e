package guest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// process is what /proc says of one.
type process struct {
	pid, parent, group, session int

	resident int64  // bytes of memory that it has in use
	ticks    int64  // of the clock that it and its ended children have used, a hundred to the second
	began    string // its start time, which with the pid names it for good
	dead     bool   // a zombie
}

// processes lists everything that /proc shows. What can't be read has ended in between.
func processes() []process {
	names, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is good; without /proc there is nothing to see
	list := make([]process, 0, len(names))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if p, ok := parseStat(b); ok {
			list = append(list, p)
		}
	}
	return list
}

// parseStat reads a line of /proc/PID/stat. The name in it may hold anything, so fields count from its last ")".
func parseStat(b []byte) (process, bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return process{}, false
	}
	f := bytes.Fields(b[end+1:])
	if len(f) < 20 {
		return process{}, false
	}
	var p process
	var err [4]error
	p.pid, err[0] = strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	p.parent, err[1] = strconv.Atoi(string(f[1]))
	p.group, err[2] = strconv.Atoi(string(f[2]))
	p.session, err[3] = strconv.Atoi(string(f[3]))
	for _, e := range err {
		if e != nil {
			return process{}, false
		}
	}
	p.dead = f[0][0] == 'Z' || f[0][0] == 'X'
	p.began = string(f[19])
	for _, field := range f[11:15] { // user and system time, its own and that of children it has waited for
		if n, err := strconv.ParseInt(string(field), 10, 64); err == nil {
			p.ticks += n
		}
	}
	if len(f) > 21 {
		if pages, err := strconv.ParseInt(string(f[21]), 10, 64); err == nil {
			p.resident = pages * int64(os.Getpagesize())
		}
	}
	return p, true
}

// family finds all that belongs to a run: its first process, the members of that one's session and group, what descends
// from any of these, and what is in known from an earlier look. What left all of that behind is a daemon of its own.
func family(root int, known map[int]process) map[int]process {
	all := processes()
	found := make(map[int]process)
	for _, p := range all {
		k, was := known[p.pid]
		if p.pid == root || p.session == root || p.group == root || was && k.began == p.began {
			found[p.pid] = p
		}
	}
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if _, is := found[p.pid]; is {
				continue
			}
			if _, is := found[p.parent]; is && p.parent > 1 {
				found[p.pid] = p
				grew = true
			}
		}
	}
	delete(found, os.Getpid())
	for pid, p := range found {
		if p.dead {
			delete(found, pid)
		}
	}
	return found
}

// signalFamily sends sig to each process of the run and returns whom it found.
func signalFamily(root int, known map[int]process, sig syscall.Signal) map[int]process {
	found := family(root, known)
	_ = syscall.Kill(-root, sig) // the group at once, so that a new fork in it gets the signal too; ESRCH: it is empty
	for pid, p := range found {
		if p.group != root {
			_ = syscall.Kill(pid, sig) // ESRCH: it has just ended
		}
	}
	return found
}

// killFamily kills until nothing of the run is left: a process may fork while we look.
func killFamily(root int, known map[int]process) {
	const rounds, pause = 50, 10 * time.Millisecond
	for range rounds {
		found := signalFamily(root, known, syscall.SIGKILL)
		if len(found) == 0 {
			return
		}
		if known == nil {
			known = make(map[int]process)
		}
		for pid, p := range found {
			known[pid] = p
		}
		time.Sleep(pause)
	}
}
