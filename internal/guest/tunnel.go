package guest

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// muxConfig is how both ends speak yamux. A peer that doesn't read for a long time is as good as gone, but a sandbox may be starved of
// CPU for a while.
func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard // what matters reaches us as errors
	c.ConnectionWriteTimeout = 30 * time.Second
	return c
}

// silent is a log for libraries that insist on one.
func silent() *log.Logger { return log.New(io.Discard, "", 0) }

// requests counts what an HTTP server has under way, so that whoever ends it can wait for the handlers too.
type requests struct {
	mu   sync.Mutex
	over bool
	wg   sync.WaitGroup
}

// count makes h one that is waited for. Once wait has been called it isn't called any more.
func (q *requests) count(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q.mu.Lock()
		if q.over {
			q.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		q.wg.Add(1)
		q.mu.Unlock()
		defer q.wg.Done()
		h.ServeHTTP(w, r)
	})
}

func (q *requests) wait() {
	q.mu.Lock()
	q.over = true
	q.mu.Unlock()
	q.wg.Wait()
}

// streams makes a session a listener that can be closed without ending the session, so that answers under way are finished.
type streams struct {
	session *yamux.Session
	open    context.Context // done when closed: the form in which yamux wants to be told
	close   context.CancelFunc
}

func newStreams(session *yamux.Session) *streams {
	s := &streams{session: session}
	s.open, s.close = context.WithCancel(context.Background())
	return s
}

// Accept returns the next stream that the other end opens.
func (l *streams) Accept() (net.Conn, error) {
	st, err := l.session.AcceptStreamWithContext(l.open)
	if err != nil {
		if l.open.Err() != nil {
			return nil, net.ErrClosed
		}
		return nil, err
	}
	return st, nil
}

// Close makes Accept return.
func (l *streams) Close() error {
	l.close()
	return nil
}

// Addr returns the session's own address.
func (l *streams) Addr() net.Addr { return l.session.Addr() }

// tunnelLinger is how long a program may go on sending to a gateway that has ended its answer.
const tunnelLinger = 10 * time.Second

// tunnel is the loopback port of a sandbox that leads to the host's gateway, through whichever host connected last.
type tunnel struct {
	ln       net.Listener
	patience time.Duration
	places   chan struct{} // one for each connection
	wg       sync.WaitGroup

	mu       sync.Mutex
	sessions []*yamux.Session // live ones, the newest last
	changed  chan struct{}    // closed when one is added
}

func listenTunnel(ctx context.Context, addr string, patience time.Duration) (*tunnel, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	t := &tunnel{ln: ln, patience: patience, places: make(chan struct{}, maxGatewayStreams), changed: make(chan struct{})}
	t.wg.Go(func() { t.accept(ctx) })
	return t, nil
}

// wait returns when everything has ended, after the ctx given to listenTunnel has.
func (t *tunnel) wait() { t.wg.Wait() }

func (t *tunnel) accept(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = t.ln.Close() })() // makes Accept fail
	for {
		conn, err := t.ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			pause(ctx) // out of descriptors, say: others may end
			continue
		}
		select { // more wait in the kernel's queue: they would use up our descriptors, and the host hangs up on them
		case t.places <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close() // nothing was said
			return
		}
		t.wg.Go(func() {
			t.carry(ctx, conn.(*net.TCPConn))
			<-t.places
		})
	}
}

// pause waits a little before something is tried again, but not beyond ctx.
func pause(ctx context.Context) {
	select {
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
	}
}

// add makes session the one that new connections go to.
func (t *tunnel) add(session *yamux.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions = append(t.sessions, session)
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *tunnel) remove(session *yamux.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions = slices.DeleteFunc(t.sessions, func(s *yamux.Session) bool { return s == session })
}

// open opens a stream to the newest host that takes one, and waits for one to come.
func (t *tunnel) open(ctx context.Context) (*yamux.Stream, *yamux.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	for {
		t.mu.Lock()
		live, changed := slices.Clone(t.sessions), t.changed
		t.mu.Unlock()
		for _, session := range slices.Backward(live) {
			if st, err := session.OpenStream(); err == nil {
				return st, session, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// carry joins conn to a stream until both directions have ended, or one has failed.
func (t *tunnel) carry(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close() // all has been written, or it has failed anyway
	st, session, err := t.open(ctx)
	if err != nil {
		return
	}
	abort := func() {
		_ = conn.SetLinger(0) // the program inside should see a reset, not an early end
		_ = conn.Close()
		_ = st.Close()
		_ = st.SetDeadline(time.Unix(1, 0))
	}
	defer context.AfterFunc(ctx, abort)()
	defer st.Close() // as above
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, err := io.Copy(conn, st)
		if err != nil || session.IsClosed() {
			abort()
			return
		}
		_ = conn.CloseWrite() // fails when conn is gone, and then the other direction finds out
		// The gateway has said its last word: nobody may be reading what still comes.
		_ = conn.SetReadDeadline(time.Now().Add(tunnelLinger))
		_ = st.SetWriteDeadline(time.Now().Add(tunnelLinger))
	}()
	if _, err := io.Copy(st, conn); err != nil {
		abort()
	} else {
		_ = st.Close() // closes our direction only
	}
	<-back
}
