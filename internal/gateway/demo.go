package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// DemoModel is the name under which the demo model answers.
const DemoModel = "sandlot-demo"

// statusOverloaded is the Messages API's own "try again".
const statusOverloaded = 529

// Demo is a stand-in for the model API: a script that speaks the Messages API. It says so wherever it can. What it
// answers depends on nothing but the request: see script. It keeps no conversation.
type Demo struct {
	// Pace is the pause between two pieces of text, and Slow the same for "slow stream"; negative = none. NewDemo sets
	// both; they may be changed before the first request.
	Pace, Slow time.Duration

	mu      sync.Mutex
	refused map[string]bool // guarded by mu: requests that were told "overloaded" once
}

// NewDemo returns a demo model that answers at the speed of fast typing.
func NewDemo() *Demo {
	return &Demo{Pace: 10 * time.Millisecond, Slow: 200 * time.Millisecond, refused: map[string]bool{}}
}

// ServeHTTP speaks the Messages API: messages (streamed or not), token counts and models. It asks for no key.
func (d *Demo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v1/messages" && r.Method == http.MethodPost:
		d.messages(w, r)
	case r.URL.Path == "/v1/messages/count_tokens" && r.Method == http.MethodPost:
		body, _, ok := readRequest(w, r)
		if ok {
			writeJSON(w, map[string]int{"input_tokens": tokens(len(body))})
		}
	case r.URL.Path == "/v1/models" && r.Method == http.MethodGet:
		writeJSON(w, map[string]any{"data": []any{modelInfo()}, "has_more": false, "first_id": DemoModel, "last_id": DemoModel})
	case r.URL.Path == "/v1/models/"+DemoModel && r.Method == http.MethodGet:
		writeJSON(w, modelInfo())
	case r.URL.Path == "/":
		w.WriteHeader(http.StatusOK)
	default:
		writeError(w, http.StatusNotFound, "not_found_error", "the demo model has no such path")
	}
}

func modelInfo() map[string]string {
	return map[string]string{"type": "model", "id": DemoModel,
		"display_name": "Sandlot's demo model (a script, not Claude)", "created_at": "2026-01-01T00:00:00Z"}
}

func (d *Demo) messages(w http.ResponseWriter, r *http.Request) {
	body, req, ok := readRequest(w, r)
	if !ok {
		return
	}
	t, err := req.turn()
	if err != nil {
		writeError(w, http.StatusBadRequest, "invalid_request_error", err.Error())
		return
	}
	rep := script(t)
	if rep.overloaded && d.firstTime(r.Header.Get("X-Claude-Code-Session-Id"), t, body) {
		writeError(w, statusOverloaded, "overloaded_error", "Overloaded (the demo model plays a busy API; trying again will work)")
		return
	}
	if rep.refusal != "" {
		writeError(w, http.StatusBadRequest, "invalid_request_error", rep.refusal)
		return
	}
	m := newMessage(body, rep)
	if !req.Stream {
		writeJSON(w, m.whole())
		return
	}
	pace := d.Pace
	if rep.fast {
		pace = -1
	}
	if rep.slow {
		pace = d.Slow
	}
	m.stream(r.Context(), w, pace)
}

// firstTime reports whether this turn has not been refused before, and notes it as refused.
func (d *Demo) firstTime(session string, t turn, body []byte) bool {
	key := session + "/" + fmt.Sprint(len(t.prompts))
	if session == "" {
		key = digest(body)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused[key] {
		return false
	}
	if len(d.refused) >= 1024 { // forgetting costs one more refusal
		clear(d.refused)
	}
	d.refused[key] = true
	return true
}

// readRequest reads and decodes a request; when it returns false, it has answered.
func readRequest(w http.ResponseWriter, r *http.Request) ([]byte, request, bool) {
	var req request
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			writeError(w, http.StatusRequestEntityTooLarge, "request_too_large", "the request is over 64 MiB")
			return nil, req, false
		}
		writeError(w, http.StatusBadRequest, "invalid_request_error", "the body could not be read")
		return nil, req, false
	}
	if err := json.Unmarshal(body, &req); err != nil {
		writeError(w, http.StatusBadRequest, "invalid_request_error", "the body is not a request of the Messages API: "+err.Error())
		return nil, req, false
	}
	return body, req, true
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

// tokens estimates as people do: four characters each, and never none.
func tokens(chars int) int { return max(1, chars/4) }

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:12])
}
