package image_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestAppend(t *testing.T) {
	s, dir := open(t)
	base, err := s.Append(t.Context(), "", bytes.NewReader(files(t, "base", noise(1, 100<<10))), func(set *image.Settings) {
		set.Env, set.User, set.Ports = []string{"A=1"}, "agent", []string{"80/tcp"}
	}, "FROM scratch")
	must(t, err)
	whole(t, dir, base)
	set, err := s.Append(t.Context(), base.ID, nil, func(set *image.Settings) {
		set.Env = append(set.Env, "B=2")
		set.Workdir, set.Labels, set.Volumes = "/src", map[string]string{"a": "b"}, []string{"/data"}
		set.Ports = append(set.Ports, "53/udp")
	}, "ENV B=2")
	must(t, err)
	want := image.Settings{Env: []string{"A=1", "B=2"}, User: "agent", Workdir: "/src", Labels: map[string]string{"a": "b"}, Volumes: []string{"/data"}, Ports: []string{"53/udp", "80/tcp"}}
	if !reflect.DeepEqual(set.Config, want) {
		t.Errorf("settings are %+v, want %+v", set.Config, want)
	}
	if set.ID == base.ID || set.Root != base.Root || len(set.Layers) != 1 {
		t.Errorf("changed settings made %+v of %+v", set, base)
	}
	if again, err := s.Get(t.Context(), base.ID); err != nil || !reflect.DeepEqual(again.Config, base.Config) {
		t.Errorf("the base has changed: %+v, %v", again, err)
	}
	snap := files(t, "new", noise(2, 100<<10))
	one, err := s.Append(t.Context(), set.ID, bytes.NewReader(snap), nil, "snapshot")
	must(t, err)
	before := len(left(t, dir))
	two, err := s.Append(t.Context(), set.ID, bytes.NewReader(snap), nil, "snapshot")
	must(t, err)
	if one.ID != two.ID || len(left(t, dir)) != before || len(one.Layers) != 2 || one.Layers[0] != base.Layers[0] || one.Root == set.Root {
		t.Errorf("the same layer on the same image made %s and %s, and %d files of %d", one.ID, two.ID, len(left(t, dir)), before)
	}

	_, err = s.Append(t.Context(), "sha256:"+strings.Repeat("0", 64), nil, nil, "")
	wantProblem(t, err, sandbox.ErrNotFound, "image_not_found", "")
	before = len(left(t, dir))
	if _, err := s.Append(t.Context(), set.ID, io.MultiReader(bytes.NewReader(snap[:1000]), failing{}), nil, ""); !errors.Is(err, errSender) {
		t.Errorf("error is %v", err)
	}
	_, err = s.Append(t.Context(), set.ID, nil, func(set *image.Settings) { set.User = strings.Repeat("x", 9<<20) }, "")
	wantProblem(t, err, sandbox.ErrInvalid, "bad_image", "")
	small, smallDir := open(t, func(c *image.Config) { c.MaxBytes = 150 << 10 })
	base, err = small.Append(t.Context(), "", bytes.NewReader(files(t, "base", noise(1, 100<<10))), nil, "")
	must(t, err)
	_, err = small.Append(t.Context(), base.ID, bytes.NewReader(files(t, "more", noise(2, 100<<10))), nil, "")
	wantProblem(t, err, sandbox.ErrInvalid, "image_too_big", "")
	must(t, small.Delete(t.Context(), base.ID))
	wantNothing(t, small, smallDir)
	if after := len(left(t, dir)); after != before {
		t.Errorf("failures left %d files, there were %d", after, before)
	}
}

// TestDelete: what others need stays, and what runs from a root has it.
func TestDelete(t *testing.T) {
	s, dir := open(t)
	base, err := s.Append(t.Context(), "", bytes.NewReader(files(t, "base", "b")), nil, "")
	must(t, err)
	child, err := s.Append(t.Context(), base.ID, bytes.NewReader(files(t, "child", "c")), nil, "")
	must(t, err)
	link := filepath.Join(dir, "..", "root.erofs")
	linked, err := s.Link(t.Context(), base.ID, link)
	must(t, err)
	want, err := os.ReadFile(linked.Root)
	must(t, err)
	must(t, s.Delete(t.Context(), base.ID))
	_, err = s.Get(t.Context(), base.ID)
	wantProblem(t, err, sandbox.ErrNotFound, "image_not_found", "")
	wantProblem(t, s.Delete(t.Context(), base.ID), sandbox.ErrNotFound, "image_not_found", "")
	if got, err := os.ReadFile(link); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the linked root has changed: %v", err)
	}
	must(t, os.Remove(child.Root))
	again, err := s.Get(t.Context(), child.ID)
	must(t, err)
	whole(t, dir, again)
	must(t, s.Delete(t.Context(), child.ID))
	wantNothing(t, s, dir)
	for _, id := range []string{"", "x", "sha256:", "sha256:../../x", "../x"} {
		_, err := s.Get(t.Context(), id)
		wantProblem(t, err, sandbox.ErrNotFound, "image_not_found", "")
	}
}

// TestGiveBack: an image that is of no use goes at once, with all that came with it, but never one that others have got or work with.
func TestGiveBack(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	shared := newLayer(t, "gzip", "shared", noise(1, 50<<10))
	ref := r.push(t, "one:1", newImage(t, v1.Config{User: "nobody-here"}, shared, newLayer(t, "gzip", "own", noise(2, 50<<10))))
	other := r.push(t, "two:1", newImage(t, v1.Config{}, shared))
	pull := func(ref string) image.Image {
		t.Helper()
		img, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
		must(t, err)
		return img
	}
	img := pull(ref)
	must(t, s.GiveBack(img.ID))
	wantNothing(t, s, dir)
	must(t, s.GiveBack(img.ID)) // it is gone

	two := pull(other)
	img = pull(ref)
	pull(ref)
	must(t, s.GiveBack(img.ID))
	whole(t, dir, img) // the other who pulled it has it
	var archive bytes.Buffer
	must(t, s.Export(t.Context(), img.ID, image.OCI, "", &archive))
	_, err := s.Import(t.Context(), &archive, nil)
	must(t, err)
	must(t, s.GiveBack(img.ID))
	whole(t, dir, img)
	must(t, s.GiveBack(img.ID))
	if _, err := s.Inspect(t.Context(), img.ID); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("nobody has it any more: %v", err)
	}
	whole(t, dir, two)

	// What an earlier process has pulled may be anybody's.
	must(t, s.Close())
	s, err = image.Open(image.Config{Dir: dir, Transport: http.DefaultTransport, Platform: &platform})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	pull(other)
	must(t, s.GiveBack(two.ID))
	whole(t, dir, two)
}

func TestCollect(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	var ids []string
	for i := range 3 {
		img, err := s.Append(t.Context(), "", bytes.NewReader(files(t, "a", noise(i, 100<<10))), nil, "")
		must(t, err)
		ids = append(ids, img.ID)
	}
	// Blobs of a pull that was broken off.
	img := newImage(t, v1.Config{}, newLayer(t, "gzip", "a", "a"), newLayer(t, "gzip", "b", "b"))
	ref := r.push(t, "app", img)
	ctx, cancel := context.WithCancel(t.Context())
	r.on(onPath("/blobs/"+digestOfLayer(t, img, 1), func(_ http.ResponseWriter, r *http.Request) {
		for { // until the other one is there
			if _, err := os.Stat(filepath.Join(dir, "blobs", "sha256", digestOfLayer(t, img, 0)[7:])); err == nil {
				break
			}
			runtime.Gosched()
		}
		cancel()
		<-r.Context().Done()
	}))
	if _, _, err := s.Pull(ctx, ref, image.Auth{}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	all := len(left(t, dir))
	none := func(string) bool { return false }

	freed, err := s.Collect(t.Context(), none, time.Hour)
	if err != nil || freed != 0 || len(left(t, dir)) != all {
		t.Errorf("what is young was collected: %d, %v", freed, err)
	}
	old := time.Now().Add(-2 * time.Hour)
	for _, name := range left(t, dir) {
		must(t, os.Chtimes(filepath.Join(dir, name), old, old))
	}
	must(t, s.Close())
	s, _ = open(t, func(c *image.Config) { c.Dir = dir }) // when an image was last used is known after a restart
	_, err = s.Get(t.Context(), ids[1])
	must(t, err)
	freed, err = s.Collect(t.Context(), func(id string) bool { return id == ids[0] }, time.Hour)
	must(t, err)
	list, err := s.List(t.Context())
	must(t, err)
	if len(list) != 2 || freed < 100<<10 || len(left(t, dir)) != 10 {
		t.Errorf("%d images are left, %d bytes freed, files: %q", len(list), freed, left(t, dir))
	}
	_, err = s.Collect(t.Context(), none, 0)
	must(t, err)
	wantNothing(t, s, dir)
}

// TestCollectDisturbsNobody collects everything all the time while images are pulled, made, and used.
func TestCollectDisturbsNobody(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	var refs []string
	for i := range 4 {
		refs = append(refs, r.push(t, fmt.Sprintf("app:%d", i), newImage(t, v1.Config{}, newLayer(t, "gzip", "base", "b"), newLayer(t, "zstd", "a", noise(i, 50<<10)))))
	}
	stop := make(chan struct{})
	var collector, workers sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.Collect(t.Context(), func(string) bool { return false }, 0); err != nil {
				t.Error(err)
			}
		}
	})
	for i, ref := range refs {
		workers.Go(func() {
			for n := range 5 {
				img, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
				if err != nil {
					t.Error(err)
					continue
				}
				_, err = s.Append(t.Context(), img.ID, bytes.NewReader(files(t, "x", noise(i*100+n, 1000))), nil, "")
				if err != nil && !errors.Is(err, sandbox.ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	collector.Wait()
	_, err := s.Collect(t.Context(), func(string) bool { return false }, 0)
	must(t, err)
	wantNothing(t, s, dir)
}

func TestDamagedLayer(t *testing.T) {
	s, _ := open(t)
	img, err := s.Append(t.Context(), "", bytes.NewReader(files(t, "base", noise(1, 100<<10))), nil, "")
	must(t, err)
	must(t, os.Remove(img.Root))
	blob := filepath.Join(filepath.Dir(filepath.Dir(img.Root)), "blobs", "sha256", img.Layers[0].Digest[7:])
	data, err := os.ReadFile(blob)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.WriteFile(blob, data, 0o600))
	_, err = s.Get(t.Context(), img.ID)
	wantProblem(t, err, sandbox.ErrUnavailable, "image_damaged", "", img.Layers[0].Digest)
}

func TestClose(t *testing.T) {
	r := newRegistry(t)
	s, dir := open(t)
	img := newImage(t, v1.Config{}, newLayer(t, "gzip", "a", "a"))
	ref := r.push(t, "app", img)
	asked := make(chan struct{})
	r.on(onPath("/blobs/"+digestOfLayer(t, img, 0), func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}))
	failed := make(chan error, 1)
	go func() {
		_, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
		failed <- err
	}()
	<-asked
	must(t, s.Close())
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("the pull under way got %v", err)
	}
	if _, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil); err == nil {
		t.Error("a closed store pulls")
	}
	s, _ = open(t, func(c *image.Config) { c.Dir = dir })
	r.on(nil)
	_, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
	must(t, err)
}

const killEnv = "SANDLOT_TEST_IMAGE_PULL"

// TestKill kills a process with SIGKILL at each step of a pull. What is on disk is complete, what was half done goes, and the pull goes on.
func TestKill(t *testing.T) {
	if at := os.Getenv(killEnv); at != "" {
		dir, ref, _ := strings.Cut(at, " ")
		s, _ := open(t, func(c *image.Config) { c.Dir = dir })
		_, _, err := s.Pull(t.Context(), ref, image.Auth{}, func(p image.Progress) { fmt.Println("PROGRESS", p.Phase, p.Layer) })
		must(t, err)
		return
	}
	r := newRegistry(t)
	var layers []v1.Layer
	for i := range 6 { // more than are fetched at once, so that one is complete when the last is asked for
		layers = append(layers, newLayer(t, "gzip", fmt.Sprintf("f%d", i), noise(i, 64<<10)))
	}
	img := newImage(t, settings, layers...)
	ref := r.push(t, "app:1", img)
	dir := filepath.Join(t.TempDir(), "images")
	blob := func(i int) string { return "/blobs/" + digestOfLayer(t, img, i) }
	for _, step := range []string{"/manifests/1", "/blobs/" + idOf(t, img), blob(0), blob(3), blob(4), blob(5), "unpack"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), killEnv+"="+dir+" "+ref)
		out, err := cmd.StdoutPipe()
		must(t, err)
		asked := make(chan struct{}, 1)
		r.on(onPathOr(step, func(w http.ResponseWriter, next func()) {
			_, _ = w.Write(nil)
			asked <- struct{}{}
			<-t.Context().Done() // never answered
		}))
		must(t, cmd.Start())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "PROGRESS unpack") && step == "unpack" {
					asked <- struct{}{}
				}
			}
		}()
		select {
		case <-asked:
		case <-ended:
			t.Fatalf("the pull ended before %s", step)
		}
		must(t, cmd.Process.Kill())
		<-ended
		_ = cmd.Wait()
		for _, name := range left(t, filepath.Join(dir, "blobs", "sha256")) {
			if data, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", name)); err != nil || hashOf(data).Hex != name {
				t.Errorf("killed at %s: blob %s is not whole", step, name)
			}
		}
	}
	r.on(nil)
	s, _ := open(t, func(c *image.Config) { c.Dir = dir })
	got, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil)
	must(t, err)
	whole(t, dir, got)
	if n := r.asked("GET .*/blobs/"); n > 2 {
		t.Errorf("blobs were fetched %d times though they were here", n)
	}
	must(t, s.Delete(t.Context(), got.ID))
	wantNothing(t, s, dir)
}

// TestDiskFull fills the disk in every way of adding an image. Nothing stays, and with more room it works.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		if os.Getenv("SANDLOT_MUST_RUN") != "" {
			t.Fatal("must not be skipped: mounting a small disk takes root")
		}
		t.Skip("mounting a small disk takes root")
	}
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	r := newRegistry(t)
	s, err := image.Open(image.Config{Dir: dir, Platform: &platform})
	must(t, err)
	defer s.Close()
	packed := strings.Repeat(noise(1, 16<<10), 200) // 3 MB in a few KB
	big := newImage(t, v1.Config{}, newLayer(t, "gzip", "a", noise(2, 700<<10)), newLayer(t, "gzip", "b", noise(3, 700<<10)))
	wide := newImage(t, v1.Config{}, newLayer(t, "gzip", "a", packed))
	ref, wideRef := r.push(t, "big", big), r.push(t, "wide", wide)
	pull := func(ref string) func() error {
		return func() error { _, _, err := s.Pull(t.Context(), ref, image.Auth{}, nil); return err }
	}
	load := func(img v1.Image) func() error {
		return func() error {
			_, err := s.Import(t.Context(), bytes.NewReader(archive(t, ociEntries(t, nil, img)...)), nil)
			return err
		}
	}
	appended := func(content string) func() error {
		return func() error {
			_, err := s.Append(t.Context(), "", bytes.NewReader(files(t, "a", content)), nil, "")
			return err
		}
	}
	ways := map[string]func() error{"download": pull(ref), "root": pull(wideRef), "archive": load(big), "root of an archive": load(wide),
		"layer": appended(noise(4, 2<<20)), "root of a layer": appended(packed)}
	for name, way := range ways {
		wantProblem(t, way(), sandbox.ErrUnavailable, "disk_full", "")
		if t.Failed() {
			t.Fatal(name)
		}
		wantNothing(t, s, dir)
	}
	must(t, unix.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"))
	for name, way := range ways {
		if err := way(); err != nil {
			t.Errorf("%s with room: %v", name, err)
		}
	}
}
