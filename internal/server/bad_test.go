package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// reply is an answer without its body.
type reply struct {
	StatusCode    int
	Header        http.Header
	Cookies       []*http.Cookie
	ContentLength int64
}

// ask does a request with the rig's key and returns the answer with its body read.
func (r *rig) ask(t *testing.T, method, path, body string, header ...string) (reply, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+r.Key)
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	client := http.Client{
		Transport:     r.HTTP.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{res.StatusCode, res.Header, res.Cookies(), res.ContentLength}, string(b)
}

// notFound is what the manager says of what it doesn't know.
func notFound(id string) error { return fmt.Errorf("%w: %s", sandbox.ErrNotFound, id) }

// strictManager refuses as the real one does.
func strictManager(account string) *stubManager {
	const dead, live = "sbx_01J00000000000000000000000", "sbx_01J00000000000000000000001"
	return &stubManager{
		create: func(q lifecycle.Request) (sandbox.Sandbox, error) {
			if q.Image.Source != "" && q.Image.Source != sandbox.HostImage {
				return sandbox.Sandbox{}, &sandbox.Problem{
					Class: sandbox.ErrInvalid, Code: "image_not_found", Field: "image.registry", Detail: "there is no image " + q.Image.Source,
				}
			}
			return sandbox.Sandbox{ID: live, Account: account, State: sandbox.Creating}, nil
		},
		waitReady: func(_ context.Context, id sandbox.ID) (sandbox.Sandbox, error) {
			return sandbox.Sandbox{ID: id, State: sandbox.Running}, nil
		},
		get: func(who string, id sandbox.ID) (sandbox.Sandbox, error) {
			if who != account || id != live && id != dead {
				return sandbox.Sandbox{}, notFound(string(id))
			}
			return sandbox.Sandbox{ID: id, State: sandbox.Running}, nil
		},
		list: func(f sandbox.Filter) ([]sandbox.Sandbox, string, error) {
			if f.Cursor != "" {
				return nil, "", sandbox.Invalid("cursor", "this is not a cursor that a list gave")
			}
			return nil, "", nil
		},
		terminate: func(_ context.Context, id sandbox.ID) (sandbox.Sandbox, error) {
			switch id {
			case dead:
				return sandbox.Sandbox{}, &sandbox.Problem{Class: sandbox.ErrConflict, Code: "already_terminated", Detail: "it was terminated before"}
			case live:
				return sandbox.Sandbox{ID: id, State: sandbox.Terminated}, nil
			}
			return sandbox.Sandbox{}, notFound(string(id))
		},
		startRun: func(r sandbox.Run, cmd guest.Command) (sandbox.Run, error) {
			if r.Sandbox == dead {
				return r, &sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_not_running", Detail: "the sandbox is terminated"}
			}
			return r, &guest.Error{Status: 400, Code: "no_such_program", Field: "argv", Detail: "no program " + cmd.Argv[0]}
		},
		run: func(id string) (sandbox.Run, error) {
			if id != "run_1" {
				return sandbox.Run{}, notFound(id)
			}
			return sandbox.Run{ID: id, Sandbox: live}, nil
		},
	}
}

func TestBadInputIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	*r.Manager = *strictManager(r.Account)
	r.Sessions.prompt = func(p claude.Prompt) (claude.Turn, error) {
		if p.Sandbox == "sbx_01J00000000000000000000000" {
			return claude.Turn{}, &sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_not_running", Detail: "the sandbox is terminated"}
		}
		return claude.Turn{}, sandbox.Invalid("prompt", "is empty")
	}
	r.Sessions.get = func(id string) (sandbox.Session, bool, error) { return sandbox.Session{}, false, notFound(id) }
	const dead, live = "/sandbox/sbx_01J00000000000000000000000", "/sandbox/sbx_01J00000000000000000000001"

	tests := []struct {
		name     string
		method   string
		path     string
		body     string
		header   []string
		status   int
		code     string
		location string // of the first field at fault
		says     string // part of the detail
	}{
		{name: "no key", method: "GET", path: "/sandbox", header: []string{"Authorization", ""}, status: 401, code: "unauthenticated"},
		{name: "wrong key", method: "GET", path: "/sandbox", header: []string{"Authorization", "Bearer slk_WRONG"}, status: 401, code: "invalid_key"},
		{name: "wrong key in the other header", method: "GET", path: "/sandbox", header: []string{"Authorization", "", "X-API-Key", "slk_WRONG"}, status: 401, code: "invalid_key"},
		{name: "wrong scheme", method: "GET", path: "/sandbox", header: []string{"Authorization", "Basic dTpw"}, status: 401, code: "invalid_key"},
		{name: "no key for a run", method: "POST", path: live + "/exec", body: `{"argv":["id"]}`, header: []string{"Authorization", ""}, status: 401, code: "unauthenticated"},
		{name: "malformed JSON", method: "POST", path: "/sandbox", body: `{"name": nope}`, status: 400, code: "invalid_request", location: "body", says: "byte 11"},
		{name: "JSON cut off", method: "POST", path: "/sandbox", body: `{"name": "x`, status: 400, code: "invalid_request", location: "body", says: "malformed JSON"},
		{name: "something after the JSON", method: "POST", path: "/sandbox", body: `{} {}`, status: 400, code: "invalid_request", location: "body", says: "malformed JSON"},
		{name: "not an object", method: "POST", path: "/sandbox", body: `[]`, status: 400, code: "invalid_request", location: "body"},
		{name: "unknown field", method: "POST", path: "/sandbox", body: `{"nmae":"x"}`, status: 400, code: "invalid_request", location: "body.nmae", says: "unknown field"},
		{name: "unknown field inside", method: "POST", path: "/sandbox", body: `{"image":{"registri":"x"}}`, status: 400, code: "invalid_request", location: "body.image.registri"},
		{name: "wrong type", method: "POST", path: "/sandbox", body: `{"timeout_s":"x"}`, status: 400, code: "invalid_request", location: "body.timeout_s", says: "integer"},
		{name: "negative", method: "POST", path: "/sandbox", body: `{"timeout_s":-1}`, status: 400, code: "invalid_request", location: "body.timeout_s"},
		{name: "out of range", method: "POST", path: "/sandbox", body: `{"timeout_s":99999999999999999999}`, status: 400, code: "invalid_request", location: "body", says: "timeout_s"},
		{name: "unknown image", method: "POST", path: "/sandbox", body: `{"image":{"registry":"no/such:image"}}`, status: 400, code: "image_not_found", location: "body.image.registry", says: "no/such:image"},
		{name: "wrong content type", method: "POST", path: "/sandbox", body: `name=x`, header: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 415, code: "unsupported_media_type", says: "application/json"},
		{name: "wrong query", method: "POST", path: "/sandbox?wait=perhaps", status: 400, code: "invalid_request", location: "query.wait"},
		{name: "unknown query", method: "POST", path: "/sandbox?await=true", status: 400, code: "invalid_request", location: "query.await"},
		{name: "body too large", method: "POST", path: "/sandbox", body: `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, status: 413, code: "too_large"},
		{name: "prompt too large", method: "POST", path: live + "/claude", body: `{"prompt":"` + strings.Repeat("x", 13<<20) + `"}`, status: 413, code: "too_large"},
		{name: "unknown sandbox", method: "GET", path: "/sandbox/sbx_01J00000000000000000000009", status: 404, code: "not_found"},
		{name: "no ID at all", method: "GET", path: "/sandbox/%20", status: 404, code: "not_found"},
		{name: "terminate the unknown", method: "DELETE", path: "/sandbox/nope", status: 404, code: "not_found"},
		{name: "second terminate", method: "DELETE", path: dead, status: 409, code: "already_terminated"},
		{name: "bad cursor", method: "GET", path: "/sandbox?cursor=nonsense", status: 400, code: "invalid_request", location: "query.cursor"},
		{name: "bad limit", method: "GET", path: "/sandbox?limit=0", status: 400, code: "invalid_request", location: "query.limit"},
		{name: "bad state", method: "GET", path: "/sandbox?state=asleep", status: 400, code: "invalid_request", location: "query.state", says: "asleep"},
		{name: "unknown filter", method: "GET", path: "/sandbox?lable.a=b", status: 400, code: "invalid_request", location: "query.lable.a"},
		{name: "two values of a label", method: "GET", path: "/sandbox?label.a=b&label.a=c", status: 400, code: "invalid_request", location: "query.label.a"},
		{name: "empty prompt", method: "POST", path: live + "/claude", body: `{"prompt":""}`, status: 400, code: "invalid_request", location: "body.prompt"},
		{name: "blank prompt", method: "POST", path: live + "/claude", body: `{"prompt":" "}`, status: 400, code: "invalid_request", location: "body.prompt", says: "is empty"},
		{name: "no prompt", method: "POST", path: live + "/claude", body: `{}`, status: 400, code: "invalid_request", location: "body.prompt", says: "is required"},
		{name: "no body", method: "POST", path: live + "/claude", status: 400, code: "invalid_request", says: "body is required"},
		{name: "bad permission mode", method: "POST", path: live + "/claude", body: `{"prompt":"x","permission_mode":"all"}`, status: 400, code: "invalid_request", location: "body.permission_mode"},
		{name: "two faults", method: "POST", path: live + "/claude", body: `{"promt":"x"}`, status: 400, code: "invalid_request", says: "2 fields"},
		{name: "prompt to a terminated sandbox", method: "POST", path: dead + "/claude", body: `{"prompt":"x"}`, status: 409, code: "sandbox_not_running"},
		{name: "exec in a terminated sandbox", method: "POST", path: dead + "/exec", body: `{"argv":["id"]}`, status: 409, code: "sandbox_not_running"},
		{name: "no program", method: "POST", path: live + "/exec?wait=true", body: `{"argv":["nope"]}`, status: 400, code: "no_such_program", location: "body.argv"},
		{name: "empty argv", method: "POST", path: live + "/exec", body: `{"argv":[]}`, status: 400, code: "invalid_request", location: "body.argv"},
		{name: "argv is null", method: "POST", path: live + "/exec", body: `{"argv":null}`, status: 400, code: "invalid_request", location: "body.argv"},
		{name: "bad user", method: "POST", path: live + "/exec", body: `{"argv":["id"],"user":"` + strings.Repeat("x", 201) + `"}`, status: 400, code: "invalid_request", location: "body.user"},
		{name: "unknown run", method: "GET", path: live + "/run/run_2", status: 404, code: "not_found"},
		{name: "run of another sandbox", method: "GET", path: dead + "/run/run_1", status: 404, code: "not_found"},
		{name: "bad Last-Event-ID", method: "GET", path: live + "/run/run_1/events", header: []string{"Last-Event-ID", "x"}, status: 400, code: "invalid_request", location: "header.Last-Event-ID"},
		{name: "negative Last-Event-ID", method: "GET", path: "/event", header: []string{"Last-Event-ID", "-1"}, status: 400, code: "invalid_request", location: "header.Last-Event-ID"},
		{name: "bad after", method: "GET", path: "/event?after=x", status: 400, code: "invalid_request", location: "query.after"},
		{name: "events of an unknown sandbox", method: "GET", path: "/event?sandbox=nope", status: 404, code: "not_found"},
		{name: "unknown session", method: "GET", path: "/session/ses_1", status: 404, code: "not_found"},
		{name: "events of an unknown session", method: "GET", path: "/session/ses_1/events", header: []string{"Accept", "text/event-stream"}, status: 404, code: "not_found"},
		{name: "interrupt of an unknown session", method: "POST", path: "/session/ses_1/interrupt", status: 404, code: "not_found"},
		{name: "wrong method", method: "PUT", path: "/sandbox", status: 405, code: "method_not_allowed", says: "GET, HEAD, POST"},
		{name: "unknown route", method: "POST", path: live + "/dance", status: 404, code: "no_such_route"},
		{name: "unknown route elsewhere", method: "POST", path: "/dance", status: 404, code: "no_such_route"},
		{name: "nothing to see", method: "GET", path: "/dance.js", status: 404, code: "no_such_route"},
		{name: "sign in with a wrong key", method: "POST", path: "/signin", body: `{"key":"slk_WRONG"}`, status: 401, code: "invalid_key", location: "body.key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			res, body := r.ask(t, tt.method, tt.path, tt.body, tt.header...)
			var p api.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("%d %q: %v", res.StatusCode, body, err)
			}
			if res.StatusCode != tt.status || p.Status != tt.status || p.Code != tt.code {
				t.Fatalf("got %d, %+v; want %d %s", res.StatusCode, p, tt.status, tt.code)
			}
			if ct := res.Header.Get("Content-Type"); ct != api.ContentTypeProblem {
				t.Errorf("content type %q", ct)
			}
			if p.Title == "" || p.Detail == "" || p.RequestID == "" || p.RequestID != res.Header.Get(api.HeaderRequestID) {
				t.Errorf("incomplete: %+v", p)
			}
			if tt.location != "" && (len(p.Errors) == 0 || p.Errors[0].Location != tt.location) {
				t.Errorf("errors %+v, want one at %s", p.Errors, tt.location)
			}
			if !strings.Contains(p.Detail, tt.says) {
				t.Errorf("detail %q doesn't say %q", p.Detail, tt.says)
			}
			if strings.Contains(body, r.Key) {
				t.Error("the key is in the answer")
			}
		})
	}
}

func TestNoBodyMeansDefaults(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	*r.Manager = *strictManager(r.Account)
	for _, body := range []string{"", "{}"} {
		res, answer := r.ask(t, "POST", "/sandbox", body)
		var sb api.Sandbox
		if err := json.Unmarshal([]byte(answer), &sb); err != nil || res.StatusCode != 200 || sb.State != "running" {
			t.Errorf("body %q: %d %s", body, res.StatusCode, answer)
		}
	}
	sb, err := r.CreateNoWait(t.Context(), api.CreateSandbox{})
	if err != nil || sb.State != "creating" {
		t.Errorf("without waiting: %+v, %v", sb, err)
	}
	sb, err = r.Terminate(t.Context(), sb.ID)
	if err != nil || sb.State != "terminated" {
		t.Errorf("terminate: %+v, %v", sb, err)
	}
}

func TestInternalErrorsTellTheLogOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	res, body := r.ask(t, "GET", "/sandbox", "", api.HeaderRequestID, "my-request")
	if res.StatusCode != 500 || strings.Contains(body, "hunter2") || !strings.Contains(body, `"my-request"`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	r.Stop()
	if log := r.Log.String(); !strings.Contains(log, "hunter2") || !strings.Contains(log, "my-request") || !strings.Contains(log, "level=ERROR") {
		t.Errorf("log: %s", log)
	}
}

func TestPanicsAreAnswered(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *server.Config) {})
	r.Manager.get = func(string, sandbox.ID) (sandbox.Sandbox, error) { panic("oh no") }
	res, body := r.ask(t, "GET", "/sandbox/x", "")
	if res.StatusCode != 500 || !strings.Contains(body, "internal_error") || strings.Contains(body, "oh no") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	r.Stop()
	if log := r.Log.String(); !strings.Contains(log, "oh no") || !strings.Contains(log, "stack=") {
		t.Errorf("log: %s", log)
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for given, kept := range map[string]bool{"abc-1.2:3": true, "a b": false, strings.Repeat("x", 101): false, `"><script>`: false} {
		res, _ := r.ask(t, "GET", "/healthz", "", api.HeaderRequestID, given)
		if got := res.Header.Get(api.HeaderRequestID); got == "" || (got == given) != kept {
			t.Errorf("gave %q, got %q", given, got)
		}
	}
}

func TestOtherAccountsSeeNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	*r.Manager = *strictManager(r.Account)
	_, other := servertest.AddAccount(t, r.Store, "second")
	const id = "/sandbox/sbx_01J00000000000000000000001"
	mine, body := r.ask(t, "GET", id, "")
	if mine.StatusCode != 200 {
		t.Fatalf("%d %s", mine.StatusCode, body)
	}
	theirs, body := r.ask(t, "GET", id, "", "Authorization", "Bearer "+other)
	if theirs.StatusCode != 404 || strings.Contains(body, r.Account) {
		t.Errorf("%d %s", theirs.StatusCode, body)
	}
}
