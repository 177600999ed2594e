// Package local runs sandboxes on this Linux host with gVisor, which is part of our own binary: no runtime to install, no
// daemon. Sandboxes are detached: they outlive this process, and a later one finds them again by their Ref. It works as
// root, and as an ordinary user inside a user namespace (see EnterNamespaces).
//
// On disk, under Config.Dir:
//
//	sandboxes/pool-X/   a sandbox that was started ahead and is nobody's yet: see pool
//	sandboxes/KEY/      one run: bundle/ (config.json, root/), socket/ and state/ (shared with its guest), checkpoint/ while it is
//	                    suspended; KEY is Ref.ID-Ref.Run
//	volumes/VOL/        one volume; its owner tells which range of uids its sandboxes have
//	images/             images: see package image
//	build-cache/        which step of which build made which image
//	loader/             this machine's C library, for programs that are mounted into images without it
//	runsc/              gVisor's own state files and control sockets
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Name is this engine's name on the wire and in the store.
const Name = "local"

// Config says where an Engine works and what it mounts.
type Config struct {
	Dir    string  // absolute; made if missing; only one Engine may work in it at a time
	Guest  string  // absolute path of the sandlot-guest program on the host
	Mounts []Mount // shown read-only in every sandbox

	Registry http.RoundTripper // to registries of images; guards against private addresses. nil = Go's own
	Fetch    http.RoundTripper // to what Dockerfile commands add from URLs; the same

	// Runtime is the program that becomes gVisor's sentry and gofer. It must call Main first thing.
	// Default: this very program.
	Runtime string

	// NoCgroups leaves this host's cgroups alone, as if there were none.
	NoCgroups bool
	// Host is the root directory of the host whose devices and drivers are looked for. Default: /.
	Host string
	// OpenSubnet is where sandboxes with a network device have their addresses; nobody else may. Default: DefaultOpenSubnet.
	OpenSubnet netip.Prefix

	// Pool is how many sandboxes of each image in use are started ahead; at most MaxPool. 0 = none.
	Pool int

	Log *slog.Logger
}

// Mount shows a host directory in every sandbox, read-only.
type Mount struct{ Source, Target string }

// Engine implements engine.Engine and engine.VolumeDirs.
type Engine struct {
	cfg     Config
	conf    *config.Config // gVisor's
	ids     idRange
	cgroups cgroups
	gpus    gpus
	noGPU   string // why there is none
	watches *watchdog
	netns   *os.File // an empty network namespace, where gofers live; nil = each has its own
	stage   *stage
	images  *image.Store
	builder *build.Builder
	host    hostImage
	loader  *loader // nil where programs of this host need none

	buildMu  sync.Mutex
	building map[string]bool // keys of builds' sandboxes: nobody's row wants them, and yet they are no orphans

	working sync.WaitGroup // suspensions and resumptions

	allocating sync.Mutex // of GPUs

	networks *networks
	pool     *pool

	mu      sync.Mutex
	entries map[string]*entry // by key; runs that this process works on or has made
}

var (
	_ engine.Engine      = (*Engine)(nil)
	_ engine.VolumeDirs  = (*Engine)(nil)
	_ engine.Journals    = (*Engine)(nil)
	_ engine.Images      = (*Engine)(nil)
	_ engine.Snapshotter = (*Engine)(nil)
	_ engine.Suspender   = (*Engine)(nil)

	_ engine.NetworkUpdater = (*Engine)(nil)
	_ engine.NetworkMeter   = (*Engine)(nil)
)

// entry serialises the work on one run.
type entry struct {
	lock   chan struct{}        // holds a token while nobody works on the run
	cancel context.CancelFunc   // of a Create under way; guarded by Engine.mu
	abort  context.CancelFunc   // kills what a Suspend or Resume works on; guarded by Engine.mu
	users  int                  // who hold or wait for lock; guarded by Engine.mu
	made   *container.Container // if this process made it: only its parent can reap it; guarded by lock
}

// Open prepares an Engine. While one is open, the standard streams that package os names are /dev/null, because gVisor
// hands exactly those to every sandbox; log to a stream captured before. The environment of this process is passed on to
// gVisor's gofer: clear it of secrets first. ErrUnsupported says what this host lacks and what to do.
func Open(cfg Config) (*Engine, error) {
	if !filepath.IsAbs(cfg.Dir) || !filepath.IsAbs(cfg.Guest) {
		return nil, errors.New("opening the local engine: Dir and Guest must be absolute paths")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ids, err := currentRange()
	if err != nil {
		return nil, fmt.Errorf("opening the local engine: %w", err)
	}
	for _, d := range []string{"", "sandboxes", "volumes", "runsc"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o711); err != nil {
			return nil, fmt.Errorf("opening the local engine: %w", err)
		}
	}
	// State files and control sockets give full power over a sandbox.
	if err := os.Chmod(filepath.Join(cfg.Dir, "runsc"), 0o700); err != nil {
		return nil, fmt.Errorf("opening the local engine: %w", err)
	}
	e := &Engine{cfg: cfg, ids: ids, entries: map[string]*entry{}, building: map[string]bool{}}
	if err := e.openImages(); err != nil {
		return nil, fmt.Errorf("opening the local engine: %w", err)
	}
	sources := []string{filepath.Dir(cfg.Guest)}
	for _, m := range cfg.Mounts {
		sources = append(sources, m.Source)
	}
	if e.stage, err = openStage(ids, cfg.Dir, sources); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the local engine: %w", err), e.images.Close())
	}
	if e.netns, err = emptyNetns(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the local engine: %w", err), e.stage.close(), e.images.Close())
	}
	e.conf, err = runtimeConfig(filepath.Join(cfg.Dir, "runsc"), e.netns)
	if err == nil {
		err = acquireRuntime(cfg.Runtime, cfg.Log)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("configuring gVisor: %w", err), e.closeNetns(), e.stage.close(), e.images.Close())
	}
	if ids.perVolume && !cfg.NoCgroups {
		e.cgroups = hostCgroups(installation(cfg.Dir))
	}
	if e.networks, err = openNetworks(ids, installation(cfg.Dir), cfg.OpenSubnet, cfg.Log); err != nil {
		releaseRuntime()
		return nil, errors.Join(fmt.Errorf("opening the local engine: %w", err), e.closeNetns(), e.stage.close(), e.images.Close())
	}
	e.openGPUs()
	e.pool = newPool(e)
	e.watches = newWatchdog(e)
	e.removeSlots()
	if err := e.watches.resume(context.Background()); err != nil {
		return nil, errors.Join(fmt.Errorf("looking for sandboxes to watch: %w", err), e.Close())
	}
	e.clearBuilds()
	e.pool.start()
	return e, nil
}

func (e *Engine) closeNetns() error {
	if e.netns == nil {
		return nil
	}
	return e.netns.Close()
}

// Close waits for suspensions under way and gives the standard streams back. Sandboxes go on running, but for those that nobody has
// asked for yet.
func (e *Engine) Close() error {
	e.pool.close()
	e.working.Wait()
	e.mu.Lock()
	for k, en := range e.entries {
		leaveChild(e.conf.RootDir, k, en.made)
	}
	e.mu.Unlock()
	e.watches.close()
	e.cgroups.close()
	releaseRuntime()
	return errors.Join(e.networks.close(), e.closeNetns(), e.stage.close(), e.images.Close())
}

// Capabilities implements engine.Engine.
func (e *Engine) Capabilities() engine.Capabilities {
	networks := []sandbox.NetworkMode{sandbox.NetworkNone, sandbox.NetworkEgress}
	if e.networks.reason == "" {
		networks = append(networks, sandbox.NetworkOpen)
	}
	return engine.Capabilities{
		Name:        Name,
		Images:      []string{sandbox.HostImage, "registry", "snapshot"},
		Networks:    networks,
		NoOpen:      e.networks.reason,
		Limits:      e.limitedBy(),
		CPUs:        cores(),
		MemoryMiB:   hostMemoryMiB(),
		GPUs:        len(e.gpus.devices),
		NoGPU:       e.noGPU,
		GPUPaths:    map[string]string{"PATH": gpuDir + "/bin", "LD_LIBRARY_PATH": gpuDir + "/lib64"},
		AgentIsRoot: e.ids.single,
		Isolation:   "gVisor (systrap), " + e.ids.String(),
	}
}

// key names a run on disk and to gVisor. Both parts are ours; anything else is refused, since it becomes a path.
func key(ref engine.Ref) (string, error) {
	if !sandbox.IsID(string(ref.ID), sandbox.PrefixSandbox) || ref.Run == "" || strings.Trim(ref.Run, alphanumeric) != "" {
		return "", fmt.Errorf("%w: ref %q %q", sandbox.ErrInvalid, ref.ID, ref.Run)
	}
	return string(ref.ID) + "-" + ref.Run, nil
}

const alphanumeric = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// parseKey is the inverse of key.
func parseKey(k string) (engine.Ref, bool) {
	id, run, ok := strings.Cut(k, "-")
	ref := engine.Ref{ID: sandbox.ID(id), Run: run}
	if _, err := key(ref); !ok || err != nil {
		return engine.Ref{}, false
	}
	return ref, true
}

func (e *Engine) sandboxDir(k string) string { return filepath.Join(e.cfg.Dir, "sandboxes", k) }
func (e *Engine) socketDir(k string) string  { return filepath.Join(e.sandboxDir(k), "socket") }
func (e *Engine) stateDir(k string) string   { return filepath.Join(e.sandboxDir(k), "state") }

// hold waits until nobody else works on the run and returns its entry and the function that lets go of it.
func (e *Engine) hold(ctx context.Context, k string) (*entry, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("before any work on %s: %w", k, err)
	}
	e.mu.Lock()
	en := e.entries[k]
	if en == nil {
		en = &entry{lock: make(chan struct{}, 1), made: takeChild(e.conf.RootDir, k)}
		en.lock <- struct{}{}
		e.entries[k] = en
	}
	en.users++
	e.mu.Unlock()

	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		en.users--
		if en.users == 0 && en.made == nil {
			delete(e.entries, k)
		}
	}
	select {
	case <-en.lock:
		return en, func() { en.lock <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, nil, fmt.Errorf("waiting for other work on %s: %w", k, ctx.Err())
	}
}

// Inspect implements engine.Engine.
func (e *Engine) Inspect(ctx context.Context, ref engine.Ref) (engine.Status, error) {
	k, err := key(ref)
	if err != nil {
		return engine.Status{}, err
	}
	if err := ctx.Err(); err != nil {
		return engine.Status{}, fmt.Errorf("inspecting %s: %w", k, err)
	}
	if e.creating(k) {
		return engine.Status{Phase: engine.PhaseStarting}, nil
	}
	if _, err := os.Lstat(e.sandboxDir(k)); errors.Is(err, os.ErrNotExist) {
		return engine.Status{Phase: engine.PhaseGone}, nil
	}
	if e.suspended(k) {
		return engine.Status{Phase: engine.PhaseSuspended}, nil
	}
	procs, err := e.living()
	if err != nil {
		return engine.Status{}, fmt.Errorf("inspecting %s: %w", k, err)
	}
	alive := procs.of(k)
	switch {
	case !alive.has(roleSentry):
		if conn, err := dialGuest(ctx, e.socketDir(k)); err == nil {
			_ = conn.Close() // nothing was sent
			return engine.Status{Phase: engine.PhaseStarting, Reason: "gVisor's process is ending"}, nil
		}
		if e.ranOut(k) {
			return engine.Status{Phase: engine.PhaseGone, Reason: e.outOfMemory(k), OOM: true}, nil
		}
		return engine.Status{Phase: engine.PhaseGone, Reason: "gVisor's process has ended"}, nil
	case !alive.has(roleGofer):
		// Without its gofer a sandbox has neither volume nor socket: nobody can use it any more.
		if e.ranOut(k) {
			return engine.Status{Phase: engine.PhaseGone, Reason: e.outOfMemory(k), OOM: true}, nil
		}
		return engine.Status{Phase: engine.PhaseGone, Reason: "gVisor's file server has ended"}, nil
	}
	conn, err := e.Dial(ctx, ref)
	if err != nil {
		return engine.Status{Phase: engine.PhaseStarting, Reason: "its guest doesn't answer"}, nil
	}
	_ = conn.Close() // nothing was sent
	return engine.Status{Phase: engine.PhaseRunning}, nil
}

func (e *Engine) creating(k string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	en := e.entries[k]
	return en != nil && en.cancel != nil
}

// Dial implements engine.Engine.
func (e *Engine) Dial(ctx context.Context, ref engine.Ref) (net.Conn, error) {
	k, err := key(ref)
	if err != nil {
		return nil, err
	}
	conn, err := dialGuest(ctx, e.socketDir(k))
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("dialing the guest of %s: %w", k, ctx.Err())
	}
	if e.suspended(k) {
		return nil, errSuspended(k)
	}
	class := sandbox.ErrUnavailable
	if procs, procsErr := e.living(); procsErr == nil && !e.creating(k) && !procs.of(k).has(roleSentry) {
		class = sandbox.ErrNotFound
	}
	return nil, fmt.Errorf("%w: dialing the guest of %s: %w", class, k, err)
}
