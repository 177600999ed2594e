package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// stream writes server-sent events. Each is flushed at once; while there is none, a comment shows that we are alive and
// finds out whether the peer is.
type stream struct {
	w    *writer
	quit context.CancelFunc // ends the stream's context when the peer is gone

	buf []byte // of the last output event; for the goroutine that sends

	mu   sync.Mutex
	err  error // of the first write that failed: nothing can be written after it; guarded by mu
	idle bool  // nothing was written since the last beat; guarded by mu
}

// streaming returns an answer that is a stream: body writes its events. When body returns nil all has been said, and
// the stream ends with [DONE]; an error is told before that. Of a stream whose ctx has ended nothing is said: the peer
// left, or we are shutting down and the peer reads on later.
func (s *Server) streaming(c *call, body func(ctx context.Context, out *stream) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		ctx, cancel := c.long(hctx.Context())
		defer cancel()
		h := c.w.Header()
		h.Set("Content-Type", api.ContentTypeEvents)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		c.w.WriteHeader(http.StatusOK)
		out := &stream{w: c.w, quit: cancel, idle: true}
		_ = out.write([]byte("retry: 1000\n\n")) // told by the next write too

		var beats sync.WaitGroup
		beatsEnd := make(chan struct{})
		beats.Go(func() { out.beat(beatsEnd, s.cfg.Heartbeat) })
		defer beats.Wait()
		defer close(beatsEnd)

		err := body(ctx, out)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p := problemOf(err)
			c.fail(p)
			_ = out.json("", api.EventError, p.Problem) // told by the next write too
		}
		_ = out.send("", "", []byte(api.Done)) // a peer that left needs no end
	}}
}

// beat writes a comment whenever nothing was written for a while.
func (st *stream) beat(end <-chan struct{}, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
			st.mu.Lock()
			idle := st.idle
			st.idle = true
			st.mu.Unlock()
			if idle {
				_ = st.write([]byte(":\n\n")) // ends the stream by itself
			}
		}
	}
}

// send writes one event. Data of several lines is sent as several; id and name may be empty.
func (st *stream) send(id, name string, data []byte) error {
	var b bytes.Buffer
	b.Grow(len(data) + len(id) + len(name) + 32)
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	if name != "" {
		b.WriteString("event: " + name + "\n")
	}
	for {
		end := bytes.IndexAny(data, "\r\n")
		b.WriteString("data: ")
		if end < 0 {
			b.Write(data)
			break
		}
		b.Write(data[:end])
		b.WriteByte('\n')
		if bytes.HasPrefix(data[end:], []byte("\r\n")) {
			end++
		}
		data = data[end+1:]
	}
	b.WriteString("\n\n")
	st.mu.Lock()
	st.idle = false
	st.mu.Unlock()
	return st.write(b.Bytes())
}

// json is send with v as JSON.
func (st *stream) json(id, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode an event: %w", err)
	}
	return st.send(id, name, b)
}

// output is send for a piece of output, of which there may be much: it is looked at and copied once.
func (st *stream) output(f guest.Frame) error {
	const small, large = 4 << 10, 32 << 10
	if len(f.Data) < small && cap(st.buf) > large {
		st.buf = nil // a viewer that waits holds little
	}
	b := append(st.buf[:0], "id: "...)
	b = strconv.AppendInt(b, f.Offset+int64(len(f.Data)), 10)
	b = append(b, "\nevent: "+api.EventOutput+"\ndata: {\"stream\":\""...)
	b = append(b, streamOf(f)...)
	b = append(b, "\",\"data\":\""...)
	if utf8.Valid(f.Data) {
		b = appendEscaped(b, f.Data)
		b = append(b, "\"}\n\n"...)
	} else {
		b = base64.StdEncoding.AppendEncode(b, f.Data)
		b = append(b, "\",\"encoding\":\"base64\"}\n\n"...)
	}
	st.buf = b
	st.mu.Lock()
	st.idle = false
	st.mu.Unlock()
	return st.write(b)
}

// appendEscaped appends valid UTF-8 as the inside of a JSON string.
func appendEscaped(b, text []byte) []byte {
	const hex = "0123456789abcdef"
	begin := 0
	for i, c := range text {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, text[begin:i]...)
		begin = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(b, text[begin:]...)
}

// write writes b and flushes it.
func (st *stream) write(b []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err != nil {
		return st.err
	}
	_, err := st.w.Write(b)
	if err == nil {
		err = st.w.FlushError()
	}
	if err != nil {
		st.err = fmt.Errorf("write to the stream: %w", err)
		st.quit()
	}
	return st.err
}

// wantsEvents reports whether the caller asks for a stream rather than a list.
func wantsEvents(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), api.ContentTypeEvents)
}

// wantsList reports whether the caller asks for a list where a stream is usual.
func wantsList(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "application/json") && !wantsEvents(r)
}

// ResumeInput is where a stream begins.
type ResumeInput struct {
	After       int64  `query:"after" minimum:"0" doc:"Begin after this event."`
	LastEventID string `header:"Last-Event-ID" doc:"The same for a browser's EventSource; goes before after."`
}

// after returns what the stream begins after.
func (in *ResumeInput) after() (int64, error) {
	if in.LastEventID == "" {
		return in.After, nil
	}
	n, err := strconv.ParseInt(in.LastEventID, 10, 64)
	if err != nil || n < 0 {
		return 0, sandbox.Invalid(api.HeaderLastEventID, "must be the id of an event of this stream, a whole number")
	}
	return n, nil
}
