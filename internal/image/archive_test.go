package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// entry is one entry of an archive that a test makes by hand.
type entry struct {
	name string
	data []byte
	kind byte
	link string
	pax  map[string]string
}

func archive(t *testing.T, list ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range list {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		must(t, w.WriteHeader(&tar.Header{Typeflag: e.kind, Name: e.name, Linkname: e.link, Mode: 0o644, Size: int64(len(e.data)), PAXRecords: e.pax}))
		_, err := w.Write(e.data)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// ociEntries are the files of an OCI layout with these images.
func ociEntries(t *testing.T, names map[string]string, images ...v1.Image) []entry {
	t.Helper()
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	out := []entry{{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}}
	seen := map[string]bool{}
	blob := func(data []byte) v1.Hash {
		h := hashOf(data)
		if !seen[h.Hex] {
			out = append(out, entry{name: "blobs/sha256/" + h.Hex, data: data})
		}
		seen[h.Hex] = true
		return h
	}
	for _, img := range images {
		raw, err := img.RawManifest()
		must(t, err)
		cf, err := img.ConfigFile()
		must(t, err)
		config, err := img.RawConfigFile()
		must(t, err)
		blob(config)
		index.Manifests = append(index.Manifests, v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: int64(len(raw)), Digest: blob(raw),
			Platform: cf.Platform(), Annotations: map[string]string{"org.opencontainers.image.ref.name": names[idOf(t, img)]}})
		layers, err := img.Layers()
		must(t, err)
		for _, l := range layers {
			rc, err := l.Compressed()
			must(t, err)
			data, err := io.ReadAll(rc)
			must(t, err)
			blob(data)
		}
	}
	data, err := json.Marshal(index)
	must(t, err)
	return append(out, entry{name: "index.json", data: data})
}

// dockerEntries are the files of docker save, as older versions write it: a directory for each layer.
func dockerEntries(t *testing.T, tags []string, img v1.Image) []entry {
	t.Helper()
	config, err := img.RawConfigFile()
	must(t, err)
	id := strings.TrimPrefix(idOf(t, img), "sha256:")
	m := map[string]any{"Config": id + ".json", "RepoTags": tags}
	out := []entry{{name: id + ".json", data: config}}
	layers, err := img.Layers()
	must(t, err)
	var paths []string
	first := map[string]string{}
	for i, l := range layers {
		data := l.(interface{ raw() []byte }).raw()
		dir := fmt.Sprintf("layer%d", i)
		e := entry{name: dir + "/layer.tar", data: data}
		if old := first[string(data)]; old != "" { // which is how it says that two layers are one
			e = entry{name: e.name, kind: tar.TypeSymlink, link: "../" + old + "/layer.tar"}
		}
		first[string(data)] = dir
		out = append(out, entry{name: dir + "/", kind: tar.TypeDir}, entry{name: dir + "/VERSION", data: []byte("1.0")}, e)
		paths = append(paths, dir+"/layer.tar")
	}
	m["Layers"] = paths
	data, err := json.Marshal([]any{m})
	must(t, err)
	return append(out, entry{name: "manifest.json", data: data})
}

func TestImport(t *testing.T) {
	a, b := newLayer(t, "gzip", "a", noise(1, 100<<10)), newLayer(t, "zstd", "b", "b")
	one, two := newImage(t, settings, a, b), newImage(t, v1.Config{User: "two"}, a)
	other := imageFor(t, v1.Platform{OS: "windows", Architecture: "amd64"}, v1.Config{}, a)
	names := map[string]string{idOf(t, one): "ghcr.io/team/one:1", idOf(t, two): "two"}
	plain := plainLayer(t, "p", "plain")
	saved := plainImage(t, plain, plainLayer(t, "q", "q"), plain)

	for _, tc := range []struct {
		name  string
		data  []byte
		want  []string
		names []string
	}{
		{"OCI layout", archive(t, ociEntries(t, names, one, other, two)...), []string{idOf(t, one), idOf(t, two)}, []string{"ghcr.io/team/one:1"}},
		{"docker save", archive(t, dockerEntries(t, []string{"app:1", "team/app:2"}, saved)...), []string{idOf(t, saved)}, []string{"docker.io/library/app:1", "docker.io/team/app:2"}},
		{"docker save without a name", archive(t, dockerEntries(t, nil, saved)...), []string{idOf(t, saved)}, nil},
	} {
		for _, how := range []string{"", "gzip", "zstd"} {
			t.Run(tc.name+" "+how, func(t *testing.T) {
				s, dir := open(t)
				var rec recorder
				got, err := s.Import(t.Context(), bytes.NewReader(pack(t, how, tc.data)), rec.report)
				must(t, err)
				var ids []string
				for _, img := range got {
					whole(t, dir, img)
					ids = append(ids, img.ID)
				}
				if strings.Join(ids, " ") != strings.Join(tc.want, " ") || strings.Join(got[0].Names, " ") != strings.Join(tc.names, " ") {
					t.Errorf("got %q named %q, want %q named %q", ids, got[0].Names, tc.want, tc.names)
				}
				if len(rec.list) == 0 || rec.list[len(rec.list)-1].Phase != image.PhaseDone {
					t.Errorf("progress was %+v", rec.list)
				}
				for _, id := range ids {
					must(t, s.Delete(t.Context(), id))
				}
				wantNothing(t, s, dir)
			})
		}
	}
	t.Run("another platform only", func(t *testing.T) {
		s, dir := open(t)
		_, err := s.Import(t.Context(), bytes.NewReader(archive(t, ociEntries(t, nil, other)...)), nil)
		wantProblem(t, err, sandbox.ErrInvalid, "wrong_platform", "", "windows/amd64")
		wantNothing(t, s, dir)
	})
}

// rawLayer gives its tar to dockerEntries, however images wrap it.
type rawLayer struct{ *layer }

func (l rawLayer) raw() []byte { return l.tar }

func plainLayer(t *testing.T, list ...string) rawLayer { return rawLayer{newLayer(t, "", list...)} }

// savedImage keeps its layers as they were given.
type savedImage struct {
	v1.Image
	layers []v1.Layer
}

func (i savedImage) Layers() ([]v1.Layer, error) { return i.layers, nil }

func plainImage(t *testing.T, layers ...v1.Layer) v1.Image {
	return savedImage{newImage(t, settings, layers...), layers}
}

// TestHostileArchives: archives come from people we don't know.
func TestHostileArchives(t *testing.T) {
	l := newLayer(t, "gzip", "a", noise(1, 50<<10))
	img := newImage(t, v1.Config{}, l)
	good := ociEntries(t, nil, img)
	plain := dockerEntries(t, nil, plainImage(t, plainLayer(t, "p", "p")))
	// with returns the layout with some entries put in the place of those of the same name, or added.
	with := func(base []entry, more ...entry) []byte {
		var out []entry
		for _, e := range base {
			keep := true
			for _, m := range more {
				keep = keep && m.name != e.name
			}
			if keep {
				out = append(out, e)
			}
		}
		return archive(t, append(out, more...)...)
	}
	without := func(base []entry, part string) []byte {
		var out []entry
		for _, e := range base {
			if !strings.Contains(e.name, part) {
				out = append(out, e)
			}
		}
		return archive(t, out...)
	}
	bomb := layerOf(t, "gzip", files(t, "zeros", string(make([]byte, 8<<20))))
	lie := *l
	lie.diffID = hashOf([]byte("x"))
	var many []entry
	for i := range 4100 {
		many = append(many, entry{name: fmt.Sprintf("f%d", i)})
	}
	whole := archive(t, good...)

	for _, tc := range []struct {
		name string
		data []byte
		code string
	}{
		{"empty", nil, "bad_image"},
		{"rubbish", []byte(noise(1, 10000)), "bad_image"},
		{"gzip of rubbish", pack(t, "gzip", []byte(noise(1, 10000))), "bad_image"},
		{"bzip2", []byte("BZh91AY&SY" + noise(1, 1000)), "bad_image"},
		{"cut off", whole[:len(whole)/2], "bad_image"},
		{"cut off gzip", pack(t, "gzip", whole)[:20000], "bad_image"},
		{"no image", archive(t, entry{name: "hello", data: []byte("hello")}), "bad_image"},
		{"dots", with(good, entry{name: "../../etc/cron.d/x", data: []byte("x")}), "bad_image"},
		{"dots inside", with(good, entry{name: "blobs/../../x", data: []byte("x")}), "bad_image"},
		{"absolute", with(good, entry{name: "/etc/cron.d/x", data: []byte("x")}), "bad_image"},
		{"link out", with(good, entry{name: "x", kind: tar.TypeSymlink, link: "/etc/passwd"}), "bad_image"},
		{"link up", with(good, entry{name: "x", kind: tar.TypeSymlink, link: "../../../etc/passwd"}), "bad_image"},
		{"link to itself", with(good, entry{name: "x", kind: tar.TypeSymlink, link: "x"}), "bad_image"},
		{"link to a link", with(good, entry{name: "x", kind: tar.TypeSymlink, link: "y"}, entry{name: "y", kind: tar.TypeSymlink, link: "index.json"}), "bad_image"},
		{"write through a link", with(good, entry{name: "blobs", kind: tar.TypeSymlink, link: "/etc"}, entry{name: "blobs/x", data: []byte("x")}), "bad_image"},
		{"layer that is a link out", with(plain, entry{name: "layer0/layer.tar", kind: tar.TypeSymlink, link: "/etc/passwd"}), "bad_image"},
		{"hard link", with(good, entry{name: "x", kind: tar.TypeLink, link: "/etc/passwd"}), "bad_image"},
		{"device", with(good, entry{name: "x", kind: tar.TypeBlock}), "bad_image"},
		{"pipe", with(good, entry{name: "index.json", kind: tar.TypeFifo}), "bad_image"},
		{"twice", archive(t, append(append([]entry{}, good...), entry{name: "index.json", data: []byte("{}")})...), "bad_image"},
		{"records", with(good, entry{name: "x", pax: map[string]string{"SANDLOT.x": "y"}}), ""}, // harmless records are no reason
		{"many entries", archive(t, many...), "bad_image"},
		{"zeros", with(good, entry{name: "x", data: make([]byte, 2<<20)}), "image_too_big"},
		{"gzip of zeros", pack(t, "gzip", with(good, entry{name: "x", data: make([]byte, 8<<20)})), "image_too_big"},
		{"layer of zeros", archive(t, ociEntries(t, nil, newImage(t, v1.Config{}, bomb))...), "image_too_big"},
		{"no index", without(good, "index.json"), "bad_image"},
		{"blob missing", without(good, l.name()[7:]), "bad_image"},
		{"configuration missing", without(good, idOf(t, img)[7:]), "bad_image"},
		{"blob that lies", with(good, entry{name: "blobs/sha256/" + l.name()[7:], data: append([]byte{1}, l.stored[1:]...)}), "bad_image"},
		{"diffID that lies", archive(t, ociEntries(t, nil, newImage(t, v1.Config{}, &lie))...), "bad_image"},
		{"name that is none", archive(t, ociEntries(t, map[string]string{idOf(t, img): "a/../b"}, img)...), "bad_image"},
		{"index deep", with(good, entry{name: "index.json", data: bytes.Repeat([]byte(`{"manifests":[`), 20000)}), "bad_image"},
		{"index of another kind", with(good, entry{name: "index.json", data: []byte(`{"manifests":"x"}`)}), "bad_image"},
		{"index of nothing", with(good, entry{name: "index.json", data: []byte(`{}`)}), "bad_image"},
		{"digest that is a path", with(good, entry{name: "index.json", data: []byte(`{"manifests":[{"size":1,"digest":"sha256:../../../../etc/passwd"}]}`)}), "bad_image"},
		{"docker: no configuration", with(plain, entry{name: "manifest.json", data: []byte(`[{"Config":"../../etc/passwd","Layers":[]}]`)}), "bad_image"},
		{"docker: no layer", without(plain, "layer.tar"), "bad_image"},
		{"docker: one file for everything", with(plain, entry{name: "manifest.json", data: []byte(`[{"Config":"manifest.json","Layers":["manifest.json"]}]`)}), "bad_image"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, dir := open(t, func(c *image.Config) { c.MaxBytes = 1 << 20 })
			_, err := s.Import(t.Context(), bytes.NewReader(tc.data), nil)
			if tc.code == "" {
				must(t, err)
				return
			}
			wantProblem(t, err, sandbox.ErrInvalid, tc.code, "")
			wantNothing(t, s, dir)
		})
	}
	for _, format := range []string{"gnu", "pax"} {
		t.Run("sparse "+format, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "index.json"), nil, 0o600))
			must(t, os.Truncate(filepath.Join(dir, "index.json"), 1<<40))
			data, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "--format="+format, "-cS", "index.json").Output()
			must(t, err)
			s, dir := open(t)
			_, err = s.Import(t.Context(), bytes.NewReader(data), nil)
			wantProblem(t, err, sandbox.ErrInvalid, "bad_image", "")
			wantNothing(t, s, dir)
		})
	}
	t.Run("huge JSON", func(t *testing.T) {
		s, dir := open(t)
		_, err := s.Import(t.Context(), bytes.NewReader(with(good, entry{name: "index.json", data: make([]byte, 5<<20)})), nil)
		wantProblem(t, err, sandbox.ErrInvalid, "bad_image", "", "index.json")
		wantNothing(t, s, dir)
	})
	t.Run("sender that fails", func(t *testing.T) {
		s, dir := open(t)
		_, err := s.Import(t.Context(), io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), failing{}), nil)
		var p *sandbox.Problem
		if !errors.Is(err, errSender) || errors.As(err, &p) {
			t.Errorf("error is %v", err)
		}
		wantNothing(t, s, dir)
	})
	t.Run("cancelled", func(t *testing.T) {
		s, dir := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := s.Import(ctx, io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), readerFunc(func([]byte) (int, error) { cancel(); return 0, nil })), nil)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
		wantNothing(t, s, dir)
	})
}

var errSender = errors.New("the sender went away")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errSender }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestExport writes an image in both forms; other programs' libraries read it, and so do we.
func TestExport(t *testing.T) {
	r := newRegistry(t)
	s, _ := open(t)
	b := newLayer(t, "zstd", "b", "b")
	pulled, _, err := s.Pull(t.Context(), r.push(t, "app:1", newImage(t, settings, newLayer(t, "gzip", "a", noise(1, 100<<10)), b, newLayer(t, "gzip", "c", "c"), b)), image.Auth{}, nil)
	must(t, err)
	img, err := s.Append(t.Context(), pulled.ID, bytes.NewReader(files(t, "d", "d")), nil, "RUN d")
	must(t, err)
	for _, format := range []image.Format{image.OCI, image.Docker} {
		t.Run(string(format), func(t *testing.T) {
			var out bytes.Buffer
			must(t, s.Export(t.Context(), img.ID, format, "team/app:2", &out))
			file := filepath.Join(t.TempDir(), "image.tar")
			must(t, os.WriteFile(file, out.Bytes(), 0o600))
			var read v1.Image
			if format == image.OCI {
				read = layoutImage(t, out.Bytes())
				layers, err := read.Layers()
				must(t, err)
				for i, l := range layers { // the library's own check knows gzip only
					rc, err := l.Compressed()
					must(t, err)
					data, err := io.ReadAll(rc)
					must(t, err)
					if hashOf(data).String() != img.Layers[i].Digest || int64(len(data)) != img.Layers[i].Size {
						t.Errorf("layer %d has %d bytes of %s", i, len(data), hashOf(data))
					}
				}
			} else {
				tag, err := name.NewTag("team/app:2")
				must(t, err)
				read, err = tarball.ImageFromPath(file, &tag)
				must(t, err)
				must(t, validate.Image(read))
			}
			if idOf(t, read) != img.ID {
				t.Errorf("the library reads %s, want %s", idOf(t, read), img.ID)
			}
			other, dir := open(t)
			got, err := other.Import(t.Context(), &out, nil)
			must(t, err)
			whole(t, dir, got[0])
			if len(got) != 1 || got[0].ID != img.ID || len(got[0].Names) != 1 || got[0].Names[0] != "docker.io/team/app:2" {
				t.Errorf("got %+v", got)
			}
		})
	}
	wantProblem(t, s.Export(t.Context(), img.ID, "zip", "", io.Discard), sandbox.ErrInvalid, "invalid_request", "format")
	wantProblem(t, s.Export(t.Context(), img.ID, image.OCI, "a b", io.Discard), sandbox.ErrInvalid, "invalid_request", "name")
	wantProblem(t, s.Export(t.Context(), "sha256:x", image.OCI, "", io.Discard), sandbox.ErrNotFound, "image_not_found", "")
	if err := s.Export(t.Context(), img.ID, image.OCI, "", failingWriter{}); !errors.Is(err, errSender) {
		t.Errorf("error is %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errSender }

func layoutImage(t *testing.T, data []byte) v1.Image {
	t.Helper()
	dir := t.TempDir()
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		to := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			must(t, os.MkdirAll(to, 0o755))
			continue
		}
		content, err := io.ReadAll(tr)
		must(t, err)
		must(t, os.WriteFile(to, content, 0o600))
	}
	idx, err := layout.ImageIndexFromPath(dir)
	must(t, err)
	m, err := idx.IndexManifest()
	must(t, err)
	img, err := idx.Image(m.Manifests[0].Digest)
	must(t, err)
	return img
}
