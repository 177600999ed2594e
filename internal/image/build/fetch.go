package build

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// maxRedirects is how often a server may send an ADD elsewhere. The transport judges each address anew.
const maxRedirects = 10

// fetch is one URL of an ADD: asked for so far that its identity is known, downloaded when a layer is made of it.
type fetch struct {
	cfg       Config
	url       string
	algorithm string // of the checksum that was asked for, "" for none
	sum       []byte
	identity  []string // what its content is cached by

	resp   *http.Response // asked for and not read
	cancel context.CancelCauseFunc
	watch  *time.Timer // cancels when nothing comes
	spool  *os.File    // downloaded, and unlinked
	size   int64
	mtime  time.Time
}

var errStalled = errors.New("the server sent nothing for too long")

// open prepares the URLs of an ADD so far that each has an identity: the checksum asked for, or else what the server says its version
// is, or else its content.
func (s *state) open(ctx context.Context, ins *instruction, src source) ([]*fetch, error) {
	var out []*fetch
	for _, u := range src.urls {
		if p := refuseSource(ins, u); p != nil {
			return out, p
		}
		f := &fetch{cfg: s.b.cfg, url: u, mtime: epoch}
		out = append(out, f)
		if src.checksum != "" {
			algorithm, sum, p := checksum(ins, src.checksum)
			if p != nil {
				return out, p
			}
			f.algorithm, f.sum, f.identity = algorithm, sum, []string{"checksum", u, src.checksum}
			continue
		}
		if err := f.ask(ctx); err != nil {
			return out, err
		}
		if f.identity = f.version(); f.identity != nil {
			if len(src.urls) > 1 { // servers don't wait while others are read
				f.hangUp()
			}
			continue
		}
		if err := f.download(ctx); err != nil {
			return out, err
		}
		f.identity = []string{"content", u, hex.EncodeToString(f.sum)}
	}
	return out, nil
}

// ask sends the request and reads the answer's head. Its body outlives ctx: it is another build's business too.
func (f *fetch) ask(ctx context.Context) error {
	if f.cfg.Transport == nil {
		return &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "add_unsupported", Field: field, Detail: "this server fetches no URLs"}
	}
	reqCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f.cancel = cancel
	f.watch = time.AfterFunc(f.cfg.Stall, func() { cancel(errStalled) })
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	defer stop()
	req, err := http.NewRequestWithContext(reqCtx, http.MethodGet, f.url, nil)
	if err != nil {
		return reasonf("%s is not a valid URL", quote(f.url))
	}
	req.Header.Set("Accept-Encoding", "identity") // the file as it is, not unpacked on the way
	req.Header.Set("User-Agent", "sandlot")
	client := &http.Client{Transport: f.cfg.Transport, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return reasonf("the server redirected more than %d times", maxRedirects)
		}
		return nil
	}}
	resp, err := client.Do(req) //nolint:bodyclose // it is read later, and closed by close
	if err != nil {
		return f.failed(reqCtx, err)
	}
	f.resp = resp
	f.watch.Stop() // till the body is read
	switch {
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return unavailable("the server answered %d", resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return reasonf("the server answered %d", resp.StatusCode)
	case resp.ContentLength > f.cfg.MaxAdd:
		return f.tooLarge()
	}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		f.mtime = t
	}
	return nil
}

// version is what the server says of the version of the file; nil if it says nothing.
func (f *fetch) version() []string {
	etag, modified := f.resp.Header.Get("ETag"), f.resp.Header.Get("Last-Modified")
	if etag == "" && modified == "" {
		return nil
	}
	return []string{"version", f.url, etag, modified, strconv.FormatInt(f.resp.ContentLength, 10)}
}

// hangUp gives up a request that may be sent again.
func (f *fetch) hangUp() {
	f.cancel(nil)
	f.resp.Body.Close()
	f.resp = nil
}

// download reads the file into an unlinked one, and checks it.
func (f *fetch) download(ctx context.Context) error {
	if f.spool != nil {
		return nil
	}
	if f.resp == nil {
		if err := f.ask(ctx); err != nil {
			return err
		}
		if f.algorithm == "" && !slices.Equal(f.identity, f.version()) {
			return unavailable("the file changed while it was being added")
		}
	}
	stop := context.AfterFunc(ctx, func() { f.cancel(context.Cause(ctx)) })
	defer stop()
	spool, err := os.CreateTemp(f.cfg.Dir, "add-*")
	if err != nil {
		return fmt.Errorf("making a file for a download: %w", err)
	}
	f.spool = spool
	if err := os.Remove(spool.Name()); err != nil {
		return fmt.Errorf("making a file for a download: %w", err)
	}
	h := newHash(f.algorithm)
	if h == nil {
		h = sha256.New()
	}
	if err := f.read(spool, h); err != nil {
		return err
	}
	got := h.Sum(nil)
	if f.algorithm != "" && subtle.ConstantTimeCompare(got, f.sum) != 1 {
		return reasonf("its checksum is %s:%s, not the one that was asked for; the file is not what was expected", f.algorithm, hex.EncodeToString(got))
	}
	f.sum = got
	return nil
}

func (f *fetch) read(spool *os.File, h hash.Hash) error {
	ctx := f.resp.Request.Context()
	body := io.LimitReader(&watched{r: f.resp.Body, timer: f.watch, stall: f.cfg.Stall}, f.cfg.MaxAdd+1)
	n, err := io.Copy(io.MultiWriter(spool, h), body)
	var disk *os.PathError
	switch {
	case errors.As(err, &disk):
		return fmt.Errorf("storing a download: %w", err)
	case err != nil:
		return f.failed(ctx, err)
	case n > f.cfg.MaxAdd:
		return f.tooLarge()
	}
	f.watch.Stop()
	f.resp.Body.Close()
	f.size = n
	return nil
}

// watched puts off the stall timer with each read.
type watched struct {
	r     io.Reader
	timer *time.Timer
	stall time.Duration
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.stall)
	return w.r.Read(p)
}

// failed tells why a request failed: a refusal of the transport's own, a stall, the caller leaving, or the network.
func (f *fetch) failed(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, errStalled) {
		return unavailable("the server sent nothing for %v", f.cfg.Stall)
	}
	var (
		p *sandbox.Problem
		r *reason
	)
	if errors.As(err, &p) || errors.As(err, &r) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var in *url.Error
	if errors.As(err, &in) { // it repeats the URL, with what it may hold
		err = in.Err
	}
	return unavailable("fetching it failed: %s", parseText(err))
}

func (f *fetch) tooLarge() error {
	return reasonf("the file is larger than %d MiB, the most that ADD takes", f.cfg.MaxAdd>>20)
}

func unavailable(format string, args ...any) error {
	return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "add_failed", Field: field, Detail: fmt.Sprintf(format, args...)}
}

// name is the file's name, by the URL that was written; "" if that names none.
func (f *fetch) name() string {
	u, err := url.Parse(f.url)
	if err != nil {
		return ""
	}
	if base := path.Base(u.Path); base != "." && base != "/" && base != ".." {
		return base
	}
	return ""
}

// reader reads what was downloaded.
func (f *fetch) reader() (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(f.spool, 0, f.size)), nil
}

func (f *fetch) close() {
	if f.watch != nil {
		f.watch.Stop()
	}
	if f.cancel != nil {
		f.cancel(nil)
	}
	if f.resp != nil {
		f.resp.Body.Close()
	}
	if f.spool != nil {
		f.spool.Close()
	}
}
