// Package gateway stands between sandboxes and everything else. A sandbox holds a token that is good for that sandbox only;
// the gateway checks it, puts the real key in its place and streams the model API's answer back, so that the key never enters a
// sandbox. Without a key, the demo model can answer in the real one's stead. On the same port it is the forward proxy through
// which a sandbox reaches those public hosts that its network policy allows.
package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TokenPrefix begins every sandbox-scoped token, so that people and secret scanners tell it from a real key.
const TokenPrefix = "sk-sandlot-"

// maxBody is the largest request that is taken; the Messages API itself refuses bodies over 32 MB.
const maxBody = 64 << 20

// minSecret keeps an empty or typed-in secret from signing tokens.
const minSecret = 16

// Config says where requests go.
type Config struct {
	Upstream  *url.URL          // of the model API; a path is put before the API's own. Default: https://api.anthropic.com
	Key       string            // the real key; never shown to a sandbox, never logged
	Demo      http.Handler      // answers in the upstream's stead; nil = upstream
	Secret    []byte            // signs the tokens; at least 16 bytes
	Transport http.RoundTripper // to the upstream; nil = ours, which honours the proxy variables of the environment at New
	Log       *slog.Logger      // nil = none

	// Policy says what a sandbox may reach through the proxy. It is asked for every connection, and a connection is refused when
	// it fails. nil = no sandbox may reach anything.
	Policy     func(context.Context, sandbox.ID) (Policy, error)
	Egress     netguard.Dialer  // connects for the proxy; holds the operator's exceptions and the server's own proxy
	EgressIdle time.Duration    // ends a connection on which nothing passes; 0 = 30 min
	Record     func(Connection) // told of every connection when it has ended; nil = nobody. It must not block
}

// Gateway serves the model API and the forward proxy to sandboxes. It is safe for concurrent use.
type Gateway struct {
	secret []byte
	log    *slog.Logger
	next   http.Handler // what a request that passed the checks goes to
	egress *egress
	builds builds
}

// New returns a gateway. It makes no request.
func New(cfg Config) (*Gateway, error) {
	if len(cfg.Secret) < minSecret {
		return nil, errors.New("gateway: the token secret is too short")
	}
	g := &Gateway{secret: append([]byte(nil), cfg.Secret...), log: cfg.Log}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.builds.policy = map[sandbox.ID]Policy{}
	cfg.Policy = g.builds.or(cfg.Policy)
	g.egress = newEgress(cfg, g.log)
	switch {
	case cfg.Demo != nil:
		g.next = cfg.Demo
	case cfg.Key == "":
		g.next = http.HandlerFunc(noKey)
	default:
		next, err := newProxy(cfg, g.log)
		if err != nil {
			return nil, err
		}
		g.next = next
	}
	return g, nil
}

// Token returns the token of sandbox id. It is the same whenever it is asked for, so nothing is to be stored.
func (g *Gateway) Token(id sandbox.ID) string {
	mac := hmac.New(sha256.New, g.secret)
	mac.Write([]byte("model-token:" + string(id)))
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// noProxy are the hosts that programs reach inside the sandbox. Of an IPv6 address some want the brackets, some don't.
const noProxy = "localhost,127.0.0.1,::1,[::1],0.0.0.0"

// Env returns the variables by which programs in sandbox id find the gateway. Those of the proxy are there whatever the network policy
// is: a process keeps its environment, while the policy may change, and a proxy that says why it refuses is better than silence.
func (g *Gateway) Env(id sandbox.ID) map[string]string {
	const base = "http://" + guest.Gateway
	return map[string]string{
		"ANTHROPIC_BASE_URL": base,
		"ANTHROPIC_API_KEY":  g.Token(id),
		"HTTP_PROXY":         base,
		"HTTPS_PROXY":        base,
		"NO_PROXY":           noProxy,
		"http_proxy":         base, // curl reads only this one, others only that
		"https_proxy":        base,
		"no_proxy":           noProxy,
		"NODE_USE_ENV_PROXY": "1", // Node's own fetch and http look at the others only if told to
	}
}

// Handler serves the model API and the proxy to sandbox id, and to nobody else: a request of the API must carry that sandbox's token,
// and to the proxy the policy of that sandbox is applied.
func (g *Gateway) Handler(id sandbox.ID) http.Handler {
	token := []byte(g.Token(id))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isProxyRequest(r) {
			g.egress.serve(w, r, id, string(token))
			return
		}
		defer unblock(r.Context(), http.NewResponseController(w))()
		start := time.Now()
		rec := &recorder{ResponseWriter: w}
		g.serve(rec, r, token)
		g.log.DebugContext(r.Context(), "model request", "sandbox", id, "method", r.Method, "path", r.URL.Path,
			"status", rec.status, "took", time.Since(start).Round(time.Millisecond))
	})
}

func (g *Gateway) serve(w http.ResponseWriter, r *http.Request, token []byte) {
	// The CLI opens with an unauthenticated HEAD of the root, to warm the connection up. It needs no upstream.
	if r.URL.Path == "/" && (r.Method == http.MethodHead || r.Method == http.MethodGet) {
		w.WriteHeader(http.StatusOK)
		return
	}
	if !authorized(r, token) {
		writeError(w, http.StatusUnauthorized, "authentication_error",
			"this token is not the one of this sandbox; use the sandbox's own ANTHROPIC_API_KEY")
		return
	}
	methods, ok := allowed(r.URL)
	if !ok {
		writeError(w, http.StatusNotFound, "not_found_error", "Sandlot's gateway passes on messages, token counts and models only")
		return
	}
	if !strings.Contains(methods, r.Method) {
		w.Header().Set("Allow", methods)
		writeError(w, http.StatusMethodNotAllowed, "invalid_request_error", "this path takes "+methods)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	g.next.ServeHTTP(w, r)
}

// allowed returns the methods that u's path takes; false for a path that isn't passed on.
func allowed(u *url.URL) (methods string, ok bool) {
	if u.RawPath != "" { // an escaped slash or the like: no path of ours needs one
		return "", false
	}
	switch {
	case u.Path == "/v1/messages", u.Path == "/v1/messages/count_tokens":
		return "POST", true
	case u.Path == "/v1/models":
		return "GET", true
	case strings.HasPrefix(u.Path, "/v1/models/"):
		name := strings.TrimPrefix(u.Path, "/v1/models/")
		return "GET", name != "" && !strings.ContainsAny(name, "/\\") && name != "." && name != ".."
	}
	return "", false
}

// authorized compares in constant time. Both header forms are looked at, since clients differ in which they send.
func authorized(r *http.Request, token []byte) bool {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	byKey := subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Api-Key")), token)
	byBearer := subtle.ConstantTimeCompare([]byte(bearer), token)
	return byKey|byBearer == 1
}

func noKey(w http.ResponseWriter, _ *http.Request) {
	writeError(w, http.StatusUnauthorized, "authentication_error", "this Sandlot server has no key for the model API: "+
		"set ANTHROPIC_API_KEY in the server's environment and start it again, or start it with --demo-model to try it without")
}

// recorder remembers the status for the log.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
