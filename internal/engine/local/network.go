package local

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// DefaultOpenSubnet is where sandboxes with a network device have their addresses, if Config doesn't say.
var DefaultOpenSubnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 201, 0, 0}), 16)

// networks gives sandboxes network devices: mode "open". What there is of them is in the kernel, labelled, and so outlives this
// process: devices is what was found there or made since.
type networks struct {
	reason string // why no sandbox can have one; "" = it can
	able   bool   // this process may look after devices, also those of before that no more could be made of now

	prefix  string // of the names of the host's ends: nobody else has it
	subnet  netip.Prefix
	subnet6 netip.Prefix
	rules   ruleset
	log     *slog.Logger

	mu      sync.Mutex
	next    uint32             // the pair of addresses to try next
	devices map[string]*device // by key

	watch *tableWatch // nil if there is nothing to watch
}

// openNetworks takes over the devices of an earlier process of this installation.
func openNetworks(ids idRange, installation string, subnet netip.Prefix, log *slog.Logger) (*networks, error) {
	if !subnet.IsValid() {
		subnet = DefaultOpenSubnet
	}
	if subnet = subnet.Masked(); !subnet.Addr().Is4() || subnet.Bits() < 8 || subnet.Bits() > 30 {
		return nil, fmt.Errorf("%w: the subnet %s of sandboxes with a network device must be IPv4, and between /8 and /30", sandbox.ErrInvalid, subnet)
	}
	n := newNetworks(installation, subnet, log)
	n.able = ids.perVolume && mayAdminister()
	n.reason = n.whyNot(ids)
	if !n.able {
		return n, nil
	}
	if err := n.load(); err != nil {
		return nil, fmt.Errorf("looking after the network devices of earlier sandboxes: %w", err)
	}
	if n.reason != "" && len(n.devices) == 0 {
		return n, nil
	}
	var err error
	n.watch, err = openWatch(n.rules.table, n.heal)
	return n, err
}

func newNetworks(installation string, subnet netip.Prefix, log *slog.Logger) *networks {
	id := strings.TrimPrefix(installation, "sandlot-")
	sum := sha256.Sum256([]byte(installation))
	private := [16]byte{0: 0xfd} // a unique local prefix, as unique as our name
	copy(private[1:6], sum[:])
	prefix := devicePrefix + id
	return &networks{
		prefix: prefix, subnet: subnet, subnet6: netip.PrefixFrom(netip.AddrFrom16(private), 48), log: log,
		rules:   ruleset{table: "sandlot_" + id, prefix: prefix, refused: netguard.Refused()},
		devices: map[string]*device{},
		// A fresh start each time, so that an address is not soon somebody else's again.
		next: rand.Uint32(), //nolint:gosec // no secret
	}
}

// close stops looking after the devices. They stay.
func (n *networks) close() error {
	if n.watch == nil {
		return nil
	}
	return n.watch.close()
}

// whyNot tells what this host lacks for network devices, and what to do about it.
func (n *networks) whyNot(ids idRange) string {
	switch {
	case !ids.perVolume:
		return "it needs a server that runs as root"
	case !n.able:
		return "the server needs the capability CAP_NET_ADMIN"
	case !sysctl("net/ipv4/ip_forward"):
		return "this host does not forward packets; as root: sysctl -w net.ipv4.ip_forward=1 (and the same in a file of /etc/sysctl.d, to last)"
	}
	if err := n.rules.probe(); err != nil {
		return fmt.Sprintf("the kernel refuses the rules that sandboxes' devices need (modules nf_tables, nft_ct, nft_connlimit, nft_masq, nft_reject): %v", err)
	}
	return ""
}

// check refuses what attach would.
func (n *networks) check() error {
	if n.reason == "" {
		return nil
	}
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "unsupported", Field: "network.mode",
		Detail: fmt.Sprintf("network mode %q is not available here: %s", sandbox.NetworkOpen, n.reason)}
}

// mayAdminister reports whether this process has CAP_NET_ADMIN.
func mayAdminister() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// sysctl reports whether a switch of this host is on.
func sysctl(name string) bool {
	data, err := os.ReadFile(filepath.Join("/proc/sys", name))
	return err == nil && strings.TrimSpace(string(data)) != "0"
}

// load finds the devices that there are, and says their rules anew: an older version may have made them, and devices may be gone.
func (n *networks) load() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing network devices: %w", err)
	}
	for _, l := range links {
		name, alias := l.Attrs().Name, l.Attrs().Alias
		if !strings.HasPrefix(name, n.prefix) {
			continue
		}
		d, ok := parseAlias(name, alias)
		if !ok || n.devices[d.key] != nil {
			// Nobody's: a server was killed while it made it.
			if err := (&device{name: name}).remove(); err != nil {
				return err
			}
			continue
		}
		n.devices[d.key] = d
	}
	if err := n.rules.apply(n.all(), true); err != nil && (n.reason == "" || len(n.devices) > 0) {
		return err
	}
	return nil
}

// all returns the devices. The caller holds the lock.
func (n *networks) all() []*device {
	out := make([]*device, 0, len(n.devices))
	for _, d := range n.devices {
		out = append(out, d)
	}
	return out
}

// attach makes the device of a sandbox that is about to start. The caller releases it when the sandbox has it.
func (n *networks) attach(ctx context.Context, k string) (*device, error) {
	if err := n.check(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.detachLocked(k); err != nil {
		return nil, fmt.Errorf("removing the device of before: %w", err)
	}
	n.forgetGone()
	mtu, err := uplinkMTU()
	if err != nil {
		return nil, err
	}
	taken, err := takenRanges()
	if err != nil {
		return nil, err
	}
	withIPv6 := globalIPv6()
	pairs := uint32(1) << min(31-n.subnet.Bits(), 16) // as many as a name has room for
	for range pairs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		i := n.next % pairs
		n.next++
		d := n.candidate(k, i, withIPv6)
		if i == 0 || slices.ContainsFunc(taken, func(p netip.Prefix) bool { return p.Overlaps(netip.PrefixFrom(d.ip4, 31)) }) {
			continue
		}
		if err := d.make(mtu); errors.Is(err, errTaken) {
			continue
		} else if err != nil {
			return nil, err
		}
		n.devices[k] = d
		if err := n.rules.apply(n.all(), false); err != nil {
			d.release()
			return nil, errors.Join(err, n.detachLocked(k))
		}
		return d, nil
	}
	return nil, &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "no_address", Field: "network.mode",
		Detail: fmt.Sprintf("all addresses of %s are in use on this host; give the server another range with --open-subnet", n.subnet)}
}

// candidate is the device with the i-th pair of addresses. Its name follows from them, so nothing but the kernel needs to know which
// are in use.
func (n *networks) candidate(k string, i uint32, withIPv6 bool) *device {
	d := &device{name: fmt.Sprintf("%s%04x", n.prefix, i), key: k, resolvers: hostResolvers(resolverFiles, withIPv6)}
	four := n.subnet.Addr().As4()
	offset := 2*i + 1
	for b := range 4 {
		four[3-b] |= byte(offset >> (8 * b))
	}
	d.ip4 = netip.AddrFrom4(four)
	if withIPv6 {
		six := n.subnet6.Addr().As16()
		for b := range 4 {
			six[15-b] |= byte(offset >> (8 * b))
		}
		d.ip6 = netip.AddrFrom16(six)
	}
	return d
}

// detach frees what the run has of the network. The run is dead.
func (n *networks) detach(k string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.detachLocked(k)
}

func (n *networks) detachLocked(k string) error {
	d := n.devices[k]
	if d == nil {
		return nil
	}
	if err := d.remove(); err != nil {
		return err
	}
	delete(n.devices, k)
	if err := n.rules.apply(n.all(), false); err != nil {
		n.devices[k] = d // for the next try
		return err
	}
	n.forgetFlows(d)
	return nil
}

// forgetFlows makes the kernel forget the device's connections: what still comes for them must not reach the next one that has
// the address.
func (n *networks) forgetFlows(d *device) {
	for _, ip := range d.addresses() {
		f := &netlink.ConntrackFilter{}
		family := netlink.InetFamily(unix.AF_INET)
		if ip.Is6() {
			family = unix.AF_INET6
		}
		err := f.AddIP(netlink.ConntrackOrigSrcIP, ip.AsSlice())
		if err == nil {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
		}
		if err != nil {
			// They end by themselves, and the address comes up again only after all others.
			n.log.Warn("forgetting the connections of a sandbox that is gone", "address", ip, "err", err)
		}
	}
}

// keys returns the runs that have a device, gone or not, and forgets the ones whose device went with its sandbox.
func (n *networks) keys() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgetGone()
	out := make([]string, 0, len(n.devices))
	for k := range n.devices {
		out = append(out, k)
	}
	return out
}

// forgetGone takes away the rules of devices that are gone. The caller holds the lock.
func (n *networks) forgetGone() {
	if len(n.devices) == 0 {
		return
	}
	links, err := netlink.LinkList()
	if err != nil {
		n.log.Warn("listing network devices", "err", err)
		return
	}
	there := map[string]bool{}
	for _, l := range links {
		there[l.Attrs().Name] = true
	}
	var gone []*device
	for k, d := range n.devices {
		if !there[d.name] {
			gone = append(gone, d)
			delete(n.devices, k)
		}
	}
	if len(gone) == 0 {
		return
	}
	if err := n.rules.apply(n.all(), false); err != nil {
		for _, d := range gone {
			n.devices[d.key] = d
		}
		n.log.Warn("removing the rules of network devices that are gone", "err", err)
		return
	}
	for _, d := range gone {
		n.forgetFlows(d)
	}
}

// setCut cuts the run's device off or connects it again. It reports whether there is one.
func (n *networks) setCut(k string, cut bool) (found bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.devices[k]
	if d == nil {
		return false, nil
	}
	link, err := netlink.LinkByName(d.name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("finding device %s: %w", d.name, err)
	}
	before := d.cut
	d.cut = cut
	// The record first: whoever says the rules anew goes by it.
	if err := netlink.LinkSetAlias(link, d.alias()); err != nil {
		d.cut = before
		return true, fmt.Errorf("labelling device %s: %w", d.name, err)
	}
	if err := n.rules.apply(n.all(), false); err != nil {
		d.cut = cut || before // on doubt closed
		return true, err
	}
	return true, nil
}

// usage returns the bytes that came to the run and that it sent.
func (n *networks) usage(k string) (rx, tx int64, found bool, err error) {
	n.mu.Lock()
	d := n.devices[k]
	n.mu.Unlock()
	if d == nil {
		return 0, 0, false, nil
	}
	link, err := netlink.LinkByName(d.name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, true, fmt.Errorf("reading the counters of %s: %w", d.name, err)
	}
	if s := link.Attrs().Statistics; s != nil {
		return int64(s.TxBytes), int64(s.RxBytes), true, nil // what the host's end sends, the sandbox receives
	}
	return 0, 0, true, nil
}

// addNetwork lets gVisor find the device, and the programs inside the resolvers.
func (e *Engine) addNetwork(k string, s *specs.Spec, d *device) error {
	if err := os.WriteFile(filepath.Join(e.sandboxDir(k), filepath.Base(resolvConf)), d.resolvConf(), 0o644); err != nil {
		return err
	}
	s.Mounts = append(s.Mounts, bind(filepath.Join(e.stage.dir, "sandboxes", k, filepath.Base(resolvConf)), resolvConf, "ro"))
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/self/fd/%d", d.netns.Fd())
		}
	}
	return nil
}

// UpdateNetwork implements engine.NetworkUpdater.
func (e *Engine) UpdateNetwork(ctx context.Context, ref engine.Ref, policy sandbox.Network) error {
	k, err := key(ref)
	if err != nil {
		return err
	}
	_, release, err := e.hold(ctx, k)
	if err != nil {
		return err
	}
	defer release()
	if _, err := os.Lstat(e.sandboxDir(k)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: there is no sandbox %s", sandbox.ErrNotFound, k)
	}
	found, err := e.networks.setCut(k, policy.Mode != sandbox.NetworkOpen)
	if err != nil {
		return fmt.Errorf("changing the network of sandbox %s: %w", k, err)
	}
	if !found && policy.Mode == sandbox.NetworkOpen {
		return &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "network_needs_restart", Field: "network.mode",
			Detail: `this sandbox was made without a network device, so its network can't become "open"; make a new one on the same volume`}
	}
	return nil
}

// NetworkUsage implements engine.NetworkMeter.
func (e *Engine) NetworkUsage(ctx context.Context, ref engine.Ref) (rx, tx int64, err error) {
	k, err := key(ref)
	if err != nil {
		return 0, 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, 0, fmt.Errorf("reading the network counters of %s: %w", k, err)
	}
	rx, tx, _, err = e.networks.usage(k)
	return rx, tx, err
}
