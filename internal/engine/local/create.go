package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	// deadlineGrace is how long after its deadline a sandbox ends itself, so that a server that is there does it first.
	deadlineGrace = time.Minute

	// startLimit bounds the wait for a guest that has been started. A loaded machine takes a few seconds.
	startLimit = time.Minute

	// panicLog is where gVisor writes when it fails; ours alone, outside of what the sandbox sees.
	panicLog = "panic.log"

	// minFree is the space of the host's disk below which no sandbox is made.
	minFree = 256 << 20
)

// Create implements engine.Engine.
func (e *Engine) Create(ctx context.Context, ref engine.Ref, spec sandbox.Spec) ([]byte, error) {
	k, err := key(ref)
	if err != nil {
		return nil, err
	}
	if err := e.check(spec); err != nil {
		return nil, err
	}
	en, release, err := e.hold(ctx, k)
	if err != nil {
		return nil, err
	}
	defer release()

	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	e.mu.Lock()
	en.cancel = cancel // for Destroy
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		en.cancel = nil
		e.mu.Unlock()
	}()

	if e.answers(ctx, k) {
		return []byte(k), nil // made before, by this process or an earlier one
	}
	if e.suspended(k) {
		return nil, errSuspended(k)
	}
	// What an earlier attempt left half made is in the way.
	if e.begun(en, k) {
		if err := e.destroy(ctx, en, k); err != nil {
			return nil, fmt.Errorf("clearing what is left of an earlier attempt: %w", err)
		}
	}
	made := e.pool.creating(spec)
	if e.pool.adopt(ctx, en, k, spec) {
		made(true)
		return []byte(k), nil
	}
	err = e.create(ctx, en, k, spec)
	made(err == nil)
	if err != nil {
		undo, cancelUndo := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancelUndo()
		return nil, errors.Join(fmt.Errorf("creating sandbox %s: %w", k, err), e.destroy(undo, en, k))
	}
	return []byte(k), nil
}

// begun reports whether there may be anything of a run: it begins with its directory, which destroy removes last, or before that with a
// network device.
func (e *Engine) begun(en *entry, k string) bool {
	_, err := os.Lstat(e.sandboxDir(k))
	return !errors.Is(err, os.ErrNotExist) || en.made != nil || slices.Contains(e.networks.keys(), k)
}

// check refuses a spec that this engine can't keep.
func (e *Engine) check(spec sandbox.Spec) error {
	caps := e.Capabilities()
	switch {
	case !spec.Image.IsHost() && spec.Image.Digest == "":
		return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "image_not_found", Field: "image.registry",
			Detail: fmt.Sprintf("the image %.200q has not been prepared", spec.Image.Source)}
	case spec.Network.Mode == sandbox.NetworkOpen && e.networks.reason != "":
		return e.networks.check()
	case !slices.Contains(caps.Networks, spec.Network.Mode):
		return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "unsupported", Field: "network.mode",
			Detail: fmt.Sprintf("network mode %q is not available here; this engine has %q", spec.Network.Mode, caps.Networks)}
	case spec.GPU != "" && caps.GPUs == 0:
		return &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "no_gpu", Field: "gpu", Detail: caps.NoGPU}
	case spec.DiskMiB <= 0:
		return sandbox.Invalid("disk_mib", "the size of the writable layer must be above 0")
	case spec.Timeout <= 0:
		return sandbox.Invalid("timeout_s", "the lifetime must be above 0")
	case !filepath.IsAbs(spec.Workdir) || filepath.Clean(spec.Workdir) != spec.Workdir || spec.Workdir == "/" && spec.Volume.ID != "":
		return sandbox.Invalid("workdir", "%q is not a clean absolute path below /", spec.Workdir)
	}
	return nil
}

// create makes and starts the sandbox. What it leaves behind on an error, destroy frees.
func (e *Engine) create(ctx context.Context, en *entry, k string, spec sandbox.Spec) error {
	if err := e.roomToStart(); err != nil {
		return err
	}
	conf := *e.conf
	conf.PanicLog = filepath.Join(e.sandboxDir(k), panicLog)
	var dev *device
	if spec.Network.Mode == sandbox.NetworkOpen {
		var err error
		if dev, err = e.networks.attach(ctx, k); err != nil {
			return fmt.Errorf("making its network device: %w", err)
		}
		defer dev.release()
		conf.Network = config.NetworkSandbox
	}
	bundle, err := e.makeBundle(ctx, k, spec, &conf, dev)
	if err != nil {
		return fmt.Errorf("making its bundle: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := newContainer(&conf, container.Args{ID: k, Spec: bundle.spec, BundleDir: bundle.dir})
	if err != nil {
		return fmt.Errorf("gVisor could not make it: %w%s", explain(err), e.lastWords(k))
	}
	en.made = c
	if err := ctx.Err(); err != nil {
		return err
	}
	// Moving processes takes the host's kernel as long as starting them. Nothing but our own guest runs until this returns.
	placed := make(chan error, 1)
	pids := []int{c.SandboxPid(), int(c.GoferPid.Load())}
	go func() { placed <- e.place(k, spec, pids) }()
	if err = c.Start(&conf); err != nil {
		err = fmt.Errorf("gVisor could not start it: %w%s", explain(err), e.lastWords(k))
	} else {
		err = e.await(ctx, k, c.SandboxPid())
	}
	if err := errors.Join(err, <-placed); err != nil {
		return err
	}
	return e.watch(k, spec, c)
}

// roomToStart refuses to start a sandbox on a disk that is nearly full.
func (e *Engine) roomToStart() error {
	n, err := free(e.cfg.Dir)
	if err == nil && n < minFree {
		err = fmt.Errorf("%w: the disk of %s has only %d MiB left; free some", sandbox.ErrUnavailable, e.cfg.Dir, n>>20)
	}
	return err
}

// place puts a container's processes under its limits, before any code of the user has run: so they hold from its first instruction.
func (e *Engine) place(k string, spec sandbox.Spec, pids []int) error {
	if err := e.cgroups.place(k, spec, pids...); err != nil {
		return fmt.Errorf("limiting it: %w", err)
	}
	return nil
}

// watch limits its memory where the host's kernel does not.
func (e *Engine) watch(k string, spec sandbox.Spec, c *container.Container) error {
	if err := e.watches.start(k, spec.MemoryMiB, c); err != nil {
		return fmt.Errorf("limiting its memory: %w", err)
	}
	return nil
}

type bundle struct {
	dir  string
	spec *specs.Spec
}

// makeBundle lays out the sandbox's own directory. Its first entry, made here, is also the label by which List knows the run.
// dev is its network device, nil for none.
func (e *Engine) makeBundle(ctx context.Context, k string, spec sandbox.Spec, conf *config.Config, dev *device) (bundle, error) {
	dir := e.sandboxDir(k)
	b := bundle{dir: filepath.Join(dir, "bundle")}
	for _, d := range []string{dir, b.dir} {
		if err := os.Mkdir(d, 0o711); err != nil {
			return bundle{}, err
		}
	}
	granted, err := e.keepRecord(k, spec)
	if err != nil {
		return bundle{}, err
	}
	// Nothing but the file of the writable layer comes into it.
	if err := os.Mkdir(filepath.Join(b.dir, "root"), 0o755); err != nil {
		return bundle{}, err
	}
	add, err := e.linkRoot(ctx, k, spec, filepath.Join(b.dir, rootFile))
	if err != nil {
		return bundle{}, err
	}
	// The volume is made once nothing is left to refuse: a sandbox that can't be leaves none.
	base, err := e.rangeFor(spec)
	if err != nil {
		return bundle{}, err
	}
	for _, d := range []string{e.socketDir(k), e.stateDir(k)} { // of root inside
		if err := errors.Join(os.Mkdir(d, 0o700), os.Lchown(d, int(base), int(base))); err != nil {
			return bundle{}, err
		}
	}
	if err := e.makeSlotVolume(k, spec, base); err != nil {
		return bundle{}, err
	}
	b.spec = e.ociSpec(k, spec, base, add, time.Now())
	e.gpus.grant(b.spec, conf, filepath.Join(e.stage.dir, gpuFiles), granted)
	if dev != nil {
		if err := e.addNetwork(k, b.spec, dev); err != nil {
			return bundle{}, err
		}
	}
	if err := e.noteSources(b.dir); err != nil {
		return bundle{}, err
	}
	data, err := json.Marshal(b.spec)
	if err != nil {
		return bundle{}, err
	}
	// gVisor's sentry and gofer read it from here.
	return b, os.WriteFile(filepath.Join(b.dir, "config.json"), data, 0o600)
}

// await returns when the guest answers, or fails as soon as gVisor's process has ended.
func (e *Engine) await(ctx context.Context, k string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("gVisor's process ended at once: %w", err)
	}
	defer unix.Close(fd)
	for {
		if e.answers(ctx, k) {
			return nil
		}
		// The socket appears at some moment; only the process's end can be waited for, so look every few milliseconds.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 3)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("watching gVisor's process: %w", err)
		case n > 0:
			return fmt.Errorf("its guest ended before it answered%s", e.lastWords(k))
		case ctx.Err() != nil:
			return fmt.Errorf("waiting for its guest: %w%s", ctx.Err(), e.lastWords(k))
		}
	}
}

// answers reports whether the run's guest speaks its protocol.
func (e *Engine) answers(ctx context.Context, k string) bool {
	conn, err := dialGuest(ctx, e.socketDir(k))
	if err != nil {
		return false
	}
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		_ = conn.Close() // it never worked
		return false
	}
	defer c.Close()
	_, err = c.Info(ctx)
	return err == nil
}

// lastWords returns what gVisor wrote when it failed, if it did, as ": …".
func (e *Engine) lastWords(k string) string {
	data, err := os.ReadFile(filepath.Join(e.sandboxDir(k), panicLog))
	if err != nil || len(data) == 0 {
		return ""
	}
	return fmt.Sprintf(": %q", data[:min(len(data), 2048)])
}

// dialGuest connects to the guest that listens in dir. The sandbox's root may put anything in its place there, so a link is
// not followed: it could lead to a socket of the host.
func dialGuest(ctx context.Context, dir string) (net.Conn, error) {
	f, err := openBeneath(dir, guest.SocketName)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s is not a socket", guest.SocketName)
	}
	// Through the descriptor: the path may have changed meanwhile, and may be longer than a socket's address can be.
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// openBeneath names a file of a directory that a sandbox writes in, without following links. The file can be read only if it
// is a regular one; for others the descriptor merely names it.
func openBeneath(dir, name string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(int(d.Fd()), name, &how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return f, err
	}
	defer f.Close()
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}
