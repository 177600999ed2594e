package local_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// worldEnv marks a process that plays a host with a network of its own.
const worldEnv = "SANDLOT_LOCAL_TEST_WORLD"

// TestOpenNetwork runs the tests of sandboxes with network devices on a host that is a network namespace, so that neither this
// machine's network nor its rules are touched. They are the tests that call inWorld.
func TestOpenNetwork(t *testing.T) {
	if os.Getenv(worldEnv) != "" {
		t.Skip("this is the child")
	}
	if os.Getuid() != 0 || os.Getenv(childEnv) != "" {
		t.Skip("only real root gives sandboxes network devices")
	}
	t.Parallel() // the child counts what is its own
	dir := openDir(t)
	cfg := config(t, dir)
	cmd := exec.CommandContext(t.Context(), copyFile(t, "/proc/self/exe", filepath.Join(dir, "local.test")), "-test.run=^TestNetwork", "-test.v", "-test.timeout=10m")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), worldEnv+"=1", guestEnv+"="+cfg.Guest, runtimeEnv+"="+cfg.Runtime)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		skip(t, "this host lets root make no network namespace: "+err.Error())
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestNetworkWalls")) {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// The world outside of the sandboxes: the host, which is this process's network namespace, and a namespace that is everything else.
const (
	hostPublic4, hostPublic6 = "8.8.4.2", "2600:1::2"
	hostPrivate4             = "192.168.50.1"
	public4, public6         = "9.9.9.9", "2600::1"
	resolver                 = "10.53.53.53" // the host's: private, as is usual
)

// elsewhere are the addresses that the other namespace has.
var elsewhere = []string{
	public4, public6, "1.1.1.1", resolver,
	"169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", // metadata services
	"10.9.9.9", "172.16.5.5", "192.168.77.2", "100.64.7.7", "198.18.0.7", "fd12:3456::7", // neighbours
}

// world is that network, with servers that note who reached them.
type world struct {
	internet *os.File // the other namespace

	mu    sync.Mutex
	notes []note
	conns chan net.Conn // to port 7777 of the other namespace

	udp    []server
	synced chan struct{} // a server has read the word sync
}

// server is a UDP server of the world.
type server struct {
	addr string
	in   func(func() error) error // calls in its namespace
}

// note is a request that reached a server.
type note struct {
	server   string // "host" or "elsewhere"
	to, from netip.AddrPort
}

var theWorld = sync.OnceValues(newWorld)

// inWorld returns the world, or skips if this process isn't in one.
func inWorld(t *testing.T) *world {
	t.Helper()
	if os.Getenv(worldEnv) == "" {
		t.Skip("TestOpenNetwork runs it")
	}
	w, err := theWorld()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func newWorld() (*world, error) {
	w := &world{conns: make(chan net.Conn, 8), synced: make(chan struct{}, 100)}
	if err := onLostThread(func() error { return errors.Join(unix.Unshare(unix.CLONE_NEWNET), w.open()) }); err != nil {
		return nil, err
	}
	if err := errors.Join(
		write("/proc/sys/net/ipv4/ip_forward", "1"), write("/proc/sys/net/ipv6/conf/all/forwarding", "1"),
		ip("link set lo up"),
		ip("addr add "+hostPrivate4+"/32 dev lo"),
		ip("link add up0 mtu 1400 type veth peer name far0 mtu 1400 netns /proc/%d/fd/%d", os.Getpid(), w.internet.Fd()),
		ip("addr add "+hostPublic4+"/30 dev up0"), ip("addr add "+hostPublic6+"/64 dev up0 nodad"), ip("link set up0 up"),
	); err != nil {
		return nil, err
	}
	if err := w.in(func() error {
		all := []error{ip("link set lo up"), ip("addr add 8.8.4.1/30 dev far0"), ip("addr add 2600:1::1/64 dev far0 nodad"), ip("link set far0 up")}
		for _, a := range elsewhere {
			all = append(all, ip("addr add %s dev lo nodad", a))
		}
		return errors.Join(all...)
	}); err != nil {
		return nil, err
	}
	if err := errors.Join(ip("route add default via 8.8.4.1"), ip("-6 route add default via 2600:1::1"), ip("route add 169.254.0.0/16 dev up0")); err != nil {
		return nil, err
	}
	if err := errors.Join(w.serve("host"), w.in(func() error { return w.serve("elsewhere") })); err != nil {
		return nil, err
	}
	return w, resolvBy(resolver)
}

func (w *world) open() (err error) {
	w.internet, err = os.Open("/proc/thread-self/ns/net")
	return err
}

// in calls f on a thread in the other namespace.
func (w *world) in(f func() error) error { return inNetns(w.internet, f) }

func inNetns(ns *os.File, f func() error) error {
	return onLostThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// onLostThread calls f on a thread that ends with it and is not the process's first, which gVisor takes for what is normal.
func onLostThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		done <- onLostThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// ip runs the tool of that name in the namespace of the calling thread.
func ip(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	out, err := exec.CommandContext(context.Background(), "ip", strings.Fields(line)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", line, err, out)
	}
	return nil
}

func write(path, text string) error { return os.WriteFile(path, []byte(text), 0) }

// resolvBy makes the host ask that resolver. Only this process's mounts change.
func resolvBy(addr string) error {
	f, err := os.CreateTemp("", "resolv-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.WriteString("nameserver " + addr + "\nsearch corp.internal\n"); err != nil {
		return err
	}
	return errors.Join(f.Close(), unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""), unix.Mount(f.Name(), "/etc/resolv.conf", "", unix.MS_BIND, ""))
}

// serve answers on TCP 80 and 7777 and on UDP 53 and 5000, in the namespace of the calling thread, for as long as the process lives.
func (w *world) serve(name string) error {
	ctx := context.Background()
	var lc net.ListenConfig
	web, err := lc.Listen(ctx, "tcp", ":80")
	if err != nil {
		return err
	}
	go w.accept(name, web, func(c net.Conn) {
		defer c.Close()
		_, _ = c.Read(make([]byte, 1024)) // whatever it asks
		_, _ = fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\nserved to %s\n", c.RemoteAddr())
		if name == "elsewhere" {
			_, _ = c.Write(bytes.Repeat([]byte{'x'}, 1<<20))
		}
	})
	live, err := lc.Listen(ctx, "tcp", ":7777")
	if err != nil {
		return err
	}
	go w.accept(name, live, func(c net.Conn) { w.conns <- c })
	// One socket per address, since an answer from an unbound one may have another source.
	addrs := elsewhere
	if name == "host" {
		addrs = []string{"::"} // of both families
	}
	for _, a := range addrs {
		for _, port := range []string{"53", "5000"} {
			u, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(a, port))
			if err != nil {
				return err
			}
			s := server{addr: u.LocalAddr().String(), in: w.in}
			if name == "host" {
				s.in = func(f func() error) error { return f() }
			}
			w.udp = append(w.udp, s)
			go w.packets(name, u, port)
		}
	}
	return nil
}

func (w *world) accept(name string, l net.Listener, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		w.note(name, c.LocalAddr(), c.RemoteAddr())
		go handle(c)
	}
}

func (w *world) packets(name string, u net.PacketConn, port string) {
	for buf := make([]byte, 2048); ; {
		n, from, err := u.ReadFrom(buf)
		if err != nil {
			return
		}
		if string(buf[:n]) == syncWord {
			w.synced <- struct{}{}
			continue
		}
		w.note(name, u.LocalAddr(), from)
		answer := buf[:n]
		if port == "53" {
			answer = dnsAnswer(buf[:n])
		}
		_, _ = u.WriteTo(answer, from) // a lost packet
	}
}

// dnsAnswer answers every question with the public addresses.
func dnsAnswer(q []byte) []byte {
	end := 12
	for end < len(q) && q[end] != 0 {
		end += int(q[end]) + 1
	}
	if len(q) < 12 || end+5 > len(q) {
		return nil
	}
	kind := binary.BigEndian.Uint16(q[end+1:])
	data := netip.MustParseAddr(public4).AsSlice()
	if kind == 28 {
		data = netip.MustParseAddr(public6).AsSlice()
	}
	out := slices.Clone(q[:end+5])
	copy(out[2:], []byte{0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0})
	out = append(out, 0xc0, 12, byte(kind>>8), byte(kind), 0, 1, 0, 0, 0, 60, 0, byte(len(data)))
	return append(out, data...)
}

func (w *world) note(server string, to, from net.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, note{server, addrPort(to), addrPort(from)})
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String()) // it is one
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// noted forgets and returns what reached the servers.
func (w *world) noted() []note {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.notes
	w.notes = nil
	return out
}

const syncWord = "sync"

// settled returns what reached the servers until now: send sends a packet to port 5000 of public4 after all others, on their way;
// when it has arrived, each server must also have read what it was sent before.
func (w *world) settled(t *testing.T, send func()) []note {
	t.Helper()
	last := func(n note) bool { return n.to.Addr().String() == public4 && n.to.Port() == 5000 }
	send()
	for deadline := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		w.mu.Lock()
		arrived := slices.ContainsFunc(w.notes, last)
		w.mu.Unlock()
		if arrived {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the last packet never arrived")
		}
	}
	for _, s := range w.udp {
		if err := s.in(func() error {
			c, err := new(net.Dialer).DialContext(t.Context(), "udp", strings.Replace(s.addr, "[::]", "[::1]", 1))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(syncWord))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for range w.udp {
		select {
		case <-w.synced:
		case <-time.After(20 * time.Second):
			t.Fatal("a server is deaf")
		}
	}
	return slices.DeleteFunc(w.noted(), last)
}

// remains lists what sandboxes could leave of the network: devices, tables, routes, addresses and namespaces.
func remains(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		fmt.Fprintf(&b, "device %s\n", l.Attrs().Name)
	}
	for _, line := range [][]string{{"nft", "list", "tables"}, {"ip", "route", "show", "table", "all"}, {"ip", "rule"}, {"ip", "neigh", "show", "nud", "permanent"}} {
		out, err := exec.CommandContext(t.Context(), line[0], line[1:]...).Output()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s: %s\n", line, out)
	}
	// A namespace elsewhere holds a device of this one.
	spaces := map[string]bool{}
	for _, pattern := range []string{"/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		files, _ := filepath.Glob(pattern) // the pattern is well formed
		for _, f := range files {
			if link, err := os.Readlink(f); err == nil && strings.HasPrefix(link, "net:") {
				spaces[link] = true
			}
		}
	}
	fmt.Fprintf(&b, "%d network namespaces\n", len(spaces))
	return b.String()
}

// changes shows the lines by which two states differ.
func changes(before, after string) string {
	had, has := strings.Split(before, "\n"), strings.Split(after, "\n")
	var out []string
	for _, line := range has {
		if !slices.Contains(had, line) {
			out = append(out, "+ "+line)
		}
	}
	for _, line := range had {
		if !slices.Contains(has, line) {
			out = append(out, "- "+line)
		}
	}
	return strings.Join(out, "\n")
}

// reads returns what comes within the time.
func reads(c net.Conn, within time.Duration) string {
	_ = c.SetReadDeadline(time.Now().Add(within)) // it is open
	b := make([]byte, 256)
	n, err := c.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return string(b[:n])
}
