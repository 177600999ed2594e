package fake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// World is the machine that fake engines run on. It outlives them, as a real machine outlives a server.
type World struct {
	dir string

	mu     sync.Mutex
	runs   map[key]*run
	memory func() int64
}

// key names a run.
type key struct {
	id  sandbox.ID
	run string
}

// NewWorld returns an empty World that keeps its files in dir.
func NewWorld(dir string) *World { return &World{dir: dir, runs: make(map[key]*run)} }

// Close destroys everything but the volumes.
func (w *World) Close() error {
	var errs []error
	for _, item := range w.list() {
		errs = append(errs, w.destroy(item.Ref))
	}
	return errors.Join(errs...)
}

// Kill ends a run as a crash would: every process at once, connections cut. What it was remains to be destroyed.
func (w *World) Kill(ref engine.Ref) {
	if r, ok := w.find(ref); ok {
		r.end("it was killed")
	}
}

// KillOOM ends a run as Kill does, for having used up its memory.
func (w *World) KillOOM(ref engine.Ref) {
	if r, ok := w.find(ref); ok {
		r.mu.Lock()
		r.oom = true
		r.mu.Unlock()
		r.end("out of memory: it used more than it has")
	}
}

// UseMemory makes used tell the guests how many bytes of their sandboxes' memory are used. It is called from several goroutines.
func (w *World) UseMemory(used func() int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.memory = used
}

func (w *World) memoryUsed() (int64, error) {
	w.mu.Lock()
	used := w.memory
	w.mu.Unlock()
	if used == nil {
		return 0, nil
	}
	return used(), nil
}

// Gateway returns the address at which the run's processes reach the host's gateway; "" if there is no such run.
func (w *World) Gateway(ref engine.Ref) string {
	r, ok := w.find(ref)
	if !ok {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return ""
	}
	return r.server.GatewayAddr().String()
}

func (w *World) find(ref engine.Ref) (*run, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.runs[key{ref.ID, ref.Run}]
	return r, ok
}

// claim returns the run that ref names and records it if it isn't there.
func (w *World) claim(ref engine.Ref) *run {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := key{ref.ID, ref.Run}
	r, ok := w.runs[k]
	if !ok {
		r = &run{
			key: k, since: time.Now(), dir: filepath.Join(w.dir, "runs", string(k.id)+"."+k.run),
			making: make(chan struct{}, 1), gone: make(chan struct{}),
		}
		w.runs[k] = r
	}
	return r
}

// make completes a run that isn't whole yet.
func (w *World) make(r *run, spec sandbox.Spec) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isGone() {
		return r.goneErr()
	}
	if r.server != nil {
		return nil
	}
	workdir := filepath.Join(w.dir, "volumes", spec.Volume.ID)
	if err := os.MkdirAll(workdir, 0o755); err != nil {
		return fmt.Errorf("fake: create: %w", err)
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("fake: create: %w", err)
	}
	server, err := guest.NewServer(guest.Config{
		StateDir: filepath.Join(r.dir, "state"), Workdir: workdir, AgentUID: os.Getuid(), AgentGID: os.Getgid(),
		Deadline: time.Now().Add(spec.Timeout), GatewayAddr: "127.0.0.1:0", GatewayWait: 10 * time.Second, Version: "fake",
		QuietLimit: never, // as if the guest were paused
		MemoryUsed: w.memoryUsed,
	})
	if err != nil {
		return fmt.Errorf("fake: create: %w", err)
	}
	r.server = server
	r.wg.Go(func() { // the guest may end itself, at its deadline
		<-server.Done()
		r.markGone("its guest has ended")
	})
	return nil
}

func (w *World) destroy(ref engine.Ref) error {
	r, ok := w.find(ref)
	if !ok {
		return nil
	}
	r.end("it was destroyed")
	r.wg.Wait()
	if err := os.RemoveAll(r.dir); err != nil {
		return fmt.Errorf("fake: destroy: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.runs[r.key] == r {
		delete(w.runs, r.key)
	}
	return nil
}

func (w *World) list() []engine.Listed {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []engine.Listed
	for k, r := range w.runs {
		all = append(all, engine.Listed{Ref: engine.Ref{ID: k.id, Run: k.run, Handle: r.handle()}, Since: r.since, Phase: r.status().Phase})
	}
	slices.SortFunc(all, func(a, b engine.Listed) int { return a.Since.Compare(b.Since) })
	return all
}

// run is one run of a sandbox.
type run struct {
	key    key
	since  time.Time
	dir    string
	making chan struct{} // holds one: the maker's turn
	gone   chan struct{} // closed when it has ended

	mu     sync.Mutex
	server *guest.Server // nil until it is whole
	reason string        // why it is gone
	oom    bool          // it is that memory was used up
	// suspended says that it is; stopped are the processes that were stopped for it.
	suspended bool
	stopped   []int
	conns     []net.Conn // the guest's ends of what Dial returned
	wg        sync.WaitGroup
}

func (r *run) handle() []byte { return []byte("fake:" + string(r.key.id) + ":" + r.key.run) }

func (r *run) isGone() bool {
	select {
	case <-r.gone:
		return true
	default:
		return false
	}
}

func (r *run) goneErr() error {
	return fmt.Errorf("fake: %w: run %s of %s has ended", sandbox.ErrGone, r.key.run, r.key.id)
}

func (r *run) suspendedErr() error {
	return fmt.Errorf("fake: %w: run %s of %s is suspended", sandbox.ErrState, r.key.run, r.key.id)
}

func (r *run) status() engine.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.isGone():
		return engine.Status{Phase: engine.PhaseGone, Reason: r.reason, OOM: r.oom}
	case r.server == nil:
		return engine.Status{Phase: engine.PhaseStarting}
	case r.suspended:
		return engine.Status{Phase: engine.PhaseSuspended}
	default:
		return engine.Status{Phase: engine.PhaseRunning}
	}
}

func (r *run) markGone(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isGone() {
		r.reason = reason
		close(r.gone)
	}
}

// end kills what runs and returns when it is dead. Nobody hears of it from the guest, as if that had died first.
func (r *run) end(reason string) {
	r.markGone(reason)
	r.mu.Lock()
	server, conns := r.server, r.conns
	r.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // a pipe; it can't fail
	}
	if server != nil {
		now, cancel := context.WithCancel(context.Background())
		cancel() // no grace
		server.Shutdown(now)
	}
}

// dial joins a pipe to the guest.
func (r *run) dial() (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isGone() {
		return nil, fmt.Errorf("fake: dial: %w: run %s of %s has ended", sandbox.ErrNotFound, r.key.run, r.key.id)
	}
	if r.server == nil {
		return nil, fmt.Errorf("fake: dial: %w: the guest isn't up yet", sandbox.ErrUnavailable)
	}
	if r.suspended {
		return nil, r.suspendedErr()
	}
	host, inside := net.Pipe()
	r.conns = append(r.conns, inside)
	server := r.server
	r.wg.Go(func() { _ = server.ServeConn(context.Background(), inside) }) // it ends with the guest or the connection; how is the caller's to see
	return host, nil
}
