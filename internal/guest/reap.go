package guest

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// child is a process that we started and wait for.
type child struct {
	pid    int
	done   chan struct{} // closed once it has been waited for
	status syscall.WaitStatus
}

// nursery starts processes and is the only one that waits for them: as PID 1 the guest also inherits every orphan, and a
// wait for any child would steal the exit status from someone who waits for one of them.
//
// The lock is held while a process is started and until it is registered, and while one is reaped. So a pid that is looked
// up is still that of the process meant.
type nursery struct {
	adopt bool // every child of this process is ours to reap
	jobs  chan func()
	log   *slog.Logger

	mu       sync.Mutex
	children map[int]*child
	theirs   *syscall.Rlimit // of descriptors, what is started has; nil = the same as we

	sigchld chan os.Signal
	quit    chan struct{}
	wg      sync.WaitGroup
}

// newNursery begins to reap. With confine, the process is the guest's own: it adopts orphans, and processes are started
// from one thread that has given up what they must not have.
func newNursery(confine bool, log *slog.Logger) *nursery {
	n := &nursery{
		adopt:    confine,
		log:      log,
		children: make(map[int]*child),
		sigchld:  make(chan os.Signal, 1),
		quit:     make(chan struct{}),
	}
	if confine {
		if os.Getpid() != 1 {
			if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
				log.Warn("orphans won't be reaped", "err", err)
			}
		}
		n.raiseOwnFiles()
		n.jobs = make(chan func())
		n.wg.Go(n.confined)
	}
	signal.Notify(n.sigchld, syscall.SIGCHLD)
	n.wg.Go(n.reap)
	return n
}

// close stops reaping. No process may be left that someone waits for.
func (n *nursery) close() {
	signal.Stop(n.sigchld)
	close(n.quit)
	n.wg.Wait()
}

// confined starts processes on a thread of its own. It never gives the thread back: it ends with this goroutine.
func (n *nursery) confined() {
	runtime.LockOSThread()
	if err := confineThread(); err != nil {
		n.log.Warn("processes are less confined than they should be", "err", err)
	}
	for {
		select {
		case job := <-n.jobs:
			job()
		case <-n.quit:
			return
		}
	}
}

// start runs a program. The files are those of the child, from descriptor 0 on, and stay the caller's.
func (n *nursery) start(path string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var pid int
	var err error
	fork := func() { pid, err = n.fork(path, argv, attr) }
	if n.jobs == nil {
		fork()
	} else {
		done := make(chan struct{})
		select {
		case n.jobs <- func() { fork(); close(done) }:
			<-done
		case <-n.quit:
			return nil, fmt.Errorf("guest: %w", os.ErrClosed)
		}
	}
	if err != nil {
		return nil, err
	}
	c := &child{pid: pid, done: make(chan struct{})}
	n.children[pid] = c
	return c, nil
}

// signal sends sig to c itself; false if it has ended.
func (n *nursery) signal(c *child, send func(pid int)) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.children[c.pid] != c {
		return false
	}
	send(c.pid)
	return true
}

func (n *nursery) reap() {
	for {
		select {
		case <-n.sigchld:
			n.sweep()
		case <-n.quit:
			return
		}
	}
}

// sweep waits for everything that has ended. Signals of one kind coalesce, so one may stand for many.
func (n *nursery) sweep() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.adopt {
		for pid := range n.children {
			n.wait(pid)
		}
		return
	}
	for {
		var info siginfo
		err := waitid(&info)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || info.pid == 0 {
			return
		}
		if !n.wait(int(info.pid)) {
			return
		}
	}
}

// wait reaps one process if it has ended. The lock is held.
func (n *nursery) wait(pid int) bool {
	var status syscall.WaitStatus
	for {
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || got != pid {
			return false
		}
		break
	}
	if c := n.children[pid]; c != nil {
		delete(n.children, pid)
		c.status = status
		close(c.done)
	}
	return true
}
