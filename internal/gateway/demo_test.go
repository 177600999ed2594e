package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandlot-dev/sandlot/internal/gateway"
)

// obj keeps the test's JSON short.
type obj = map[string]any

func tools(names ...string) []any {
	var list []any
	for _, n := range names {
		list = append(list, obj{"name": n, "input_schema": obj{}})
	}
	return list
}

func user(content any) obj { return obj{"role": "user", "content": content} }

func used(id, name string, input obj) obj {
	return obj{"role": "assistant", "content": []any{obj{"type": "text", "text": "…"}, obj{"type": "tool_use", "id": id, "name": name, "input": input}}}
}

func result(id string, content any, isError bool) obj {
	return user([]any{obj{"type": "tool_result", "tool_use_id": id, "content": content, "is_error": isError}})
}

func demoRequest(messages ...any) obj {
	return obj{"model": "claude-x", "max_tokens": 1000, "messages": messages, "tools": tools("Bash", "Read", "Write"),
		"system": []any{obj{"type": "text", "text": "You are…"}, obj{"type": "text", "text": "# Environment\n - Primary working directory: /workspace\n - Platform: linux"}}}
}

type reply struct {
	ID, Model  string
	Role       string
	StopReason string `json:"stop_reason"`
	Content    []struct {
		Type, Text, ID, Name string
		Input                map[string]string
	}
	Usage struct {
		In  int `json:"input_tokens"`
		Out int `json:"output_tokens"`
	}
}

func (r reply) text() string {
	var s string
	for _, b := range r.Content {
		s += b.Text
	}
	return s
}

// tool returns the tool that is asked for.
func (r reply) tool() (name string, input map[string]string) {
	for _, b := range r.Content {
		if b.Type == "tool_use" {
			return b.Name, b.Input
		}
	}
	return "", nil
}

func post(t *testing.T, d *gateway.Demo, req obj) (*httptest.ResponseRecorder, reply) {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	d.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "POST", "/v1/messages?beta=true", strings.NewReader(string(body))))
	var r reply
	if rec.Code == 200 && req["stream"] == nil {
		if err := json.Unmarshal(rec.Body.Bytes(), &r); err != nil {
			t.Fatalf("%v: %s", err, rec.Body)
		}
		if r.Model != gateway.DemoModel || r.Usage.In == 0 || r.Usage.Out == 0 || r.Role != "assistant" {
			t.Errorf("message %+v", r)
		}
	}
	return rec, r
}

func fast() *gateway.Demo {
	d := gateway.NewDemo()
	d.Pace, d.Slow = -1, -1
	return d
}

func TestDemoMainJob(t *testing.T) {
	t.Parallel()
	d := fast()
	messages := []any{user([]any{obj{"type": "text", "text": "<system-reminder>\nnot typed\n</system-reminder>\n"},
		obj{"type": "text", "text": "Make me something\n"}}), obj{"role": "system", "content": "agents: …"}}
	step := func(wantTool string) (reply, map[string]string) {
		t.Helper()
		_, r := post(t, d, demoRequest(messages...))
		name, input := r.tool()
		if name != wantTool || (wantTool != "") != (r.StopReason == "tool_use") {
			t.Fatalf("asked for %q (%s), want %q: %s", name, r.StopReason, wantTool, r.text())
		}
		return r, input
	}
	r, input := step("Write")
	if !strings.Contains(r.text(), "demo model") || !strings.Contains(r.text(), "not Claude") {
		t.Errorf("it doesn't say what it is: %s", r.text())
	}
	if input["file_path"] != "/workspace/hello.sh" || !strings.HasPrefix(input["content"], "#!/bin/sh") {
		t.Errorf("write %v", input)
	}
	messages = append(messages, used("t1", "Write", obj{}), result("t1", "written", false))
	if _, input = step("Bash"); input["command"] != "sh hello.sh" {
		t.Errorf("bash %v", input)
	}
	messages = append(messages, used("t2", "Bash", obj{}), result("t2", []any{obj{"type": "text", "text": "REAL OUTPUT ```"}}, false))
	if _, input = step("Read"); input["file_path"] != "/workspace/hello.sh" {
		t.Errorf("read %v", input)
	}
	messages = append(messages, used("t3", "Read", obj{}), result("t3", "1 #!/bin/sh", false))
	r, _ = step("")
	for _, want := range []string{"## Done", "1. **Wrote**", "````text\nREAL OUTPUT ```\n````"} {
		if !strings.Contains(r.text(), want) {
			t.Errorf("no %q in %s", want, r.text())
		}
	}
}

func TestDemoOverwrites(t *testing.T) {
	t.Parallel()
	d := fast()
	messages := []any{user("go"), used("t1", "Write", obj{}), result("t1", "File has not been read yet", true)}
	_, r := post(t, d, demoRequest(messages...))
	if name, _ := r.tool(); name != "Read" {
		t.Fatalf("after a failed write: %q", name)
	}
	read := append(messages, used("t2", "Read", obj{}), result("t2", "old", false))
	_, r = post(t, d, demoRequest(read...))
	if name, _ := r.tool(); name != "Write" {
		t.Fatalf("after reading: %q", name)
	}
	refused := append(messages, used("t2", "Read", obj{}), result("t2", "permission denied", true))
	_, r = post(t, d, demoRequest(refused...))
	if name, _ := r.tool(); name != "" || !strings.Contains(r.text(), "permission denied") {
		t.Fatalf("after a refusal: %q %s", name, r.text())
	}
	again := append(read, used("t3", "Write", obj{}), result("t3", "no", true))
	_, r = post(t, d, demoRequest(again...))
	if name, _ := r.tool(); name != "" {
		t.Fatalf("after the second refusal: %q", name)
	}
}

func TestDemoFailedRunIsTold(t *testing.T) {
	t.Parallel()
	_, r := post(t, fast(), demoRequest(user("go"), used("t1", "Write", obj{}), result("t1", "ok", false),
		used("t2", "Bash", obj{}), result("t2", "Exit code 127", true), used("t3", "Read", obj{}), result("t3", "gone", true)))
	if !strings.Contains(r.text(), "which failed") || !strings.Contains(r.text(), "reading failed: gone") {
		t.Error(r.text())
	}
}

func TestDemoScripts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		messages []any
		tool     string
		input    map[string]string
		text     []string
	}{
		{"run", []any{user("please run: echo 'a b'\necho c")}, "Bash", map[string]string{"command": "echo 'a b'\necho c"}, []string{"demo model"}},
		{"ran", []any{user("run: x"), used("t", "Bash", obj{}), result("t", "out", false)}, "", nil, []string{"```text\nout\n```", "well"}},
		{"ran badly", []any{user("run: x"), used("t", "Bash", obj{}), result("t", "out", true)}, "", nil, []string{"**failed**"}},
		{"write", []any{user("write notes/a.txt: some text")}, "Write",
			map[string]string{"file_path": "/workspace/notes/a.txt", "content": "some text\n"}, nil},
		{"wrote", []any{user("write it's.txt: no")}, "Write", nil, nil}, // not a name: the main job
		{"ask permission", []any{user("please ask permission")}, "Bash", map[string]string{"description": "Write permission.txt"}, nil},
		{"permission given", []any{user("ask permission"), used("t", "Bash", obj{}), result("t", "allowed by you", false)}, "", nil, []string{"I may.", "allowed by you"}},
		{"permission denied", []any{user("ask permission"), used("t", "Bash", obj{}), result("t", "No!", true)}, "", nil, []string{"I may not.", "No!"}},
		{"no plan mode", []any{user("make a plan")}, "", nil, []string{"needs the permission mode `plan`"}},
		{"plan", []any{user("make a plan"), obj{"role": "system", "content": "You should create your plan at /c/plans/a.md using"}}, "Write",
			map[string]string{"file_path": "/c/plans/a.md"}, nil},
		{"long command done", []any{user("a long command, 5 s"), used("t", "Bash", obj{}), result("t", "5", false)}, "", nil, []string{"It has ended."}},
		{"notes of the CLI", []any{user("<local-command-caveat>Caveat</local-command-caveat>"), user("remember")}, "", nil, []string{"has 1 of your prompts"}},
		{"tool error", []any{user("Tool error, please")}, "Bash", map[string]string{"command": "echo 'about to fail' >&2; exit 1"}, nil},
		{"tool error told", []any{user("tool error"), used("t", "Bash", obj{}), result("t", "Exit code 1", true)}, "", nil, []string{"Exit code 1"}},
		{"code blocks", []any{user("code blocks")}, "", nil, []string{"```go\n", "<script>", "onerror=", "| left | right |", "````markdown"}},
		{"long answer", []any{user("a long answer")}, "", nil, []string{"## Part 60", "That was the long answer."}},
		{"slow stream", []any{user("slow stream")}, "", nil, []string{"That was the slow stream."}},
		{"remember", []any{user("one"), obj{"role": "assistant", "content": "hm"}, user("[Request interrupted by user]"), user("do you remember?")}, "", nil,
			[]string{"has 2 of your prompts", "1. one", "2. do you remember?"}},
		{"dangling tool use", []any{user("one"), used("t", "Bash", obj{}), user("two: run: ls")}, "Bash", map[string]string{"command": "ls"}, nil},
		{"input that is no object", []any{user("run: ls"), obj{"role": "assistant", "content": []any{obj{"type": "tool_use", "id": "t", "name": "Bash", "input": "x"}}},
			result("t", obj{"odd": 1}, false)}, "", nil, []string{"well"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rec, r := post(t, fast(), demoRequest(tt.messages...))
			if rec.Code != 200 {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			name, input := r.tool()
			if name != tt.tool {
				t.Fatalf("asked for %q: %s", name, r.text())
			}
			for k, v := range tt.input {
				if input[k] != v {
					t.Errorf("%s = %q, want %q", k, input[k], v)
				}
			}
			for _, want := range tt.text {
				if !strings.Contains(r.text(), want) {
					t.Errorf("no %q in %s", want, r.text())
				}
			}
		})
	}
	if n := len(strings.Fields(func() string { _, r := post(t, fast(), demoRequest(user("long answer"))); return r.text() }())); n < 4000 {
		t.Errorf("the long answer has %d words", n)
	}
}

func TestDemoErrors(t *testing.T) {
	t.Parallel()
	d := fast()
	rec, _ := post(t, d, demoRequest(user("api error")))
	if e := decodeError(t, rec.Body.String()); rec.Code != 400 || e.Error.Type != "invalid_request_error" {
		t.Errorf("%d %+v", rec.Code, e)
	}
	for i, want := range []int{529, 200, 200} {
		if rec, _ := post(t, d, demoRequest(user("overloaded"))); rec.Code != want {
			t.Errorf("try %d: %d, want %d", i+1, rec.Code, want)
		} else if want == 529 && rec.Header().Get("X-Should-Retry") != "" {
			t.Error("it says not to try again")
		}
	}
	send := func(method, path, body string) int {
		rec := httptest.NewRecorder()
		d.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
		return rec.Code
	}
	for _, tt := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", "/v1/messages", "{", 400},
		{"POST", "/v1/messages", `{"messages":[]}`, 400},
		{"POST", "/v1/messages", `{"messages":[{"role":"user","content":7}]}`, 400},
		{"POST", "/v1/messages/count_tokens", "no", 400},
		{"POST", "/v1/messages/count_tokens", `{"messages":[]}`, 200},
		{"GET", "/v1/models", "", 200},
		{"GET", "/v1/models/sandlot-demo", "", 200},
		{"GET", "/v1/models/other", "", 404},
		{"HEAD", "/", "", 200},
		{"GET", "/v1/messages", "", 404},
	} {
		if got := send(tt.method, tt.path, tt.body); got != tt.want {
			t.Errorf("%s %s %s: %d, want %d", tt.method, tt.path, tt.body, got, tt.want)
		}
	}
	rec = httptest.NewRecorder()
	d.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "POST", "/v1/messages", io.LimitReader(zeros{}, 65<<20)))
	if rec.Code != 413 {
		t.Errorf("a huge body: %d", rec.Code)
	}
	rec = httptest.NewRecorder()
	d.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "POST", "/v1/messages", io.MultiReader(strings.NewReader("{"), brokenBody{})))
	if rec.Code != 400 {
		t.Errorf("a broken body: %d", rec.Code)
	}
}

func TestDemoSideRequests(t *testing.T) {
	t.Parallel()
	req := demoRequest(user("some words"))
	delete(req, "tools")
	_, r := post(t, fast(), req)
	if r.text() != "Sandlot demo" {
		t.Errorf("title %q", r.text())
	}
	req["output_config"] = obj{"format": obj{"type": "json_schema", "schema": obj{"required": []string{"title", "n", "ok", "list", "more"},
		"properties": obj{"title": obj{"type": "string"}, "n": obj{"type": "integer"}, "ok": obj{"type": "boolean"},
			"list": obj{"type": "array"}, "more": obj{"type": "object"}}}}}
	_, r = post(t, fast(), req)
	if want := `{"list":[],"more":{},"n":0,"ok":false,"title":"Sandlot demo"}`; r.text() != want {
		t.Errorf("%s, want %s", r.text(), want)
	}
	req = demoRequest(user("some words"))
	req["tools"] = tools("Read")
	_, r = post(t, fast(), req)
	if name, _ := r.tool(); name != "" || !strings.Contains(r.text(), "doesn't offer") {
		t.Errorf("asked for %q: %s", name, r.text())
	}
}

// TestDemoStream puts a stream together again and compares it with the whole message.
func TestDemoStream(t *testing.T) {
	t.Parallel()
	for _, prompt := range []string{"run: echo ünï", "code blocks", "slow stream", "long answer"} {
		_, want := post(t, fast(), demoRequest(user(prompt)))
		req := demoRequest(user(prompt))
		req["stream"] = true
		rec, _ := post(t, fast(), req)
		if ct := rec.Header().Get("Content-Type"); !strings.HasPrefix(ct, "text/event-stream") {
			t.Fatalf("content type %q", ct)
		}
		var text, input, stop string
		var kinds []string
		for _, ev := range parseSSE(t, rec.Body) {
			kinds = append(kinds, ev.kind)
			var d struct {
				Type  string
				Delta struct {
					Text, PartialJSON string
					Partial           string `json:"partial_json"`
					Stop              string `json:"stop_reason"`
				}
			}
			if err := json.Unmarshal([]byte(ev.data), &d); err != nil || d.Type != ev.kind {
				t.Fatalf("%v: %+v", err, ev)
			}
			text, input = text+d.Delta.Text, input+d.Delta.Partial
			if d.Delta.Stop != "" {
				stop = d.Delta.Stop
			}
		}
		all := strings.Join(kinds, " ")
		if !strings.HasPrefix(all, "message_start content_block_start ping content_block_delta") ||
			!strings.HasSuffix(all, "content_block_stop message_delta message_stop") {
			t.Errorf("%s: events %s", prompt, all)
		}
		if text != want.text() || stop != want.StopReason {
			t.Errorf("%s: the stream says %q, %s", prompt, text, stop)
		}
		if _, in := want.tool(); in != nil {
			var got map[string]string
			if err := json.Unmarshal([]byte(input), &got); err != nil || got["command"] != in["command"] {
				t.Errorf("input %q: %v", input, err)
			}
		}
	}
}

type sse struct{ kind, data string }

func parseSSE(t *testing.T, r io.Reader) []sse {
	t.Helper()
	var list []sse
	var ev sse
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "event: "):
			ev.kind = line[7:]
		case strings.HasPrefix(line, "data: "):
			ev.data = line[6:]
		case line == "":
			list, ev = append(list, ev), sse{}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// sink counts what is written and can fail.
type sink struct {
	header http.Header
	n      int
	onData func(n int) error
}

func (s *sink) Header() http.Header { return s.header }
func (s *sink) WriteHeader(int)     {}
func (s *sink) Flush()              {}
func (s *sink) Write(p []byte) (int, error) {
	s.n++
	if err := s.onData(s.n); err != nil {
		return 0, err
	}
	return len(p), nil
}

func TestDemoPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		serve := func(onData func(int) error) (time.Duration, int) {
			s := &sink{header: http.Header{}, onData: onData}
			start := time.Now()
			gateway.NewDemo().ServeHTTP(s, httptest.NewRequestWithContext(ctx, "POST", "/v1/messages",
				strings.NewReader(`{"stream":true,"messages":[{"role":"user","content":"slow stream"}],"tools":[{"name":"Bash"}]}`)))
			return time.Since(start), s.n
		}
		if took, n := serve(func(int) error { return nil }); took < 15*time.Second || took > 30*time.Second || n < 90 {
			t.Errorf("a slow stream took %v in %d events", took, n)
		}
		if took, n := serve(func(n int) error {
			if n == 10 {
				return io.ErrClosedPipe
			}
			return nil
		}); took > 5*time.Second || n != 10 {
			t.Errorf("after a failed write it went on: %v, %d", took, n)
		}
		if took, n := serve(func(n int) error {
			if n == 10 {
				cancel()
			}
			return nil
		}); took > 5*time.Second || n != 10 {
			t.Errorf("after the client left it went on: %v, %d", took, n)
		}
	})
}
