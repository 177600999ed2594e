package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/gateway"
)

// line is what the tests read of a line of the CLI.
type line struct {
	Type    string `json:"type"`
	Subtype string `json:"subtype"`
	IsError bool   `json:"is_error"`
	Result  string `json:"result"`
	CWD     string `json:"cwd"`
	Message struct {
		Content json.RawMessage `json:"content"`
	} `json:"message"`
}

type block struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	IsError bool   `json:"is_error"`
}

// turn is a prompt's whole answer.
type turn struct {
	session string
	lines   []line
	tools   []string // names of the tools that were used
	failed  int      // tool results that are errors
}

// read adds one line.
func (u *turn) read(t *testing.T, data []byte) {
	t.Helper()
	var l line
	if err := json.Unmarshal(data, &l); err != nil {
		t.Fatalf("a line that isn't JSON: %v: %.200s", err, data)
	}
	u.lines = append(u.lines, l)
	var blocks []block
	if json.Unmarshal(l.Message.Content, &blocks) != nil {
		return
	}
	for _, b := range blocks {
		switch {
		case b.Type == "tool_use":
			u.tools = append(u.tools, b.Name)
		case b.Type == "tool_result" && b.IsError:
			u.failed++
		}
	}
}

func (u *turn) find(typ, subtype string) *line {
	i := slices.IndexFunc(u.lines, func(l line) bool { return l.Type == typ && (subtype == "" || l.Subtype == subtype) })
	if i < 0 {
		return nil
	}
	return &u.lines[i]
}

// prompt sends a prompt and reads its answer to the end.
func prompt(t *testing.T, s *server, sandbox string, in api.Prompt) turn {
	t.Helper()
	var u turn
	for e, err := range s.Prompt(within(t), sandbox, in) {
		if err != nil {
			t.Fatalf("prompt %.40q: %v", in.Prompt, err)
		}
		if e.Name == "session" {
			var start api.SessionStart
			if err := json.Unmarshal([]byte(e.Data), &start); err != nil {
				t.Fatal(err)
			}
			u.session = start.Session
			continue
		}
		u.read(t, []byte(e.Data))
	}
	return u
}

func create(t *testing.T, s *server, in api.CreateSandbox) api.Sandbox {
	t.Helper()
	sb, err := s.Create(within(t), in)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	if sb.State != "running" {
		t.Fatalf("created, but %s: %s", sb.State, sb.Reason)
	}
	return sb
}

// wantMainJob checks that Claude wrote a file, ran it and read it back, with real tools.
func wantMainJob(t *testing.T, u turn) {
	t.Helper()
	if l := u.find("system", "init"); l == nil || l.CWD != "/workspace" {
		t.Errorf("no system/init, or in the wrong directory: %+v", l)
	}
	for _, tool := range []string{"Write", "Bash", "Read"} {
		if !slices.Contains(u.tools, tool) {
			t.Errorf("tool %s was not used: %v", tool, u.tools)
		}
	}
	if u.failed > 0 {
		t.Errorf("%d tool calls failed", u.failed)
	}
	if r := u.find("result", ""); r == nil || r.IsError || r.Subtype != "success" {
		t.Errorf("result: %+v", r)
	}
	if u.find("stream_event", "") == nil {
		t.Error("no partial messages")
	}
	if !strings.HasPrefix(u.session, "ses_") {
		t.Errorf("session %q", u.session)
	}
}

// TestMainJob is what Sandlot is for, from HTTP to the file in the volume.
func TestMainJob(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{Name: "first", Volume: "project", Env: map[string]string{"GREETING": "hello"}})

	u := prompt(t, s, sb.ID, api.Prompt{Prompt: "Write a small script and run it."})
	wantMainJob(t, u)

	run, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"sh", "-c", "ls; echo $GREETING; id -un; exit 4"}})
	if err != nil {
		t.Fatal(err)
	}
	if run.ExitCode == nil || *run.ExitCode != 4 || run.State != "exited" || !strings.Contains(run.Stdout, "hello\nagent\n") {
		t.Errorf("exec: %+v", run)
	}
	name, _, _ := strings.Cut(run.Stdout, "\n") // the file that Claude wrote
	body, err := s.ReadFile(within(t), sb.ID, "/workspace/"+name)
	inside := readAll(t, body, err)
	onHost, err := os.ReadFile(filepath.Join(s.data, "local", "volumes", sb.VolumeID, name))
	if err != nil || string(onHost) != inside || inside == "" {
		t.Errorf("the volume has %q (%v), the sandbox has %q", onHost, err, inside)
	}

	// The session goes on, and Claude knows what was said.
	again := prompt(t, s, sb.ID, api.Prompt{Prompt: "How many turns do you remember?", Session: u.session})
	if r := again.find("result", ""); r == nil || r.IsError || !strings.Contains(r.Result, "2") {
		t.Errorf("the second turn: %+v", r)
	}

	ended, err := s.Terminate(within(t), sb.ID)
	if err != nil || ended.State != "terminated" {
		t.Errorf("terminate: %s %s, %v", ended.State, ended.Reason, err)
	}
	wantNothingLeft(t, s.data)

	// What the volume and the session hold outlives the sandbox.
	second := create(t, s, api.CreateSandbox{Volume: "project"})
	u = prompt(t, s, second.ID, api.Prompt{Prompt: "How many turns do you remember?", Session: u.session})
	if r := u.find("result", ""); r == nil || r.IsError || !strings.Contains(r.Result, "3") {
		t.Errorf("the third turn, in another sandbox: %+v", r)
	}
	log, err := s.SessionEvents(within(t), u.session, 0)
	if err != nil {
		t.Fatal(err)
	}
	prompts := 0
	for _, e := range log.Events {
		if e.Kind == "prompt" {
			prompts++
		}
	}
	if prompts != 3 {
		t.Errorf("the log has %d prompts", prompts)
	}
}

// begin sends a prompt, leaves when Claude has begun to answer, and returns the session.
func begin(t *testing.T, s *server, sandbox, text string) (session string) {
	t.Helper()
	words := 0
	for e, err := range s.Prompt(within(t), sandbox, api.Prompt{Prompt: text}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Name == "session" {
			var start api.SessionStart
			if err := json.Unmarshal([]byte(e.Data), &start); err != nil {
				t.Fatal(err)
			}
			session = start.Session
		}
		if strings.Contains(e.Data, "text_delta") {
			words++
		}
		if words == 3 {
			return session
		}
	}
	t.Fatal("the answer ended before anybody could leave")
	return ""
}

// TestServerKilled kills the server in the middle of a turn. The turn goes on, and the next server tells all of it.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	session := begin(t, s, sb.ID, "slow stream, and then run: echo still here")
	s.kill(t)
	if runtimes(t, s.data) == 0 {
		t.Error("the sandbox died with the server")
	}

	s = start(t, options{data: s.data})
	found, err := s.Sandbox(within(t), sb.ID)
	if err != nil || found.State != "running" {
		t.Fatalf("after the restart: %+v, %v", found, err)
	}
	var u turn
	last := int64(0)
	for e, err := range s.FollowSession(within(t), session, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Seq <= last {
			t.Errorf("event %d after event %d", e.Seq, last)
		}
		last = e.Seq
		if e.Kind == "line" {
			u.read(t, e.Data.(json.RawMessage))
		}
		if e.Kind == "end" {
			if !strings.Contains(string(e.Data.(json.RawMessage)), `"exited"`) {
				t.Errorf("the turn ended as %s", e.Data)
			}
			break
		}
	}
	if r := u.find("result", ""); r == nil || r.IsError {
		t.Errorf("result: %+v", r)
	}
	run, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"echo", "usable"}})
	if err != nil || run.Stdout != "usable\n" {
		t.Errorf("exec after the restart: %+v, %v", run, err)
	}
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, s.data)
}

// TestViewerLeaves drops the stream of a turn: the turn goes on, and the sandbox can be used.
func TestViewerLeaves(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	session := begin(t, s, sb.ID, "slow stream")
	if run, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"true"}}); err != nil || run.State != "exited" {
		t.Errorf("exec meanwhile: %+v, %v", run, err)
	}
	for e, err := range s.FollowSession(within(t), session, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == "end" {
			if !strings.Contains(string(e.Data.(json.RawMessage)), `"exited"`) {
				t.Errorf("the turn ended as %s", e.Data)
			}
			break
		}
	}
}

// TestKeyStaysOutside uses a model service that wants a real key. The service sees it; nothing in the sandbox does.
func TestKeyStaysOutside(t *testing.T) {
	t.Parallel()
	const realKey = "sk-ant-the-real-key-of-this-test"
	var mu sync.Mutex
	keys := map[string]int{}
	demo := gateway.NewDemo()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		keys[r.Header.Get("X-Api-Key")+r.Header.Get("Authorization")]++
		mu.Unlock()
		demo.ServeHTTP(w, r)
	}))
	t.Cleanup(upstream.Close)

	s := start(t, options{args: []string{}, env: []string{"ANTHROPIC_API_KEY=" + realKey, "ANTHROPIC_BASE_URL=" + upstream.URL}})
	sb := create(t, s, api.CreateSandbox{})
	wantMainJob(t, prompt(t, s, sb.ID, api.Prompt{Prompt: "Write a small script and run it."}))
	mu.Lock()
	if len(keys) != 1 || keys[realKey] == 0 {
		t.Errorf("the service saw these keys: %v", keys)
	}
	mu.Unlock()
	for _, user := range []string{"agent", "root"} {
		run, err := s.ExecWait(within(t), sb.ID, api.Exec{User: user, Argv: []string{"sh", "-c",
			"env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null; grep -r sk-ant /workspace /run /etc /tmp /var 2>/dev/null; true"}})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(run.Stdout, realKey) {
			t.Errorf("the real key is in the sandbox, as %s", user)
		}
	}
	if strings.Contains(s.log.String(), realKey) {
		t.Error("the real key is in the server's log")
	}
	if err := filepath.WalkDir(s.data, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), realKey) {
			t.Errorf("the real key is in %s", path)
		}
		return err
	}); err != nil && !os.IsNotExist(err) { // files come and go
		t.Error(err)
	}
}

// TestRefusals sends what a caller may get wrong to the real server; the server's own tests have the whole table.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Fatal(err)
	}
	anonymous := client.New(s.url, "slk_not-a-key-of-this-server")
	for name, c := range map[string]struct {
		do   func() error
		code string
	}{
		"wrong key":     {func() error { _, err := anonymous.Me(within(t)); return err }, "invalid_key"},
		"second DELETE": {func() error { _, err := s.Terminate(within(t), sb.ID); return err }, "already_terminated"},
		"no such ID":    {func() error { _, err := s.Sandbox(within(t), "sbx_nope"); return err }, "sandbox_not_found"},
		"image of this machine's network": {func() error {
			_, err := s.Create(within(t), api.CreateSandbox{Image: &api.Image{Registry: "127.0.0.1:5000/no/such:1"}})
			return err
		}, "address_refused"},
		"empty argv":    {func() error { _, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{}}); return err }, "invalid_request"},
		"ended: exec":   {func() error { _, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"true"}}); return err }, "sandbox_not_running"},
		"ended: prompt": {func() error { return first(s.Prompt(within(t), sb.ID, api.Prompt{Prompt: "hi"})) }, "sandbox_not_running"},
		"empty prompt":  {func() error { return first(s.Prompt(within(t), sb.ID, api.Prompt{Prompt: " "})) }, "invalid_request"},
		"bad workdir":   {func() error { _, err := s.Create(within(t), api.CreateSandbox{Workdir: "/usr"}); return err }, "invalid_request"},
		"network mode": {func() error {
			_, err := s.Create(within(t), api.CreateSandbox{Network: &api.Network{Mode: "wild"}})
			return err
		}, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.do(); client.Code(err) != c.code {
				t.Errorf("%v, want code %s", err, c.code)
			}
		})
	}
}

// first returns the error with which a stream begins.
func first(seq func(func(client.Event, error) bool)) (err error) {
	seq(func(_ client.Event, e error) bool { err = e; return false })
	return err
}
