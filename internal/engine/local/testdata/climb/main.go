// Command climb tries from inside a sandbox what a shell can't. Each argument names an attempt, perhaps with arguments of its own behind
// colons; for each it writes one line: the name, then "refused" and why, or "done" and what came of it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	for _, arg := range os.Args[1:] {
		name, rest, _ := strings.Cut(arg, "=")
		var args []string
		if rest != "" {
			args = strings.Split(rest, ",")
		}
		try, ok := attempts[name]
		if !ok {
			fmt.Println(name, "unknown")
			os.Exit(2)
		}
		out, err := try(args)
		if err != nil {
			fmt.Println(name, "refused:", strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		fmt.Println(name, "done:", out)
	}
}

// attempts return what they got, or why they did not.
var attempts = map[string]func(args []string) (string, error){
	"open_by_handle":  openByHandle,
	"mount":           mount,
	"remount":         remount,
	"pivot_root":      func([]string) (string, error) { return "", unix.PivotRoot("/tmp", "/tmp") },
	"chroot":          escapeChroot,
	"setns":           setns,
	"own_namespace":   ownNamespace,
	"in_namespace":    inNamespace,
	"ptrace":          func(a []string) (string, error) { return "", unix.PtraceSeize(number(a[0])) },
	"read_memory":     readMemory,
	"socket":          socket,
	"dial":            dial,
	"listen":          listen,
	"send":            send,
	"links":           links,
	"mknod":           mknod,
	"tun":             tun,
	"syscall":         anySyscall,
	"whoami":          whoami,
	"file_caps":       fileCaps,
	"path_descriptor": pathDescriptor,
	"fake_guest":      fakeGuest,
	"deep":            deep,
}

// number reads an int, or an address that is none.
func number(s string) int {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		panic(err)
	}
	return int(n)
}

// openByHandle opens a file by number, as whoever breaks out of a container does that shares a file system with its host.
func openByHandle(a []string) (string, error) {
	dir, err := unix.Open(a[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	root := make([]byte, 8)
	root[0] = 2 // the root directory of most file systems
	fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(1, root), unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	return fmt.Sprint("descriptor ", fd), nil
}

func mount(a []string) (string, error) {
	return "", unix.Mount(a[0], a[1], a[2], uintptr(number(a[3])), "")
}

func remount(a []string) (string, error) {
	if err := unix.Mount("", a[0], "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		if again := unix.Mount("", a[0], "", unix.MS_REMOUNT, ""); again != nil {
			return "", errors.Join(err, again)
		}
	}
	return "", nil
}

// escapeChroot is the way out of a chroot that root has, and then tells whether there is a file.
func escapeChroot(a []string) (string, error) {
	if err := errors.Join(os.MkdirAll("/tmp/jail", 0o755), unix.Chroot("/tmp/jail")); err != nil {
		return "", err
	}
	for range 64 {
		if err := unix.Chdir(".."); err != nil {
			return "", err
		}
	}
	if err := unix.Chroot("."); err != nil {
		return "", err
	}
	if _, err := os.Stat(a[0]); err != nil {
		return "", err
	}
	return a[0] + " is there", nil
}

func setns(a []string) (string, error) {
	fd, err := unix.Open(a[0], unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	return "", unix.Setns(fd, 0)
}

// ownNamespace makes this program again as root of a user namespace of its own, where it has every capability, and lets that one try.
func ownNamespace(a []string) (string, error) {
	cmd := exec.Command("/proc/self/exe", a[0]+"="+strings.Join(a[1:], ","))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w %s", err, strings.TrimSpace(string(out)))
	}
	if strings.Contains(string(out), " refused: ") {
		return "", errors.New(strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// inNamespace makes a read-only directory writable and writes a file there, with whatever capabilities it has.
func inNamespace(a []string) (string, error) {
	write := func() error { return os.WriteFile(a[1], []byte("by the sandbox"), 0o755) }
	if write() == nil {
		return "it was writable", nil
	}
	errs := []error{}
	for _, flags := range []uintptr{unix.MS_REMOUNT | unix.MS_BIND, unix.MS_REMOUNT} {
		errs = append(errs, unix.Mount("", a[0], "", flags, ""))
		if write() == nil {
			return "mounted anew", nil
		}
	}
	bound := unix.Mount(a[0], "/mnt", "", unix.MS_BIND|unix.MS_REC, "")
	errs = append(errs, bound)
	if bound == nil {
		errs = append(errs, unix.Mount("", "/mnt", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
		if err := os.WriteFile("/mnt/"+a[1][len(a[0]):], []byte("by the sandbox"), 0o755); err == nil {
			return "bound elsewhere", nil
		}
	}
	errs = append(errs, unix.Chmod(a[1], 0o777), os.Remove(a[1]), os.Rename(a[1], a[1]+".moved"))
	return "", errors.Join(errs...)
}

func readMemory(a []string) (string, error) {
	buf := make([]byte, 4096)
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	n, err := unix.ProcessVMReadv(number(a[0]), local, []unix.RemoteIovec{{Base: uintptr(number(a[1])), Len: len(buf)}}, 0)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(n, " bytes"), nil
}

func socket(a []string) (string, error) {
	fd, err := unix.Socket(number(a[0]), number(a[1]), number(a[2]))
	if err != nil {
		return "", err
	}
	return fmt.Sprint("descriptor ", fd), nil
}

// dial connects to a Unix socket; @ at its beginning stands for an abstract one.
func dial(a []string) (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: a[0]}); err != nil {
		return "", err
	}
	return "connected", nil
}

// listen listens on a Unix socket until it is killed.
func listen(a []string) (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: a[0]}), unix.Listen(fd, 1)); err != nil {
		return "", err
	}
	fmt.Println("listening")
	time.Sleep(time.Hour)
	return "", nil
}

// send sends a datagram, a question to a DNS server, and waits a second for an answer.
func send(a []string) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return "", err
	}
	to := &unix.SockaddrInet4{Port: number(a[1])}
	if _, err := fmt.Sscanf(a[0], "%d.%d.%d.%d", &to.Addr[0], &to.Addr[1], &to.Addr[2], &to.Addr[3]); err != nil {
		return "", err
	}
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06secret\x07example\x03com\x00\x00\x01\x00\x01")
	if err := unix.Sendto(fd, question, 0, to); err != nil {
		return "", err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return "", err
	}
	n, _, err := unix.Recvfrom(fd, make([]byte, 512), 0)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(n, " bytes of an answer"), nil
}

// links lists the network devices as netlink has them.
func links([]string) (string, error) {
	b, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
	if err != nil {
		return "", err
	}
	all, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return "", err
	}
	var names []string
	for _, m := range all {
		if m.Header.Type != syscall.RTM_NEWLINK {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return "", err
		}
		for _, at := range attrs {
			if at.Attr.Type == syscall.IFLA_IFNAME {
				names = append(names, strings.TrimRight(string(at.Value), "\x00"))
			}
		}
	}
	return strings.Join(names, " "), nil
}

// mknod makes a device node and reads from it.
func mknod(a []string) (string, error) {
	mode := uint32(unix.S_IFCHR)
	if a[1] == "b" {
		mode = unix.S_IFBLK
	}
	if err := unix.Mknod(a[0], mode|0o666, int(unix.Mkdev(uint32(number(a[2])), uint32(number(a[3]))))); err != nil {
		return "", err
	}
	f, err := os.Open(a[0])
	if err != nil {
		return "", err
	}
	n, err := f.Read(make([]byte, 512))
	if err != nil {
		return "", err
	}
	return fmt.Sprint(n, " bytes"), nil
}

// tun makes a network device that programs speak for.
func tun([]string) (string, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	req, err := unix.NewIfreq("tun0")
	if err != nil {
		return "", err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	return "a device", unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

// anySyscall calls the kernel by number. A wild address may stand for a pointer: what matters is whether it is refused before it is read.
func anySyscall(a []string) (string, error) {
	var n [7]uintptr
	for i, s := range a[1:] {
		n[i] = uintptr(number(s))
	}
	r, _, e := unix.RawSyscall6(n[0], n[1], n[2], n[3], n[4], n[5], n[6])
	if e != 0 {
		return "", fmt.Errorf("%s: %w", a[0], e)
	}
	return fmt.Sprint(a[0], " returned ", int(r)), nil
}

// whoami tells the effective user and the effective capabilities.
func whoami([]string) (string, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", err
	}
	caps := ""
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps = strings.TrimSpace(v)
		}
	}
	return fmt.Sprintf("uid %d gid %d caps %s", os.Geteuid(), os.Getegid(), caps), nil
}

// fileCaps gives a program every capability.
func fileCaps(a []string) (string, error) {
	all := []byte{1, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff} // VFS_CAP_REVISION_2, effective
	return "", unix.Setxattr(a[0], "security.capability", all, 0)
}

// pathDescriptor goes up from a directory by descriptors that merely name, and tells whether there is a file.
func pathDescriptor(a []string) (string, error) {
	fd, err := unix.Open(a[0], unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	for range 64 {
		if fd, err = unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return "", err
		}
	}
	f, err := unix.Openat(fd, strings.TrimPrefix(a[1], "/"), unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	return fmt.Sprint("descriptor ", f), nil
}

// deep makes a directory in a directory, and so on.
func deep(a []string) (string, error) {
	fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	for range number(a[1]) {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			return "", err
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return "", err
		}
		if err := unix.Close(fd); err != nil {
			return "", err
		}
		fd = next
	}
	return "deep", nil
}

// fakeGuest takes the guest's place at its socket and answers its host in some bad way, until it is killed.
func fakeGuest(a []string) (string, error) {
	path, manner := a[0], a[1]
	if err := os.Remove(path); err != nil {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 16)); err != nil {
		return "", err
	}
	fmt.Println("listening")
	for {
		conn, _, err := unix.Accept(fd)
		if err != nil {
			return "", err
		}
		go answer(conn, manner)
	}
}

// answer answers one host.
func answer(conn int, manner string) {
	defer unix.Close(conn)
	// Frames of yamux: version, type (0 data, 1 window, 2 ping), flags (2 = ACK), stream, length.
	window := []byte{0, 1, 0, 2, 0, 0, 0, 1, 0, 0x10, 0, 0}
	data := func(s string) []byte {
		return append([]byte{0, 0, 0, 0, 0, 0, 0, 1, byte(len(s) >> 24), byte(len(s) >> 16), byte(len(s) >> 8), byte(len(s))}, s...)
	}
	write := func(b []byte) bool { _, err := unix.Write(conn, b); return err == nil }
	switch manner {
	case "hangup":
	case "silence":
		_, _ = unix.Read(conn, make([]byte, 1<<16)) // whatever it says
		time.Sleep(time.Hour)
	case "noise":
		for write([]byte(strings.Repeat("\xde\xad\xbe\xef", 1<<10))) {
			continue
		}
	case "nonsense":
		_ = write(window) && write(data("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\nnot JSON!"))
		time.Sleep(time.Hour)
	case "flood":
		if write(window) && write(data("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")) {
			for write(data(strings.Repeat("[", 1<<14))) {
				continue
			}
		}
	case "header":
		if write(window) && write(data("HTTP/1.1 200 OK\r\nX: ")) {
			for write(data(strings.Repeat("y", 1<<14))) {
				continue
			}
		}
	}
}
