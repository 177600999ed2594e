package local

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/netguard"
)

// uplinkMTU is the greatest size of packet that goes where most go. A device with another would need to learn it packet by packet.
func uplinkMTU() (int, error) {
	routes, err := netlink.RouteList(nil, unix.AF_UNSPEC)
	if err != nil {
		return 0, fmt.Errorf("listing routes: %w", err)
	}
	mtu := 1500
	for _, r := range routes {
		if !isDefault(r) || r.LinkIndex == 0 {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU >= 1280 {
			mtu = min(mtu, link.Attrs().MTU)
		}
	}
	return mtu, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// takenRanges are the IPv4 addresses that lead somewhere from this host, its own among them.
func takenRanges() ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range routes {
		if isDefault(r) {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		if ones, _ := r.Dst.Mask.Size(); ok {
			out = append(out, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return out, nil
}

// globalIPv6 reports whether this host reaches the internet by IPv6 and forwards it: it has a public address and a default route.
func globalIPv6() bool {
	if !sysctl("net/ipv6/conf/all/forwarding") {
		return false
	}
	routes, err := netlink.RouteList(nil, unix.AF_INET6)
	if err != nil || !slices.ContainsFunc(routes, isDefault) {
		return false
	}
	addrs, err := netlink.AddrList(nil, unix.AF_INET6)
	if err != nil {
		return false
	}
	refused := netguard.Refused()
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		ip, ok := netip.AddrFromSlice(a.IP)
		return ok && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED) == 0 && globalUnicast6.Contains(ip) &&
			!slices.ContainsFunc(refused, func(p netip.Prefix) bool { return p.Contains(ip) })
	})
}

// globalUnicast6 are the IPv6 addresses that the internet uses.
var globalUnicast6 = netip.MustParsePrefix("2000::/3")

// droppingChains names the chains of other tables that drop what is forwarded unless told otherwise. An accept of ours does not
// overrule them.
func droppingChains() []string {
	c, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil
	}
	var out []string
	for _, ch := range chains {
		if ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop &&
			!strings.HasPrefix(ch.Table.Name, "sandlot_") && ch.Table.Family != nftables.TableFamilyBridge {
			out = append(out, ch.Table.Name+" "+ch.Name)
		}
	}
	return out
}

// examineNetwork tells doctor about mode "open".
func examineNetwork(ids idRange, installation string, add func(l Level, what, format string, args ...any)) {
	const what = "network open"
	n := newNetworks(installation, DefaultOpenSubnet, nil)
	n.able = ids.perVolume && mayAdminister()
	if reason := n.whyNot(ids); reason != "" {
		add(Notable, what, "sandboxes can have no network device of their own: %s", reason)
		return
	}
	six := "IPv6 too"
	if !globalIPv6() {
		six = "no IPv6: that needs a public address, a default route and net.ipv6.conf.all.forwarding=1 " +
			"(where routers announce the route, also net.ipv6.conf.all.accept_ra=2)"
	}
	if chains := droppingChains(); len(chains) > 0 {
		add(Notable, what, "a firewall of this host drops what is forwarded (chain %s): let it accept what comes from %s*, and the answers to it; %s",
			strings.Join(chains, ", "), devicePrefix, six)
		return
	}
	add(Fine, what, "a device with NAT, nftables against private addresses; %s", six)
}
