package claude

import (
	"math"
	"sync"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Bounds of what is kept of a session beside the store.
const (
	maxPartials     = 4096
	maxPartialBytes = 4 << 20
)

// hubs holds a hub for each session that somebody writes or reads.
type hubs struct {
	mu   sync.Mutex
	open map[string]*hub // guarded by mu, and so is hub.refs
}

// attach returns the hub of a session. It must be given back with release.
func (hs *hubs) attach(session string) *hub {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.open[session]
	if h == nil {
		h = &hub{session: session, changed: make(chan struct{})}
		hs.open[session] = h
	}
	h.refs++
	return h
}

func (hs *hubs) release(h *hub) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h.refs--; h.refs == 0 {
		delete(hs.open, h.session)
	}
}

// hub is where a session's one writer and its readers meet. It holds the partial lines, which are not stored, and says how far
// the store is complete, so that a reader never gets a line before an older one.
type hub struct {
	session string
	refs    int // guarded by hubs.mu

	mu       sync.Mutex
	changed  chan struct{}          // guarded by mu, like all below: closed at the next change
	writing  bool                   // there is a writer
	safe     int64                  // while there is one: all lasting events up to here are stored
	partials []sandbox.SessionEvent // in order
	bytes    int
}

// begin says that there is a writer now. last is the number of the session's last event.
func (h *hub) begin(last int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writing, h.safe = true, max(h.safe, last)
}

// end says that there is no writer any more. The partials stay for readers that are behind.
func (h *hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writing = false
	h.wake()
}

// clear forgets the partials: all of them are superseded by what was stored.
func (h *hub) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.partials, h.bytes = nil, 0
}

// stored says that all lasting events up to seq are in the store.
func (h *hub) stored(seq int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.safe = max(h.safe, seq)
	h.wake()
}

// partial adds a partial line. complete says that nothing that belongs before it is still to be stored.
func (h *hub) partial(ev sandbox.SessionEvent, complete bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if complete {
		h.safe = max(h.safe, ev.Seq)
	}
	if n := len(h.partials); n == 0 || h.partials[n-1].Seq < ev.Seq {
		h.partials = append(h.partials, ev)
		h.bytes += len(ev.Data)
	}
	for len(h.partials) > maxPartials || h.bytes > maxPartialBytes {
		h.bytes -= len(h.partials[0].Data)
		h.partials[0].Data = nil
		h.partials = h.partials[1:]
	}
	h.wake()
}

func (h *hub) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// look returns the partials after number after, up to which number the store may be read now, and a channel that is closed when
// there may be more. It must come before the store is read.
func (h *hub) look(after int64) (partials []sandbox.SessionEvent, limit int64, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	limit = math.MaxInt64
	if h.writing {
		limit = h.safe
	}
	for i, ev := range h.partials {
		if ev.Seq > limit {
			break
		}
		if ev.Seq > after {
			last := i
			for last < len(h.partials) && h.partials[last].Seq <= limit {
				last++
			}
			partials = append(partials, h.partials[i:last]...) // the ring moves on
			break
		}
	}
	return partials, limit, h.changed
}
