package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/container"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	imagesDir = "images"
	cacheDir  = "build-cache"

	// Images that nobody wants are kept for a while: an account may be about to record one that was just made, and the steps of a build
	// are worth something for some days.
	imageGrace = 10 * time.Minute
	stepLife   = 7 * 24 * time.Hour
)

// openImages opens the store of images and makes the image "host".
func (e *Engine) openImages() (err error) {
	// A process that was just killed may have left a child that is about to become gVisor, and holds the store's lock until it is.
	for late := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		e.images, err = image.Open(image.Config{Dir: filepath.Join(e.cfg.Dir, imagesDir), Transport: e.cfg.Registry, Log: e.cfg.Log})
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(late) {
			return err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.images.Close())
		}
	}()
	tmp := filepath.Join(e.cfg.Dir, cacheDir, "tmp")
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700)); err != nil {
		return err
	}
	e.builder = build.New(build.Config{Transport: e.cfg.Fetch, Dir: tmp})
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if e.host.digest, e.host.mounts, err = e.prepareHostImage(ctx); err != nil {
		return fmt.Errorf("preparing image %q: %w", sandbox.HostImage, err)
	}
	if e.loader, err = newLoader(filepath.Join(e.cfg.Dir, loaderDir), e.cfg.Mounts); err != nil {
		return fmt.Errorf("copying this machine's C library: %w", err)
	}
	return nil
}

// CheckImage implements engine.Images.
func (e *Engine) CheckImage(img sandbox.Image) error {
	if img.Source == sandbox.HostImage && len(img.Commands) > 0 {
		return sandbox.Invalid("image.dockerfile_commands", "Dockerfile commands need an image of a registry to begin with; %q has this machine's programs, "+
			"which nobody may change. Set image.registry, to debian:12-slim for example.", sandbox.HostImage)
	}
	if !sandbox.IsID(img.Source, sandbox.PrefixImage) && img.Source != sandbox.HostImage {
		if _, err := image.Canonical(img.Source); err != nil {
			return err
		}
	}
	return build.Check(img.Commands)
}

// PrepareImage implements engine.Images.
func (e *Engine) PrepareImage(ctx context.Context, req engine.ImageRequest, report func(engine.ImageProgress)) (engine.Prepared, error) {
	if err := e.CheckImage(req.Image); err != nil {
		return engine.Prepared{}, err
	}
	if report == nil {
		report = func(engine.ImageProgress) {}
	}
	var auth image.Auth // anonymous
	if req.Registry != nil {
		var err error
		if auth, err = image.AuthFromSecret(req.Registry); err != nil {
			return engine.Prepared{}, err
		}
	}
	id, reference := req.Image.Base, ""
	if id == "" {
		img, resolved, err := e.images.Pull(ctx, req.Image.Source, auth, func(p image.Progress) { report(progress(p)) })
		if err != nil {
			return engine.Prepared{}, err
		}
		id, reference = img.ID, resolved.Reference+"@"+resolved.Digest
	}
	base := id
	var notices []string
	if len(req.Image.Commands) > 0 {
		var err error
		if id, notices, err = e.build(ctx, req, auth, base, report); err != nil {
			return engine.Prepared{}, err
		}
	}
	p, err := e.prepared(ctx, id)
	if err != nil {
		if reference != "" && len(req.Image.Commands) == 0 && errors.Is(err, sandbox.ErrInvalid) { // nobody has a use for it
			err = errors.Join(err, e.images.GiveBack(id))
		}
		return engine.Prepared{}, err
	}
	settings := p.Image.Settings
	p.Image = req.Image
	p.Image.Base, p.Image.Digest, p.Image.Settings = base, id, settings
	p.Reference, p.Notices = reference, notices
	return p, nil
}

func progress(p image.Progress) engine.ImageProgress {
	return engine.ImageProgress{Phase: p.Phase, Layer: p.Layer, Done: p.Done, Total: p.Total, Text: p.Text}
}

// build runs the commands of req on base.
func (e *Engine) build(ctx context.Context, req engine.ImageRequest, auth image.Auth, base string, report func(engine.ImageProgress)) (string, []string, error) {
	return e.builder.Build(ctx, build.Request{
		Images: buildImages{e, auth}, Runner: runner{e, req}, Base: base, Commands: req.Image.Commands, Secrets: req.Secrets,
		Scope: fmt.Sprintf("%s %v", req.Account, req.Network), Report: func(ev build.Event) {
			p := engine.ImageProgress{Phase: "build", Done: int64(ev.Step), Total: int64(ev.Steps), Text: ev.Data}
			switch ev.Kind {
			case build.KindStep:
				p.Text = fmt.Sprintf("Step %d of %d: %s", ev.Step, ev.Steps, ev.Text)
			case build.KindCached:
				p.Text = fmt.Sprintf("Step %d of %d is cached.", ev.Step, ev.Steps)
			case build.KindLog:
				p.Output = true
			case build.KindDone, build.KindNotice: // notices are returned
				return
			}
			report(p)
		},
	})
}

// prepared looks at an image, and makes its root if that was dropped.
func (e *Engine) prepared(ctx context.Context, id string) (engine.Prepared, error) {
	img, err := e.images.Get(ctx, id)
	if err != nil {
		return engine.Prepared{}, err
	}
	settings, err := settingsOf(img)
	if err != nil {
		return engine.Prepared{}, err
	}
	return engine.Prepared{
		Image: sandbox.Image{Digest: id, Settings: settings}, Names: img.Names, Size: img.Size + img.RootSize, Platform: img.Platform, CreatedAt: img.CreatedAt,
	}, nil
}

// Image implements engine.Images.
func (e *Engine) Image(ctx context.Context, digest string) (engine.Prepared, error) {
	return e.prepared(ctx, digest)
}

// ImportImages implements engine.Images.
func (e *Engine) ImportImages(ctx context.Context, archive io.Reader, report func(engine.ImageProgress)) ([]engine.Prepared, error) {
	all, err := e.images.Import(ctx, archive, func(p image.Progress) { report(progress(p)) })
	if err != nil {
		return nil, err
	}
	var out []engine.Prepared
	for _, img := range all {
		p, err := e.prepared(ctx, img.ID)
		if err != nil {
			for _, img := range all {
				if errors.Is(err, sandbox.ErrInvalid) { // none of them will be anybody's
					err = errors.Join(err, e.images.GiveBack(img.ID))
				}
			}
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// ExportImage implements engine.Images. What people call an image may be no name that an archive could hold; then it holds none.
func (e *Engine) ExportImage(ctx context.Context, digest string, format engine.ArchiveFormat, name string, w io.Writer) error {
	if !image.IsTag(name) {
		name = ""
	}
	return e.images.Export(ctx, digest, image.Format(format), name, w)
}

// CollectImages implements engine.Images.
func (e *Engine) CollectImages(ctx context.Context, keep func(digest string) bool) (int64, error) {
	steps, err := e.cachedSteps()
	if err != nil {
		return 0, err
	}
	used, err := e.usedImages()
	if err != nil {
		return 0, err
	}
	return e.images.Collect(ctx, func(id string) bool { return id == e.host.digest || steps[id] || used[id] || keep(id) }, imageGrace)
}

// usedImages returns the images of the sandboxes that there are. Their roots are links and safe; a snapshot needs the layers too.
func (e *Engine) usedImages() (map[string]bool, error) {
	dirs, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil {
		return nil, fmt.Errorf("looking for images in use: %w", err)
	}
	used := map[string]bool{}
	for _, d := range dirs {
		id, err := os.ReadFile(filepath.Join(e.sandboxDir(d.Name()), imageFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("looking for images in use: %w", err)
		}
		used[string(id)] = true
	}
	return used, nil
}

// Snapshot implements engine.Snapshotter.
func (e *Engine) Snapshot(ctx context.Context, ref engine.Ref, spec sandbox.Spec) (engine.Prepared, error) {
	k, err := key(ref)
	if err != nil {
		return engine.Prepared{}, err
	}
	en, release, err := e.hold(ctx, k)
	if err != nil {
		return engine.Prepared{}, err
	}
	defer release()
	layer, err := e.changes(ctx, en, k)
	if err != nil {
		return engine.Prepared{}, e.ifEnded(ctx, ref, fmt.Errorf("taking a snapshot of %s: %w", k, err))
	}
	defer layer.Close()
	base, err := os.ReadFile(filepath.Join(e.sandboxDir(k), imageFile)) // for "host" it may be another than today's
	if err != nil {
		return engine.Prepared{}, fmt.Errorf("taking a snapshot of %s: %w", k, err)
	}
	img, err := e.images.Append(ctx, string(base), layer, nil, "snapshot")
	if err != nil {
		return engine.Prepared{}, fmt.Errorf("taking a snapshot of %s: %w", k, err)
	}
	return e.prepared(ctx, img.ID)
}

// changes returns what a running sandbox has changed of its root, as a layer.
func (e *Engine) changes(ctx context.Context, en *entry, k string) (io.ReadCloser, error) {
	c := en.made
	if c == nil {
		var err error
		if c, err = container.Load(e.conf.RootDir, e.fullID(k), container.LoadOpts{}); err != nil {
			return nil, fmt.Errorf("%w: the sandbox is gone: %w", sandbox.ErrNotFound, err)
		}
	}
	upper, err := os.CreateTemp(e.sandboxDir(k), "upper-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(upper.Name()); err != nil { // nobody else needs the name
		return nil, errors.Join(err, upper.Close())
	}
	if err := c.TarRootfsUpperLayer(upper); err != nil {
		return nil, errors.Join(fmt.Errorf("reading what was changed: %w", err), upper.Close())
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, upper.Close())
	}
	if _, err := upper.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(err, upper.Close())
	}
	mounted, err := mountedIn(filepath.Join(e.sandboxDir(k), "bundle"))
	if err != nil {
		return nil, errors.Join(err, upper.Close())
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(rootfs.FromUpper(upper, w, ours(mounted))) }()
	return &layerOf{r, upper}, nil
}

// layerOf is a layer that is made while it is read.
type layerOf struct {
	*io.PipeReader
	from *os.File
}

// Close ends the making.
func (l *layerOf) Close() error { return errors.Join(l.PipeReader.Close(), l.from.Close()) }

// mountedIn returns where a sandbox has mounts, by its bundle.
func mountedIn(bundle string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec struct {
		Mounts []struct {
			Destination string `json:"destination"`
		} `json:"mounts"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("reading what is mounted: %w", err)
	}
	var places []string
	for _, m := range spec.Mounts {
		places = append(places, filepath.Clean(m.Destination))
	}
	return places, nil
}

// ours tells which paths of a writable layer are there because of us: places of mounts, and what is written at each start.
func ours(mounted []string) func(string) bool {
	files := map[string]bool{"/etc/hosts": true, "/etc/hostname": true, "/etc/resolv.conf": true}
	trees := append([]string{"/opt/sandlot", "/run/sandlot"}, mounted...)
	return func(path string) bool {
		path = filepath.Clean("/" + path)
		return files[path] || slices.ContainsFunc(trees, func(t string) bool { return path == t || strings.HasPrefix(path, t+"/") })
	}
}

// cachedSteps returns the images of build steps that are still remembered, and forgets the old ones.
func (e *Engine) cachedSteps() (map[string]bool, error) {
	dir := filepath.Join(e.cfg.Dir, cacheDir)
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the cache of builds: %w", err)
	}
	steps := map[string]bool{}
	for _, f := range files {
		name := filepath.Join(dir, f.Name())
		fi, err := f.Info()
		if f.IsDir() || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && time.Since(fi.ModTime()) > stepLife {
			err = remove(name)
		} else if err == nil {
			var id []byte
			if id, err = os.ReadFile(name); err == nil {
				steps[string(id)] = true
			}
		}
		if err != nil {
			return nil, fmt.Errorf("reading the cache of builds: %w", err)
		}
	}
	return steps, nil
}
