package local

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// devicePrefix begins the names of the host's ends of all sandboxes' devices, whichever server's they are.
	devicePrefix = "slh"

	// maxFlows bounds the connections that one sandbox has the kernel track at a time, so that it can't fill the host's table.
	maxFlows = 4096

	dnsPort = 53
)

// ruleset is the nftables table of one installation. It is there as long as a sandbox has a device. It holds, about packets from
// and to devices whose names begin with prefix:
//
//	guard     before connection tracking: a device sends from its own addresses only, and nothing at all while it is cut
//	forward   what leaves goes to public addresses only, or to port 53 of the device's resolvers; what arrives is an answer
//	input     the host itself answers nothing, except as such a resolver
//	nat       what leaves has the host's address
//
// An accept here does not overrule a drop in another table: a firewall of the host that drops what is forwarded must be told.
type ruleset struct {
	table   string
	prefix  string
	refused []netip.Prefix
}

// apply makes the table hold exactly these devices' rules, or removes it if there are none. Either all of it changes or nothing, and
// no packet meets half of it. fresh also forgets what the kernel counted, and what an earlier version of ours made of the table.
func (r ruleset) apply(devices []*device, fresh bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	t := &nftables.Table{Name: r.table, Family: nftables.TableFamilyINet}
	if len(devices) == 0 {
		there, err := r.exists(c)
		if err != nil || !there {
			return err
		}
		c.DelTable(t)
	} else {
		r.say(c, t, devices, fresh)
	}
	if err := flush(c); err != nil {
		return fmt.Errorf("setting the rules of nftables table %s: %w", r.table, err)
	}
	return nil
}

// numbering guards the library's counter of sets, which all connections of a process share.
var numbering sync.Mutex

// say says all of the table anew, in the transaction of c.
func (r ruleset) say(c *nftables.Conn, t *nftables.Table, devices []*device, fresh bool) {
	numbering.Lock()
	defer numbering.Unlock()
	c.AddTable(t) // so that there is one to empty
	if fresh {
		c.DelTable(t)
		c.AddTable(t)
	} else {
		c.FlushTable(t) // of rules
	}
	b := &tableBuilder{conn: c, table: t, rules: r}
	b.sets(devices)
	b.chains()
}

// probe finds out whether this kernel takes all that the table needs. It changes nothing: the transaction ends without the table.
func (r ruleset) probe() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: r.table + "_probe", Family: nftables.TableFamilyINet}
	ip4, ip6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	r.say(c, t, []*device{{name: r.prefix + "0000", ip4: ip4, ip6: ip6, resolvers: []netip.Addr{ip4, ip6}}}, true)
	c.DelTable(t)
	return flush(c)
}

// exists reports whether the kernel has the table.
func (r ruleset) exists(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("listing nftables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == r.table }), nil
}

// flush sends the transaction. What the kernel says about each message of a refused one is the same word many times.
func flush(c *nftables.Conn) error {
	err := c.Flush()
	for _, no := range []unix.Errno{unix.EPERM, unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT} {
		if errors.Is(err, no) {
			return no
		}
	}
	return err
}

// tableBuilder says a table to the kernel.
type tableBuilder struct {
	conn  *nftables.Conn
	table *nftables.Table
	rules ruleset

	cut, from4, from6, nat4, nat6, dns4, dns6, refused4, refused6, flows *nftables.Set
}

var (
	ifnameAddr4 = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)
	ifnameAddr6 = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr)
)

func (b *tableBuilder) sets(devices []*device) {
	var cut, from4, from6, nat4, nat6, dns4, dns6 []nftables.SetElement
	for _, d := range devices {
		name := ifname(d.name)
		if d.cut {
			cut = append(cut, nftables.SetElement{Key: name})
		}
		from4 = append(from4, nftables.SetElement{Key: append(ifname(d.name), d.ip4.AsSlice()...)})
		nat4 = append(nat4, nftables.SetElement{Key: d.ip4.AsSlice()})
		if d.ip6.IsValid() {
			from6 = append(from6, nftables.SetElement{Key: append(ifname(d.name), d.ip6.AsSlice()...)})
			nat6 = append(nat6, nftables.SetElement{Key: d.ip6.AsSlice()})
		}
		for _, a := range d.resolvers {
			e := nftables.SetElement{Key: append(ifname(d.name), a.AsSlice()...)}
			if a.Is4() {
				dns4 = append(dns4, e)
			} else {
				dns6 = append(dns6, e)
			}
		}
	}
	b.cut = b.set("cut", nftables.TypeIFName, cut)
	b.from4, b.from6 = b.set("from4", ifnameAddr4, from4), b.set("from6", ifnameAddr6, from6)
	b.nat4, b.nat6 = b.set("nat4", nftables.TypeIPAddr, nat4), b.set("nat6", nftables.TypeIP6Addr, nat6)
	b.dns4, b.dns6 = b.set("dns4", ifnameAddr4, dns4), b.set("dns6", ifnameAddr6, dns6)
	four, six := intervals(b.rules.refused)
	b.refused4 = b.add(&nftables.Set{Name: "refused4", KeyType: nftables.TypeIPAddr, Interval: true}, four)
	b.refused6 = b.add(&nftables.Set{Name: "refused6", KeyType: nftables.TypeIP6Addr, Interval: true}, six)
	b.flows = b.add(&nftables.Set{Name: "flows", KeyType: nftables.TypeIFName, Dynamic: true, Size: 1 << 16}, nil)
}

func (b *tableBuilder) set(name string, key nftables.SetDatatype, elements []nftables.SetElement) *nftables.Set {
	return b.add(&nftables.Set{Name: name, KeyType: key}, elements)
}

// add makes the set, if it isn't there, and these its elements, except if it is one that the kernel fills.
func (b *tableBuilder) add(s *nftables.Set, elements []nftables.SetElement) *nftables.Set {
	s.Table = b.table
	if s.KeyType == nftables.TypeIFName {
		s.KeyByteOrder = binaryutil.NativeEndian // for those who list it
	}
	// These can fail for an anonymous set only.
	_ = b.conn.AddSet(s, nil)
	if !s.Dynamic {
		b.conn.FlushSet(s)
	}
	if len(elements) > 0 {
		_ = b.conn.SetAddElements(s, elements)
	}
	return s
}

func (b *tableBuilder) chains() {
	ours, oursOut := name(expr.MetaKeyIIFNAME, b.rules.prefix), name(expr.MetaKeyOIFNAME, b.rules.prefix)

	guard := b.base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	b.rule(guard, ours, in(b.cut, iif(1)), verdict(expr.VerdictDrop))
	b.rule(guard, ours, ipv4, in(b.from4, iif(1), source4(2)), verdict(expr.VerdictAccept))
	b.rule(guard, ours, ipv6, in(b.from6, iif(1), source6(2)), verdict(expr.VerdictAccept))
	b.rule(guard, ours, verdict(expr.VerdictDrop))

	// A refusal is told, so that programs fail at once instead of waiting.
	refuse := b.conn.AddChain(&nftables.Chain{Name: "refuse", Table: b.table})
	b.rule(refuse, protocol(unix.IPPROTO_TCP), match{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	b.rule(refuse, match{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	refused := match{&expr.Verdict{Kind: expr.VerdictGoto, Chain: refuse.Name}}

	leaving := b.conn.AddChain(&nftables.Chain{Name: "leaving", Table: b.table})
	// What belongs to no connection gets no other source address: it must not go out with the inner one.
	b.rule(leaving, ct(expr.CtKeySTATE, expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), verdict(expr.VerdictDrop))
	b.rule(leaving, name(expr.MetaKeyOIFNAME, devicePrefix), refused) // another sandbox, of whichever server
	b.dns(leaving)
	// Where the host leads elsewhere is its own service, a published port of a container for one.
	b.rule(leaving, ct(expr.CtKeySTATUS, ctStatusDNAT), refused)
	b.rule(leaving, ipv4, in(b.refused4, destination4(1)), refused)
	b.rule(leaving, ipv6, in(b.refused6, destination6(1)), refused)
	b.rule(leaving, ct(expr.CtKeySTATE, expr.CtStateBitNEW), iif(1), match{&expr.Dynset{SrcRegKey: 1, SetName: b.flows.Name, SetID: b.flows.ID,
		Operation: uint32(unix.NFT_DYNSET_OP_ADD), Exprs: []expr.Any{&expr.Connlimit{Count: maxFlows, Flags: expr.NFT_CONNLIMIT_F_INV}}}}, refused)

	arriving := b.conn.AddChain(&nftables.Chain{Name: "arriving", Table: b.table})
	b.rule(arriving, in(b.cut, oif(1)), verdict(expr.VerdictDrop))
	b.rule(arriving, ct(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	b.rule(arriving, verdict(expr.VerdictDrop))

	forward := b.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	b.rule(forward, ours, match{&expr.Verdict{Kind: expr.VerdictGoto, Chain: leaving.Name}})
	b.rule(forward, oursOut, match{&expr.Verdict{Kind: expr.VerdictGoto, Chain: arriving.Name}})

	input := b.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	b.dns(input)
	b.rule(input, ours, refused)

	nat := b.base("nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	b.rule(nat, ipv4, in(b.nat4, source4(1)), match{&expr.Masq{}})
	b.rule(nat, ipv6, in(b.nat6, source6(1)), match{&expr.Masq{}})
}

// dns lets devices ask their resolvers, which may be private: they are the host's own.
func (b *tableBuilder) dns(chain *nftables.Chain) {
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		port := match{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(dnsPort)},
		}
		b.rule(chain, protocol(proto), port, ipv4, in(b.dns4, iif(1), destination4(2)), verdict(expr.VerdictAccept))
		b.rule(chain, protocol(proto), port, ipv6, in(b.dns6, iif(1), destination6(2)), verdict(expr.VerdictAccept))
	}
}

func (b *tableBuilder) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	policy := nftables.ChainPolicyAccept // what isn't ours is none of our business
	return b.conn.AddChain(&nftables.Chain{Name: name, Table: b.table, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy})
}

func (b *tableBuilder) rule(chain *nftables.Chain, parts ...match) {
	b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: slices.Concat(parts...)})
}

// match is a part of a rule.
type match []expr.Any

const ctStatusDNAT = 1 << 5 // IPS_DST_NAT

var (
	ipv4 = family(unix.NFPROTO_IPV4)
	ipv6 = family(unix.NFPROTO_IPV6)
)

func family(f byte) match {
	return match{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}}}
}

func protocol(p byte) match {
	return match{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
}

// name matches devices by the beginning of their names.
func name(key expr.MetaKey, prefix string) match {
	return match{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)}}
}

// ct matches if any of bits is set.
func ct(key expr.CtKey, bits uint32) match {
	return match{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func iif(register uint32) match {
	return match{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register}}
}
func oif(register uint32) match {
	return match{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}}
}

func source4(register uint32) match      { return address(register, 12, 4) }
func destination4(register uint32) match { return address(register, 16, 4) }
func source6(register uint32) match      { return address(register, 8, 16) }
func destination6(register uint32) match { return address(register, 24, 16) }

func address(register, offset, length uint32) match {
	return match{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

// in matches if what key loads, from register 1 on, is in the set.
func in(s *nftables.Set, key ...match) match {
	return append(slices.Concat(key...), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID})
}

func verdict(v expr.VerdictKind) match { return match{&expr.Verdict{Kind: v}} }

// ifname is a device's name as the kernel compares it.
func ifname(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}

// intervals turns prefixes, which may overlap, into the elements of two interval sets.
func intervals(prefixes []netip.Prefix) (four, six []nftables.SetElement) {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return a.Masked().Addr().Compare(b.Masked().Addr()) })
	type span struct{ first, last netip.Addr }
	var spans []span
	for _, p := range sorted {
		s := span{p.Masked().Addr(), lastAddr(p)}
		if n := len(spans); n > 0 && spans[n-1].last.BitLen() == s.first.BitLen() && s.first.Prev().Compare(spans[n-1].last) <= 0 {
			if s.last.Compare(spans[n-1].last) > 0 {
				spans[n-1].last = s.last
			}
			continue
		}
		spans = append(spans, s)
	}
	for _, s := range spans {
		elements := []nftables.SetElement{{Key: s.first.AsSlice()}}
		if end := s.last.Next(); end.IsValid() { // else it goes to the last address there is
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
		if s.first.Is4() {
			four = append(four, elements...)
		} else {
			six = append(six, elements...)
		}
	}
	return four, six
}

// lastAddr is the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b) // its length is that of an address
	return a
}
