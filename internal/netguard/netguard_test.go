package netguard_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPublic(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"1.1.1.1", "8.8.8.8", "93.184.215.14", "100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1", "169.253.1.1", "168.63.129.15",
		"192.0.1.1", "198.17.255.255", "198.20.0.1", "223.255.255.255", "11.0.0.1", "2606:4700:4700::1111", "2a00:1450::1", "2001:4860:4860::8888",
		"2003::1", "3ffe::1",
	} {
		if !netguard.Public(netip.MustParseAddr(s)) {
			t.Errorf("%s is public", s)
		}
	}
	for name, list := range map[string][]string{
		"this host":          {"0.0.0.0", "0.1.2.3", "::"},
		"loopback":           {"127.0.0.1", "127.255.255.254", "::1"},
		"private":            {"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.255.255", "fc00::1", "fd12:3456::1"},
		"carrier":            {"100.64.0.1", "100.127.255.255"},
		"link-local":         {"169.254.1.1", "fe80::1", "febf::1", "fe80::1%eth0", "fec0::1"},
		"cloud metadata":     {"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"},
		"multicast":          {"224.0.0.1", "239.255.255.250", "ff02::1"},
		"reserved":           {"240.0.0.1", "255.255.255.255", "192.88.99.1", "4000::1", "e000::1"},
		"documentation":      {"192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "2001:db8::1", "3fff::1", "2001:2::1"},
		"IPv4 in IPv6":       {"::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1"},
		"NAT64":              {"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1"},
		"6to4 and Teredo":    {"2002:7f00:1::1", "2002:a9fe:a9fe::1", "2001:0:7f00:1::1"},
		"not an address":     {""},
		"the end of a range": {"10.255.255.255", "192.168.0.0"},
	} {
		for _, s := range list {
			var a netip.Addr
			if s != "" {
				a = netip.MustParseAddr(s)
			}
			if netguard.Public(a) {
				t.Errorf("%s: %q counts as public", name, s)
			}
		}
	}
}

// A set of a packet filter takes no ranges that overlap.
func TestRefusedHasNoOverlaps(t *testing.T) {
	t.Parallel()
	list := netguard.Refused()
	for i, p := range list {
		if p != p.Masked() || netguard.Public(p.Addr()) {
			t.Errorf("%s", p)
		}
		for _, q := range list[i+1:] {
			if p.Overlaps(q) {
				t.Errorf("%s and %s overlap", p, q)
			}
		}
	}
	list[0] = netip.Prefix{}
	if !netguard.Refused()[0].IsValid() {
		t.Error("a caller can change the list")
	}
}

func TestParseHost(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"example.com": "example.com", "EXAMPLE.Com.": "example.com", "a_b.example.com": "a_b.example.com", "bücher.example": "xn--bcher-kva.example",
		"XN--BCHER-KVA.example": "xn--bcher-kva.example", "localhost": "localhost", "4chan.org": "4chan.org", "1.1.1.1": "1.1.1.1", "1.1.1.1.": "1.1.1.1",
		"[2606:4700::1]": "2606:4700::1", "2606:4700::1": "2606:4700::1", "[::ffff:10.0.0.1]": "10.0.0.1", "１２７.０.０.１": "127.0.0.1", "127。0。0。1": "127.0.0.1",
		"ⓔxample.com": "example.com", "a.0x": "",
	} {
		name, addr, err := netguard.ParseHost(in)
		if addr.IsValid() {
			name = addr.String()
		}
		if name != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, name, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "..", "a..b", ".example.com", "-a.com", "a-.com", "a b", "a/b", "a@b", "a%00b", "a\x00b", "a\nb", "exa#mple", "[::1", "::1]", "[1.2.3.4]", "[::1%eth0]",
		"fe80::1%25lo", "2130706433", "0x7f000001", "0x7f.1", "127.1", "127.0.1", "0177.0.0.1", "1.2.3.4.5", "256.1.1.1", "127.0.0.01", "foo.123", "foo.0x1f", "a:b",
		"::ffff:127.1", strings.Repeat("a", 64) + ".com", strings.Repeat("a.", 200) + "com", strings.Repeat("ü", 2000), "xn--a", "*",
	} {
		if name, addr, err := netguard.ParseHost(in); err == nil {
			t.Errorf("%q is taken for %q, %s", in, name, addr)
		}
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rules   string
		yes, no string
	}{
		{"example.com", "example.com:443 example.com:80 EXAMPLE.COM.:443", "example.com:22 www.example.com:443 notexample.com:443 example.com.evil.org:443 1.1.1.1:443"},
		{"Example.COM.", "example.com:443", "example.org:443"},
		{"*.example.com", "a.example.com:443 a.b.c.example.com:80", "example.com:443 aexample.com:443 a.example.com:8080 example.com.a.org:443"},
		{"*", "example.com:443 1.1.1.1:80 [2606:4700::1]:443", "example.com:8080"},
		{"*:*", "example.com:1 1.1.1.1:65535", ""},
		{"example.com:8443", "example.com:8443", "example.com:443 example.com:80"},
		{"*.example.com:*", "a.example.com:22", "example.com:22"},
		{"bücher.example", "xn--bcher-kva.example:443 bücher.example:443 BÜCHER.example:443", "bucher.example:443"},
		{"xn--bcher-kva.example", "bücher.example:80", ""},
		{"93.184.215.14", "93.184.215.14:443 [::ffff:93.184.215.14]:443", "93.184.215.15:443 example.com:443 93.184.215.14:22"},
		{"93.184.215.0/24:22", "93.184.215.255:22", "93.184.216.0:22 93.184.215.1:443"},
		{"[2606:4700::1]:53", "[2606:4700::1]:53 [2606:4700:0::1]:53", "[2606:4700::2]:53"},
		{"2606:4700::/32", "[2606:4700:1::2]:443", "[2606:4701::]:443"},
		{"[2606:4700::/32]:*", "[2606:4700:1::2]:9", ""},
		{"a.com b.com:22", "a.com:443 b.com:22", "a.com:22 b.com:443"},
		{"", "", "example.com:443 1.1.1.1:443"},
	} {
		rules, err := netguard.ParseRules(strings.Fields(c.rules))
		if err != nil {
			t.Errorf("%s: %v", c.rules, err)
			continue
		}
		match := func(target string) bool {
			host, port, err := net.SplitHostPort(target)
			if err != nil {
				t.Fatal(err)
			}
			name, addr, err := netguard.ParseHost(host)
			if err != nil {
				t.Fatal(err)
			}
			n, err := netguard.ParsePort(port)
			if err != nil {
				t.Fatal(err)
			}
			return rules.Match(name, addr, n)
		}
		for _, target := range strings.Fields(c.yes) {
			if !match(target) {
				t.Errorf("%q doesn't hold %s", c.rules, target)
			}
		}
		for _, target := range strings.Fields(c.no) {
			if match(target) {
				t.Errorf("%q holds %s", c.rules, target)
			}
		}
	}
}

func TestCheckAllow(t *testing.T) {
	t.Parallel()
	corp := netip.MustParsePrefix("10.0.0.0/8")
	for _, good := range [][]string{nil, {"*"}, {"example.com", "*.example.com:8080", "1.1.1.1", "1.1.1.0/24", "2606:4700::/32"}, {"10.1.0.0/16:*", "10.0.0.1"}} {
		if err := netguard.CheckAllow(good, corp); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", " ", "https://example.com", "example.com/path", "exam ple.com", "*.*.com", "a.*.com", "**", "*example.com", "*.", "*.1.2.3.4", "example.com:", "example.com:0",
		"example.com:65536", "example.com:http", "example.com:80:80", "1.2.3.4/33", "1.2.3.4/24", "127.0.0.1", "127.1", "169.254.169.254", "192.168.0.0/16", "::1", "[::1]:80", "fe80::1%eth0",
		"0.0.0.0/0", "::/0", "10.0.0.0/7", "user@example.com", "[example.com]", "[2606::1", "[2606::1]x", "0x7f000001", "::ffff:1.2.3.0/120", "*:80\n", "http://*",
	} {
		err := netguard.CheckAllow([]string{"example.com", bad}, corp)
		var p *sandbox.Problem
		if !errors.As(err, &p) || p.Field != "network.allow" || !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := netguard.CheckAllow([]string{"10.0.0.1"}); err == nil {
		t.Error("a private address without an exception")
	}
	if err := netguard.CheckAllow(slices.Repeat([]string{"a.com"}, netguard.MaxRules+1)); err == nil {
		t.Error("too many entries")
	}
}

// names is a resolver. A name with several answers gives the first one first, and so on: the server of an attacker.
type names struct {
	mu    sync.Mutex
	of    map[string][]string // guarded by mu; each answer: addresses
	asked []string            // guarded by mu
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, host)
	answers := n.of[strings.TrimSuffix(host, ".")]
	if len(answers) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(answers) > 1 {
		n.of[strings.TrimSuffix(host, ".")] = answers[1:]
	}
	var addrs []netip.Addr
	for _, s := range strings.Fields(answers[0]) {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs, nil
}

// dialed notes what is connected to, and connects to nothing unless told so.
type dialed struct {
	mu   sync.Mutex
	list []string // guarded by mu
	to   func(ctx context.Context, address string) (net.Conn, error)
}

func (d *dialed) dial(ctx context.Context, _, address string) (net.Conn, error) {
	d.mu.Lock()
	d.list = append(d.list, address)
	d.mu.Unlock()
	if d.to != nil {
		return d.to(ctx, address)
	}
	here, there := net.Pipe()
	_ = there.Close()
	return here, nil
}

func (d *dialed) got() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.list, " ")
}

func TestDialer(t *testing.T) {
	t.Parallel()
	resolver := func() *names {
		return &names{of: map[string][]string{
			"good.example":    {"93.184.215.14"},
			"rebind.example":  {"93.184.215.14", "127.0.0.1"},
			"private.example": {"10.1.2.3"}, "meta.example": {"169.254.169.254"}, "loop.example": {"127.0.0.1 ::1"},
			"mixed.example": {"10.0.0.1 93.184.215.14 ::ffff:127.0.0.1"}, "mapped.example": {"::ffff:93.184.215.14"},
			"six.example": {"fd00:ec2::254"}, "nat64.example": {"64:ff9b::7f00:1"}, "zero.example": {"0.0.0.0"},
			"metadata.google.internal": {"169.254.169.254"}, "localhost": {"127.0.0.1"}, "xn--bcher-kva.example": {"1.1.1.1"},
		}}
	}
	allow := func(s ...string) (list []netip.Prefix) {
		for _, p := range s {
			list = append(list, netip.MustParsePrefix(p))
		}
		return list
	}
	for _, c := range []struct {
		address string
		allow   []netip.Prefix
		want    string // "" = refused
	}{
		{"good.example:443", nil, "93.184.215.14:443"},
		{"GOOD.example.:443", nil, "93.184.215.14:443"},
		{"bücher.example:80", nil, "1.1.1.1:80"},
		{"8.8.8.8:53", nil, "8.8.8.8:53"},
		{"[2606:4700::1]:443", nil, "[2606:4700::1]:443"},
		{"mixed.example:80", nil, "93.184.215.14:80"},
		{"mapped.example:80", nil, "93.184.215.14:80"},
		{"rebind.example:80", nil, "93.184.215.14:80"},
		{"private.example:80", nil, ""},
		{"private.example:80", allow("10.0.0.0/8"), "10.1.2.3:80"},
		{"private.example:80", allow("10.2.0.0/16"), ""},
		{"meta.example:80", nil, ""},
		{"meta.example:80", allow("0.0.0.0/0"), ""},
		{"meta.example:80", allow("169.254.169.254/32"), "169.254.169.254:80"},
		{"metadata.google.internal:80", allow("0.0.0.0/0"), ""},
		{"loop.example:80", allow("0.0.0.0/0", "::/0"), ""},
		{"loop.example:80", allow("127.0.0.0/8"), "127.0.0.1:80"},
		{"127.0.0.1:80", allow("10.0.0.0/8"), ""},
		{"127.0.0.2:80", allow("127.0.0.1/32"), ""},
		{"six.example:80", allow("fd00::/8"), ""},
		{"nat64.example:80", allow("64:ff9b::/96"), ""},
		{"zero.example:80", allow("0.0.0.0/0", "0.0.0.0/8"), ""},
		{"0.0.0.0:80", nil, ""},
		{"[::]:80", allow("::/0"), ""},
		{"[::1]:80", nil, ""},
		{"[::ffff:127.0.0.1]:80", nil, ""},
		{"[fe80::1%lo]:80", allow("fe80::/10"), ""},
		{"localhost:80", nil, ""},
		{"2130706433:80", nil, ""},
		{"0x7f.1:80", nil, ""},
		{"127.1:80", nil, ""},
	} {
		var seen dialed
		d := netguard.Dialer{Resolver: resolver(), Allow: c.allow, Dial: seen.dial, Option: "--open-it"}
		conn, err := d.DialContext(t.Context(), "tcp", c.address)
		if conn != nil {
			_ = conn.Close()
		}
		var p *sandbox.Problem
		if got := seen.got(); got != c.want {
			t.Errorf("%s (%v) connects to %q, want %q", c.address, c.allow, got, c.want)
		}
		if c.want == "" && (!errors.As(err, &p) || p.Code != netguard.CodeRefused || strings.Contains(p.Detail, "10.1.2.3") ||
			!strings.Contains(p.Detail, "opens them with --open-it.")) || c.want != "" && err != nil {
			t.Errorf("%s: %v", c.address, err)
		}
	}
}

// A name is asked for once, whatever becomes of it, and without the server's search domains.
func TestDialerResolvesOnce(t *testing.T) {
	t.Parallel()
	r := &names{of: map[string][]string{"rebind.example": {"93.184.215.14 93.184.215.15", "127.0.0.1"}}}
	seen := dialed{to: func(context.Context, string) (net.Conn, error) { return nil, errors.New("down") }}
	d := netguard.Dialer{Resolver: r, Dial: seen.dial}
	if _, err := d.DialContext(t.Context(), "tcp", "rebind.example:80"); err == nil {
		t.Fatal("connected")
	}
	if got := seen.got(); got != "93.184.215.14:80 93.184.215.15:80" {
		t.Error(got)
	}
	if len(r.asked) != 1 || r.asked[0] != "rebind.example." {
		t.Errorf("asked for %q", r.asked)
	}
	for _, bad := range []string{"", "a", "a.com:0", "a.com:65536", "a.com:x", "a.com:-1", ":80"} {
		if _, err := d.DialContext(t.Context(), "tcp", bad); err == nil {
			t.Errorf("%q", bad)
		}
	}
	if _, err := d.DialContext(t.Context(), "unix", "/run/docker.sock"); err == nil {
		t.Error("a socket of the host")
	}
}

// Even a public address of the server itself is behind its firewall when it is reached from there.
func TestDialerRefusesOwnAddresses(t *testing.T) {
	t.Parallel()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, a := range addrs {
		own, ok := netip.AddrFromSlice(a.(*net.IPNet).IP)
		if own = own.Unmap(); !ok || own.IsLinkLocalUnicast() || own.IsLoopback() {
			continue
		}
		tried++
		for _, c := range []struct {
			allow netip.Prefix
			open  bool
		}{{netip.PrefixFrom(own, own.BitLen()-1).Masked(), false}, {netip.PrefixFrom(own, own.BitLen()), true}} {
			d := netguard.Dialer{Allow: []netip.Prefix{c.allow}}
			_, err := d.Lookup(t.Context(), own.String())
			if (err == nil) != c.open {
				t.Errorf("%s with an exception for %s: %v", own, c.allow, err)
			}
		}
	}
	if tried == 0 {
		t.Log("this machine has no address but loopback")
	}
	public := netip.MustParseAddr("93.184.215.14")
	for _, c := range []struct {
		own   []netip.Addr
		err   error
		allow []netip.Prefix
		open  bool
	}{
		{nil, nil, nil, true},
		{[]netip.Addr{public}, nil, nil, false},
		{[]netip.Addr{public}, nil, []netip.Prefix{netip.MustParsePrefix("93.0.0.0/8")}, false},
		{[]netip.Addr{public}, nil, []netip.Prefix{netip.MustParsePrefix("93.184.215.14/32")}, true},
		{nil, errors.New("no netlink"), nil, false},
	} {
		d := netguard.Dialer{Allow: c.allow}
		d.SetOwn(func() ([]netip.Addr, error) { return c.own, c.err })
		if _, err := d.Lookup(t.Context(), public.String()); (err == nil) != c.open {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// An address that doesn't answer holds up the next one for a moment only, and what comes too late is closed.
func TestDialerRaces(t *testing.T) {
	t.Parallel()
	r := &names{of: map[string][]string{"two.example": {"2606:4700::1 2606:4700::2 93.184.215.14"}}}
	seen := dialed{to: func(ctx context.Context, address string) (net.Conn, error) {
		if address != "93.184.215.14:80" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		here, there := net.Pipe()
		_ = there.Close()
		return here, nil
	}}
	d := netguard.Dialer{Resolver: r, Dial: seen.dial, Timeout: time.Minute}
	conn, err := d.DialContext(t.Context(), "tcp", "two.example:80")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if got := seen.got(); got != "[2606:4700::1]:80 93.184.215.14:80" {
		t.Error(got)
	}
	d.Timeout = 50 * time.Millisecond
	seen.to = func(ctx context.Context, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	if _, err := d.DialContext(t.Context(), "tcp", "two.example:80"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
