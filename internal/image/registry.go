package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The bounds of trying again. A registry that asks us to wait for longer than a caller would is told of at once.
const (
	maxTries     = 4
	maxWait      = 30 * time.Second
	maxRedirects = 10
)

var acceptManifests = strings.Join([]string{
	string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
	string(types.DockerManifestSchema1Signed), string(types.DockerManifestSchema1),
}, ", ")

// session is one caller's signed-in way to one repository. The handshake is the library's, which gives credentials to the registry and
// its token server only, never to where a redirect leads; requests are made here, for their bounds, retries and ranges.
type session struct {
	repo    name.Repository
	signed  bool // credentials are sent
	client  *http.Client
	guard   *guard
	backoff time.Duration
}

// connect signs in at a registry.
func (s *Store) connect(ctx context.Context, repo name.Repository, auth Auth) (*session, error) {
	g := &guard{base: s.transport, stall: s.cfg.Stall}
	c := &session{repo: repo, guard: g, backoff: s.cfg.Backoff}
	who, err := auth.authenticator(repo, g)
	if err != nil {
		return nil, err
	}
	c.signed = who != authn.Anonymous
	err = c.try(ctx, func() error {
		rt, err := transport.NewWithContext(ctx, repo.Registry, who, g, []string{repo.Scope(transport.PullScope)})
		if err != nil {
			return err
		}
		c.client = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
		return nil
	})
	if err != nil {
		return nil, c.explain(err, repo.RepositoryStr())
	}
	return c, nil
}

func checkRedirect(_ *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("%w: too many", errRedirect)
	}
	return nil
}

func (c *session) host() string { return c.repo.RegistryStr() }

func (c *session) explain(err error, what string) error {
	return explain(err, hostName(c.repo.Registry), what, c.signed)
}

// try does something until it succeeds, can't, or was tried often enough. The error it returns is safe to log.
func (c *session) try(ctx context.Context, do func() error) error {
	for n := 1; ; n++ {
		c.guard.wait.Store(0)
		err := safe(do(), time.Duration(c.guard.wait.Load()))
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !transient(err) || n == maxTries {
			return err
		}
		if !pause(ctx, c.delay(n, err)) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
	}
}

func (c *session) delay(n int, err error) time.Duration {
	var status *statusError
	if errors.As(err, &status) && status.wait > 0 {
		return status.wait
	}
	return c.backoff << (n - 1)
}

// pause waits, and reports false when there is no point in it.
func pause(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); d > maxWait || ok && time.Until(end) < d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *session) url(kind, id string) string {
	return fmt.Sprintf("%s://%s/v2/%s/%s/%s", c.repo.Scheme(), c.repo.RegistryStr(), c.repo.RepositoryStr(), kind, id)
}

// request sends one request and checks its status.
func (c *session) request(ctx context.Context, method, url string, header map[string]string, want ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity") // digests are of the bytes as they are; the transport would unpack them
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, want...); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}

// small reads a whole body that is JSON.
func (c *session) small(ctx context.Context, url string, header map[string]string, limit int64) (body []byte, mediaType string, err error) {
	err = c.try(ctx, func() error {
		resp, err := c.request(ctx, http.MethodGet, url, header, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		mediaType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
		body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
		switch {
		case errors.Is(err, errStalled):
			return err
		case err != nil:
			return fmt.Errorf("%w: %w", errCut, err)
		case int64(len(body)) > limit:
			return badImage(nil, "The registry's answer is longer than %s, which no manifest or configuration is.", size(limit))
		}
		return nil
	})
	return body, strings.TrimSpace(mediaType), err
}

// digest asks what a reference names, once, or returns "".
func (c *session) digest(ctx context.Context, id string) string {
	resp, err := c.request(ctx, http.MethodHead, c.url("manifests", id), map[string]string{"Accept": acceptManifests}, http.StatusOK)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	if d := resp.Header.Get("Docker-Content-Digest"); isDigest(d) && (!isDigest(id) || id == d) {
		return d
	}
	return ""
}

// holds asks whether the registry has a blob and lets this caller have it.
func (c *session) holds(ctx context.Context, d v1.Descriptor) (bool, error) {
	found := false
	err := c.try(ctx, func() error {
		resp, err := c.request(ctx, http.MethodHead, c.url("blobs", d.Digest.String()), nil, http.StatusOK)
		if err != nil {
			return err
		}
		found = true
		return resp.Body.Close()
	})
	var status *statusError
	if errors.As(err, &status) && status.status != http.StatusTooManyRequests && status.status < 500 {
		return false, nil // not allowed, or not known: GET tells why
	}
	return found, c.explain(err, "layer "+d.Digest.String())
}

// guard is what all requests to a registry, its token server and its storage pass through.
type guard struct {
	base  http.RoundTripper
	stall time.Duration
	wait  atomic.Int64 // what the last refusal said about when to come again, in ns
}

// RoundTrip sends one request. Each wait for a byte, the first included, is bounded.
func (g *guard) RoundTrip(in *http.Request) (*http.Response, error) {
	if err := checkHop(in); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(in.Context())
	timer := time.AfterFunc(g.stall, func() { cancel(errStalled) })
	resp, err := g.base.RoundTrip(in.WithContext(ctx))
	timer.Stop()
	if err != nil {
		err = stalled(ctx, err)
		cancel(nil)
		return nil, err
	}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		g.wait.Store(int64(retryAfter(resp.Header.Get("Retry-After"))))
	}
	resp.Body = &watched{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, stall: g.stall}
	return resp, nil
}

// checkHop refuses redirects that would carry more than a download's address: a POST holds a refresh token, and plain HTTP everything.
func checkHop(in *http.Request) error {
	if in.Response == nil || in.Response.Request == nil {
		return nil
	}
	from := in.Response.Request.URL
	if in.Method != http.MethodGet && in.Method != http.MethodHead {
		return fmt.Errorf("%w: of a %s", errRedirect, in.Method)
	}
	if from.Scheme == "https" && in.URL.Scheme != "https" {
		return fmt.Errorf("%w: from https to %s", errRedirect, in.URL.Scheme)
	}
	return nil
}

// stalled names a wait that was too long, and a connection that ended: as io.EOF, it would be taken for the end of what was sent.
func stalled(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCut
	}
	return err
}

func retryAfter(v string) time.Duration {
	if n, err := strconv.Atoi(v); err == nil && n > 0 && n < 1<<20 {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil && time.Until(t) > 0 {
		return time.Until(t).Round(time.Second)
	}
	return 0
}

// watched is a body whose every read is bounded. Time between reads is ours, and doesn't count.
type watched struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  time.Duration
}

func (w *watched) Read(p []byte) (int, error) {
	timer := time.AfterFunc(w.stall, func() { w.cancel(errStalled) })
	n, err := w.ReadCloser.Read(p)
	timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		err = stalled(w.ctx, err)
	}
	return n, err
}

// Close ends the request too, so that it needn't be read to its end.
func (w *watched) Close() error {
	w.cancel(nil)
	return w.ReadCloser.Close()
}
