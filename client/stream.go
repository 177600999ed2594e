package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/sandlot-dev/sandlot/api"
)

// ErrCut says that a stream ended before it had said all: the connection broke or the server stopped. The work goes on;
// read on from the last event's ID.
var ErrCut = errors.New("the stream was cut")

// stream does r and yields its events up to the last message. An "error" event is yielded as an error that wraps its
// *api.Problem; a stream that ends early as one that wraps ErrCut.
func (c *Client) stream(ctx context.Context, r request) iter.Seq2[Event, error] {
	r.accept = api.ContentTypeEvents
	return func(yield func(Event, error) bool) {
		res, err := c.send(ctx, r)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer func() { _ = res.Body.Close() }() // nothing to be saved
		for e, err := range ReadEvents(res.Body) {
			switch {
			case err != nil && ctx.Err() != nil:
				yield(Event{}, ctx.Err())
				return
			case err != nil:
				yield(Event{}, fmt.Errorf("%w: %w", ErrCut, err))
				return
			case e.Name == api.EventMessage && e.Data == api.Done:
				return
			case e.Name == api.EventError:
				p := new(api.Problem)
				if err := json.Unmarshal([]byte(e.Data), p); err != nil {
					p.Detail = e.Data
				}
				yield(e, p)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		yield(Event{}, ErrCut)
	}
}

// follow is stream for a GET that can go on where it was cut: it opens it again until ctx ends, the server says no, or
// all has been said. after is the ID to begin after, "" for the beginning.
func (c *Client) follow(ctx context.Context, path string, query url.Values, after string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		pause := c.Backoff
		for {
			r := request{method: http.MethodGet, path: path, query: query, header: http.Header{}}
			if after != "" {
				r.header.Set(api.HeaderLastEventID, after)
			}
			var cut error
			for e, err := range c.stream(ctx, r) {
				if err != nil {
					if ctx.Err() != nil || !mayResume(err) {
						yield(e, err)
						return
					}
					cut = err
					break
				}
				if e.ID != "" {
					after = e.ID
				}
				pause = c.Backoff
				if !yield(e, nil) {
					return
				}
			}
			if cut == nil {
				return
			}
			if err := sleep(ctx, pause); err != nil {
				yield(Event{}, err)
				return
			}
			pause = min(2*pause, 40*c.Backoff)
		}
	}
}

// mayResume reports whether opening the stream again may help: the connection failed, or the server said so.
func mayResume(err error) bool {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Retryable && p.Status >= 500
	}
	return !errors.Is(err, ErrEventTooLong)
}

// sleep waits for d or for ctx's end.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
