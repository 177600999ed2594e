package client

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/sandlot-dev/sandlot/api"
)

// Create makes a sandbox and waits until it runs.
func (c *Client) Create(ctx context.Context, in api.CreateSandbox) (api.Sandbox, error) {
	return call[api.Sandbox](ctx, c, http.MethodPost, "/sandbox", nil, in)
}

// CreateNoWait makes a sandbox and returns as soon as it is accepted.
func (c *Client) CreateNoWait(ctx context.Context, in api.CreateSandbox) (api.Sandbox, error) {
	return call[api.Sandbox](ctx, c, http.MethodPost, "/sandbox", url.Values{"wait": {"false"}}, in)
}

// Filter narrows a list of sandboxes. The zero Filter is all of them.
type Filter struct {
	States []string
	Labels map[string]string // all of them
	Limit  int               // of a page; 0 = the server's default
	Cursor string            // NextCursor of the page before
}

// Sandboxes returns a page of the account's sandboxes, newest first.
func (c *Client) Sandboxes(ctx context.Context, f Filter) (api.SandboxList, error) {
	q := url.Values{}
	for _, s := range f.States {
		q.Add("state", s)
	}
	for k, v := range f.Labels {
		q.Set("label."+k, v)
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	if f.Cursor != "" {
		q.Set("cursor", f.Cursor)
	}
	return call[api.SandboxList](ctx, c, http.MethodGet, "/sandbox", q, nil)
}

// Sandbox returns one sandbox.
func (c *Client) Sandbox(ctx context.Context, id string) (api.Sandbox, error) {
	return call[api.Sandbox](ctx, c, http.MethodGet, segments("sandbox", id), nil, nil)
}

// Terminate ends a sandbox and waits until nothing of it is left but its volume.
func (c *Client) Terminate(ctx context.Context, id string) (api.Sandbox, error) {
	return call[api.Sandbox](ctx, c, http.MethodDelete, segments("sandbox", id), nil, nil)
}

// Suspend puts a sandbox on disk, with its processes, and waits until it holds neither CPU nor memory.
func (c *Client) Suspend(ctx context.Context, id string) (api.Sandbox, error) {
	return call[api.Sandbox](ctx, c, http.MethodPost, segments("sandbox", id, "suspend"), nil, nil)
}

// Resume brings a suspended sandbox back and waits until it runs.
func (c *Client) Resume(ctx context.Context, id string) (api.Sandbox, error) {
	return call[api.Sandbox](ctx, c, http.MethodPost, segments("sandbox", id, "resume"), nil, nil)
}

// Events returns a page of what happened to the account's sandboxes, or to one of them, after seq.
func (c *Client) Events(ctx context.Context, sandbox string, after int64, limit int) (api.EventList, error) {
	return call[api.EventList](ctx, c, http.MethodGet, "/event", eventQuery(sandbox, after, limit), nil)
}

// FollowEvents is Events without an end: it goes on with what happens until ctx ends.
func (c *Client) FollowEvents(ctx context.Context, sandbox string, after int64) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		for e, err := range c.follow(ctx, "/event", eventQuery(sandbox, 0, 0), strconv.FormatInt(after, 10)) {
			var out api.Event
			if err == nil {
				out, err = decode[api.Event](strings.NewReader(e.Data))
			}
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

func eventQuery(sandbox string, after int64, limit int) url.Values {
	q := url.Values{}
	if sandbox != "" {
		q.Set("sandbox", sandbox)
	}
	if after > 0 {
		q.Set("after", strconv.FormatInt(after, 10))
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return q
}

// Me says who the client is to the server.
func (c *Client) Me(ctx context.Context) (api.Me, error) {
	return call[api.Me](ctx, c, http.MethodGet, "/me", nil, nil)
}

// Health says how the server is.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	return call[api.Health](ctx, c, http.MethodGet, "/healthz", nil, nil)
}

// Ready fails unless the server can work.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/readyz", nil, nil, nil)
}

// SignIn exchanges an API key for a cookie, which HTTP's jar keeps if it has one.
func (c *Client) SignIn(ctx context.Context, key string) error {
	return c.call(ctx, http.MethodPost, "/signin", nil, api.SignIn{Key: key}, nil)
}

// SignOut ends what SignIn began.
func (c *Client) SignOut(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/signout", nil, nil, nil)
}

// seq reads the number of an event.
func seq(e Event) (int64, error) {
	n, err := strconv.ParseInt(e.ID, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("event id %q: %w", e.ID, err)
	}
	return n, nil
}
