package claude

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRepair shows what a transcript gets, by what stands in it.
func TestRepair(t *testing.T) {
	t.Parallel()
	uuid := func(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }
	entry := func(n int, typ, content string, more ...string) string {
		return fmt.Sprintf(`{"parentUuid":%q,"type":%q,"message":{"role":%q,"content":%s},"uuid":%q,"cwd":"/w","sessionId":"s","version":"1.0"%s}`+"\n",
			uuid(n-1), typ, typ, content, uuid(n), strings.Join(more, ""))
	}
	use := func(id string) string { return fmt.Sprintf(`[{"type":"tool_use","id":%q}]`, id) }
	result := func(id string) string { return fmt.Sprintf(`[{"type":"tool_result","tool_use_id":%q}]`, id) }
	prompt := `{"type":"queue-operation"}` + "\n" + entry(1, "user", `[{"type":"text","text":"hi"}]`)
	for _, tt := range []struct {
		name, content string
		want          []string // uses that get a result
		after         int      // the entry that these follow
	}{
		{"nothing", "", nil, 0},
		{"all done", prompt + entry(2, "assistant", use("a")) + entry(3, "user", result("a")) + entry(4, "assistant", `[{"type":"text"}]`), nil, 0},
		{"one", prompt + entry(2, "assistant", use("a")), []string{"a"}, 2},
		{"two at once", prompt + entry(2, "assistant", use("a")) + entry(3, "assistant", use("b")), []string{"a", "b"}, 3},
		{"one of two", prompt + entry(2, "assistant", use("a")) + entry(3, "assistant", use("b")) + entry(4, "user", result("a")), []string{"b"}, 4},
		{"a subagent's", prompt + entry(2, "assistant", use("a"), `,"isSidechain":true`), nil, 0},
		{"passed over already", prompt + entry(2, "assistant", use("a")) + entry(3, "user", `[{"type":"text","text":"more"}]`), nil, 0},
		{"passed over, as text", prompt + entry(2, "assistant", use("a")) + entry(3, "user", `"more"`), nil, 0},
		{"a line cut off", prompt + entry(2, "assistant", use("a")) + `{"type":"user","mess`, []string{"a"}, 2},
		{"nonsense between", prompt + "no JSON\n[]\n" + entry(2, "assistant", use("a")) + `{"type":"assistant","uuid":"no"}` + "\n", []string{"a"}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const name = "/t.jsonl"
			files := &oneFile{files: map[string]string{name: tt.content}}
			ids, err := repair(t.Context(), files, name, time.UnixMilli(1700000000123))
			if err != nil || !slices.Equal(ids, tt.want) {
				t.Fatalf("repaired %v, %v", ids, err)
			}
			if len(tt.want) == 0 {
				if files.writes != 0 {
					t.Error("it was written")
				}
				return
			}
			whole := tt.content[:strings.LastIndex(tt.content, "\n")+1]
			added, ok := strings.CutPrefix(files.files[name], whole)
			lines := strings.Split(strings.TrimSuffix(added, "\n"), "\n")
			if !ok || len(lines) != len(tt.want)+1 {
				t.Fatalf("added %s", added)
			}
			parent := uuid(tt.after)
			for i, l := range lines {
				var got line
				if err := json.Unmarshal([]byte(l), &got); err != nil {
					t.Fatal(err)
				}
				if got.Parent != parent || !isUUID(got.UUID) || got.Session != "s" || got.CWD != "/w" || got.Version != "1.0" || got.Type != "user" ||
					got.Timestamp != "2023-11-14T22:13:20.123Z" {
					t.Errorf("line %s", l)
				}
				if b := got.Message.Content[0]; i < len(tt.want) && (b.ToolUse != tt.want[i] || !b.IsError || b.Content == "") || i == len(tt.want) && b.Text != brokenOffText {
					t.Errorf("line %s", l)
				}
				parent = got.UUID
			}
			if ids, err := repair(t.Context(), files, name, time.Now()); err != nil || len(ids) != 0 {
				t.Errorf("the second time: %v, %v", ids, err)
			}
		})
	}
	for _, files := range []*oneFile{{readErr: errors.New("no")}, {full: true, files: map[string]string{"/t.jsonl": prompt + entry(2, "assistant", use("a"))}}} {
		if _, err := repair(t.Context(), files, "/t.jsonl", time.Now()); err == nil {
			t.Error("no error")
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add([]byte(`{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{}}}`))
	f.Add([]byte(`{"type":"result","is_error":true,"result":7}`))
	f.Add([]byte(`{"type":"user","uuid":"u","isReplay":true}`))
	f.Add([]byte(`{"response":{"response":{"behavior":"x"}},"type":"control_response"}`))
	f.Add([]byte(`{"type":"`))
	f.Fuzz(func(t *testing.T, line []byte) {
		h, ok := readHead(line, "u")
		if !ok {
			return
		}
		_ = h.isEcho()
		_ = h.resultText()
		a := askOf(h)
		if !json.Valid(a.Input) {
			t.Errorf("input %q", a.Input)
		}
		_ = encode(askEvent(a)) // must not panic
	})
}
