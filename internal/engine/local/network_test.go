package local_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func openSpec() sandbox.Spec {
	sp := spec()
	sp.Network.Mode = sandbox.NetworkOpen
	return sp
}

// openEngine opens an engine whose sandboxes can have network devices. All of a process have the same runtime.
func openEngine(t *testing.T, beside ...local.Config) (*local.Engine, local.Config) {
	t.Helper()
	cfg := config(t, workDir(t))
	for _, other := range beside {
		cfg.Runtime = other.Runtime
	}
	e := open(t, cfg)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if !slices.Contains(e.Capabilities().Networks, sandbox.NetworkOpen) {
		_, err := e.Create(t.Context(), engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}, openSpec())
		skip(t, fmt.Sprint(err))
	}
	return e, cfg
}

// get is a shell command that fetches a page.
func get(addr string) string {
	return fmt.Sprintf(`timeout 10 bash -c 'exec 3<>/dev/tcp/%s/80 && printf "GET / HTTP/1.0\r\n\r\n" >&3 && head -n 3 <&3'`, addr)
}

// lastPacket sends the packet by which the world is settled.
func lastPacket(t *testing.T, e engine.Engine, ref engine.Ref) func() {
	return func() {
		if out, code := sh(t, e, ref, guest.UserAgent, "bash -c 'echo last > /dev/udp/"+public4+"/5000'"); code != 0 {
			t.Fatal(out)
		}
	}
}

// addressesOf returns the addresses of the sandbox as the host's routes have them.
func addressesOf(t *testing.T, ref engine.Ref) (four, six netip.Addr, dev netlink.Link) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if !strings.HasPrefix(l.Attrs().Alias, string(ref.ID)+"-"+ref.Run+" ") {
			continue
		}
		routes, err := netlink.RouteList(l, unix.AF_UNSPEC)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && a.Unmap().Is4() {
				four = a.Unmap()
			} else if ok {
				six = a
			}
		}
		return four, six, l
	}
	t.Fatalf("%s has no device", ref.ID)
	return
}

// hostAddresses are all addresses of the host that another machine could name.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	addrs, err := netlink.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range addrs {
		if !a.IP.IsLoopback() && !a.IP.IsLinkLocalUnicast() {
			out = append(out, a.IP.String())
		}
	}
	return out
}

// TestNetworkWalls climbs the walls around a sandbox with a network device from inside, as root.
func TestNetworkWalls(t *testing.T) {
	w := inWorld(t)
	e, _ := openEngine(t)
	ref, neighbour := create(t, e, openSpec()), create(t, e, openSpec())
	four, six, _ := addressesOf(t, neighbour)

	for name, addr := range map[string]string{"IPv4": public4, "IPv6": public6, "a name": "some.example"} {
		out, code := sh(t, e, ref, guest.UserAgent, get(addr))
		if code != 0 || !strings.Contains(out, "served to "+hostPublic4) && !strings.Contains(out, "served to ["+hostPublic6) {
			t.Errorf("the public internet by %s: %d %q", name, code, out)
		}
	}
	// Whoever may speak to the world may ask whom it likes for names.
	if out, code := sh(t, e, ref, guest.UserAgent, "bash -c 'echo question > /dev/udp/"+public4+"/53'"); code != 0 {
		t.Error(out)
	}
	w.settled(t, lastPacket(t, e, ref))

	var targets []string
	for _, a := range elsewhere {
		if a != public4 && a != public6 && a != "1.1.1.1" {
			targets = append(targets, a)
			// The host can, so it is the rules that refuse.
			c, err := net.DialTimeout("tcp", net.JoinHostPort(a, "80"), 5*time.Second)
			if err != nil {
				t.Fatalf("the test's network: %v", err)
			}
			_ = c.Close() // it was only a try
		}
	}
	targets = append(targets, hostAddresses(t)...)
	targets = append(targets, four.String(), six.String(), "::ffff:10.9.9.9", "64:ff9b::a09:909", "fe80::1%eth0", "0.0.0.0")
	w.settled(t, lastPacket(t, e, ref))
	// Not by the device: the host itself tells every device now and then which groups it is in.
	const received = "awk '/^Ip: [0-9]/ { print \"delivered\", $10 } /^(Tcp|Udp): [0-9]/' /proc/net/snmp"
	before, code := sh(t, e, neighbour, guest.UserRoot, received)
	if code != 0 || !strings.Contains(before, "Udp:") {
		t.Fatalf("what the other sandbox received: %d, %q", code, before)
	}
	script := ""
	for _, a := range targets {
		script += fmt.Sprintf(`
timeout 5 bash -c 'exec 3<>/dev/tcp/%[1]s/80' 2>/dev/null; case $? in 0) echo "TCP 80 of %[1]s is open";; 124) echo "TCP 80 of %[1]s: not told that it is refused";; esac
timeout 5 bash -c 'exec 3<>/dev/tcp/%[1]s/7777' 2>/dev/null && echo "TCP 7777 of %[1]s is open"
bash -c 'echo attack > /dev/udp/%[1]s/5000' 2>/dev/null
[ %[1]s = %[2]s ] || bash -c 'echo attack > /dev/udp/%[1]s/53' 2>/dev/null`, a, resolver)
	}
	script += "\nbash -c 'echo attack > /dev/udp/255.255.255.255/5000' 2>/dev/null"
	if out, _ := sh(t, e, ref, guest.UserRoot, script+"\ntrue"); out != "" {
		t.Error(out)
	}
	for _, n := range w.settled(t, lastPacket(t, e, ref)) {
		t.Errorf("%s %s was reached from %s", n.server, n.to, n.from)
	}
	if after, code := sh(t, e, neighbour, guest.UserRoot, received); code != 0 || after != before {
		t.Errorf("the other sandbox received something: %d, %q, before %q", code, after, before)
	}

	for name, program := range map[string]string{
		"a raw socket":             `socket(S, 2, 3, 1)`,
		"a raw IPv6 socket":        `socket(S, 10, 3, 58)`,
		"a packet socket":          `socket(S, 17, 3, 768)`,
		"somebody else's address":  `socket(S, 2, 2, 17) && bind(S, pack("S n a4 x8", 2, 4000, pack("C4", 1, 2, 3, 4)))`,
		"the neighbour's address":  fmt.Sprintf(`socket(S, 2, 2, 17) && bind(S, pack("S n a4 x8", 2, 4000, pack("C4", split(/\./, "%s"))))`, four),
		"changing its own address": `system("/usr/sbin/ip addr add 10.0.0.9/8 dev eth0 >/dev/null 2>&1") == 0`,
	} {
		if out, code := sh(t, e, ref, guest.UserRoot, "perl -e '"+program+" and print qq(done)'"); code != 0 && !strings.Contains(out, "denied") || strings.Contains(out, "done") {
			t.Errorf("%s: %d %q", name, code, out)
		}
	}
	if out, code := sh(t, e, ref, guest.UserRoot, "cat /etc/resolv.conf; echo nameserver 6.6.6.6 > /etc/resolv.conf"); code == 0 || !strings.Contains(out, "nameserver "+resolver+"\n") || strings.Contains(out, "corp") {
		t.Errorf("resolv.conf: %d %q", code, out)
	}
}

// TestNetworkOfAnEscapedSentry does what one could do who has taken over gVisor's process: send any packet into the device.
func TestNetworkOfAnEscapedSentry(t *testing.T) {
	w := inWorld(t)
	e, cfg := openEngine(t)
	ref, neighbour := create(t, e, openSpec()), create(t, e, openSpec())
	four, six, dev := addressesOf(t, ref)
	other4, other6, _ := addressesOf(t, neighbour)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", sentry(t, cfg.Dir, ref)))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	rejoin := rejoin(four, six, dev)
	spoofed := []string{other4.String(), other6.String(), hostPublic4, hostPublic6, "1.2.3.4", "10.1.1.1", "2600::666", "fe80::666"}
	if err := inNetns(ns, func() error {
		all := []error{rejoin()}
		for _, a := range spoofed {
			all = append(all, ip("addr add %s dev eth0 nodad", a))
		}
		return errors.Join(all...)
	}); err != nil {
		t.Fatal(err)
	}
	send := func(from, to string, port int) error {
		return inNetns(ns, func() error {
			laddr, err := net.ResolveUDPAddr("udp", net.JoinHostPort(from, "0"))
			if err != nil {
				return err
			}
			raddr, err := net.ResolveUDPAddr("udp", net.JoinHostPort(to, strconv.Itoa(port)))
			if err != nil {
				return err
			}
			c, err := net.DialUDP("udp", laddr, raddr)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("attack"))
			return err
		})
	}
	last := func() {
		if err := send(four.String(), public4, 5000); err != nil {
			t.Fatal(err)
		}
	}
	of := func(to string) string { // one of its own of the same family
		if strings.Contains(to, ":") {
			return six.String()
		}
		return four.String()
	}
	if err := errors.Join(send(six.String(), public6, 5000), send(four.String(), "1.1.1.1", 5000)); err != nil {
		t.Fatal(err)
	}
	if got := w.settled(t, last); len(got) != 2 {
		t.Fatalf("its own addresses: %v", got)
	}
	for _, from := range spoofed {
		to := public4
		if strings.Contains(from, ":") {
			to = public6
		}
		if strings.HasPrefix(from, "fe80") {
			from += "%eth0"
		}
		if err := send(from, to, 53); err != nil {
			t.Errorf("from %s: %v", from, err)
		}
	}
	targets := append(hostAddresses(t), other4.String(), other6.String())
	for _, a := range elsewhere {
		if a != public4 && a != public6 && a != "1.1.1.1" {
			targets = append(targets, a)
		}
	}
	for _, to := range targets {
		// It may be told that it is refused.
		if err := send(of(to), to, 5000); err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("to %s: %v", to, err)
		}
	}
	for _, n := range w.settled(t, last) {
		t.Errorf("%s %s was reached from %s", n.server, n.to, n.from)
	}

	// Many neighbours would fill the host's table of them: nobody is believed who says that he is one.
	if err := inNetns(ns, func() error {
		return errors.Join(ip("neigh flush all nud permanent"), ip("addr add 10.201.200.1/16 dev eth0"))
	}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_ = send("10.201.200.1", four.Prev().String(), 5000) // first of all it asks who that is
	}
	if err := inNetns(ns, func() error {
		return ip("neigh replace %s lladdr %s dev eth0", four.Prev(), dev.Attrs().HardwareAddr)
	}); err != nil {
		t.Fatal(err)
	}
	w.settled(t, last)
	neighbours, err := netlink.NeighList(dev.Attrs().Index, unix.AF_UNSPEC)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) == 0 {
			t.Errorf("the host learned the neighbour %v", n)
		}
	}
}

// rejoin gives gVisor's device back to the kernel that it was taken from, in the namespace of the calling thread.
func rejoin(four, six netip.Addr, dev netlink.Link) func() error {
	return func() error {
		return errors.Join(
			ip("addr add %s/31 dev eth0", four), ip("addr add %s/127 dev eth0 nodad", six),
			ip("neigh replace %s lladdr %s dev eth0", four.Prev(), dev.Attrs().HardwareAddr), ip("neigh replace %s lladdr %s dev eth0", six.Prev(), dev.Attrs().HardwareAddr),
			ip("route replace default via %s dev eth0", four.Prev()), ip("-6 route replace default via %s dev eth0", six.Prev()),
		)
	}
}

// sentry returns the process that is the sandbox.
func sentry(t *testing.T, dir string, ref engine.Ref) int {
	t.Helper()
	for _, pid := range pids(t) {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone is no match
		line := string(cmdline)
		if strings.HasPrefix(line, "runsc-sandbox") && strings.Contains(line, string(ref.ID)) && strings.Contains(line, dir+"/") {
			return pid
		}
	}
	t.Fatal("no sentry")
	return 0
}

// TestNetworkFlowLimit opens more connections than one sandbox may have tracked.
func TestNetworkFlowLimit(t *testing.T) {
	w := inWorld(t)
	e, cfg := openEngine(t)
	ref := create(t, e, openSpec())
	four, six, dev := addressesOf(t, ref)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", sentry(t, cfg.Dir, ref)))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	const tries = 5000
	if err := inNetns(ns, func() error {
		if err := rejoin(four, six, dev)(); err != nil {
			return err
		}
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		defer c.Close()
		for port := range tries {
			// Refusals of earlier ones come back as errors.
			_, _ = c.WriteToUDP([]byte("x"), &net.UDPAddr{IP: net.ParseIP("1.1.1.1"), Port: 1000 + port})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	family := netlink.InetFamily(unix.AF_INET)
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, f := range flows {
		if f.Forward.SrcIP.String() == four.String() {
			count++
		}
	}
	if count < 3500 || count > 4200 {
		t.Errorf("%d connections of %d are tracked", count, tries)
	}
	w.noted()
	destroy(t, e, ref)
	flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, family)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		if f.Forward.SrcIP.String() == four.String() {
			t.Fatalf("a connection outlives its sandbox: %v", f)
		}
	}
}
