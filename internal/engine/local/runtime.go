package local

import (
	"debug/elf"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/cli/maincli"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Main becomes gVisor, and doesn't return, if this process was started as one of its parts: the sentry, the gofer, or the
// short helpers that they re-exec. Every program that opens an Engine calls it before anything else, from its main function.
func Main() {
	if strings.HasPrefix(filepath.Base(os.Args[0]), "runsc") || os.Args[0] == "/proc/self/exe" {
		os.Args = takeResources(os.Args)
		maincli.Main()
		os.Exit(0)
	}
	// gVisor takes threads to other network namespaces and back to the one that the process's first thread is in. If that one were
	// away too at such a moment, threads would stay behind in the network of a sandbox. So it goes nowhere: it is this goroutine's.
	goruntime.LockOSThread()
}

// runtimeConfig gives gVisor's configuration. root holds its state files; gofers live in the network namespace netns, or if that is nil
// each in one of its own.
func runtimeConfig(root string, netns *os.File) (*config.Config, error) {
	// Otherwise gVisor pins one of its own by a mount in root, which would outlive everything.
	goferNetns := "new"
	if netns != nil {
		goferNetns = fmt.Sprintf("/proc/self/fd/%d", netns.Fd())
	}
	fs := flag.NewFlagSet("sandlot", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	config.RegisterFlags(fs)
	for name, value := range map[string]string{
		"root":     root,
		"platform": "systrap",
		"network":  "none",
		"host-uds": "create", // the guest may listen in our mount; nothing inside may dial host sockets
		// gVisor would move this very process into the sandbox's cgroup; package cgroups places the sandbox instead.
		"ignore-cgroups": "true",
		// Only matters for settings of the host that doctor reports; skips a check at each start.
		"host-settings":           "ignore",
		"gofer-network-namespace": goferNetns,
	} {
		if err := fs.Set(name, value); err != nil {
			return nil, fmt.Errorf("flag %s: %w", name, err)
		}
	}
	return config.NewFromFlags(fs)
}

// emptyNetns makes a network namespace with nothing in it. It lasts as long as the file or a process in it. It returns nil if this process
// can't leave it again, as when the host's network is not of its own user namespace: gVisor would lose a thread in it to each sandbox.
func emptyNetns() (f *os.File, err error) {
	err = onLostThread(func() error {
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer own.Close() // nothing was written
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return explain(fmt.Errorf("making a network namespace: %w", err))
		}
		if f, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			err = f.Close()
			f = nil
			return err
		}
		return nil
	})
	return f, err
}

// onLostThread calls f on a thread that ends with it, so f may take the thread to other namespaces. It is never the process's
// first thread: that one can't end, and gVisor takes its namespaces for those to go back to.
func onLostThread(f func() error) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // never unlocked, unless nothing was changed
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// As long as this goroutine has the first thread, another has another.
		done <- onLostThread(f)
		goruntime.UnlockOSThread()
	}()
	return <-done
}

// runtime is what gVisor keeps in variables of the process, so it is shared by all open Engines.
var runtime struct {
	sync.Mutex
	users               int
	stdin, out, errFile *os.File // the real streams
	null                *os.File
	exe                 string
}

// acquireRuntime points gVisor's process-wide variables at what Engines need; each call is paired with releaseRuntime.
func acquireRuntime(exe string, logger *slog.Logger) error {
	if exe == "" {
		exe = "/proc/self/exe"
	}
	if err := checkStatic(exe); err != nil {
		return err
	}
	runtime.Lock()
	defer runtime.Unlock()
	if runtime.users > 0 {
		if exe != runtime.exe {
			return fmt.Errorf("%w: two local engines with different runtimes in one process", sandbox.ErrUnsupported)
		}
		runtime.users++
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening the local engine: %w", err)
	}
	runtime.stdin, runtime.out, runtime.errFile, runtime.null, runtime.exe = os.Stdin, os.Stdout, os.Stderr, null, exe
	os.Stdin, os.Stdout, os.Stderr = null, null, null
	specutils.ExePath = exe
	log.SetTarget(&log.GoogleEmitter{Writer: &log.Writer{Next: &logWriter{log: logger}}})
	log.SetLevel(log.Warning)
	runtime.users = 1
	return nil
}

func releaseRuntime() {
	runtime.Lock()
	defer runtime.Unlock()
	if runtime.users--; runtime.users > 0 {
		return
	}
	os.Stdin, os.Stdout, os.Stderr = runtime.stdin, runtime.out, runtime.errFile
	_ = runtime.null.Close() // nothing was written to it
}

// checkStatic refuses a dynamically linked program: in the gofer's and the sentry's empty root there is no loader to start it.
func checkStatic(exe string) error {
	f, err := elf.Open(exe)
	if err != nil {
		return fmt.Errorf("looking at the runtime's program: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "not_static",
				Detail: "this program is dynamically linked, and gVisor can't start such a one; build it with CGO_ENABLED=0, as `make build` does"}
		}
	}
	return nil
}

// newContainer calls container.New, one at a time in this process: it forks, and meanwhile holds descriptors that a fork on behalf
// of another sandbox would pass on. The other's sentry refuses to start when it finds a directory among its descriptors.
func newContainer(conf *config.Config, args container.Args) (*container.Container, error) {
	forking.Lock()
	defer forking.Unlock()
	return container.New(conf, args)
}

var forking sync.Mutex

// logWriter takes gVisor's log lines over into ours, for those who debug.
type logWriter struct{ log *slog.Logger }

func (w *logWriter) Write(b []byte) (int, error) {
	w.log.Debug("gvisor", "line", strings.TrimSpace(string(b)))
	return len(b), nil
}
