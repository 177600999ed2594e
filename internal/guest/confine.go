package guest

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keptCaps is what root in a sandbox may do: what Docker gives a container. Above all it lacks CAP_SYS_PTRACE and
// CAP_SYS_ADMIN, so that a process with the guest's own uid can neither look into the guest nor mount over what it uses.
var keptCaps = []uintptr{
	unix.CAP_AUDIT_WRITE, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_MKNOD,
	unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SYS_CHROOT,
}

// confineThread makes the calling thread, and so what is started from it, unable to gain more than keptCaps. The thread keeps its
// own capabilities: it needs them to become another user between fork and exec; the exec then takes them away.
func confineThread() error {
	kept := make(map[uintptr]bool, len(keptCaps))
	for _, c := range keptCaps {
		kept[c] = true
	}
	var errs []error
	for c := uintptr(0); c <= 63; c++ {
		if kept[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // the kernel knows no more
			break
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("drop capability %d: %w", c, err))
			break // it won't let us drop the others either
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("clear ambient capabilities: %w", err))
	}
	if err := clearInheritable(); err != nil {
		errs = append(errs, fmt.Errorf("clear inheritable capabilities: %w", err))
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("set no_new_privs: %w", err))
	}
	return errors.Join(errs...)
}

// clearInheritable empties the calling thread's inheritable set, which would survive a change of user.
func clearInheritable() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	return unix.Capset(&hdr, &data[0])
}

// siginfo is the part of the kernel's siginfo_t that waitid fills in.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	_                  [108]byte
}

// waitid finds a child that has ended and leaves it to be waited for; pid 0 means none.
func waitid(info *siginfo) error {
	const all = 0 // P_ALL
	_, _, e := unix.Syscall6(unix.SYS_WAITID, all, 0, uintptr(unsafe.Pointer(info)),
		unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
