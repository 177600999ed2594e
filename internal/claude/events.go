package claude

import (
	"context"
	"iter"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// pageEvents is how many events are read from the store at once. One may be many megabytes.
const pageEvents = 32

// Events yields the session's log after number after, in order: prompts, lines and ends from the store. With follow it goes on,
// with partial lines as they come, until ctx ends; a reader that is too slow misses partials, and nothing else.
func (s *Sessions) Events(ctx context.Context, account, session string, after int64, follow bool) iter.Seq2[sandbox.SessionEvent, error] {
	return func(yield func(sandbox.SessionEvent, error) bool) {
		if _, err := s.store.Session(ctx, account, session); err != nil {
			yield(sandbox.SessionEvent{}, err)
			return
		}
		h := s.hubs.attach(session)
		defer s.hubs.release(h)
		r := reader{store: s.store, session: session, at: after, yield: yield}
		for {
			partials, limit, changed := h.look(r.at)
			if !follow {
				partials = nil
			}
			if !r.advance(ctx, partials, limit) || !follow {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

// reader is where one reader of a session is.
type reader struct {
	store   Store
	session string
	at      int64 // the number of the last event that was yielded
	yield   func(sandbox.SessionEvent, error) bool
}

// advance yields what is in the store up to limit, and partials between. It returns false when the reader is done.
func (r *reader) advance(ctx context.Context, partials []sandbox.SessionEvent, limit int64) bool {
	for {
		evs, err := r.store.SessionEvents(ctx, r.session, r.at, pageEvents)
		if err != nil {
			if ctx.Err() == nil {
				r.yield(sandbox.SessionEvent{}, err)
			}
			return false
		}
		more := len(evs) == pageEvents
		for _, ev := range evs {
			if ev.Seq > limit {
				more = false
				break
			}
			for len(partials) > 0 && partials[0].Seq < ev.Seq {
				if !r.give(partials[0]) {
					return false
				}
				partials = partials[1:]
			}
			if !r.give(ev) {
				return false
			}
		}
		if !more {
			break
		}
	}
	for _, ev := range partials {
		if !r.give(ev) {
			return false
		}
	}
	return true
}

func (r *reader) give(ev sandbox.SessionEvent) bool {
	if ev.Seq <= r.at {
		return true
	}
	r.at = ev.Seq
	return r.yield(ev, nil)
}
