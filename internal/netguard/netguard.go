// Package netguard says which addresses the programs of a sandbox may be connected to, and connects to those only. Whatever of the
// server's makes a connection on a sandbox's behalf (the gateway's proxy, pulls of images, downloads of a build) goes through here,
// so that no name, redirect or odd way of writing an address leads into the server's own network.
package netguard

import (
	"net/netip"
	"slices"
)

// refused are all addresses that aren't public, without overlaps. Of IPv6 only 2000::/3 has been given out; whatever is
// outside of it (loopback, mapped and compatible IPv4, NAT64, unique local, link-local, multicast) is refused as a whole.
var refused = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),        // this host
	netip.MustParsePrefix("10.0.0.0/8"),       // private
	netip.MustParsePrefix("100.64.0.0/10"),    // carrier-grade NAT, and Alibaba's metadata
	netip.MustParsePrefix("127.0.0.0/8"),      // loopback
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's wire server
	netip.MustParsePrefix("169.254.0.0/16"),   // link-local, and most clouds' metadata
	netip.MustParsePrefix("172.16.0.0/12"),    // private
	netip.MustParsePrefix("192.0.0.0/24"),     // protocol assignments, and Oracle's metadata
	netip.MustParsePrefix("192.0.2.0/24"),     // documentation
	netip.MustParsePrefix("192.88.99.0/24"),   // relays of 6to4
	netip.MustParsePrefix("192.168.0.0/16"),   // private
	netip.MustParsePrefix("198.18.0.0/15"),    // benchmarks
	netip.MustParsePrefix("198.51.100.0/24"),  // documentation
	netip.MustParsePrefix("203.0.113.0/24"),   // documentation
	netip.MustParsePrefix("224.0.0.0/3"),      // multicast, reserved, broadcast

	netip.MustParsePrefix("::/3"),
	netip.MustParsePrefix("2001::/23"),     // protocol assignments: Teredo, which holds IPv4 addresses, benchmarks, ORCHID
	netip.MustParsePrefix("2001:db8::/32"), // documentation
	netip.MustParsePrefix("2002::/16"),     // 6to4, which holds IPv4 addresses
	netip.MustParsePrefix("3fff::/20"),     // documentation
	netip.MustParsePrefix("4000::/2"),
	netip.MustParsePrefix("8000::/1"),
}

// sensitive are the addresses that an exception for a wider range doesn't open: who means them must say so.
var sensitive = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("100.100.100.200/32"),
	netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fd00:ec2::/32"),
	netip.MustParsePrefix("fd20:ce::/32"),
	netip.MustParsePrefix("fe80::/10"),
}

// never are addresses that stand for this host or for no single one; no exception opens them.
var never = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/128"),
	netip.MustParsePrefix("ff00::/8"),
}

// nat64 are the prefixes under which a network translates IPv6 to IPv4; the last 32 bits are the IPv4 address.
var nat64 = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48")}

// Public reports whether a is an address of the public internet. An IPv6 form of an IPv4 address isn't, whatever it leads to.
func Public(a netip.Addr) bool {
	return a.IsValid() && !within(refused, a.WithZone(""))
}

// Refused returns the prefixes that hold every address that isn't public, of both families and without overlaps.
func Refused() []netip.Prefix { return slices.Clone(refused) }

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// excepted reports whether a, which is not public or own, an address of this host, was opened by the operator.
func excepted(allow []netip.Prefix, a netip.Addr, own bool) bool {
	if within(never, a) {
		return false
	}
	for _, n := range nat64 {
		if b := a.As16(); n.Contains(a) {
			inner := netip.AddrFrom4([4]byte(b[12:]))
			if !Public(inner) && !excepted(allow, inner, false) {
				return false
			}
		}
	}
	for _, p := range allow {
		if p.Contains(a) && (!own || p.IsSingleIP() || a.IsLoopback()) && named(p, a) {
			return true
		}
	}
	return false
}

// named reports whether p was meant to open a: a sensitive address is opened only by a prefix of the sensitive range itself.
func named(p netip.Prefix, a netip.Addr) bool {
	for _, s := range sensitive {
		if s.Contains(a) && (p.Bits() < s.Bits() || !s.Contains(p.Addr())) {
			return false
		}
	}
	return true
}
