package gateway_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/gateway"
	"github.com/sandlot-dev/sandlot/internal/guest"
)

// programs is a world in which real programs run with the environment that a sandbox's processes get, and nothing else that would
// help them: no proxy of their own settings, no names but through the proxy.
type programs struct {
	*world
	home string
	env  []string
}

// Every name below example.com is the same server, on both ports.
func newPrograms(t *testing.T, h http.Handler) *programs {
	t.Helper()
	plain := httptest.NewServer(h)
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(h)
	t.Cleanup(secure.Close)
	w := newWorld(t, plain.Listener.Addr().String(), func(cfg *gateway.Config) {
		dial := cfg.Egress.Dial
		other := &world{upstream: secure.Listener.Addr().String()}
		cfg.Egress.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasSuffix(address, ":443") {
				return other.connect(ctx, network, address)
			}
			return dial(ctx, network, address)
		}
	})
	for _, name := range []string{"www", "git", "registry", "pypi", "deb"} {
		w.names[name+".example.com"] = []string{publicIP}
	}
	w.names["blocked.example.com"] = []string{publicIP}
	w.set(gateway.Policy{Mode: "egress", Allow: []string{"www.example.com", "git.example.com", "registry.example.com", "pypi.example.com", "deb.example.com"}}, nil)
	p := &programs{world: w, home: t.TempDir()}
	ca := filepath.Join(p.home, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	p.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.home, "LANG=C.UTF-8", "TMPDIR=" + p.home, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"CURL_CA_BUNDLE=" + ca, "GIT_SSL_CAINFO=" + ca, "NODE_EXTRA_CA_CERTS=" + ca, "PIP_CERT=" + ca, "SSL_CERT_FILE=" + ca} // that the test's server is trusted
	for name, value := range w.gw.Env(box) {
		p.env = append(p.env, name+"="+strings.ReplaceAll(value, guest.Gateway, w.addr))
	}
	return p
}

// run runs a program that this machine must have.
func (p *programs) run(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		if os.Getenv("SANDLOT_MUST_RUN") != "" {
			t.Fatal("must not be skipped: ", err)
		}
		t.Skip(err)
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = p.env, p.home
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestProgramCurl(t *testing.T) {
	t.Parallel()
	p := newPrograms(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s over %v", r.Host, r.TLS != nil) }))
	for u, want := range map[string]string{"http://www.example.com/": "www.example.com over false", "https://www.example.com/": "www.example.com over true"} {
		if out, err := p.run(t, "curl", "-sS", u); err != nil || out != want {
			t.Errorf("%s: %s, %v", u, out, err)
		}
	}
	if out, err := p.run(t, "curl", "-sS", "http://blocked.example.com/"); err != nil || !strings.Contains(out, "not on its list of allowed hosts") {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := p.run(t, "curl", "-sS", "https://blocked.example.com/"); err == nil || !strings.Contains(out, "403") {
		t.Errorf("%s, %v", out, err)
	}
	// A server inside the sandbox is reached directly.
	inside := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "inside") })
	if out, err := p.run(t, "curl", "-sS", "http://"+inside); err != nil || out != "inside" {
		t.Errorf("%s, %v", out, err)
	}
}

func TestProgramGit(t *testing.T) {
	t.Parallel()
	repos := t.TempDir()
	core, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Skip(err)
	}
	p := newPrograms(t, &cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(core)), "git-http-backend"),
		Env: []string{"GIT_PROJECT_ROOT=" + repos, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=somebody"}})
	for _, argv := range [][]string{
		{"git", "init", "-q", "--bare", filepath.Join(repos, "a.git")},
		{"git", "clone", "-q", "https://git.example.com/a.git", "one"},
		{"git", "-C", "one", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "through the proxy"},
		{"git", "-C", "one", "push", "-q", "origin", "HEAD:main"},
		{"git", "clone", "-q", "-b", "main", "http://git.example.com/a.git", "two"},
	} {
		if out, err := p.run(t, argv...); err != nil {
			t.Fatalf("%v: %s, %v", argv, out, err)
		}
	}
	if out, err := p.run(t, "git", "-C", "two", "log", "--format=%s"); err != nil || out != "through the proxy\n" {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := p.run(t, "git", "clone", "-q", "https://blocked.example.com/a.git", "three"); err == nil || !strings.Contains(out, "403") {
		t.Errorf("%s, %v", out, err)
	}
}

func TestProgramNPM(t *testing.T) {
	t.Parallel()
	var pkg bytes.Buffer
	zw := gzip.NewWriter(&pkg)
	tw := tar.NewWriter(zw)
	for name, content := range map[string]string{"package/package.json": `{"name":"tiny","version":"1.0.0","main":"i.js"}`, "package/i.js": "module.exports = 42\n"} {
		_ = tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
		_, _ = tw.Write([]byte(content))
	}
	_, _ = tw.Close(), zw.Close()
	p := newPrograms(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/tiny":
			_ = json.NewEncoder(w).Encode(map[string]any{"name": "tiny", "dist-tags": map[string]string{"latest": "1.0.0"}, "versions": map[string]any{
				"1.0.0": map[string]any{"name": "tiny", "version": "1.0.0", "dist": map[string]string{"tarball": "https://registry.example.com/tiny.tgz"}}}})
		case "/tiny.tgz":
			_, _ = w.Write(pkg.Bytes())
		default:
			http.NotFound(w, r)
		}
	}))
	for i, registry := range []string{"https://registry.example.com/", "http://registry.example.com/"} {
		dir := fmt.Sprint("p", i)
		if out, err := p.run(t, "npm", "install", "--registry", registry, "--cache", dir+"-cache", "--prefix", dir, "--no-audit", "--no-fund", "tiny"); err != nil {
			t.Fatalf("%s: %s, %v", registry, out, err)
		}
		if out, err := p.run(t, "node", "-p", "require('./"+dir+"/node_modules/tiny')"); err != nil || out != "42\n" {
			t.Errorf("%s, %v", out, err)
		}
	}
}

func TestProgramPip(t *testing.T) {
	t.Parallel()
	var wheel bytes.Buffer
	zw := zip.NewWriter(&wheel)
	record := ""
	for _, f := range [][2]string{
		{"tiny.py", "answer = 42\n"},
		{"tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"},
		{"tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
	} {
		record += f[0] + ",,\n"
		w, err := zw.Create(f[0])
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(f[1]))
	}
	w, err := zw.Create("tiny-1.0.dist-info/RECORD")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte(record))
	_ = zw.Close()
	const name = "tiny-1.0-py3-none-any.whl"
	p := newPrograms(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/simple/tiny/":
			w.Header().Set("Content-Type", "text/html")
			_, _ = fmt.Fprintf(w, `<a href="/%s">%s</a>`, name, name)
		case "/" + name:
			_, _ = w.Write(wheel.Bytes())
		default:
			http.NotFound(w, r)
		}
	}))
	python := "/usr/bin/python3" // one that needs nothing of the home directory
	if out, err := p.run(t, python, "-m", "pip", "--version"); err != nil {
		if os.Getenv("SANDLOT_MUST_RUN") != "" {
			t.Fatal("must not be skipped: ", out, err)
		}
		t.Skip(out, err)
	}
	if out, err := p.run(t, python, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--index-url", "https://pypi.example.com/simple/",
		"--target", "lib", "tiny"); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if out, err := p.run(t, python, "-c", "import sys; sys.path.insert(0, 'lib'); import tiny; print(tiny.answer)"); err != nil || out != "42\n" {
		t.Errorf("%s, %v", out, err)
	}
}

func TestProgramAPT(t *testing.T) {
	t.Parallel()
	packages := "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b>\nFilename: tiny.deb\nSize: 4\n" +
		fmt.Sprintf("SHA256: %x\nDescription: tiny\n\n", sha256.Sum256([]byte("tiny")))
	p := newPrograms(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path.Clean(r.URL.Path) { // it asks for /./Packages
		case "/Packages":
			_, _ = fmt.Fprint(w, packages)
		case "/tiny.deb":
			_, _ = fmt.Fprint(w, "tiny")
		default:
			http.NotFound(w, r)
		}
	}))
	etc := filepath.Join(p.home, "etc/apt")
	for _, dir := range []string{etc, filepath.Join(p.home, "var/lib/dpkg"), filepath.Join(p.home, "var/lib/apt/lists/partial"), filepath.Join(p.home, "var/cache/apt/archives/partial")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{
		"etc/apt/sources.list": "deb [trusted=yes] http://deb.example.com/ ./\n", "var/lib/dpkg/status": "",
		"apt.conf": fmt.Sprintf("Dir %q;\nDir::State::status %q;\nAPT::Sandbox::User \"\";\n", p.home, filepath.Join(p.home, "var/lib/dpkg/status")),
	} {
		if err := os.WriteFile(filepath.Join(p.home, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.env = append(p.env, "APT_CONFIG="+filepath.Join(p.home, "apt.conf"))
	if out, err := p.run(t, "apt-get", "update"); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if out, err := p.run(t, "apt-get", "download", "tiny"); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if b, err := os.ReadFile(filepath.Join(p.home, "tiny_1.0_all.deb")); err != nil || string(b) != "tiny" {
		t.Errorf("%q, %v", b, err)
	}
}
