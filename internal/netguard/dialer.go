package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// CodeRefused is the code of the Problem that tells of an address which may not be connected to.
const CodeRefused = "address_refused"

const (
	defaultTimeout = 30 * time.Second
	maxAttempts    = 8                      // addresses of one name that are tried
	headStart      = 250 * time.Millisecond // of one address over the next
)

// Resolver finds the addresses of names. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Dialer connects to public addresses only. It resolves a name once, itself, checks the addresses and connects to one that
// passed: a name that leads elsewhere a moment later gains nothing. Its zero value is of use.
type Dialer struct {
	Resolver Resolver       // nil = the system's
	Allow    []netip.Prefix // the operator's exceptions: opened though not public
	Timeout  time.Duration  // of a whole connect; 0 = 30 s
	Option   string         // by which the operator makes exceptions, for whoever is refused; "" names none

	// Proxy returns the HTTP or SOCKS proxy through which this server reaches a URL, nil for none. Then names are the proxy's to
	// resolve. They are checked here too where they can be, but it is the proxy that must not lead into a private network.
	Proxy func(*url.URL) (*url.URL, error)

	// Dial makes the connection to an address that has passed, or to the proxy; nil = a net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	anything bool                         // don't check: for hosts that the operator named
	own      func() ([]netip.Addr, error) // this host's addresses; nil = ownAddrs
}

// DialContext connects to address, a host and a port. An address that isn't public is a *sandbox.Problem.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, fmt.Errorf("netguard: no connections of type %q", network)
	}
	host, port, err := d.splitTarget(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	proxy, err := d.proxyFor("https", host, port)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		if err := d.checkProxied(ctx, host); err != nil {
			return nil, err
		}
		return d.throughProxy(ctx, proxy, net.JoinHostPort(host, port))
	}
	addrs, err := d.Lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	conn, err := d.race(ctx, network, addrs, port)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", host, err)
	}
	return conn, nil
}

// Lookup returns the addresses of host, a name or an address, to which a connection may be made: at least one. If there are only others,
// the error is a *sandbox.Problem.
func (d *Dialer) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	name, addr, err := ParseHost(host)
	if err != nil {
		return nil, d.refuse(host, err)
	}
	addrs := []netip.Addr{addr}
	if name != "" {
		var r Resolver = net.DefaultResolver
		if d.Resolver != nil {
			r = d.Resolver
		}
		// The dot keeps the server's own search domains out of it.
		if addrs, err = r.LookupNetIP(ctx, "ip", name+"."); err != nil {
			return nil, fmt.Errorf("resolving %s: %w", name, err)
		}
	}
	find := ownAddrs
	if d.own != nil {
		find = d.own
	}
	own, err := find()
	if err != nil {
		return nil, err
	}
	var good []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		if d.passes(a, own) && !slices.Contains(good, a) {
			good = append(good, a)
		}
	}
	if len(good) == 0 {
		return nil, d.refuse(host, fmt.Errorf("it leads to %v", addrs))
	}
	return interleave(good), nil
}

func (d *Dialer) passes(a netip.Addr, own []netip.Addr) bool {
	if d.anything {
		return a.IsValid()
	}
	if a.Zone() != "" {
		return false
	}
	mine := slices.Contains(own, a)
	return Public(a) && !mine || a.IsValid() && excepted(d.Allow, a, mine)
}

// ownAddrs returns this host's addresses. Even public ones are refused: from here they lead behind the host's firewall.
func ownAddrs() ([]netip.Addr, error) {
	nets, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("netguard: this host's own addresses: %w", err)
	}
	var own []netip.Addr
	for _, n := range nets {
		if ipnet, ok := n.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(ipnet.IP); ok {
				own = append(own, a.Unmap())
			}
		}
	}
	return own, nil
}

// refuse tells the caller which host, and only the log what it led to.
func (d *Dialer) refuse(host string, cause error) error {
	if len(host) > 253 {
		host = host[:253] + "…"
	}
	by := ""
	if d.Option != "" {
		by = " with " + d.Option
	}
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: CodeRefused, Err: cause,
		Detail: fmt.Sprintf("%q is not on the public internet. Private, loopback, link-local and metadata addresses are refused, unless "+
			"the operator of this server opens them%s.", host, by)}
}

// interleave alternates between the two families, beginning with that of the first address: one of them may be broken.
func interleave(addrs []netip.Addr) []netip.Addr {
	var first, second, out []netip.Addr
	for _, a := range addrs {
		if a.Is4() == addrs[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(second) {
			out = append(out, second[i])
		}
	}
	return out[:min(len(out), maxAttempts)]
}

// race connects to the first address that answers. Each gets a head start over the next.
func (d *Dialer) race(ctx context.Context, network string, addrs []netip.Addr, port string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result)
	var next <-chan time.Time
	var errs []error
	begun, ended := 0, 0
	begin := func() {
		address := net.JoinHostPort(addrs[begun].String(), port)
		begun++
		go func() {
			conn, err := d.connect(ctx, network, address)
			results <- result{conn, err}
		}()
		next = nil
		if begun < len(addrs) {
			next = time.After(headStart)
		}
	}
	begin()
	for ended < begun {
		select {
		case <-next:
			begin()
		case r := <-results:
			ended++
			if r.err == nil {
				cancel()
				for ; ended < begun; ended++ {
					if late := <-results; late.conn != nil {
						_ = late.conn.Close() // nothing was said
					}
				}
				return r.conn, nil
			}
			errs = append(errs, r.err)
			if begun < len(addrs) && ctx.Err() == nil {
				begin()
			}
		}
	}
	return nil, errors.Join(errs...)
}

func (d *Dialer) connect(ctx context.Context, network, address string) (net.Conn, error) {
	if d.Dial != nil {
		return d.Dial(ctx, network, address)
	}
	return (&net.Dialer{Timeout: d.timeout(), KeepAlive: 30 * time.Second}).DialContext(ctx, network, address)
}

func (d *Dialer) timeout() time.Duration {
	if d.Timeout > 0 {
		return d.Timeout
	}
	return defaultTimeout
}

// splitTarget takes an address apart and normalizes both halves.
func (d *Dialer) splitTarget(address string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("netguard: %w", err)
	}
	n, err := ParsePort(port)
	if err != nil {
		return "", "", fmt.Errorf("netguard: %q: %w", address, err)
	}
	name, addr, err := ParseHost(host)
	if err != nil {
		return "", "", d.refuse(host, err)
	}
	if addr.IsValid() {
		name = addr.String()
	}
	return name, strconv.Itoa(int(n)), nil
}
