package local

import (
	"bufio"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// resolvConf is where programs look for the resolvers to ask.
const resolvConf = "/etc/resolv.conf"

// resolverFiles say which resolvers this host asks. The second is what the first leads to where systemd-resolved answers on a
// loopback address, at which a sandbox can't reach it.
var resolverFiles = []string{resolvConf, "/run/systemd/resolve/resolv.conf"}

// publicResolvers are asked where the host has none that a sandbox could reach.
var publicResolvers = []netip.Addr{netip.AddrFrom4([4]byte{1, 1, 1, 1}), netip.AddrFrom4([4]byte{8, 8, 8, 8})}

// maxResolvers is how many the C library asks.
const maxResolvers = 3

// hostResolvers returns the resolvers of sandboxes with a device: the host's own, also private ones. Not those on a loopback or
// link-local address: the latter may be a cloud's metadata service, to which there is no exception.
func hostResolvers(files []string, withIPv6 bool) []netip.Addr {
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		found := slices.DeleteFunc(parseResolvers(string(data)), func(a netip.Addr) bool {
			return a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || (a.Is6() && !withIPv6)
		})
		if len(found) > 0 {
			return found[:min(len(found), maxResolvers)]
		}
	}
	return publicResolvers
}

// parseResolvers reads the nameserver lines of a resolv.conf.
func parseResolvers(text string) []netip.Addr {
	var out []netip.Addr
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.Zone() == "" && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// resolvConf is the text of the sandbox's file. It has no search list: the host's tells names of its own network.
func (d *device) resolvConf() []byte {
	var b strings.Builder
	for _, r := range d.resolvers {
		b.WriteString("nameserver " + r.String() + "\n")
	}
	return []byte(b.String())
}
