package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Append makes an image of another one, a layer and changed settings: a step of a build, or a snapshot. base is an ID, or "" for an empty
// image; layer is an uncompressed tar, or nil; change, which may be nil, changes the settings. The same base, layer, settings and
// history make the same image, and a layer that is here already is not stored again.
func (s *Store) Append(ctx context.Context, base string, layer io.Reader, change func(*Settings), history string) (Image, error) {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return Image{}, err
	}
	defer done()
	r, cf := record{}, &v1.ConfigFile{OS: s.platform.OS, Architecture: s.platform.Architecture, Variant: s.platform.Variant, RootFS: v1.RootFS{Type: "layers"}}
	if base != "" {
		var unpin func()
		if r, unpin, err = s.hold(base); err != nil {
			return Image{}, err
		}
		defer unpin()
		if cf, err = s.readConfig(base); err != nil {
			return Image{}, fmt.Errorf("image: read the configuration of %s: %w", base, err)
		}
		s.touch(base)
	}
	layers := r.Layers
	if layer != nil {
		l, unpin, err := s.pack(ctx, layer, layers)
		if err != nil {
			return Image{}, diskFull(err)
		}
		defer func() { s.drop([]string{l.Digest}) }() // runs after unpin; an image that has it keeps it
		defer unpin()
		layers = append(layers[:len(layers):len(layers)], l)
	}
	img, err := s.derive(ctx, layers, cf, change, v1.History{CreatedBy: history, EmptyLayer: layer == nil})
	return img, diskFull(err)
}

// derive records the image that these layers and changed settings make.
func (s *Store) derive(ctx context.Context, layers []Layer, cf *v1.ConfigFile, change func(*Settings), h v1.History) (Image, error) {
	if len(layers) > maxLayers {
		return Image{}, badImage(nil, "The image has more than %d layers.", maxLayers)
	}
	if change != nil {
		set := settingsOf(cf).clone()
		change(&set)
		set.apply(&cf.Config)
	}
	cf.History = append(cf.History, h)
	cf.RootFS.DiffIDs = nil
	for _, l := range layers {
		id, err := v1.NewHash(l.DiffID)
		if err != nil {
			return Image{}, fmt.Errorf("image: %w", err)
		}
		cf.RootFS.DiffIDs = append(cf.RootFS.DiffIDs, id)
	}
	raw, err := json.Marshal(cf)
	if err != nil {
		return Image{}, fmt.Errorf("image: %w", err)
	}
	if len(raw) > maxConfig {
		return Image{}, badImage(nil, "The settings of the image have more than %s.", size(maxConfig))
	}
	id := digestBytes(raw)
	defer s.drop([]string{id}) // runs last
	defer s.pin(id)()
	if err := s.addConfig(raw); err != nil {
		return Image{}, err
	}
	r := record{ID: id, Layers: layers, Platform: platformOf(cf), chain: chainOf(layers)}
	img, err := s.finish(ctx, r, cf, "", func(Progress) {})
	if err != nil {
		return Image{}, err
	}
	s.touch(id)
	return img, nil
}

// pack stores a tar as a layer, compressed, and pins it. Together with the layers below it must keep to the limit.
func (s *Store) pack(ctx context.Context, layer io.Reader, below []Layer) (Layer, func(), error) {
	limit := s.cfg.MaxBytes
	for _, l := range below {
		limit -= l.Unpacked
	}
	f, err := s.temp("layer")
	if err != nil {
		return Layer{}, nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	stored, diff := sha256.New(), sha256.New()
	out := &noted{w: f}
	z, err := compress(io.MultiWriter(out, stored))
	if err != nil {
		return Layer{}, nil, fmt.Errorf("image: %w", err)
	}
	in := &counted{ctx: ctx, r: io.LimitReader(layer, limit+1)}
	_, err = io.CopyBuffer(io.MultiWriter(z, diff), in, make([]byte, 128<<10))
	err = errors.Join(err, z.Close())
	switch {
	case out.err != nil:
		return Layer{}, nil, out.err
	case in.err != nil:
		return Layer{}, nil, fmt.Errorf("image: read the layer: %w", in.err)
	case err != nil:
		return Layer{}, nil, fmt.Errorf("image: pack the layer: %w", err)
	case in.n > limit:
		return Layer{}, nil, tooBig(s.cfg.MaxBytes)
	}
	if l, unpin, ok := s.layerOf(digestOf(diff)); ok {
		return l.Layer, unpin, nil
	}
	fi, err := f.Stat()
	if err != nil {
		return Layer{}, nil, fmt.Errorf("image: %w", err)
	}
	if err := seal(f); err != nil {
		return Layer{}, nil, err
	}
	l := layerInfo{Layer: Layer{Digest: digestOf(stored), DiffID: digestOf(diff), MediaType: string(types.OCILayerZStd), Size: fi.Size(), Unpacked: in.n}}
	unpin := s.pin(l.Digest)
	if l, err = s.addLayer(l, f.Name()); err != nil {
		unpin()
		return Layer{}, nil, err
	}
	return l.Layer, unpin, nil
}
