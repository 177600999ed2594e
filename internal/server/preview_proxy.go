package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	previewDial     = 30 * time.Second // to get a connection into the sandbox
	previewHeader   = 2 * time.Minute  // default for Config.PreviewTimeout
	previewIdle     = 30 * time.Second // for which a connection without a request is kept
	maxIdlePreviews = 8                // connections kept for each port
	maxPreviews     = 256              // requests under way for each sandbox
	previewBuffer   = 32 << 10
)

// previews serves what runs in sandboxes, each port on an origin of its own. Nothing of the API and nothing of the UI is there.
type previews struct {
	s         *Server
	host      previewHost
	signer    signer
	proxy     *httputil.ReverseProxy
	transport *http.Transport
	buffers   sync.Pool
	streams   sync.WaitGroup // handlers whose connection http.Server doesn't know any more

	mu   sync.Mutex
	busy map[sandbox.ID]int // requests under way
}

func newPreviews(s *Server) (*previews, error) {
	host, err := parsePreviewHost(s.cfg.PreviewHost)
	if err != nil {
		return nil, err
	}
	if len(s.cfg.PreviewSecret) < 16 {
		return nil, errors.New("server: previews need a secret")
	}
	p := &previews{s: s, host: host, signer: signer{s.cfg.PreviewSecret}, busy: map[sandbox.ID]int{}}
	p.buffers.New = func() any { return new([previewBuffer]byte) }
	p.transport = &http.Transport{
		DialContext:            p.dial,
		DisableCompression:     true, // the answer is the sandbox's, byte for byte
		MaxIdleConnsPerHost:    maxIdlePreviews,
		MaxIdleConns:           1024,
		IdleConnTimeout:        previewIdle,
		ResponseHeaderTimeout:  s.cfg.PreviewTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         previewBuffer,
		WriteBufferSize:        previewBuffer,
		Protocols:              new(http.Protocols),
	}
	p.transport.Protocols.SetHTTP1(true)
	p.proxy = &httputil.ReverseProxy{
		Rewrite: p.rewrite, Transport: p.transport, FlushInterval: -1, BufferPool: p,
		ModifyResponse: p.answered, ErrorHandler: p.failed,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // broken peers, mostly
	}
	return p, nil
}

// Get and Put implement httputil.BufferPool.
func (p *previews) Get() []byte { return p.buffers.Get().(*[previewBuffer]byte)[:] }

// Put takes back what Get gave.
func (p *previews) Put(b []byte) { p.buffers.Put((*[previewBuffer]byte)(b)) }

// dial connects to the port that the label at the front of addr names.
func (p *previews) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	label, _, _ := strings.Cut(addr, ":")
	t, ok := parseLabel(label)
	if !ok {
		return nil, fmt.Errorf("a preview of %q", addr)
	}
	ctx, cancel := context.WithTimeout(ctx, previewDial)
	defer cancel()
	g, err := p.s.cfg.Manager.Guest(ctx, "", t.id)
	if err != nil {
		return nil, err
	}
	return g.DialPort(ctx, t.port)
}

// visit is one request for a preview.
type visit struct {
	target
	c      *call
	query  string // without our token
	body   *visitBody
	cancel context.CancelCauseFunc
	stream bool // it has no end of its own
}

type visitKey struct{}

func visitOf(ctx context.Context) *visit { return ctx.Value(visitKey{}).(*visit) }

// serve answers a request for a host below ours.
func (p *previews) serve(c *call, label string) {
	c.route = "preview"
	t, ok := parseLabel(label)
	if !ok {
		writePreviewProblem(c, "There is no such preview", refuse(http.StatusNotFound, "no_such_preview",
			"A preview's address is made by POST /sandbox/{id}/preview. This is none."))
		return
	}
	if c.r.Method == http.MethodConnect || c.r.Method == http.MethodTrace {
		writePreviewProblem(c, "Not possible here", refuse(http.StatusMethodNotAllowed, "method_not_allowed", "%s is not possible in a preview.", c.r.Method))
		return
	}
	v := &visit{target: t, c: c}
	query, token, inQuery := splitQuery(c.r.URL.RawQuery)
	v.query = query
	expires, shown, err := p.authorize(v, token)
	if err != nil {
		p.refuseToken(c, err)
		return
	}
	if inQuery && shown != byHeader && redirects(c.r) {
		p.enter(v, token, expires, shown == byQuery)
		return
	}
	if shown == byCookie && !sameSandbox(c.r, t, p.host) {
		writePreviewProblem(c, "Refused", refuse(http.StatusForbidden, "cross_origin", "A page of another origin may not do this in your name."))
		return
	}
	if !p.alive(v) {
		return
	}
	if !p.begin(t.id) {
		over := refuse(http.StatusServiceUnavailable, "too_many_requests", "More than %d requests to this sandbox are under way. Try again when some have ended.", maxPreviews)
		over.Retryable = true
		writePreviewProblem(c, "The sandbox is busy", over)
		return
	}
	defer p.end(t.id)
	p.forward(v, expires)
}

// How a token was shown.
const (
	byHeader = iota + 1
	byQuery
	byCookie
)

// authorize finds a token that is good: in the header, the query or a cookie. A header decides alone.
func (p *previews) authorize(v *visit, inQuery string) (expires time.Time, shown int, err error) {
	now := time.Now()
	if token := v.c.r.Header.Get(api.HeaderPreviewToken); token != "" {
		expires, err = p.signer.check(v.target, token, now)
		return expires, byHeader, err
	}
	if expires, err = p.signer.check(v.target, inQuery, now); err == nil {
		return expires, byQuery, nil
	}
	for _, token := range shownTokens(v.c.r.Header) {
		later, errCookie := p.signer.check(v.target, token, now)
		if errCookie == nil {
			return later, byCookie, nil
		}
		if errors.Is(err, errNoToken) || errors.Is(errCookie, errExpiredToken) {
			err = errCookie
		}
	}
	return time.Time{}, 0, err
}

// refuseToken answers whoever may not see a preview.
func (p *previews) refuseToken(c *call, err error) {
	const again = "Open the preview from Sandlot again, or make a new address with POST /sandbox/{id}/preview."
	switch {
	case errors.Is(err, errExpiredToken):
		writePreviewProblem(c, "This preview has expired", refuse(http.StatusUnauthorized, "preview_expired", "%s", again))
	case errors.Is(err, errForgedToken):
		writePreviewProblem(c, "This address is not good", refuse(http.StatusForbidden, "preview_forbidden", "The token is not for this preview. %s", again))
	default:
		writePreviewProblem(c, "This preview needs its whole address", refuse(http.StatusUnauthorized, "preview_token_missing",
			"There is neither a token in the address, nor a cookie, nor a %s header. %s", api.HeaderPreviewToken, again))
	}
}

// redirects reports whether r comes from something that follows redirects and keeps cookies, as a browser does.
func redirects(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Upgrade") == ""
}

// enter turns a token in the address into a cookie, so that it stays neither in the address nor in what the page sends on.
func (p *previews) enter(v *visit, token string, expires time.Time, good bool) {
	h := v.c.w.Header()
	if good {
		cookie := &http.Cookie{
			Name: previewCookie, Value: token, Path: "/", Expires: expires, HttpOnly: true,
			SameSite: http.SameSiteLaxMode, Secure: isSecure(v.c.r),
			MaxAge: max(1, int(time.Until(expires)/time.Second)),
		}
		if cookie.Secure {
			cookie.SameSite = http.SameSiteNoneMode // so that a page may show the preview in a frame
		}
		http.SetCookie(v.c.w, cookie)
	}
	to := v.c.r.URL.EscapedPath()
	if !strings.HasPrefix(to, "/") {
		to = "/" + to
	}
	if strings.HasPrefix(to, "//") {
		to = "/." + to // or what follows would be taken for a host
	}
	if v.query != "" {
		to += "?" + v.query
	}
	h.Set("Location", to)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	v.c.w.WriteHeader(http.StatusFound)
}

// sameSandbox reports whether a request that shows a cookie may be made in its owner's name: by a page of the same sandbox, or by
// going there. Pages of other sandboxes may be on the same site as far as browsers are concerned.
func sameSandbox(r *http.Request, t target, host previewHost) bool {
	site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
	if site == "same-origin" || site == "none" || site == "" && origin == "" {
		return true
	}
	if u, err := url.Parse(origin); origin != "" && err == nil {
		if label, ok := host.below(u.Host); ok {
			if from, ok := parseLabel(label); ok && from.id == t.id {
				return true
			}
		}
	}
	return r.Header.Get("Sec-Fetch-Mode") == "navigate" && (r.Method == http.MethodGet || r.Method == http.MethodHead)
}

// alive answers for a sandbox that can't, and reports whether it can.
func (p *previews) alive(v *visit) bool {
	sb, err := p.s.cfg.Manager.Sandbox(v.c.r.Context(), "", v.id)
	switch {
	case errors.Is(err, sandbox.ErrNotFound), err == nil && (sb.State == sandbox.Stopping || sb.State.Terminal()):
		writePreviewProblem(v.c, "The sandbox has ended", refuse(http.StatusGone, "sandbox_ended", "Its previews have ended with it. Its volume is kept."))
	case err != nil:
		p.fail(v, err)
	case sb.State != sandbox.Running:
		not := refuse(http.StatusServiceUnavailable, "sandbox_not_running", "The sandbox is %s.", sb.State)
		not.Retryable = true
		writePreviewProblem(v.c, "The sandbox doesn't run", not)
	default:
		return true
	}
	return false
}

// begin counts a request to a sandbox, unless there are too many.
func (p *previews) begin(id sandbox.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[id] >= maxPreviews {
		return false
	}
	p.busy[id]++
	return true
}

func (p *previews) end(id sandbox.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[id]--; p.busy[id] == 0 {
		delete(p.busy, id)
	}
}

// forward hands the request to the sandbox. It ends when the token expires, whatever it is.
func (p *previews) forward(v *visit, expires time.Time) {
	ctx, done := context.WithDeadlineCause(v.c.r.Context(), expires, errExpiredToken)
	defer done()
	ctx, v.cancel = context.WithCancelCause(context.WithValue(ctx, visitKey{}, v))
	defer v.cancel(nil)
	r := v.c.r.WithContext(ctx)
	v.body = &visitBody{ReadCloser: r.Body, c: v.c, timeout: p.s.cfg.ReadTimeout}
	if r.Body == nil || r.Body == http.NoBody {
		v.body.patience(time.Time{})
	} else {
		r.Body = v.body
	}
	var watch sync.WaitGroup
	watch.Go(func() { // the streams of this server end when it does; what ends by itself has the time that all requests have
		select {
		case <-v.c.stop:
			p.stopStream(v)
		case <-ctx.Done():
		}
	})
	defer watch.Wait()
	defer v.cancel(nil)
	p.streams.Add(1)
	defer p.streams.Done()
	p.proxy.ServeHTTP(v.c.w, r)
}

func (p *previews) stopStream(v *visit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v.stream {
		v.cancel(errStopping)
	}
}

// rewrite makes the request that the sandbox gets.
func (p *previews) rewrite(r *httputil.ProxyRequest) {
	v := visitOf(r.In.Context())
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.RawQuery = "http", v.label(), v.query
	r.Out.URL.User = nil
	cleanRequest(r.Out.Header, func(secret string) bool {
		_, err := p.s.cfg.Store.KeyByHash(r.In.Context(), hashOf(secret))
		return !errors.Is(err, sandbox.ErrNotFound) // on doubt it is one
	})
	r.SetXForwarded()
	r.Out.Header.Set("X-Forwarded-Proto", "http")
	if isSecure(r.In) {
		r.Out.Header.Set("X-Forwarded-Proto", "https")
	}
}

// answered cleans the sandbox's answer and sees what kind it is.
func (p *previews) answered(res *http.Response) error {
	cleanResponse(res.Header)
	v := visitOf(res.Request.Context())
	upgraded := res.StatusCode == http.StatusSwitchingProtocols && v.c.r.Header.Get("Upgrade") != ""
	if !upgraded && !strings.HasPrefix(res.Header.Get("Content-Type"), api.ContentTypeEvents) {
		return nil
	}
	p.mu.Lock()
	v.stream = true
	p.mu.Unlock()
	if v.c.stopping() {
		return errStopping
	}
	if upgraded {
		v.c.w.status = res.StatusCode
	}
	return nil
}

// failed implements httputil.ReverseProxy's ErrorHandler.
func (p *previews) failed(_ http.ResponseWriter, r *http.Request, err error) {
	v := visitOf(r.Context())
	if broken := v.body.failure(); broken != nil { // which also ends the request's context
		err = refuse(http.StatusBadRequest, "incomplete_body", "The request's body did not arrive whole.").because(broken)
	} else if cause := context.Cause(r.Context()); cause != nil {
		err = cause
	}
	p.fail(v, err)
}

// fail answers with why the sandbox has not.
func (p *previews) fail(v *visit, err error) {
	if errors.Is(err, errExpiredToken) {
		p.refuseToken(v.c, err)
		return
	}
	title, bad := "The preview failed", func(status int, code, format string, args ...any) *problem {
		return refuse(status, code, format, args...).because(err)
	}
	var answer *problem
	refused, isGuest := errors.AsType[*guest.Error](err)
	_, isOurs := errors.AsType[*problem](err)
	_, isProblem := errors.AsType[*sandbox.Problem](err)
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case isGuest && refused.Code == "port_closed":
		title = fmt.Sprintf("Nothing listens on port %d yet", v.port)
		answer = bad(http.StatusBadGateway, "port_closed", "Start a program in the sandbox that listens on 127.0.0.1:%d or on all addresses.", v.port)
		answer.Retryable = true
	case isGuest && refused.Status < http.StatusInternalServerError:
		answer = bad(http.StatusBadGateway, refused.Code, "%s", sentence(refused.Detail))
		answer.Retryable = refused.Code == "port_busy"
	case isProblem, isOurs, errors.Is(err, errStopping), errors.Is(err, context.Canceled):
		answer = problemOf(err)
	case errors.Is(err, guest.ErrLost):
		title = "The sandbox doesn't answer"
		answer = bad(http.StatusServiceUnavailable, "sandbox_unreachable", "The connection to the sandbox was lost. Try again.")
		answer.Retryable = true
	case isNet && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		title = fmt.Sprintf("Port %d doesn't answer", v.port)
		answer = bad(http.StatusGatewayTimeout, "port_timeout", "What listens on port %d has begun no answer in time.", v.port)
	default:
		title = fmt.Sprintf("Port %d doesn't speak HTTP", v.port)
		answer = bad(http.StatusBadGateway, "bad_answer", "What listens on port %d broke off, or answered with something that is not HTTP.", v.port)
	}
	writePreviewProblem(v.c, title, answer)
}

// wait returns when no handler is left, after the server has stopped.
func (p *previews) wait() {
	p.streams.Wait()
	p.transport.CloseIdleConnections()
}

// visitBody reads a body for as long as its bytes keep coming, and no longer than its request: whoever sends it on may be slower.
type visitBody struct {
	io.ReadCloser
	c       *call
	timeout time.Duration

	mu     sync.Mutex
	closed bool
	err    error // why it stopped before its end
}

// patience sets how long the next bytes may take.
func (b *visitBody) patience(until time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		_ = b.c.w.control.SetReadDeadline(until) // not supported = no deadline
	}
	return !b.closed
}

// Read implements io.Reader.
func (b *visitBody) Read(buf []byte) (int, error) {
	if !b.patience(time.Now().Add(b.timeout)) {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.ReadCloser.Read(buf)
	switch {
	case errors.Is(err, io.EOF):
		b.patience(time.Time{}) // the answer may take any time
	case err != nil:
		b.mu.Lock()
		if !b.closed {
			b.err = err
		}
		b.mu.Unlock()
	}
	return n, err
}

// Close implements io.Closer.
func (b *visitBody) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	return b.ReadCloser.Close()
}

func (b *visitBody) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
