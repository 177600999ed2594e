package netguard

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// MaxRules is how many entries an allow-list may have.
const MaxRules = 256

// Rules is a list of hosts that a sandbox may reach. Its entries are
//
//	example.com       that name
//	*.example.com     every name below it, however deep, but not example.com itself
//	*                 every public host
//	93.184.215.14     requests that name this address, rather than a name that leads there; IPv6 too
//	93.184.215.0/24   the same for a range
//
// each for the ports 80 and 443, or with :PORT for that port, or with :* for every port. An IPv6 address with a port stands in
// brackets. Case and a final dot don't matter; names in other scripts are taken in both of their forms.
type Rules []rule

type rule struct {
	host   string       // normalized; "" = any
	below  bool         // names below host
	prefix netip.Prefix // valid: addresses, and host is ""
	port   uint16       // 0 = see ports
	ports  ports
}

type ports int

const (
	webPorts ports = iota // none was named
	allPorts              // :*
	onePort
)

// idn maps names as browsers do. What is left of odd characters is refused by ParseHost.
var idn = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.StrictDomainName(false))

var (
	errHost    = errors.New("it is no host name or address")
	errNumeric = errors.New("it looks like an address, but isn't written like one; write it as 192.0.2.1")
	errZone    = errors.New("an address with a zone means something on one machine only")
	errPort    = errors.New("a port is a number from 1 to 65535")
)

// ParseHost normalizes a host: an address, also in brackets, or a name, which comes out in lower case, in its ASCII form and without a
// final dot. What a resolver or a C library may take for an address though it isn't written as one (2130706433, 0x7f.1, 127.1) is
// an error.
func ParseHost(s string) (name string, addr netip.Addr, err error) {
	bracketed := strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]")
	if bracketed {
		s = s[1 : len(s)-1]
	}
	if bracketed || strings.Contains(s, ":") {
		addr, err := netip.ParseAddr(s)
		switch {
		case err != nil || !addr.Is6():
			return "", netip.Addr{}, errHost
		case addr.Zone() != "":
			return "", netip.Addr{}, errZone
		}
		return "", addr.Unmap(), nil
	}
	if len(s) > 1024 { // before it costs anything
		return "", netip.Addr{}, errHost
	}
	if name, err = idn.ToASCII(s); err != nil {
		return "", netip.Addr{}, errHost
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if addr, err := netip.ParseAddr(name); err == nil {
		if addr.Zone() != "" {
			return "", netip.Addr{}, errZone
		}
		return "", addr.Unmap(), nil
	}
	if err := checkName(name); err != nil {
		return "", netip.Addr{}, err
	}
	return name, netip.Addr{}, nil
}

func checkName(name string) error {
	if len(name) > 253 {
		return errHost
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return errHost
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return errHost
			}
		}
		last = label
	}
	if numeric(last) {
		return errNumeric
	}
	return nil
}

// numeric reports whether a name that ends in label may be taken for an IPv4 address: the rule of browsers.
func numeric(label string) bool {
	if strings.HasPrefix(label, "0x") {
		return strings.Trim(label[2:], "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// ParseRules reads an allow-list.
func ParseRules(allow []string) (Rules, error) {
	rules := make(Rules, 0, len(allow))
	for _, entry := range allow {
		r, err := parseRule(entry)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", entry, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parseRule(entry string) (rule, error) {
	var r rule
	if strings.Contains(entry, "://") {
		return r, errors.New("it is a URL; leave out what stands before and behind the host")
	}
	host, port, found, err := splitPort(entry)
	if err != nil {
		return r, err
	}
	switch {
	case found && port == "*":
		r.ports = allPorts
	case found:
		if r.port, err = ParsePort(port); err != nil {
			return r, err
		}
		r.ports = onePort
	}
	if host == "*" {
		return r, nil
	}
	if strings.Contains(host, "/") {
		r.prefix, err = netip.ParsePrefix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
		switch {
		case err != nil || r.prefix.Addr().Is4In6():
			return r, errors.New("it is no range of addresses; write it as 192.0.2.0/24")
		case r.prefix != r.prefix.Masked():
			return r, fmt.Errorf("a range begins with its first address: %s", r.prefix.Masked())
		}
		return r, nil
	}
	host, r.below = strings.CutPrefix(host, "*.")
	name, addr, err := ParseHost(host)
	switch {
	case err != nil:
		return r, err
	case addr.IsValid() && r.below:
		return r, errHost
	case addr.IsValid():
		r.prefix = netip.PrefixFrom(addr, addr.BitLen())
		return r, nil
	}
	r.host = name
	return r, nil
}

// splitPort cuts the port off an entry. An IPv6 address without brackets has none.
func splitPort(entry string) (host, port string, found bool, err error) {
	switch {
	case strings.HasPrefix(entry, "["):
		host, rest, ok := strings.Cut(entry, "]")
		port, found := strings.CutPrefix(rest, ":")
		if !ok || rest != "" && !found {
			return "", "", false, errHost
		}
		return host + "]", port, found, nil
	case strings.Count(entry, ":") == 1:
		host, port, _ := strings.Cut(entry, ":")
		return host, port, true, nil
	}
	return entry, "", false, nil
}

// ParsePort reads a port.
func ParsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errPort
	}
	return uint16(n), nil
}

// Match reports whether the list holds a host, in the form that ParseHost gives it, and port.
func (l Rules) Match(name string, addr netip.Addr, port uint16) bool {
	for _, r := range l {
		if r.matchPort(port) && r.matchHost(name, addr) {
			return true
		}
	}
	return false
}

func (r rule) matchPort(port uint16) bool {
	switch r.ports {
	case allPorts:
		return true
	case onePort:
		return r.port == port
	default:
		return port == 80 || port == 443
	}
}

func (r rule) matchHost(name string, addr netip.Addr) bool {
	switch {
	case r.prefix.IsValid():
		return addr.IsValid() && r.prefix.Contains(addr)
	case r.host == "":
		return true
	case r.below:
		return strings.HasSuffix(name, "."+r.host)
	}
	return name == r.host && !addr.IsValid()
}

// CheckAllow checks the allow-list of a sandbox. Addresses must be public, or in the operator's exceptions.
func CheckAllow(allow []string, exceptions ...netip.Prefix) error {
	if len(allow) > MaxRules {
		return sandbox.Invalid("network.allow", "There are %d entries; the most are %d.", len(allow), MaxRules)
	}
	for _, entry := range allow {
		r, err := parseRule(entry)
		if err != nil {
			return sandbox.Invalid("network.allow", "%.300q can't be allowed: %v. Use names (example.com, *.example.com, *), addresses or "+
				"ranges, each with :PORT or :* if other ports than 80 and 443 are meant.", entry, err)
		}
		if r.prefix.IsValid() && !open(r.prefix, exceptions) {
			return sandbox.Invalid("network.allow", "%.300q is not on the public internet. The operator of this server would have to open it "+
				"with --egress-private.", entry)
		}
	}
	return nil
}

// open reports whether all of p is public, or was opened.
func open(p netip.Prefix, exceptions []netip.Prefix) bool {
	for _, e := range exceptions {
		if e.Bits() <= p.Bits() && e.Contains(p.Addr()) && excepted(exceptions, p.Addr(), false) {
			return true
		}
	}
	for _, r := range refused {
		if r.Overlaps(p) {
			return false
		}
	}
	return true
}
