package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// firstRun names the first incarnation of a sandbox, and for now the only one.
const firstRun = "1"

// Create records a new sandbox and returns it; making it goes on by itself. What is wrong with req is a Problem.
func (m *Manager) Create(ctx context.Context, req Request) (sandbox.Sandbox, error) {
	spec, e, err := m.plan(req)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	if m.life.Err() != nil {
		return sandbox.Sandbox{}, errClosing()
	}
	if spec.Image, err = m.findImage(ctx, req.Account, e, spec.Image, false); err != nil {
		return sandbox.Sandbox{}, err
	}
	id := sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox))
	spec.Volume, err = m.cfg.Store.EnsureVolume(ctx, req.Account, cmp.Or(spec.Volume.Name, ownVolume(id)))
	if err != nil {
		return sandbox.Sandbox{}, fmt.Errorf("create a sandbox: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	sb := sandbox.Sandbox{
		ID: id, Account: req.Account, Name: cmp.Or(req.Name, friendlyName()), State: sandbox.Creating, Spec: spec,
		Engine: e.Capabilities().Name, Run: firstRun, CreatedAt: now, ExpiresAt: now.Add(spec.Timeout),
	}
	if !spec.Image.IsHost() && spec.Image.Digest == "" {
		sb.ExpiresAt = sb.ExpiresAt.Add(prepareImageLimit) // its time begins when it runs
	}
	if err := m.cfg.Store.Admit(ctx, sb); err != nil {
		return sandbox.Sandbox{}, fmt.Errorf("create a sandbox: %w", err)
	}
	// From here on the row drives it, whether ctx lives or not.
	m.keep(sb, true)
	settle, cancel := settled(ctx)
	defer cancel()
	return m.cfg.Store.Sandbox(settle, sb.Account, id)
}

// WaitReady returns once the sandbox is running. If it comes to another end, that is a Problem. With an error comes what was last
// known of the sandbox, if anything.
func (m *Manager) WaitReady(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error) {
	var sb sandbox.Sandbox
	err := m.until(ctx, func() (bool, error) {
		now, err := m.cfg.Store.Sandbox(ctx, account, id)
		if err == nil {
			sb = now
		}
		return now.State != sandbox.Creating, err
	})
	if err != nil || sb.State == sandbox.Running {
		return sb, err
	}
	if sb.Fault && sb.StartedAt.IsZero() {
		if err := m.refused(id); err != nil {
			return sb, err
		}
	}
	return sb, notRunning(sb)
}

// notRunning says why a sandbox can't be worked with.
func notRunning(sb sandbox.Sandbox) error {
	p := &sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_not_running"}
	switch {
	case sb.State == sandbox.Creating:
		p.Detail = "The sandbox is still being created. Wait until it is running."
	case sb.Fault && sb.StartedAt.IsZero():
		p.Class, p.Code = sandbox.ErrUnavailable, "create_failed"
		p.Detail = "The sandbox could not be created. " + sb.Reason
	case sb.State == sandbox.Suspended || sb.State == sandbox.Suspending:
		p.Code, p.Detail = "sandbox_suspended", "The sandbox is suspended. Resume it first: POST /sandbox/{id}/resume."
	case sb.State == sandbox.Resuming:
		p.Code, p.Detail = "sandbox_resuming", "The sandbox is being resumed. Try again when it runs."
	case sb.State == sandbox.Stopping:
		p.Detail = "The sandbox is being stopped. " + sb.Reason
	default:
		p.Detail = "The sandbox has ended. " + sb.Reason
	}
	p.Detail = strings.TrimSpace(p.Detail)
	return p
}

// create does what Creating asks for: make it, reach its guest, prepare it, and move on to Running, or to Stopping if any of that
// fails.
func (k *keeper) create(ctx context.Context, sb sandbox.Sandbox) error {
	err := k.bringUp(ctx, &sb)
	if err == nil {
		return k.moved(k.m.cfg.Store.Transition(ctx, sb.ID, sb.Run, sandbox.Running, func(s *sandbox.Sandbox) {
			s.Handle, s.ExpiresAt = sb.Handle, sb.ExpiresAt
		}))
	}
	if ctx.Err() != nil {
		return nil // somebody wants it to stop, or the manager ends: the row says which
	}
	k.m.log.Error("a sandbox could not be created", "sandbox", sb.ID, "err", err)
	if p := (*sandbox.Problem)(nil); errors.As(err, &p) {
		k.m.refuse(sb.ID, p) // who waits for it hears this
	}
	if st, inspectErr := k.inspect(ctx, sb); inspectErr == nil && st.Phase == engine.PhaseGone && st.OOM {
		return k.outOfMemory(ctx, sb)
	}
	return k.fail(ctx, sb, plain(err))
}

func (k *keeper) bringUp(ctx context.Context, sb *sandbox.Sandbox) error {
	if err := k.prepareImage(ctx, sb); err != nil {
		return fmt.Errorf("preparing its image failed: %w", err)
	}
	began := time.Now()
	if !sb.Spec.Image.IsHost() {
		sb.ExpiresAt = began.Add(sb.Spec.Timeout).UTC().Truncate(time.Microsecond)
	}
	k.m.tell(ctx, *sb, "volume", "Volume %q will be at %s.", sb.Spec.Volume.Name, sb.Spec.Workdir)
	k.m.tell(ctx, *sb, "starting", "Starting it on the engine %s.", sb.Engine)
	handle, err := k.make(ctx, *sb)
	if err != nil {
		return fmt.Errorf("starting it failed: %w", err)
	}
	sb.Handle = handle
	if _, err := k.m.cfg.Store.Amend(ctx, sb.ID, sb.Run, func(s *sandbox.Sandbox) { s.Handle = handle }); err != nil {
		return fmt.Errorf("recording it failed: %w", err)
	}
	c, err := k.connect(ctx, *sb)
	if err != nil {
		return fmt.Errorf("its helper could not be reached: %w", err)
	}
	k.m.tell(ctx, *sb, "guest", "Its helper answers, %v after the start.", time.Since(began).Round(time.Millisecond))
	if k.m.cfg.Prepare != nil {
		ctx, cancel := context.WithTimeout(ctx, prepareLimit)
		defer cancel()
		if err := k.m.cfg.Prepare(ctx, c, *sb); err != nil {
			return fmt.Errorf("preparing it failed: %w", err)
		}
	}
	return k.startEntrypoint(ctx, c, *sb)
}

// make asks the engine for the run. A run that another server began may be half made in a way that the engine can't go on
// from; then it is made anew.
func (k *keeper) make(ctx context.Context, sb sandbox.Sandbox) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, createLimit)
	defer cancel()
	handle, err := k.engine.Create(ctx, refOf(sb), sb.Spec)
	if err == nil || k.fresh || ctx.Err() != nil {
		return handle, err
	}
	k.m.log.Warn("a half made sandbox is made anew", "sandbox", sb.ID, "err", err)
	if destroyErr := k.engine.Destroy(ctx, refOf(sb)); destroyErr != nil {
		return nil, errors.Join(err, destroyErr)
	}
	return k.engine.Create(ctx, refOf(sb), sb.Spec)
}

func refOf(sb sandbox.Sandbox) engine.Ref {
	return engine.Ref{ID: sb.ID, Run: sb.Run, Handle: sb.Handle}
}

// startEntrypoint starts what the image wants to be started, as one of the sandbox's runs. That it can't be started, or ends, is told and
// keeps nobody from using the sandbox. A second call finds it started.
func (k *keeper) startEntrypoint(ctx context.Context, c *guest.Client, sb sandbox.Sandbox) error {
	settings := sb.Spec.Image.Settings
	if len(settings.Entrypoint) == 0 {
		return nil
	}
	run := sandbox.Run{
		ID: sandbox.PrefixRun + strings.TrimPrefix(string(sb.ID), sandbox.PrefixSandbox), Account: sb.Account, Sandbox: sb.ID,
		Kind: sandbox.RunEntrypoint, Argv: slices.Concat(settings.Entrypoint, settings.Cmd), State: sandbox.RunRunning,
		StartedAt: time.Now().UTC().Truncate(time.Microsecond),
	}
	if _, err := k.m.cfg.Store.Run(ctx, sb.Account, run.ID); err == nil {
		return nil
	} else if !errors.Is(err, sandbox.ErrNotFound) {
		return fmt.Errorf("looking for its entrypoint failed: %w", err)
	}
	k.claim(run.ID)
	if err := k.m.cfg.Store.InsertRun(ctx, run); err != nil {
		k.unclaim(run.ID)
		return fmt.Errorf("recording its entrypoint failed: %w", err)
	}
	_, err := c.Start(ctx, guest.Command{ID: run.ID, Argv: run.Argv})
	if e := (*guest.Error)(nil); errors.As(err, &e) {
		defer k.unclaim(run.ID)
		k.m.tell(ctx, sb, "entrypoint", "The image's entrypoint could not be started: %s.", strings.TrimSuffix(e.Detail, "."))
		return k.m.lose(ctx, run.Account, run.ID, "It was not started. "+e.Detail)
	}
	if err != nil {
		k.unclaim(run.ID)
		return fmt.Errorf("starting its entrypoint failed: %w", err)
	}
	k.m.tell(ctx, sb, "entrypoint", "The image's entrypoint is started as run %s.", run.ID)
	k.watch(run)
	return nil
}
