package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	buildRun     = "build" // Ref.Run of the sandboxes of builds
	buildLimit   = time.Hour
	buildDiskMiB = 20 << 10
)

// buildImages is the store of images as builds see it.
type buildImages struct {
	e    *Engine
	auth image.Auth
}

// Pull implements build.Images.
func (b buildImages) Pull(ctx context.Context, ref string, report func(string)) (string, error) {
	img, _, err := b.e.images.Pull(ctx, ref, b.auth, func(p image.Progress) { report(p.Text) })
	return img.ID, err
}

// Settings implements build.Images.
func (b buildImages) Settings(ctx context.Context, id string) (image.Settings, error) {
	img, err := b.e.images.Inspect(ctx, id)
	return img.Config, err
}

// Append implements build.Images.
func (b buildImages) Append(ctx context.Context, base string, layer io.Reader, change func(*image.Settings), history string) (string, error) {
	img, err := b.e.images.Append(ctx, base, layer, change, history)
	return img.ID, err
}

// Files implements build.Images.
func (b buildImages) Files(ctx context.Context, id string) (build.Files, error) {
	img, err := b.e.images.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	root, err := rootfs.Open(img.Root)
	if err != nil {
		return nil, err
	}
	return imageFiles{root}, nil
}

// imageFiles shows an image's files as builds want to see them.
type imageFiles struct{ *rootfs.FS }

// ReadLink implements build.Files.
func (f imageFiles) ReadLink(name string) (string, error) { return f.Readlink(name) }

// Attr implements build.Files.
func (f imageFiles) Attr(info fs.FileInfo) build.Attr {
	a, ok := info.Sys().(*rootfs.Attr)
	if !ok {
		return build.Attr{}
	}
	return build.Attr{UID: a.UID, GID: a.GID, Xattrs: a.Xattrs}
}

// Cached implements build.Images.
func (b buildImages) Cached(key string) (string, bool) {
	name, err := b.e.stepFile(key)
	if err != nil {
		return "", false
	}
	id, err := os.ReadFile(name)
	if err != nil {
		return "", false
	}
	if _, err := b.e.images.Inspect(context.Background(), string(id)); err != nil {
		return "", false
	}
	now := time.Now()
	_ = os.Chtimes(name, now, now) // it lives longer because it was used; if that fails, it is only forgotten earlier
	return string(id), true
}

// Remember implements build.Images.
func (b buildImages) Remember(key, id string) error {
	name, err := b.e.stepFile(key)
	if err != nil {
		return err
	}
	fresh, err := os.CreateTemp(filepath.Join(b.e.cfg.Dir, cacheDir, "tmp"), "step-")
	if err != nil {
		return fmt.Errorf("remembering a step: %w", err)
	}
	_, err = fresh.WriteString(id)
	if err := errors.Join(err, fresh.Close()); err != nil {
		return fmt.Errorf("remembering a step: %w", errors.Join(err, os.Remove(fresh.Name())))
	}
	return os.Rename(fresh.Name(), name)
}

func (e *Engine) stepFile(key string) (string, error) {
	if b, err := hex.DecodeString(key); err != nil || len(b) < 16 {
		return "", fmt.Errorf("%w: key of a step %q", sandbox.ErrInvalid, key)
	}
	return filepath.Join(e.cfg.Dir, cacheDir, key), nil
}

// runner executes RUN commands, each in a sandbox of its own.
type runner struct {
	e   *Engine
	req engine.ImageRequest
}

// Run implements build.Runner.
func (r runner) Run(ctx context.Context, step build.Step) (_ io.ReadCloser, err error) {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: buildRun}
	k, err := key(ref)
	if err != nil {
		return nil, err
	}
	spec := sandbox.Spec{
		Image: sandbox.Image{Source: step.Base, Digest: step.Base, Settings: sandbox.ImageSettings{Agent: "0:0"}}, Workdir: "/",
		DiskMiB: buildDiskMiB, Timeout: buildLimit, Network: r.req.Network,
	}
	r.e.setBuilding(k, true)
	defer r.e.setBuilding(k, false)
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
		defer cancel()
		err = r.e.ifEnded(ctx, ref, err)
		err = errors.Join(err, r.e.Destroy(undo, ref))
	}()
	if _, err := r.e.Create(ctx, ref, spec); err != nil {
		return nil, err
	}
	if err := r.command(ctx, ref, step); err != nil {
		return nil, err
	}
	en, release, err := r.e.hold(ctx, k)
	if err != nil {
		return nil, err
	}
	defer release()
	return r.e.changes(ctx, en, k)
}

// ifEnded says of an error that came about with a run that it has ended by itself, if it has: else a lost connection looks like the caller's.
func (e *Engine) ifEnded(ctx context.Context, ref engine.Ref, err error) error {
	p, exit := (*sandbox.Problem)(nil), (*build.ExitError)(nil)
	if err == nil || ctx.Err() != nil || errors.As(err, &p) || errors.As(err, &exit) {
		return err
	}
	// A connection breaks with its guest, which is a moment before the sandbox has ended.
	lost := errors.Is(err, guest.ErrLost)
	reason := "its helper doesn't answer any more"
	for deadline := time.Now().Add(endLimit); ; {
		st, inspectErr := e.Inspect(ctx, ref)
		if inspectErr == nil && st.Phase == engine.PhaseGone {
			reason = cmp.Or(st.Reason, "nothing is left of it")
			break
		}
		if !lost {
			return err
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		<-time.After(endLook)
	}
	return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "sandbox_ended", Err: err,
		Detail: fmt.Sprintf("The sandbox in which this was done ended before it was: %s. Try again.", reason)}
}

// How long, and how often, is looked whether a sandbox has ended whose connection broke.
const (
	endLimit = 5 * time.Second
	endLook  = 20 * time.Millisecond
)

// clearBuilds destroys the sandboxes of builds that an earlier process has left: nobody goes on with them, and no row names them.
func (e *Engine) clearBuilds() {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for l, err := range e.List(ctx) {
		if err == nil && l.Ref.Run == buildRun {
			err = e.Destroy(ctx, l.Ref)
		}
		if err != nil {
			e.cfg.Log.Warn("what a build has left can't be removed yet", "sandbox", l.Ref.ID, "err", err) // whoever lists will find it
		}
	}
}

func (e *Engine) setBuilding(k string, is bool) {
	e.buildMu.Lock()
	defer e.buildMu.Unlock()
	if is {
		e.building[k] = true
	} else {
		delete(e.building, k)
	}
}

// command runs a step's command to its end and passes its output on.
func (r runner) command(ctx context.Context, ref engine.Ref, step build.Step) error {
	conn, err := r.e.Dial(ctx, ref)
	if err != nil {
		return err
	}
	c, err := guest.NewClient(conn, r.req.Gateway)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Setup(ctx, guest.Setup{Deadline: time.Now().Add(buildLimit)}); err != nil {
		return err
	}
	for _, f := range step.Files {
		if _, err := c.WriteFile(ctx, f.Path, bytes.NewReader(f.Data), f.Mode); err != nil {
			return fmt.Errorf("putting %s in place: %w", f.Path, err)
		}
	}
	env := maps.Clone(r.req.Env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, step.Env)
	maps.Copy(env, step.SecretEnv)
	const id = "step"
	if _, err := c.Start(ctx, guest.Command{
		ID: id, Argv: step.Argv, Env: env, Dir: step.Workdir, MakeDir: true,
		User: fmt.Sprintf("%d:%d", step.User.UID, step.User.GID), Groups: step.User.Groups,
	}); err != nil {
		if e := (*guest.Error)(nil); errors.As(err, &e) {
			// What a shell would say, as a program that isn't there does.
			_, _ = fmt.Fprintln(step.Stderr, e.Detail)
			return &build.ExitError{Code: 127}
		}
		return err
	}
	for f, err := range c.Output(ctx, id, 0, true) {
		if err != nil {
			return fmt.Errorf("reading the output: %w", err)
		}
		var out io.Writer
		switch f.Kind {
		case guest.Stdout:
			out = step.Stdout
		case guest.Stderr:
			out = step.Stderr
		default:
			continue
		}
		if _, err := out.Write(f.Data); err != nil {
			return err
		}
	}
	return ended(c.Wait(ctx, id))
}

// ended says how a command ended, if that was not well.
func ended(run guest.Run, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("waiting for the command: %w", err)
	case run.State == guest.StateExited && run.Code != nil && *run.Code == 0:
		return nil
	case run.State == guest.StateExited && run.Code != nil:
		return &build.ExitError{Code: *run.Code}
	case run.State == guest.StateSignaled:
		return &build.ExitError{Signal: run.Signal}
	default:
		return fmt.Errorf("the command's end makes no sense: it is %s", run.State)
	}
}
