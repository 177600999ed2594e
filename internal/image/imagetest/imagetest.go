// Package imagetest makes small images of this machine's own programs, one with the GNU C library and one without any, and serves
// them from a registry on loopback. It is for tests only.
package imagetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Registry is a real registry that ends with the test.
type Registry struct {
	Host string // 127.0.0.1:PORT
}

// NewRegistry starts a registry.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return &Registry{Host: strings.TrimPrefix(srv.URL, "http://")}
}

// Push puts an image into the registry as repository ("base:1") and returns its reference.
func (r *Registry) Push(t testing.TB, repository string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.Host + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// File is a file of an image.
type File struct {
	Name string // without a slash at the beginning
	Mode fs.FileMode
	Data string
	Link string // target, of a symbolic link
	UID  int
}

// Layer makes a layer of files, in this order.
func Layer(t testing.TB, files ...File) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data)), Uid: f.UID, Gid: f.UID, ModTime: time.Unix(1700000000, 0), Typeflag: tar.TypeReg}
		switch {
		case f.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(f.Name, "/")+"/"
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		case f.Mode&fs.ModeNamedPipe != 0:
			h.Typeflag = tar.TypeFifo
		}
		if f.Mode&fs.ModeSetuid != 0 {
			h.Mode |= 0o4000
		}
		if f.Mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// Image makes an image of layers for this machine, with a configuration that change may alter.
func Image(t testing.TB, change func(*v1.Config), layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if change != nil {
		change(&cf.Config)
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// busyboxApplets are the programs of the image that Busybox makes, as far as this machine's busybox has them.
var busyboxApplets = strings.Fields("sh ash ls cat cp mv rm mkdir rmdir ln chmod chown touch echo printf true false test [ sleep date id whoami env " +
	"stat find grep sed awk sort uniq wc head tail cut tr tee xargs ps kill dd df du mount ping wget nc sha256sum md5sum tar gzip gunzip vi yes seq hostname uname timeout stty readlink")

// Busybox returns the layer of a small system without a C library: one static program under many names. It skips the test where this
// machine has none.
func Busybox(t testing.TB) v1.Layer {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		skip(t, "busybox (package busybox-static) is not installed")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := append(skeleton(), File{Name: "bin/busybox", Mode: 0o755, Data: string(data)})
	for _, applet := range busyboxApplets {
		files = append(files, File{Name: "bin/" + applet, Mode: 0o777, Link: "busybox"})
	}
	return Layer(t, append(files, File{Name: "etc/passwd", Mode: 0o644, Data: "root:x:0:0:root:/root:/bin/sh\nnode:x:1234:1234::/home/node:/bin/sh\n"},
		File{Name: "etc/group", Mode: 0o644, Data: "root:x:0:\nnode:x:1234:\n"})...)
}

func skeleton() []File {
	var files []File
	for _, dir := range strings.Fields("bin etc lib usr usr/bin usr/lib usr/local usr/local/bin var var/tmp root home") {
		files = append(files, File{Name: dir, Mode: fs.ModeDir | 0o755})
	}
	files = append(files, File{Name: "etc/nsswitch.conf", Mode: 0o644, Data: "hosts: files dns\n"})
	return append(files, File{Name: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777})
}

// glibcPrograms are what the image that Glibc makes has.
var glibcPrograms = strings.Fields("bash sh ls cat cp mv rm mkdir ln chmod chown touch echo printf true false sleep date id whoami env stat find grep sed " +
	"sort wc head tail cut tr dd df du sha256sum seq uname tee test mktemp readlink timeout stty")

var library = regexp.MustCompile(`(?:=> )?(/\S+) \(0x`)

// Glibc returns the layer of a small system with this machine's programs and their libraries. It skips the test where this machine's
// programs are linked to something else.
func Glibc(t testing.TB) v1.Layer {
	t.Helper()
	files := skeleton()
	have := map[string]bool{}
	add := func(path string) {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(real)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, File{Name: strings.TrimPrefix(path, "/"), Mode: 0o755, Data: string(data)})
	}
	for _, program := range glibcPrograms {
		path, err := exec.LookPath(program)
		if err != nil {
			continue
		}
		out, err := exec.CommandContext(t.Context(), "ldd", path).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("libc.so.6")) {
			skip(t, fmt.Sprintf("%s is not linked to the GNU C library: %s", path, out))
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			if !have[m[1]] {
				have[m[1]] = true
				add(m[1])
			}
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(real)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, File{Name: "bin/" + program, Mode: 0o755, Data: string(data)})
	}
	for lib := range have { // what is part of the C library, though none of these programs needs it
		for _, name := range []string{"libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"} {
			path := filepath.Join(filepath.Dir(lib), name)
			if _, err := os.Stat(path); err == nil && strings.HasPrefix(filepath.Base(lib), "libc.so") && !have[path] {
				add(path)
			}
		}
	}
	slices.SortStableFunc(files, func(a, b File) int { return strings.Count(a.Name, "/") - strings.Count(b.Name, "/") })
	return Layer(t, append(files, File{Name: "etc/passwd", Mode: 0o644, Data: "root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash\n"},
		File{Name: "etc/group", Mode: 0o644, Data: "root:x:0:\nnode:x:1000:\n"})...)
}

// skip skips the test, or fails it where everything must run.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("SANDLOT_MUST_RUN") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
