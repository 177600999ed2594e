package guest

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ownFiles is how many descriptors the guest itself may have: it holds some for each run, and must not run out because they may have few.
const ownFiles = 1 << 16

// raiseOwnFiles lets the guest have many descriptors, however few those may have that it starts: they get what it was started with.
// Without the capability for it, it stays as it is.
func (n *nursery) raiseOwnFiles() {
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		n.log.Warn("the limit of open files can't be read", "err", err)
		return
	}
	own := syscall.Rlimit{Cur: max(ownFiles, was.Cur), Max: max(ownFiles, was.Max)}
	if own != was && syscall.Setrlimit(syscall.RLIMIT_NOFILE, &own) == nil {
		n.theirs = &was
	}
}

// limit sets what is started from now on. 0 leaves a limit as it is.
func (n *nursery) limit(l Limits) error {
	if !n.adopt { // we are part of another program, whose limits are not ours to change
		return nil
	}
	if l.OpenFiles > 0 {
		var own syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil {
			return fmt.Errorf("guest: limit open files: %w", err)
		}
		theirs := syscall.Rlimit{Cur: uint64(l.OpenFiles), Max: uint64(l.OpenFiles)}
		if theirs.Max > own.Max {
			own = theirs
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &own); err != nil {
				return fmt.Errorf("guest: limit open files: %w", err)
			}
		}
		n.mu.Lock()
		n.theirs = &theirs
		if theirs == own {
			n.theirs = nil // they inherit it
		}
		n.mu.Unlock()
	}
	if l.PIDs > 0 {
		// It doesn't hold for us, who have CAP_SYS_RESOURCE.
		rl := unix.Rlimit{Cur: uint64(l.PIDs), Max: uint64(l.PIDs)}
		if err := unix.Setrlimit(unix.RLIMIT_NPROC, &rl); err != nil {
			return fmt.Errorf("guest: limit processes: %w", err)
		}
	}
	return nil
}

// fork starts a process with its own limit of open files. The limit of another process can be set once that is there, so the process is
// traced until then: it stops before its program's first instruction. n.mu is held, and the thread is locked.
func (n *nursery) fork(path string, argv []string, attr *syscall.ProcAttr) (int, error) {
	if n.theirs == nil {
		return syscall.ForkExec(path, argv, attr)
	}
	traced, sys := *attr, *attr.Sys
	sys.Ptrace = true
	traced.Sys = &sys
	pid, err := syscall.ForkExec(path, argv, &traced)
	if err != nil {
		return 0, err
	}
	if err := n.limitStopped(pid); err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
		for {
			if _, err := syscall.Wait4(pid, nil, 0, nil); !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		return 0, fmt.Errorf("limit open files: %w", err)
	}
	return pid, nil
}

// limitStopped waits for a traced process to stop, limits it and lets it go.
func (n *nursery) limitStopped(pid int) error {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if !status.Stopped() {
		return errors.New("it was killed before it began")
	}
	theirs := unix.Rlimit{Cur: n.theirs.Cur, Max: n.theirs.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &theirs, nil); err != nil {
		return err
	}
	return syscall.PtraceDetach(pid)
}

// How often the use of memory is looked at: the less, the further it is from the point at which the guest acts. Programs fill memory no
// faster than fillRate.
const (
	memorySeldom  = 250 * time.Millisecond
	memoryOften   = 10 * time.Millisecond
	fillRate      = 2 << 30 // bytes per second
	memoryRelease = 5 * time.Second
)

// memoryUsed returns how much of the sandbox's memory its programs use, files that can be read again aside.
func memoryUsed() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	return parseMeminfo(string(data))
}

func parseMeminfo(text string) (int64, error) {
	found := map[string]int64{}
	for line := range strings.Lines(text) {
		var kib int64
		if name, value, ok := strings.Cut(line, ":"); ok {
			if _, err := fmt.Sscan(value, &kib); err == nil {
				found[name] = kib
			}
		}
	}
	total, ok := found["MemTotal"]
	free, okFree := found["MemFree"]
	if !ok || !okFree {
		return 0, errors.New("guest: /proc/meminfo doesn't say how much memory there is")
	}
	// In gVisor, Mapped is all memory that holds files.
	return max(0, total-free-found["Mapped"]) << 10, nil
}

// watchMemory kills the largest run when nine tenths of the memory are used: without that the whole sandbox would end soon.
func (s *Server) watchMemory() {
	used := s.cfg.MemoryUsed
	if used == nil {
		if !s.cfg.Confine { // the memory that there is isn't ours
			return
		}
		used = memoryUsed
	}
	var timer <-chan time.Time
	for {
		select {
		case <-timer:
		case <-s.limited:
		case <-s.closing:
			return
		}
		s.mu.Lock()
		limit := s.limits.Memory / 10 * 9
		s.mu.Unlock()
		if limit <= 0 {
			timer = nil
			continue
		}
		n, err := used()
		if err != nil {
			s.log.Error("the use of memory is unknown; no run is ended when it is used up", "err", err)
			return
		}
		wait := memorySeldom
		if n >= limit && s.freeMemory() {
			n = s.awaitMemory(used, n, limit)
		}
		if n < limit {
			wait = time.Duration(float64(limit-n) / fillRate * float64(time.Second))
		}
		timer = time.After(min(max(wait, memoryOften), memorySeldom))
	}
}

// awaitMemory waits for what was killed to give its memory back, so that no second one is killed for it. That may take seconds on a busy
// machine; but if the use still grows from what it was then, somebody else is filling the memory.
func (s *Server) awaitMemory(used func() (int64, error), then, limit int64) int64 {
	least := int64(math.MaxInt64)
	for late := time.Now().Add(memoryRelease); ; {
		n, err := used()
		if n < least {
			least, late = n, time.Now().Add(memoryRelease)
		}
		if err != nil || n < limit || n > then+limit/20 || time.Now().After(late) {
			return n
		}
		select {
		case <-time.After(memoryOften):
		case <-s.closing:
			return n
		}
	}
}

// freeMemory kills what uses the most memory: a run with all that belongs to it, or a process that belongs to none. It reports whether
// there was something to kill.
func (s *Server) freeMemory() bool {
	before := processes() // first: what is started meanwhile belongs to a run that is not listed yet
	var all []*run
	for _, r := range s.runs.list() {
		if r.alive() {
			all = append(all, r)
		}
	}
	var victim *run
	var stray process
	var most int64
	owned := map[int]bool{os.Getpid(): true}
	for _, r := range all {
		var sum int64
		for pid, p := range family(r.child.pid, nil) {
			owned[pid] = true
			sum += p.resident
		}
		if sum > most {
			victim, most = r, sum
		}
	}
	if s.cfg.Confine { // else there are processes that are none of ours
		for _, p := range before {
			if !owned[p.pid] && !p.dead && p.resident > most {
				stray, victim, most = p, nil, p.resident
			}
		}
	}
	switch {
	case victim != nil:
		s.log.Warn("memory is used up: the largest run is ended", "run", victim.view().ID, "bytes", most)
		return victim.outOfMemory()
	case stray.pid != 0:
		s.log.Warn("memory is used up: the largest process is ended", "pid", stray.pid, "bytes", most)
		_ = syscall.Kill(stray.pid, syscall.SIGKILL) // ESRCH: it has just ended
		return true
	default:
		return false
	}
}
