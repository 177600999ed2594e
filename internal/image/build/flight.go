package build

import (
	"context"
	"fmt"
	"sync"
)

// backlog is how many lines a flight keeps for those who join late or read slowly.
const backlog = 2000

// line is one line of a step's output.
type line struct {
	text   string
	notice bool
}

// flights are the steps under way, by key. A step's work belongs to all who wait for it: it goes on while anyone does, and none of them
// slows it by reading slowly.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	cancel context.CancelFunc
	done   chan struct{} // closed after id and err are set and work has returned

	waiting int // guarded by flights.mu

	mu      sync.Mutex
	lines   []line        // the last ones
	dropped int           // how many came before them
	more    chan struct{} // closed and replaced with each line

	id  string
	err error
}

// do runs work, or joins whoever runs it already, and passes its lines to follow till it ends or ctx does. mine tells whether it is this
// work that runs, or ran. When the last one leaves, work is told to stop, and the last one waits for it.
func (f *flights) do(ctx context.Context, key string, follow func(line), work func(context.Context, func(line)) (string, error)) (
	id string, mine bool, err error) {
	fl, mine := f.join(ctx, key, work)
	if err := fl.read(ctx, follow); err != nil {
		f.leave(key, fl)
		return "", mine, err
	}
	return fl.id, mine, fl.err
}

func (f *flights) join(ctx context.Context, key string, work func(context.Context, func(line)) (string, error)) (fl *flight, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.m[key]; fl != nil {
		fl.waiting++
		return fl, false
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fl = &flight{cancel: cancel, done: make(chan struct{}), waiting: 1, more: make(chan struct{})}
	f.m[key] = fl
	go func() {
		defer close(fl.done)
		defer cancel()
		fl.id, fl.err = work(ctx, fl.emit)
		f.forget(key, fl)
	}()
	return fl, true
}

// leave gives up waiting.
func (f *flights) leave(key string, fl *flight) {
	f.mu.Lock()
	fl.waiting--
	last := fl.waiting == 0
	if last && f.m[key] == fl { // nobody may join what is being stopped
		delete(f.m, key)
	}
	f.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done
	}
}

func (f *flights) forget(key string, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m[key] == fl {
		delete(f.m, key)
	}
}

func (fl *flight) emit(l line) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if len(fl.lines) == backlog {
		half := backlog / 2 // by halves, so that dropping costs little per line
		fl.lines = append(fl.lines[:0], fl.lines[half:]...)
		fl.dropped += half
	}
	fl.lines = append(fl.lines, l)
	close(fl.more)
	fl.more = make(chan struct{})
}

// read passes every line to follow and returns nil when work has ended.
func (fl *flight) read(ctx context.Context, follow func(line)) error {
	for next, ended := 0, false; ; {
		fl.mu.Lock()
		missed := max(0, fl.dropped-next)
		next += missed
		fresh := append([]line(nil), fl.lines[next-fl.dropped:]...)
		more := fl.more
		fl.mu.Unlock()
		if missed > 0 {
			follow(line{text: fmt.Sprintf("(%d lines left out)", missed)})
		}
		for _, l := range fresh {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			follow(l)
		}
		if next += len(fresh); ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		case <-fl.done:
			ended = true // once more, for the lines that came before the end
		}
	}
}
