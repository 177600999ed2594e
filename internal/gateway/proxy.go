package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"time"
)

// DefaultUpstream is the model API that is used when none is named.
const DefaultUpstream = "https://api.anthropic.com"

// maxErrorBody bounds how much of an upstream's error is kept.
const maxErrorBody = 1 << 20

// newProxy returns the handler that sends requests to the real API.
func newProxy(cfg Config, log *slog.Logger) (http.Handler, error) {
	upstream := cfg.Upstream
	if upstream == nil {
		u, err := url.Parse(DefaultUpstream)
		if err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
		upstream = u
	}
	if (upstream.Scheme != "http" && upstream.Scheme != "https") || upstream.Host == "" {
		return nil, fmt.Errorf("gateway: ANTHROPIC_BASE_URL must be an http or https URL, not %q", upstream.Redacted())
	}
	transport := cfg.Transport
	if transport == nil {
		transport = newTransport()
	}
	p := &proxy{key: cfg.Key, log: log}
	return &httputil.ReverseProxy{
		Transport:      transport,
		FlushInterval:  -1, // every piece of a stream goes on at once
		Rewrite:        func(r *httputil.ProxyRequest) { p.rewrite(r, upstream) },
		ModifyResponse: p.checkResponse,
		ErrorHandler:   p.fail,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}, nil
}

func newTransport() http.RoundTripper {
	// The server clears its environment once it is up. The first call makes net/http remember the proxy variables.
	_, _ = http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: "api.anthropic.com"}})
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 10 * time.Minute, // an answer that isn't streamed comes all at once, late
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // a compressed stream would come in lumps
	}
}

// proxy holds what the hooks of the reverse proxy need.
type proxy struct {
	key string
	log *slog.Logger
}

// rewrite turns a sandbox's request into ours. The token, cookies and everything else that could authenticate goes out
// of it; hop-by-hop and forwarding headers were removed by ReverseProxy.
func (p *proxy) rewrite(r *httputil.ProxyRequest, upstream *url.URL) {
	r.SetURL(upstream)
	for _, h := range []string{"Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key"} {
		r.Out.Header.Del(h)
	}
	r.Out.Header.Set("X-Api-Key", p.key)
	r.Out.Header.Set("Accept-Encoding", "identity")
}

// errRedirect: the key must not follow a redirect, and the sandbox couldn't.
var errRedirect = errors.New("the model API answered with a redirect; check the server's ANTHROPIC_BASE_URL")

// checkResponse keeps what is only for us out of the answer.
func (p *proxy) checkResponse(res *http.Response) error {
	for _, h := range []string{"Set-Cookie", "Anthropic-Organization-Id"} {
		res.Header.Del(h)
	}
	if res.StatusCode >= 300 && res.StatusCode < 400 {
		return errRedirect
	}
	if res.StatusCode < 400 {
		return nil
	}
	if res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden {
		// A key that is refused now will be refused again; left to itself the CLI tries for minutes.
		res.Header.Set("X-Should-Retry", "false")
	}
	// Some proxies repeat the request's headers in their errors.
	body, err := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	if err != nil {
		return fmt.Errorf("read the model API's error: %w", err)
	}
	if err := res.Body.Close(); err != nil {
		return fmt.Errorf("read the model API's error: %w", err)
	}
	body = bytes.ReplaceAll(body, []byte(p.key), []byte("[key]"))
	res.Body = io.NopCloser(bytes.NewReader(body))
	res.ContentLength = int64(len(body))
	res.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// fail answers a request that got no answer from the API.
func (p *proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the sandbox gave up; nobody reads this
	}
	var tooLarge *http.MaxBytesError
	var timeout net.Error
	switch {
	case errors.As(err, &tooLarge):
		writeError(w, http.StatusRequestEntityTooLarge, "request_too_large", "the request is over 64 MiB")
	case errors.Is(err, errRedirect):
		w.Header().Set("X-Should-Retry", "false")
		writeError(w, http.StatusBadGateway, "api_error", errRedirect.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		p.log.WarnContext(r.Context(), "the model API didn't answer in time", "err", err)
		writeError(w, http.StatusGatewayTimeout, "timeout_error", "the model API didn't answer in time")
	default:
		p.log.WarnContext(r.Context(), "the model API can't be reached", "err", err)
		writeError(w, http.StatusBadGateway, "api_error",
			"the Sandlot server can't reach the model API; see its log, and check its network and ANTHROPIC_BASE_URL")
	}
}

// writeError answers in the Messages API's own form, which clients know how to show.
func writeError(w http.ResponseWriter, status int, kind, message string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Del("Content-Length")
	if status < 500 && status != http.StatusTooManyRequests {
		h.Set("X-Should-Retry", "false") // the CLI would repeat a 401 for minutes
	}
	w.WriteHeader(status)
	// The client may be gone; there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type":  "error",
		"error": map[string]string{"type": kind, "message": message},
	})
}
