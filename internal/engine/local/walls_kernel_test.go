package local_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestWallNetwork tries to reach anything at all from a sandbox without a network device. The ways through the gateway are tested where it
// is.
func TestWallNetwork(t *testing.T) {
	w := newWall(t)
	for _, mode := range []sandbox.NetworkMode{sandbox.NetworkNone, sandbox.NetworkEgress} {
		sp := spec()
		sp.Network.Mode = mode
		ref := create(t, w.Engine, sp)
		host, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		_, port, err := net.SplitHostPort(host.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		for _, user := range w.users() {
			all := []attempt{
				{attack: "devices beside lo", args: "links", done: "lo"},
				{attack: "packets of any kind", args: fmt.Sprintf("socket=%d,%d,%d", unix.AF_PACKET, unix.SOCK_RAW, 0x0300)},
				{attack: "a hypervisor's sockets", args: fmt.Sprintf("socket=%d,%d,0", unix.AF_VSOCK, unix.SOCK_STREAM)},
				{attack: "the host's crypto", args: fmt.Sprintf("socket=%d,%d,0", unix.AF_ALG, unix.SOCK_SEQPACKET)},
				{attack: "events of the host's kernel", args: fmt.Sprintf("socket=%d,%d,%d", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT)},
				{attack: "the host's firewall", args: fmt.Sprintf("socket=%d,%d,%d", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)},
				{attack: "Bluetooth", args: fmt.Sprintf("socket=%d,%d,0", unix.AF_BLUETOOTH, unix.SOCK_RAW)},
				{attack: "raw IP", args: fmt.Sprintf("socket=%d,%d,%d", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)},
				{attack: "the network of the guest", args: "setns=/proc/1/ns/net"},
				{attack: "a server of the host on 127.0.0.1", args: "send=127.0.0.1," + port},
			}
			for _, resolver := range []string{"8.8.8.8", "1.1.1.1", "127.0.0.53", "127.0.0.1", "169.254.169.254", "169.254.169.253", "10.0.0.2", "172.17.0.1", "192.168.1.1"} {
				all = append(all, attempt{attack: "a secret in a question to the name server " + resolver, args: "send=" + resolver + ",53"})
			}
			w.try(t, ref, user, all...)
			if out, code := sh(t, w, ref, user, "grep -i nameserver /etc/resolv.conf"); code == 0 {
				t.Errorf("%s has a name server, as %s: %q", mode, user, out)
			}
			for _, name := range []string{"metadata.google.internal", "example.com"} {
				if out, code := sh(t, w, ref, user, "timeout 2 getent ahosts "+name); code == 0 {
					t.Errorf("%s is resolved in mode %s, as %s: %q", name, mode, user, out)
				}
			}
		}
		destroy(t, w.Engine, ref)
	}
}

// TestWallDevices tries to get at devices of the host.
func TestWallDevices(t *testing.T) {
	w := newWall(t)
	sp := spec()
	ref := create(t, w.Engine, sp)
	// gVisor's own; char holds links to the others.
	harmless := strings.Fields("char core fd full fuse net null ptmx pts random shm stderr stdin stdout tty urandom zero")
	out, code := sh(t, w, ref, guest.UserRoot, "ls /dev; ls -R /dev/net")
	if code != 0 && !strings.Contains(out, "No such file") {
		t.Fatal(out)
	}
	for _, name := range strings.Fields(strings.Split(out, "/dev/net")[0]) {
		if !slices.Contains(harmless, name) && !strings.HasPrefix(name, "ls:") {
			t.Errorf("there is a device %s", name)
		}
	}
	for _, user := range w.users() {
		// These two are gVisor's own, and need capabilities that nobody inside has.
		w.try(t, ref, user, attempt{attack: "a network device of its own", args: "tun"},
			attempt{attack: "a file system of its own", args: "mount=fuse,/mnt,fuse,0"})
		for _, dir := range []string{"/workspace", "/tmp", "/dev", "/dev/shm", "/root", guest.SocketDir} {
			var all []attempt
			for _, d := range []struct{ name, numbers string }{
				{"memory", "c,1,1"}, {"kernel memory", "c,1,2"}, {"ports", "c,1,4"}, {"kernel log", "c,1,11"}, {"kvm", "c,10,232"}, {"vfio", "c,10,196"},
				{"first disk", "b,8,0"}, {"virtual disk", "b,253,0"}, {"nvme", "b,259,0"}, {"loop", "b,7,0"}, {"console", "c,5,1"}, {"GPU", "c,195,0"}, {"TPM", "c,10,224"},
			} {
				all = append(all, attempt{attack: "the host's " + d.name + " by a node in " + dir, args: "mknod=" + dir + "/node-" + strings.ReplaceAll(d.numbers, ",", "-") + "," + d.numbers})
			}
			w.try(t, ref, user, all...)
		}
	}
	// None of that is on the host's disk.
	for _, dir := range []string{filepath.Join(w.cfg.Dir, "volumes", sp.Volume.ID), filepath.Join(w.cfg.Dir, "sandboxes", string(ref.ID)+"-"+ref.Run)} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type()&os.ModeDevice != 0 {
				t.Errorf("a device node of the sandbox is on the host: %s", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w.wantLife(t, ref)
}

// TestWallProcAndSys tries to read and write what /proc and /sys tell of, and do to, a host.
func TestWallProcAndSys(t *testing.T) {
	w := newWall(t)
	ref := create(t, w.Engine, spec())
	writes := []string{
		"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/sysrq", "/proc/sys/kernel/hostname",
		"/proc/sys/kernel/randomize_va_space", "/proc/sys/vm/drop_caches", "/proc/sys/vm/overcommit_memory", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/fs/file-max",
		"/proc/sys/net/ipv4/ip_forward", "/proc/irq/0/smp_affinity", "/proc/1/oom_score_adj", "/proc/1/comm", "/proc/mtrr", "/proc/acpi/wakeup", "/proc/scsi/scsi",
		"/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run", "/sys/power/state", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent",
		"/sys/fs/cgroup/cgroup.procs", "/sys/class/net/lo/mtu", "/sys/module/kernel/parameters/panic", "/sys/firmware/efi/vars/new_var",
	}
	before := map[string][]byte{}
	read := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil // this host has no such thing, or nobody may read it
		}
		return data
	}
	for _, path := range writes {
		before[path] = read(path)
	}
	for _, user := range w.users() {
		for _, path := range writes {
			// What is written there would be a disaster for a host, so it is what is there, where that can be read.
			value := strings.TrimSpace(string(before[path]))
			if value == "" || path == "/proc/sysrq-trigger" {
				value = "h"
			}
			if out, code := sh(t, w, ref, user, "echo '"+value+"' > "+path); code == 0 && path != "/proc/1/comm" && path != "/proc/1/oom_score_adj" {
				if inSandboxOnly[path] {
					continue
				}
				t.Errorf("%s can be written to, as %s: %q", path, user, out)
			}
		}
		for _, path := range []string{"/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/sched_debug", "/proc/timer_list", "/proc/iomem", "/proc/ioports", "/proc/modules",
			"/proc/slabinfo", "/proc/vmallocinfo", "/proc/pagetypeinfo", "/proc/config.gz", "/proc/diskstats", "/proc/partitions", "/proc/interrupts", "/proc/bus/pci/devices",
			"/sys/firmware/acpi/tables/DSDT", "/sys/firmware/dmi/tables/DMI", "/sys/kernel/debug/x", "/sys/kernel/security/lsm", "/sys/class/block/sda/size", "/proc/kallsyms"} {
			if out, code := sh(t, w, ref, user, "head -c 64 "+path+" | grep -c ''"); code == 0 && strings.TrimSpace(out) != "0" {
				t.Errorf("%s can be read, as %s: %q", path, user, out)
			}
		}
		// What it may read is of gVisor's kernel and not of this host's.
		for _, path := range []string{"/proc/version", "/proc/cmdline", "/proc/sys/kernel/random/boot_id", "/proc/uptime", "/proc/self/mountinfo", "/proc/net/dev", "/proc/net/tcp", "/proc/net/unix", "/etc/machine-id"} {
			want := read(path)
			if len(want) < 8 || path == "/proc/net/tcp" && bytes.Count(want, []byte("\n")) < 2 {
				continue
			}
			if out, code := sh(t, w, ref, user, "cat "+path); code == 0 && out == string(want) {
				t.Errorf("%s is the host's: %q", path, out)
			}
		}
		if out, _ := sh(t, w, ref, user, "dmesg 2>&1 | head -n 100; hostname; cat /proc/loadavg"); strings.Contains(out, hostRelease(t)) {
			t.Errorf("the kernel's messages are the host's: %q", out)
		}
		if host, err := os.Hostname(); err == nil && len(host) > 3 {
			if out, _ := sh(t, w, ref, user, "hostname; cat /etc/hostname /etc/hosts /proc/sys/kernel/hostname"); strings.Contains(out, host) {
				t.Errorf("it knows the host's name: %q", out)
			}
		}
	}
	for path, want := range before {
		if got := read(path); !bytes.Equal(got, want) {
			t.Errorf("this host's %s was %q and is %q", path, want, got)
		}
	}
	w.wantLife(t, ref)
}

// inSandboxOnly are settings of gVisor's kernel that root of a sandbox may change: they are the sandbox's own.
var inSandboxOnly = map[string]bool{"/proc/sys/net/ipv4/ip_forward": true}

func hostRelease(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

// TestWallSystemCalls tries what is for the root of a host only, or has been a way out of containers.
func TestWallSystemCalls(t *testing.T) {
	w := newWall(t)
	ref, neighbour := create(t, w.Engine, spec()), create(t, w.Engine, spec())
	call := func(attack string, number uintptr, args ...uintptr) attempt {
		a := attempt{attack: attack, args: fmt.Sprintf("syscall=%s,%d", strings.ReplaceAll(attack, " ", "_"), number)}
		for _, arg := range args {
			a.args += fmt.Sprintf(",%d", int(arg))
		}
		return a
	}
	all := []attempt{
		call("bpf", unix.SYS_BPF, 0, 0, 0),
		call("performance counters", unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0),
		call("a kernel module", unix.SYS_INIT_MODULE, 0, 0, 0),
		call("a kernel module from a file", unix.SYS_FINIT_MODULE, 0, 0, 0),
		call("removing a kernel module", unix.SYS_DELETE_MODULE, 0, 0),
		call("another kernel", unix.SYS_KEXEC_LOAD, 0, 0, 0, 0),
		call("rebooting", unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART),
		call("page faults of the kernel", unix.SYS_USERFAULTFD, 0),
		call("swap", unix.SYS_SWAPON, 0, 0),
		call("accounting", unix.SYS_ACCT, 0),
		call("the clock", unix.SYS_CLOCK_SETTIME, 0, 0),
		call("the clock adjusted", unix.SYS_ADJTIMEX, 0),
		call("quotas", unix.SYS_QUOTACTL, 0, 0, 0, 0),
		call("watching all files", unix.SYS_FANOTIFY_INIT, 0, 0),
		call("a file system by its parts", unix.SYS_FSOPEN, 0, 0),
		call("a tree of mounts", unix.SYS_OPEN_TREE, ^uintptr(0), 0, 1),
		call("moving a mount", unix.SYS_MOVE_MOUNT, ^uintptr(0), 0, ^uintptr(0), 0, 0),
		call("attributes of a mount", unix.SYS_MOUNT_SETATTR, ^uintptr(0), 0, 0, 0, 0),
		call("comparing kernel objects", unix.SYS_KCMP, 1, 1, 0, 0, 0),
		call("hanging up the terminal", unix.SYS_VHANGUP),
		call("NUMA of another process", unix.SYS_MIGRATE_PAGES, 1, 0, 0, 0),
	}
	for _, user := range w.users() {
		w.try(t, ref, user, all...)
		// gVisor's own: they lead to nothing of the host.
		w.try(t, ref, user,
			attempt{attack: "io_uring", args: fmt.Sprintf("syscall=io_uring_setup,%d,8,0", unix.SYS_IO_URING_SETUP)},
			attempt{attack: "a key of the session", args: fmt.Sprintf("syscall=keyctl,%d,0,-3,0", unix.SYS_KEYCTL), done: `keyctl returned \d+`},
			attempt{attack: "the kernel's messages", args: fmt.Sprintf("syscall=syslog,%d,10,0,0", unix.SYS_SYSLOG), done: `syslog returned \d+`})
	}
	w.wantLife(t, ref)
	w.wantLife(t, neighbour)
}

// TestWallSetuid tries to become root by what a file's mode or capabilities promise, wherever the file lies.
func TestWallSetuid(t *testing.T) {
	w := newWall(t)
	if w.single {
		t.Skip("everybody is root inside, which stands for the caller")
	}
	ref := create(t, w.Engine, spec())
	for _, dir := range []string{"/workspace", "/tmp", "/dev/shm", "/root/open"} {
		if out, code := sh(t, w, ref, guest.UserRoot, fmt.Sprintf("mkdir -p %s && chmod 755 /root %[1]s && cp %s %[1]s/s && chown 0:0 %[1]s/s && chmod 6755 %[1]s/s && cp %[2]s %[1]s/c && chmod 755 %[1]s/c", dir, climb)); code != 0 {
			t.Fatal(out)
		}
		_, _ = sh(t, w, ref, guest.UserRoot, climb+" file_caps="+dir+"/c") // where it is refused, so much the better
		for attack, file := range map[string]string{"set-uid": "s", "capabilities of a file": "c"} {
			out, code := sh(t, w, ref, guest.UserAgent, dir+"/"+file+" whoami")
			if refused := code == 126 && strings.Contains(out, "ermission denied"); !refused && (code != 0 || out != "whoami done: uid 1000 gid 1000 caps 0000000000000000\n") {
				t.Errorf("%s in %s: %d %q", attack, dir, code, out)
			}
		}
	}
	for _, program := range []string{"su -c id root", "sudo -n id", "newgrp root", "passwd -d root"} {
		out, code := sh(t, w, ref, guest.UserAgent, "timeout 5 "+program+" </dev/null")
		if code == 0 || strings.Contains(out, "uid=0") {
			t.Errorf("%s: %d %q", program, code, out)
		}
	}
	// A file that root of a sandbox has made set-uid is nobody's of the host: TestFilesBelongToNobodyOfTheHost.
	if out, code := sh(t, w, ref, guest.UserRoot, climb+" whoami"); code != 0 || !strings.HasPrefix(out, "whoami done: uid 0 ") {
		t.Errorf("root itself: %d %q", code, out)
	}
}
