// Package client speaks Sandlot's HTTP API from Go: requests, errors, streams that resume where they were cut, and terminals. It
// imports the wire types, a WebSocket library and the standard library only.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/api"
)

// Client talks to one server as one caller. It is safe for concurrent use as long as its fields are not changed. Every
// answer of the server that says no is an error that wraps *api.Problem.
type Client struct {
	// HTTP does the requests. It should have no timeout: streams and waits take as long as they take.
	HTTP *http.Client
	// Backoff is the first pause before a cut stream is opened again; it doubles up to forty times itself. Default: 250 ms.
	Backoff time.Duration

	base string
	key  string
}

// New returns a client of the server at baseURL ("http://127.0.0.1:8080") that shows key, an API key. With no key only
// the open parts of the API answer, or what a cookie of HTTP's jar allows.
func New(baseURL, key string) *Client {
	transport := http.DefaultTransport
	if t, ok := transport.(*http.Transport); ok {
		transport = t.Clone() // connections of its own, that it can close
	}
	return &Client{HTTP: &http.Client{Transport: transport}, Backoff: 250 * time.Millisecond, base: strings.TrimRight(baseURL, "/"), key: key}
}

// request is what goes out.
type request struct {
	method string
	path   string // escaped
	query  url.Values
	body   io.Reader
	ctype  string
	accept string
	header http.Header
}

// send does r and returns the answer if its status is 2xx, else the problem. The caller closes the body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, r.body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.method, r.path, err)
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if r.ctype != "" {
		req.Header.Set("Content-Type", r.ctype)
	}
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.method, r.path, err)
	}
	if res.StatusCode/100 != 2 {
		defer func() { _ = res.Body.Close() }() // read for the problem only
		return nil, fmt.Errorf("%s %s: %w", r.method, r.path, readProblem(res))
	}
	return res, nil
}

// call sends in as JSON (nil = no body) and decodes the answer into out (nil = none).
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	r := request{method: method, path: path, query: query, accept: "application/json"}
	if err := r.json(in); err != nil {
		return err
	}
	res, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // all that matters was read
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: decode the answer: %w", method, path, err)
	}
	return nil
}

// call is Client.call with the answer as a result.
func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, in any) (T, error) {
	var out T
	err := c.call(ctx, method, path, query, in, &out)
	return out, err
}

// json makes in the body; nil = no body.
func (r *request) json(in any) error {
	if in == nil {
		return nil
	}
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("%s %s: encode the request: %w", r.method, r.path, err)
	}
	r.body, r.ctype = bytes.NewReader(b), "application/json"
	return nil
}

// readProblem turns an answer that says no into a problem, whoever wrote it.
func readProblem(res *http.Response) *api.Problem {
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	ctype, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	var p api.Problem
	if err == nil && ctype == api.ContentTypeProblem && json.Unmarshal(b, &p) == nil {
		p.Status = res.StatusCode
		return &p
	}
	return &api.Problem{
		Title: http.StatusText(res.StatusCode), Status: res.StatusCode, Code: "not_sandlot",
		Detail:    fmt.Sprintf("the answer is %s and not from Sandlot: %.200q", res.Status, b),
		Retryable: res.StatusCode >= 500,
	}
}

// Code returns the stable code of the problem that err wraps, "" if it wraps none.
func Code(err error) string {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Code
	}
	return ""
}

// segments escapes each of parts and joins them with slashes, the first in front.
func segments(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}
