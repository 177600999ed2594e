package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// parallel is how many layers of one image are fetched at once.
const parallel = 4

// Pull fetches an image and makes its root ready. Callers that pull the same thing at once share one download, each after it was let in
// by the registry with credentials of its own. report, which may be nil, is called by this goroutine only.
//
// What is there already is not fetched again, but only for whom the registry would have given it to: knowing a digest opens nothing. An
// image is handed out by its manifest in the repository that gave it before, and a layer after the registry that sent it once has confirmed
// that this caller may read it. From any other registry it is downloaded again, as the proof that it is there.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth, report func(Progress)) (Image, Resolved, error) {
	r, err := parse(ref)
	if err != nil {
		return Image{}, Resolved{}, err
	}
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return Image{}, Resolved{}, err
	}
	defer done()
	if report == nil {
		report = func(Progress) {}
	}
	res := Resolved{Reference: canonical(r)}
	report(Progress{Phase: PhaseResolve, Text: "Looking up " + res.Reference + "."})
	c, err := s.connect(ctx, r.Context(), auth)
	if err != nil {
		return Image{}, res, at(fieldRegistry, err)
	}
	img, found, err := s.here(ctx, c, r, report)
	if err != nil {
		return Image{}, res, at(fieldRegistry, err)
	}
	res.Digest, res.Manifest = found.Digest, found.Manifest
	if img.ID == "" {
		m, err := s.resolve(ctx, c, r)
		if err != nil {
			return Image{}, res, at(fieldRegistry, err)
		}
		res.Digest, res.Manifest = m.top, m.digest
		id := m.Config.Digest.String()
		defer s.drop([]string{id}) // runs after unpin; an image that has it keeps it
		defer s.pin(id)()          // till it counts as got
		if img, err = s.share(ctx, &pull{s: s, c: c, m: m, name: res.Reference}, report); err != nil {
			return Image{}, res, at(fieldRegistry, err)
		}
		s.got(img.ID)
	}
	if now, err := s.Inspect(ctx, img.ID); err == nil {
		img = now // its names, and slices of the caller's own
	}
	report(Progress{Phase: PhaseDone, Done: img.Size, Total: img.Size, Text: res.Reference + " is ready."})
	return img, res, nil
}

// share does a pull, or waits for the same one of somebody else.
func (s *Store) share(ctx context.Context, p *pull, report func(Progress)) (Image, error) {
	for {
		img, led, err := s.flights.do(ctx, s, p.c.repo.Name()+"@"+p.m.digest, report, p.run)
		if err != nil && !led && ctx.Err() == nil && code(err) == "registry_denied" {
			continue // that was about somebody else's credentials
		}
		if err == nil && !led { // with this caller's name for it
			err = s.rename(img.ID, p.name)
		}
		return img, err
	}
}

// here finds an image that lies ready and that the registry would give to this caller. It asks with HEAD, which registries don't count as
// a pull; whatever is not clear from the answer is left to GET.
func (s *Store) here(ctx context.Context, c *session, ref name.Reference, report func(Progress)) (Image, source, error) {
	known := s.from(c.repo.Name())
	if len(known) == 0 {
		return Image{}, source{}, nil
	}
	digest := c.digest(ctx, ref.Identifier())
	for id, sources := range known {
		i := slices.IndexFunc(sources, func(o source) bool { return o.Repo == c.repo.Name() && (o.Digest == digest || o.Manifest == digest) })
		if i < 0 {
			continue
		}
		r, unpin, err := s.hold(id)
		if err != nil {
			continue // deleted just now
		}
		defer unpin()
		img, err := s.finish(ctx, r, nil, canonical(ref), report)
		if err == nil {
			s.got(id)
		}
		return img, source{Digest: digest, Manifest: sources[i].Manifest}, err
	}
	return Image{}, source{}, nil
}

// from lists the images that came from a repository.
func (s *Store) from(repo string) map[string][]source {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][]source{}
	for id, r := range s.images {
		if slices.ContainsFunc(r.Sources, func(o source) bool { return o.Repo == repo }) {
			out[id] = r.Sources
		}
	}
	return out
}

func (s *Store) rename(id, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.images[id]
	if !ok || slices.Contains(r.Names, name) {
		return nil
	}
	renamed := *r
	renamed.Names = union(r.Names, []string{name})
	if err := s.writeJSON(s.imagePath(id), renamed); err != nil {
		return fmt.Errorf("image: note its name: %w", err)
	}
	s.images[id] = &renamed
	return nil
}

// manifest is a checked manifest for our platform.
type manifest struct {
	v1.Manifest
	top    string // digest of what the reference names
	digest string
}

// resolve finds the manifest that a reference means for our platform.
func (s *Store) resolve(ctx context.Context, c *session, ref name.Reference) (*manifest, error) {
	id, top := ref.Identifier(), ""
	for depth := 0; depth < 4; depth++ {
		body, mediaType, err := c.small(ctx, c.url("manifests", id), map[string]string{"Accept": acceptManifests}, maxManifest)
		if err != nil {
			return nil, c.explain(err, c.repo.RepositoryStr()+sep(id)+id)
		}
		digest := digestBytes(body)
		if isDigest(id) && id != digest {
			return nil, badImage(nil, "The registry sends another manifest for %s than that digest names.", id)
		}
		if top == "" {
			top = digest
		}
		index, m, err := parseManifest(body, types.MediaType(mediaType))
		if err != nil {
			return nil, err
		}
		if m != nil {
			return &manifest{Manifest: *m, top: top, digest: digest}, s.checkManifest(m)
		}
		d, err := pick(index.Manifests, s.platform)
		if err != nil {
			return nil, err
		}
		id = d.Digest.String()
	}
	return nil, badImage(nil, "The lists of platforms of this image lead to each other.")
}

func sep(id string) string {
	if isDigest(id) {
		return "@"
	}
	return ":"
}

// parseManifest reads a list of platforms or a manifest. What it is, it says itself, or else the registry does.
func parseManifest(body []byte, mediaType types.MediaType) (*v1.IndexManifest, *v1.Manifest, error) {
	var kind struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(body, &kind); err != nil {
		return nil, nil, badImage(err, "The registry sends something that is no manifest of an image.")
	}
	if kind.MediaType != "" {
		mediaType = kind.MediaType
	}
	if kind.SchemaVersion == 1 || mediaType.IsSchema1() {
		return nil, nil, badImage(nil, "This is an image of the old form \"schema 1\", which is not supported. Push it again with a current Docker, or use a newer tag.")
	}
	if kind.Manifests != nil && kind.Layers != nil {
		return nil, nil, badImage(nil, "The manifest is both a list of platforms and an image.")
	}
	if mediaType.IsIndex() || !mediaType.IsImage() && kind.Manifests != nil {
		var index v1.IndexManifest
		if err := json.Unmarshal(body, &index); err != nil {
			return nil, nil, badImage(err, "The list of platforms of this image can't be read.")
		}
		if len(index.Manifests) > maxListed {
			return nil, nil, badImage(nil, "The list of platforms of this image has more than %d entries.", maxListed)
		}
		return &index, nil, nil
	}
	if !mediaType.IsImage() && kind.Layers == nil {
		return nil, nil, badImage(nil, "%.100q is not the type of an image.", string(mediaType))
	}
	var m v1.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, nil, badImage(err, "The manifest of the image can't be read.")
	}
	return nil, &m, nil
}

// checkManifest refuses what can't be a root file system before anything is fetched.
func (s *Store) checkManifest(m *v1.Manifest) error {
	if t := m.Config.MediaType; !t.IsConfig() && t != "" {
		return badImage(nil, "This is not an image that can be run: its configuration is of type %.100q.", string(t))
	}
	if !isDigest(m.Config.Digest.String()) || m.Config.Size < 0 || m.Config.Size > maxConfig {
		return badImage(nil, "The configuration of the image has no sha256 digest, or more than %s.", size(maxConfig))
	}
	if len(m.Layers) > maxLayers {
		return badImage(nil, "The image has more than %d layers.", maxLayers)
	}
	var total int64
	for _, l := range m.Layers {
		t := string(l.MediaType)
		if t != "" && !strings.HasPrefix(t, "application/vnd.oci.image.layer.") && !strings.HasPrefix(t, "application/vnd.docker.image.rootfs.") || strings.HasSuffix(t, "+encrypted") {
			return badImage(nil, "The image has a layer of type %.100q, which is no file system, or encrypted.", t)
		}
		if !isDigest(l.Digest.String()) || l.Size < 0 {
			return badImage(nil, "A layer of the image has no sha256 digest, or no size.")
		}
		if total += l.Size; l.Size > s.cfg.MaxBytes || total > s.cfg.MaxBytes {
			return tooBig(s.cfg.MaxBytes)
		}
	}
	return nil
}

// pull is the download of one image.
type pull struct {
	s    *Store
	c    *session
	m    *manifest
	name string
	post func(Progress)

	mu    sync.Mutex
	added []string // what wasn't there before
	total int64
}

func (p *pull) source() source {
	return source{Repo: p.c.repo.Name(), Digest: p.m.top, Manifest: p.m.digest}
}

func (p *pull) run(ctx context.Context, post func(Progress)) (Image, error) {
	p.post = post
	keys := []string{p.m.Config.Digest.String()}
	for _, l := range p.m.Layers {
		p.total += l.Size
		keys = append(keys, l.Digest.String())
	}
	unpin := p.s.pin(keys...)
	post(Progress{Phase: PhasePull, Total: p.total, Text: fmt.Sprintf("Fetching %s: %d layers, %s.", p.name, len(p.m.Layers), size(p.total))})
	img, err := p.all(ctx)
	unpin()
	if err != nil && ctx.Err() == nil { // what was asked for was bad; a pull that is only broken off may go on later
		p.s.drop(p.added)
	} else if err == nil {
		p.s.drop(keys) // another manifest may have brought the same image in other blobs
	}
	return img, diskFull(err)
}

func (p *pull) all(ctx context.Context) (Image, error) {
	id := p.m.Config.Digest.String()
	if r, unpin, err := p.s.hold(id); err == nil {
		defer unpin()
		if slices.ContainsFunc(r.Sources, func(o source) bool { return o.Repo == p.source().Repo && o.Manifest == p.m.digest }) {
			return p.s.finish(ctx, r, nil, p.name, p.post)
		}
	}
	cf, raw, err := p.config(ctx)
	if err != nil {
		return Image{}, err
	}
	if err := p.room(); err != nil {
		return Image{}, err
	}
	layers, err := p.layers(ctx, cf)
	if err != nil {
		return Image{}, err
	}
	p.note(id)
	if err := p.s.addConfig(raw); err != nil {
		return Image{}, err
	}
	r := record{ID: id, Layers: layers, Platform: platformOf(cf), Names: []string{p.name}, Sources: []source{p.source()}, chain: chainOf(layers)}
	return p.s.finish(ctx, r, cf, p.name, p.post)
}

// finish writes the root of an image, and then its record; cf is nil when it has one.
func (s *Store) finish(ctx context.Context, r record, cf *v1.ConfigFile, name string, post func(Progress)) (Image, error) {
	defer s.pin(r.needs()...)()
	var total int64
	for _, l := range r.Layers {
		total += l.Unpacked
	}
	step := &pace{}
	err := s.ensureRoot(ctx, r.Layers, func(done int64) {
		if step.due(done >= total) {
			post(Progress{Phase: PhaseUnpack, Done: done, Total: total, Text: "Writing the root file system of " + name + "."})
		}
	})
	if err == nil && cf != nil {
		err = s.keep(r, cf)
	} else if err == nil {
		err = s.rename(r.ID, name)
	}
	if err != nil {
		s.dropAfter(r.chain)
		return Image{}, err
	}
	return s.Inspect(ctx, r.ID)
}

// dropAfter removes a root that no image came to have. It is still pinned by the caller, once.
func (s *Store) dropAfter(chain string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[chain] == 1 && !s.neededLocked()[chain] {
		if _, err := s.removeLocked(chain); err != nil {
			s.cfg.Log.Warn("a root can't be removed; it is tried again later", "error", err)
		}
	}
}

// config fetches the configuration, with the caller's own credentials even if it is here.
func (p *pull) config(ctx context.Context) (*v1.ConfigFile, []byte, error) {
	d := p.m.Config
	b := p.c.blob(ctx, d, "configuration of "+p.name)
	defer b.Close()
	raw, err := io.ReadAll(io.LimitReader(b, maxConfig+1)) // its size was checked, and is kept to by the reader
	if err != nil {
		return nil, nil, err
	}
	if digestBytes(raw) != d.Digest.String() {
		return nil, nil, badImage(nil, "The registry sends another configuration for %s than that digest names.", d.Digest)
	}
	cf, err := parseConfig(raw)
	if err != nil {
		return nil, nil, err
	}
	if err := p.s.checkPlatform(cf); err != nil {
		return nil, nil, err
	}
	if len(cf.RootFS.DiffIDs) != len(p.m.Layers) {
		return nil, nil, badImage(nil, "The manifest of the image has %d layers and its configuration %d.", len(p.m.Layers), len(cf.RootFS.DiffIDs))
	}
	return cf, raw, nil
}

// room refuses a download that the disk has no place for.
func (p *pull) room() error {
	var need int64
	for _, l := range p.m.Layers {
		if _, ok := p.s.layer(l.Digest.String()); !ok {
			need += l.Size
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.s.cfg.Dir, &st); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return diskFull(fmt.Errorf("%s are needed and %s are free: %w", size(need), size(free), unix.ENOSPC))
	}
	return nil
}

// layers fetches what is missing, a few at once.
func (p *pull) layers(ctx context.Context, cf *v1.ConfigFile) ([]Layer, error) {
	out := make([]Layer, len(p.m.Layers))
	b := p.s.budget()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	first := map[v1.Hash]int{}
	for i, d := range p.m.Layers {
		if j, ok := first[d.Digest]; ok {
			if cf.RootFS.DiffIDs[i] != cf.RootFS.DiffIDs[j] {
				return nil, errors.Join(badImage(nil, "The image has one layer under two names."), g.Wait())
			}
			continue
		}
		first[d.Digest] = i
		g.Go(func() error {
			l, err := p.layer(ctx, d, cf.RootFS.DiffIDs[i].String(), b)
			out[i] = l.Layer
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var unpacked int64
	for i, d := range p.m.Layers {
		out[i] = out[first[d.Digest]]
		if unpacked += out[i].Unpacked; unpacked > p.s.cfg.MaxBytes {
			return nil, tooBig(p.s.cfg.MaxBytes)
		}
	}
	return out, nil
}

// layer fetches one layer, or finds that it is here and that this caller may have it.
func (p *pull) layer(ctx context.Context, d v1.Descriptor, diffID string, b *budget) (layerInfo, error) {
	digest := d.Digest.String()
	unlock, err := p.s.keys.lock(ctx, "blob:"+digest)
	if err != nil {
		return layerInfo{}, err
	}
	defer unlock()
	have, ok := p.s.layer(digest)
	if ok && (have.DiffID != diffID || have.Size != d.Size) {
		return layerInfo{}, badImage(nil, "The image says of the layer %s what isn't true: its size, or what it unpacks to.", digest)
	}
	if ok && slices.Contains(have.Hosts, p.c.host()) {
		may, err := p.c.holds(ctx, d)
		if err != nil {
			return layerInfo{}, err
		}
		if may {
			p.report(d, d.Size, "is here already")
			return have, nil
		}
	}
	return p.fetch(ctx, d, diffID, b, ok)
}

// fetch downloads a layer and checks that it is what it should be. One that is here already is only looked at.
func (p *pull) fetch(ctx context.Context, d v1.Descriptor, diffID string, b *budget, have bool) (layerInfo, error) {
	f, err := p.s.temp("layer")
	if err != nil {
		return layerInfo{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	src := p.c.blob(ctx, d, "layer "+d.Digest.String())
	defer src.Close()
	step := &pace{}
	in := readFunc(func(buf []byte) (int, error) {
		n, err := src.Read(buf)
		if n > 0 && step.due(src.off == d.Size) {
			p.report(d, src.off, "is fetched")
		}
		return n, err
	})
	dst := io.Writer(f)
	if have {
		dst = io.Discard
	}
	m, err := measure(ctx, in, dst, b)
	if err != nil {
		return layerInfo{}, err
	}
	l := layerInfo{Layer: Layer{Digest: d.Digest.String(), DiffID: diffID, MediaType: string(d.MediaType), Size: d.Size, Unpacked: m.unpacked}, Hosts: []string{p.c.host()}}
	if err := checkLayer(l.Layer, m); err != nil {
		return layerInfo{}, err
	}
	if !have {
		if err := seal(f); err != nil {
			return layerInfo{}, err
		}
		p.note(l.Digest)
	}
	return p.s.addLayer(l, f.Name())
}

// checkLayer compares a layer with what was said of it.
func checkLayer(l Layer, m measured) error {
	switch {
	case m.size != l.Size:
		return badImage(nil, "The layer %s has %d bytes, and its manifest says %d.", l.Digest, m.size, l.Size)
	case m.digest != l.Digest:
		return badImage(nil, "The layer %s isn't what its digest says; what came is %s.", l.Digest, m.digest)
	case m.broken != nil:
		return badImage(m.broken, "The layer %s can't be unpacked: %v.", l.Digest, m.broken)
	case m.diffID != l.DiffID:
		return badImage(nil, "The layer %s doesn't unpack to what the image's configuration says.", l.Digest)
	}
	return nil
}

func (p *pull) note(digest string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.added = append(p.added, digest)
}

func (p *pull) report(d v1.Descriptor, done int64, what string) {
	p.post(Progress{Phase: PhasePull, Layer: d.Digest.String(), Done: done, Total: d.Size,
		Text: fmt.Sprintf("Layer %.19s %s: %s of %s.", d.Digest.String(), what, size(done), size(d.Size))})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// pace leaves out reports that come too fast, but never the last.
type pace struct{ last time.Time }

func (p *pace) due(last bool) bool {
	now := time.Now()
	if !last && now.Sub(p.last) < 100*time.Millisecond {
		return false
	}
	p.last = now
	return true
}
