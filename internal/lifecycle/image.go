package lifecycle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Images that were pulled or built and that nobody has used for so long are forgotten: the same request makes them again.
const imageLife = 30 * 24 * time.Hour

// ImageRequest is what somebody asks of a new image.
type ImageRequest struct {
	Account string
	Engine  string        // default: the first
	Image   sandbox.Image // Source, Commands and the names of secrets
	Network sandbox.Network
	Fresh   bool // ask the registry though the account has an image of that name
}

// images returns the engine's power to make images, or the Problem that it has none.
func images(e engine.Engine) (engine.Images, error) {
	power, ok := engine.As[engine.Images](e)
	if !ok {
		return nil, &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "image_not_found", Field: "image.registry",
			Detail: fmt.Sprintf("The engine %s has only the image %q.", e.Capabilities().Name, sandbox.HostImage)}
	}
	return power, nil
}

// engineNamed finds an engine; "" is the default.
func (m *Manager) engineNamed(name string) (engine.Engine, error) {
	if name == "" {
		return m.cfg.Engines[0], nil
	}
	if e, ok := m.engines[name]; ok {
		return e, nil
	}
	var names []string
	for _, caps := range m.Capabilities() {
		names = append(names, caps.Name)
	}
	return nil, sandbox.Invalid("engine", "There is no engine %.64q; this server has: %s.", name, strings.Join(names, ", "))
}

// findImage checks what was asked for and says what is known of it: Digest is set if it lies ready and the account may use it.
func (m *Manager) findImage(ctx context.Context, account string, e engine.Engine, img sandbox.Image, fresh bool) (sandbox.Image, error) {
	if img.IsHost() {
		return img, nil
	}
	power, err := images(e)
	if err != nil {
		return img, err
	}
	if err := power.CheckImage(img); err != nil {
		return img, err
	}
	if err := m.checkSecrets(ctx, account, img); err != nil {
		return img, err
	}
	if sandbox.IsID(img.Source, sandbox.PrefixImage) {
		stored, err := m.cfg.Store.Image(ctx, account, img.Source)
		if errors.Is(err, sandbox.ErrNotFound) || err == nil && stored.Engine != e.Capabilities().Name {
			return img, noImage(img.Source)
		}
		if err != nil {
			return img, err
		}
		img.Base = stored.Digest
		if len(img.Commands) == 0 {
			img.Digest, img.Settings = stored.Digest, stored.Settings
			return img, m.cfg.Store.TouchImage(ctx, stored.ID)
		}
	}
	if fresh {
		return img, nil
	}
	stored, err := m.cfg.Store.FindImage(ctx, account, e.Capabilities().Name, img.Source, recipe(img))
	if errors.Is(err, sandbox.ErrNotFound) {
		return img, nil
	}
	if err != nil {
		return img, err
	}
	if _, err := power.Image(ctx, stored.Digest); err != nil {
		if errors.Is(err, sandbox.ErrNotFound) {
			return img, nil // its files are gone; it is made again
		}
		return img, err
	}
	img.Digest, img.Settings = stored.Digest, stored.Settings
	return img, m.cfg.Store.TouchImage(ctx, stored.ID)
}

func noImage(id string) error {
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "image_not_found", Field: "image.snapshot",
		Detail: fmt.Sprintf("There is no image %q. GET /image lists those that there are.", id)}
}

// checkSecrets sees to it that the secrets that an image needs are there before anything is begun.
func (m *Manager) checkSecrets(ctx context.Context, account string, img sandbox.Image) error {
	if _, err := m.registrySecret(ctx, account, img); err != nil {
		return err
	}
	_, err := m.buildSecrets(ctx, account, img)
	return err
}

func (m *Manager) registrySecret(ctx context.Context, account string, img sandbox.Image) (map[string]string, error) {
	if img.Secret == "" {
		return nil, nil
	}
	return m.secret(ctx, account, img.Secret, "image.registry_secret")
}

// buildSecrets joins the values of all secrets for the build.
func (m *Manager) buildSecrets(ctx context.Context, account string, img sandbox.Image) (map[string]string, error) {
	all := make(map[string]string)
	for _, name := range img.BuildSecrets {
		values, err := m.secret(ctx, account, name, "image.secrets")
		if err != nil {
			return nil, err
		}
		for k, v := range values {
			all[k] = v
		}
	}
	return all, nil
}

func (m *Manager) secret(ctx context.Context, account, name, field string) (map[string]string, error) {
	if m.cfg.Secrets == nil {
		return nil, unsupported(field, "This server keeps no secrets.")
	}
	values, err := m.cfg.Secrets.Values(ctx, account, name)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil, &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "secret_not_found", Field: field,
			Detail: fmt.Sprintf("There is no secret %.64q. Make it with PUT /secret/%.64s.", name, name)}
	}
	return values, err
}

// recipe tells images of one source apart. Secrets count by their names: what they hold may change and the image stay.
func recipe(img sandbox.Image) string {
	if len(img.Commands) == 0 {
		return ""
	}
	sum := sha256.New()
	for _, part := range [][]string{{img.Base}, img.Commands, img.BuildSecrets} {
		fmt.Fprintf(sum, "%d\n", len(part))
		for _, s := range part {
			fmt.Fprintf(sum, "%d %s\n", len(s), s)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// makeImage has the engine prepare an image and records it as the account's.
func (m *Manager) makeImage(ctx context.Context, account string, e engine.Engine, img sandbox.Image, network sandbox.Network,
	report func(engine.ImageProgress)) (sandbox.StoredImage, engine.Prepared, error) {
	power, err := images(e)
	if err != nil {
		return sandbox.StoredImage{}, engine.Prepared{}, err
	}
	req := engine.ImageRequest{Account: account, Image: img, Network: network}
	if req.Registry, err = m.registrySecret(ctx, account, img); err != nil {
		return sandbox.StoredImage{}, engine.Prepared{}, err
	}
	if req.Secrets, err = m.buildSecrets(ctx, account, img); err != nil {
		return sandbox.StoredImage{}, engine.Prepared{}, err
	}
	if m.cfg.Gateway != nil && len(img.Commands) > 0 {
		var done func()
		req.Gateway, req.Env, done = m.cfg.Gateway.Build(network)
		defer done()
	}
	prepared, err := power.PrepareImage(ctx, req, report)
	if err != nil {
		return sandbox.StoredImage{}, prepared, err
	}
	settle, cancel := settled(ctx)
	defer cancel()
	kind := sandbox.ImagePulled
	if len(img.Commands) > 0 {
		kind = sandbox.ImageBuilt
	}
	stored, err := m.cfg.Store.PutImage(settle, record(account, e, img.Source, recipe(img), kind, prepared))
	return stored, prepared, err
}

func record(account string, e engine.Engine, name, recipe string, kind sandbox.ImageKind, p engine.Prepared) sandbox.StoredImage {
	return sandbox.StoredImage{
		Account: account, Name: name, Recipe: recipe, Kind: kind, Digest: p.Image.Digest, Engine: e.Capabilities().Name,
		Settings: p.Image.Settings, Size: p.Size, Reference: p.Reference, Platform: p.Platform,
	}
}

// MakeImage prepares an image ahead of any sandbox and returns it. The work goes on when ctx ends: others may wait for it. report is
// not called any more then.
func (m *Manager) MakeImage(ctx context.Context, req ImageRequest, report func(engine.ImageProgress)) (sandbox.StoredImage, []string, error) {
	e, err := m.engineNamed(req.Engine)
	if err != nil {
		return sandbox.StoredImage{}, nil, err
	}
	if req.Image.IsHost() {
		return sandbox.StoredImage{}, nil, sandbox.Invalid("registry", "The image %q needs no preparation.", sandbox.HostImage)
	}
	network, err := m.policy(req.Network, e.Capabilities())
	if err != nil {
		return sandbox.StoredImage{}, nil, err
	}
	img, err := m.findImage(ctx, req.Account, e, req.Image, req.Fresh)
	if err != nil {
		return sandbox.StoredImage{}, nil, err
	}
	if img.Digest != "" {
		if sandbox.IsID(img.Source, sandbox.PrefixImage) && len(img.Commands) == 0 {
			stored, err := m.cfg.Store.Image(ctx, req.Account, img.Source)
			return stored, nil, err
		}
		stored, err := m.cfg.Store.FindImage(ctx, req.Account, e.Capabilities().Name, img.Source, recipe(img))
		return stored, nil, err
	}
	type result struct {
		stored  sandbox.StoredImage
		notices []string
		err     error
	}
	progress, done := make(chan engine.ImageProgress), make(chan result, 1)
	if !m.spawn(func(life context.Context) {
		life, cancel := context.WithTimeout(life, prepareImageLimit)
		defer cancel()
		stored, prepared, err := m.makeImage(life, req.Account, e, img, network, func(p engine.ImageProgress) {
			select {
			case progress <- p:
			case <-ctx.Done():
			}
		})
		done <- result{stored, prepared.Notices, err}
	}) {
		return sandbox.StoredImage{}, nil, errClosing()
	}
	for {
		select {
		case p := <-progress:
			if report != nil {
				report(p)
			}
		case r := <-done:
			return r.stored, r.notices, r.err
		case <-ctx.Done():
			return sandbox.StoredImage{}, nil, ctx.Err()
		}
	}
}

// prepareImage makes the image of a sandbox that is being created and tells in its events how that goes.
func (k *keeper) prepareImage(ctx context.Context, sb *sandbox.Sandbox) error {
	if sb.Spec.Image.IsHost() || sb.Spec.Image.Digest != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, prepareImageLimit)
	defer cancel()
	k.m.tell(ctx, *sb, "image", "Preparing the image %s.", sb.Spec.Image.Source)
	_, prepared, err := k.m.makeImage(ctx, sb.Account, k.engine, sb.Spec.Image, sb.Spec.Network, k.m.narrator(ctx, *sb))
	if err != nil {
		return err
	}
	for _, notice := range prepared.Notices {
		k.m.tell(ctx, *sb, "image", "%s", notice)
	}
	amended, err := k.m.cfg.Store.Amend(ctx, sb.ID, sb.Run, func(s *sandbox.Sandbox) { s.Spec.Image = prepared.Image })
	if err != nil {
		return fmt.Errorf("recording the image failed: %w", err)
	}
	*sb = amended
	return nil
}

// maxLogEvents bounds the lines of a build that are kept as events: a command may write without end.
const maxLogEvents = 2000

// narrator tells an image's progress as events of a sandbox: every line of a build, and of a pull the steps but not the bytes.
func (m *Manager) narrator(ctx context.Context, sb sandbox.Sandbox) func(engine.ImageProgress) {
	lines, last := 0, ""
	return func(p engine.ImageProgress) {
		if p.Text == "" || p.Text == last && !p.Output {
			return
		}
		last = p.Text
		kind := "image"
		if p.Phase == "build" {
			kind = "build"
		}
		switch lines++; {
		case lines < maxLogEvents:
			m.tell(ctx, sb, kind, "%s", p.Text)
		case lines == maxLogEvents:
			m.tell(ctx, sb, kind, "There is more output than is kept here.")
		}
	}
}

// Image returns one image of account.
func (m *Manager) Image(ctx context.Context, account, id string) (sandbox.StoredImage, error) {
	return m.cfg.Store.Image(ctx, account, id)
}

// Images lists the images of account, those used last first.
func (m *Manager) Images(ctx context.Context, account string) ([]sandbox.StoredImage, error) {
	return m.cfg.Store.Images(ctx, account)
}

// DeleteImage forgets an image. Sandboxes that were made of it go on; its files go when nobody needs them any more.
func (m *Manager) DeleteImage(ctx context.Context, account, id string) error {
	if err := m.cfg.Store.DeleteImage(ctx, account, id); err != nil {
		return err
	}
	m.spawn(func(ctx context.Context) {
		if err := m.collectImages(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("images could not be collected", "err", err)
		}
	})
	return nil
}

// ImportImages takes the images of an archive over into account. name is what they are called if the archive doesn't say.
func (m *Manager) ImportImages(ctx context.Context, account, engineName, name string, archive io.Reader) ([]sandbox.StoredImage, error) {
	e, err := m.engineNamed(engineName)
	if err != nil {
		return nil, err
	}
	power, err := images(e)
	if err != nil {
		return nil, err
	}
	all, err := power.ImportImages(ctx, archive, func(engine.ImageProgress) {})
	if err != nil {
		return nil, err
	}
	var out []sandbox.StoredImage
	for _, p := range all {
		called := name
		if called == "" && len(p.Names) > 0 {
			called = p.Names[0]
		}
		if called == "" {
			called = p.Image.Digest
		}
		stored, err := m.cfg.Store.PutImage(ctx, record(account, e, called, p.Image.Digest, sandbox.ImageImported, p))
		if err != nil {
			return out, err
		}
		out = append(out, stored)
	}
	return out, nil
}

// ExportImage writes an archive of an image of account.
func (m *Manager) ExportImage(ctx context.Context, account, id string, format engine.ArchiveFormat, w io.Writer) error {
	stored, err := m.cfg.Store.Image(ctx, account, id)
	if err != nil {
		return err
	}
	e, err := m.engineNamed(stored.Engine)
	if err != nil {
		return err
	}
	power, err := images(e)
	if err != nil {
		return err
	}
	return power.ExportImage(ctx, stored.Digest, format, stored.Name, w)
}

// Snapshot makes an image of a running sandbox's file system. name is for people; default: the sandbox's.
func (m *Manager) Snapshot(ctx context.Context, account string, id sandbox.ID, name string) (sandbox.StoredImage, error) {
	sb, err := m.cfg.Store.Sandbox(ctx, account, id)
	if err != nil {
		return sandbox.StoredImage{}, err
	}
	if sb.State != sandbox.Running {
		return sandbox.StoredImage{}, notRunning(sb)
	}
	if err := checkName(name); err != nil {
		return sandbox.StoredImage{}, err
	}
	e, ok := m.engines[sb.Engine]
	if !ok {
		return sandbox.StoredImage{}, m.unkept(sb)
	}
	power, ok := engine.As[engine.Snapshotter](e)
	if !ok {
		return sandbox.StoredImage{}, &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "unsupported",
			Detail: fmt.Sprintf("The engine %s can't make snapshots.", sb.Engine)}
	}
	prepared, err := power.Snapshot(ctx, refOf(sb), sb.Spec)
	if err != nil {
		return sandbox.StoredImage{}, err
	}
	if name == "" {
		name = sb.Name
	}
	settle, cancel := settled(ctx)
	defer cancel()
	image := record(account, e, name, sandbox.NewID(""), sandbox.ImageSnapshot, prepared)
	image.Origin = sb.ID
	stored, err := m.cfg.Store.PutImage(settle, image)
	if err == nil {
		m.tell(ctx, sb, "snapshot", "A snapshot was made: image %s.", stored.ID)
	}
	return stored, err
}

// collectImages has engines free what no image of any account and no sandbox needs. It is safe beside itself.
func (m *Manager) collectImages(ctx context.Context) error {
	if err := m.cfg.Store.ForgetImages(ctx, time.Now().Add(-imageLife)); err != nil {
		return err
	}
	var errs []error
	for _, e := range m.cfg.Engines {
		power, ok := engine.As[engine.Images](e)
		if !ok {
			continue
		}
		wanted, err := m.wantedImages(ctx, e.Capabilities().Name)
		if err != nil {
			return err
		}
		freed, err := power.CollectImages(ctx, func(digest string) bool { return wanted[digest] })
		errs = append(errs, err)
		if freed > 0 {
			m.log.Info("images that nobody needs were removed", "engine", e.Capabilities().Name, "bytes", freed)
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) wantedImages(ctx context.Context, engineName string) (map[string]bool, error) {
	wanted := make(map[string]bool)
	all, err := m.cfg.Store.Images(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Engine == engineName {
			wanted[i.Digest] = true
		}
	}
	f := sandbox.Filter{States: sandbox.LiveStates()}
	for {
		page, next, err := m.cfg.Store.Sandboxes(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, sb := range page {
			wanted[sb.Spec.Image.Digest], wanted[sb.Spec.Image.Base] = true, true
		}
		if next == "" {
			return wanted, nil
		}
		f.Cursor = next
	}
}

// BuildGateway answers what comes out of the sandbox of a build.
type BuildGateway interface {
	// Build returns what answers the requests of a build whose commands may reach what network says, and the variables by which
	// they find it. It is no way to the model, and it ends with done.
	Build(network sandbox.Network) (h http.Handler, env map[string]string, done func())
}
