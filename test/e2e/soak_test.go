package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/image/imagetest"
)

const (
	// soakEnv is CYCLES,KILLS or CYCLES,KILLS,SEED: how long TestSoak soaks. `make soak` sets it.
	soakEnv = "SANDLOT_SOAK"
	// soakerEnv marks the process that does it, with a network namespace of its own; its value is the server's uid.
	soakerEnv = "SANDLOT_SOAK_AS"
)

// TestSoak makes and ends sandboxes, and kills servers and what sandboxes run in at random moments. At the end there is of everything as much
// as there was at the beginning.
func TestSoak(t *testing.T) {
	if as := os.Getenv(soakerEnv); as != "" {
		uid, err := strconv.ParseUint(as, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		soak(t, uint32(uid))
		return
	}
	if os.Getuid() != 0 {
		t.Skip("only root can give this test a network of its own")
	}
	plan := os.Getenv(soakEnv)
	for name, c := range map[string]struct{ uid, short string }{"root": {"0", "12,5"}, "rootless": {"54323", "4,2"}} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestSoak$", "-test.v", "-test.timeout=0")
			cmd.Env = append(os.Environ(), soakerEnv+"="+c.uid)
			if plan == "" {
				cmd.Env = append(cmd.Env, soakEnv+"="+c.short)
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS: TestSoak")) {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// soaker is one installation that is soaked.
type soaker struct {
	host
	*server
	options options
	images  []api.Image
	modes   []string // of networks
	rng     *rand.Rand

	mu    sync.Mutex
	usual map[string]time.Duration // how long each deed took
}

func soak(t *testing.T, uid uint32) {
	cycles, kills, seed := soakPlan(t)
	t.Logf("%d cycles, %d kills, seed %d", cycles, kills, seed)
	must(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) // what a killed server leaves is ours, to be counted
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))

	k := &soaker{rng: rand.New(rand.NewPCG(seed, 0)), usual: map[string]time.Duration{}, modes: []string{"none", "egress"}}
	reg := imagetest.NewRegistry(t)
	k.images = []api.Image{{}, {Registry: reg.Push(t, "busybox:1", imagetest.Image(t, nil, imagetest.Busybox(t)))},
		{Registry: reg.Push(t, "glibc:1", imagetest.Image(t, nil, imagetest.Glibc(t)))}}
	k.options = installation(t, uid)
	k.options.args = append(k.options.args, "--private-registries="+reg.Host)
	k.host = newHost(k.options.data)
	untouched := k.count(t)

	with := k.options.args
	k.options.args = append(slices.Clone(with), "--pool=0") // so that an idle server holds the same at any time
	k.server = start(t, k.options)
	if sb, err := k.Create(within(t), api.CreateSandbox{Network: &api.Network{Mode: "open"}}); err == nil {
		k.modes = append(k.modes, "open")
		k.end(t, sb.ID)
	} else if client.Code(err) != "unsupported" && client.Code(err) != "no_open_network" {
		t.Fatal(err)
	}
	t.Logf("networks: %v", k.modes)
	for i := range len(k.images) * len(k.modes) { // one of each, so that all that is made once is made
		k.cycle(t, i)
	}
	k.idle()
	idle := k.countWithServer(t)
	t.Logf("an idle server:\n%v", idle)
	k.cycles(t, cycles)
	k.idle()
	settled(t, fmt.Sprintf("%d cycles", cycles), idle, func() census { return k.countWithServer(t) })
	k.stop(t)
	stopped := k.count(t)
	t.Logf("after its end:\n%v", stopped)

	// From here on with what is started ahead. When the server has ended, there must be none of that either.
	k.options.args = append(slices.Clone(with), "--pool=1")
	k.server = start(t, k.options)
	k.cycles(t, cycles/4)
	k.stop(t)
	settled(t, "cycles with sandboxes that were started ahead", stopped, func() census { return k.count(t) })
	for i := range kills {
		if t.Failed() {
			break
		}
		k.server = start(t, k.options)
		what := k.killDuring(t, deeds[i%len(deeds)])
		k.endAll(t)
		if i == kills-1 {
			k.cycle(t, 0) // it works as on the first day
		}
		k.stop(t)
		settled(t, what, stopped, func() census { return k.count(t) })
	}
	for kind := range stopped { // what a server keeps
		if strings.HasPrefix(kind, "file ") {
			delete(stopped, kind)
		}
	}
	for kind := range untouched {
		if strings.HasPrefix(kind, "file ") {
			delete(untouched, kind)
		}
	}
	if diff := untouched.diff(stopped); diff != "" {
		t.Errorf("the server has left:\n%s", diff)
	}
}

// countWithServer counts also what the server holds.
func (k *soaker) countWithServer(t *testing.T) census {
	t.Helper()
	c := k.count(t)
	k.countServer(t, c, k.pid(t))
	return c
}

// cycles does a number of cycles, two at a time.
func (k *soaker) cycles(t *testing.T, n int) {
	work := make(chan int)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range work {
				k.cycle(t, i)
			}
		})
	}
	for i := range n {
		if work <- i; t.Failed() {
			break
		}
	}
	close(work)
	wg.Wait()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func soakPlan(t *testing.T) (cycles, kills int, seed uint64) {
	t.Helper()
	parts := append(strings.Split(os.Getenv(soakEnv), ","), strconv.FormatInt(time.Now().UnixNano()%1e9, 10))
	for i, dst := range []func(int){func(n int) { cycles = n }, func(n int) { kills = n }, func(n int) { seed = uint64(n) }} {
		n, err := strconv.Atoi(parts[min(i, len(parts)-1)])
		must(t, err)
		dst(n)
	}
	return cycles, kills, seed
}

// installation prepares a data directory and the CLI for a server of that user.
func installation(t *testing.T, uid uint32) options {
	t.Helper()
	dir := dataDir(t)
	o := options{data: filepath.Join(dir, "data"), uid: uid, args: []string{"--demo-model"}}
	must(t, errors.Join(os.Chmod(dir, 0o755), os.Mkdir(o.data, 0o755), os.Chown(o.data, int(uid), int(uid))))
	if uid != 0 {
		// The shared toolkit may lie where another user can't reach.
		if out, err := exec.CommandContext(within(t), "cp", "-a", toolkit(), filepath.Join(dir, "toolkit")).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		o.args = append(o.args, "--toolkit="+filepath.Join(dir, "toolkit"))
	}
	return o
}

// pid is the process that is the server: rootless, the one that was started only waits for it.
func (k *soaker) pid(t *testing.T) int {
	t.Helper()
	pid := k.cmd.Process.Pid
	if k.options.uid == 0 {
		return pid
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	must(t, err)
	for _, f := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(f); err == nil {
			return n
		}
	}
	t.Fatal("the rootless server has no inner process")
	return 0
}

// idle lets go of what this test holds of the server.
func (k *soaker) idle() { k.HTTP.CloseIdleConnections() }

// pick makes a random choice; cycles run beside each other.
func (k *soaker) pick(n int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rng.IntN(n)
}

// timed notes how long a deed takes.
func (k *soaker) timed(deed string, do func() error) error {
	began := time.Now()
	err := do()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.usual[deed] = (k.usual[deed] + time.Since(began)) / 2 // the first of all makes more than others
	return err
}

// request is the i-th kind of sandbox.
func (k *soaker) request(i int) api.CreateSandbox {
	in := api.CreateSandbox{Network: &api.Network{Mode: k.modes[i%len(k.modes)]}, DiskMiB: 256, TimeoutS: 600}
	if image := k.images[i/len(k.modes)%len(k.images)]; image.Registry != "" {
		in.Image = &image
	}
	if i%2 == 0 {
		in.MemoryMiB, in.CPU, in.PIDs, in.OutputKiBS = 512, 1.5, 200, 4096
	}
	if i%5 == 0 {
		in.Volume = "shared"
	}
	return in
}

// cycle makes a sandbox, uses it and ends it.
func (k *soaker) cycle(t *testing.T, i int) {
	var sb api.Sandbox
	err := k.timed("create", func() (err error) { sb, err = k.Create(within(t), k.request(i)); return err })
	if err != nil {
		t.Errorf("cycle %d: create: %v", i, err)
		return
	}
	defer k.end(t, sb.ID)
	run, err := k.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"sh", "-c", "echo $0; exit 3", strconv.Itoa(i)}})
	if err != nil || run.Stdout != fmt.Sprintln(i) || run.ExitCode == nil || *run.ExitCode != 3 {
		t.Errorf("cycle %d: exec: %+v, %v", i, run, err)
	}
	switch i % 4 {
	case 1:
		if k.request(i).Network.Mode == "open" {
			return // can't be suspended
		}
		if err := k.timed("suspend", func() error { _, err := k.Suspend(within(t), sb.ID); return err }); err != nil {
			t.Errorf("cycle %d: suspend: %v", i, err)
		}
		if err := k.timed("resume", func() error { _, err := k.Resume(within(t), sb.ID); return err }); err != nil {
			t.Errorf("cycle %d: resume: %v", i, err)
		}
	case 2:
		var img api.StoredImage
		err := k.timed("snapshot", func() (err error) {
			return k.call(t, "POST", "/sandbox/"+sb.ID+"/snapshot", api.Snapshot{Name: "soak"}, &img)
		})
		if err == nil {
			err = k.call(t, "DELETE", "/image/"+img.ID, nil, nil)
		}
		if err != nil {
			t.Errorf("cycle %d: snapshot: %v", i, err)
		}
	case 3:
		var img api.StoredImage
		err := k.timed("build", func() error { return k.call(t, "POST", "/image", k.build(), &img) })
		if err == nil {
			err = k.call(t, "DELETE", "/image/"+img.ID, nil, nil)
		}
		if err != nil {
			t.Errorf("cycle %d: build: %v", i, err)
		}
	}
}

// build is an image that nobody has built before.
func (k *soaker) build() api.MakeImage {
	return api.MakeImage{Image: api.Image{Registry: k.images[1].Registry, DockerfileCommands: []string{fmt.Sprintf("RUN echo %d > /made; sleep 0.3", time.Now().UnixNano())}}}
}

// end ends a sandbox, which may have ended.
func (k *soaker) end(t *testing.T, id string) {
	t.Helper()
	err := k.timed("destroy", func() error { _, err := k.Terminate(within(t), id); return err })
	if err != nil && client.Code(err) != "already_terminated" {
		t.Errorf("terminating %s: %v", id, err)
	}
}

func (k *soaker) endAll(t *testing.T) {
	t.Helper()
	for {
		list, err := k.Sandboxes(within(t), client.Filter{States: []string{"creating", "running", "suspending", "suspended", "resuming", "stopping"}})
		must(t, err)
		if len(list.Sandboxes) == 0 {
			return
		}
		for _, sb := range list.Sandboxes {
			k.end(t, sb.ID)
		}
		if t.Failed() {
			return
		}
	}
}

// deeds are what is under way when something is killed.
var deeds = []string{"create", "destroy", "suspend", "resume", "snapshot", "build", "exec"}

// killDuring kills the server, or a process of a sandbox, in the middle of a deed, and starts the server anew if need be. It says what it did.
func (k *soaker) killDuring(t *testing.T, deed string) string {
	t.Helper()
	in := k.request(k.pick(len(k.images) * len(k.modes) * 2))
	if deed == "suspend" || deed == "resume" {
		in.Network.Mode = "none"
	}
	var id string
	if deed != "create" && deed != "build" {
		sb, err := k.Create(within(t), in)
		if err != nil {
			t.Errorf("create before %s: %v", deed, err)
			return deed
		}
		id = sb.ID
	}
	if deed == "resume" {
		if _, err := k.Suspend(within(t), id); err != nil {
			t.Errorf("suspend before resume: %v", err)
		}
	}
	s := k.server
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	work := map[string]func() error{
		"create":   func() error { _, err := s.Create(ctx, in); return err },
		"destroy":  func() error { _, err := s.Terminate(ctx, id); return err },
		"suspend":  func() error { _, err := s.Suspend(ctx, id); return err },
		"resume":   func() error { _, err := s.Resume(ctx, id); return err },
		"snapshot": func() error { return s.call(t, "POST", "/sandbox/"+id+"/snapshot", nil, nil) },
		"build":    func() error { return s.call(t, "POST", "/image", k.build(), nil) },
		"exec": func() error {
			_, err := s.ExecWait(ctx, id, api.Exec{Argv: []string{"sh", "-c", "i=0; while [ $i -lt 20 ]; do echo $i; i=$((i+1)); sleep 0.05; done"}})
			return err
		},
	}[deed]
	usual := max(k.usual[deed], 100*time.Millisecond)
	wait := time.Duration(k.pick(int(usual)*5/4 + 1))
	victims := []string{"server", "runsc-sandbox", "runsc-gofer", "stub"}
	victim := victims[k.pick(len(victims))]
	done := make(chan error, 1)
	go func() { done <- work() }()
	<-time.After(wait) // the moment is the point of this test
	if victim != "server" && !k.killRuntime(t, victim) {
		victim = "server" // there is no such process yet, or none any more
	}
	if victim == "server" {
		k.kill(t)
	}
	var err error
	select {
	case err = <-done:
	case <-time.After(patience):
		t.Errorf("killing %s %v after the beginning of %s: it never ends", victim, wait, deed)
	}
	what := fmt.Sprintf("killing the %s %v after the beginning of %s, which usually takes %v", victim, wait.Round(time.Millisecond), deed, usual.Round(time.Millisecond))
	t.Logf("%s: %v", what, err)
	if code := client.Code(err); victim != "server" && (code == "internal_error" || code == "incomplete_body") {
		t.Errorf("%s: nobody can know what happened: %v", what, err)
	}
	if victim == "server" {
		k.server = start(t, k.options)
	}
	return what
}

// killRuntime kills one of gVisor's processes of this installation, if there is one of that kind. A stub is a process that holds what a
// program of a sandbox is.
func (k *soaker) killRuntime(t *testing.T, kind string) bool {
	t.Helper()
	var found []int
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, f := range files {
		cmdline, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(cmdline, []byte(k.dir+"/")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		must(t, err)
		name := "runsc-sandbox"
		if kind == "runsc-gofer" {
			name = kind
		}
		if bytes.HasPrefix(cmdline, []byte(name)) {
			found = append(found, pid)
		}
	}
	if kind == "stub" {
		found = slices.Collect(childrenOf(found))
	}
	if len(found) == 0 {
		return false
	}
	return syscall.Kill(found[k.pick(len(found))], syscall.SIGKILL) == nil
}

// childrenOf yields the children of processes.
func childrenOf(pids []int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for _, pid := range pids {
			files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is well formed
			for _, file := range files {
				data, _ := os.ReadFile(file) // empty if it has ended
				for _, f := range strings.Fields(string(data)) {
					if n, err := strconv.Atoi(f); err == nil && !yield(n) {
						return
					}
				}
			}
		}
	}
}
