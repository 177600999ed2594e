package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// pendingAsk begins a turn that asks, and returns its session and what it asks. The turn's stream goes on until the test's end.
func pendingAsk(t *testing.T, s *servertest.Server, sandbox string) (session string, ask api.Ask) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for e, err := range s.Prompt(ctx, sandbox, api.Prompt{Prompt: "ask", PermissionMode: "default"}) {
		if err != nil {
			t.Fatal(err)
		}
		switch e.Name {
		case "session":
			var start api.SessionStart
			if err := json.Unmarshal([]byte(e.Data), &start); err != nil || start.Turn == "" || start.Run == "" || start.Queued {
				t.Fatalf("session event %s, %v", e.Data, err)
			}
			session = start.Session
		case "ask":
			var d struct{ Prompt string }
			if err := json.Unmarshal([]byte(e.Data), &d); err != nil {
				t.Fatal(err)
			}
			ask, err := s.Ask(t.Context(), session, d.Prompt)
			if err != nil {
				t.Fatal(err)
			}
			return session, ask
		}
	}
	t.Fatal("it didn't ask")
	return "", api.Ask{}
}

// TestAsksOverHTTP shows, decides and audits what Claude asks, and queues, edits and cancels behind it.
func TestAsksOverHTTP(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	ctx := t.Context()
	sb := create(t, s)
	session, ask := pendingAsk(t, s, sb.ID)
	if ask.State != "pending" || ask.Kind != "tool" || ask.Tool != "Bash" || ask.ToolUse != "toolu_1" || ask.Answer != nil || ask.AnsweredAt != nil {
		t.Errorf("ask %+v", ask)
	}
	ses, err := s.Session(ctx, session)
	if err != nil || ses.State != "waiting" || !ses.Busy || len(ses.Prompts) != 1 || ses.Prompts[0].ID != ask.ID || ses.Turn == nil || ses.Process == nil || ses.PermissionMode != "default" {
		t.Errorf("session %+v, %v", ses, err)
	}
	if list, err := s.Asks(ctx, session, true); err != nil || len(list.Prompts) != 1 {
		t.Errorf("pending %+v, %v", list, err)
	}

	// Two prompts wait; one is changed, one taken back. Their streams begin at once.
	type stream struct {
		turn string
		text string
		err  error
	}
	ended := make(chan stream, 2)
	wait := func(prompt string) string {
		begun := make(chan string, 1)
		go func() {
			var out stream
			for e, err := range s.Prompt(ctx, sb.ID, api.Prompt{Prompt: prompt, Session: session}) {
				if err != nil {
					out.err = err
					break
				}
				if e.Name == "session" {
					var start api.SessionStart
					_ = json.Unmarshal([]byte(e.Data), &start) // what is missing shows
					if !start.Queued || start.Run != "" {
						t.Errorf("session event %s", e.Data)
					}
					out.turn = start.Turn
					begun <- start.Turn
				}
				out.text += e.Data
			}
			ended <- out
		}()
		return <-begun
	}
	second, third := wait("second"), wait("third")
	if turn, err := s.EditTurn(ctx, session, second, "another"); err != nil || turn.Text != "another" || turn.State != "queued" || turn.Author == "web" {
		t.Errorf("edited %+v, %v", turn, err)
	}
	if turn, err := s.CancelTurn(ctx, session, third); err != nil || turn.State != "cancelled" {
		t.Errorf("cancelled %+v, %v", turn, err)
	}
	if out := <-ended; out.turn != third || client.Code(out.err) != "turn_cancelled" {
		t.Errorf("the cancelled turn's stream: %+v", out)
	}
	if _, err := s.CancelTurn(ctx, session, third); client.Code(err) != "turn_ended" {
		t.Errorf("the second time: %v", err)
	}
	if ses, err := s.Session(ctx, session); err != nil || len(ses.Queue) != 1 || ses.Queue[0].Text != "another" {
		t.Errorf("session %+v, %v", ses, err)
	}

	// Many decide at once.
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[string]int{}
	for i := range 6 {
		wg.Go(func() {
			in := api.Answer{Behavior: "allow"}
			if i%2 == 1 {
				in = api.Answer{Behavior: "deny", Message: "no"}
			}
			_, err := s.Answer(ctx, session, ask.ID, in)
			mu.Lock()
			defer mu.Unlock()
			codes[client.Code(err)]++
			if err != nil && !strings.Contains(err.Error(), " by key_") {
				t.Errorf("it doesn't say who: %v", err)
			}
		})
	}
	wg.Wait()
	if codes[""] != 1 || codes["already_answered"] != 5 {
		t.Errorf("decisions: %v", codes)
	}
	decided, err := s.Ask(ctx, session, ask.ID)
	if err != nil || !strings.HasPrefix(decided.AnsweredBy, "key_") || decided.AnsweredAt == nil || decided.Answer == nil {
		t.Errorf("ask %+v, %v", decided, err)
	}
	if out := <-ended; out.turn != second || out.err != nil || !strings.Contains(out.text, "You said another") {
		t.Errorf("the second turn's stream: %+v", out)
	}
	want := "allow"
	if decided.State == "denied" {
		want = "deny"
	}
	log, err := s.SessionEvents(ctx, session, 0)
	if err != nil || !strings.Contains(fmt.Sprint(log), "You said ask, and got "+want) {
		t.Errorf("the CLI was not told %s: %v, %v", want, log, err)
	}
	if turn, err := s.Turn(ctx, session, second); err != nil || turn.State != "done" || turn.EndSeq == 0 || turn.EndedAt == nil {
		t.Errorf("turn %+v, %v", turn, err)
	}

	title, mode, model := "A new title", "plan", ""
	if ses, err := s.UpdateSession(ctx, session, api.UpdateSession{Title: &title, PermissionMode: &mode, Model: &model}); err != nil || ses.Title != title || ses.PermissionMode != mode {
		t.Errorf("session %+v, %v", ses, err)
	}
	bad := "x"
	if _, err := s.UpdateSession(ctx, session, api.UpdateSession{PermissionMode: &bad}); problem(t, err).Status != http.StatusUnprocessableEntity && problem(t, err).Status != http.StatusBadRequest {
		t.Errorf("a mode that isn't there: %v", err)
	}
	for _, in := range []api.Answer{{Behavior: "perhaps"}, {Behavior: "deny", Scope: "session"}} {
		if _, err := s.Answer(ctx, session, ask.ID, in); client.Code(err) == "already_answered" || err == nil {
			t.Errorf("%+v: %v", in, err)
		}
	}
	for name, err := range map[string]error{
		"turn_not_found":   func() error { _, err := s.Turn(ctx, session, "trn_none"); return err }(),
		"prompt_not_found": func() error { _, err := s.Ask(ctx, session, "prm_none"); return err }(),
	} {
		if client.Code(err) != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, key := servertest.AddAccount(t, s.Store, "second")
	other := s.As(t, key)
	for name, err := range map[string]error{
		"turn":   func() error { _, err := other.Turn(ctx, session, second); return err }(),
		"edit":   func() error { _, err := other.EditTurn(ctx, session, second, "x"); return err }(),
		"cancel": func() error { _, err := other.CancelTurn(ctx, session, second); return err }(),
		"asks":   func() error { _, err := other.Asks(ctx, session, false); return err }(),
		"ask":    func() error { _, err := other.Ask(ctx, session, ask.ID); return err }(),
		"answer": func() error { _, err := other.Answer(ctx, session, ask.ID, api.Answer{Behavior: "allow"}); return err }(),
		"update": func() error {
			_, err := other.UpdateSession(ctx, session, api.UpdateSession{Title: &title})
			return err
		}(),
		"socket": func() error { _, err := other.Converse(ctx, session, 0); return err }(),
	} {
		if client.Code(err) != "session_not_found" {
			t.Errorf("another account's %s: %v", name, err)
		}
	}
}

// converse opens a socket, and returns what reads it until a message is as wanted.
func converse(t *testing.T, s *servertest.Server, session string, after int64) (*client.Conversation, func(what string, is func(api.SocketOut) bool) api.SocketOut) {
	t.Helper()
	conn, err := s.Converse(t.Context(), session, after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the server may have
	return conn, func(what string, is func(api.SocketOut) bool) api.SocketOut {
		t.Helper()
		for {
			out, err := conn.Receive(t.Context())
			if err != nil {
				t.Fatalf("waiting for %s: %v", what, err)
			}
			if is(out) {
				return out
			}
		}
	}
}

func ref(ref string) func(api.SocketOut) bool {
	return func(out api.SocketOut) bool { return out.Ref == ref }
}

// TestSocket has a whole conversation over a WebSocket, which is cut in between and goes on where it was.
func TestSocket(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	ctx := t.Context()
	session, ask := pendingAsk(t, s, sb.ID)
	conn, next := converse(t, s, session, 0)
	first := next("the state", func(api.SocketOut) bool { return true })
	if first.Type != "state" || first.Session.State != "waiting" || len(first.Session.Prompts) != 1 {
		t.Errorf("first came %+v", first)
	}
	asked := next("the ask", func(out api.SocketOut) bool { return out.Type == "event" && out.Kind == "ask" })
	send := func(in api.SocketIn) {
		t.Helper()
		if err := conn.Send(ctx, in); err != nil {
			t.Fatal(err)
		}
	}
	send(api.SocketIn{Type: "prompt", Ref: "p", Text: "and then"})
	if out := next("the ack", ref("p")); out.Type != "ack" || out.Turn == nil || out.Turn.State != "queued" {
		t.Errorf("to a prompt: %+v", out)
	}
	send(api.SocketIn{Type: "answer", Ref: "a", Prompt: ask.ID, Behavior: "allow"})
	if out := next("the ack", ref("a")); out.Type != "ack" || out.Prompt == nil || out.Prompt.State != "allowed" {
		t.Errorf("to an answer: %+v", out)
	}
	send(api.SocketIn{Type: "answer", Ref: "b", Prompt: ask.ID, Behavior: "deny"})
	if out := next("the error", ref("b")); out.Type != "error" || out.Problem == nil || out.Problem.Code != "already_answered" {
		t.Errorf("to the second answer: %+v", out)
	}
	if err := conn.Close(); err != nil {
		t.Errorf("close: %v", err)
	}

	conn, next = converse(t, s, session, asked.Seq)
	last := asked.Seq
	ends := 0
	next("the second end", func(out api.SocketOut) bool {
		if out.Type == "event" {
			if out.Seq <= last {
				t.Errorf("event %d after %d", out.Seq, last)
			}
			last = out.Seq
			if out.Kind == "end" {
				ends++
			}
		}
		return ends == 2
	})
	next("the state", func(out api.SocketOut) bool { return out.Type == "state" && out.Session.State == "idle" })
	for _, tt := range []struct {
		in   api.SocketIn
		code string
	}{
		{api.SocketIn{Type: "interrupt", Ref: "1"}, "session_idle"},
		{api.SocketIn{Type: "dance", Ref: "2"}, "invalid_request"},
		{api.SocketIn{Type: "prompt", Ref: "3"}, "invalid_request"},
		{api.SocketIn{Type: "answer", Ref: "4", Prompt: ask.ID}, "invalid_request"},
	} {
		send(tt.in)
		if out := next(tt.code, ref(tt.in.Ref)); out.Type != "error" || out.Problem.Code != tt.code {
			t.Errorf("%+v: %+v", tt.in, out)
		}
	}
	title := "Named"
	send(api.SocketIn{Type: "set", Ref: "5", Title: &title})
	next("the ack", ref("5"))
	next("the state", func(out api.SocketOut) bool { return out.Type == "state" && out.Session.Title == "Named" })
	s.Stop()
	for {
		if _, err := conn.Receive(context.WithoutCancel(ctx)); err != nil {
			if websocket.CloseStatus(err) != websocket.StatusGoingAway {
				t.Errorf("at the server's end: %v", err)
			}
			break
		}
	}
}

// TestSocketOfAStranger: a browser sends its cookie from any page, but only ours may use it.
func TestSocketOfAStranger(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	session, _ := pendingAsk(t, s, sb.ID)
	url := s.URL + "/session/" + session + "/ws"
	res, err := http.Post(s.URL+"/signin", "application/json", strings.NewReader(fmt.Sprintf(`{"key":%q}`, s.Key)))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close() // not read
	cookies := res.Cookies()
	if len(cookies) == 0 {
		t.Fatalf("no cookie: %d", res.StatusCode)
	}
	for _, tt := range []struct {
		name, origin string
		cookie, key  bool
		status       int
	}{
		{"our page", s.URL, true, false, http.StatusSwitchingProtocols},
		{"another page", "https://evil.example", true, false, http.StatusForbidden},
		{"another page with a key", "https://tool.example", false, true, http.StatusSwitchingProtocols},
		{"nobody", s.URL, false, false, http.StatusUnauthorized},
	} {
		header := http.Header{"Origin": {tt.origin}}
		if tt.cookie {
			header.Set("Cookie", cookies[0].String())
		}
		if tt.key {
			header.Set("X-API-Key", s.Key)
		}
		conn, res, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{HTTPHeader: header})
		if err == nil {
			_ = conn.CloseNow() // enough was seen
		}
		if res == nil || res.StatusCode != tt.status {
			t.Errorf("%s: %+v, %v", tt.name, res, err)
		}
	}
	for _, path := range []string{"/session/ses_none/ws", "/session/" + session + "/ws?after=x"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", s.Key)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _ = res.Body.Close(); res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestSocketThatIsNotRead: who stops reading is cut off, and slows down nobody.
func TestSocketThatIsNotRead(t *testing.T) {
	t.Parallel()
	const cli = `while read -r line; do case $line in *'"type":"user"'*)
	i=0; while [ $i -lt 200 ]; do printf '{"type":"assistant","n":%d,"x":"%0100000d"}\n' $i 0; i=$((i+1)); done
	echo '{"type":"result","subtype":"success","is_error":false}';; esac; done`
	s := servertest.New(t, servertest.Config{CLI: cli, Change: func(c *server.Config) {
		c.WriteTimeout = 3 * time.Second // which a machine that is busy may need for who does read
	}})
	sb := create(t, s)
	session := ""
	for e, err := range s.Prompt(t.Context(), sb.ID, api.Prompt{Prompt: "much"}) {
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
	}
	// By hand, so that nothing reads ahead: 20 MB don't fit into any buffer between.
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // it is cut
	_, err = fmt.Fprintf(conn, "GET /session/%s/ws HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", session, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	_, next := converse(t, s, session, 0) // who reads gets all
	next("the end", func(out api.SocketOut) bool { return out.Type == "event" && out.Kind == "end" })
	for deadline := time.Now().Add(time.Minute); !strings.Contains(s.Log.String(), "code=too_slow"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it was not cut off")
		}
	}
	if n, err := io.Copy(io.Discard, conn); n == 0 || n > 15<<20 {
		t.Errorf("%d bytes were sent (%v)", n, err)
	}
}
