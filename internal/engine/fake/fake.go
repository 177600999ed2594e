// Package fake is an engine for tests and demonstrations. Its sandboxes are real processes of this machine under a real
// guest, with real directories as volumes, but there is NO wall around them and nothing is limited: the workdir is the
// volume's own directory. What it can do that others can't is fail on demand and die on demand.
package fake

import (
	"context"
	"fmt"
	"iter"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Op is a point in a method at which a Hook is called.
type Op string

// The points.
const (
	Create  Op = "create"  // before anything is made
	Made    Op = "made"    // the run is recorded and half made; an error leaves it so
	Created Op = "created" // the run is whole; an error loses the reply
	Inspect Op = "inspect"
	Dial    Op = "dial"
	Destroy Op = "destroy"
	List    Op = "list"

	Suspend   Op = "suspend"   // before anything is stopped
	Suspended Op = "suspended" // it is suspended; an error loses the reply
	Resume    Op = "resume"    // before anything goes on
	Resumed   Op = "resumed"   // it is back; an error loses the reply
)

// Config is how an engine behaves.
type Config struct {
	// Hook, if not nil, is called at each Op, on the caller's goroutine; ref is zero for List. Its error, if any, is the
	// method's. It may wait, but should heed ctx.
	Hook func(ctx context.Context, op Op, ref engine.Ref) error

	// Limits are what it claims to keep: none of them is kept, and what is known of the use of memory is what the World was told.
	// Without it, it claims what the guest does.
	Limits sandbox.LimitedBy
	// CPUs and MemoryMiB are the size of the machine that it claims to have; 0 = not known.
	CPUs      int
	MemoryMiB int64
}

// Engine is one process's hold on a World.
type Engine struct {
	w   *World
	cfg Config

	mu    sync.Mutex
	conns map[net.Conn]struct{} // that Dial returned and nobody closed; nil after Close
}

var (
	_ engine.Engine     = (*Engine)(nil)
	_ engine.VolumeDirs = (*Engine)(nil)
	_ engine.Journals   = (*Engine)(nil)
)

// Open returns an engine on w. Several may be open at once.
func Open(w *World, cfg Config) *Engine {
	return &Engine{w: w, cfg: cfg, conns: make(map[net.Conn]struct{})}
}

// Close closes what Dial returned. The sandboxes go on in their World.
func (e *Engine) Close() error {
	e.mu.Lock()
	conns := e.conns
	e.conns = nil
	e.mu.Unlock()
	for c := range conns {
		_ = c.Close() // a pipe; it can't fail
	}
	return nil
}

// networks are what the engine claims to have: with none and egress alike, what runs has this machine's network.
var networks = []sandbox.NetworkMode{sandbox.NetworkNone, sandbox.NetworkEgress}

// Capabilities says plainly that there are no walls.
func (e *Engine) Capabilities() engine.Capabilities {
	return engine.Capabilities{
		Name: "fake", Images: []string{sandbox.HostImage}, Networks: networks,
		Limits: e.limits(), CPUs: e.cfg.CPUs, MemoryMiB: e.cfg.MemoryMiB, NoGPU: noGPU,
		AgentIsRoot: os.Getuid() == 0, Isolation: "none: processes of this machine, for tests only",
	}
}

const noGPU = "a fake has no GPU"

func (e *Engine) limits() sandbox.LimitedBy {
	l := e.cfg.Limits
	l.Output = sandbox.ByGuest
	return l
}

func (e *Engine) hook(ctx context.Context, op Op, ref engine.Ref) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("fake: %s: %w", op, err)
	}
	if e.cfg.Hook == nil {
		return nil
	}
	if err := e.cfg.Hook(ctx, op, ref); err != nil {
		return fmt.Errorf("fake: %s: %w", op, err)
	}
	return nil
}

// Create starts a guest in this process.
func (e *Engine) Create(ctx context.Context, ref engine.Ref, spec sandbox.Spec) ([]byte, error) {
	if err := e.check(spec); err != nil {
		return nil, err
	}
	if err := e.hook(ctx, Create, ref); err != nil {
		return nil, err
	}
	r := e.w.claim(ref)
	// One at a time makes it; who comes later finds it made.
	select {
	case r.making <- struct{}{}:
		defer func() { <-r.making }()
	case <-r.gone:
		return nil, r.goneErr()
	case <-ctx.Done():
		return nil, fmt.Errorf("fake: create: %w", ctx.Err())
	}
	if r.status().Phase == engine.PhaseSuspended {
		return nil, r.suspendedErr()
	}
	if err := e.hook(ctx, Made, ref); err != nil {
		return nil, err
	}
	if err := e.w.make(r, spec); err != nil {
		return nil, err
	}
	if err := e.hook(ctx, Created, ref); err != nil {
		return nil, err
	}
	return r.handle(), nil
}

func (e *Engine) check(spec sandbox.Spec) error {
	limits := e.limits()
	switch {
	case !spec.Image.IsHost():
		return fmt.Errorf("fake: %w: there is no image %q", sandbox.ErrInvalid, spec.Image.Source)
	case !path.IsAbs(spec.Workdir):
		return fmt.Errorf("fake: %w: the workdir %q isn't absolute", sandbox.ErrInvalid, spec.Workdir)
	case spec.Network.Mode == sandbox.NetworkOpen || !slices.Contains(networks, spec.Network.Mode):
		return fmt.Errorf("fake: %w: network %q", sandbox.ErrUnsupported, spec.Network.Mode)
	case spec.CPU != 0 && limits.CPU == "" || spec.MemoryMiB != 0 && limits.Memory == "":
		return fmt.Errorf("fake: %w: limits of CPU and memory", sandbox.ErrUnsupported)
	case spec.GPU != "":
		return fmt.Errorf("fake: %w: %s", sandbox.ErrUnsupported, noGPU)
	case !filepath.IsLocal(spec.Volume.ID):
		return fmt.Errorf("fake: %w: volume %q", sandbox.ErrInvalid, spec.Volume.ID)
	}
	return nil
}

// Inspect reports what the World holds.
func (e *Engine) Inspect(ctx context.Context, ref engine.Ref) (engine.Status, error) {
	if err := e.hook(ctx, Inspect, ref); err != nil {
		return engine.Status{}, err
	}
	r, ok := e.w.find(ref)
	if !ok {
		return engine.Status{Phase: engine.PhaseGone}, nil
	}
	return r.status(), nil
}

// Dial opens a pipe to the guest.
func (e *Engine) Dial(ctx context.Context, ref engine.Ref) (net.Conn, error) {
	if err := e.hook(ctx, Dial, ref); err != nil {
		return nil, err
	}
	r, ok := e.w.find(ref)
	if !ok {
		return nil, fmt.Errorf("fake: dial: %w: %s run %s", sandbox.ErrNotFound, ref.ID, ref.Run)
	}
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns == nil {
		_ = c.Close() // a pipe; it can't fail
		return nil, fmt.Errorf("fake: dial: %w: the engine is closed", sandbox.ErrUnavailable)
	}
	e.conns[c] = struct{}{}
	return &conn{Conn: c, e: e}, nil
}

// conn forgets itself when it is closed.
type conn struct {
	net.Conn
	e *Engine
}

// Close closes the pipe.
func (c *conn) Close() error {
	c.e.mu.Lock()
	delete(c.e.conns, c.Conn)
	c.e.mu.Unlock()
	return c.Conn.Close()
}

// Destroy kills the run's processes and forgets it.
func (e *Engine) Destroy(ctx context.Context, ref engine.Ref) error {
	if err := e.hook(ctx, Destroy, ref); err != nil {
		return err
	}
	return e.w.destroy(ref)
}

// List yields what the World held when it was called.
func (e *Engine) List(ctx context.Context) iter.Seq2[engine.Listed, error] {
	return func(yield func(engine.Listed, error) bool) {
		if err := e.hook(ctx, List, engine.Ref{}); err != nil {
			yield(engine.Listed{}, err)
			return
		}
		for _, item := range e.w.list() {
			if !yield(item, nil) {
				return
			}
		}
	}
}

// GuestState returns the directory of the guest's state.
func (e *Engine) GuestState(ref engine.Ref) (string, error) {
	r, ok := e.w.find(ref)
	if !ok {
		return "", fmt.Errorf("fake: %w: run %s of %s", sandbox.ErrNotFound, ref.Run, ref.ID)
	}
	return filepath.Join(r.dir, "state"), nil
}

// VolumeDir returns the volume's directory.
func (e *Engine) VolumeDir(_ context.Context, v sandbox.Volume) (string, error) {
	if !filepath.IsLocal(v.ID) {
		return "", fmt.Errorf("fake: %w: volume %q", sandbox.ErrInvalid, v.ID)
	}
	dir := filepath.Join(e.w.dir, "volumes", v.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("fake: volume: %w", err)
	}
	return dir, nil
}

// DeleteVolume removes the volume's directory.
func (e *Engine) DeleteVolume(_ context.Context, v sandbox.Volume) error {
	if !filepath.IsLocal(v.ID) {
		return fmt.Errorf("fake: %w: volume %q", sandbox.ErrInvalid, v.ID)
	}
	if err := os.RemoveAll(filepath.Join(e.w.dir, "volumes", v.ID)); err != nil {
		return fmt.Errorf("fake: volume: %w", err)
	}
	return nil
}
