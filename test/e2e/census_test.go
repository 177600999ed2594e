package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// census counts what an installation holds of a host, by kinds.
type census map[string]int

// slack is by how much an idle server's own may differ: Go closes what belongs to a process that has ended when it collects garbage, and
// keeps threads. A sandbox that left one of each would be noticed after that many.
var slack = map[string]int{"descriptor of the server": 8, "threads of the server": 30}

// diff tells what is more or less than before, line by line.
func (c census) diff(after census) string {
	kinds := map[string]bool{}
	for kind := range c {
		kinds[kind] = true
	}
	for kind := range after {
		kinds[kind] = true
	}
	var lines []string
	for kind := range kinds {
		more := after[kind] - c[kind]
		for prefix, n := range slack {
			if strings.HasPrefix(kind, prefix) && more <= n {
				more = 0
			}
		}
		if more != 0 {
			lines = append(lines, fmt.Sprintf("%s: %d before, %d after", kind, c[kind], after[kind]))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// String lists all.
func (c census) String() string {
	var lines []string
	for kind, n := range c {
		lines = append(lines, fmt.Sprintf("%s: %d", kind, n))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// host is what is counted of this host for one installation: this process has a network namespace of its own and takes in orphans, so what
// it has descended from it, or in that namespace, is of that installation or of this test.
type host struct {
	dir  string // of the server's data
	sets string // the name that our cgroups, devices and rules have
}

func newHost(data string) host {
	sum := sha256.Sum256([]byte(filepath.Join(data, "local")))
	return host{dir: data, sets: "sandlot-" + hex.EncodeToString(sum[:4])}
}

// count looks at everything that sandboxes could leave.
func (h host) count(t *testing.T) census {
	t.Helper()
	c := census{}
	h.processes(t, c)
	h.mounts(t, c, os.Getpid(), "this host")
	h.cgroups(t, c)
	h.network(t, c)
	h.files(t, c)
	return c
}

// countServer adds what an idle server holds itself.
func (h host) countServer(t *testing.T, c census, pid int) {
	t.Helper()
	h.mounts(t, c, pid, "the server")
	stage, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/sandlot/*/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	c["entries of the server's /run/sandlot"] += len(stage)
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		if strings.Contains(target, "sandlot.db") {
			continue // as many connections as its pool likes
		}
		c["descriptor of the server "+numbers.ReplaceAllString(strings.TrimPrefix(target, h.dir), "N")]++
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	spaces := map[string]bool{}
	for _, task := range tasks {
		for _, kind := range []string{"mnt", "net", "user", "ipc", "uts", "pid"} {
			if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/task/%s/ns/%s", pid, task.Name(), kind)); err == nil { // or it has ended
				spaces[ns] = true
			}
		}
	}
	c["namespaces of the server's threads"] = len(spaces)
	c["threads of the server"] = len(tasks)
}

var numbers = regexp.MustCompile(`[0-9]+`)

// processes counts those that descend from this one but for servers, and their namespaces; zombies that were left to us are waited for.
func (h host) processes(t *testing.T, c census) {
	t.Helper()
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	parents, names := map[int]int{}, map[int]string{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		var state byte
		var parent int
		_, rest, _ := strings.Cut(string(stat), ") ")
		if _, err := fmt.Sscanf(rest, "%c %d", &state, &parent); err != nil {
			t.Fatal(err)
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // empty if it has ended
		name, _, _ := strings.Cut(string(cmdline), "\x00")
		parents[pid], names[pid] = parent, filepath.Base(name)
		if state == 'Z' {
			names[pid] = "zombie of " + strings.SplitN(string(stat), " ", 3)[1]
		}
	}
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	server := filepath.Base(program)
	spaces := map[string]bool{}
	for pid, name := range names {
		at := pid
		for at > 1 && at != os.Getpid() {
			at = parents[at]
		}
		if at <= 1 || pid == os.Getpid() {
			continue
		}
		if strings.HasPrefix(name, "zombie") && parents[pid] == os.Getpid() {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // its server was killed; who would be left to do it is we
			continue
		}
		if name == server {
			continue
		}
		c["process "+name]++
		for _, kind := range []string{"mnt", "net", "user", "ipc", "uts", "pid"} {
			if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
				spaces[ns] = true
			}
		}
	}
	if len(spaces) > 0 {
		c["namespaces of processes"] = len(spaces)
	}
}

func (h host) mounts(t *testing.T, c census, pid int, whose string) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, h.dir) || strings.Contains(line, "/run/sandlot") || strings.Contains(line, "nsfs") {
			c["mount of "+whose]++
		}
	}
}

func (h host) cgroups(t *testing.T, c census) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/" + h.sets, "/sys/fs/cgroup/*/" + h.sets} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, top := range found {
			err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					c["cgroup "+path]++
				}
				return err
			})
			if err != nil && !os.IsNotExist(err) { // they go at this moment
				t.Fatal(err)
			}
		}
	}
}

// network counts devices, rules and sockets of this network namespace.
func (h host) network(t *testing.T, c census) {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name != "lo" {
			c["network device"]++
		}
	}
	if nft, err := exec.LookPath("nft"); err == nil && os.Getuid() == 0 {
		out, err := exec.CommandContext(within(t), nft, "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if n := strings.Count(string(out), "\n"); n > 0 {
			c["lines of nftables"] = n
		}
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(sockets)) {
		f := strings.Fields(line)
		if len(f) == 8 && !strings.Contains(f[7], "@") {
			c["named Unix socket"]++
		}
	}
	routes, err := os.ReadFile("/proc/net/route")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(routes), "\n") - 1; n > 0 {
		c["routes"] = n
	}
}

// lasting are directories below a server's data whose contents are meant to stay.
var lasting = []string{"local/volumes/", "local/images/blobs/", "local/images/layers/", "local/images/images/", "local/images/roots/", "local/build-cache/", "local/loader/", "guest/", "runs/"}

func (h host) files(t *testing.T, c census) {
	t.Helper()
	err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, h.dir+"/")
		for _, dir := range lasting {
			rest, ok := strings.CutPrefix(name, dir)
			if ok && !strings.HasPrefix(rest, ".") && !strings.HasPrefix(rest, "tmp/") {
				if d.IsDir() && dir == "local/volumes/" {
					return fs.SkipDir
				}
				return nil
			}
		}
		if !strings.HasPrefix(name, "sandlot.db-") {
			c["file "+name]++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/tmp", "/run", "/var/run"} {
		left, err := filepath.Glob(filepath.Join(dir, "runsc-sbx_*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range left {
			if h.ours(path) {
				c["file "+path]++
			}
		}
	}
}

// ours reports whether a file that names a sandbox was made since this process began: others may test at the same time, but only those whose
// paths are too long for a socket have such files.
func (h host) ours(path string) bool {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false
	}
	self, err := os.Stat("/proc/self")
	return err == nil && time.Unix(st.Mtim.Unix()).After(self.ModTime()) && len(h.dir) > 60
}

// settled waits until a count is as it was, and fails with what differs if it never is.
func settled(t *testing.T, what string, before census, count func() census) {
	t.Helper()
	late := time.After(time.Minute)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		after := count()
		diff := before.diff(after)
		if diff == "" {
			return
		}
		select {
		case <-late:
			t.Errorf("%s: something is left or missing:\n%s", what, diff)
			return
		case <-tick.C: // what ends tells nobody
		}
	}
}
