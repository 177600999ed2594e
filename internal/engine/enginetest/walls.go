package enginetest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
)

// keeping are the promises about volumes.
var keeping = []promise{
	{"VolumeOutlivesSandbox", volumeOutlivesSandbox},
	{"VolumeIsShared", volumeIsShared},
	{"VolumeIsADirectory", volumeIsADirectory},
}

// walls are the promises about what a sandbox can't see or take.
var walls = []promise{
	{"EnvDoesNotLeak", envDoesNotLeak},
	{"NoHostFiles", noHostFiles},
	{"NoHostProcesses", noHostProcesses},
	{"NoNetwork", noNetwork},
	{"GuestIsOutOfReach", guestIsOutOfReach},
}

func volumeOutlivesSandbox(t *testing.T, s suite) {
	spec := s.h.Spec(t)
	first := s.createAs(t, s.newRef(t), spec)
	output(t, first.dial(t, nil), "mkdir -p a && echo kept > a/file && ln -s a/file link && chmod 751 a")
	first.destroy(t)
	second := s.createAs(t, s.newRef(t), spec).dial(t, nil)
	if got := output(t, second, "cat link; stat -c %a a"); got != "kept\n751\n" {
		t.Errorf("the next sandbox finds %q", got)
	}
	if r := sh(t, second, "echo more >> a/file && rm -r a link"); !r.exited(0) {
		t.Errorf("it can't change what the first one made: %v", r)
	}
	if got := output(t, s.create(t, nil).dial(t, nil), "ls -A | wc -l"); strings.TrimSpace(got) != "0" {
		t.Errorf("another volume isn't empty: %q", got)
	}
}

func volumeIsShared(t *testing.T, s suite) {
	spec := s.h.Spec(t)
	one := s.createAs(t, s.newRef(t), spec).dial(t, nil)
	two := s.createAs(t, s.newRef(t), spec).dial(t, nil)
	for i := range 3 {
		output(t, one, fmt.Sprintf("echo %d > file", i))
		if got := output(t, two, "cat file"); got != fmt.Sprintln(i) {
			t.Errorf("the other sandbox reads %q, want %d", got, i)
		}
	}
}

func volumeIsADirectory(t *testing.T, s suite) {
	dirs, ok := engine.As[engine.VolumeDirs](s.e)
	if !ok {
		t.Skip("this engine's volumes are no directories of this host")
	}
	b := s.create(t, nil)
	output(t, b.dial(t, nil), "echo seen > file")
	dir, err := dirs.VolumeDir(within(t), b.spec.Volume)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "seen\n" {
		t.Errorf("from the host it is %q, %v", got, err)
	}
	b.destroy(t)
	for range 2 {
		if err := dirs.DeleteVolume(within(t), b.spec.Volume); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func envDoesNotLeak(t *testing.T, s suite) {
	one, two := s.create(t, nil), s.create(t, nil)
	c := one.dialOnly(t, nil)
	vars := env()
	vars["SECRET_OF_ONE"] = "hush"
	if err := c.Setup(within(t), guest.Setup{Env: vars, Deadline: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	mine := output(t, c, "env")
	if !strings.Contains(mine, "SECRET_OF_ONE=hush") {
		t.Errorf("it doesn't have its own environment: %s", mine)
	}
	others := output(t, two.dial(t, nil), "env")
	if strings.Contains(others, "SECRET_OF_ONE") {
		t.Errorf("another sandbox has it too: %s", others)
	}
	if strings.Contains(mine+others, marker) {
		t.Errorf("the host's environment is in there")
	}
}

func (s suite) isolated(t *testing.T) {
	t.Helper()
	if !s.h.Isolated {
		t.Skip("this engine has no walls")
	}
}

// root is a script run as root, as far as there is one in the sandbox.
func root(t *testing.T, c *guest.Client, script string) result {
	t.Helper()
	return run(t, c, guest.Command{Argv: []string{"/bin/sh", "-c", script}, User: guest.UserRoot})
}

func noHostFiles(t *testing.T, s suite) {
	s.isolated(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := s.create(t, nil).dial(t, nil)
	paths := []string{secret, "/proc/1/root" + secret, "/etc/shadow", "/etc/ssh", "/var/log/dpkg.log", "/dev/sda", "/dev/kmsg", "/dev/mem"}
	for _, path := range paths {
		if r := root(t, c, fmt.Sprintf("test -s '%s' && head -c 100 '%[1]s'", path)); r.exited(0) && len(r.stdout) > 0 {
			t.Errorf("%s can be read: %v", path, r)
		}
	}
	for _, dir := range []string{"/root", "/home"} {
		if r := root(t, c, "ls -A "+dir); len(r.stdout) > 0 {
			t.Errorf("%s isn't empty: %v", dir, r)
		}
	}
	for _, dir := range []string{"/usr/bin", "/bin", "/usr", "/lib"} { // of the image: the host's own must not change
		name := filepath.Join(dir, "enginetest-"+filepath.Base(filepath.Dir(secret)))
		_ = root(t, c, "touch "+name)
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("it wrote %s of the host", name)
			_ = os.Remove(name)
		}
	}
}

func noHostProcesses(t *testing.T, s suite) {
	s.isolated(t)
	c := s.create(t, nil).dial(t, nil)
	name := filepath.Base(os.Args[0])
	// The brackets keep the search from finding itself.
	r := root(t, c, fmt.Sprintf("ls -d /proc/[0-9]* | wc -l; cat /proc/*/cmdline | grep -c '[%c]%s'; true", name[0], name[1:]))
	var processes, ours int
	if _, err := fmt.Sscan(string(r.stdout), &processes, &ours); err != nil || processes > 10 || ours > 0 {
		t.Errorf("%d processes, %d of them the host's: %v, %v", processes, ours, r, err)
	}
}

func noNetwork(t *testing.T, s suite) {
	s.isolated(t)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	c := s.create(t, nil).dial(t, nil)
	targets := []string{"127.0.0.1", "169.254.169.254"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil {
			targets = append(targets, ip.IP.String())
		}
	}
	reach := func(addr string) result {
		return root(t, c, fmt.Sprintf("timeout 2 sh -c '%s'", strings.ReplaceAll(connect(addr, "true"), "'", `'\''`)))
	}
	// That nothing is reached means something only if the way of trying reaches what is there.
	if r := root(t, c, strings.Replace(connect(s.h.Gateway(engine.Ref{}), "true"), "cat <&3", "true", 1)); !r.exited(0) {
		t.Fatalf("it doesn't reach what is its own: %v", r)
	}
	for _, target := range targets {
		if r := reach(fmt.Sprintf("%s:%d", target, port)); r.exited(0) {
			t.Errorf("it reaches %s:%d", target, port)
		}
	}
}

func guestIsOutOfReach(t *testing.T, s suite) {
	s.isolated(t)
	paths := []string{"/proc/1/environ", "/proc/1/mem"}
	if !s.e.Capabilities().AgentIsRoot { // with one user only, files can't be kept from it
		paths = append(paths, "/proc/1/maps", guest.StateDir, guest.SocketDir+"/"+guest.SocketName)
	}
	c := s.create(t, nil).dial(t, nil)
	for _, path := range paths {
		if r := sh(t, c, "cat "+path+" || ls "+path+"/"); r.exited(0) && len(r.stdout) > 0 {
			t.Errorf("%s can be read: %v", path, r)
		}
	}
	if !s.e.Capabilities().AgentIsRoot { // else it may end its own sandbox; that harms nobody
		if r := sh(t, c, "kill -9 1"); r.exited(0) {
			t.Errorf("it can kill the guest: %v", r)
		}
	}
	if got := output(t, c, "echo alive"); got != "alive\n" {
		t.Errorf("%q", got)
	}
}
