package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Export writes an image as an archive that Docker, Podman, skopeo and Import read. name is the reference it is to have there, or "".
// It streams: nothing is put together on disk or in memory. An error leaves w with an archive that is cut off.
func (s *Store) Export(ctx context.Context, id string, format Format, as string, w io.Writer) error {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	ref := ""
	if as != "" {
		if !IsTag(as) {
			return sandbox.Invalid("name", "%q is not a name for an image. Write it as in name:tag.", as)
		}
		if ref, err = Canonical(as); err != nil {
			return err
		}
	}
	r, unpin, err := s.hold(id)
	if err != nil {
		return err
	}
	defer unpin()
	raw, err := os.ReadFile(s.blobPath(id))
	if err != nil {
		return fmt.Errorf("image: export: %w", err)
	}
	a := &archiver{ctx: ctx, s: s, tw: tar.NewWriter(w), seen: map[string]bool{}}
	switch format {
	case OCI:
		err = a.oci(r, raw, ref)
	case Docker:
		err = a.docker(r, raw, ref)
	default:
		return sandbox.Invalid("format", "There is no format %.50q; take oci or docker.", string(format))
	}
	if err == nil {
		err = a.tw.Close()
	}
	if err != nil {
		return fmt.Errorf("image: export: %w", err)
	}
	return nil
}

type archiver struct {
	ctx  context.Context
	s    *Store
	tw   *tar.Writer
	seen map[string]bool
}

func (a *archiver) oci(r record, raw []byte, ref string) error {
	config, err := v1.NewHash(r.ID)
	if err != nil {
		return err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{},
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(raw)), Digest: config}}
	for _, l := range r.Layers {
		digest, err := v1.NewHash(l.Digest)
		if err != nil {
			return err
		}
		t, err := a.mediaType(l)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: t, Size: l.Size, Digest: digest})
	}
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	digest, err := v1.NewHash(digestBytes(body))
	if err != nil {
		return err
	}
	platform := &v1.Platform{OS: a.s.platform.OS, Architecture: a.s.platform.Architecture, Variant: a.s.platform.Variant}
	top := v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: int64(len(body)), Digest: digest, Platform: platform}
	if ref != "" {
		_, tag, _ := cutTag(ref)
		top.Annotations = map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": tag}
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{top}})
	if err != nil {
		return err
	}
	blob := func(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }
	err = errors.Join(a.dir("blobs/"), a.dir("blobs/sha256/"), a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)), a.file("index.json", index),
		a.file(blob(digest.String()), body), a.file(blob(r.ID), raw))
	for _, l := range r.Layers {
		if err == nil {
			err = a.layer(blob(l.Digest), l, false)
		}
	}
	return err
}

func (a *archiver) docker(r record, raw []byte, ref string) error {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	e := entry{Config: strings.TrimPrefix(r.ID, "sha256:") + ".json", Layers: []string{}}
	if ref != "" {
		e.RepoTags = []string{strings.TrimPrefix(strings.TrimPrefix(ref, "docker.io/library/"), "docker.io/")}
	}
	err := a.file(e.Config, raw)
	for _, l := range r.Layers {
		file := strings.TrimPrefix(l.DiffID, "sha256:") + "/layer.tar"
		e.Layers = append(e.Layers, file)
		if err == nil {
			err = a.layer(file, l, true) // plain: older Dockers know no zstd
		}
	}
	list, jerr := json.Marshal([]entry{e})
	return errors.Join(err, jerr, a.file("manifest.json", list))
}

// mediaType goes by what the bytes are: what came from an archive or a registry may have been told wrong.
func (a *archiver) mediaType(l Layer) (types.MediaType, error) {
	f, err := os.Open(a.s.blobPath(l.Digest))
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	switch {
	case l.Size == l.Unpacked && l.Digest == l.DiffID:
		return types.OCIUncompressedLayer, nil
	case head[0] == 0x1f && head[1] == 0x8b:
		return types.OCILayer, nil
	}
	return types.OCILayerZStd, nil
}

func (a *archiver) header(name string, kind byte, mode, size int64) error {
	return a.tw.WriteHeader(&tar.Header{Typeflag: kind, Name: name, Mode: mode, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

func (a *archiver) dir(name string) error { return a.header(name, tar.TypeDir, 0o755, 0) }

func (a *archiver) file(name string, data []byte) error {
	if err := a.header(name, tar.TypeReg, 0o644, int64(len(data))); err != nil {
		return err
	}
	_, err := a.tw.Write(data)
	return err
}

// layer writes a layer, once.
func (a *archiver) layer(name string, l Layer, plain bool) error {
	if a.seen[name] {
		return nil
	}
	a.seen[name] = true
	var (
		in   io.ReadCloser
		size = l.Size
		err  error
	)
	if plain {
		size = l.Unpacked
		in, err = a.s.openLayer(a.ctx, l, &rootReader{})
	} else {
		in, err = os.Open(a.s.blobPath(l.Digest))
	}
	if err != nil {
		return err
	}
	defer in.Close()
	if err := a.header(name, tar.TypeReg, 0o644, size); err != nil {
		return err
	}
	_, err = io.Copy(a.tw, &counted{ctx: a.ctx, r: in})
	return err
}

func cutTag(ref string) (repo, tag string, ok bool) {
	i := strings.LastIndex(ref, ":")
	if i < strings.LastIndex(ref, "/") {
		return ref, "", false
	}
	return ref[:i], ref[i+1:], true
}
