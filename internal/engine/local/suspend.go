package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	gsandbox "gvisor.dev/gvisor/runsc/sandbox"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// How far a suspension or a resumption is stands on disk, in the sandbox's own directory, so that a later process can go on from
// wherever this one died:
//
//	checkpoint.new/     is being written. Until it has its final name, the sandbox lives, perhaps paused
//	checkpoint/         whole: this is the sandbox now. What runs of it is to be killed
//	checkpoint.used/    its processes may have run on: never to be used again
const (
	imageNew  = "checkpoint.new"
	imageDir  = "checkpoint"
	imageUsed = "checkpoint.used"

	// In checkpoint.new: gVisor is about to be told to pause it, and has been.
	pausing = "pausing"
	paused  = "paused"
)

const (
	// signalBack tells a guest that it is back, or that no checkpoint comes.
	signalBack = unix.SIGUSR1

	// comeBackLimit is how long a guest may take to be reachable again. By itself it comes back after 15 s.
	comeBackLimit = 30 * time.Second

	// imageSlack is what a checkpoint holds beside the memory in use.
	imageSlack = 64 << 20
)

func (e *Engine) imagePath(k, name string) string { return filepath.Join(e.sandboxDir(k), name) }

func (e *Engine) hasImage(k, name string) bool {
	_, err := os.Lstat(e.imagePath(k, name))
	return err == nil
}

// suspended reports whether the run lies on disk.
func (e *Engine) suspended(k string) bool { return e.hasImage(k, imageDir) }

// errSuspended is what a suspended run answers to what needs a running one.
func errSuspended(k string) error {
	return fmt.Errorf("%w: sandbox %s is suspended", sandbox.ErrState, k)
}

// Suspend implements engine.Suspender.
func (e *Engine) Suspend(ctx context.Context, ref engine.Ref) error {
	k, err := key(ref)
	if err != nil {
		return err
	}
	err = e.whole(ctx, k, func(ctx context.Context, en *entry) error { return e.suspend(ctx, en, k) })
	if err != nil {
		return fmt.Errorf("suspending sandbox %s: %w", k, err)
	}
	return nil
}

// Resume implements engine.Suspender.
func (e *Engine) Resume(ctx context.Context, ref engine.Ref, spec sandbox.Spec) error {
	k, err := key(ref)
	if err != nil {
		return err
	}
	err = e.whole(ctx, k, func(ctx context.Context, en *entry) error { return e.resume(ctx, en, k, spec) })
	if err != nil {
		return fmt.Errorf("resuming sandbox %s: %w", k, err)
	}
	return nil
}

// whole does work on a run while nobody else does. Once begun it goes on though ctx is done, because gVisor can't be told to stop in
// the middle; only a Destroy of the run ends it, by killing what it works on. Close waits for it.
func (e *Engine) whole(ctx context.Context, k string, do func(context.Context, *entry) error) error {
	en, release, err := e.hold(ctx, k)
	if err != nil {
		return err
	}
	inner, abort := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	e.mu.Lock()
	en.abort = abort
	e.mu.Unlock()
	e.working.Go(func() {
		defer release()
		unarmed := context.AfterFunc(inner, func() { e.killAll(k) })
		err := do(inner, en)
		e.mu.Lock()
		en.abort = nil
		e.mu.Unlock()
		unarmed()
		abort()
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("it goes on unwatched: %w", ctx.Err())
	}
}

// killAll kills a run's processes, for who is about to destroy it.
func (e *Engine) killAll(k string) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	procs, err := e.living()
	for _, p := range procs.of(k) {
		err = errors.Join(err, kill(ctx, p, e.conf.RootDir))
	}
	if err != nil {
		e.cfg.Log.Warn("what is to be destroyed can't be killed yet", "sandbox", k, "err", err)
	}
}

// load returns gVisor's view of a living run. What it says of the run's status is of no use: a server that died while it restored the run
// has left that wrong for ever, and package container panics over it. So below, its Sandbox is asked directly.
func (e *Engine) load(k string) (*container.Container, error) {
	procs, err := e.living()
	if err != nil {
		return nil, err
	}
	if alive := procs.of(k); !alive.has(roleSentry) || !alive.has(roleGofer) {
		return nil, fmt.Errorf("%w: it has ended", sandbox.ErrNotFound)
	}
	c, err := container.Load(e.conf.RootDir, e.fullID(k), container.LoadOpts{Exact: true, SkipCheck: true})
	if err != nil {
		return nil, fmt.Errorf("gVisor doesn't know it: %w", err)
	}
	return c, nil
}

func (e *Engine) suspend(ctx context.Context, en *entry, k string) error {
	if e.suspended(k) {
		return e.freeze(ctx, en, k)
	}
	c, err := e.load(k)
	if err != nil {
		return err
	}
	if e.hasImage(k, imageUsed) { // only its removal was missing, or the guest doesn't answer
		if err := e.comeBack(ctx, k, c); err != nil {
			return err
		}
	}
	if e.hasImage(k, imageNew) { // an earlier process died in the middle
		if err := e.thaw(ctx, k, c, true); err != nil {
			return err
		}
	}
	if slices.Contains(e.networks.keys(), k) {
		// gVisor takes the addresses off a device when it starts, and what it saves has connections through it.
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "cannot_suspend",
			Detail: "A sandbox with a network device (network mode open) can't be suspended; it goes on."}
	}
	if err := e.roomForImage(k, c); err != nil {
		return err
	}
	conn, err := dialGuest(ctx, e.socketDir(k))
	if err != nil {
		return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "sandbox_unreachable",
			Detail: "The sandbox's helper doesn't answer at the moment, so it can't be suspended. Try again.", Err: err}
	}
	if err := os.Mkdir(e.imagePath(k, imageNew), 0o700); err != nil { // its files hold all secrets of the sandbox
		return errors.Join(err, conn.Close())
	}
	if err := e.checkpoint(ctx, k, c, conn); err != nil {
		return e.refuse(ctx, k, c, refusal(err))
	}
	if err := syncDir(e.sandboxDir(k), func() error { return os.Rename(e.imagePath(k, imageNew), e.imagePath(k, imageDir)) }); err != nil {
		return e.refuse(ctx, k, c, err)
	}
	return e.freeze(ctx, en, k)
}

// checkpoint writes the image. It leaves the sandbox paused if it succeeds and perhaps if not: nothing of it may run on after the
// moment that the image shows.
func (e *Engine) checkpoint(ctx context.Context, k string, c *container.Container, conn net.Conn) error {
	if err := silence(ctx, conn); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	dir := e.imagePath(k, imageNew)
	if err := os.WriteFile(filepath.Join(dir, pausing), nil, 0o600); err != nil {
		return err
	}
	if err := c.Sandbox.Pause(c.ID); err != nil {
		return fmt.Errorf("gVisor could not pause it: %w", explain(err))
	}
	if err := os.WriteFile(filepath.Join(dir, paused), nil, 0o600); err != nil {
		return errors.Join(err, c.Sandbox.Resume(c.ID)) // without the mark, nobody would know
	}
	// Resume means that gVisor doesn't kill it: it would do so even when it fails.
	opts := gsandbox.CheckpointOpts{Compression: statefile.CompressionLevelNone, Resume: true}
	if err := c.Sandbox.Checkpoint(e.conf, c.ID, dir, opts); err != nil {
		return &checkpointError{err}
	}
	if err := writeManifest(dir); err != nil {
		return err
	}
	return persist(dir)
}

// silence makes the guest let go of the sockets that it has from this host. It owns conn.
func silence(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, comeBackLimit)
	defer cancel()
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	err = c.Suspend(ctx)
	if errors.Is(err, guest.ErrLost) && ctx.Err() == nil {
		// The guest hangs up once it is quiet, and may be quicker with that than with its answer. If it was something else, gVisor refuses
		// to save the socket, and all goes on.
		return nil
	}
	if err != nil {
		return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "sandbox_busy",
			Detail: "The sandbox's helper could not finish what it was doing, so the sandbox can't be suspended. Try again.", Err: err}
	}
	return nil
}

// freeze frees what a sandbox whose image is whole still holds.
func (e *Engine) freeze(ctx context.Context, en *entry, k string) error {
	if err := e.stop(ctx, en, k); err != nil {
		return err
	}
	return e.removeFilestores(k)
}

// thaw lets a sandbox go on that is not to be suspended after all, in whatever state its suspension was, and returns when its
// guest answers. inherited says that an earlier process began it.
func (e *Engine) thaw(ctx context.Context, k string, c *container.Container, inherited bool) error {
	if ctx.Err() != nil {
		return nil // it is being destroyed
	}
	var resumed error
	is := e.hasImage(k, filepath.Join(imageNew, paused))
	if is {
		// The mark first: gVisor dies of being told twice.
		if err := remove(e.imagePath(k, filepath.Join(imageNew, paused))); err != nil {
			return err
		}
		resumed = c.Sandbox.Resume(c.ID) // waits for a checkpoint that an earlier process has begun
	}
	err := e.comeBack(ctx, k, c)
	if err != nil && inherited && !is && e.hasImage(k, filepath.Join(imageNew, pausing)) && ctx.Err() == nil {
		// That process died just when it paused it or let it go on: a guest that isn't paused would have come back.
		resumed = c.Sandbox.Resume(c.ID)
		err = e.comeBack(ctx, k, c)
	}
	if err != nil {
		return fmt.Errorf("letting it go on: %w", errors.Join(resumed, err))
	}
	return os.RemoveAll(e.imagePath(k, imageNew))
}

// refuse lets a sandbox go on that could not be suspended because of err, which it returns. If it does not go on, err is no more than
// a part of the story.
func (e *Engine) refuse(ctx context.Context, k string, c *container.Container, err error) error {
	if thawErr := e.thaw(ctx, k, c, false); thawErr != nil {
		return fmt.Errorf("%w (it was to be let go on because of: %s)", thawErr, err.Error())
	}
	return err
}

// comeBack returns when the guest can be reached again. What was restored is then no longer needed.
func (e *Engine) comeBack(ctx context.Context, k string, c *container.Container) error {
	ctx, cancel := context.WithTimeout(ctx, comeBackLimit)
	defer cancel()
	if err := c.Sandbox.SignalContainer(c.ID, signalBack, false); err != nil { // without it, it comes back later
		e.cfg.Log.Warn("a guest is not told that it is back", "sandbox", k, "err", err)
	}
	if err := e.await(ctx, k, c.SandboxPid()); err != nil {
		return err
	}
	return os.RemoveAll(e.imagePath(k, imageUsed))
}

// checkpointError is gVisor's refusal to write an image.
type checkpointError struct{ err error }

func (e *checkpointError) Error() string { return e.err.Error() }
func (e *checkpointError) Unwrap() error { return e.err }

// refusal says why a sandbox could not be put on disk.
func refusal(err error) error {
	refused := (*checkpointError)(nil)
	if !errors.As(err, &refused) {
		return err
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "bound host socket"):
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "cannot_suspend", Err: err,
			Detail: "A program in the sandbox listens on a Unix socket in the volume, which can't be put on disk. The sandbox goes on. End that program, or let it listen below /tmp."}
	case strings.Contains(text, "no space left"):
		return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "no_space", Err: err,
			Detail: "The server's disk was full before the sandbox's memory was written. The sandbox goes on. Free some space there."}
	default:
		line, _, _ := strings.Cut(text, "\n")
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "cannot_suspend", Err: err,
			Detail: fmt.Sprintf("gVisor can't put the sandbox on disk as it is now; the sandbox goes on. gVisor says: %.300s", line)}
	}
}

func (e *Engine) resume(ctx context.Context, en *entry, k string, spec sandbox.Spec) error {
	if e.hasImage(k, imageUsed) {
		if restored, err := e.recoverResume(ctx, en, k); restored || err != nil {
			return err
		}
	}
	if !e.suspended(k) {
		c, err := e.load(k)
		if err != nil {
			return err
		}
		return e.await(ctx, k, c.SandboxPid())
	}
	if err := checkManifest(e.imagePath(k, imageDir)); err != nil {
		return err
	}
	if err := e.roomForFiles(k); err != nil {
		return err
	}
	if err := e.freeze(ctx, en, k); err != nil { // what an earlier process began
		return err
	}
	if err := e.restore(ctx, en, k, spec); err != nil {
		return err
	}
	return e.comeBack(ctx, k, en.made)
}

// restore makes the sandbox anew from its image. If it fails, the image is as good as before, unless the sandbox has run on.
func (e *Engine) restore(ctx context.Context, en *entry, k string, spec sandbox.Spec) error {
	bundle, err := e.renewBundle(k)
	if err != nil {
		return err
	}
	// What comes back has its own name, though it was adopted: the processes that had the other are gone.
	if err := remove(e.containerFile(k)); err != nil {
		return err
	}
	conf := *e.conf
	conf.PanicLog = filepath.Join(e.sandboxDir(k), panicLog)
	// It is our own, but for the places of its files, which may have moved.
	conf.RestoreSpecValidation = config.RestoreSpecValidationIgnore
	c, err := newContainer(&conf, container.Args{ID: k, Spec: bundle.spec, BundleDir: bundle.dir})
	if err != nil {
		return errors.Join(cannotResume(err, e.lastWords(k)), e.freeze(ctx, en, k))
	}
	en.made = c
	err = e.place(k, spec, []int{c.SandboxPid(), int(c.GoferPid.Load())})
	if err == nil {
		err = e.watch(k, spec, c)
	}
	if err != nil {
		return errors.Join(err, e.freeze(ctx, en, k))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.mark(k, imageDir, imageUsed); err != nil {
		return errors.Join(err, e.freeze(ctx, en, k))
	}
	err = c.Restore(&conf, e.imagePath(k, imageUsed), false, false, nil)
	if err == nil {
		err = c.WaitRestore()
		if err == nil {
			return nil
		}
	} else if c.WaitRestore() == nil {
		return fmt.Errorf("gVisor brought it back, but: %w", err) // it has run: what it is now, Inspect tells
	}
	return errors.Join(cannotResume(err, e.lastWords(k)), e.freeze(ctx, en, k), e.mark(k, imageUsed, imageDir))
}

func (e *Engine) mark(k, from, to string) error {
	return syncDir(e.sandboxDir(k), func() error { return os.Rename(e.imagePath(k, from), e.imagePath(k, to)) })
}

func cannotResume(err error, lastWords string) error {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "cannot_resume", Err: fmt.Errorf("%w%s", err, lastWords),
		Detail: fmt.Sprintf("The sandbox could not be brought back; it stays suspended. gVisor says: %.300s", line)}
}

// recoverResume looks at a resumption that an earlier process began. It reports whether the sandbox is back. If not, and without an
// error, it has not run, and its image is in its place again.
func (e *Engine) recoverResume(ctx context.Context, en *entry, k string) (restored bool, err error) {
	c, err := e.load(k)
	if err != nil {
		return false, err // it may have run on before it ended
	}
	err = c.WaitRestore()
	if err == nil {
		e.expose(k)
		return true, e.comeBack(ctx, k, c)
	}
	if !strings.Contains(err.Error(), "is not being restored") && !strings.Contains(err.Error(), "estore failed") {
		return false, fmt.Errorf("gVisor doesn't say whether it came back: %w", err)
	}
	if err := e.freeze(ctx, en, k); err != nil {
		return false, err
	}
	return false, e.mark(k, imageUsed, imageDir)
}

// expose makes the host's kernel take a run's processes first, which gVisor does last when it restores.
func (e *Engine) expose(k string) {
	procs, err := e.living()
	var pids []int
	for _, p := range procs.of(k) {
		pids = append(pids, p.pid)
	}
	for _, pid := range descendants(pids) {
		err = errors.Join(err, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(oomScore)), 0))
	}
	if err != nil {
		e.cfg.Log.Warn("a sandbox is no more likely to be killed for memory than others", "sandbox", k, "err", err)
	}
}

// roomForImage refuses a suspension that would fill the host's disk.
func (e *Engine) roomForImage(k string, c *container.Container) error {
	usage, err := c.Sandbox.Usage(false)
	if err != nil {
		return fmt.Errorf("asking gVisor for its memory: %w", err)
	}
	need := int64(usage.Total) + e.filestoreSize(k) + imageSlack //nolint:gosec // no host has so much memory
	return e.room(need, "suspended", "its memory and its files")
}

// roomForFiles refuses a resumption for which the writable layer would fill the host's disk.
func (e *Engine) roomForFiles(k string) error {
	var need int64
	if fi, err := os.Stat(filepath.Join(e.imagePath(k, imageDir), "pages.img")); err == nil {
		need = fi.Size()
	}
	return e.room(need, "resumed", "its files")
}

func (e *Engine) room(need int64, what, of string) error {
	n, err := free(e.cfg.Dir)
	if err != nil {
		return err
	}
	if have := int64(n) - minFree; have < need { //nolint:gosec // as above
		return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "no_space",
			Detail: fmt.Sprintf("The sandbox can't be %s: the server's disk has room for %d MiB, and %s may take %d MiB. Free some space there.",
				what, max(have, 0)>>20, of, need>>20)}
	}
	return nil
}

// filestores are the files in which gVisor keeps the writable layer of a running sandbox; a checkpoint holds their content.
func (e *Engine) filestores(k string) []string {
	found, _ := filepath.Glob(filepath.Join(e.sandboxDir(k), "bundle", "*", ".gvisor.filestore.*")) // the pattern is well formed
	return found
}

func (e *Engine) filestoreSize(k string) (size int64) {
	for _, path := range e.filestores(k) {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			size += st.Blocks * 512
		}
	}
	return size
}

func (e *Engine) removeFilestores(k string) error {
	var errs []error
	for _, path := range e.filestores(k) {
		errs = append(errs, remove(path))
	}
	return errors.Join(errs...)
}
