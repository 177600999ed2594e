package guest

import (
	"fmt"
	"slices"
	"sync"
)

// What is kept of runs that have ended: the newest, up to these. A sandbox may run for weeks and start a command each second.
const (
	keepRuns     = 1000
	keepJournals = 8 // times the limit of one journal
)

// registry holds the runs by ID.
type registry struct {
	mu     sync.Mutex
	runs   map[string]*entry
	order  []*entry // by start, oldest first
	closed bool
}

// entry is a run that is there, or is being started.
type entry struct {
	id    string
	ready chan struct{} // closed when run or err is set
	run   *run
	err   error
}

// start returns the run with this ID, and starts it by spawn if there is none. It is told whether it did.
func (g *registry) start(id string, spawn func() (*run, error)) (*run, bool, error) {
	g.mu.Lock()
	if e := g.runs[id]; e != nil {
		g.mu.Unlock()
		<-e.ready
		return e.run, false, e.err
	}
	if g.closed {
		g.mu.Unlock()
		return nil, false, &Error{Status: 409, Code: "shutting_down", Detail: "the sandbox is being ended"}
	}
	e := &entry{id: id, ready: make(chan struct{})}
	if g.runs == nil {
		g.runs = make(map[string]*entry)
	}
	g.runs[id] = e
	g.order = append(g.order, e)
	g.mu.Unlock()

	e.run, e.err = spawn()
	if e.err != nil {
		g.mu.Lock()
		g.forget(e)
		g.mu.Unlock()
	}
	close(e.ready)
	return e.run, true, e.err
}

// forget removes e. The lock is held.
func (g *registry) forget(e *entry) {
	delete(g.runs, e.id)
	g.order = slices.DeleteFunc(g.order, func(x *entry) bool { return x == e })
}

// get returns a run that has been started.
func (g *registry) get(id string) (*run, error) {
	g.mu.Lock()
	e := g.runs[id]
	g.mu.Unlock()
	if e != nil {
		<-e.ready
		if e.err == nil {
			return e.run, nil
		}
	}
	return nil, &Error{Status: 404, Code: "no_such_run", Detail: fmt.Sprintf("there is no run %q", id)}
}

// list returns the runs, oldest first.
func (g *registry) list() []*run {
	g.mu.Lock()
	order := slices.Clone(g.order)
	g.mu.Unlock()
	var all []*run
	for _, e := range order {
		<-e.ready
		if e.err == nil {
			all = append(all, e.run)
		}
	}
	return all
}

// close lets no run start any more and returns those there are.
func (g *registry) close() []*run {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	return g.list()
}

// prune forgets the oldest ended runs beyond what is kept and returns them.
func (g *registry) prune(most int, bytes int64) []*run {
	g.mu.Lock()
	defer g.mu.Unlock()
	var old []*run
	var count int
	var size int64
	for i := len(g.order) - 1; i >= 0; i-- {
		e := g.order[i]
		select {
		case <-e.ready:
		default:
			continue // being started
		}
		if e.err != nil || e.run.alive() {
			continue
		}
		count++
		size += e.run.journal.size()
		if count > most || size > bytes {
			g.forget(e)
			old = append(old, e.run)
		}
	}
	return old
}
