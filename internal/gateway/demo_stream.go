package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"
)

// answer is one message of the demo model, ready to be sent.
type answer struct {
	id     string
	reply  reply
	input  []byte // the tool's input as JSON
	tokens struct{ in, out int }
}

// newMessage names the answer after the request, so that the same request always gets the same answer.
func newMessage(body []byte, rep reply) answer {
	m := answer{id: digest(body), reply: rep}
	if rep.tool != "" {
		// A script's own values always encode.
		m.input, _ = json.Marshal(rep.input)
	}
	m.tokens.in = tokens(len(body))
	m.tokens.out = tokens(len(rep.text) + len(m.input))
	return m
}

func (m answer) stopReason() string {
	if m.reply.tool != "" {
		return "tool_use"
	}
	return "end_turn"
}

func (m answer) head(content []any, stop any, out int) map[string]any {
	return map[string]any{"id": "msg_demo_" + m.id, "type": "message", "role": "assistant", "model": DemoModel, "content": content,
		"stop_reason": stop, "stop_sequence": nil, "usage": map[string]int{"input_tokens": m.tokens.in, "output_tokens": out,
			"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}}
}

// whole is the answer in one piece.
func (m answer) whole() map[string]any {
	content := []any{}
	if m.reply.text != "" {
		content = append(content, map[string]any{"type": "text", "text": m.reply.text})
	}
	if m.reply.tool != "" {
		content = append(content, map[string]any{"type": "tool_use", "id": "toolu_demo_" + m.id, "name": m.reply.tool,
			"input": json.RawMessage(m.input)})
	}
	return m.head(content, m.stopReason(), m.tokens.out)
}

// stream sends the answer as server-sent events, a piece of text each pace. It ends early when ctx does.
func (m answer) stream(ctx context.Context, w http.ResponseWriter, pace time.Duration) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	h.Set("Request-Id", "req_demo_"+m.id)
	s := &events{w: w, flush: http.NewResponseController(w)}
	s.send(ctx, "message_start", map[string]any{"message": m.head([]any{}, nil, 1)})
	index := 0
	if m.reply.text != "" {
		s.send(ctx, "content_block_start", map[string]any{"index": index, "content_block": map[string]any{"type": "text", "text": ""}})
		s.send(ctx, "ping", nil)
		since := time.Duration(0)
		for piece := range pieces(m.reply.text, m.reply.pieceSize()) {
			s.send(ctx, "content_block_delta", map[string]any{"index": index, "delta": map[string]any{"type": "text_delta", "text": piece}})
			s.pause(ctx, pace)
			if since += pace; since > 5*time.Second {
				s.send(ctx, "ping", nil)
				since = 0
			}
		}
		s.send(ctx, "content_block_stop", map[string]any{"index": index})
		index++
	}
	if m.reply.tool != "" {
		s.send(ctx, "content_block_start", map[string]any{"index": index, "content_block": map[string]any{"type": "tool_use",
			"id": "toolu_demo_" + m.id, "name": m.reply.tool, "input": map[string]any{}}})
		for piece := range pieces(string(m.input), 64) {
			s.send(ctx, "content_block_delta", map[string]any{"index": index,
				"delta": map[string]any{"type": "input_json_delta", "partial_json": piece}})
			s.pause(ctx, pace)
		}
		s.send(ctx, "content_block_stop", map[string]any{"index": index})
	}
	s.send(ctx, "message_delta", map[string]any{"delta": map[string]any{"stop_reason": m.stopReason(), "stop_sequence": nil},
		"usage": map[string]int{"output_tokens": m.tokens.out}})
	s.send(ctx, "message_stop", nil)
}

// events writes server-sent events until its ctx ends or the client goes.
type events struct {
	w     http.ResponseWriter
	flush *http.ResponseController
	dead  bool
}

func (s *events) send(ctx context.Context, kind string, fields map[string]any) {
	if s.dead || ctx.Err() != nil {
		s.dead = true
		return
	}
	data := map[string]any{"type": kind}
	for k, v := range fields {
		data[k] = v
	}
	text, err := json.Marshal(data)
	if err == nil {
		_, err = fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", kind, text)
	}
	if err == nil {
		err = s.flush.Flush()
	}
	s.dead = err != nil
}

func (s *events) pause(ctx context.Context, d time.Duration) {
	if d <= 0 || s.dead {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// pieces cuts s into parts of about size bytes, never inside a character.
func pieces(s string, size int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for len(s) > size {
			n := size
			for n < len(s) && !utf8.RuneStart(s[n]) {
				n++
			}
			if !yield(s[:n]) {
				return
			}
			s = s[n:]
		}
		if s != "" {
			yield(s)
		}
	}
}
