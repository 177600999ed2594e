package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// stageEnv tells a re-exec of ourselves how far it is on its way into the namespaces.
const stageEnv = "SANDLOT_NAMESPACE"

const (
	stageWait = "wait" // in the user namespace; its uids are being mapped from outside
	stageIn   = "in"   // all done
)

// EnterNamespaces gives this process mounts of its own, and makes an ordinary user root in a user namespace of their own, where
// gVisor can work. It starts this program anew with the same arguments and environment: as root in the same process, else in a
// child, to which the outer process passes signals and whose exit code it takes over. In both cases it returns in the new
// program only. Call it before anything else happens. ErrUnsupported says what the host lacks and what to do.
func EnterNamespaces() error {
	switch stage := os.Getenv(stageEnv); {
	case stage == stageWait:
		return finishEntering()
	case stage == stageIn && os.Geteuid() == 0:
		ownMounts = true
		return os.Unsetenv(stageEnv)
	case stage == stageIn:
		return fmt.Errorf("%w: still not root in the user namespace", sandbox.ErrUnsupported)
	case os.Geteuid() == 0:
		return enterAsRoot()
	}
	code, err := enter()
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

// ownMounts says that mounts made by this process are seen by it and its children only, and end with them.
var ownMounts bool

// enterAsRoot unshares the mounts of one thread and starts over in it: an exec ends all other threads.
func enterAsRoot() error {
	goruntime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return explain(fmt.Errorf("making a mount namespace: %w", err))
	}
	if err := os.Setenv(stageEnv, stageIn); err != nil {
		return err
	}
	return fmt.Errorf("starting over in the mount namespace: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// finishEntering waits until the outer process has mapped our uids, and starts over: an exec as uid 0 gives the capabilities.
func finishEntering() error {
	pipe := os.NewFile(3, "mapped")
	if _, err := io.ReadAll(pipe); err != nil {
		return fmt.Errorf("waiting for the uid map: %w", err)
	}
	_ = pipe.Close() // it was only read from
	if err := os.Setenv(stageEnv, stageIn); err != nil {
		return err
	}
	return fmt.Errorf("starting over in the user namespace: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// enter runs this program in a new user namespace to its end and returns its exit code.
func enter() (int, error) {
	// The inner process is killed when the thread that started it ends, so that it never outlives us.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()

	uid, gid := os.Getuid(), os.Getgid()
	ranges := subordinate(uid, gid)
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...) // it ends by signals that are passed on
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var mapped *os.File
	if ranges == nil {
		cmd.Env = append(os.Environ(), stageEnv+"="+stageIn)
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	} else {
		cmd.Env = append(os.Environ(), stageEnv+"="+stageWait)
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		defer r.Close()
		cmd.ExtraFiles, mapped = []*os.File{r}, w
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, namespaceError(err)
	}
	if ranges != nil {
		if err := ranges.apply(cmd.Process.Pid, uid, gid); err != nil {
			_ = cmd.Process.Kill() // it waits for the map that it will never get
			_ = cmd.Wait()
			return 0, err
		}
		if err := mapped.Close(); err != nil {
			return 0, err
		}
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it may have ended
		case err := <-done:
			var exit *exec.ExitError
			switch {
			case err == nil:
				return 0, nil
			case !errors.As(err, &exit):
				return 0, err
			}
			if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return exit.ExitCode(), nil
		}
	}
}

// namespaceHints says which settings of this host forbid user namespaces, as commands that allow them.
func namespaceHints() []string {
	var hints []string
	for _, h := range []struct{ file, bad, fix string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		if data, err := os.ReadFile(h.file); err == nil && strings.TrimSpace(string(data)) == h.bad {
			hints = append(hints, h.fix)
		}
	}
	return hints
}

// namespaceError says what to do when the kernel refuses a user namespace.
func namespaceError(err error) error {
	what := "run Sandlot as root, or on a host that allows it"
	if hints := namespaceHints(); len(hints) > 0 {
		what = "as root: " + strings.Join(hints, "; ") + "; or run Sandlot as root"
	}
	return &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "no_user_namespace", Err: err,
		Detail: "this host does not let an ordinary user make a user namespace, which sandboxes need; " + what}
}

// subRange is the user's share of /etc/subuid and /etc/subgid.
type subRange struct{ uid, gid uint64 }

// subordinate returns the caller's range of subordinate ids, or nil if there is none that the system's helpers can map.
func subordinate(uid, gid int) *subRange {
	for _, helper := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(helper); err != nil {
			return nil
		}
	}
	names := []string{strconv.Itoa(uid)}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	}
	_ = gid // the subordinate gids are the user's too
	u, okU := lookupSubID("/etc/subuid", names)
	g, okG := lookupSubID("/etc/subgid", names)
	if !okU || !okG {
		return nil
	}
	return &subRange{uid: u, gid: g}
}

func lookupSubID(file string, names []string) (uint64, bool) {
	f, err := os.Open(file)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	return parseSubID(f, names)
}

// parseSubID finds the first range of at least rangeSize ids that belongs to one of names. Lines are name:start:count.
func parseSubID(r io.Reader, names []string) (uint64, bool) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(f) != 3 {
			continue
		}
		for _, name := range names {
			start, err1 := strconv.ParseUint(f[1], 10, 32)
			count, err2 := strconv.ParseUint(f[2], 10, 32)
			if f[0] == name && err1 == nil && err2 == nil && count >= rangeSize {
				return start, true
			}
		}
	}
	return 0, false
}

// apply maps root of the namespace to the caller and the rest to the range, through the system's set-uid helpers.
func (s subRange) apply(pid, uid, gid int) error {
	for _, m := range []struct {
		helper string
		id     int
		start  uint64
	}{{"newuidmap", uid, s.uid}, {"newgidmap", gid, s.gid}} {
		out, err := exec.CommandContext(context.Background(), m.helper, strconv.Itoa(pid),
			"0", strconv.Itoa(m.id), "1", "1", strconv.FormatUint(m.start, 10), strconv.Itoa(rangeSize)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s could not map the range of /etc/sub%s: %w: %s", sandbox.ErrUnsupported, m.helper,
				strings.TrimSuffix(strings.TrimPrefix(filepath.Base(m.helper), "new"), "map"), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// explain adds what to do to the errors of gVisor that a host's settings cause.
func explain(err error) error {
	text := err.Error()
	for _, h := range []struct{ sign, what string }{
		{"operation not permitted", "the kernel refused something that gVisor needs (in a container, allow user namespaces and ptrace, or run it privileged)"},
		{"no space left on device", "the disk or a kernel limit (user.max_user_namespaces, user.max_mnt_namespaces) is full"},
		{"function not implemented", "this kernel lacks a system call that gVisor needs; Linux 5.6 or newer is required"},
	} {
		if strings.Contains(text, h.sign) {
			if hints := namespaceHints(); len(hints) > 0 {
				h.what += "; as root, try: " + strings.Join(hints, "; ")
			}
			return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "host_unfit", Err: err, Detail: h.what + "; `sandlot doctor` looks at all of it"}
		}
	}
	return err
}
