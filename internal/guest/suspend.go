package guest

import (
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	// quietLimit is how long a guest stays quiet for a checkpoint that doesn't come: its host may have died.
	quietLimit = 15 * time.Second
	// hangUpLimit bounds the wait for answers under way to be cut off.
	hangUpLimit = 5 * time.Second
)

// suspension is what a guest knows of the times in which its whole sandbox lies still. Both clocks of a sandbox jump over such a
// time, as a sleeping computer's do; what is to last so and so long in use asks active instead.
type suspension struct {
	mu    sync.Mutex
	since time.Time     // when the present quiet began; zero if there is none
	over  chan struct{} // closed when it ends; nil if there is none
	total time.Duration // of those that have ended
	epoch time.Time     // what active counts from
}

// active is how long the sandbox has been in use. It stands still during a quiet.
func (q *suspension) active() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if q.over != nil {
		now = q.since
	}
	return now.Sub(q.epoch) - q.total
}

// begin begins a quiet; false if there is one.
func (q *suspension) begin() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over != nil {
		return false
	}
	q.since, q.over = time.Now(), make(chan struct{})
	return true
}

// end ends the quiet and returns how long it was; false if there is none.
func (q *suspension) end() (time.Duration, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over == nil {
		return 0, false
	}
	d := max(time.Since(q.since), 0)
	q.total += d
	close(q.over)
	q.since, q.over = time.Time{}, nil
	return d, true
}

// quiet returns a channel that is closed when the present quiet ends; nil if there is none.
func (q *suspension) quiet() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.over
}

// peer is a host that is connected.
type peer struct {
	hangUp func()
	gone   chan struct{}
}

type peerKey struct{}

// peers are the hosts and the listeners of a Server.
type peers struct {
	mu        sync.Mutex
	all       map[*peer]bool
	listeners map[*func()]bool
}

func (p *peers) add(h *peer) (remove func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = make(map[*peer]bool)
	}
	p.all[h] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.all, h)
		close(h.gone)
	}
}

// listening notes how a listener is closed.
func (p *peers) listening(closeIt func()) (remove func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listeners == nil {
		p.listeners = make(map[*func()]bool)
	}
	key := &closeIt
	p.listeners[key] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.listeners, key)
	}
}

func (p *peers) snapshot() (hosts []*peer, listeners []func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for h := range p.all {
		hosts = append(hosts, h)
	}
	for l := range p.listeners {
		listeners = append(listeners, *l)
	}
	return hosts, listeners
}

// postSuspend makes the guest hold no socket of the host, so that its sandbox can be written to disk: it stops listening, hangs up on
// every other host, answers, and hangs up on this one too. It comes back at Resume, or by itself when no checkpoint comes.
func (s *Server) postSuspend(w http.ResponseWriter, req *http.Request) (any, error) {
	me, _ := req.Context().Value(peerKey{}).(*peer)
	if me == nil || !s.quiet.begin() {
		return nil, &Error{Status: 409, Code: "suspending", Detail: "the sandbox is being suspended already"}
	}
	s.watchQuiet()
	hosts, listeners := s.peers.snapshot()
	for _, closeIt := range listeners {
		closeIt()
	}
	late := time.After(hangUpLimit)
	for _, h := range hosts {
		if h != me {
			go h.hangUp() // waited for below, or by ServeConn
		}
	}
	for _, h := range hosts {
		if h == me {
			continue
		}
		select {
		case <-h.gone:
		case <-late:
			s.Resume()
			return nil, &Error{Status: 503, Code: "busy", Detail: "work for the sandbox's host does not come to an end"}
		}
	}
	body := []byte("{}")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body))) // so that the answer is whole before the connection goes
	if _, err := w.Write(body); err != nil {
		s.Resume()
		return nil, err
	}
	_ = http.NewResponseController(w).Flush() // the host has gone if that fails, and then the quiet ends by itself
	go me.hangUp()                            // ServeConn waits for it
	return nil, nil
}

// watchQuiet ends a quiet for which no checkpoint comes. After a restore it does so too, at once if the clock has jumped far enough.
func (s *Server) watchQuiet() {
	over := s.quiet.quiet()
	s.wg.Go(func() {
		select {
		case <-time.After(s.cfg.QuietLimit):
			s.Resume()
		case <-over:
		case <-s.closing:
			s.Resume()
		}
	})
}

// Resume ends a suspension: hosts may connect again. Without one it does nothing, so whoever may cause it can do no harm by it.
func (s *Server) Resume() {
	d, was := s.quiet.end()
	if !was {
		return
	}
	s.mu.Lock()
	if !s.deadline.IsZero() {
		s.deadline = s.deadline.Add(d)
	}
	s.mu.Unlock()
	s.log.Info("back from a suspension", "after", d)
	s.touchDeadline()
}

// Suspended returns a channel that is closed when the present suspension ends; nil if there is none.
func (s *Server) Suspended() <-chan struct{} { return s.quiet.quiet() }
