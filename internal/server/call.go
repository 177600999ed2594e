package server

import (
	"context"
	"crypto/rand"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// call is what the server knows of one request while it is under way. It travels in the request's context.
type call struct {
	id    string          // the request ID
	route string          // the pattern that matched; "" = none
	op    *huma.Operation // nil on routes outside of huma
	w     *writer
	r     *http.Request
	stop  <-chan struct{} // closed when the server shuts down

	account string // who asks; "" on open routes
	key     string // ID of the API key; "" with a cookie

	mu      sync.Mutex
	problem *problem // what the caller was told went wrong; guarded by mu: streams end in other goroutines
}

type callKey struct{}

// callOf returns the request that ctx belongs to. Every context of a handler has one; another gives an empty call, so
// that nobody has to check.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// fail completes p for this request and keeps it for the log.
func (c *call) fail(p *problem) {
	if p.Status == statusClientGone && c.stopping() {
		cause := p.cause
		*p = *problemOf(errStopping)
		p.cause = cause
	}
	if c.op != nil {
		p.locate(c.op.Parameters)
	}
	p.RequestID = c.id
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problem = p
}

// failure returns what fail kept.
func (c *call) failure() *problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problem
}

// stopping reports whether the server is shutting down.
func (c *call) stopping() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// long returns a context for work that may take long: it ends with the request, and when the server shuts down.
func (c *call) long(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		select {
		case <-c.stop:
			cancel(errStopping)
		case <-ctx.Done():
		}
		close(done)
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// newRequestID makes a request ID.
func newRequestID() string { return "req_" + rand.Text() }

// goodRequestID reports whether a caller's request ID may go into our log and answers.
func goodRequestID(s string) bool {
	if s == "" || len(s) > 100 {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.', r == ':', r == '/', r == '+', r == '=':
		default:
			return false
		}
	}
	return true
}

// writer watches what is answered, and gives every write its own deadline: a peer that takes nothing for that long is
// dropped, however long the answer as a whole takes.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	status  int // 0 = nothing written yet
	bytes   int64
}

func newWriter(w http.ResponseWriter, timeout time.Duration) *writer {
	ww := &writer{ResponseWriter: w, control: http.NewResponseController(w), timeout: timeout}
	// The deadline of the request before on this connection would end a "100 Continue" of this one.
	_ = ww.control.SetWriteDeadline(time.Time{}) // not supported = no deadline
	return ww
}

// WriteHeader implements http.ResponseWriter.
func (w *writer) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *writer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	_ = w.control.SetWriteDeadline(time.Now().Add(w.timeout)) // not supported = no deadline
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// FlushError implements the method that http.ResponseController looks for.
func (w *writer) FlushError() error {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	_ = w.control.SetWriteDeadline(time.Now().Add(w.timeout)) // not supported = no deadline
	return w.control.Flush()
}

// Unwrap lets http.ResponseController find the connection.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
