package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/gateway"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	realKey = "sk-ant-the-real-key-0123456789"
	box     = sandbox.ID("sbx_one")
)

var secret = []byte("0123456789abcdef0123456789abcdef")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// through returns a server that serves the gateway of box in front of upstream, and what the gateway logs.
func through(t *testing.T, upstream http.Handler, change func(*gateway.Config)) (*httptest.Server, *gateway.Gateway, *buffer) {
	t.Helper()
	var log buffer
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	cfg := gateway.Config{Key: realKey, Secret: secret, Transport: transport,
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if upstream != nil {
		up := httptest.NewServer(upstream)
		t.Cleanup(up.Close)
		u, err := url.Parse(up.URL + "/prefix")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Upstream = u
	}
	if change != nil {
		change(&cfg)
	}
	g, err := gateway.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(g.Handler(box))
	t.Cleanup(srv.Close)
	return srv, g, &log
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func do(t *testing.T, srv *httptest.Server, method, path, body string, header map[string]string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(data)
}

type apiError struct {
	Type  string
	Error struct{ Type, Message string }
}

func decodeError(t *testing.T, body string) apiError {
	t.Helper()
	var e apiError
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Type != "error" || e.Error.Message == "" {
		t.Fatalf("not an error of the Messages API: %q (%v)", body, err)
	}
	return e
}

func TestTokensAreChecked(t *testing.T) {
	t.Parallel()
	srv, g, _ := through(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }), nil)
	mine, other := g.Token(box), g.Token("sbx_two")
	if mine == other || !strings.HasPrefix(mine, gateway.TokenPrefix) || mine != g.Env(box)["ANTHROPIC_API_KEY"] {
		t.Fatalf("tokens %q and %q", mine, other)
	}
	if got := g.Env(box)["ANTHROPIC_BASE_URL"]; got != "http://127.0.0.1:39100" {
		t.Errorf("base URL %q", got)
	}
	for _, tt := range []struct {
		name   string
		header map[string]string
		want   int
	}{
		{"none", nil, 401},
		{"key", map[string]string{"X-Api-Key": mine}, 200},
		{"bearer", map[string]string{"Authorization": "Bearer " + mine}, 200},
		{"bearer beside a wrong key", map[string]string{"Authorization": "Bearer " + mine, "X-Api-Key": "x"}, 200},
		{"another sandbox's", map[string]string{"X-Api-Key": other}, 401},
		{"the real key", map[string]string{"X-Api-Key": realKey}, 401},
		{"half", map[string]string{"X-Api-Key": mine[:20]}, 401},
		{"basic", map[string]string{"Authorization": "Basic " + mine}, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, body := do(t, srv, "POST", "/v1/messages", "{}", tt.header)
			if res.StatusCode != tt.want {
				t.Fatalf("status %d, want %d: %s", res.StatusCode, tt.want, body)
			}
			if tt.want == 401 {
				if e := decodeError(t, body); e.Error.Type != "authentication_error" || res.Header.Get("X-Should-Retry") != "false" {
					t.Errorf("error %+v, header %v", e, res.Header)
				}
			}
		})
	}
}

func TestOnlyTheModelAPIIsReached(t *testing.T) {
	t.Parallel()
	var seen []string
	srv, g, _ := through(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Method+" "+r.URL.RequestURI())
	}), nil)
	key := map[string]string{"X-Api-Key": g.Token(box)}
	for _, tt := range []struct {
		method, path string
		want         int
		upstream     string
	}{
		{"POST", "/v1/messages?beta=true", 200, "POST /prefix/v1/messages?beta=true"},
		{"POST", "/v1/messages/count_tokens", 200, "POST /prefix/v1/messages/count_tokens"},
		{"GET", "/v1/models", 200, "GET /prefix/v1/models"},
		{"GET", "/v1/models/claude-x", 200, "GET /prefix/v1/models/claude-x"},
		{"HEAD", "/", 200, ""},
		{"GET", "/", 200, ""},
		{"POST", "/", 404, ""},
		{"GET", "/v1/messages", 405, ""},
		{"DELETE", "/v1/models/claude-x", 405, ""},
		{"POST", "/v1/files", 404, ""},
		{"GET", "/v1/models/../../admin", 404, ""},
		{"GET", "/v1/models/%2e%2e%2fadmin", 404, ""},
		{"GET", "/v1/organizations/api_keys", 404, ""},
	} {
		seen = nil
		res, _ := do(t, srv, tt.method, tt.path, "", key)
		got := strings.Join(seen, ",")
		if res.StatusCode != tt.want || got != tt.upstream {
			t.Errorf("%s %s: status %d, want %d; upstream saw %q, want %q", tt.method, tt.path, res.StatusCode, tt.want, got, tt.upstream)
		}
	}
}

func TestTheKeyIsSwappedAndNeverShown(t *testing.T) {
	t.Parallel()
	var got http.Header
	srv, g, log := through(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Anthropic-Organization-Id", "org")
		w.Header().Set("Request-Id", "req_1")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"you sent": %q}`, r.Header.Get("X-Api-Key"))
	}), nil)
	res, body := do(t, srv, "POST", "/v1/messages", "{}", map[string]string{
		"Authorization": "Bearer " + g.Token(box), "Cookie": "c=d", "Proxy-Authorization": "Basic x", "Te": "trailers",
		"X-Forwarded-For": "10.0.0.1", "Anthropic-Version": "2023-06-01", "X-Hop": "1", "Connection": "X-Hop"})
	if got.Get("X-Api-Key") != realKey {
		t.Errorf("upstream got the key %q", got.Get("X-Api-Key"))
	}
	for _, h := range []string{"Authorization", "Cookie", "Proxy-Authorization", "X-Hop", "X-Forwarded-For"} {
		if got.Get(h) != "" {
			t.Errorf("upstream got %s: %q", h, got.Get(h))
		}
	}
	if got.Get("Anthropic-Version") != "2023-06-01" || got.Get("Accept-Encoding") != "identity" {
		t.Errorf("headers %v", got)
	}
	if res.StatusCode != 400 || strings.Contains(body, realKey) || !strings.Contains(body, "[key]") {
		t.Errorf("status %d, body %s", res.StatusCode, body)
	}
	if res.Header.Get("Set-Cookie") != "" || res.Header.Get("Anthropic-Organization-Id") != "" || res.Header.Get("Request-Id") != "req_1" {
		t.Errorf("answer's header %v", res.Header)
	}
	srv.Close() // waits for the handler, which logs last
	if text := log.String(); !strings.Contains(text, "sbx_one") || strings.Contains(text, realKey) || strings.Contains(text, g.Token(box)) {
		t.Errorf("log: %s", text)
	}
}

func TestStreamsPassAtOnce(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	srv, g, _ := through(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			select { // each piece must arrive before the next is written
			case <-next:
			case <-r.Context().Done():
			}
		}
	}), nil)
	req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/v1/messages", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", g.Token(box))
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	n := 0
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if lines.Text() == fmt.Sprintf("data: %d", n) {
			n++
			next <- struct{}{}
		}
	}
	if n != 3 {
		t.Errorf("%d pieces arrived", n)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type slowError struct{}

func (slowError) Error() string   { return "too slow" }
func (slowError) Timeout() bool   { return true }
func (slowError) Temporary() bool { return true }

type brokenBody struct{}

func (brokenBody) Read([]byte) (int, error) { return 0, errors.New("broken off") }
func (brokenBody) Close() error             { return nil }

func TestUpstreamFailures(t *testing.T) {
	t.Parallel()
	answer := func(status int, body io.ReadCloser) roundTrip {
		return func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: http.Header{"Location": {"https://elsewhere.example"}}, Body: body, Request: r}, nil
		}
	}
	for _, tt := range []struct {
		name   string
		trip   roundTrip
		status int
		kind   string
		retry  string
	}{
		{"refused", func(*http.Request) (*http.Response, error) { return nil, errors.New("dial: " + realKey) }, 502, "api_error", ""},
		{"net timeout", func(*http.Request) (*http.Response, error) { return nil, slowError{} }, 504, "timeout_error", ""},
		{"deadline", func(*http.Request) (*http.Response, error) { return nil, context.DeadlineExceeded }, 504, "timeout_error", ""},
		{"redirect", answer(302, http.NoBody), 502, "api_error", "false"},
		{"broken error", answer(500, brokenBody{}), 502, "api_error", ""},
		{"too large", func(r *http.Request) (*http.Response, error) {
			_, err := io.Copy(io.Discard, r.Body)
			return nil, err
		}, 413, "request_too_large", "false"},
		{"key refused", answer(401, io.NopCloser(strings.NewReader(`{"type":"error","error":{"type":"authentication_error","message":"no"}}`))),
			401, "authentication_error", "false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g, err := gateway.New(gateway.Config{Key: realKey, Secret: secret, Transport: tt.trip})
			if err != nil {
				t.Fatal(err)
			}
			var body io.Reader = strings.NewReader("{}")
			if tt.name == "too large" {
				body = io.LimitReader(zeros{}, 65<<20)
			}
			req := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/messages", body)
			req.Header.Set("X-Api-Key", g.Token(box))
			rec := httptest.NewRecorder()
			g.Handler(box).ServeHTTP(rec, req)
			e := decodeError(t, rec.Body.String())
			if rec.Code != tt.status || e.Error.Type != tt.kind || rec.Header().Get("X-Should-Retry") != tt.retry {
				t.Errorf("status %d %+v, retry %q", rec.Code, e, rec.Header().Get("X-Should-Retry"))
			}
			if strings.Contains(rec.Body.String(), realKey) {
				t.Error("the key is in the answer")
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAClientThatLeavesGetsNoAnswer(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	g, err := gateway.New(gateway.Config{Key: realKey, Secret: secret, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		cancel()
		return nil, r.Context().Err()
	})})
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequestWithContext(ctx, "POST", "/v1/messages", strings.NewReader("{}"))
	req.Header.Set("X-Api-Key", g.Token(box))
	rec := httptest.NewRecorder()
	g.Handler(box).ServeHTTP(rec, req)
	if rec.Body.Len() != 0 {
		t.Errorf("answered %q", rec.Body.String())
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		cfg  gateway.Config
		ok   bool
	}{
		{"short secret", gateway.Config{Key: "k", Secret: []byte("short")}, false},
		{"odd upstream", gateway.Config{Key: "k", Secret: secret, Upstream: &url.URL{Scheme: "ftp", Host: "x"}}, false},
		{"no host", gateway.Config{Key: "k", Secret: secret, Upstream: &url.URL{Scheme: "https"}}, false},
		{"default", gateway.Config{Key: "k", Secret: secret}, true},
	} {
		if _, err := gateway.New(tt.cfg); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestWithoutKeyOrDemo(t *testing.T) {
	t.Parallel()
	srv, g, _ := through(t, nil, func(c *gateway.Config) { c.Key = "" })
	res, body := do(t, srv, "POST", "/v1/messages", "{}", map[string]string{"X-Api-Key": g.Token(box)})
	if e := decodeError(t, body); res.StatusCode != 401 || !strings.Contains(e.Error.Message, "ANTHROPIC_API_KEY") {
		t.Errorf("status %d, %s", res.StatusCode, body)
	}
}

func TestDemoInTheUpstreamsStead(t *testing.T) {
	t.Parallel()
	srv, g, _ := through(t, nil, func(c *gateway.Config) { c.Demo = gateway.NewDemo() })
	if res, _ := do(t, srv, "GET", "/v1/models", "", nil); res.StatusCode != 401 {
		t.Errorf("without a token: %d", res.StatusCode)
	}
	res, body := do(t, srv, "GET", "/v1/models", "", map[string]string{"X-Api-Key": g.Token(box)})
	if res.StatusCode != 200 || !strings.Contains(body, gateway.DemoModel) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}
