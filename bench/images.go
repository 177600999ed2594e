package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// images is a registry on loopback with images of this machine's own programs.
type images struct {
	srv  *httptest.Server
	host string
}

func newImages() *images {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	return &images{srv: srv, host: strings.TrimPrefix(srv.URL, "http://")}
}

func (i *images) close() { i.srv.Close() }

// push makes an image of one layer, which is the tar file, and returns its reference.
func (i *images) push(ctx context.Context, repository string, open tarball.Opener) (string, error) {
	layer, err := tarball.LayerFromOpener(open)
	if err != nil {
		return "", err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return "", err
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: must(img.ConfigFile()).RootFS,
		Config: v1.Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}})
	if err != nil {
		return "", err
	}
	ref, err := name.ParseReference(i.host + "/" + repository)
	if err != nil {
		return "", err
	}
	return ref.String(), remote.Write(ref, img, remote.WithContext(ctx))
}

func must(cf *v1.ConfigFile, err error) *v1.ConfigFile {
	if err != nil { // it is of an image in memory
		panic(err)
	}
	return cf
}

// applets are the names under which the image busybox has its one program.
var applets = strings.Fields("sh ls cat cp mv rm mkdir ln echo true false sleep find grep wc tar")

// busybox is a small image: one static program.
func (i *images) busybox(ctx context.Context) (string, error) {
	var b bytes.Buffer
	if err := writeBusybox(&b); err != nil {
		return "", fmt.Errorf("making an image of busybox (package busybox-static): %w", err)
	}
	return i.push(ctx, "busybox:1", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

func writeBusybox(out io.Writer) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	for _, applet := range applets {
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}); err != nil {
			return err
		}
	}
	return w.Close()
}

// Where the image tools has what is worked on.
const benchDir = "/srv/bench"

// What that is: a repository of so many files, and so many packages of npm with so many files each.
const (
	repoFiles    = 1500
	packages     = 25
	packageFiles = 40
)

// tools is an image with git, node and npm of this machine, a repository to clone and packages to install. It returns the layer's file too.
func (i *images) tools(ctx context.Context, dir string) (ref, layer string, err error) {
	tree := filepath.Join(dir, "tools")
	if err := makeWork(ctx, filepath.Join(tree, benchDir)); err != nil {
		return "", "", fmt.Errorf("making a repository and packages: %w", err)
	}
	files, err := toolFiles(ctx)
	if err != nil {
		return "", "", err
	}
	for _, link := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := os.Symlink("usr/"+link, filepath.Join(tree, link)); err != nil {
			return "", "", err
		}
	}
	layer = filepath.Join(dir, "tools.tar")
	for _, args := range [][]string{
		{"-cf", layer, "--owner=0", "--group=0", "-C", tree, "."},
		append([]string{"-rf", layer, "--owner=0", "--group=0", "--dereference", "-C", "/"}, files...),
	} {
		if out, err := exec.CommandContext(ctx, "tar", args...).CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("packing the image of tools: %w: %s", err, out)
		}
	}
	ref, err = i.push(ctx, "tools:1", func() (io.ReadCloser, error) { return os.Open(layer) })
	return ref, layer, err
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// toolFiles are the programs of the image tools and all that they need, relative to /.
func toolFiles(ctx context.Context) ([]string, error) {
	var files []string
	add := func(path string) {
		// What this machine has behind links as /lib is in the image where it really is.
		if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(dir, filepath.Base(path))
		}
		if path = strings.TrimPrefix(path, "/"); !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	programs := strings.Fields("sh env true sleep find wc rm mkdir cp git node")
	for _, program := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			return nil, err
		}
		add(path)
		out, err := exec.CommandContext(ctx, "ldd", path).Output()
		if err != nil {
			return nil, fmt.Errorf("asking for the libraries of %s: %w", program, err)
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			add(m[1])
		}
	}
	npm, err := exec.LookPath("npm")
	if err == nil {
		npm, err = filepath.EvalSymlinks(npm)
	}
	if err != nil {
		return nil, err
	}
	add(filepath.Dir(filepath.Dir(npm))) // …/npm/bin/npm-cli.js
	out, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return nil, err
	}
	add(strings.TrimSpace(string(out)))
	if _, err := os.Stat("/usr/share/nodejs"); err == nil { // where Debian's own npm has its parts
		add("/usr/share/nodejs")
	}
	return files, nil
}

// makeWork makes what is worked on in dir: repo.git, and app/ with packages beside it that it depends on.
func makeWork(ctx context.Context, dir string) error {
	app := filepath.Join(dir, "app")
	if err := os.MkdirAll(app, 0o755); err != nil {
		return err
	}
	var deps []string
	for n := range packages {
		name := fmt.Sprintf("part-%d", n)
		if err := writePackage(filepath.Join(app, name+".tgz.d"), name); err != nil {
			return err
		}
		tgz := filepath.Join(app, name+".tgz")
		out, err := exec.CommandContext(ctx, "tar", "-czf", tgz, "-C", filepath.Join(app, name+".tgz.d"), "package").CombinedOutput()
		if err != nil {
			return fmt.Errorf("packing %s: %w: %s", name, err, out)
		}
		if err := os.RemoveAll(tgz + ".d"); err != nil {
			return err
		}
		deps = append(deps, fmt.Sprintf("%q: \"file:%s.tgz\"", name, name))
	}
	manifest := fmt.Sprintf(`{"name": "app", "version": "1.0.0", "private": true, "dependencies": {%s}}`, strings.Join(deps, ", "))
	if err := os.WriteFile(filepath.Join(app, "package.json"), []byte(manifest), 0o644); err != nil {
		return err
	}
	work := dir + ".work"
	for n := range repoFiles {
		path := filepath.Join(work, fmt.Sprintf("dir%d/sub%d/file%d.txt", n%15, n%60, n))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text(n), 0o644)); err != nil {
			return err
		}
	}
	defer os.RemoveAll(work)
	for _, args := range [][]string{
		{"init", "-q", work}, {"-C", work, "add", "."},
		{"-C", work, "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "all"},
		{"clone", "-q", "--bare", work, filepath.Join(dir, "repo.git")},
	} {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GIT_CONFIG_NOSYSTEM=1", "HOME=" + dir}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("git %v: %w: %s", args, err, out)
		}
	}
	return nil
}

func writePackage(dir, name string) error {
	dir = filepath.Join(dir, "package")
	if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o755); err != nil {
		return err
	}
	err := os.WriteFile(filepath.Join(dir, "package.json"), fmt.Appendf(nil, `{"name": %q, "version": "1.0.0"}`, name), 0o644)
	for n := range packageFiles {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "lib", fmt.Sprintf("m%d.js", n)), text(n), 0o644))
	}
	return err
}

// text is a file of a few kilobytes, another for each n.
func text(n int) []byte {
	var b bytes.Buffer
	for line := range 60 + n%50 {
		fmt.Fprintf(&b, "// line %d of file %d: %x\n", line, n, (line+1)*(n+7)*2654435761)
	}
	return b.Bytes()
}
