package gateway

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// box is what the proxy knows of one sandbox.
type box struct {
	allowed, refused, in, out atomic.Int64

	mu     sync.Mutex
	visits map[*visit]bool // guarded by mu: those under way
	minute time.Time       // guarded by mu: when the count of logged refusals began
	logged int             // guarded by mu: refusals since minute
}

func (b *box) counters() Counters {
	b.mu.Lock()
	active := len(b.visits)
	b.mu.Unlock()
	return Counters{Allowed: b.allowed.Load(), Refused: b.refused.Load(), Active: int64(active), BytesIn: b.in.Load(), BytesOut: b.out.Load()}
}

// enter takes v among those under way, if there is room.
func (b *box) enter(v *visit) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.visits) >= maxVisits {
		return false
	}
	b.visits[v] = true
	return true
}

func (b *box) leave(v *visit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.visits, v)
}

func (b *box) open() []*visit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.visits))
}

// mayLog reports whether one more refusal is to be logged, and whether it is the last one of its minute.
func (b *box) mayLog(now time.Time) (yes, last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.minute) >= time.Minute {
		b.minute, b.logged = now, 0
	}
	b.logged++
	return b.logged <= maxRefusalLogs, b.logged == maxRefusalLogs
}

// visit is one request to the proxy.
type visit struct {
	e    *egress
	box  *box
	conn Connection // Bytes… and Duration are filled in at the end

	name string     // where it goes, normalized: a name
	addr netip.Addr // or an address
	port uint16

	in, out atomic.Int64
	idle    *time.Timer
	cancel  context.CancelFunc
	cut     atomic.Bool
	err     error // that isn't the sandbox's fault; for the log
}

func (e *egress) begin(id sandbox.ID, method string, cancel context.CancelFunc) *visit {
	v := &visit{e: e, box: e.box(id), cancel: cancel, conn: Connection{Sandbox: id, Method: clip(method), Start: time.Now()}}
	v.idle = time.AfterFunc(e.idle, v.abort)
	return v
}

// abort ends a visit from outside.
func (v *visit) abort() {
	v.cut.Store(true)
	v.cancel()
}

func (v *visit) received(n int64) {
	v.in.Add(n)
	v.box.in.Add(n)
	v.idle.Reset(v.e.idle)
}

func (v *visit) sent(n int64) {
	v.out.Add(n)
	v.box.out.Add(n)
	v.idle.Reset(v.e.idle)
}

// refuse says no, in words that a person reads who wonders why a download failed.
func (v *visit) refuse(w http.ResponseWriter, no refusal) {
	if no.status == http.StatusForbidden {
		v.conn.Allowed = false
	}
	v.conn.Reason, v.err = no.reason, no.err
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Sandlot-Reason", no.reason)
	w.WriteHeader(no.status)
	_, _ = w.Write([]byte("Sandlot: " + no.text + "\n")) // the program may be gone
}

// fail answers a request whose host was allowed by name, but could not be connected to.
func (v *visit) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		v.conn.Reason = ReasonCut
		panic(http.ErrAbortHandler) // nobody is to take silence for an answer
	}
	where := hostPort(v.name, v.addr, v.port)
	var problem *sandbox.Problem
	var dns *net.DNSError
	var timeout net.Error
	v.e.log.DebugContext(r.Context(), "a connection of a sandbox failed", "sandbox", v.conn.Sandbox, "host", v.conn.Host, "err", err)
	switch {
	case errors.As(err, &problem) && problem.Code == netguard.CodeRefused:
		v.refuse(w, refusal{status: http.StatusForbidden, reason: ReasonAddress, text: problem.Detail})
	case errors.As(err, &dns) && dns.IsNotFound:
		v.refuse(w, refusal{status: http.StatusBadGateway, reason: ReasonUnresolved, text: "There is no host named " + v.conn.Host + "."})
	case errors.As(err, &dns):
		v.refuse(w, refusal{status: http.StatusBadGateway, reason: ReasonUnresolved, text: "The name " + v.conn.Host + " could not be resolved."})
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		v.refuse(w, refusal{status: http.StatusGatewayTimeout, reason: ReasonUnreachable, text: where + " did not answer in time."})
	default:
		v.refuse(w, refusal{status: http.StatusBadGateway, reason: ReasonUnreachable, text: "The connection to " + where + " failed."})
	}
}

// end counts, logs and tells what became of the visit.
func (v *visit) end() {
	v.idle.Stop()
	v.box.leave(v)
	c := v.conn
	c.BytesIn, c.BytesOut, c.Duration = v.in.Load(), v.out.Load(), time.Since(c.Start)
	if v.cut.Load() {
		c.Reason = ReasonCut
	}
	level, more := slog.LevelDebug, ""
	if c.Allowed {
		v.box.allowed.Add(1)
	} else {
		v.box.refused.Add(1)
		if yes, last := v.box.mayLog(time.Now()); yes {
			level = slog.LevelInfo
			if v.err != nil {
				level = slog.LevelError
			}
			if last {
				more = "; there are many, and those of the next minute are logged at level debug"
			}
		}
	}
	v.e.log.Log(context.Background(), level, "connection of a sandbox"+more, "sandbox", c.Sandbox, "method", c.Method, "host", c.Host,
		"port", c.Port, "allowed", c.Allowed, "reason", c.Reason, "in", c.BytesIn, "out", c.BytesOut, "took", c.Duration.Round(time.Millisecond),
		"err", v.err)
	if v.e.record != nil {
		v.e.record(c)
	}
}
