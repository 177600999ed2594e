package netguard

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/proxy"
)

// internalNames end in what never stands for a host of the public internet. They matter where only the proxy can resolve names.
var internalNames = []string{"localhost", "local", "internal", "intranet", "lan", "home", "corp", "private", "home.arpa", "in-addr.arpa", "ip6.arpa"}

// proxyFor returns the proxy on the way to a host, nil if there is none.
func (d *Dialer) proxyFor(scheme, host, port string) (*url.URL, error) {
	if d.Proxy == nil {
		return nil, nil
	}
	u, err := d.Proxy(&url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)})
	if err != nil {
		return nil, fmt.Errorf("the server's proxy settings: %w", err)
	}
	return u, nil
}

// checkProxied checks a host that a proxy will connect to. A name that only the proxy can resolve passes, unless its form gives it away.
func (d *Dialer) checkProxied(ctx context.Context, host string) error {
	if d.anything {
		return nil
	}
	_, err := d.Lookup(ctx, host)
	var dns *net.DNSError
	if !errors.As(err, &dns) || ctx.Err() != nil {
		return err
	}
	name, _, err := ParseHost(host)
	if err != nil {
		return d.refuse(host, err)
	}
	if !strings.Contains(name, ".") || slices.ContainsFunc(internalNames, func(s string) bool { return strings.HasSuffix(name, "."+s) }) {
		return d.refuse(host, errors.New("it is a name of a private network"))
	}
	return nil
}

// throughProxy has a proxy connect to target.
func (d *Dialer) throughProxy(ctx context.Context, via *url.URL, target string) (net.Conn, error) {
	if strings.HasPrefix(via.Scheme, "socks5") {
		f := &forward{d: d}
		socks, err := proxy.FromURL(via, f)
		if err != nil {
			return nil, fmt.Errorf("the server's proxy settings: %w", err)
		}
		dialer, ok := socks.(proxy.ContextDialer)
		if !ok {
			return nil, errors.New("the server's proxy settings: no SOCKS proxy of a kind that can be used")
		}
		if _, err := dialer.DialContext(ctx, "tcp", target); err != nil {
			return nil, fmt.Errorf("connecting to %s through the server's proxy: %w", target, err)
		}
		return f.conn, nil // SOCKS adds nothing to it, and the wrapper could not be closed in one direction
	}
	conn, err := d.connect(ctx, "tcp", proxyAddress(via))
	if err != nil {
		return nil, fmt.Errorf("connecting to the server's proxy: %w", err)
	}
	tunnel, err := askProxy(ctx, conn, via, target)
	if err != nil {
		_ = conn.Close() // the error says more
		return nil, fmt.Errorf("connecting to %s through the server's proxy: %w", target, err)
	}
	return tunnel, nil
}

// forward dials a proxy, for package proxy, and keeps the connection.
type forward struct {
	d    *Dialer
	conn net.Conn
}

// Dial is there for the interface; it isn't called.
func (f *forward) Dial(network, address string) (net.Conn, error) {
	return f.DialContext(context.Background(), network, address)
}

// DialContext connects to the proxy.
func (f *forward) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	f.conn, err = f.d.connect(ctx, network, address)
	return f.conn, err
}

// askProxy asks for a tunnel over conn.
func askProxy(ctx context.Context, conn net.Conn, via *url.URL, target string) (net.Conn, error) {
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if via.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: via.Hostname()})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secure
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{"User-Agent": {"sandlot"}}}
	if u := via.User; u != nil {
		pass, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+pass)))
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	r := &bounded{Conn: conn, left: 64 << 10}
	answer := bufio.NewReader(r)
	res, err := http.ReadResponse(answer, req)
	if err != nil {
		return nil, err
	}
	_ = res.Body.Close() // of a CONNECT: empty, or not wanted
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", res.Status)
	}
	if answer.Buffered() > 0 { // what came with the answer is the tunnel's
		rest, err := answer.Peek(answer.Buffered())
		if err != nil {
			return nil, err
		}
		return &prefixed{Conn: conn, rest: slices.Clone(rest)}, nil
	}
	return conn, nil
}

// bounded is a connection that gives only so much.
type bounded struct {
	net.Conn
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("its answer is too long")
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// prefixed is a connection of which something has been read already.
type prefixed struct {
	net.Conn
	rest []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.rest) > 0 {
		n := copy(b, p.rest)
		p.rest = p.rest[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// CloseWrite ends our direction, if the connection can.
func (p *prefixed) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

func proxyAddress(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	case strings.HasPrefix(u.Scheme, "socks5"):
		port = "1080"
	default:
		port = "80"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// CheckHosts checks an operator's list of hosts for Transport.
func CheckHosts(hosts []string) error {
	_, err := parseHosts(hosts)
	return err
}

// parseHosts reads entries like those of Rules, but a host without a port means all of its ports.
func parseHosts(hosts []string) (Rules, error) {
	rules, err := ParseRules(hosts)
	for i := range rules {
		if rules[i].ports == webPorts {
			rules[i].ports = allPorts
		}
	}
	return rules, err
}

// Transport returns a transport for requests that a sandbox's owner chose the URL of: it connects as d does, redirects included. hosts are
// those that the operator opened, as host, host:port, or *.host; they may be anywhere. An entry that CheckHosts refuses opens nothing.
func Transport(d *Dialer, hosts []string) *http.Transport {
	t := &guarded{d: d, proxies: map[string]bool{}}
	for _, h := range hosts {
		if rules, err := parseHosts([]string{h}); err == nil {
			t.open = append(t.open, rules...)
		}
	}
	for _, scheme := range []string{"http", "https"} { // known before the first request, so that none can be taken for it
		if via, err := d.proxyFor(scheme, "host.invalid", "443"); err == nil && via != nil {
			t.remember(via)
		}
	}
	return &http.Transport{
		Proxy:                  t.proxy,
		DialContext:            t.dial,
		TLSHandshakeTimeout:    15 * time.Second,
		ResponseHeaderTimeout:  5 * time.Minute,
		MaxResponseHeaderBytes: 256 << 10,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    16,
		ForceAttemptHTTP2:      true,
	}
}

// guarded holds what the hooks of a transport need.
type guarded struct {
	d    *Dialer
	open Rules

	mu      sync.Mutex
	proxies map[string]bool // addresses of proxies: the transport dials them by the same hook as hosts
}

// proxy is asked about every request before anything is dialed.
func (t *guarded) proxy(r *http.Request) (*url.URL, error) {
	if t.d.Proxy == nil {
		return nil, nil
	}
	port := r.URL.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[r.URL.Scheme]
	}
	host, port, err := t.d.splitTarget(net.JoinHostPort(r.URL.Hostname(), port))
	if err != nil {
		return nil, err
	}
	via, err := t.d.proxyFor(r.URL.Scheme, host, port)
	if err != nil {
		return nil, err
	}
	if via == nil {
		if t.isProxy(net.JoinHostPort(host, port)) {
			return nil, t.d.refuse(host, errors.New("it is the server's proxy"))
		}
		return nil, nil
	}
	if err := t.dialer(host, port).checkProxied(r.Context(), host); err != nil {
		return nil, err
	}
	t.remember(via)
	return via, nil
}

func (t *guarded) remember(via *url.URL) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proxies[proxyAddress(via)] = true
}

func (t *guarded) isProxy(address string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.proxies[strings.ToLower(address)]
}

func (t *guarded) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if t.isProxy(address) { // proxy lets no request through that means this address itself
		return t.d.connect(ctx, network, address)
	}
	host, port, err := t.d.splitTarget(address)
	if err != nil {
		return nil, err
	}
	direct := *t.dialer(host, port)
	direct.Proxy = nil // it was asked
	return direct.DialContext(ctx, network, address)
}

// dialer returns the one for a host: one that checks nothing where the operator said so.
func (t *guarded) dialer(host, port string) *Dialer {
	d := *t.d
	name, addr, err := ParseHost(host)
	n, perr := ParsePort(port)
	d.anything = err == nil && perr == nil && t.open.Match(name, addr, n)
	return &d
}
