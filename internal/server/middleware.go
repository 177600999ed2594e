package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/api"
)

// policy is the Content-Security-Policy of everything we serve: no inline script or style, nothing from elsewhere.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; " +
	"connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"

// secure sets the headers that every answer has.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// ServeHTTP implements http.Handler: it names the request, protects what comes after from panics, and logs.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	c := &call{id: r.Header.Get(api.HeaderRequestID), w: newWriter(w, s.cfg.WriteTimeout), stop: s.stop}
	if !goodRequestID(c.id) {
		c.id = newRequestID()
	}
	c.r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	// Until a handler takes over: nobody holds a connection by sending a body slowly that no handler wants.
	_ = c.w.control.SetReadDeadline(begin.Add(s.cfg.ReadTimeout)) // not supported = no deadline
	defer func() {
		err := recover()
		half := c.w.status != 0
		if err != nil && !half {
			writeProblem(c.w, c.r, problemOf(fmt.Errorf("panic: %v", err)))
		}
		s.logCall(c, begin, err)
		if err != nil && half {
			panic(http.ErrAbortHandler) // half an answer must not look like a whole one
		}
	}()
	// Before anything else: on a preview's host there is nothing of ours, and elsewhere there is no preview.
	if s.previews != nil {
		if label, ok := s.previews.host.below(r.Host); ok {
			s.previews.serve(c, label)
			return
		}
	}
	secure(w.Header())
	w.Header().Set(api.HeaderRequestID, c.id)
	s.route(c)
}

// logCall writes the access log's line. Neither queries nor one-time tokens are logged: both may be secrets.
func (s *Server) logCall(c *call, begin time.Time, panicked any) {
	path := c.r.URL.Path
	if c.route == "preview" {
		path = "//" + c.r.Host // the path is between the visitor and the sandbox
	}
	if strings.HasPrefix(path, "/signin/") {
		path = "/signin/…"
	}
	level, message := slog.LevelDebug, "request" // a person at the terminal wants to see what matters only
	attrs := []slog.Attr{
		slog.String("id", c.id), slog.String("method", c.r.Method), slog.String("path", path), slog.String("route", c.route),
		slog.Int("status", c.w.status), slog.Int64("bytes", c.w.bytes), slog.Duration("took", time.Since(begin)),
	}
	if c.account != "" {
		attrs = append(attrs, slog.String("account", c.account))
	}
	if c.key != "" {
		attrs = append(attrs, slog.String("key", c.key))
	}
	if p := c.failure(); p != nil {
		attrs = append(attrs, slog.String("code", p.Code))
		if p.cause != nil {
			attrs = append(attrs, slog.String("error", p.cause.Error()))
		}
		if p.Status == http.StatusInternalServerError {
			level = slog.LevelError
		}
	}
	aborted, _ := panicked.(error) // on purpose, if it is this one
	if panicked != nil && !errors.Is(aborted, http.ErrAbortHandler) {
		level, message = slog.LevelError, "panic"
		attrs = append(attrs, slog.Any("panic", panicked), slog.String("stack", string(debug.Stack())))
	}
	s.cfg.Log.LogAttrs(c.r.Context(), level, message, attrs...)
}

// apiPrefixes are the first path segments that belong to the API: what isn't found below them is no page of the UI.
var apiPrefixes = map[string]bool{
	"sandbox": true, "session": true, "image": true, "secret": true, "event": true, "me": true, "healthz": true, "readyz": true, "signout": true,
	"openapi.json": true, "docs": true,
}

// pages are the API's routes that are also pages of the UI: a browser that goes there gets the page.
var pages = map[string]bool{
	"GET /sandbox": true, "GET /sandbox/{id}": true, "GET /sandbox/{id}/terminal": true, "GET /session": true, "GET /session/{id}": true,
	"GET /image": true, "GET /image/{image}": true, "GET /secret": true,
}

// route finds who answers, and lets nobody in who may not.
func (s *Server) route(c *call) {
	handler, pattern := s.mux.Handler(c.r)
	c.route = pattern
	if pages[pattern] {
		c.w.Header().Add("Vary", "Accept")
	}
	switch {
	case pattern == "" || pages[pattern] && wantsPage(c.r):
		s.elsewhere(c, handler)
	case s.open[pattern]:
		s.mux.ServeHTTP(c.w, c.r)
	default:
		if p := s.authenticate(c); p != nil {
			writeProblem(c.w, c.r, p)
			return
		}
		c.w.Header().Set("Cache-Control", "no-store")
		s.mux.ServeHTTP(c.w, c.r)
	}
}

// wantsPage reports whether a browser asks for something to show.
func wantsPage(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.Contains(r.Header.Get("Accept"), "text/html")
}

// elsewhere answers what is no route of the API: a page or file of the UI, or a problem. refusal is what the mux would
// have answered; it knows which methods a path has.
func (s *Server) elsewhere(c *call, refusal http.Handler) {
	first, _, _ := strings.Cut(strings.TrimPrefix(c.r.URL.Path, "/"), "/")
	if wantsPage(c.r) || !apiPrefixes[first] {
		if s.ui.serve(c.w, c.r) {
			return
		}
	}
	seen := &refusalRecorder{header: http.Header{}}
	refusal.ServeHTTP(seen, c.r)
	if seen.status == http.StatusMethodNotAllowed {
		allow := seen.header.Get("Allow")
		c.w.Header().Set("Allow", allow)
		writeProblem(c.w, c.r, refuse(http.StatusMethodNotAllowed, "method_not_allowed", "%s is not possible here, only %s.", c.r.Method, allow))
		return
	}
	writeProblem(c.w, c.r, refuse(http.StatusNotFound, "no_such_route", "There is nothing at %s. The API is described at /docs.", c.r.URL.Path))
}

// refusalRecorder catches what the mux answers.
type refusalRecorder struct {
	header http.Header
	status int
}

func (r *refusalRecorder) Header() http.Header         { return r.header }
func (r *refusalRecorder) Write(b []byte) (int, error) { return len(b), nil }
func (r *refusalRecorder) WriteHeader(status int)      { r.status = status }
