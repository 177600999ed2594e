package local_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/image/imagetest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// guestSocket is where the host finds the guest, as the sandbox has it.
var guestSocket = guest.SocketDir + "/" + guest.SocketName

// TestWallSocketPlanted puts other things in the place of the guest's socket. The host must neither follow them nor wait for them.
func TestWallSocketPlanted(t *testing.T) {
	w := newWall(t)
	host, err := listenUnix(t, filepath.Join(openDir(t), "host.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for attack, plant := range map[string]string{
		"a FIFO":                        "mkfifo SOCKET",
		"a file":                        "echo x > SOCKET",
		"a directory":                   "mkdir SOCKET",
		"a link to a socket":            "ln -s " + host.Addr().String() + " SOCKET",
		"a link to a file":              "ln -s " + w.secret + " SOCKET",
		"a link to itself":              "ln -s SOCKET SOCKET",
		"a link to a device":            "ln -s /dev/zero SOCKET",
		"nothing":                       "true",
		"its directory moved":           "mv " + guest.SocketDir + "/* /tmp; rmdir " + guest.SocketDir,
		"its directory closed":          "mkfifo SOCKET; chmod 0 " + guest.SocketDir,
		"its directory somebody else's": "ln -s / SOCKET; chown 1234:1234 " + guest.SocketDir,
	} {
		t.Run(attack, func(t *testing.T) {
			ref := create(t, w.Engine, spec())
			_, _ = sh(t, w, ref, guest.UserRoot, "rm -f "+guestSocket+"; "+strings.ReplaceAll(plant, "SOCKET", guestSocket)) // parts of it may be refused
			wantBounded(t, w, ref)
		})
	}
}

// wantBounded checks that a sandbox whose guest can't be reached keeps nobody waiting, isn't taken for a good one, and can be destroyed.
func wantBounded(t *testing.T, w *wall, ref engine.Ref) {
	t.Helper()
	const soon = 15 * time.Second // on a loaded machine; what waits for a guest waits for ever
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if conn, err := w.Dial(ctx, ref); err == nil {
		if c, err := guest.NewClient(conn, nil); err == nil {
			defer c.Close()
			asked, cancel := context.WithTimeout(ctx, soon/5)
			defer cancel()
			if info, err := c.Info(asked); err == nil {
				t.Errorf("it is believed: %+v", info)
			}
			if runs, err := c.Runs(asked); err == nil && len(runs) > 0 {
				t.Errorf("it is believed: %+v", runs)
			}
		}
	}
	if st, err := w.Inspect(ctx, ref); err != nil || st.Phase != engine.PhaseRunning && st.Phase != engine.PhaseStarting {
		t.Errorf("it is %+v, %v", st, err)
	}
	for l, err := range w.List(ctx) {
		if err != nil || l.Ref.ID != ref.ID {
			t.Errorf("listed: %+v, %v", l, err)
		}
	}
	if took := time.Since(began); took > soon {
		t.Errorf("looking at it took %v", took)
	}
	began = time.Now()
	if err := w.Destroy(t.Context(), ref); err != nil {
		t.Errorf("destroy: %v", err)
	}
	if took := time.Since(began); took > soon {
		t.Errorf("destroying it took %v", took)
	}
	for l := range w.List(t.Context()) {
		t.Errorf("left behind: %+v", l)
	}
}

// TestWallFakeGuest lets root of a sandbox answer the host in the guest's stead.
func TestWallFakeGuest(t *testing.T) {
	w := newWall(t)
	for _, manner := range []string{"silence", "hangup", "noise", "nonsense", "flood", "header"} {
		t.Run(manner, func(t *testing.T) {
			ref := create(t, w.Engine, spec())
			listening(t, w, ref, guest.UserRoot, "fake_guest="+guestSocket+","+manner)
			wantBounded(t, w, ref)
		})
	}
	// One that is made again meets the fake too, and is made anew.
	sp := spec()
	ref := create(t, w.Engine, sp)
	listening(t, w, ref, guest.UserRoot, "fake_guest="+guestSocket+",nonsense")
	if _, err := w.Create(t.Context(), ref, sp); err != nil {
		t.Fatal(err)
	}
	w.wantLife(t, ref)
}

// TestWallVolumePlanted leaves things in a volume, and in the other directories of the host that a sandbox's root can write to, that are
// to harm who comes next: another sandbox, or the server when it removes them.
func TestWallVolumePlanted(t *testing.T) {
	w := newWall(t)
	precious := filepath.Join(filepath.Dir(w.secret), "precious")
	if err := errors.Join(os.Mkdir(precious, 0o777), os.WriteFile(filepath.Join(precious, "file"), []byte("x"), 0o666)); err != nil {
		t.Fatal(err)
	}
	w.before = w.shown(t)
	sp := spec()
	ref := create(t, w.Engine, sp)
	plant := "ln -s " + precious + " link; ln -s / root; ln -s .. up; mkfifo fifo; ln -s link/file twice; mkdir -p closed/a; chmod 0 closed; " +
		"echo x > immutable; chmod 0 immutable; printf x > \"$(printf 'new\\nline')\"; ln -s self self; "
	for _, dir := range []string{"/workspace", guest.StateDir, guest.SocketDir} {
		if out, code := sh(t, w, ref, guest.UserRoot, "cd "+dir+"; "+plant+"true"); code != 0 {
			t.Fatal(out)
		}
		w.try(t, ref, guest.UserRoot, attempt{attack: "a directory that is deeper than files can be opened", args: "deep=" + dir + ",1500", done: "deep"})
	}
	// The home that is made for the agent, and the volume itself, lead elsewhere.
	if out, code := sh(t, w, ref, guest.UserRoot, "ln -sfn "+precious+" /workspace/.sandlot; chown 4321:4321 /workspace; chmod 0 /workspace"); code != 0 {
		t.Fatal(out)
	}
	fewFiles(t, func() { destroy(t, w.Engine, ref) })
	for l := range w.List(t.Context()) {
		t.Errorf("left behind: %+v", l)
	}

	next := create(t, w.Engine, sp)
	if out, code := sh(t, w, next, guest.UserRoot, "readlink /workspace/link && chmod 755 /workspace && cat /workspace/twice"); code == 0 || !strings.Contains(out, precious) {
		t.Errorf("the next sandbox finds %d %q", code, out)
	}
	w.wantLife(t, next)
	destroy(t, w.Engine, next)
	fewFiles(t, func() {
		if err := w.DeleteVolume(t.Context(), sp.Volume); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Lstat(filepath.Join(w.cfg.Dir, "volumes", sp.Volume.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the volume is still there: %v", err)
	}
}

// fewFiles calls f while this process may open no more than a few files.
func fewFiles(t *testing.T, f func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 512, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// TestWallHostileImages starts images that were made to catch whoever starts them. Each starts as any other, or is refused; nothing of the
// host is seen or changed.
func TestWallHostileImages(t *testing.T) {
	w := newWall(t)
	reg, base := imagetest.NewRegistry(t), imagetest.Busybox(t)
	link := func(name, target string) imagetest.File { return imagetest.File{Name: name, Link: target} }
	file := func(name, data string) imagetest.File { return imagetest.File{Name: name, Mode: 0o644, Data: data} }
	dir := func(name string) imagetest.File { return imagetest.File{Name: name, Mode: fs.ModeDir | 0o755} }
	rootShell := imagetest.File{Name: "bin/rootsh", Mode: 0o755 | fs.ModeSetuid, Data: climbData(t)}
	for attack, tc := range map[string]struct {
		files  []imagetest.File
		change func(*v1.Config)
		code   string // of the refusal; "" = it starts
	}{
		"passwd leads to the guest's memory":    {files: []imagetest.File{link("etc/passwd", "/proc/1/environ")}},
		"passwd leads to the host":              {files: []imagetest.File{link("etc/passwd", w.secret)}},
		"passwd leads up to the host":           {files: []imagetest.File{link("etc/passwd", strings.Repeat("../", 30)+w.secret[1:])}, change: func(c *v1.Config) { c.User = "mira" }, code: "unknown_user"},
		"passwd is a FIFO":                      {files: []imagetest.File{{Name: "etc/passwd", Mode: fs.ModeNamedPipe | 0o666}}},
		"passwd is a FIFO, and USER in it":      {files: []imagetest.File{{Name: "etc/passwd", Mode: fs.ModeNamedPipe | 0o666}}, change: func(c *v1.Config) { c.User = "mira" }, code: "unknown_user"},
		"passwd is huge":                        {files: []imagetest.File{file("etc/passwd", strings.Repeat("x:x:1:1:::\n", 1<<20))}, change: func(c *v1.Config) { c.User = "mira" }, code: "file_too_large"},
		"passwd is one line":                    {files: []imagetest.File{file("etc/passwd", strings.Repeat("x", 5<<20))}},
		"passwd is a directory":                 {files: []imagetest.File{dir("etc/passwd")}},
		"passwd leads to itself":                {files: []imagetest.File{link("etc/passwd", "passwd")}},
		"passwd makes everybody root":           {files: []imagetest.File{file("etc/passwd", "agent:x:0:0:::\nroot:x:0:0:::\n")}},
		"etc is missing":                        {files: []imagetest.File{file(".wh.etc", ""), file(".wh.tmp", ""), file(".wh.root", "")}},
		"etc is a file":                         {files: []imagetest.File{file("etc", "x")}},
		"etc leads to the volume":               {files: []imagetest.File{link("etc", "/workspace")}},
		"hosts and hostname lead to /proc":      {files: []imagetest.File{link("etc/hosts", "/proc/sys/kernel/core_pattern"), link("etc/hostname", "/dev/full")}},
		"run leads to etc":                      {files: []imagetest.File{link("run", "/etc")}},
		"run leads nowhere":                     {files: []imagetest.File{link("run", "/nowhere")}},
		"run is a file":                         {files: []imagetest.File{file("run", "x")}},
		"the place of the socket is a file":     {files: []imagetest.File{dir("run"), dir("run/sandlot"), file("run/sandlot/socket", "x")}},
		"the place of the socket leads to usr":  {files: []imagetest.File{dir("run"), dir("run/sandlot"), link("run/sandlot/socket", "/usr")}},
		"the guest is the image's":              {files: []imagetest.File{dir("run"), dir("run/sandlot"), dir("run/sandlot/bin"), {Name: "run/sandlot/bin/sandlot-guest", Mode: 0o755, Data: "#!/bin/sh\nexec sleep 1000\n"}}},
		"the place of the guest leads to bin":   {files: []imagetest.File{dir("run"), link("run/sandlot", "/bin")}},
		"dev is a file":                         {files: []imagetest.File{file("dev", "x")}},
		"dev leads to etc":                      {files: []imagetest.File{link("dev", "/etc")}},
		"proc leads to etc":                     {files: []imagetest.File{link("proc", "/etc")}},
		"proc is full of lies":                  {files: []imagetest.File{dir("proc"), dir("proc/self"), file("proc/self/setgroups", "allow"), file("proc/meminfo", "MemTotal: 1 kB\n")}},
		"sys leads to the volume":               {files: []imagetest.File{link("sys", "/workspace")}},
		"workspace leads to usr":                {files: []imagetest.File{link("workspace", "/usr")}},
		"workspace leads to the root":           {files: []imagetest.File{link("workspace", "/")}},
		"workspace leads up":                    {files: []imagetest.File{link("workspace", "../../../../..")}},
		"the guest's state leads to the volume": {files: []imagetest.File{dir("var"), dir("var/lib"), link("var/lib/sandlot", "/workspace")}},
		"the CLI's place is a file":             {files: []imagetest.File{dir("opt"), file(climbPlace[1:], "x")}},
		"the CLI's place leads to the guest":    {files: []imagetest.File{dir("opt"), link(climbPlace[1:], filepath.Dir(guest.Program))}},
		"tmp leads to /proc":                    {files: []imagetest.File{link("tmp", "/proc/1")}},
		"a set-uid shell":                       {files: []imagetest.File{rootShell}},
		"an environment for the guest": {files: []imagetest.File{file("evil.so", "x"), file("etc/ld.so.preload", "/evil.so\n")}, change: func(c *v1.Config) {
			c.Env = []string{"LD_PRELOAD=/evil.so", "PATH=/workspace", "GODEBUG=x=y", "HOME=/proc", "=", "=x", "NOTHING"}
		}},
	} {
		t.Run(attack, func(t *testing.T) {
			name := reg.Push(t, strings.Map(func(r rune) rune {
				if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
					return r | 0x20
				}
				return '-'
			}, attack)+":1", imagetest.Image(t, tc.change, base, imagetest.Layer(t, tc.files...)))
			p, err := w.PrepareImage(t.Context(), engine.ImageRequest{Image: sandbox.Image{Source: name}, Network: spec().Network}, nil)
			problem := (*sandbox.Problem)(nil)
			if tc.code != "" {
				if !errors.As(err, &problem) || problem.Code != tc.code || strings.Contains(err.Error(), secretText) {
					t.Errorf("it is refused with %v, want code %s", err, tc.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sp := spec()
			sp.Image = p.Image
			ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
			defer func() {
				if err := w.Destroy(t.Context(), ref); err != nil {
					t.Error(err)
				}
				for l := range w.List(t.Context()) {
					t.Errorf("left behind: %+v", l)
				}
			}()
			began := time.Now()
			if _, err = w.Create(t.Context(), ref, sp); err != nil {
				t.Logf("refused after %v: %v", time.Since(began), err)
				if time.Since(began) > 30*time.Second || strings.Contains(err.Error(), secretText) {
					t.Errorf("the refusal is slow or tells too much: %v after %v", err, time.Since(began))
				}
				if !errors.As(err, &problem) || problem.Field == "" {
					t.Errorf("nobody can know what is wrong: %v", err)
				}
				return
			}
			for _, user := range w.users() {
				script := "cat /etc/passwd /etc/hosts " + w.secret + " /workspace" + w.secret + " 2>/dev/null | head -c 100000; exit 0"
				if out, _ := sh(t, w, ref, user, script); strings.Contains(out, secretText) {
					t.Errorf("the host's secret is in it, as %s", user)
				}
			}
			if out, code := sh(t, w, ref, guest.UserAgent, "echo kept > /workspace/file && cat /workspace/file"); code != 0 || out != "kept\n" {
				t.Errorf("the volume can't be used: %d %q", code, out)
			}
			if dir, err := w.VolumeDir(t.Context(), sp.Volume); err != nil {
				t.Error(err)
			} else if data, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(data) != "kept\n" {
				t.Errorf("what was written to the volume is not there: %q, %v", data, err)
			}
			if attack == "a set-uid shell" && !w.single {
				if out, code := sh(t, w, ref, guest.UserAgent, "/bin/rootsh whoami"); code != 0 || !strings.HasPrefix(out, "whoami done: uid 1000 gid 1000 caps 0000000000000000") {
					t.Errorf("it gives %d %q", code, out)
				}
			}
			w.wantLife(t, ref)
		})
	}
}

// climbData is the climbing program, as a file of an image.
func climbData(t *testing.T) string {
	t.Helper()
	path, err := climbProgram()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
