package claude_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestGolden plays conversations with the real CLI of the pinned version and compares what it says with what it said when
// testdata/golden was recorded. A new version shows here in what it differs: `go test ./internal/claude -run TestGolden -update` records
// it anew.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]func(w *world) string{ // each returns the session
		"text": func(w *world) string {
			turn, _ := w.turn("", "remember")
			return turn.Session.ID
		},
		"tool": func(w *world) string {
			turn, _ := w.turn("", "run: echo fine")
			return turn.Session.ID
		},
		"tool-fails": func(w *world) string {
			turn, _ := w.turn("", "tool error")
			return turn.Session.ID
		},
		"api-error": func(w *world) string {
			turn, _ := w.turn("", "api error")
			return turn.Session.ID
		},
		"allowed": func(w *world) string {
			turn, a := w.asks("", "ask permission", "default")
			w.decide(a, claude.Decision{Allow: true})
			w.collect(turn.Session.ID, turn.After)
			return turn.Session.ID
		},
		"denied": func(w *world) string {
			turn, a := w.asks("", "ask permission", "default")
			w.decide(a, claude.Decision{Message: "No."})
			w.collect(turn.Session.ID, turn.After)
			return turn.Session.ID
		},
		"question": func(w *world) string {
			turn, a := w.asks("", "ask me a question", "")
			w.decide(a, claude.Decision{Allow: true, Answers: map[string]string{"Which colour should it have?": "Green"}})
			w.collect(turn.Session.ID, turn.After)
			return turn.Session.ID
		},
		"plan": func(w *world) string {
			turn, a := w.asks("", "make a plan", "plan")
			w.decide(a, claude.Decision{Message: "No."})
			w.collect(turn.Session.ID, turn.After)
			return turn.Session.ID
		},
		"interrupted-ask": func(w *world) string {
			turn, _ := w.asks("", "ask permission", "default")
			if err := w.Interrupt(w.t.Context(), w.account, turn.Session.ID); err != nil {
				w.t.Fatal(err)
			}
			w.collect(turn.Session.ID, turn.After)
			return turn.Session.ID
		},
		"model-changed": func(w *world) string {
			turn, _ := w.turn("", "remember")
			next := must[claude.Turn](w.t)(w.Prompt(w.t.Context(), w.account, claude.Prompt{Session: turn.Session.ID, Text: "/cost", Model: "claude-sonnet-4-5"}))
			w.collect(turn.Session.ID, next.After)
			return turn.Session.ID
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, _ := newHost(t)
			session := play(w)
			got := golden(t, w.stored(session), w.sb.Spec.Workdir)
			file := filepath.Join("testdata", "golden", name+".jsonl")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("it says\n%s\nand once said\n%s", got, want)
			}
		})
	}
}

// golden writes events one a line, without what differs from one time to the next.
func golden(t *testing.T, evs []sandbox.SessionEvent, dir string) string {
	t.Helper()
	names := namer{}
	var b strings.Builder
	for _, e := range evs {
		var v any
		dec := json.NewDecoder(bytes.NewReader(e.Data))
		dec.UseNumber()
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("%s: %v", e.Data, err)
		}
		var line bytes.Buffer
		enc := json.NewEncoder(&line)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(names.tidy("", v, dir)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s", e.Kind, &line)
	}
	return b.String()
}

// namer gives what has a random name a short one.
type namer map[string]string

var random = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?:msg|toolu|req)_demo_[0-9a-f]+|(?:trn|run|prm|ses|sbx)_[0-9A-HJKMNP-TV-Z]{26}` +
	`|[a-z]+-a-plan-[a-z]+-[a-z]+\.md`)

// varies are the fields whose value says nothing: measures, times, and lists of what the CLI has with it.
var varies = []string{"timestamp", "expires_at", "usage", "modelUsage", "slash_commands", "agents", "skills", "plugins", "uuid", "claude_code_version",
	"memory_paths", "apiKeySource", "fast_mode_state", "output_style", "analytics_disabled", "product_feedback_disabled", "mcp_servers", "total_cost_usd"}

func (n namer) tidy(key string, v any, dir string) any {
	switch {
	case slices.Contains(varies, key), strings.HasSuffix(key, "_ms"):
		return "…"
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			v[k] = n.tidy(k, v[k], dir)
		}
	case []any:
		for i := range v {
			v[i] = n.tidy("", v[i], dir)
		}
	case string:
		v = strings.ReplaceAll(v, dir, "/workspace")
		v = strings.ReplaceAll(v, strings.ReplaceAll(strings.ReplaceAll(dir, "/", "-"), "_", "-"), "-workspace")
		v = random.ReplaceAllStringFunc(v, func(s string) string {
			if n[s] == "" {
				kind, _, ok := strings.Cut(s, "_")
				if !ok {
					kind = "name"
				}
				n[s] = fmt.Sprintf("%s-%d", kind, len(n)+1)
			}
			return n[s]
		})
		if strings.HasPrefix(v, "Total cost:") {
			return "…"
		}
		return v
	}
	return v
}
