package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/hashicorp/yamux"
)

const (
	portHandshake = 25 * time.Second // for the guest to answer a request for a connection
	maxAfterClose = 1 << 20          // bytes that a guest may have under way when we hang up
	maxProcess    = 64               // characters of a process's name
)

// Ports lists the ports of the sandbox's loopback on which something listens, in order.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	all, err := call[[]Port](ctx, c, "GET", "/v1/ports", nil)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(p Port) bool { return p.Port == 0 })
	slices.SortFunc(all, func(a, b Port) int { return int(a.Port) - int(b.Port) })
	all = slices.CompactFunc(all, func(a, b Port) bool { return a.Port == b.Port })
	for i := range all {
		all[i].PID, all[i].Process = max(all[i].PID, 0), cleanName(all[i].Process)
	}
	return all, nil
}

// cleanName makes what a program calls itself fit to be shown.
func cleanName(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > maxProcess {
			break
		}
		if !unicode.IsPrint(r) {
			r = unicode.ReplacementChar
		}
		b.WriteRune(r)
	}
	return b.String()
}

// DialPort connects to a TCP port of the sandbox's loopback, IPv4 or IPv6. The connection also has CloseWrite, as a *net.TCPConn
// does, and its end is never taken for a loss: one that breaks gives an error. ctx bounds the dialling only. A refusal is an *Error;
// its code is "port_closed" when nothing listens.
func (c *Client) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	doing := fmt.Sprintf("connecting to port %d", port)
	ctx, cancel := context.WithTimeout(ctx, portHandshake)
	defer cancel()
	select {
	case c.ports.places <- struct{}{}:
	case <-c.done:
		return nil, fmt.Errorf("%w: %s", ErrLost, doing)
	case <-ctx.Done():
		return nil, fmt.Errorf("guest: %s: too many connections: %w", doing, ctx.Err())
	}
	stream, err := c.session.OpenStream()
	if err != nil {
		<-c.ports.places
		return nil, c.lost(ctx, doing, err)
	}
	limit := &io.LimitedReader{R: stream, N: maxRefusal}
	r := bufio.NewReaderSize(limit, segmentHeader+maxSegment)
	conn := &portConn{Stream: stream, in: segmentReader{r: r}, out: segmentWriter{w: stream}, raw: limit, client: c}
	c.ports.enter(conn)
	// Whoever dials sees to it that the dialling ends, whatever the guest does.
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	err = connectPort(stream, r, port)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		_ = conn.Close() // the error says more
		if _, ok := errors.AsType[*Error](err); ok {
			return nil, err
		}
		return nil, c.lost(ctx, doing, err)
	}
	limit.N = math.MaxInt64
	return conn, nil
}

// connectPort asks the guest for a connection.
func connectPort(w io.Writer, r *bufio.Reader, port uint16) error {
	if _, err := fmt.Fprintf(w, "POST /v1/ports/%d/connect HTTP/1.1\r\nHost: guest\r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", port, portUpgrade); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodPost})
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	defer resp.Body.Close() // only read from
	return refusal(resp)
}

// portConn is the host's end of a connection to a port.
type portConn struct {
	*yamux.Stream
	in     segmentReader // guarded by reading
	out    segmentWriter // guarded by writing
	raw    *io.LimitedReader
	client *Client

	reading sync.Mutex
	writing sync.Mutex
	closed  atomic.Bool
}

// Read implements net.Conn.
func (p *portConn) Read(b []byte) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	if p.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := p.in.Read(b)
	if err != nil && p.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

// Write implements net.Conn.
func (p *portConn) Write(b []byte) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.closed.Load() {
		return 0, net.ErrClosed
	}
	return p.out.Write(b)
}

// CloseWrite tells the program that nothing more comes. What it says can still be read.
func (p *portConn) CloseWrite() error {
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.closed.Load() {
		return net.ErrClosed
	}
	if err := p.out.end(); err != nil {
		return err
	}
	p.out.err = net.ErrClosed
	return nil
}

// Close hangs up, both ways.
func (p *portConn) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	_ = p.Stream.Close()                   // always nil; tells the guest, and ends a Write
	_ = p.SetReadDeadline(time.Unix(1, 0)) // ends a Read
	p.client.ports.leave(p)
	return nil
}

// settle returns when the guest has hung up too.
func (p *portConn) settle() {
	p.reading.Lock()
	defer p.reading.Unlock()
	if !p.client.ports.patient(p) {
		return
	}
	p.raw.N = maxAfterClose
	if n, err := io.Copy(io.Discard, p.raw); n == maxAfterClose && err == nil {
		<-p.client.session.CloseChan() // it goes on though we have hung up: it has this place for good
	}
}

// portConns are a client's connections to ports. What a guest sends takes up our memory until it has hung up too, so that a closed
// connection keeps its place until then.
type portConns struct {
	places chan struct{} // one for each

	mu   sync.Mutex
	over bool
	open map[*portConn]struct{}
	wg   sync.WaitGroup // those that settle
}

func newPortConns() *portConns {
	return &portConns{places: make(chan struct{}, maxPortConns), open: make(map[*portConn]struct{})}
}

// enter adds p, for which the caller has taken a place.
func (c *portConns) enter(p *portConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[p] = struct{}{}
	if c.over {
		c.interrupt(p)
	}
}

// leave gives p's place back when it has settled.
func (c *portConns) leave(p *portConn) {
	settle := func() {
		p.settle()
		c.mu.Lock()
		delete(c.open, p)
		c.mu.Unlock()
		<-c.places
	}
	c.mu.Lock()
	over := c.over
	if !over {
		c.wg.Go(settle)
	}
	c.mu.Unlock()
	if over {
		settle() // at once
	}
}

// patient lets p be read from without a deadline, unless it is over.
func (c *portConns) patient(p *portConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		_ = p.SetReadDeadline(time.Time{}) // yamux gives up a stream by itself that is closed on our side only
	}
	return !c.over
}

// end ends what waits for the guest. It is for when the session ends, but need not have got round to its streams: yamux lets who
// reads from one spin until it has.
func (c *portConns) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for p := range c.open {
		c.interrupt(p)
	}
}

// wait returns when nothing settles any more, after the session has ended.
func (c *portConns) wait() { c.wg.Wait() }

func (c *portConns) interrupt(p *portConn) { _ = p.SetDeadline(time.Unix(1, 0)) }
