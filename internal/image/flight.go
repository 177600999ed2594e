package image

import (
	"context"
	"errors"
	"sync"
)

// keyLocks are locks by name that can be waited for with a context.
type keyLocks struct {
	mu sync.Mutex
	m  map[string]*keyLock
}

type keyLock struct {
	held chan struct{} // holds one value while locked
	refs int
}

func (k *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]*keyLock{}
	}
	l := k.m[key]
	if l == nil {
		l = &keyLock{held: make(chan struct{}, 1)}
		k.m[key] = l
	}
	l.refs++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.refs--; l.refs == 0 {
			delete(k.m, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// flights are works that several callers may wait for. A work goes on while anyone does.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	img    Image
	err    error

	mu    sync.Mutex
	seats map[*seat]bool
	past  []Progress // the latest of each phase and layer, in order of the first
}

// seat is a caller that waits. Each has its own list of what it hasn't reported yet, so that a slow one holds up nobody.
type seat struct {
	mu    sync.Mutex
	queue []Progress
	wake  chan struct{}
}

// do runs work, or joins the one of that key that is under way. report is called by this goroutine only. led tells whether it was ours.
func (fs *flights) do(ctx context.Context, s *Store, key string, report func(Progress), work func(ctx context.Context, post func(Progress)) (Image, error)) (img Image, led bool, err error) {
	fs.mu.Lock()
	f := fs.m[key]
	if f == nil {
		led = true
		f = &flight{done: make(chan struct{}), seats: map[*seat]bool{}}
		if f.cancel, err = s.start(f, func(ctx context.Context) { f.img, f.err = work(ctx, f.post) }, func() { fs.leave(key, f) }); err != nil {
			fs.mu.Unlock()
			return Image{}, led, err
		}
		if fs.m == nil {
			fs.m = map[string]*flight{}
		}
		fs.m[key] = f
	}
	st := f.sit()
	fs.mu.Unlock()

	for {
		st.drain(report)
		select {
		case <-st.wake:
		case <-f.done:
			st.drain(report)
			return f.img, led, f.err
		case <-ctx.Done():
			if fs.stand(key, f, st) {
				<-f.done // ours was the last seat: nothing is left behind
			}
			return Image{}, led, context.Cause(ctx)
		}
	}
}

// start runs a work in a goroutine that Close waits for.
func (s *Store) start(f *flight, run func(context.Context), end func()) (context.CancelCauseFunc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		defer cancel(nil)
		defer close(f.done)
		run(ctx)
		end()
	}()
	return cancel, nil
}

// leave takes a work that has ended out of the list, so that who comes now begins anew.
func (fs *flights) leave(key string, f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.m[key] == f {
		delete(fs.m, key)
	}
}

var errAbandoned = errors.New("nobody waits for it any more")

// stand gives up a seat. The last one ends the work.
func (fs *flights) stand(key string, f *flight, st *seat) (last bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.seats, st)
	if len(f.seats) > 0 {
		return false
	}
	if fs.m[key] == f {
		delete(fs.m, key)
	}
	f.cancel(errAbandoned)
	return true
}

func (f *flight) sit() *seat {
	st := &seat{wake: make(chan struct{}, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seats[st] = true
	for _, p := range f.past {
		st.put(p)
	}
	return st
}

// post tells all who wait.
func (f *flight) post(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.past = merge(f.past, p)
	for st := range f.seats {
		st.put(p)
	}
}

func (st *seat) put(p Progress) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.queue = merge(st.queue, p)
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// merge puts a progress in the place of an older one of the same thing.
func merge(list []Progress, p Progress) []Progress {
	for i := range list {
		if list[i].Phase == p.Phase && list[i].Layer == p.Layer {
			if p.Done >= list[i].Done {
				list[i] = p
			}
			return list
		}
	}
	return append(list, p)
}

func (st *seat) drain(report func(Progress)) {
	st.mu.Lock()
	queue := st.queue
	st.queue = nil
	st.mu.Unlock()
	for _, p := range queue {
		report(p)
	}
}
