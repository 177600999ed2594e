package local_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// The program that tries what a shell can't. In the sandboxes of these tests it is where the CLI is in others: in a directory of this host
// that is mounted read-only.
const (
	climbEnv   = "SANDLOT_TEST_CLIMB"
	climbPlace = "/opt/climb"
	climb      = climbPlace + "/climb"
)

var climbProgram = sync.OnceValues(func() (string, error) { return program(climbEnv, "climb", "./testdata/climb") })

// climber copies the program to a directory of its own in dir, where every user can reach it.
func climber(t *testing.T, dir string) string {
	t.Helper()
	path, err := climbProgram()
	if err != nil {
		t.Fatal(err)
	}
	return copyFile(t, path, filepath.Join(dir, "climb", "climb"))
}

// wall is an engine whose sandboxes have the climbing program, and a file of the host that none of them may see.
type wall struct {
	*local.Engine
	cfg    local.Config
	secret string // its path; everybody may read it
	single bool   // the agent is root
	before string // the state of what is shown read-only
}

const secretText = "a secret of the host"

func newWall(t *testing.T) *wall {
	t.Helper()
	w := &wall{cfg: config(t, workDir(t))}
	w.cfg.Mounts = []local.Mount{{Source: filepath.Dir(climber(t, openDir(t))), Target: climbPlace}}
	w.secret = filepath.Join(openDir(t), "secret")
	if err := os.WriteFile(w.secret, []byte(secretText), 0o644); err != nil {
		t.Fatal(err)
	}
	w.Engine = open(t, w.cfg)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	w.single = w.Capabilities().AgentIsRoot
	w.before = w.shown(t)
	t.Cleanup(func() { w.wantUnchanged(t) })
	return w
}

// shown describes every file of this host that sandboxes see but for its own programs: names, modes, owners and contents.
func (w *wall) shown(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{filepath.Dir(w.cfg.Guest), w.cfg.Mounts[0].Source, filepath.Dir(w.secret)} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			st := fi.Sys().(*syscall.Stat_t)
			fmt.Fprintf(&b, "%s %v %d:%d %d", path, fi.Mode(), st.Uid, st.Gid, st.Rdev)
			if fi.Mode().IsRegular() {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(&b, " %x", sha256.Sum256(data))
			}
			b.WriteByte('\n')
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func (w *wall) wantUnchanged(t *testing.T) {
	t.Helper()
	if now := w.shown(t); now != w.before {
		t.Errorf("the host's files were\n%sand are now\n%s", w.before, now)
	}
}

// users are all users that attacks are to be tried as.
func (w *wall) users() []string {
	if w.single {
		return []string{guest.UserRoot}
	}
	return []string{guest.UserRoot, guest.UserAgent}
}

// attempt is one thing that the climbing program does.
type attempt struct {
	attack string // its name, for people
	args   string // name=arguments
	done   string // what it may come to without harm, as a regular expression; "" = it must be refused
}

// try has a user attempt all, in one run. Each must be refused, or come to what is harmless.
func (w *wall) try(t *testing.T, ref engine.Ref, user string, all ...attempt) {
	t.Helper()
	script := ""
	for _, a := range all {
		script += fmt.Sprintf("%s '%s' 2>&1\n", climb, a.args) // each in a process of its own: one may have changed it
	}
	out, _ := sh(t, w, ref, user, script+"true")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(all) {
		t.Fatalf("%d attempts have %d answers:\n%s", len(all), len(lines), out)
	}
	for i, a := range all {
		name, _, _ := strings.Cut(a.args, "=")
		rest, ok := strings.CutPrefix(lines[i], name+" ")
		got, done := strings.CutPrefix(rest, "done: ")
		switch {
		case !ok || !done && !strings.HasPrefix(rest, "refused: "):
			t.Errorf("%s, as %s: %q makes no sense", a.attack, user, lines[i])
		case done && (a.done == "" || !regexp.MustCompile("^("+a.done+")$").MatchString(got)):
			t.Errorf("%s, as %s: it succeeded: %q", a.attack, user, got)
		default:
			t.Logf("%s, as %s: %s", a.attack, user, rest)
		}
	}
}

// wantNoSecret checks that a script fails and that the host's secret is nowhere in what it writes.
func (w *wall) wantNoSecret(t *testing.T, ref engine.Ref, user, attack, script string) {
	t.Helper()
	if out, code := sh(t, w, ref, user, script); code == 0 || strings.Contains(out, secretText) {
		t.Errorf("%s, as %s: it ended with %d and wrote %q", attack, user, code, out)
	}
}

// wantLife checks that a sandbox can be used as before.
func (w *wall) wantLife(t *testing.T, ref engine.Ref) {
	t.Helper()
	if st, err := w.Inspect(t.Context(), ref); err != nil || st.Phase != engine.PhaseRunning {
		t.Fatalf("%s is %+v, %v", ref.ID, st, err)
	}
	if out, code := sh(t, w, ref, guest.UserAgent, "echo alive"); code != 0 || out != "alive\n" {
		t.Fatalf("%s says %d %q", ref.ID, code, out)
	}
}

// mountPoints are the directories of this host that a sandbox sees.
func mountPoints() []string {
	return []string{"/usr", climbPlace, filepath.Dir(guest.Program), guest.SocketDir, guest.StateDir, "/workspace"}
}

// TestWallHostFiles tries to get at files of the host, from every mount.
func TestWallHostFiles(t *testing.T) {
	w := newWall(t)
	ref := create(t, w.Engine, spec())
	up := strings.Repeat("/..", 40)
	for _, user := range w.users() {
		for attack, script := range map[string]string{
			"its path":                         "cat " + w.secret,
			"the guest's root directory":       "cat /proc/1/root" + w.secret,
			"its own root directory":           "cat /proc/self/root" + up + w.secret,
			"the guest's working directory":    "cat /proc/1/cwd" + up + w.secret,
			"a symbolic link in the volume":    "ln -sf " + w.secret + " /workspace/link && cat /workspace/link",
			"a link up from the volume":        "ln -sf ." + up + " /workspace/up && cat /workspace/up" + w.secret,
			"a hard link out of a mount":       "ln /usr/bin/env /workspace/env",
			"a hard link over a mount":         "ln /workspace/link " + climbPlace + "/link",
			"mounts of the host, by the table": "grep -F '" + filepath.Dir(w.cfg.Dir) + "' /proc/self/mountinfo /proc/1/mountinfo /proc/self/mounts",
		} {
			w.wantNoSecret(t, ref, user, attack, script)
		}
		var all []attempt
		for _, m := range mountPoints() {
			w.wantNoSecret(t, ref, user, "up from "+m, "cat "+m+up+w.secret)
			all = append(all,
				attempt{attack: "up by descriptors from " + m, args: "path_descriptor=" + m + "," + w.secret},
				attempt{attack: "a file by its number below " + m, args: "open_by_handle=" + m})
		}
		w.try(t, ref, user, append(all,
			attempt{attack: "out of a chroot", args: "chroot=" + w.secret},
			attempt{attack: "another root directory", args: "pivot_root"},
			attempt{attack: "the mounts of the guest", args: "setns=/proc/1/ns/mnt"},
			attempt{attack: "a file system in memory", args: "mount=x,/mnt,tmpfs,0"},
			attempt{attack: "a second /proc", args: "mount=proc,/mnt,proc,0"},
			attempt{attack: "a second /sys", args: "mount=sysfs,/mnt,sysfs,0"},
			attempt{attack: "cgroups", args: "mount=cgroup,/mnt,cgroup,0"},
			attempt{attack: "cgroups, second kind", args: "mount=cgroup2,/mnt,cgroup2,0"},
			attempt{attack: "the disk of the host", args: "mount=/dev/sda1,/mnt,ext4,0"},
			attempt{attack: "a mount bound elsewhere", args: "mount=/usr,/mnt,none,0x1000"},
			attempt{attack: "an image over the guest", args: "mount=/workspace," + filepath.Dir(guest.Program) + ",none,0x1000"})...)
		for _, m := range mountPoints() {
			w.try(t, ref, user, attempt{attack: m + " mounted anew, writable", args: "remount=" + m})
		}
	}
	w.wantLife(t, ref)
}

// TestWallReadOnly tries to write to what sandboxes are shown and others use too: this host's programs, the CLI, the guest's program.
func TestWallReadOnly(t *testing.T) {
	w := newWall(t)
	ref := create(t, w.Engine, spec())
	name := "written-" + string(ref.ID)
	t.Cleanup(func() { _ = os.Remove("/usr/" + name) })
	for _, user := range w.users() {
		for _, m := range []string{"/usr", climbPlace, filepath.Dir(guest.Program)} {
			file := m + "/" + name
			for attack, script := range map[string]string{
				"a new file":    "echo x > " + file,
				"a directory":   "mkdir " + file,
				"a link":        "ln -s x " + file,
				"other modes":   "chmod 777 " + m,
				"another owner": "chown 1234 " + m,
				"another name":  "mv " + m + " " + m + "-moved",
				"a rename in":   "touch /workspace/f && mv /workspace/f " + file,
				"another time":  "touch -d 2001-01-01 " + m,
				"a FIFO":        "mkfifo " + file,
			} {
				if out, code := sh(t, w, ref, user, script); code == 0 {
					t.Errorf("%s in %s, as %s: it succeeded: %q", attack, m, user, out)
				}
			}
			// In a user namespace of its own a process may mount, and holds every capability.
			w.try(t, ref, user,
				attempt{attack: "a new file, with the mount made writable", args: "in_namespace=" + m + "," + file},
				attempt{attack: "a new file, as root of a namespace of its own", args: "own_namespace=in_namespace," + m + "," + file})
		}
		for _, file := range []string{climb, guest.Program} {
			for attack, script := range map[string]string{
				"overwritten": "echo x > " + file, "appended to": "echo x >> " + file, "removed": "rm -f " + file,
				"cut off": "truncate -s 0 " + file, "changed in mode": "chmod 4777 " + file,
				"opened through a descriptor": "exec 3<" + file + " && echo x > /proc/self/fd/3",
			} {
				if out, code := sh(t, w, ref, user, script); code == 0 {
					t.Errorf("%s is %s, as %s: %q", file, attack, user, out)
				}
			}
			w.try(t, ref, user, attempt{attack: file + " is overwritten in a namespace of its own", args: "own_namespace=in_namespace," + filepath.Dir(file) + "," + file})
		}
	}
	if _, err := os.Lstat("/usr/" + name); err == nil {
		t.Error("it wrote to this host's /usr")
	}
	w.wantUnchanged(t)
	w.wantLife(t, ref)
}

// listening starts a program that says so and goes on.
func listening(t *testing.T, w *wall, ref engine.Ref, user, args string) {
	t.Helper()
	c := connect(t, w.Engine, ref)
	id := sandbox.NewID(sandbox.PrefixRun)
	if _, err := c.Start(t.Context(), guest.Command{ID: id, User: user, Argv: []string{climb, args}}); err != nil {
		t.Fatal(err)
	}
	said := ""
	for f, err := range c.Output(t.Context(), id, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if said += string(f.Data); strings.HasPrefix(said, "listening\n") {
			return
		}
	}
	t.Fatalf("%s says %q", args, said)
}

// TestWallNeighbours tries to get from one sandbox to another on another volume.
func TestWallNeighbours(t *testing.T) {
	w := newWall(t)
	mine, other := spec(), spec()
	ref, neighbour := create(t, w.Engine, mine), create(t, w.Engine, other)
	for _, dir := range []string{"/workspace", "/dev/shm", "/tmp"} {
		if out, code := sh(t, w, neighbour, guest.UserAgent, "umask 077; echo of-the-neighbour > "+dir+"/mine && sleep 1000 >/dev/null 2>&1 &"); code != 0 {
			t.Fatal(out)
		}
	}
	listening(t, w, neighbour, guest.UserAgent, "listen=@of-the-neighbour")
	hostName := "@sandlot-of-the-host-" + string(ref.ID)
	host, err := listenUnix(t, hostName)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, user := range w.users() {
		for attack, script := range map[string]string{
			"its volume":             "cat /workspace/mine",
			"its shared memory":      "cat /dev/shm/mine",
			"its temporary files":    "cat /tmp/mine",
			"its processes":          "cat /proc/*/cmdline | tr '\\0' ' ' | grep 'sleep 100[0]'",
			"its socket's name":      "grep of-the-neighbour /proc/net/unix",
			"its volume by its name": "find / -xdev -name '" + other.Volume.ID + "*' | grep .",
			"its directory":          "ls -d " + guest.SocketDir + "/../../" + string(neighbour.ID) + "* " + filepath.Dir(w.cfg.Dir),
			"its System V memory":    "tail -n +2 /proc/sysvipc/shm | grep .",
		} {
			if out, code := sh(t, w, ref, user, script); code == 0 || strings.Contains(out, "of-the-neighbour\n") {
				t.Errorf("%s, as %s: %d %q", attack, user, code, out)
			}
		}
		w.try(t, ref, user,
			attempt{attack: "the neighbour's abstract socket", args: "dial=@of-the-neighbour"},
			attempt{attack: "an abstract socket of the host", args: "dial=" + hostName})
	}
	// Everything that root can kill is its own.
	_, _ = shKilled(t, w, ref, "kill -9 -1")
	w.wantLife(t, neighbour)
	if out, code := sh(t, w, neighbour, guest.UserAgent, "cat /workspace/mine /dev/shm/mine /tmp/mine; cat /proc/*/cmdline | tr '\\0' ' ' | grep -c 'sleep 100[0]' >/dev/null"); code != 0 || out != strings.Repeat("of-the-neighbour\n", 3) {
		t.Errorf("the neighbour has now %d %q", code, out)
	}
	wantOthersFiles(t, w, mine.Volume, other.Volume)
}

// wantOthersFiles plays a program that has broken out of one sandbox's gVisor: by its uid, it can't read what another volume holds.
func wantOthersFiles(t *testing.T, w *wall, mine, other sandbox.Volume) {
	t.Helper()
	if os.Getuid() != 0 || os.Getenv(childEnv) != "" {
		return // there are no ranges
	}
	// The directories are made reachable: what is tested is the owners.
	dir := filepath.Join(openDir(t), "volumes")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	from, err := w.VolumeDir(t.Context(), mine)
	if err != nil {
		t.Fatal(err)
	}
	to, err := w.VolumeDir(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(filepath.Dir(from), dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	fi, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	uid := fi.Sys().(*syscall.Stat_t).Uid
	path := filepath.Join(dir, filepath.Base(to), "mine")
	for who, c := range map[string]syscall.Credential{"agent": {Uid: uid, Gid: uid}, "root": {Uid: uid - 1000, Gid: uid - 1000}} {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "cat "+path+" || echo x > "+filepath.Join(dir, filepath.Base(to), "new"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &c}
		if out, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(out), "of-the-neighbour") {
			t.Errorf("%s of one sandbox can use the volume of the other: %q", who, out)
		}
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "of-the-neighbour\n" {
		t.Errorf("the file is %q, %v", data, err)
	}
}

// TestWallGuest tries to get at the guest, which holds what the server tells it and outranks everybody inside.
func TestWallGuest(t *testing.T) {
	w := newWall(t)
	ref, neighbour := create(t, w.Engine, spec()), create(t, w.Engine, spec())
	const token = "sk-the-token-of-this-test"
	c := connect(t, w.Engine, ref)
	if err := c.Setup(t.Context(), guest.Setup{Env: map[string]string{"PATH": "/usr/bin:/bin", "TOKEN": token}}); err != nil {
		t.Fatal(err)
	}
	for _, user := range w.users() {
		for _, file := range []string{"environ", "mem", "maps", "exe", "fd/3", "cwd/.", "root/etc/hostname", "task/1/mem"} {
			if user == guest.UserRoot && slices.Contains([]string{"maps", "cwd/.", "root/etc/hostname"}, file) {
				continue // tells root nothing that it doesn't know
			}
			if out, code := sh(t, w, ref, user, "head -c 64 /proc/1/"+file+" | grep -c ''"); code == 0 && file != "exe" && strings.TrimSpace(out) != "0" {
				t.Errorf("/proc/1/%s, as %s: %d %q", file, user, code, out)
			}
		}
		if out, _ := sh(t, w, ref, user, "cat /proc/1/environ /proc/1/task/*/environ 2>&1"); strings.Contains(out, token) {
			t.Errorf("the token is in the guest's environment, as %s", user)
		}
		w.try(t, ref, user,
			attempt{attack: "tracing the guest", args: "ptrace=1"},
			attempt{attack: "reading its memory", args: "read_memory=1,0x400000"},
			attempt{attack: "its descriptors", args: "syscall=pidfd_getfd,438,3,3,0"})
	}
	if !w.single {
		for attack, script := range map[string]string{
			"output of others' runs": "ls " + guest.StateDir, "its socket's directory": "ls " + guest.SocketDir,
			"its output": "cat " + guest.StateDir + "/runs/*/* | grep .", "killing it": "kill -9 1", "stopping it": "kill -STOP 1", "ending it": "kill 1",
			"another socket in its place": "rm -f " + guest.SocketDir + "/" + guest.SocketName,
		} {
			if out, code := sh(t, w, ref, guest.UserAgent, script); code == 0 {
				t.Errorf("%s, as agent: %q", attack, out)
			}
		}
		w.try(t, ref, guest.UserAgent, attempt{attack: "speaking to it", args: "dial=" + guest.SocketDir + "/" + guest.SocketName})
	}
	// Root of a sandbox may speak to the guest: it is asked for nothing that root can't do. What it starts has no more than others.
	w.try(t, ref, guest.UserRoot, attempt{attack: "speaking to the guest", args: "dial=" + guest.SocketDir + "/" + guest.SocketName, done: "connected"},
		attempt{attack: "the guest's capabilities", args: "whoami", done: "uid 0 gid 0 caps 0*a?80[0-9a-f]*"})
	w.wantLife(t, ref)

	// It may also end it, and with it its own sandbox, and nobody else's.
	for _, signal := range []string{"STOP", "KILL", "TERM"} {
		_, _ = shKilled(t, w, ref, "kill -"+signal+" 1")
		w.wantLife(t, neighbour)
	}
	if err := w.Destroy(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// shKilled runs a script as root that may end the sandbox's helper, and with it the answer.
func shKilled(t *testing.T, w *wall, ref engine.Ref, script string) (guest.Run, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	conn, err := w.Dial(ctx, ref)
	if err != nil {
		return guest.Run{}, err
	}
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		return guest.Run{}, err
	}
	defer c.Close()
	id := sandbox.NewID(sandbox.PrefixRun)
	if _, err := c.Start(ctx, guest.Command{ID: id, Argv: []string{"/bin/sh", "-c", script}, User: guest.UserRoot}); err != nil {
		return guest.Run{}, err
	}
	return c.Wait(ctx, id)
}

// listenUnix listens on a Unix socket of this host.
func listenUnix(t *testing.T, name string) (net.Listener, error) {
	t.Helper()
	return (&net.ListenConfig{}).Listen(t.Context(), "unix", name)
}
