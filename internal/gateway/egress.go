package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Policy says what a sandbox may reach through the proxy. Only public hosts are reachable, whatever it says, and those that the
// operator opened. An allow-list that is empty means no host; mode open has none: there are other ways out, but programs were told of this one.
type Policy = sandbox.Network

// Connection is what became of one request to the proxy: a tunnel (CONNECT), or one plain HTTP request.
type Connection struct {
	Sandbox  sandbox.ID
	Host     string // normalized, or what was asked for if it makes no sense
	Port     uint16 // 0 if it makes no sense
	Method   string
	Allowed  bool
	Reason   string // one of the Reason constants; "" = it went well
	BytesIn  int64  // to the sandbox
	BytesOut int64  // from the sandbox
	Start    time.Time
	Duration time.Duration
}

// Why a connection was refused, or didn't come about.
const (
	ReasonNoNetwork   = "no_network"           // the sandbox's mode is none
	ReasonNotAllowed  = "not_allowed"          // the host or port isn't on the list
	ReasonAddress     = netguard.CodeRefused   // the host is, or leads to, an address that isn't public
	ReasonBadRequest  = "bad_request"          // no proxy request that makes sense
	ReasonPolicy      = "policy_unavailable"   // the policy couldn't be read
	ReasonTooMany     = "too_many_connections" // of this sandbox at once
	ReasonUnresolved  = "name_not_found"       // allowed, but there is no such name
	ReasonUnreachable = "unreachable"          // allowed, but it could not be connected to
	ReasonCut         = "cut"                  // ended because of the policy, of idleness, or with the sandbox
)

// Counters are totals of one sandbox since the server started.
type Counters struct {
	Allowed, Refused, Active int64 // connections
	BytesIn, BytesOut        int64
}

const (
	// maxVisits is how many connections a sandbox may have at once. It leaves room in the tunnel for the model's API.
	maxVisits = 192
	// defaultIdle is how long nothing may pass in either direction.
	defaultIdle = 30 * time.Minute
	// maxRefusalLogs bounds the lines about refusals, for each sandbox and minute.
	maxRefusalLogs = 20
)

// egress is the forward proxy of all sandboxes.
type egress struct {
	policy    func(context.Context, sandbox.ID) (Policy, error)
	dialer    *netguard.Dialer
	transport *http.Transport // of plain HTTP
	record    func(Connection)
	idle      time.Duration
	log       *slog.Logger

	mu    sync.Mutex
	boxes map[sandbox.ID]*box // guarded by mu
}

func newEgress(cfg Config, log *slog.Logger) *egress {
	e := &egress{policy: cfg.Policy, record: cfg.Record, idle: cfg.EgressIdle, log: log, boxes: map[sandbox.ID]*box{}}
	if e.idle <= 0 {
		e.idle = defaultIdle
	}
	dialer := cfg.Egress
	e.dialer = &dialer
	e.transport = netguard.Transport(e.dialer, nil)
	e.transport.DisableKeepAlives = true // no connection is shared, least of all between sandboxes
	e.transport.DisableCompression = true
	e.transport.ForceAttemptHTTP2 = false
	return e
}

// Egress returns the totals of sandbox id.
func (g *Gateway) Egress(id sandbox.ID) Counters {
	g.egress.mu.Lock()
	b := g.egress.boxes[id]
	g.egress.mu.Unlock()
	if b == nil {
		return Counters{}
	}
	return b.counters()
}

// Forget drops the totals of a sandbox that has ended.
func (g *Gateway) Forget(id sandbox.ID) {
	g.egress.mu.Lock()
	defer g.egress.mu.Unlock()
	delete(g.egress.boxes, id)
}

// PolicyChanged ends the connections of sandbox id that its policy doesn't allow any more. New ones always go by the policy of the moment.
func (g *Gateway) PolicyChanged(ctx context.Context, id sandbox.ID) {
	g.egress.mu.Lock()
	b := g.egress.boxes[id]
	g.egress.mu.Unlock()
	if b == nil {
		return
	}
	for _, v := range b.open() {
		if no := g.egress.decide(ctx, id, v.name, v.addr, v.port); no != nil {
			v.abort()
		}
	}
}

func (e *egress) box(id sandbox.ID) *box {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.boxes[id]
	if b == nil {
		b = &box{visits: map[*visit]bool{}}
		e.boxes[id] = b
	}
	return b
}

// isProxyRequest tells requests to the proxy from those to the model's API, which share a port. A program that sends even what is meant for
// the gateway itself through the proxy gets the API.
func isProxyRequest(r *http.Request) bool {
	if r.Method == http.MethodConnect {
		return true
	}
	return (r.URL.Scheme != "" || r.URL.Host != "") && (r.URL.Scheme != "http" || r.URL.Host != guest.Gateway || r.URL.User != nil)
}

// refusal is a no to a program of the sandbox.
type refusal struct {
	status int
	reason string
	text   string
	err    error // for the log
}

// serve answers one request to the proxy.
func (e *egress) serve(w http.ResponseWriter, r *http.Request, id sandbox.ID, token string) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	v := e.begin(id, r.Method, cancel)
	defer v.end()
	if err := v.target(r); err != nil {
		w.Header().Set("Connection", "close")
		v.refuse(w, refusal{status: http.StatusBadRequest, reason: ReasonBadRequest,
			text: "This is no request that a proxy can answer: " + err.Error() + "."})
		return
	}
	if !v.box.enter(v) {
		v.refuse(w, refusal{status: http.StatusServiceUnavailable, reason: ReasonTooMany,
			text: fmt.Sprintf("This sandbox has %d connections open, which is the most. Close some.", maxVisits)})
		return
	}
	if no := e.decide(ctx, id, v.name, v.addr, v.port); no != nil {
		v.refuse(w, *no)
		return
	}
	v.conn.Allowed = true
	r = r.WithContext(ctx)
	if r.Method == http.MethodConnect {
		v.tunnel(w, r)
	} else {
		v.forward(w, r, token)
	}
}

// decide returns nil if the sandbox may connect to the host, as far as can be told before its name is resolved.
func (e *egress) decide(ctx context.Context, id sandbox.ID, name string, addr netip.Addr, port uint16) *refusal {
	var p Policy
	if e.policy != nil {
		var err error
		if p, err = e.policy(ctx, id); err != nil {
			return noPolicy(err)
		}
	}
	switch p.Mode {
	case sandbox.NetworkOpen:
		return nil
	case sandbox.NetworkEgress:
		rules, err := netguard.ParseRules(p.Allow)
		if err != nil {
			return noPolicy(err)
		}
		if rules.Match(name, addr, port) {
			return nil
		}
		return &refusal{status: http.StatusForbidden, reason: ReasonNotAllowed, text: fmt.Sprintf("This sandbox may not reach %s: it is not on its list of "+
			"allowed hosts (network.allow).", hostPort(name, addr, port))}
	}
	return &refusal{status: http.StatusForbidden, reason: ReasonNoNetwork, text: `This sandbox has no network: its network mode is "none". ` +
		`Whoever owns it can change that: network.mode "egress", with the hosts that it may reach in network.allow.`}
}

func noPolicy(err error) *refusal {
	return &refusal{status: http.StatusForbidden, reason: ReasonPolicy, err: fmt.Errorf("reading the network policy: %w", err),
		text: "The network policy of this sandbox can't be read at the moment, so nothing is let through."}
}

func hostPort(name string, addr netip.Addr, port uint16) string {
	if addr.IsValid() {
		name = addr.String()
	}
	return net.JoinHostPort(name, strconv.Itoa(int(port)))
}

// target reads where the request wants to go. It believes nothing but the request line: a Host header may say anything.
func (v *visit) target(r *http.Request) error {
	host, port := r.URL.Hostname(), r.URL.Port()
	if strings.HasPrefix(r.URL.Host, "[") {
		host = "[" + host + "]"
	}
	v.conn.Host = clip(host)
	if r.Method == http.MethodConnect {
		v.conn.Host = clip(r.RequestURI)
		var err error
		if host, port, err = net.SplitHostPort(r.RequestURI); err != nil || strings.ContainsAny(r.RequestURI, "/@?#") {
			return errors.New("CONNECT wants HOST:PORT and nothing else")
		}
		if strings.HasPrefix(r.RequestURI, "[") {
			host = "[" + host + "]"
		}
		if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
			return errors.New("CONNECT has no body")
		}
	} else {
		switch {
		case r.URL.Scheme == "https":
			return errors.New("https goes through CONNECT")
		case r.URL.Scheme != "http" || r.URL.Opaque != "" || host == "":
			return errors.New("only http://HOST/ URLs and CONNECT are understood")
		case r.URL.User != nil:
			return errors.New("a name and password in the URL are not passed on; use the Authorization header")
		}
		if port == "" {
			port = "80"
		}
	}
	n, err := netguard.ParsePort(port)
	if err != nil {
		return err
	}
	if v.name, v.addr, err = netguard.ParseHost(host); err != nil {
		return fmt.Errorf("the host %q: %w", clip(host), err)
	}
	v.port, v.conn.Port, v.conn.Host = n, n, v.name
	if v.addr.IsValid() {
		v.conn.Host = v.addr.String()
	}
	return nil
}

// clip bounds what a sandbox can make us remember and log.
func clip(s string) string {
	if len(s) > 255 {
		return s[:255] + "…"
	}
	return s
}
