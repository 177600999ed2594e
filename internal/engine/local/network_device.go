package local

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// insideName is what a sandbox calls its device.
const insideName = "eth0"

// device is the network device of one sandbox: a pair of ends. The inner one is in a network namespace that only gVisor's processes
// of this sandbox hold, so with them, however they end, the kernel takes away both ends and all that hangs on them. The outer
// one carries the record of it all as its alias, where a later server finds it.
type device struct {
	name      string // of the host's end
	key       string // of the sandbox
	cut       bool   // nothing may pass for now
	ip4, ip6  netip.Addr
	resolvers []netip.Addr

	netns *os.File // until the sandbox has it
}

// gateway is the host's address next to one of the device's: they come in pairs.
func gateway(a netip.Addr) netip.Addr { return a.Prev() }

// release lets go of the namespace: the sandbox holds it, or nobody.
func (d *device) release() {
	if d.netns != nil {
		_ = d.netns.Close() // it was never written to
		d.netns = nil
	}
}

// alias is the record of the device: KEY STATE IPV4 IPV6 RESOLVERS. It has room for 255 bytes, which three resolvers fill.
func (d *device) alias() string {
	state, ip6, resolvers := "open", "-", make([]string, 0, len(d.resolvers))
	if d.cut {
		state = "cut"
	}
	if d.ip6.IsValid() {
		ip6 = d.ip6.String()
	}
	for _, r := range d.resolvers {
		resolvers = append(resolvers, r.String())
	}
	return strings.Join([]string{d.key, state, d.ip4.String(), ip6, strings.Join(resolvers, ",")}, " ")
}

// parseAlias is the inverse of alias.
func parseAlias(name, alias string) (*device, bool) {
	f := strings.Split(alias, " ")
	if len(f) != 5 {
		return nil, false
	}
	if _, ok := parseKey(f[0]); !ok {
		return nil, false
	}
	d := &device{name: name, key: f[0], cut: f[1] != "open"}
	var err error
	if d.ip4, err = netip.ParseAddr(f[2]); err != nil || !d.ip4.Is4() {
		return nil, false
	}
	if f[3] != "-" {
		if d.ip6, err = netip.ParseAddr(f[3]); err != nil || !d.ip6.Is6() {
			return nil, false
		}
	}
	for _, text := range strings.Split(f[4], ",") {
		r, err := netip.ParseAddr(text)
		if err != nil {
			return nil, false
		}
		d.resolvers = append(d.resolvers, r)
	}
	return d, true
}

// errTaken says that the name or the address of a device is another's.
var errTaken = errors.New("it is taken")

// make makes the device, both ends up, and the namespace of the inner one. After an error nothing is left.
func (d *device) make(mtu int) (err error) {
	if err := d.makeInside(mtu); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			d.release()
			err = errors.Join(err, d.remove())
		}
	}()
	link, err := netlink.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("finding device %s: %w", d.name, err)
	}
	if err := netlink.LinkSetAlias(link, d.alias()); err != nil {
		return fmt.Errorf("labelling device %s: %w", d.name, err)
	}
	// Who the neighbour is is known. So it need not be asked, and what it says of itself is not believed.
	if err := netlink.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("switching ARP off on %s: %w", d.name, err)
	}
	if err := noAutomaticAddress(link); err != nil {
		return fmt.Errorf("preparing %s: %w", d.name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("switching %s on: %w", d.name, err)
	}
	for _, ip := range d.addresses() {
		if err := setNeighbour(link, ip, d.mac(inner)); err != nil {
			return err
		}
		// A second route to one destination is refused, so no two servers give away the same address.
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(ip), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(route); errors.Is(err, unix.EEXIST) {
			return errTaken
		} else if err != nil {
			return fmt.Errorf("adding the route to %s: %w", ip, err)
		}
		addr := &netlink.Addr{IPNet: single(gateway(ip)), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("giving %s the address %s: %w", d.name, gateway(ip), err)
		}
	}
	return nil
}

// remove takes the device away, if it is there.
func (d *device) remove() error {
	link, err := netlink.LinkByName(d.name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) { // with its sandbox it goes by itself
		return fmt.Errorf("removing device %s: %w", d.name, err)
	}
	return nil
}

// makeInside makes the namespace, the pair and the inner end. gVisor reads addresses, routes and neighbours from there and gives
// them to its own network stack.
func (d *device) makeInside(mtu int) error {
	err := onLostThread(func() error { return d.inside(mtu) })
	if err != nil {
		d.release()
	}
	return err
}

// inside leaves the calling thread in the new namespace.
func (d *device) inside(mtu int) error {
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return explain(fmt.Errorf("making a network namespace: %w", err))
	}
	if d.netns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("switching the loopback device on: %w", err)
	}
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: insideName, MTU: mtu, HardwareAddr: d.mac(inner), TxQLen: -1},
		PeerName:  d.name, PeerHardwareAddr: d.mac(outer), PeerNamespace: netlink.NsFd(int(host.Fd())),
	}
	if err := netlink.LinkAdd(pair); errors.Is(err, unix.EEXIST) {
		return errTaken
	} else if err != nil {
		return fmt.Errorf("making a pair of network devices (kernel module veth): %w", err)
	}
	link, err := netlink.LinkByName(insideName)
	if err != nil {
		return fmt.Errorf("finding the inner device: %w", err)
	}
	if err := noAutomaticAddress(link); err != nil {
		return fmt.Errorf("preparing the inner device: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("switching the inner device on: %w", err)
	}
	for _, ip := range d.addresses() {
		pair := single(ip)
		pair.Mask = net.CIDRMask(ip.BitLen()-1, ip.BitLen())
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: pair, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("giving the inner device the address %s: %w", ip, err)
		}
		if err := setNeighbour(link, gateway(ip), d.mac(outer)); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway(ip).AsSlice()}); err != nil {
			return fmt.Errorf("adding the inner default route: %w", err)
		}
	}
	return nil
}

func (d *device) addresses() []netip.Addr {
	if d.ip6.IsValid() {
		return []netip.Addr{d.ip4, d.ip6}
	}
	return []netip.Addr{d.ip4}
}

// The ends of a device.
const (
	inner = 1
	outer = 2
)

// mac is the hardware address of an end, of the space that belongs to nobody.
func (d *device) mac(end byte) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, end}, d.ip4.AsSlice()...)
}

func setNeighbour(link netlink.Link, ip netip.Addr, mac net.HardwareAddr) error {
	n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
	if err := netlink.NeighSet(n); err != nil {
		return fmt.Errorf("naming the neighbour %s: %w", ip, err)
	}
	return nil
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// noAutomaticAddress keeps the kernel from giving the device an IPv6 address by itself.
func noAutomaticAddress(link netlink.Link) error {
	const addrGenMode, none = 8, 1 // IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(addrGenMode, nl.Uint8Attr(none))
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // a kernel without IPv6
	}
	return err
}
