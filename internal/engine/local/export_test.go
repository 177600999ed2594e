package local

import (
	"context"
	"slices"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Installation is exported for tests.
var Installation = installation

// Warm makes the pool keep sandboxes of spec's class, and waits until as many lie ready as are to.
func Warm(ctx context.Context, e *Engine, spec sandbox.Spec) error {
	c, _ := e.classOf(spec)
	for {
		e.pool.mu.Lock()
		e.pool.ask(c)
		e.pool.ask(c)
		n := 0
		for _, s := range e.pool.slots {
			if s.class == c {
				n++
			}
		}
		changed := e.pool.changed
		e.pool.mu.Unlock()
		if n >= e.pool.size {
			return nil
		}
		e.pool.poke()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Taken is how many runs were started ahead.
func Taken(e *Engine) int {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	return e.pool.taken
}

// Ready are the volumes of what lies ready, "" for one that is new.
func Ready(e *Engine) (volumes []string) {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	for _, s := range e.pool.slots {
		volumes = append(volumes, s.class.volume)
	}
	slices.Sort(volumes)
	return volumes
}

// Age makes all that lies ready, and all that was asked for, as old as if nobody had come for hours, and tidies up.
func Age(e *Engine) {
	e.pool.mu.Lock()
	for _, s := range e.pool.slots {
		s.made = s.made.Add(-2 * slotLife)
	}
	for _, u := range e.pool.asked {
		u.last = u.last.Add(-2 * classIdle)
	}
	e.pool.mu.Unlock()
	e.pool.tidy()
}
