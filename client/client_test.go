package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers requests one after the other by answers; the last one repeats.
func serve(t *testing.T, answers ...http.HandlerFunc) (*client.Client, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n := min(len(seen), len(answers)-1)
		seen = append(seen, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Last-Event-ID")))
		mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%s %s came without the key", r.Method, r.URL)
		}
		answers[n](w, r)
	}))
	t.Cleanup(srv.Close)
	c := client.New(srv.URL+"/", "secret")
	c.Backoff = time.Millisecond
	t.Cleanup(c.HTTP.CloseIdleConnections)
	return c, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// events answers with a stream and then breaks the connection.
func events(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// says answers with a body.
func says(status int, ctype, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", ctype)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

const start = "event: start\ndata: {\"id\":\"run_1\",\"sandbox\":\"sbx_1\"}\n\n"

func piece(offset int, data string) string {
	return fmt.Sprintf("id: %d\nevent: output\ndata: {\"stream\":\"stdout\",\"data\":%q}\n\n", offset, data)
}

func TestExecGoesOnWhereItWasCut(t *testing.T) {
	t.Parallel()
	c, seen := serve(t,
		events(start+piece(3, "one")+"id: 6\nevent: output\ndata: {\"stream\":\"st"),
		says(503, api.ContentTypeProblem, `{"status":503,"code":"shutting_down","retryable":true}`),
		events(start+piece(6, "two")),
		events(start+piece(8, "\U0001F600")+"id: 9\nevent: output\ndata: {\"stream\":\"stderr\",\"data\":\"/w==\",\"encoding\":\"base64\"}\n\n"+
			"id: 12\nevent: gap\ndata: {\"from\":9,\"to\":12}\n\nevent: exit\ndata: {\"id\":\"run_1\",\"state\":\"exited\",\"exit_code\":0}\n\ndata: [DONE]\n\n"),
	)
	var got []string
	for e, err := range c.Exec(t.Context(), "sbx_1", api.Exec{Argv: []string{"x"}}) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Start != nil:
			got = append(got, "start")
		case e.Gap != nil:
			got = append(got, "gap")
		case e.Exit != nil:
			got = append(got, "exit")
		default:
			got = append(got, fmt.Sprintf("%s %q", e.Stream, e.Data))
		}
	}
	want := []string{"start", `stdout "one"`, `stdout "two"`, `stdout "😀"`, `stderr "\xff"`, "gap", "exit"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	const again = "GET /sandbox/sbx_1/run/run_1/events "
	if want := []string{"POST /sandbox/sbx_1/exec", again + "3", again + "3", again + "6"}; !slices.Equal(seen(), want) {
		t.Errorf("asked %q", seen())
	}
}

func TestPromptTellsThatItWasCut(t *testing.T) {
	t.Parallel()
	c, _ := serve(t, events("id: 4\nevent: session\ndata: {}\n\nid: 5\ndata: {\"type\":\"x\"}\n\n"))
	last := ""
	var end error
	for e, err := range c.Prompt(t.Context(), "sbx_1", api.Prompt{Prompt: "Hi"}) {
		if err != nil {
			end = err
			continue
		}
		last = e.ID
	}
	if last != "5" || !errors.Is(end, client.ErrCut) {
		t.Errorf("last %q, %v", last, end)
	}
}

func TestFollowSessionResumes(t *testing.T) {
	t.Parallel()
	c, seen := serve(t, events("id: 4\nevent: line\ndata: {\"a\":1}\n\n"), events("id: 5\nevent: line\ndata: not JSON\n\n"),
		says(404, api.ContentTypeProblem, `{"status":404,"code":"not_found","detail":"It is gone."}`))
	var got []string
	var end error
	for e, err := range c.FollowSession(t.Context(), "ses_1", 3) {
		if err != nil {
			end = err
			break
		}
		got = append(got, fmt.Sprintf("%d %s %s", e.Seq, e.Kind, e.Data))
	}
	if want := []string{`4 line {"a":1}`, "5 line not JSON"}; !slices.Equal(got, want) || client.Code(end) != "not_found" {
		t.Errorf("%q, %v", got, end)
	}
	if want := []string{"GET /session/ses_1/events 3", "GET /session/ses_1/events 4", "GET /session/ses_1/events 5"}; !slices.Equal(seen(), want) {
		t.Errorf("asked %q", seen())
	}
}

func TestFollowingEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c, _ := serve(t, events(""))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	var end error
	for _, err := range c.FollowEvents(ctx, "", 0) {
		end = err
	}
	if !errors.Is(end, context.DeadlineExceeded) {
		t.Errorf("%v", end)
	}
}

func TestStreamsOfNonsense(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"unknown event": "event: dance\ndata: {}\n\n", "no JSON": "event: start\ndata: x\n\n", "no offset": "id: x\nevent: output\ndata: {}\n\n",
		"no base64":    "event: output\ndata: {\"encoding\":\"base64\",\"data\":\"?\"}\n\n",
		"error events": "event: error\ndata: the sky fell\n\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := serve(t, events(text))
			n := 0
			for _, err := range c.Exec(t.Context(), "sbx_1", api.Exec{}) {
				n++
				if err == nil {
					t.Error("no error")
				}
			}
			if n != 1 {
				t.Errorf("%d events", n)
			}
		})
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	c, _ := serve(t, says(409, api.ContentTypeProblem,
		`{"title":"Conflict","status":409,"code":"already_terminated","detail":"It has ended.","errors":[{"location":"path.id","message":"is old"}]}`))
	_, err := c.Terminate(t.Context(), "sbx_1")
	p, ok := errors.AsType[*api.Problem](err)
	if !ok || p.Status != 409 || client.Code(err) != "already_terminated" || !strings.Contains(err.Error(), "It has ended.; path.id: is old") {
		t.Errorf("%v", err)
	}
	c, _ = serve(t, says(502, "text/html", "<h1>Bad gateway</h1>"))
	_, err = c.Sandbox(t.Context(), "sbx_1")
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != "not_sandlot" || !p.Retryable {
		t.Errorf("%v", err)
	}
	c, _ = serve(t, says(200, "text/html", "<h1>Hello</h1>"))
	if _, err := c.Sandbox(t.Context(), "sbx_1"); err == nil || client.Code(err) != "" {
		t.Errorf("%v", err)
	}
}

func TestPathsAndQueries(t *testing.T) {
	t.Parallel()
	c, seen := serve(t, says(200, "application/json", "{}"))
	ctx := t.Context()
	_, err1 := c.Sandboxes(ctx, client.Filter{States: []string{"running", "error"}, Labels: map[string]string{"a b": "c&d"}, Limit: 5, Cursor: "x"})
	_, err2 := c.Sandbox(ctx, "../x?y")
	r, err3 := c.ReadFile(ctx, "sbx_1", "/a b/../c#/é%")
	_, err4 := c.ReadDir(ctx, "sbx_1", "/")
	_, err5 := c.WriteFile(ctx, "sbx_1", "x", strings.NewReader("y"))
	err6 := c.Remove(ctx, "sbx_1", "x/")
	_, err7 := c.CreateNoWait(ctx, api.CreateSandbox{})
	_, err8 := c.ExecWait(ctx, "sbx_1", api.Exec{})
	_, err9 := c.Run(ctx, "sbx_1", "run_1")
	err10 := c.Signal(ctx, "sbx_1", "run_1", "SIGINT")
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9, err10, r.Close()); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GET /sandbox?cursor=x&label.a+b=c%26d&limit=5&state=running&state=error", "GET /sandbox/..%2Fx%3Fy",
		"GET /sandbox/sbx_1/files/c%23/%C3%A9%25", "GET /sandbox/sbx_1/files/", "PUT /sandbox/sbx_1/files/x", "DELETE /sandbox/sbx_1/files/x",
		"POST /sandbox?wait=false", "POST /sandbox/sbx_1/exec?wait=true", "GET /sandbox/sbx_1/run/run_1", "POST /sandbox/sbx_1/run/run_1/signal",
	}
	if !slices.Equal(seen(), want) {
		t.Errorf("asked\n%s", strings.Join(seen(), "\n"))
	}
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	c := client.New(srv.URL, "")
	if _, err := c.Me(t.Context()); err == nil || client.Code(err) != "" {
		t.Errorf("%v", err)
	}
	if _, err := client.New("http://bad host", "").Me(t.Context()); err == nil {
		t.Error("a URL that is none")
	}
}
