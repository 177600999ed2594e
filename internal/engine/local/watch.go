package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/control/client"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/container"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	// recordFile holds a run's record, outside of what the sandbox sees.
	recordFile = "record.json"
	// oomFile is there once we have decided to end a run because its memory is used up.
	oomFile = "oom"
)

// record is what a later process must know of a run.
type record struct {
	MemoryMiB int64 `json:"memory_mib,omitempty"`
	GPUs      []int `json:"gpus,omitempty"` // which of the host's it has
}

func (e *Engine) writeRecord(k string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(e.sandboxDir(k), recordFile), data, 0o600)
}

// record reads what was recorded of a run; nothing of one that has no record.
func (e *Engine) record(k string) (record, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(e.sandboxDir(k), recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("reading the record of %s: %w", k, err)
	}
	return r, nil
}

// ranOut reports whether a run that is gone ended because its memory was used up.
func (e *Engine) ranOut(k string) bool {
	if e.cgroups.oomKills(e.containerID(k)) > 0 {
		return true
	}
	_, err := os.Lstat(filepath.Join(e.sandboxDir(k), oomFile))
	return err == nil
}

// outOfMemory is the reason of a run that ended so.
func (e *Engine) outOfMemory(k string) string {
	r, err := e.record(k)
	if err != nil || r.MemoryMiB == 0 {
		return "out of memory"
	}
	return fmt.Sprintf("out of memory: it used more than its %d MiB", r.MemoryMiB)
}

// The watchdog looks at a sandbox that often; the less, the further from its limit it is. Programs fill memory no faster than fillRate.
const (
	watchSeldom = 100 * time.Millisecond
	watchOften  = 10 * time.Millisecond
	fillRate    = 2 << 30 // bytes per second
)

// watchdog ends sandboxes whose memory is used up. Where a cgroup keeps the limit, the host's kernel may kill only a part of a sandbox;
// then the watchdog ends the rest. Where there is none, it looks how much memory is used.
type watchdog struct {
	e      *Engine
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	watched map[string]*watch
}

// watch is the watch over one run.
type watch struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func newWatchdog(e *Engine) *watchdog {
	w := &watchdog{e: e, watched: map[string]*watch{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// close ends the watching, not what is watched.
func (w *watchdog) close() {
	w.cancel()
	w.wg.Wait()
}

// start begins to watch a run that lives. c is nil for one that another process has made.
func (w *watchdog) start(k string, limitMiB int64, c *container.Container) error {
	if limitMiB <= 0 {
		return nil
	}
	var used func() (int64, error)
	stop := func() {}
	if !w.e.cgroups.has("memory") {
		if c == nil {
			var err error
			c, err = container.Load(w.e.conf.RootDir, w.e.fullID(k), container.LoadOpts{Exact: true, SkipCheck: true})
			if err != nil {
				return fmt.Errorf("loading %s: %w", k, err)
			}
		}
		file, err := memoryFile(c)
		if err != nil {
			return fmt.Errorf("watching the memory of %s: %w", k, err)
		}
		used = func() (int64, error) { return blocks(file) }
		stop = func() { _ = file.Close() } // only looked at; held open, it would keep the memory of a dead sandbox
	}
	ctx, cancel := context.WithCancel(w.ctx)
	one := &watch{cancel: cancel, done: make(chan struct{})}
	w.mu.Lock()
	old := w.watched[k]
	w.watched[k] = one
	w.mu.Unlock()
	old.end()
	w.wg.Go(func() {
		defer close(one.done)
		defer stop()
		w.watch(ctx, k, limitMiB<<20, used)
	})
	return nil
}

// stop ends the watch over a run and returns when it has ended.
func (w *watchdog) stop(k string) {
	w.mu.Lock()
	one := w.watched[k]
	delete(w.watched, k)
	w.mu.Unlock()
	one.end()
}

func (one *watch) end() {
	if one != nil {
		one.cancel()
		<-one.done
	}
}

// watch looks at a run until it is gone. used is nil where a cgroup counts.
func (w *watchdog) watch(ctx context.Context, k string, limit int64, used func() (int64, error)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		wait, over := watchSeldom, false
		if used == nil {
			over = w.e.cgroups.oomKills(w.e.containerID(k)) > 0
		} else {
			n, err := used()
			if err != nil {
				w.e.cfg.Log.Error("a sandbox's memory can't be watched any more", "sandbox", k, "err", err)
				return
			}
			over = n > limit
			wait = min(max(time.Duration(float64(limit-n)/fillRate*float64(time.Second)), watchOften), watchSeldom)
		}
		if over {
			if err := w.endRun(ctx, k); err != nil && ctx.Err() == nil {
				w.e.cfg.Log.Error("a sandbox whose memory is used up can't be ended", "sandbox", k, "err", err)
			} else {
				return
			}
		}
		timer.Reset(wait)
	}
}

// endRun kills a run that has used up its memory, and notes before that it did: a later process must not take it for a crash.
func (w *watchdog) endRun(ctx context.Context, k string) error {
	procs, err := w.e.living()
	if err != nil {
		return err
	}
	alive := procs.of(k)
	if !alive.has(roleSentry) {
		return nil // what ended it is not ours to say
	}
	w.e.cfg.Log.Warn("a sandbox is ended: its memory is used up", "sandbox", k)
	if err := os.WriteFile(filepath.Join(w.e.sandboxDir(k), oomFile), nil, 0o600); err != nil {
		return err
	}
	var errs []error
	for _, p := range alive {
		errs = append(errs, kill(ctx, p, w.e.conf.RootDir))
	}
	return errors.Join(errs...)
}

// resume watches the runs that an earlier process has left.
func (w *watchdog) resume(ctx context.Context) error {
	procs, err := w.e.living()
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.role != roleSentry || ctx.Err() != nil {
			continue
		}
		r, err := w.e.record(p.key)
		if err == nil && r.MemoryMiB > 0 {
			// It lives, so it was not ended; the mark of one that was just being ended would be a lie at its next end.
			err = errors.Join(remove(filepath.Join(w.e.sandboxDir(p.key), oomFile)), w.start(p.key, r.MemoryMiB, nil))
		}
		if err != nil {
			w.e.cfg.Log.Error("the memory of a sandbox is not watched", "sandbox", p.key, "err", err)
		}
	}
	return nil
}

// memoryFile returns the file that is the memory of a sandbox's programs: it is not in what the host counts as its sentry's. The
// descriptor is of this process alone, so that closing it lets go of the memory.
func memoryFile(c *container.Container) (*os.File, error) {
	// Through a descriptor: the path may be longer than a socket's address can be.
	path := c.Sandbox.GetControlSocketPath()
	socket, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(socket)
	conn, err := client.ConnectTo(fmt.Sprintf("/proc/self/fd/%d", socket))
	if err != nil {
		return nil, fmt.Errorf("connecting to gVisor: %w", err)
	}
	defer conn.Close()
	var out control.MemoryUsageFile
	if err := conn.Call(boot.UsageUsageFD, &control.MemoryUsageFileOpts{Version: 1}, &out); err != nil {
		return nil, fmt.Errorf("asking gVisor: %w", err)
	}
	var memory *os.File
	for i, f := range out.Files {
		if i == 1 { // the first one only counts mapped files, which the host can drop
			memory = f
			continue
		}
		_ = f.Close() // never used
	}
	if memory == nil {
		return nil, fmt.Errorf("%w: gVisor gave no file", sandbox.ErrUnsupported)
	}
	return memory, nil
}

// blocks is how much of a file there really is.
func blocks(f *os.File) (int64, error) {
	var st unix.Stat_t
	c, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var inner error
	if err := c.Control(func(fd uintptr) { inner = unix.Fstat(int(fd), &st) }); err != nil {
		return 0, err
	}
	return st.Blocks * 512, inner
}
