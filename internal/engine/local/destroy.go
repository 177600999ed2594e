package local

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
)

// Destroy implements engine.Engine.
func (e *Engine) Destroy(ctx context.Context, ref engine.Ref) error {
	k, err := key(ref)
	if err != nil {
		return err
	}
	e.mu.Lock()
	if en := e.entries[k]; en != nil && en.cancel != nil {
		en.cancel()
	} else if en != nil && en.abort != nil {
		en.abort()
	}
	e.mu.Unlock()
	en, release, err := e.hold(ctx, k)
	if err != nil {
		return err
	}
	defer release()
	if err := e.destroy(ctx, en, k); err != nil {
		return fmt.Errorf("destroying sandbox %s: %w", k, err)
	}
	return nil
}

// destroy frees whatever there is of a run, step by step, and does every step even if an earlier one failed. It goes by what
// is to be seen on the host and not by gVisor's state files: those may be missing, broken, or of before a reboot.
func (e *Engine) destroy(ctx context.Context, en *entry, k string) error {
	if err := e.stop(ctx, en, k); err != nil {
		return err
	}
	return removeTree(e.sandboxDir(k)) // last: it is the label
}

// stop frees whatever there is of a run but its directory.
func (e *Engine) stop(ctx context.Context, en *entry, k string) error {
	var errs []error
	e.watches.stop(k)
	if en.made != nil {
		// It is our child: this also reaps it and closes what we hold of it.
		if err := en.made.Destroy(); err != nil {
			e.cfg.Log.Debug("gVisor's own destroy", "sandbox", k, "err", err) // the steps below decide
		}
		en.made = nil
	}
	id := e.containerID(k)
	procs, err := e.living()
	errs = append(errs, err)
	for _, p := range procs.of(k) {
		errs = append(errs, kill(ctx, p, e.conf.RootDir))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the files of a living sandbox stay
	}
	errs = append(errs, e.networks.detach(k), e.cgroups.remove(ctx, id))
	for _, name := range []string{"_sandbox:" + id + ".state", "_sandbox:" + id + ".lock"} {
		errs = append(errs, remove(filepath.Join(e.conf.RootDir, id+name)))
	}
	// Where the path would be longer than a socket's address can be, gVisor makes its control socket elsewhere.
	for _, dir := range []string{e.conf.RootDir, "/var/run", "/run", "/tmp"} {
		errs = append(errs, remove(filepath.Join(dir, "runsc-"+id+".sock")))
	}
	return errors.Join(errs...)
}

// remove removes a file that may not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// List implements engine.Engine. It finds runs by their directories, by gVisor's state files and by its processes, since after
// a crash any of the three may be all that is left.
func (e *Engine) List(ctx context.Context) iter.Seq2[engine.Listed, error] {
	return func(yield func(engine.Listed, error) bool) {
		found, err := e.find(ctx)
		if err != nil {
			yield(engine.Listed{}, fmt.Errorf("listing sandboxes: %w", err))
			return
		}
		for _, l := range found {
			if !yield(l, nil) {
				return
			}
		}
	}
}

func (e *Engine) find(ctx context.Context) (map[string]engine.Listed, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found := map[string]engine.Listed{}
	add := func(k string, since time.Time, problem string) {
		if _, ok := found[k]; ok {
			return
		}
		if ref, ok := parseKey(k); ok {
			found[k] = engine.Listed{Ref: ref, Since: since, Phase: engine.PhaseGone, Problem: problem}
		}
	}
	dirs, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if fi, err := d.Info(); err == nil {
			add(d.Name(), fi.ModTime(), "")
		}
	}
	procs, err := e.living()
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		add(p.key, started(p.pid), "it has processes but no directory")
	}
	states, err := os.ReadDir(e.conf.RootDir)
	if err != nil {
		return nil, err
	}
	for _, s := range states {
		if k, _, ok := strings.Cut(s.Name(), "_sandbox:"); ok {
			if fi, err := s.Info(); err == nil {
				add(k, fi.ModTime(), "it has a state file but no directory")
			}
		}
	}
	for _, k := range e.networks.keys() {
		add(k, time.Time{}, "it has a network device but no directory")
	}
	e.buildMu.Lock()
	for k := range e.building {
		delete(found, k)
	}
	e.buildMu.Unlock()
	for k, l := range found {
		st, err := e.Inspect(ctx, l.Ref)
		if err != nil {
			return nil, err
		}
		l.Phase, l.Ref.Handle = st.Phase, []byte(k)
		found[k] = l
	}
	return found, nil
}
