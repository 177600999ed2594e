package image_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

type hook = func(w http.ResponseWriter, r *http.Request, next http.Handler)

// onPath answers requests whose path ends so in another way, HEAD included.
func onPath(end string, f func(w http.ResponseWriter, r *http.Request)) hook {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, end) {
			f(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func send(data []byte) func(w http.ResponseWriter, r *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
}

// raw pushes a manifest as it is, whatever it says.
func (r *reg) raw(t *testing.T, as string, mediaType types.MediaType, body []byte) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + as)
	must(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, r.URL+"/v2/"+ref.Context().RepositoryStr()+"/manifests/"+ref.Identifier(), strings.NewReader(string(body)))
	must(t, err)
	req.Header.Set("Content-Type", string(mediaType))
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("pushing a manifest: %s: %s", resp.Status, b)
	}
	return ref.String()
}

// altered pushes an image and then a manifest that differs from its own.
func altered(t *testing.T, r *reg, img v1.Image, change func(m *v1.Manifest)) string {
	t.Helper()
	r.push(t, "app:true", img)
	m, err := img.Manifest()
	must(t, err)
	m = m.DeepCopy()
	change(m)
	body, err := json.Marshal(m)
	must(t, err)
	return r.raw(t, "app:1", m.MediaType, body)
}

// TestBadImages pulls what can't be an image, or isn't what it says. Nothing of it stays.
func TestBadImages(t *testing.T) {
	r := newRegistry(t)
	l := newLayer(t, "gzip", "a", noise(1, 100<<10))
	img := newImage(t, v1.Config{}, l, newLayer(t, "zstd", "b", "b"))
	blob := "/blobs/" + digestOf(t, l)
	config := "/blobs/" + idOf(t, img)
	flip := func(b []byte) []byte { return append([]byte{b[0] ^ 1}, b[1:]...) }
	raw, err := img.RawConfigFile()
	must(t, err)
	lie := *l
	lie.diffID = hashOf([]byte("x"))
	broken := &layer{stored: append(append([]byte{}, l.stored[:len(l.stored)/2]...), "rubbish"...), mediaType: types.OCILayer, diffID: l.diffID}
	bomb := layerOf(t, "gzip", files(t, "zeros", string(make([]byte, 8<<20))))
	bomb2 := layerOf(t, "zstd", files(t, "zeros", string(make([]byte, 8<<20))))
	plain := func(i v1.Image) func() string { return func() string { return r.push(t, "app:1", i) } }

	for _, tc := range []struct {
		name  string
		push  func() string
		hook  hook
		code  string
		words []string
	}{
		{"layer's content", plain(img), onPath(blob, send(flip(l.stored))), "bad_image", []string{l.name(), "digest"}},
		{"layer shorter", plain(img), onPath(blob, send(l.stored[:1000])), "bad_image", []string{l.name(), "1000"}},
		{"layer longer", plain(img), onPath(blob, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush() // so there is no length
			_, _ = w.Write(append(append([]byte{}, l.stored...), 1))
		}), "bad_image", []string{l.name(), "more"}},
		{"layer's size", func() string { return altered(t, r, img, func(m *v1.Manifest) { m.Layers[0].Size += 5 }) }, nil, "bad_image", []string{l.name()}},
		{"layer's diffID", plain(newImage(t, v1.Config{}, &lie)), nil, "bad_image", []string{l.name(), "configuration"}},
		{"layer broken", plain(newImage(t, v1.Config{}, broken)), nil, "bad_image", []string{"can't be unpacked"}},
		{"layer missing", plain(img), onPath(blob, func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }), "bad_image", []string{l.name(), "missing"}},
		{"layer twice with two diffIDs", plain(newImage(t, v1.Config{}, l, &lie)), nil, "bad_image", []string{"two names"}},
		{"configuration's content", plain(img), onPath(config, send(flip(raw))), "bad_image", []string{"configuration"}},
		{"configuration huge", func() string { return altered(t, r, img, func(m *v1.Manifest) { m.Config.Size = 100 << 20 }) }, nil, "bad_image", []string{"8 MiB"}},
		{"no platform's configuration", func() string {
			return altered(t, r, img, func(m *v1.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" })
		}, nil, "bad_image", []string{"helm"}},
		{"fewer layers than the configuration", func() string { return altered(t, r, img, func(m *v1.Manifest) { m.Layers = m.Layers[:1] }) }, nil, "bad_image", []string{"1 layers", "2"}},
		{"encrypted layer", func() string {
			return altered(t, r, img, func(m *v1.Manifest) { m.Layers[0].MediaType += "+encrypted" })
		}, nil, "bad_image", []string{"encrypted"}},
		{"a layer that is no file system", func() string {
			return altered(t, r, img, func(m *v1.Manifest) { m.Layers[0].MediaType = "application/vnd.in-toto+json" })
		}, nil, "bad_image", []string{"in-toto"}},
		{"negative size", func() string { return altered(t, r, img, func(m *v1.Manifest) { m.Layers[0].Size = -1 }) }, nil, "bad_image", nil},
		{"sizes that overflow", func() string {
			return altered(t, r, img, func(m *v1.Manifest) { m.Layers[0].Size, m.Layers[1].Size = 1<<63-1, 1<<63-1 })
		}, nil, "image_too_big", nil},
		{"layers without end", func() string {
			return altered(t, r, img, func(m *v1.Manifest) {
				for range 600 {
					m.Layers = append(m.Layers, m.Layers[1])
				}
			})
		}, nil, "bad_image", []string{"512"}},
		{"manifest by digest", func() string {
			r.push(t, "app:1", img)
			return r.host + "/app@" + digestOf(t, img)
		}, onPath("/manifests/"+digestOf(t, img), send([]byte(`{"schemaVersion":2}`))), "bad_image", []string{digestOf(t, img)}},
		{"manifest huge", plain(img), onPath("/manifests/1", send(make([]byte, 5<<20))), "bad_image", []string{"4 MiB"}},
		{"manifest no JSON", plain(img), onPath("/manifests/1", send([]byte("<html>"))), "bad_image", nil},
		{"manifest deep", plain(img), onPath("/manifests/1", send([]byte(strings.Repeat("[", 1<<20)))), "bad_image", nil},
		{"manifest of two kinds", plain(img), onPath("/manifests/1", send([]byte(`{"schemaVersion":2,"manifests":[],"layers":[]}`))), "bad_image", nil},
		{"index that leads to itself", plain(img), loop, "bad_image", nil},
		{"schema 1", plain(img), onPath("/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", string(types.DockerManifestSchema1Signed))
			_, _ = w.Write([]byte(`{"schemaVersion":1,"name":"app","fsLayers":[]}`))
		}), "bad_image", []string{"schema 1"}},
		{"gzip bomb", plain(newImage(t, v1.Config{}, bomb)), nil, "image_too_big", []string{"1 MiB"}},
		{"zstd bomb", plain(newImage(t, v1.Config{}, bomb2)), nil, "image_too_big", []string{"1 MiB"}},
		{"layers that are too big together", plain(newImage(t, v1.Config{}, newLayer(t, "gzip", "a", string(make([]byte, 700<<10))), newLayer(t, "gzip", "b", string(make([]byte, 700<<10))))), nil, "image_too_big", nil},
		{"download that is too big", plain(newImage(t, v1.Config{}, newLayer(t, "gzip", "a", noise(3, 2<<20)))), nil, "image_too_big", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, dir := open(t, func(c *image.Config) { c.MaxBytes = 1 << 20 })
			r.on(nil)
			ref := tc.push()
			r.on(tc.hook)
			_, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
			wantProblem(t, err, sandbox.ErrInvalid, tc.code, "image.registry", tc.words...)
			wantNothing(t, s, dir)
		})
	}
}

func (l *layer) name() string { return hashOf(l.stored).String() }

// loop answers every manifest with a list that names it again.
func loop(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if !strings.Contains(r.URL.Path, "/manifests/") {
		next.ServeHTTP(w, r)
		return
	}
	fmt.Fprintf(w, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"size":1,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}]}`,
		types.OCIImageIndex, types.OCIImageIndex, hashOf([]byte("x")))
}

// TestRegistryFailures tells apart why a registry gives nothing. Nothing stays on disk.
func TestRegistryFailures(t *testing.T) {
	r := newRegistry(t)
	img := newImage(t, v1.Config{}, newLayer(t, "gzip", "a", noise(1, 100<<10)))
	ref := r.push(t, "app:1", img)
	blob := "/blobs/" + digestOfLayer(t, img, 0)
	status := func(code int, header ...string) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"errors":[{"code":"SOME_CODE","message":"s3cr3t-token"}]}`)
		}
	}
	stall := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	stallAfter := func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("some bytes"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	quick := func(c *image.Config) { c.Stall = 150 * time.Millisecond }
	transport := func(rt http.RoundTripper) func(*image.Config) {
		return func(c *image.Config) { c.Transport = rt }
	}
	none, secret := image.Auth{}, image.Password("joe", "hunter2")

	for _, tc := range []struct {
		name   string
		ref    string
		auth   image.Auth
		hook   hook
		config func(*image.Config)
		class  error
		code   string
		field  string
		words  []string
		asked  string // what must be asked…
		times  int    // …so often
	}{
		{name: "unknown tag", ref: r.host + "/app:2", class: sandbox.ErrInvalid, code: "image_not_found", words: []string{"app:2"}, asked: "GET .*/manifests/2", times: 1},
		{name: "unknown name", ref: r.host + "/nothing", class: sandbox.ErrInvalid, code: "image_not_found", words: []string{"nothing:latest"}},
		{name: "no credentials", ref: ref, hook: onPath("/manifests/1", status(401)), class: sandbox.ErrInvalid, code: "registry_denied", words: []string{"image.registry_secret"}},
		{name: "bad credentials", ref: ref, auth: secret, hook: onPath("/manifests/1", status(401)), class: sandbox.ErrInvalid, code: "registry_denied", field: "image.registry_secret"},
		{name: "forbidden", ref: ref, auth: secret, hook: onPath("/manifests/1", status(403)), class: sandbox.ErrInvalid, code: "registry_denied", field: "image.registry_secret"},
		{name: "forbidden layer", ref: ref, auth: secret, hook: onPath(blob, status(403)), class: sandbox.ErrInvalid, code: "registry_denied", field: "image.registry_secret"},
		{name: "rate limit", ref: ref, hook: onPath("/manifests/1", status(429, "Retry-After", "3600")), class: sandbox.ErrUnavailable, code: "registry_rate_limited", words: []string{"1h0m0s"}, asked: "GET .*/manifests/1", times: 1},
		{name: "rate limit without a time", ref: ref, hook: onPath("/manifests/1", status(429)), class: sandbox.ErrUnavailable, code: "registry_rate_limited", asked: "GET .*/manifests/1", times: 4},
		{name: "errors", ref: ref, hook: onPath("/manifests/1", status(502)), class: sandbox.ErrUnavailable, code: "registry_failed", words: []string{"502", "SOME_CODE"}, asked: "GET .*/manifests/1", times: 4},
		{name: "errors for a layer", ref: ref, hook: onPath(blob, status(500)), class: sandbox.ErrUnavailable, code: "registry_failed", asked: "GET .*" + blob, times: 4},
		{name: "no registry", ref: ref, hook: onPath("/v2/", status(404)), class: sandbox.ErrInvalid, code: "image_not_found"},
		{name: "nothing answers", ref: strings.TrimPrefix(closed.URL, "http://") + "/app", class: sandbox.ErrUnavailable, code: "registry_unreachable", words: []string{"nothing answers"}},
		{name: "no such host", ref: "registry.test/app", config: transport(roundTrip(func(*http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Name: "registry.test", IsNotFound: true}}
		})), class: sandbox.ErrUnavailable, code: "registry_unreachable", words: []string{"registry.test", "resolved"}},
		{name: "refused by the guard", ref: "registry.test/app", config: transport(roundTrip(func(*http.Request) (*http.Response, error) {
			return nil, &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "private_address", Detail: "No private addresses."}
		})), class: sandbox.ErrInvalid, code: "private_address"},
		{name: "stalls at once", ref: ref, hook: onPath("/v2/", stall), config: quick, class: sandbox.ErrUnavailable, code: "registry_stalled"},
		{name: "stalls before a manifest", ref: ref, hook: onPath("/manifests/1", stall), config: quick, class: sandbox.ErrUnavailable, code: "registry_stalled"},
		{name: "stalls in a manifest", ref: ref, hook: onPath("/manifests/1", stallAfter), config: quick, class: sandbox.ErrUnavailable, code: "registry_stalled"},
		{name: "stalls before a layer", ref: ref, hook: onPath(blob, stall), config: quick, class: sandbox.ErrUnavailable, code: "registry_stalled"},
		{name: "stalls in a layer", ref: ref, hook: onPath(blob, stallAfter), config: quick, class: sandbox.ErrUnavailable, code: "registry_stalled"},
		{name: "hangs up for ever", ref: ref, hook: onPath(blob, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), class: sandbox.ErrUnavailable, code: "registry_unreachable", words: []string{"broke off"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			configs := []func(*image.Config){}
			if tc.config != nil {
				configs = append(configs, tc.config)
			}
			s, dir := open(t, configs...)
			r.on(tc.hook)
			if tc.field == "" {
				tc.field = "image.registry"
			}
			if tc.auth.Anonymous() {
				tc.auth = none
			}
			_, _, err := s.Pull(t.Context(), tc.ref, tc.auth, nil)
			wantProblem(t, err, tc.class, tc.code, tc.field, tc.words...)
			wantNothing(t, s, dir)
			if n := r.asked(tc.asked); tc.asked != "" && n != tc.times {
				t.Errorf("%s was asked for %d times, want %d", tc.asked, n, tc.times)
			}
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestRecovery: a registry that fails for a while is asked again, and what has come is neither fetched nor reported twice.
func TestRecovery(t *testing.T) {
	r := newRegistry(t)
	l := newLayer(t, "gzip", "a", noise(1, 1<<20))
	ref := r.push(t, "app:1", newImage(t, v1.Config{}, l))
	blob := "/blobs/" + l.name()
	var sent atomic.Int64
	for _, tc := range []struct {
		name string
		hook func() hook
		most int64
	}{
		{"busy", func() hook {
			n := 0
			return onPathOr("/manifests/1", func(w http.ResponseWriter, next func()) {
				if n++; n == 1 {
					w.Header().Set("Retry-After", "1")
					w.WriteHeader(429)
					return
				}
				next()
			})
		}, 1 << 62},
		{"failing", func() hook {
			n := 0
			return onPathOr("/manifests/1", func(w http.ResponseWriter, next func()) {
				if n++; n < 4 {
					w.WriteHeader(503)
					return
				}
				next()
			})
		}, 1 << 62},
		{"hangs up, knows ranges", func() hook { return hangsUp(l.stored, true, &sent, blob) }, int64(len(l.stored))},
		{"hangs up, knows no ranges", func() hook { return hangsUp(l.stored, false, &sent, blob) }, 1 << 62},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, dir := open(t)
			sent.Store(0)
			r.on(tc.hook())
			var rec recorder
			img, _, err := s.Pull(t.Context(), ref, image.Auth{}, rec.report)
			must(t, err)
			whole(t, dir, img)
			rec.check(t, img)
			if sent.Load() > tc.most {
				t.Errorf("%d bytes were sent for %d", sent.Load(), len(l.stored))
			}
		})
	}
}

func onPathOr(end string, f func(w http.ResponseWriter, next func())) hook {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, end) && r.Method == http.MethodGet {
			f(w, func() { next.ServeHTTP(w, r) })
			return
		}
		next.ServeHTTP(w, r)
	}
}

// hangsUp sends a blob in pieces, each ended by a broken connection but for the last. Without ranges each piece begins at the start, and
// is longer than the one before.
func hangsUp(data []byte, ranges bool, sent *atomic.Int64, blob string) hook {
	piece := len(data)/4 + 1
	n := 0
	return onPath(blob, func(w http.ResponseWriter, r *http.Request) {
		n++
		from, to := 0, min(piece*n, len(data))
		if v, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && ranges {
			from, _ = strconv.Atoi(strings.TrimSuffix(v, "-"))
			to = min(from+piece, len(data))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		k, _ := w.Write(data[from:to])
		sent.Add(int64(k))
		if to < len(data) {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	})
}

// TestOthersCredentials: a download that began with bad credentials doesn't fail for who has good ones.
func TestOthersCredentials(t *testing.T) {
	r := newRegistry(t)
	img := newImage(t, v1.Config{}, newLayer(t, "gzip", "a", "a"))
	ref := r.push(t, "app:1", img)
	asked, gate := make(chan struct{}, 1), make(chan struct{})
	r.on(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if user, _, _ := req.BasicAuth(); user == "bad" && strings.Contains(req.URL.Path, "/blobs/") {
			asked <- struct{}{}
			<-gate
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, req)
	})
	s, dir := open(t)
	bad := make(chan error, 1)
	go func() {
		_, _, err := s.Pull(t.Context(), ref, image.Password("bad", "hunter2"), nil)
		bad <- err
	}()
	<-asked
	joined, good := make(chan struct{}, 9), make(chan error, 1)
	go func() {
		got, _, err := s.Pull(t.Context(), ref, image.Password("good", "hunter2"), func(p image.Progress) {
			if p.Phase == image.PhasePull && p.Layer == "" {
				joined <- struct{}{}
			}
		})
		if err == nil {
			whole(t, dir, got)
		}
		good <- err
	}()
	<-joined
	close(gate)
	wantProblem(t, <-bad, sandbox.ErrInvalid, "registry_denied", "image.registry_secret")
	must(t, <-good)
	if list, err := s.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("List = %v, %v", list, err)
	}

	// And whoever isn't let in gets nothing of what is here.
	r.on(onPath("/manifests/1", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	_, _, err := s.Pull(t.Context(), ref, image.Password("other", "hunter2"), nil)
	wantProblem(t, err, sandbox.ErrInvalid, "registry_denied", "image.registry_secret")
}
