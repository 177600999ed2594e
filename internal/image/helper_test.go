package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/google/go-containerregistry/pkg/registry.New"))
}

var platform = v1.Platform{OS: "linux", Architecture: "amd64"}

// open opens a store that fails quickly.
func open(t *testing.T, change ...func(*image.Config)) (*image.Store, string) {
	t.Helper()
	tr := http.DefaultTransport.(*http.Transport).Clone()
	cfg := image.Config{Dir: filepath.Join(t.TempDir(), "images"), Transport: tr, Platform: &platform, Stall: 5 * time.Second, Backoff: time.Millisecond}
	for _, f := range change {
		f(&cfg)
	}
	s, err := image.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		tr.CloseIdleConnections()
	})
	return s, cfg.Dir
}

// reg is a real registry on loopback, which keeps a list of what it is asked and can be told to misbehave.
type reg struct {
	*httptest.Server
	host string

	mu   sync.Mutex
	log  []string
	hook func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func newRegistry(t *testing.T) *reg {
	t.Helper()
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r := &reg{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.log = append(r.log, req.Method+" "+req.URL.Path)
		hook := r.hook
		r.mu.Unlock()
		if hook != nil {
			hook(w, req, next)
			return
		}
		next.ServeHTTP(w, req)
	}))
	r.host = strings.TrimPrefix(r.URL, "http://")
	t.Cleanup(r.Close)
	return r
}

// on sets what the registry does from now on, and forgets what it was asked.
func (r *reg) on(hook func(w http.ResponseWriter, req *http.Request, next http.Handler)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook, r.log = hook, nil
}

// asked counts the requests that fit.
func (r *reg) asked(pattern string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, line := range r.log {
		if regexp.MustCompile(pattern).MatchString(line) {
			n++
		}
	}
	return n
}

func (r *reg) push(t *testing.T, as string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + as)
	must(t, err)
	must(t, remote.Write(ref, img))
	return ref.String()
}

// layer is a layer of a test. Its diffID can be a lie.
type layer struct {
	tar, stored []byte
	mediaType   types.MediaType
	diffID      v1.Hash
}

func (l *layer) Digest() (v1.Hash, error) { return hashOf(l.stored), nil }
func (l *layer) DiffID() (v1.Hash, error) { return l.diffID, nil }
func (l *layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.stored)), nil
}
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.tar)), nil
}
func (l *layer) Size() (int64, error)                { return int64(len(l.stored)), nil }
func (l *layer) MediaType() (types.MediaType, error) { return l.mediaType, nil }

func hashOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// files makes a tar of name, content, name, content, …
func files(t *testing.T, list ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(list); i += 2 {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: list[i], Mode: 0o644, Size: int64(len(list[i+1]))}))
		_, err := io.WriteString(w, list[i+1])
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func pack(t *testing.T, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		z, err := zstd.NewWriter(&b)
		must(t, err)
		w = z
	default:
		return data
	}
	_, err := w.Write(data)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func newLayer(t *testing.T, how string, list ...string) *layer {
	t.Helper()
	return layerOf(t, how, files(t, list...))
}

func layerOf(t *testing.T, how string, data []byte) *layer {
	t.Helper()
	mt := map[string]types.MediaType{"gzip": types.OCILayer, "zstd": types.OCILayerZStd, "": types.OCIUncompressedLayer}[how]
	return &layer{tar: data, stored: pack(t, how, data), mediaType: mt, diffID: hashOf(data)}
}

func newImage(t *testing.T, cfg v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	return imageFor(t, platform, cfg, layers...)
}

func imageFor(t *testing.T, p v1.Platform, cfg v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, Config: cfg, RootFS: v1.RootFS{Type: "layers"}})
	must(t, err)
	img, err = mutate.AppendLayers(img, layers...)
	must(t, err)
	return img
}

func idOf(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	must(t, err)
	return h.String()
}

func digestOf(t *testing.T, d interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := d.Digest()
	must(t, err)
	return h.String()
}

// noise is content that doesn't pack well.
func noise(seed, n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d %d", seed, i))
		b.Write(sum[:])
	}
	return b.String()[:n]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// left lists the files below a store, but for its lock.
func left(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "lock" {
			out = append(out, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	}))
	return out
}

func wantNothing(t *testing.T, s *image.Store, dir string) {
	t.Helper()
	if got := left(t, dir); len(got) > 0 {
		t.Errorf("left on disk: %q", got)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) > 0 {
		t.Errorf("List = %v, %v", list, err)
	}
}

// wantProblem checks an error, and that it tells what it should and nothing that it shouldn't.
func wantProblem(t *testing.T, err error, class error, code, field string, words ...string) {
	t.Helper()
	var p *sandbox.Problem
	if !errors.As(err, &p) {
		t.Fatalf("error is %v (%T), not a problem with code %s", err, err, code)
	}
	if !errors.Is(p.Class, class) || p.Code != code || p.Field != field {
		t.Errorf("problem is %v, %s at %q: %s\nwant %v, %s at %q", p.Class, p.Code, p.Field, p, class, code, field)
	}
	for _, w := range words {
		if !strings.Contains(p.Detail, w) {
			t.Errorf("%q doesn't say %q", p.Detail, w)
		}
	}
	for _, secret := range secrets {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error gives away %q: %s", secret, err)
		}
	}
}

// secrets are the credentials that tests use: no error may hold one.
var secrets = []string{"hunter2", "s3cr3t-token", "signature=abc"}

// whole checks an image that is ready, and its files' modes.
func whole(t *testing.T, dir string, img image.Image) {
	t.Helper()
	fi, err := os.Stat(img.Root)
	must(t, err)
	if fi.Size() != img.RootSize || !fi.Mode().IsRegular() {
		t.Errorf("root is %v of %d bytes, and RootSize is %d", fi.Mode(), fi.Size(), img.RootSize)
	}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil && fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
		return err
	}))
	if got := left(t, filepath.Join(dir, "tmp")); len(got) > 0 {
		t.Errorf("temporary files are left: %q", got)
	}
}

// recorder collects progress.
type recorder struct {
	mu   sync.Mutex
	list []image.Progress
}

func (r *recorder) report(p image.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, p)
}

// check wants all phases in order, and for each layer growing numbers that end with its size.
func (r *recorder) check(t *testing.T, img image.Image) {
	t.Helper()
	var phases []string
	last := map[string]image.Progress{}
	for _, p := range r.list {
		if !slices.Contains(phases, p.Phase) {
			phases = append(phases, p.Phase)
		}
		if p.Text == "" || p.Done > p.Total {
			t.Errorf("bad progress %+v", p)
		}
		if old, ok := last[p.Phase+p.Layer]; ok && old.Done > p.Done {
			t.Errorf("progress went from %+v to %+v", old, p)
		}
		last[p.Phase+p.Layer] = p
	}
	if want := []string{"resolve", "pull", "unpack", "done"}; !slices.Equal(phases, want) {
		t.Errorf("phases are %q, want %q", phases, want)
	}
	for _, l := range img.Layers {
		if p := last["pull"+l.Digest]; p.Done != l.Size || p.Total != l.Size {
			t.Errorf("the last word on layer %s of %d bytes is %+v", l.Digest, l.Size, p)
		}
	}
}
