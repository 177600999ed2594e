package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memImages is a store of images in memory, whose IDs follow from their content.
type memImages struct {
	mu      sync.Mutex
	images  map[string]*memImage
	refs    map[string]string
	cache   map[string]string
	appends int
	pulls   int
	open    int
	fail    error // of Append
}

type memImage struct {
	settings image.Settings
	files    fstest.MapFS
	history  []string
}

func newImages() *memImages {
	return &memImages{images: map[string]*memImage{}, refs: map[string]string{}, cache: map[string]string{}}
}

// add puts an image made of headers in place.
func (m *memImages) add(ref string, s image.Settings, files ...file) string {
	img := &memImage{settings: s, files: fstest.MapFS{}}
	for _, f := range files {
		img.put(f.header(), []byte(f.data))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	id := img.id()
	m.images[id], m.refs[ref] = img, id
	return id
}

// file is a file of a test's image: a directory if its name ends in a slash, a link if it has a target.
type file struct {
	name, data, link string
	mode             int64
	uid, gid         int
	kind             byte
}

func (f file) header() *tar.Header {
	h := &tar.Header{Name: f.name, Mode: f.mode, Uid: f.uid, Gid: f.gid, Linkname: f.link, Size: int64(len(f.data)),
		ModTime: time.Unix(1_000_000, 0), Typeflag: f.kind}
	switch {
	case f.kind != 0:
	case strings.HasSuffix(f.name, "/"):
		h.Typeflag = tar.TypeDir
	case f.link != "":
		h.Typeflag = tar.TypeSymlink
	default:
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	return h
}

func (img *memImage) put(h *tar.Header, data []byte) {
	name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "/"), "/")
	info := h.FileInfo()
	f := &fstest.MapFile{Mode: info.Mode(), ModTime: h.ModTime, Data: data, Sys: h}
	if h.Typeflag == tar.TypeSymlink {
		f.Mode, f.Data = fs.ModeSymlink|0o777, []byte(h.Linkname)
	}
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if img.files[d] == nil {
			img.files[d] = &fstest.MapFile{Mode: fs.ModeDir | 0o755, Sys: &tar.Header{}}
		}
	}
	img.files[name] = f
}

func (img *memImage) id() string {
	h := sha256.New()
	for _, name := range sortedNames(img.files) {
		f := img.files[name]
		fmt.Fprintf(h, "%q %v %q %v\n", name, f.Mode, f.Data, f.ModTime.Unix())
	}
	fmt.Fprintf(h, "%+v %q", img.settings, img.history)
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

func sortedNames(m fstest.MapFS) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (m *memImages) get(id string) *memImage {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.images[id]
}

func (m *memImages) Pull(_ context.Context, ref string, report func(string)) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pulls++
	id, ok := m.refs[ref]
	if !ok {
		return "", &sandbox.Problem{Class: sandbox.ErrNotFound, Code: "image_not_found", Field: "image.registry", Detail: "there is no image " + ref}
	}
	report("pulling " + ref)
	return id, nil
}

func (m *memImages) Settings(_ context.Context, id string) (image.Settings, error) {
	if img := m.get(id); img != nil {
		return img.settings, nil
	}
	return image.Settings{}, fmt.Errorf("image %s: %w", id, sandbox.ErrNotFound)
}

func (m *memImages) Append(_ context.Context, base string, layer io.Reader, change func(*image.Settings), history string) (string, error) {
	from := m.get(base)
	img := &memImage{settings: from.settings, files: fstest.MapFS{}, history: append(slices.Clone(from.history), history)}
	for n, f := range from.files {
		img.files[n] = f
	}
	if layer != nil {
		if m.fail != nil {
			io.CopyN(io.Discard, layer, 10)
			return "", m.fail
		}
		tr := tar.NewReader(layer)
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return "", fmt.Errorf("reading a layer: %w", err)
			}
			data, err := io.ReadAll(tr)
			if err != nil {
				return "", fmt.Errorf("reading a layer: %w", err)
			}
			img.put(h, data)
		}
		if _, err := io.Copy(io.Discard, layer); err != nil {
			return "", err
		}
	}
	change(&img.settings)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.appends++
	id := img.id()
	m.images[id] = img
	return id, nil
}

func (m *memImages) Files(_ context.Context, id string) (build.Files, error) {
	img := m.get(id)
	if img == nil {
		return nil, fmt.Errorf("image %s: %w", id, sandbox.ErrNotFound)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open++
	return &memFiles{img.files, m}, nil
}

func (m *memImages) Cached(key string) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, ok := m.cache[key]
	return id, ok
}

func (m *memImages) Remember(key, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cache[key] = id
	return nil
}

// memFiles holds this package to its word: a name that leads through a link is an error.
type memFiles struct {
	fstest.MapFS
	m *memImages
}

func (f *memFiles) strict(name string) error {
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if x := f.MapFS[d]; x != nil && x.Mode&fs.ModeSymlink != 0 {
			panic(fmt.Sprintf("%s was asked for, and %s is a link", name, d))
		}
		if x := f.MapFS[d]; x != nil && !x.Mode.IsDir() {
			return &fs.PathError{Op: "lstat", Path: name, Err: syscall.ENOTDIR}
		}
	}
	return nil
}

func (f *memFiles) Open(name string) (fs.File, error) {
	if err := f.strict(name); err != nil {
		return nil, err
	}
	if x := f.MapFS[name]; x != nil && x.Mode&fs.ModeSymlink != 0 {
		panic(name + " was opened, and is a link")
	}
	return f.MapFS.Open(name)
}

func (f *memFiles) Lstat(name string) (fs.FileInfo, error) {
	if err := f.strict(name); err != nil {
		return nil, err
	}
	return f.MapFS.Lstat(name)
}

func (f *memFiles) Attr(info fs.FileInfo) build.Attr {
	h, _ := info.Sys().(*tar.Header)
	a := build.Attr{UID: uint32(h.Uid), GID: uint32(h.Gid), Xattrs: map[string]string{}}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			a.Xattrs[name] = v
		}
	}
	return a
}

func (f *memFiles) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.m.open--
	return nil
}

// runner plays the sandbox: it keeps what it was asked and answers with what do says.
type runner struct {
	mu    sync.Mutex
	steps []build.Step
	do    func(ctx context.Context, s build.Step) ([]file, error) // nil: every command writes one file
}

func (r *runner) Run(ctx context.Context, s build.Step) (io.ReadCloser, error) {
	r.mu.Lock()
	r.steps = append(r.steps, s)
	n := len(r.steps)
	r.mu.Unlock()
	files := []file{{name: fmt.Sprintf("ran/%d", n), data: strings.Join(s.Argv, " ")}}
	if r.do != nil {
		var err error
		if files, err = r.do(ctx, s); err != nil || files == nil {
			return nil, err
		}
	}
	return io.NopCloser(tarOf(files...)), nil
}

func tarOf(files ...file) io.Reader {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		tw.WriteHeader(f.header())
		io.WriteString(tw, f.data)
	}
	tw.Close()
	return &b
}

// rig is a builder with a base image.
type rig struct {
	t      *testing.T
	images *memImages
	runner *runner
	b      *build.Builder
	base   string
	events []build.Event
}

var baseFiles = []file{
	{name: "etc/passwd", data: "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1001::/home/agent:/bin/sh\n"},
	{name: "etc/group", data: "root:x:0:\nagent:x:1001:\nwheel:x:10:agent\n"},
	{name: "usr/lib/"}, {name: "lib", link: "usr/lib"}, {name: "bin/sh", data: "sh", mode: 0o755},
	{name: "afile", data: "x"}, {name: "opt/app/", uid: 7},
	{name: "out", link: "../../../../opt/app"}, {name: "loop", link: "loop"}, {name: "dangling", link: "/not/there"},
}

func newRig(t *testing.T, s image.Settings) *rig {
	t.Helper()
	m := newImages()
	r := &rig{t: t, images: m, runner: &runner{}, b: build.New(build.Config{Dir: t.TempDir()})}
	r.base = m.add("base", s, baseFiles...)
	return r
}

func (r *rig) request(commands ...string) build.Request {
	return build.Request{Images: r.images, Runner: r.runner, Scope: "account", Base: r.base, Commands: commands,
		Report: func(e build.Event) { r.events = append(r.events, e) }}
}

func (r *rig) build(req build.Request) (string, []string, error) {
	r.t.Helper()
	r.events = nil
	id, notices, err := r.b.Build(r.t.Context(), req)
	if r.images.open != 0 {
		r.t.Errorf("%d images are still open", r.images.open)
	}
	return id, notices, err
}

// must builds and returns the image.
func (r *rig) must(commands ...string) *memImage {
	r.t.Helper()
	id, _, err := r.build(r.request(commands...))
	if err != nil {
		r.t.Fatalf("building %q: %v", commands, err)
	}
	return r.images.get(id)
}

// kinds lists the kinds of events seen.
func (r *rig) kinds() []build.Kind {
	var k []build.Kind
	for _, e := range r.events {
		k = append(k, e.Kind)
	}
	return k
}

// problem wants err to be a Problem about the commands with code, whose sentence holds all of texts.
func problem(t *testing.T, err error, code string, texts ...string) {
	t.Helper()
	var p *sandbox.Problem
	if !errors.As(err, &p) {
		t.Fatalf("error is %v, want a Problem", err)
	}
	if p.Code != code || p.Field != "image.dockerfile_commands" {
		t.Errorf("problem is %s at %s, want %s: %s", p.Code, p.Field, code, p.Detail)
	}
	for _, text := range texts {
		if !strings.Contains(p.Detail, text) {
			t.Errorf("problem says %q, want it to hold %q", p.Detail, text)
		}
	}
}
