package image_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

var settings = v1.Config{Env: []string{"PATH=/bin", "A=1"}, User: "agent", WorkingDir: "/src", Entrypoint: []string{"/init"}, Cmd: []string{"run"},
	Shell: []string{"/bin/bash", "-c"}, Labels: map[string]string{"a": "b"}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
	Volumes: map[string]struct{}{"/data": {}}, StopSignal: "SIGINT"}

func TestPull(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	want := newImage(t, settings, newLayer(t, "gzip", "etc/a", noise(1, 300<<10)), newLayer(t, "zstd", "etc/b", noise(2, 200<<10)), newLayer(t, "", "etc/c", "plain"))
	ref := r.push(t, "team/app:v1", want)
	byDigest := r.host + "/team/app@" + digestOf(t, want)

	var rec recorder
	img, res, err := s.Pull(t.Context(), ref, image.Auth{}, rec.report)
	must(t, err)
	rec.check(t, img)
	whole(t, dir, img)
	if img.ID != idOf(t, want) || img.Platform != "linux/amd64" || len(img.Layers) != 3 || img.Root == "" || img.CreatedAt.IsZero() {
		t.Errorf("image is %+v", img)
	}
	if d := digestOf(t, want); res != (image.Resolved{Reference: ref, Digest: d, Manifest: d}) {
		t.Errorf("resolved is %+v", res)
	}
	wantSettings := image.Settings{Env: settings.Env, User: "agent", Workdir: "/src", Entrypoint: settings.Entrypoint, Cmd: settings.Cmd, Shell: settings.Shell,
		Labels: settings.Labels, Ports: []string{"53/udp", "80/tcp"}, Volumes: []string{"/data"}, StopSignal: "SIGINT"}
	if !reflect.DeepEqual(img.Config, wantSettings) {
		t.Errorf("settings are %+v, want %+v", img.Config, wantSettings)
	}

	// Once more, by digest: nothing is downloaded again, but the registry was asked.
	r.on(nil)
	again, _, err := s.Pull(t.Context(), byDigest, image.Auth{}, nil)
	must(t, err)
	if again.ID != img.ID || again.Root != img.Root || r.asked("GET .*/blobs/") > 0 || r.asked("GET .*/manifests/") > 0 || r.asked("HEAD .*/manifests/sha256") != 1 {
		t.Errorf("the second pull gave %s and asked %q", again.ID, r.log)
	}
	if want := []string{ref, byDigest}; !reflect.DeepEqual(again.Names, want) {
		t.Errorf("names are %q, want %q", again.Names, want)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != img.ID {
		t.Errorf("List = %v, %v", list, err)
	}

	// A registry that answers HEAD with nothing useful is asked with GET, and the tag that moved is another image.
	r.push(t, "team/app:v1", newImage(t, v1.Config{User: "new"}, newLayer(t, "gzip", "a", "a")))
	r.on(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if req.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, req)
	})
	same, _, err := s.Pull(t.Context(), byDigest, image.Auth{}, nil)
	must(t, err)
	moved, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
	must(t, err)
	if same.ID != img.ID || moved.ID == img.ID || moved.Config.User != "new" {
		t.Errorf("got %s and %s", same.ID, moved.ID)
	}
}

func TestPullEmptyImage(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	img, _, err := s.Pull(t.Context(), r.push(t, "scratch", newImage(t, v1.Config{})), image.Auth{}, nil)
	must(t, err)
	whole(t, dir, img)
}

func TestCanonical(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"python":                               "docker.io/library/python:latest",
		"python:3.12":                          "docker.io/library/python:3.12",
		"grafana/grafana":                      "docker.io/grafana/grafana:latest",
		"docker.io/python:3":                   "docker.io/library/python:3",
		"index.docker.io/library/x:1":          "docker.io/library/x:1",
		"ghcr.io/a/b/c:t":                      "ghcr.io/a/b/c:t",
		"localhost:5000/x":                     "localhost:5000/x:latest",
		"python@" + d:                          "docker.io/library/python@" + d,
		"python:3.12@" + d:                     "docker.io/library/python@" + d,
		"":                                     "",
		"Python":                               "",
		"a/../b":                               "",
		"a//b":                                 "",
		"https://ghcr.io/a":                    "",
		"a:b:c":                                "",
		"a:.x":                                 "",
		"a@sha512:" + strings.Repeat("a", 128): "",
		"a@sha256:abc":                         "",
		"a b":                                  "",
		"a\nb":                                 "",
		"ghcr.io/a?x=y":                        "",
		strings.Repeat("a", 600):               "",
	} {
		got, err := image.Canonical(in)
		if want == "" {
			wantProblem(t, err, sandbox.ErrInvalid, "invalid_request", "image.registry")
		} else if err != nil || got != want {
			t.Errorf("Canonical(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestPullPlatform(t *testing.T) {
	r := newRegistry(t)
	index := func(platforms ...v1.Platform) (v1.ImageIndex, map[string]v1.Image) {
		idx, images := v1.ImageIndex(mutate.IndexMediaType(empty.Index, types.OCIImageIndex)), map[string]v1.Image{}
		for _, p := range platforms {
			img := imageFor(t, p, v1.Config{Labels: map[string]string{"p": p.String()}}, newLayer(t, "gzip", "platform", p.String()))
			idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
			images[p.String()] = img
		}
		return idx, images
	}
	push := func(as string, idx v1.ImageIndex) string {
		ref, err := name.ParseReference(r.host + "/" + as)
		must(t, err)
		must(t, remote.WriteIndex(ref, idx))
		return ref.String()
	}
	amd, amd3, arm, win := v1.Platform{OS: "linux", Architecture: "amd64"}, v1.Platform{OS: "linux", Architecture: "amd64", Variant: "v3"},
		v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0"}
	attestation := v1.Platform{OS: "unknown", Architecture: "unknown"}

	idx, images := index(win, amd3, arm, amd, attestation)
	ref := push("multi:1", idx)
	for _, p := range []v1.Platform{amd, arm} {
		s, _ := open(t, func(c *image.Config) { c.Platform = &v1.Platform{OS: p.OS, Architecture: p.Architecture} })
		img, res, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
		must(t, err)
		again, res2, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
		if err != nil || again.ID != img.ID || res2 != res {
			t.Errorf("the second pull gave %s, %+v, %v", again.ID, res2, err)
		}
		if img.ID != idOf(t, images[p.String()]) || res.Digest != digestOf(t, idx) || res.Manifest != digestOf(t, images[p.String()]) {
			t.Errorf("for %v: %s with labels %v, %+v", p, img.ID, img.Config.Labels, res)
		}
	}
	s, dir := open(t)
	none, _ := index(arm, win, attestation)
	_, _, err := s.Pull(t.Context(), push("multi:2", none), image.Auth{}, nil)
	wantProblem(t, err, sandbox.ErrInvalid, "wrong_platform", "image.registry", "linux/amd64", "linux/arm64/v8", "windows/amd64:10.0",
		"--platform=linux/amd64")
	if strings.Contains(err.Error(), "unknown") {
		t.Errorf("%v tells of attestations", err)
	}
	_, _, err = s.Pull(t.Context(), r.push(t, "single", images[arm.String()]), image.Auth{}, nil)
	wantProblem(t, err, sandbox.ErrInvalid, "wrong_platform", "image.registry", "linux/arm64/v8")
	wantNothing(t, s, dir)
}

// TestPullOnce has many callers pull one image under several names at once. One of them goes away in the middle.
func TestPullOnce(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	img := newImage(t, settings, newLayer(t, "gzip", "a", noise(1, 100<<10)), newLayer(t, "gzip", "b", noise(2, 100<<10)))
	tags := []string{r.push(t, "app:1", img), r.push(t, "app:2", img)}
	blobs, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.on(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if strings.Contains(req.URL.Path, "/blobs/") {
			once.Do(func() { close(blobs) })
			<-gate
		}
		next.ServeHTTP(w, req)
	})

	gone, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { // whose credentials and context the download began with
		_, _, err := s.Pull(gone, tags[0], image.Auth{}, nil)
		first <- err
	}()
	<-blobs
	const n = 8
	joined := make(chan struct{}, n)
	errs := make(chan error, n)
	recs := make([]recorder, n)
	for i := range n {
		go func() {
			got, _, err := s.Pull(t.Context(), tags[i%2], image.Auth{}, func(p image.Progress) {
				if p.Phase == image.PhasePull && p.Layer == "" {
					joined <- struct{}{}
				}
				recs[i].report(p)
			})
			if err == nil && got.ID != idOf(t, img) {
				err = fmt.Errorf("got %s", got.ID)
			}
			errs <- err
		}()
	}
	for range n {
		<-joined
	}
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that left got %v", err)
	}
	close(gate)
	for range n {
		must(t, <-errs)
	}
	got, err := s.Get(t.Context(), idOf(t, img))
	must(t, err)
	whole(t, dir, got)
	if n := r.asked("GET .*/blobs/"); n != 3 {
		t.Errorf("blobs were asked for %d times, want 3: %q", n, r.log)
	}
	if len(got.Names) != 2 {
		t.Errorf("names are %q", got.Names)
	}
}

// TestPullCancelled cancels the only caller in the middle: nothing goes on, and the next pull does.
func TestPullCancelled(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	img := newImage(t, settings, newLayer(t, "gzip", "a", noise(1, 100<<10)), newLayer(t, "gzip", "b", noise(2, 100<<10)))
	ref := r.push(t, "app:1", img)
	ctx, cancel := context.WithCancel(t.Context())
	r.on(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if strings.HasSuffix(req.URL.Path, "/blobs/"+digestOfLayer(t, img, 1)) {
			cancel()
			<-req.Context().Done()
			return
		}
		next.ServeHTTP(w, req)
	})
	if _, _, err := s.Pull(ctx, ref, image.Auth{}, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("error is %v", err)
	}
	if got := left(t, filepath.Join(dir, "tmp")); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
	r.on(nil)
	got, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
	must(t, err)
	whole(t, dir, got)
}

func digestOfLayer(t *testing.T, img v1.Image, i int) string {
	t.Helper()
	m, err := img.Manifest()
	must(t, err)
	return m.Layers[i].Digest.String()
}

// TestSharedLayers: what is here is not downloaded again, but only for whom the registry lets have it.
func TestSharedLayers(t *testing.T) {
	one, two := newRegistry(t), newRegistry(t)
	s, _ := open(t)
	base := newLayer(t, "gzip", "base", noise(1, 100<<10))
	a := newImage(t, v1.Config{User: "a"}, base, newLayer(t, "gzip", "a", "a"))
	b := newImage(t, v1.Config{User: "b"}, base, newLayer(t, "gzip", "b", "b"))
	_, _, err := s.Pull(t.Context(), one.push(t, "a", a), image.Auth{}, nil)
	must(t, err)
	path := "/blobs/" + digestOf(t, base)

	ref := one.push(t, "b", b)
	one.on(nil)
	_, _, err = s.Pull(t.Context(), ref, image.Auth{}, nil)
	must(t, err)
	if one.asked("GET .*"+path) > 0 || one.asked("HEAD .*"+path) != 1 {
		t.Errorf("the layer that is here was handled so: %q", one.log)
	}

	// Another registry only claims to have it: it has to show it.
	ref = two.push(t, "b", b)
	two.on(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, path) {
			http.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
	_, _, err = s.Pull(t.Context(), ref, image.Auth{}, nil)
	wantProblem(t, err, sandbox.ErrInvalid, "bad_image", "image.registry", digestOf(t, base))
	if list, err := s.List(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("List = %v, %v", list, err)
	}
	two.on(nil)
	_, _, err = s.Pull(t.Context(), ref, image.Auth{}, nil)
	must(t, err)
	if two.asked("GET .*"+path) != 1 {
		t.Errorf("the other registry was asked %q", two.log)
	}
}

func TestForeignLayer(t *testing.T) {
	r, s, dir := newRegistry(t), (*image.Store)(nil), ""
	s, dir = open(t)
	foreign := newLayer(t, "gzip", "a", "from elsewhere")
	var auth []string
	var mu sync.Mutex
	elsewhere := newRegistry(t)
	elsewhere.on(func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
		mu.Lock()
		auth = append(auth, req.Header.Get("Authorization"))
		mu.Unlock()
		_, _ = w.Write(foreign.stored)
	})
	img, err := mutate.Append(newImage(t, v1.Config{}), mutate.Addendum{Layer: foreign, MediaType: types.DockerForeignLayer, URLs: []string{elsewhere.URL + "/layer"}})
	must(t, err)
	ref := r.push(t, "foreign", img)
	r.on(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if strings.HasSuffix(req.URL.Path, "/blobs/"+digestOf(t, foreign)) {
			http.NotFound(w, req)
			return
		}
		next.ServeHTTP(w, req)
	})
	got, _, err := s.Pull(t.Context(), ref, image.Password("joe", "hunter2"), nil)
	must(t, err)
	whole(t, dir, got)
	if len(auth) != 1 || auth[0] != "" {
		t.Errorf("elsewhere got the credentials %q", auth)
	}

	elsewhere.on(nil) // is a registry, and has no such thing
	s, dir = open(t)
	_, _, err = s.Pull(t.Context(), ref, image.Auth{}, nil)
	wantProblem(t, err, sandbox.ErrInvalid, "bad_image", "image.registry", digestOf(t, foreign))
	wantNothing(t, s, dir)
}

func TestRestart(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	img := newImage(t, settings, newLayer(t, "gzip", "a", "a"))
	want, _, err := s.Pull(t.Context(), r.push(t, "app:1", img), image.Auth{}, nil)
	must(t, err)
	if _, err := image.Open(image.Config{Dir: dir}); err == nil {
		t.Fatal("a store that is open can be opened again")
	}
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(dir, "tmp", "layer-1"), []byte("left"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "roots", strings.Repeat("a", 64)+".erofs"), []byte("left"), 0o600))
	must(t, os.Remove(want.Root)) // a root can always be written again
	s, _ = open(t, func(c *image.Config) { c.Dir = dir })
	list, err := s.List(t.Context())
	must(t, err)
	if len(list) != 1 || list[0].Root != "" || !reflect.DeepEqual(list[0].Config, want.Config) {
		t.Fatalf("List = %+v", list)
	}
	got, err := s.Get(t.Context(), want.ID)
	must(t, err)
	whole(t, dir, got)
	if len(left(t, dir)) != 5 { // image, configuration, layer and its description, root
		t.Errorf("files: %q", left(t, dir))
	}
	if !got.CreatedAt.Equal(want.CreatedAt) || got.Names[0] != want.Names[0] {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
