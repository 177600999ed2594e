package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// maker is a fake engine that has images: it says that it makes them, and runs all of them as what it is.
type maker struct {
	engine.Engine

	mu       sync.Mutex
	made     map[string]engine.Prepared
	requests []engine.ImageRequest
	fail     error
	wait     chan struct{} // if not nil, a preparation waits for it
	exported string

	collected chan struct{} // told after each collection
}

func (m *maker) Unwrap() engine.Engine { return m.Engine }

func (m *maker) Create(ctx context.Context, ref engine.Ref, spec sandbox.Spec) ([]byte, error) {
	if !spec.Image.IsHost() && spec.Image.Digest == "" {
		return nil, fmt.Errorf("%w: the image was not prepared", sandbox.ErrInvalid)
	}
	spec.Image = sandbox.Image{Source: sandbox.HostImage}
	return m.Engine.Create(ctx, ref, spec)
}

func (m *maker) CheckImage(img sandbox.Image) error {
	if strings.Contains(img.Source, " ") {
		return sandbox.Invalid("image.registry", "no name")
	}
	return nil
}

func (m *maker) PrepareImage(ctx context.Context, req engine.ImageRequest, report func(engine.ImageProgress)) (engine.Prepared, error) {
	m.mu.Lock()
	m.requests = append(m.requests, req)
	fail, wait := m.fail, m.wait
	m.mu.Unlock()
	report(engine.ImageProgress{Phase: "pull", Text: "Fetching " + req.Image.Source + "."})
	report(engine.ImageProgress{Phase: "build", Text: "a line", Output: true})
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return engine.Prepared{}, ctx.Err()
		}
	}
	if fail != nil {
		return engine.Prepared{}, fail
	}
	return m.keep(req.Image, fmt.Sprintf("sha256:%s%s%d", req.Image.Base, req.Image.Source, len(req.Image.Commands))), nil
}

func (m *maker) keep(img sandbox.Image, digest string) engine.Prepared {
	m.mu.Lock()
	defer m.mu.Unlock()
	img.Digest = digest
	img.Settings = sandbox.ImageSettings{Env: map[string]string{"OF_IMAGE": "yes", "PATH": "/opt/image/bin"}, Workdir: "/tmp", Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"exit 3"}}
	p := engine.Prepared{Image: img, Size: 7, Reference: img.Source + "@sha256:m", Notices: []string{"HEALTHCHECK is ignored."}}
	m.made[digest] = p
	return p
}

func (m *maker) Image(_ context.Context, digest string) (engine.Prepared, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.made[digest]; ok {
		return p, nil
	}
	return engine.Prepared{}, fmt.Errorf("%w: image", sandbox.ErrNotFound)
}

func (m *maker) ImportImages(context.Context, io.Reader, func(engine.ImageProgress)) ([]engine.Prepared, error) {
	p := m.keep(sandbox.Image{}, "sha256:imported")
	p.Names = []string{"of/archive:1"}
	return []engine.Prepared{p}, nil
}

func (m *maker) ExportImage(_ context.Context, digest string, _ engine.ArchiveFormat, name string, w io.Writer) error {
	m.exported = digest + " " + name
	_, err := io.WriteString(w, "tar")
	return err
}

func (m *maker) CollectImages(_ context.Context, keep func(string) bool) (int64, error) {
	defer func() {
		select {
		case m.collected <- struct{}{}:
		default: // nobody is waiting
		}
	}()
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.made, func(digest string, _ engine.Prepared) bool { return !keep(digest) })
	return 1, nil
}

func (m *maker) Snapshot(_ context.Context, ref engine.Ref, spec sandbox.Spec) (engine.Prepared, error) {
	return m.keep(spec.Image, "sha256:snapshot-of-"+string(ref.ID)), nil
}

func (m *maker) digests() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.made))
}

// asked is how many preparations there were.
func (m *maker) asked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.requests)
}

// keys opens the same secrets for everybody.
type keys map[string]map[string]string

func (k keys) Values(_ context.Context, _, name string) (map[string]string, error) {
	if v, ok := k[name]; ok {
		return v, nil
	}
	return nil, sandbox.ErrNotFound
}

// newMaker starts a manager over an engine that makes images.
func newMaker(t *testing.T) (*rig, *maker) {
	t.Helper()
	r, m := newRig(t), &maker{made: map[string]engine.Prepared{}, collected: make(chan struct{}, 8)}
	r.start(t, func(c *lifecycle.Config) {
		m.Engine = c.Engines[0]
		c.Engines = []engine.Engine{m}
		c.Secrets = keys{"registry": {"USERNAME": "me"}, "token": {"TOKEN": "t"}}
		c.CollectEvery = time.Hour
	})
	select {
	case <-m.collected: // the first one comes at once, and knows nothing of what the test is about to make
	case <-within(t).Done():
		t.Fatal("images are not collected")
	}
	return r, m
}

func (r *rig) ready(t *testing.T, req lifecycle.Request) (sandbox.Sandbox, error) {
	t.Helper()
	req.Account = r.account
	sb, err := r.m.Create(t.Context(), req)
	if err != nil {
		return sb, err
	}
	return r.m.WaitReady(within(t), r.account, sb.ID)
}

func TestImageOfASandbox(t *testing.T) {
	r, m := newMaker(t)
	want := sandbox.Image{Source: "some/image:1", Commands: []string{"RUN x"}, Secret: "registry", BuildSecrets: []string{"token"}}
	sb, err := r.ready(t, lifecycle.Request{Image: want, Network: sandbox.Network{Mode: sandbox.NetworkNone}})
	if err != nil {
		t.Fatal(err)
	}
	req := m.requests[0]
	if req.Account != r.account || req.Registry["USERNAME"] != "me" || req.Secrets["TOKEN"] != "t" || req.Network.Mode != sandbox.NetworkNone || req.Gateway == nil {
		t.Errorf("the engine was asked %+v", req)
	}
	if sb.Spec.Image.Digest == "" || sb.Spec.Image.Settings.Workdir != "/tmp" {
		t.Errorf("the sandbox's image is %+v", sb.Spec.Image)
	}
	if got := time.Until(sb.ExpiresAt); got > time.Hour {
		t.Errorf("its time began before it ran: %v are left", got)
	}
	run := r.sh(t, sb, `echo "$OF_IMAGE $PWD ${PATH%%:*}"`)
	if out := r.output(t, run); out != "yes /tmp /opt/image/bin\n" {
		t.Errorf("a process sees %q", out)
	}
	// The entrypoint is a run of its own, whose end is told as it was.
	var entry sandbox.Run
	runs, _, err := r.m.Runs(t.Context(), sandbox.RunFilter{Account: r.account, Sandbox: sb.ID})
	for _, run := range runs {
		if run.Kind == sandbox.RunEntrypoint {
			entry = run
		}
	}
	if err != nil || !slices.Equal(entry.Argv, []string{"/bin/sh", "-c", "exit 3"}) {
		t.Fatalf("the entrypoint's run is %+v, %v", entry, err)
	}
	if ended, err := r.m.WaitRun(within(t), r.account, entry.ID); err != nil || ended.ExitCode == nil || *ended.ExitCode != 3 {
		t.Errorf("it ended as %+v, %v", ended, err)
	}

	if _, err := r.ready(t, lifecycle.Request{Image: want}); err != nil || m.asked() != 1 {
		t.Errorf("a second sandbox: %v after %d preparations, want 1", err, m.asked())
	}
	if _, notices, err := r.m.MakeImage(t.Context(), lifecycle.ImageRequest{Account: r.account, Image: want, Fresh: true}, nil); err != nil || m.asked() != 2 || len(notices) != 1 {
		t.Errorf("made anew: %v, %v, after %d preparations", notices, err, m.asked())
	}
	m.mu.Lock()
	clear(m.made) // as if somebody had removed its files
	m.mu.Unlock()
	if _, err := r.ready(t, lifecycle.Request{Image: want}); err != nil || m.asked() != 3 {
		t.Errorf("with its files gone: %v after %d preparations", err, m.asked())
	}
}

func TestImageThatCannotBe(t *testing.T) {
	r, m := newMaker(t)
	for name, tc := range map[string]struct {
		img         sandbox.Image
		code, field string
	}{
		"bad name":        {sandbox.Image{Source: "a b"}, "invalid_request", "image.registry"},
		"no such secret":  {sandbox.Image{Source: "x", Secret: "nope"}, "secret_not_found", "image.registry_secret"},
		"no build secret": {sandbox.Image{Source: "x", BuildSecrets: []string{"nope"}}, "secret_not_found", "image.secrets"},
		"no such image":   {sandbox.Image{Source: sandbox.NewID(sandbox.PrefixImage)}, "image_not_found", "image.snapshot"},
	} {
		_, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account, Image: tc.img})
		if p := (*sandbox.Problem)(nil); !errors.As(err, &p) || p.Code != tc.code || p.Field != tc.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What only the registry knows comes to who waits, as it is.
	m.fail = &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "image_not_found", Field: "image.registry", Detail: "There is none."}
	sb, err := r.ready(t, lifecycle.Request{Image: sandbox.Image{Source: "x"}})
	if p := (*sandbox.Problem)(nil); !errors.As(err, &p) || p.Code != "image_not_found" || p.Field != "image.registry" {
		t.Errorf("an image that isn't there: %v", err)
	}
	r.reach(t, sb.ID, sandbox.Error)
	if _, _, err := r.m.MakeImage(t.Context(), lifecycle.ImageRequest{Account: r.account, Image: sandbox.Image{Source: sandbox.HostImage}}, nil); !errors.Is(err, sandbox.ErrInvalid) {
		t.Errorf("the host's image: %v", err)
	}
}

func TestImageOutlivesWhoAskedForIt(t *testing.T) {
	r, m := newMaker(t)
	m.wait = make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	var told []string
	_, _, err := r.m.MakeImage(ctx, lifecycle.ImageRequest{Account: r.account, Image: sandbox.Image{Source: "slow"}}, func(p engine.ImageProgress) {
		told = append(told, p.Text)
		if len(told) == 2 {
			leave()
		}
	})
	if !errors.Is(err, context.Canceled) || told[0] != "Fetching slow." {
		t.Fatalf("%v after %q", err, told)
	}
	changed := r.store.Watch(within(t))
	close(m.wait)
	for {
		if all, err := r.m.Images(t.Context(), r.account); err != nil || len(all) == 1 {
			break
		}
		select {
		case <-changed:
		case <-within(t).Done():
			t.Fatal("it was not recorded")
		}
	}
	// A sandbox that is ended while its image is being made.
	m.mu.Lock()
	m.wait = make(chan struct{})
	m.mu.Unlock()
	sb, err := r.m.Create(t.Context(), lifecycle.Request{Account: r.account, Image: sandbox.Image{Source: "slower"}})
	if err != nil {
		t.Fatal(err)
	}
	if ended, err := r.m.Terminate(within(t), r.account, sb.ID, ""); err != nil || ended.State != sandbox.Terminated {
		t.Errorf("%+v, %v", ended, err)
	}
}

func TestSnapshotIsAnImage(t *testing.T) {
	r, m := newMaker(t)
	other, _, err := r.store.EnsureAccount(t.Context(), "another")
	if err != nil {
		t.Fatal(err)
	}
	sb := r.running(t)
	snap, err := r.m.Snapshot(t.Context(), r.account, sb.ID, "")
	if err != nil || snap.Name != sb.Name || snap.Origin != sb.ID || snap.Kind != sandbox.ImageSnapshot {
		t.Fatalf("%+v, %v", snap, err)
	}
	again, err := r.m.Snapshot(t.Context(), r.account, sb.ID, "mine")
	if err != nil || again.ID == snap.ID {
		t.Errorf("a second one: %+v, %v", again, err)
	}
	if next, err := r.ready(t, lifecycle.Request{Image: sandbox.Image{Source: snap.ID}}); err != nil || next.Spec.Image.Digest != snap.Digest || m.asked() != 0 {
		t.Errorf("a sandbox of it: %+v, %v", next.Spec.Image, err)
	}
	if _, err := r.ready(t, lifecycle.Request{Image: sandbox.Image{Source: snap.ID, Commands: []string{"RUN x"}}}); err != nil || m.requests[0].Image.Base != snap.Digest {
		t.Errorf("with commands on top: %v, %+v", err, m.requests)
	}
	for name, err := range map[string]error{
		"taken by another": func() error { _, err := r.m.Snapshot(t.Context(), other.ID, sb.ID, ""); return err }(),
		"looked at":        func() error { _, err := r.m.Image(t.Context(), other.ID, snap.ID); return err }(),
		"deleted":          r.m.DeleteImage(t.Context(), other.ID, snap.ID),
		"exported":         r.m.ExportImage(t.Context(), other.ID, snap.ID, engine.ArchiveOCI, io.Discard),
		"used for a sandbox": func() error {
			_, err := r.m.Create(t.Context(), lifecycle.Request{Account: other.ID, Image: sandbox.Image{Source: snap.ID}})
			return err
		}(),
	} {
		if p := (*sandbox.Problem)(nil); !errors.As(err, &p) || !strings.HasSuffix(p.Code, "_not_found") {
			t.Errorf("%s by another account: %v", name, err)
		}
	}
	imported, err := r.m.ImportImages(t.Context(), r.account, "", "", strings.NewReader(""))
	if err != nil || len(imported) != 1 || imported[0].Name != "of/archive:1" || imported[0].Kind != sandbox.ImageImported {
		t.Errorf("%+v, %v", imported, err)
	}
	if err := r.m.ExportImage(t.Context(), r.account, imported[0].ID, engine.ArchiveDocker, io.Discard); err != nil || m.exported != "sha256:imported of/archive:1" {
		t.Errorf("exported %q, %v", m.exported, err)
	}
	// What no account has any more is collected; a sandbox's is not.
	m.keep(sandbox.Image{}, "sha256:nobodys")
	for _, i := range []string{snap.ID, again.ID, imported[0].ID} {
		if err := r.m.DeleteImage(t.Context(), r.account, i); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := within(t); slices.Contains(m.digests(), "sha256:imported") || slices.Contains(m.digests(), "sha256:nobodys"); {
		select {
		case <-m.collected:
		case <-deadline.Done():
			t.Fatalf("still there: %v", m.digests())
		}
	}
	if !slices.Contains(m.digests(), snap.Digest) {
		t.Errorf("a running sandbox's image was collected: %v", m.digests())
	}
}

func TestSandboxChangesWhileItLives(t *testing.T) {
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	name, span := "renamed", 2*time.Hour
	got, err := r.m.Update(t.Context(), r.account, sb.ID, lifecycle.Change{Name: &name, Timeout: &span, Network: &sandbox.Network{Mode: sandbox.NetworkEgress, Allow: []string{"example.com"}}})
	if err != nil || got.Name != name || got.Spec.Network.Mode != sandbox.NetworkEgress || !slices.Equal(got.Spec.Network.Allow, []string{"example.com"}) {
		t.Fatalf("%+v, %v", got, err)
	}
	if left := time.Until(got.ExpiresAt); left < span-time.Minute || left > span {
		t.Errorf("%v are left, want %v", left, span)
	}
	c, err := r.m.Guest(t.Context(), r.account, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := c.Info(t.Context()); err != nil || info.Deadline.Before(got.ExpiresAt) {
		t.Errorf("the guest would end at %v, before %v; %v", info.Deadline, got.ExpiresAt, err)
	}
	long, bad := 1000*time.Hour, "a\nb"
	for field, change := range map[string]lifecycle.Change{
		"timeout_s":    {Timeout: &long},
		"name":         {Name: &bad},
		"network.mode": {Network: &sandbox.Network{Mode: "wild"}},
	} {
		_, err := r.m.Update(t.Context(), r.account, sb.ID, change)
		if p := (*sandbox.Problem)(nil); !errors.As(err, &p) || p.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := r.m.Terminate(within(t), r.account, sb.ID, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.Update(t.Context(), r.account, sb.ID, lifecycle.Change{Name: &name}); !errors.Is(err, sandbox.ErrState) {
		t.Errorf("after its end: %v", err)
	}
}
