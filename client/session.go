package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/sandlot-dev/sandlot/api"
)

// Prompt tells Claude something and yields the answer's events as they come: first "session" with an api.SessionStart,
// then one "message" for each line of the CLI, and "ask", "answer" and "notice" as in the log. Leaving does not end Claude's work, and neither does a cut connection
// (ErrCut): FollowSession goes on after the last event's ID.
func (c *Client) Prompt(ctx context.Context, sandbox string, in api.Prompt) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r := request{method: http.MethodPost, path: segments("sandbox", sandbox, "claude")}
		if err := r.json(in); err != nil {
			yield(Event{}, err)
			return
		}
		c.stream(ctx, r)(yield)
	}
}

// Sessions lists the account's sessions, the one last used first.
func (c *Client) Sessions(ctx context.Context) (api.SessionList, error) {
	return call[api.SessionList](ctx, c, http.MethodGet, "/session", nil, nil)
}

// Session returns one session.
func (c *Client) Session(ctx context.Context, id string) (api.Session, error) {
	return call[api.Session](ctx, c, http.MethodGet, segments("session", id), nil, nil)
}

// SessionEvents returns a page of a session's log: what stands after seq.
func (c *Client) SessionEvents(ctx context.Context, id string, after int64) (api.SessionEventList, error) {
	q := url.Values{"after": {strconv.FormatInt(after, 10)}}
	return call[api.SessionEventList](ctx, c, http.MethodGet, segments("session", id, "events"), q, nil)
}

// FollowSession yields a session's log after seq and goes on with what is added until ctx ends, over cut connections
// too. Of each event it tells Seq, Kind and Data; Data is a json.RawMessage, or a string for a line that isn't JSON.
func (c *Client) FollowSession(ctx context.Context, id string, after int64) iter.Seq2[api.SessionEvent, error] {
	return func(yield func(api.SessionEvent, error) bool) {
		for e, err := range c.follow(ctx, segments("session", id, "events"), nil, strconv.FormatInt(after, 10)) {
			out := api.SessionEvent{Kind: e.Name, Data: e.Data}
			if err == nil {
				out.Seq, err = seq(e)
			}
			if raw := json.RawMessage(e.Data); json.Valid(raw) {
				out.Data = raw
			}
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

// Interrupt asks Claude to stop the turn that is running.
func (c *Client) Interrupt(ctx context.Context, session string) error {
	return c.call(ctx, http.MethodPost, segments("session", session, "interrupt"), nil, nil, nil)
}

// UpdateSession changes a session.
func (c *Client) UpdateSession(ctx context.Context, id string, in api.UpdateSession) (api.Session, error) {
	return call[api.Session](ctx, c, http.MethodPatch, segments("session", id), nil, in)
}

// Turn returns one turn of a session, with all of its text.
func (c *Client) Turn(ctx context.Context, session, turn string) (api.Turn, error) {
	return call[api.Turn](ctx, c, http.MethodGet, segments("session", session, "turn", turn), nil, nil)
}

// EditTurn changes the prompt of a turn that waits.
func (c *Client) EditTurn(ctx context.Context, session, turn, prompt string) (api.Turn, error) {
	return call[api.Turn](ctx, c, http.MethodPatch, segments("session", session, "turn", turn), nil, api.EditTurn{Prompt: prompt})
}

// CancelTurn takes a turn that waits back.
func (c *Client) CancelTurn(ctx context.Context, session, turn string) (api.Turn, error) {
	return call[api.Turn](ctx, c, http.MethodDelete, segments("session", session, "turn", turn), nil, nil)
}

// Asks lists what Claude asks and asked in a session, what is pending first.
func (c *Client) Asks(ctx context.Context, session string, pendingOnly bool) (api.AskList, error) {
	q := url.Values{}
	if pendingOnly {
		q.Set("state", "pending")
	}
	return call[api.AskList](ctx, c, http.MethodGet, segments("session", session, "prompt"), q, nil)
}

// Ask returns one of a session's asks.
func (c *Client) Ask(ctx context.Context, session, prompt string) (api.Ask, error) {
	return call[api.Ask](ctx, c, http.MethodGet, segments("session", session, "prompt", prompt), nil, nil)
}

// Answer decides an ask. If somebody else has, the problem's code is "already_answered".
func (c *Client) Answer(ctx context.Context, session, prompt string, in api.Answer) (api.Ask, error) {
	return call[api.Ask](ctx, c, http.MethodPost, segments("session", session, "prompt", prompt), nil, in)
}
