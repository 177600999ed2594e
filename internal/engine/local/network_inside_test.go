package local

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestNetworkAddresses lets two servers with the same few addresses give them away at the same time, on a host that has some of them.
// TestOpenNetwork runs it.
func TestNetworkAddresses(t *testing.T) {
	if os.Getenv("SANDLOT_LOCAL_TEST_WORLD") == "" {
		t.Skip("TestOpenNetwork runs it")
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	// Of 16 pairs, the first is never used, two are within this route, one holds this address.
	within, err := netlink.ParseIPNet("10.201.9.8/30")
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: within}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.RouteDel(route); err != nil {
			t.Error(err)
		}
	}()
	addr, err := netlink.ParseAddr("10.201.9.16/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.AddrDel(lo, addr); err != nil {
			t.Error(err)
		}
	}()

	subnet := netip.MustParsePrefix("10.201.9.0/27")
	var servers []*networks
	for _, name := range []string{"sandlot-0000aaaa", "sandlot-0000bbbb"} {
		n, err := openNetworks(idRange{perVolume: true}, name, subnet, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if n.reason != "" {
			t.Fatal(n.reason)
		}
		servers = append(servers, n)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		given []string
		none  int
	)
	for i := range 20 {
		wg.Go(func() {
			k := fmt.Sprintf("%s-%d", sandbox.NewID(sandbox.PrefixSandbox), i)
			d, err := servers[i%2].attach(t.Context(), k)
			mu.Lock()
			defer mu.Unlock()
			if p, ok := errors.AsType[*sandbox.Problem](err); ok && p.Code == "no_address" {
				none++
			} else if err != nil {
				t.Error(err)
			} else {
				given = append(given, d.ip4.String())
			}
		})
	}
	wg.Wait()
	slices.Sort(given)
	if len(slices.Compact(slices.Clone(given))) != 12 || len(given) != 12 || none != 8 {
		t.Errorf("given: %v, refused: %d", given, none)
	}
	for _, a := range given {
		if ip := netip.MustParseAddr(a); ip.As4()[3] < 2 || netip.MustParsePrefix("10.201.9.8/30").Contains(ip) || ip.As4()[3] == 17 {
			t.Errorf("%s is the host's", a)
		}
	}
	// A later server finds them all, and the same.
	for i, n := range servers {
		if err := n.close(); err != nil {
			t.Error(err)
		}
		later, err := openNetworks(idRange{perVolume: true}, []string{"sandlot-0000aaaa", "sandlot-0000bbbb"}[i], netip.MustParsePrefix("10.77.0.0/16"), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := later.keys(), n.keys(); len(got) != len(want) || len(got) == 0 {
			t.Errorf("found %d of %d", len(got), len(want))
		}
		for k, d := range n.devices {
			if l := later.devices[k]; l == nil || l.alias() != d.alias() || l.name != d.name {
				t.Errorf("%s is found as %+v", d.alias(), l)
			}
			d.release()
			if err := later.detach(k); err != nil {
				t.Error(err)
			}
		}
		if err := later.close(); err != nil {
			t.Error(err)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, devicePrefix+"0000") {
			t.Errorf("left: %s", l.Attrs().Name)
		}
	}
}

func TestOpenSubnet(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"10.0.0.0/31", "0.0.0.0/0", "fd00::/64", "10.0.0.0/7"} {
		if _, err := openNetworks(idRange{}, "sandlot-0000cccc", netip.MustParsePrefix(bad), slog.New(slog.DiscardHandler)); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	n, err := openNetworks(idRange{single: true}, "sandlot-0000cccc", netip.Prefix{}, slog.New(slog.DiscardHandler))
	if err != nil || n.subnet != DefaultOpenSubnet || !strings.Contains(n.reason, "root") {
		t.Errorf("rootless: %+v, %v", n, err)
	}
	if _, err := n.attach(t.Context(), "x"); !errors.Is(err, sandbox.ErrInvalid) {
		t.Errorf("a device without root: %v", err)
	}
}

// The record of a device has to fit into 255 bytes, and comes back as it was.
func TestDeviceRecord(t *testing.T) {
	t.Parallel()
	long := netip.MustParseAddr("2001:1db8:1111:2222:3333:4444:5555:6666")
	d := &device{name: "slh0123456789ab", key: sandbox.NewID(sandbox.PrefixSandbox) + "-" + strings.Repeat("R", 26), cut: true,
		ip4: netip.MustParseAddr("100.100.200.200"), ip6: long, resolvers: []netip.Addr{long, long.Next(), long.Prev()}}
	if len(d.alias()) > 255 {
		t.Errorf("%d bytes", len(d.alias()))
	}
	back, ok := parseAlias(d.name, d.alias())
	if !ok || back.alias() != d.alias() || !back.cut || back.key != d.key {
		t.Errorf("%q comes back as %+v", d.alias(), back)
	}
	for _, bad := range []string{"", "x", strings.Replace(d.alias(), "sbx_", "../", 1), strings.Replace(d.alias(), "100.", "", 1), d.alias() + " more", "eth0"} {
		if d, ok := parseAlias("slh", bad); ok {
			t.Errorf("%q became %+v", bad, d)
		}
	}
}

func TestHostResolvers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files []string
		six   bool
		want  string
	}{
		"private":            {[]string{"search corp.internal\nnameserver 10.0.0.2\n# nameserver 9.9.9.9\nnameserver 10.0.0.2\n"}, true, "10.0.0.2"},
		"a stub":             {[]string{"nameserver 127.0.0.53\n", "nameserver 192.168.1.1\nnameserver fd00::1\n"}, true, "192.168.1.1 fd00::1"},
		"no IPv6":            {[]string{"nameserver fd00::1\nnameserver 192.168.1.1\n"}, false, "192.168.1.1"},
		"a metadata service": {[]string{"nameserver 169.254.169.254\n"}, true, "1.1.1.1 8.8.8.8"},
		"a scope":            {[]string{"nameserver fe80::1%eth0\nnameserver ::1\nnameserver 0.0.0.0\n"}, true, "1.1.1.1 8.8.8.8"},
		"too many":           {[]string{"nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4\n"}, true, "1.0.0.1 1.0.0.2 1.0.0.3"},
		"none":               {nil, true, "1.1.1.1 8.8.8.8"},
		"nonsense":           {[]string{"nameserver\nnameserver x\n"}, true, "1.1.1.1 8.8.8.8"},
	} {
		files := []string{filepath.Join(t.TempDir(), "missing")}
		for i, text := range c.files {
			file := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		var got []string
		for _, a := range hostResolvers(files, c.six) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", name, got, c.want)
		}
	}
}

func TestIntervals(t *testing.T) {
	t.Parallel()
	var in []netip.Prefix
	for _, p := range []string{"240.0.0.0/4", "10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "0.0.0.0/8", "224.0.0.0/4", "fe80::/10", "ff00::/8", "fec0::/10", "::1/128"} {
		in = append(in, netip.MustParsePrefix(p))
	}
	four, six := intervals(in)
	var got []string
	for _, e := range append(four, six...) {
		a, _ := netip.AddrFromSlice(e.Key)
		got = append(got, fmt.Sprintf("%s %v", a, e.IntervalEnd))
	}
	const want = "0.0.0.0 false, 1.0.0.0 true, 10.0.0.0 false, 12.0.0.0 true, 224.0.0.0 false, " +
		"::1 false, ::2 true, fe80:: false"
	if strings.Join(got, ", ") != want {
		t.Errorf("%s", strings.Join(got, ", "))
	}
}
