package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/container"
)

// children are the sandboxes that this process made with an Engine that is closed: the next one on the same directory must reap them,
// since nobody else can.
var children struct {
	sync.Mutex
	made map[string]*container.Container // by gVisor's directory and key
}

func leaveChild(root, k string, c *container.Container) {
	if c == nil {
		return
	}
	children.Lock()
	defer children.Unlock()
	if children.made == nil {
		children.made = map[string]*container.Container{}
	}
	children.made[filepath.Join(root, k)] = c
}

func takeChild(root, k string) *container.Container {
	children.Lock()
	defer children.Unlock()
	c := children.made[filepath.Join(root, k)]
	delete(children.made, filepath.Join(root, k))
	return c
}

// role is what a process of gVisor does for a sandbox.
type role string

const (
	roleSentry role = "runsc-sandbox"
	roleGofer  role = "runsc-gofer"
)

// process is a living sentry or gofer of ours.
type process struct {
	pid  int
	id   string // of its container, to gVisor
	key  string // of the run that it belongs to
	role role
}

type processes []process

func (ps processes) of(key string) processes {
	var out processes
	for _, p := range ps {
		if p.key == key {
			out = append(out, p)
		}
	}
	return out
}

func (ps processes) has(r role) bool {
	return slices.ContainsFunc(ps, func(p process) bool { return p.role == r })
}

// living finds the processes of this engine's runs.
func (e *Engine) living() (processes, error) {
	procs, err := runtimeProcesses(e.conf.RootDir)
	if err != nil {
		return nil, err
	}
	var runs map[string]string
	for i, p := range procs {
		if !isSlot(p.id) {
			continue
		}
		if runs == nil {
			if runs, err = e.adopted(); err != nil {
				return nil, err
			}
		}
		if k, ok := runs[p.id]; ok {
			procs[i].key = k
		}
	}
	return procs, nil
}

// runtimeProcesses finds the living gVisor processes whose state directory is root, also those that have no state file:
// a server that was killed while it made a sandbox leaves such orphans.
func runtimeProcesses(root string) (processes, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var out processes
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil {
			continue // it has ended meanwhile
		}
		if p, ok := parseCmdline(cmdline, root); ok { // a zombie's is empty, so it counts as dead
			p.pid = pid
			out = append(out, p)
		}
	}
	return out, nil
}

// parseCmdline recognises the command line of a sentry or gofer whose state directory is root.
func parseCmdline(cmdline []byte, root string) (process, bool) {
	argv := strings.Split(string(bytes.TrimSuffix(cmdline, []byte{0})), "\x00")
	r := role(filepath.Base(argv[0]))
	if r != roleSentry && r != roleGofer {
		return process{}, false
	}
	if !slices.Contains(argv, "--root="+root) {
		return process{}, false
	}
	k := argv[len(argv)-1]
	if r == roleGofer {
		// The gofer's last arguments don't name the sandbox; its bundle does: …/sandboxes/KEY/bundle.
		i := slices.Index(argv, "--bundle")
		if i < 0 || i+1 == len(argv) {
			return process{}, false
		}
		k = filepath.Base(filepath.Dir(argv[i+1]))
	}
	return process{id: k, key: k, role: r}, true
}

// kill ends a process and waits until it is gone. The pid was read from /proc a moment ago; a pidfd and a second look at the
// command line make sure that no other process is hit.
func kill(ctx context.Context, p process, root string) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening process %d: %w", p.pid, err)
	}
	defer unix.Close(fd)
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	ending := err == nil && len(cmdline) == 0 // its memory is gone already
	if again, ok := parseCmdline(cmdline, root); !ending && (err != nil || !ok || again.id != p.id) {
		return nil // it has ended, and the number is somebody else's
	}
	if !ending {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing process %d: %w", p.pid, err)
		}
	}
	for {
		// A pidfd becomes readable when its process has ended, reaped or not.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for the end of process %d: %w", p.pid, err)
		}
		if n > 0 {
			// If it is our child, nobody else reaps it; if not, this fails and its parent does.
			_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for the end of process %d: %w", p.pid, ctx.Err())
		}
	}
}

// started tells when a process was started, roughly; zero if it is gone.
func started(pid int) time.Time {
	fi, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}
