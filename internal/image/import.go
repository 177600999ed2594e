package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Import takes the images for our platform out of a tar of an OCI layout or of `docker save`, plain or packed with gzip or zstd. The archive
// may come from anybody: nothing in it chooses a name on our disk, and all of it is checked like what comes from a registry.
func (s *Store) Import(ctx context.Context, r io.Reader, report func(Progress)) ([]Image, error) {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if report == nil {
		report = func(Progress) {}
	}
	im := &importer{ctx: ctx, s: s, report: report}
	defer im.clean()
	if im.files, err = im.spool(r); err != nil {
		return nil, diskFull(err)
	}
	images, err := im.all()
	if err != nil {
		return nil, diskFull(err)
	}
	report(Progress{Phase: PhaseDone, Text: fmt.Sprintf("%d image(s) imported.", len(images))})
	return images, nil
}

type importer struct {
	ctx    context.Context
	s      *Store
	report func(Progress)
	dir    string // holds the archive's files, under names of ours
	files  map[string]*member
	buf    []byte
	added  []string
	unpin  []func()
}

// clean removes what came with the archive and no image has come to need.
func (im *importer) clean() {
	if im.dir != "" {
		if err := os.RemoveAll(im.dir); err != nil {
			im.s.cfg.Log.Warn("an imported archive's files can't be removed; it is tried again at the next start", "error", err)
		}
	}
	for _, unpin := range im.unpin {
		unpin()
	}
	im.s.drop(im.added)
}

// found is one image in the archive, in either form.
type found struct {
	config *member
	layers []*member
	names  []string
}

func (im *importer) all() ([]Image, error) {
	var (
		list []found
		err  error
	)
	switch {
	case im.files["index.json"] != nil && im.files["oci-layout"] != nil:
		list, err = im.oci()
	case im.files["manifest.json"] != nil:
		list, err = im.docker()
	default:
		return nil, badImage(nil, "This is no archive of an image: it has neither an index.json with an oci-layout nor a manifest.json. Make it with docker save, podman save or skopeo copy.")
	}
	if err != nil {
		return nil, err
	}
	var (
		images  []Image
		refused error
	)
	for _, f := range list {
		img, err := im.one(f)
		if code(err) == "wrong_platform" { // others in the archive may fit
			refused = err
			continue
		}
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	if len(images) == 0 && refused == nil {
		refused = badImage(nil, "The archive holds no image.")
	}
	if len(images) == 0 {
		return nil, refused
	}
	return images, nil
}

// oci reads the index of a layout. What is only a part of a list of platforms is looked for in the archive; the rest needn't be there.
func (im *importer) oci() ([]found, error) {
	var index v1.IndexManifest
	if err := im.json(im.files["index.json"], maxManifest, &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) > maxListed {
		return nil, badImage(nil, "The archive lists more than %d images.", maxListed)
	}
	var (
		list    []found
		refused error
	)
	for _, d := range index.Manifests {
		if d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		f, err := im.ociImage(d)
		if code(err) == "wrong_platform" {
			refused = err
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	if len(list) == 0 && refused != nil {
		return nil, refused
	}
	return list, nil
}

func (im *importer) ociImage(d v1.Descriptor) (found, error) {
	f := found{}
	if n := d.Annotations["io.containerd.image.name"]; n != "" {
		f.names = []string{n}
	} else if n := d.Annotations["org.opencontainers.image.ref.name"]; strings.ContainsAny(n, "/:") { // a bare tag names nothing
		f.names = []string{n}
	}
	for depth := 0; depth < 4; depth++ {
		b, err := im.blob(d)
		if err != nil {
			return f, err
		}
		raw, err := im.read(b, maxManifest)
		if err != nil {
			return f, err
		}
		index, m, err := parseManifest(raw, d.MediaType)
		if err != nil {
			return f, err
		}
		if index != nil {
			if d, err = pick(index.Manifests, im.s.platform); err != nil {
				return f, err
			}
			continue
		}
		if err := im.s.checkManifest(m); err != nil {
			return f, err
		}
		if f.config, err = im.blob(m.Config); err != nil {
			return f, err
		}
		for _, l := range m.Layers {
			b, err := im.blob(l)
			if err != nil {
				return f, err
			}
			b.mediaType = string(l.MediaType)
			f.layers = append(f.layers, b)
		}
		return f, nil
	}
	return f, badImage(nil, "The lists of platforms of this image lead to each other.")
}

// blob finds a blob of the layout, and checks that it is what it is called.
func (im *importer) blob(d v1.Descriptor) (*member, error) {
	if !isDigest(d.Digest.String()) {
		return nil, badImage(nil, "The archive names its parts by something else than sha256.")
	}
	b := im.files["blobs/sha256/"+d.Digest.Hex]
	switch {
	case b == nil:
		return nil, badImage(nil, "The archive is not complete: %s is missing.", d.Digest)
	case b.digest != d.Digest.String():
		return nil, badImage(nil, "%s in the archive isn't what its digest says.", d.Digest)
	case b.size != d.Size:
		return nil, badImage(nil, "%s has %d bytes in the archive, and its manifest says %d.", d.Digest, b.size, d.Size)
	}
	return b, nil
}

// docker reads the manifest.json of docker save.
func (im *importer) docker() ([]found, error) {
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := im.json(im.files["manifest.json"], maxManifest, &entries); err != nil {
		return nil, err
	}
	if len(entries) > maxListed {
		return nil, badImage(nil, "The archive lists more than %d images.", maxListed)
	}
	var list []found
	for _, e := range entries {
		f := found{names: e.RepoTags, config: im.files[path.Clean(e.Config)]}
		if f.config == nil {
			return nil, badImage(nil, "The archive is not complete: the configuration %.200q is missing.", e.Config)
		}
		if len(e.Layers) > maxLayers {
			return nil, badImage(nil, "The image has more than %d layers.", maxLayers)
		}
		for _, name := range e.Layers {
			l := im.files[path.Clean(name)]
			if l == nil {
				return nil, badImage(nil, "The archive is not complete: the layer %.200q is missing.", name)
			}
			f.layers = append(f.layers, l)
		}
		list = append(list, f)
	}
	return list, nil
}

// one takes one image over.
func (im *importer) one(f found) (Image, error) {
	raw, err := im.read(f.config, maxConfig)
	if err != nil {
		return Image{}, err
	}
	cf, err := parseConfig(raw)
	if err != nil {
		return Image{}, err
	}
	if err := im.s.checkPlatform(cf); err != nil {
		return Image{}, err
	}
	if len(cf.RootFS.DiffIDs) != len(f.layers) {
		return Image{}, badImage(nil, "The manifest of the image has %d layers and its configuration %d.", len(f.layers), len(cf.RootFS.DiffIDs))
	}
	var names []string
	for _, n := range f.names {
		tag, err := name.NewTag(n)
		if err == nil {
			_, err = parse(n)
		}
		if err != nil {
			return Image{}, badImage(nil, "%.200q in the archive is not the name of an image.", n)
		}
		if c := canonical(tag); !slices.Contains(names, c) {
			names = append(names, c)
		}
	}
	b := im.s.budget()
	layers := make([]Layer, len(f.layers))
	for i, m := range f.layers {
		im.report(Progress{Phase: PhasePull, Layer: m.digest, Total: m.size, Text: fmt.Sprintf("Checking layer %d of %d.", i+1, len(f.layers))})
		if layers[i], err = im.layer(m, cf.RootFS.DiffIDs[i].String(), b); err != nil {
			return Image{}, err
		}
		im.report(Progress{Phase: PhasePull, Layer: m.digest, Done: m.size, Total: m.size, Text: fmt.Sprintf("Layer %d of %d is checked.", i+1, len(f.layers))})
	}
	id := digestBytes(raw)
	im.hold(id)
	if err := im.s.addConfig(raw); err != nil {
		return Image{}, err
	}
	r := record{ID: id, Layers: layers, Platform: platformOf(cf), Names: names, chain: chainOf(layers)}
	title := id
	if len(names) > 0 {
		title = names[0]
	}
	img, err := im.s.finish(im.ctx, r, cf, title, im.report)
	if err == nil {
		im.s.got(id)
	}
	return img, err
}

// layer checks a layer and makes it a blob. The same file may stand for several layers.
func (im *importer) layer(m *member, diffID string, b *budget) (Layer, error) {
	im.hold(m.digest)
	if have, ok := im.s.layer(m.digest); ok { // the archive holds all of it, so it gives nothing away
		if have.DiffID != diffID {
			return Layer{}, badImage(nil, "The layer %s doesn't unpack to what the image's configuration says.", m.digest)
		}
		if b.used.Add(have.Unpacked) > b.limit {
			return Layer{}, tooBig(b.limit)
		}
		return have.Layer, nil
	}
	f, err := os.OpenFile(m.path, os.O_RDWR, 0)
	if err != nil {
		return Layer{}, fmt.Errorf("image: %w", err)
	}
	defer f.Close()
	got, err := measure(im.ctx, f, io.Discard, b)
	if err != nil {
		return Layer{}, err
	}
	l := layerInfo{Layer: Layer{Digest: m.digest, DiffID: diffID, MediaType: m.mediaType, Size: m.size, Unpacked: got.unpacked}}
	if err := checkLayer(l.Layer, got); err != nil {
		return Layer{}, err
	}
	if err := seal(f); err != nil {
		return Layer{}, err
	}
	l, err = im.s.addLayer(l, m.path)
	return l.Layer, err
}

// hold pins a blob that comes with the archive; clean lets go of it.
func (im *importer) hold(digest string) {
	im.unpin = append(im.unpin, im.s.pin(digest))
	im.added = append(im.added, digest)
}

func (im *importer) json(m *member, limit int64, v any) error {
	raw, err := im.read(m, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return badImage(err, "%.200q in the archive can't be read.", m.name)
	}
	return nil
}

func (im *importer) read(m *member, limit int64) ([]byte, error) {
	if m.size > limit {
		return nil, badImage(nil, "%.200q in the archive has %s, more than any manifest or configuration.", m.name, size(m.size))
	}
	data, err := os.ReadFile(m.path)
	if errors.Is(err, os.ErrNotExist) { // it is both a layer and a manifest
		return nil, badImage(nil, "%.200q in the archive is two things at once.", m.name)
	}
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return data, nil
}
