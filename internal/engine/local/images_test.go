package local_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/enginetest"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/image/imagetest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// shop is an engine and a registry with the test's images.
type shop struct {
	*local.Engine
	dir              string
	reg              *imagetest.Registry
	glibc, busybox   string // references
	glibcL, busyboxL v1.Layer
}

func newShop(t *testing.T) *shop {
	t.Helper()
	dir := workDir(t)
	home := filepath.Join(dir, "local")
	before := traces(t, home)
	t.Cleanup(func() {
		for trace := range traces(t, home) {
			if !before[trace] {
				t.Errorf("left behind: %s", trace)
			}
		}
	})
	s := &shop{reg: imagetest.NewRegistry(t), glibcL: imagetest.Glibc(t), busyboxL: imagetest.Busybox(t), dir: dir}
	s.glibc = s.reg.Push(t, "glibc:1", imagetest.Image(t, nil, s.glibcL))
	s.busybox = s.reg.Push(t, "busybox:1", imagetest.Image(t, func(c *v1.Config) {
		c.Env, c.User, c.WorkingDir = append(c.Env, "FROM_IMAGE=yes"), "node", "/srv"
		c.Entrypoint, c.Cmd = []string{"/bin/sh", "-c"}, []string{"sleep 1"}
	}, s.busyboxL))
	cfg := config(t, dir)
	if toolkit := os.Getenv("SANDLOT_TEST_CLAUDE"); toolkit != "" {
		cfg.Mounts = []local.Mount{{Source: filepath.Dir(filepath.Dir(toolkit)), Target: "/opt/sandlot/claude"}}
	}
	s.Engine = open(t, cfg)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// prepare makes an image ready and returns a spec of a sandbox of it.
func (s *shop) prepare(t *testing.T, img sandbox.Image) sandbox.Spec {
	t.Helper()
	p, err := s.PrepareImage(t.Context(), engine.ImageRequest{Image: img, Network: spec().Network}, func(p engine.ImageProgress) { t.Logf("%+v", p) })
	if err != nil {
		t.Fatal(err)
	}
	sp := spec()
	sp.Image = p.Image
	return sp
}

// start makes a sandbox that ends with the test and connects to it.
func (s *shop) start(t *testing.T, sp sandbox.Spec) (engine.Ref, *guest.Client) {
	t.Helper()
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := s.Destroy(ctx, ref); err != nil {
			t.Error(err)
		}
	})
	if _, err := s.Create(t.Context(), ref, sp); err != nil {
		t.Fatal(err)
	}
	return ref, connect(t, s.Engine, ref)
}

// tell runs a shell script and returns what it wrote, or fails the test.
func tell(t *testing.T, c *guest.Client, user, script string) string {
	t.Helper()
	id := sandbox.NewID("run_")
	if _, err := c.Start(t.Context(), guest.Command{ID: id, User: user, Argv: []string{"sh", "-c", script}}); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	var out bytes.Buffer
	for f, err := range c.Output(t.Context(), id, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == guest.Stdout || f.Kind == guest.Stderr {
			out.Write(f.Data)
		}
	}
	run, err := c.Wait(t.Context(), id)
	if err != nil || run.Code == nil || *run.Code != 0 {
		t.Fatalf("%s: %+v, %v: %s", script, run, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

// TestContractOnImages runs the promises that depend on the root file system on two images: TestContract has run them on the host's.
func TestContractOnImages(t *testing.T) {
	for name, ref := range map[string]func(*shop) string{"glibc": func(s *shop) string { return s.glibc }, "busybox": func(s *shop) string { return s.busybox }} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			sp := s.prepare(t, sandbox.Image{Source: ref(s)})
			h := harness(local.Config{})
			h.Open = func(*testing.T) engine.Engine { return unclosed{s.Engine} }
			h.Spec = func(*testing.T) sandbox.Spec {
				fresh := spec()
				fresh.Image = sp.Image
				return fresh
			}
			enginetest.RunOnImage(t, h)
		})
	}
}

// unclosed is an engine that whoever made it closes.
type unclosed struct{ *local.Engine }

func (unclosed) Close() error { return nil }

func TestImagesRun(t *testing.T) {
	s := newShop(t)
	single := s.Capabilities().AgentIsRoot
	for name, tc := range map[string]struct{ ref, who string }{
		"glibc":   {s.glibc, "1000 1000"},
		"busybox": {s.busybox, "1234 1234"},
	} {
		t.Run(name, func(t *testing.T) {
			sp := s.prepare(t, sandbox.Image{Source: tc.ref})
			_, c := s.start(t, sp)
			want := tc.who
			if single {
				want = "0 0"
			}
			if got := tell(t, c, "", "echo $(id -u) $(id -g)"); got != want {
				t.Errorf("its user is %q, want %q", got, want)
			}
			if got := tell(t, c, "", "echo kept > /workspace/file && cat /workspace/file && cat /etc/hostname"); got != "kept\nsandbox" {
				t.Errorf("volume and hostname: %q", got)
			}
			if got := tell(t, c, "root", "echo new > /etc/new && rm /etc/group && ls /etc/new && ls /etc/group 2>/dev/null || echo gone"); got != "/etc/new\ngone" {
				t.Errorf("its root can't be written to: %q", got)
			}
			if got := tell(t, c, "", "ls /usr/share 2>/dev/null | wc -l"); got != "0" {
				t.Errorf("this machine's programs are to be seen: %q", got)
			}
			if os.Getenv("SANDLOT_TEST_CLAUDE") != "" {
				if got := tell(t, c, "", "HOME=/workspace /opt/sandlot/claude/bin/claude --version"); !strings.Contains(got, "Claude Code") {
					t.Errorf("the CLI says %q", got)
				}
			}
		})
	}
	sp := s.prepare(t, sandbox.Image{Source: s.busybox})
	if got := sp.Image.Settings; got.Env["FROM_IMAGE"] != "yes" || got.User != "node" || got.Agent != "1234:1234" || got.Workdir != "/srv" ||
		!slices.Equal(got.Entrypoint, []string{"/bin/sh", "-c"}) || !slices.Equal(got.Cmd, []string{"sleep 1"}) {
		t.Errorf("the image's settings are %+v", got)
	}
}

// TestVolumesOfImages: a VOLUME is a directory, as with Docker: what the image has there stays as it is, and what it lacks is root's.
func TestVolumesOfImages(t *testing.T) {
	s := newShop(t)
	ref := s.reg.Push(t, "volumes:1", imagetest.Image(t, func(c *v1.Config) {
		c.Volumes = map[string]struct{}{"/kept": {}, "/new/deep/": {}, "relative": {}, "/via/x": {}, "/workspace/inner": {}, guest.SocketDir + "/" + guest.SocketName: {}}
	}, s.busyboxL, imagetest.Layer(t, imagetest.File{Name: "kept", Mode: fs.ModeDir | 0o750, UID: 1234},
		imagetest.File{Name: "kept/file", Mode: 0o600, UID: 1234, Data: "from the image\n"}, imagetest.File{Name: "via", Link: "/real/place"})))
	sp := s.prepare(t, sandbox.Image{Source: ref, Commands: []string{"RUN test ! -e /new", "VOLUME /by/command /kept"}})
	single := s.Capabilities().AgentIsRoot
	check := func(c *guest.Client) {
		t.Helper()
		owner := "1234 1234"
		if single {
			owner = "0 0"
		}
		want := "750 " + owner + "\n755 0 0\n755 0 0\n755 0 0\n755 0 0\nfrom the image\nnone"
		if got := tell(t, c, "root", "stat -c '%a %u %g' /kept /new/deep /relative /real/place/x /by/command; cat /kept/file; ls /workspace/inner 2>/dev/null || echo none"); got != want {
			t.Errorf("the volumes are\n%s\nwant\n%s", got, want)
		}
	}
	first, c := s.start(t, sp)
	check(c)
	tell(t, c, "root", "rmdir /new/deep && echo more > /kept/more")
	snap, err := s.Snapshot(t.Context(), first, sp)
	if err != nil {
		t.Fatal(err)
	}
	again := spec()
	again.Image = snap.Image
	_, c = s.start(t, again)
	check(c)
	if got := tell(t, c, "root", "cat /kept/more"); got != "more" {
		t.Errorf("what was written to a volume of the image is %q in a snapshot", got)
	}

	blocked := s.reg.Push(t, "blocked:1", imagetest.Image(t, func(c *v1.Config) { c.Volumes = map[string]struct{}{"/bin/busybox": {}} }, s.busyboxL))
	sp = s.prepare(t, sandbox.Image{Source: blocked})
	_, err = s.Create(t.Context(), engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}, sp)
	if p := (*sandbox.Problem)(nil); !errors.As(err, &p) || p.Code != "unsuitable_image" || !strings.Contains(p.Detail, "/bin/busybox") {
		t.Errorf("a volume where the image has a file: %v", err)
	}
}

func TestDockerfileCommandsRun(t *testing.T) {
	s := newShop(t)
	var log []string
	build := func(img sandbox.Image, secrets map[string]string) (engine.Prepared, error) {
		log = nil
		return s.PrepareImage(t.Context(), engine.ImageRequest{Image: img, Secrets: secrets, Network: spec().Network}, func(p engine.ImageProgress) { log = append(log, p.Text) })
	}
	want := sandbox.Image{Source: s.glibc, Commands: []string{
		"ARG WHO=world", "ENV GREETING=hello", "WORKDIR /app", `RUN echo "$GREETING $WHO" > greeting && chmod 640 greeting && rm /etc/nsswitch.conf && echo said-aloud`,
		`RUN ["/bin/bash", "-c", "test -n \"$TOKEN\" && echo ${#TOKEN} > /app/length"]`,
		"COPY --from=" + s.busybox + " --chown=node /bin/busybox /usr/local/bin/", "USER node", `ENTRYPOINT ["/bin/bash"]`, "LABEL a=b",
	}, BuildSecrets: []string{"s"}}
	p, err := build(want, map[string]string{"TOKEN": "hunter2-hunter2"})
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(log, "\n"))
	}
	if !slices.Contains(log, "said-aloud") || strings.Contains(strings.Join(log, "\n"), "hunter2") {
		t.Errorf("the log is %q", log)
	}
	sp := spec()
	sp.Image = p.Image
	_, c := s.start(t, sp)
	if out := tell(t, c, "", "HOME=/tmp /opt/sandlot/claude/bin/claude --version || test ! -e /opt/sandlot/claude"); os.Getenv("SANDLOT_TEST_CLAUDE") != "" && !strings.Contains(out, "Claude Code") {
		t.Errorf("the CLI in a built image says %q", out)
	}
	if got := tell(t, c, "root", "cat /app/greeting /app/length; stat -c '%a %u' /app/greeting /usr/local/bin/busybox; ls /etc/nsswitch.conf /proc/1/x 2>/dev/null; echo $(whoami)"); got !=
		"hello world\n15\n640 0\n755 1000\nroot" && !s.Capabilities().AgentIsRoot {
		t.Errorf("the image holds %q", got)
	}
	if p.Image.Settings.Agent != "1000:1000" || p.Image.Settings.Workdir != "/app" || p.Image.Settings.Env["GREETING"] != "hello" {
		t.Errorf("its settings are %+v", p.Image.Settings)
	}
	again, err := build(want, map[string]string{"TOKEN": "another"})
	if err != nil || again.Image.Digest != p.Image.Digest || slices.Contains(log, "said-aloud") {
		t.Errorf("not cached: %v, %s, %q", err, again.Image.Digest, log)
	}

	_, err = build(sandbox.Image{Source: s.busybox, Commands: []string{"ENV A=1", "RUN echo before; echo $KEY; exit 7"}}, map[string]string{"KEY": "hunter2-hunter2"})
	var problem *sandbox.Problem
	if !errors.As(err, &problem) || problem.Code != "build_failed" || problem.Field != "image.dockerfile_commands" ||
		!strings.Contains(problem.Detail, "7") || !strings.Contains(problem.Detail, "before") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a command that fails: %v", err)
	}
	_, err = build(sandbox.Image{Source: s.busybox, Commands: []string{"USER root", "RUN kill -9 1; sleep 60"}}, nil)
	if !errors.As(err, &problem) || problem.Code != "sandbox_ended" || !errors.Is(err, sandbox.ErrUnavailable) {
		t.Errorf("a command that ends its sandbox: %v", err)
	}
}

func TestSnapshots(t *testing.T) {
	s := newShop(t)
	for name, sp := range map[string]sandbox.Spec{
		"host":    spec(),
		"glibc":   s.prepare(t, sandbox.Image{Source: s.glibc}),
		"busybox": s.prepare(t, sandbox.Image{Source: s.busybox}),
	} {
		t.Run(name, func(t *testing.T) {
			ref, c := s.start(t, sp)
			tell(t, c, "root", "mkdir -p /opt/tool /srv && echo v1 > /opt/tool/file && ln -s file /opt/tool/link && chmod 4711 /opt/tool/file && rm -f /etc/nsswitch.conf && "+
				"echo secret > /workspace/mine && ln -s /proc/1/environ /srv/out && ln -s / /srv/root")
			p, err := s.Snapshot(t.Context(), ref, sp)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"set up", "app@" + p.Image.Digest, "app:1"} { // whatever people call it
				var archive bytes.Buffer
				if err := s.ExportImage(t.Context(), p.Image.Digest, engine.ArchiveFormat("oci"), name, &archive); err != nil || archive.Len() == 0 {
					t.Errorf("exported as %q: %d bytes, %v", name, archive.Len(), err)
				}
			}
			tell(t, c, "root", "echo after > /opt/tool/file") // it goes on
			next := sp
			next.Image, next.Volume = p.Image, spec().Volume
			ref2, c2 := s.start(t, next)
			if got := tell(t, c2, "root", "cat /opt/tool/link; stat -c %a /opt/tool/file; ls /etc/nsswitch.conf /workspace/mine 2>/dev/null; readlink /srv/out"); got != "v1\n4711\n/proc/1/environ" {
				t.Errorf("the new sandbox has %q", got)
			}
			// A snapshot of a sandbox of a snapshot, with the sandbox of the first one gone and its image collected.
			tell(t, c2, "root", "echo two > /opt/tool/two")
			second, err := s.Snapshot(t.Context(), ref2, next)
			if err != nil {
				t.Fatal(err)
			}
			if second.Image.Digest == p.Image.Digest {
				t.Error("both snapshots are one image")
			}
			same, err := s.Snapshot(t.Context(), ref2, next)
			if err != nil || same.Size != second.Size {
				t.Errorf("a second snapshot of the same state: %v, %d bytes, want %d", err, same.Size, second.Size)
			}
		})
	}
}

// badImages are refused, and nothing of them stays on the disk.
func TestBadImages(t *testing.T) {
	s := newShop(t)
	files := func() (n int) {
		err := filepath.WalkDir(filepath.Join(s.dir, "local"), func(string, os.DirEntry, error) error { n++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := s.Image(t.Context(), "sha256:none"); !errors.Is(err, sandbox.ErrNotFound) {
		t.Error(err)
	}
	noUser := s.reg.Push(t, "nouser:1", imagetest.Image(t, func(c *v1.Config) { c.User = "nobody-here" }, imagetest.Layer(t, imagetest.File{Name: "x", Mode: 0o644})))
	for name, tc := range map[string]struct {
		img  sandbox.Image
		code string
	}{
		"no such image":     {sandbox.Image{Source: s.reg.Host + "/no/such:1"}, "image_not_found"},
		"no such registry":  {sandbox.Image{Source: "127.0.0.1:1/no:1"}, "registry_unreachable"},
		"no name":           {sandbox.Image{Source: "Not A Name"}, "invalid_request"},
		"unknown user":      {sandbox.Image{Source: noUser}, "unknown_user"},
		"commands on host":  {sandbox.Image{Source: sandbox.HostImage, Commands: []string{"RUN true"}}, "invalid_request"},
		"COPY from nowhere": {sandbox.Image{Source: s.busybox, Commands: []string{"COPY x /y"}}, ""},
	} {
		before := files()
		_, err := s.PrepareImage(t.Context(), engine.ImageRequest{Image: tc.img, Network: spec().Network}, nil)
		var p *sandbox.Problem
		if !errors.As(err, &p) || tc.code != "" && p.Code != tc.code {
			t.Errorf("%s: %v, want code %s", name, err, tc.code)
		}
		if after := files(); after != before {
			t.Errorf("%s: %d files before, %d after", name, before, after)
		}
	}
	if _, err := s.CollectImages(t.Context(), func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	sp := s.prepare(t, sandbox.Image{Source: s.busybox})
	sp.Workdir = "/bin/busybox"
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	_, err := s.Create(t.Context(), ref, sp)
	if p := (*sandbox.Problem)(nil); !errors.As(err, &p) || p.Field != "workdir" {
		t.Errorf("a workdir that is a file: %v", err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "local", "volumes", sp.Volume.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its volume is there: %v", err)
	}
	for l := range s.List(t.Context()) {
		t.Errorf("left behind: %+v", l)
	}
}
