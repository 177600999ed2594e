package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// pooled is how many sandboxes of an image the server with a pool keeps started.
const pooled = 2

// The sides of a start.
const (
	startRaw    = "runsc run -detach, exec true"
	startCold   = "POST /sandbox, exec true; no pool"
	startPooled = "POST /sandbox, exec true; pool"
)

// starter makes a sandbox, runs a command in it, and says how to remove it.
type starter func(ctx context.Context, n int) (remove func() error, err error)

// starts measures from asking for a sandbox to the end of its first command: one after the other, at fixed times, and all at once.
func (b *bench) starts(ctx context.Context) (all []*measure, err error) {
	busybox, err := b.images.busybox(ctx)
	if err != nil {
		return nil, err
	}
	for _, image := range []struct{ name, ref string }{{"host", ""}, {"busybox", busybox}} {
		raw, err := newRaw(ctx, b, image.ref, "start-"+image.name)
		if err != nil {
			return nil, err
		}
		for _, volume := range []string{"", "used-" + image.name} {
			if image.ref != "" && volume != "" {
				continue // the image makes no difference to a volume
			}
			what := fmt.Sprintf("create → first command, image %s, %s", image.name, map[bool]string{true: "new volume", false: "existing volume"}[volume == ""])
			sides := map[string]starter{
				startRaw:    startsRaw(raw),
				startCold:   startsServer(b.cold, image.ref, volume),
				startPooled: startsServer(b.pooled, image.ref, volume),
			}
			ms, err := b.modes(ctx, what, sides)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", what, err)
			}
			all = append(all, ms...)
		}
	}
	return all, nil
}

func startsServer(s *server, image, volume string) starter {
	return func(ctx context.Context, _ int) (func() error, error) {
		id, err := s.create(ctx, image, volume)
		if err != nil {
			return func() error { return nil }, err
		}
		return func() error { return s.terminate(ctx, id) }, s.exec(ctx, id, "/bin/true")
	}
}

func startsRaw(r *raw) starter {
	return func(ctx context.Context, n int) (func() error, error) {
		id := fmt.Sprintf("bench-%d", n)
		remove := func() error { return r.remove(ctx, id) }
		if err := r.run(ctx, id); err != nil {
			return remove, err
		}
		return remove, r.exec(ctx, id, "/bin/true")
	}
}

// modes does the same in the three modes.
func (b *bench) modes(ctx context.Context, what string, sides map[string]starter) ([]*measure, error) {
	order := []string{startRaw, startCold, startPooled}
	var all []*measure
	for _, mode := range []struct {
		name   string
		rounds int // the first of which warms up
		each   int
		pause  time.Duration
	}{
		{"sequential", b.rounds + 1, 1, 0},
		{fmt.Sprintf("staggered, %d every %v", b.batch, b.interval), max(2, b.rounds/4) + 1, b.batch, b.interval},
		{fmt.Sprintf("burst of %d", b.batch), max(2, b.rounds/4) + 1, b.batch, 0},
	} {
		progress("%s, %s", what, mode.name)
		m := newMeasure(what+", "+mode.name, order...)
		for round := range mode.rounds {
			for _, name := range order {
				if err := b.pooled.rest(ctx); err != nil { // its refilling would disturb whoever comes next
					return nil, err
				}
				took, err := startMany(ctx, sides[name], mode.each, mode.pause)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				if round > 0 {
					m.add(name, took...)
				}
			}
		}
		all = append(all, m)
	}
	return all, nil
}

// startMany starts some, pause apart, and removes them all when the last is done.
func startMany(ctx context.Context, start starter, n int, pause time.Duration) ([]time.Duration, error) {
	took, removes, errs := make([]time.Duration, n), make([]func() error, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		if i > 0 && pause > 0 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
		wg.Go(func() {
			took[i], errs[i] = timed(func() (err error) { removes[i], err = start(ctx, i); return err })
		})
	}
	wg.Wait()
	for _, remove := range removes {
		errs = append(errs, remove())
	}
	return took, errors.Join(errs...)
}
