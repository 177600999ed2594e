package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// errCut is an answer that ended before its end.
var errCut = errors.New("the answer was cut off")

// maxResumes bounds how often one blob is resumed, so that a registry that sends a byte and hangs up isn't asked for ever.
const maxResumes = 20

// blobReader reads one blob of a registry, going on where it was when a connection breaks. Each byte is delivered once, so whoever counts
// them counts right. What it returns isn't verified.
type blobReader struct {
	ctx  context.Context
	c    *session
	d    v1.Descriptor
	what string

	body    io.ReadCloser
	off     int64
	resumes int
	err     error // of the network or the registry; decompressors hide where an error comes from
}

func (c *session) blob(ctx context.Context, d v1.Descriptor, what string) *blobReader {
	return &blobReader{ctx: ctx, c: c, d: d, what: what}
}

func (r *blobReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.read(p)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusNotFound {
		err = badImage(err, "The registry has the image, but not all of it: the %s is missing. It must be pushed again.", r.what)
	}
	r.err = r.c.explain(err, r.what)
	return n, r.err
}

func (r *blobReader) read(p []byte) (int, error) {
	for {
		if r.body == nil {
			if err := r.open(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p)
		if r.off+int64(n) > r.d.Size {
			return 0, badImage(nil, "The registry sends more for %s than its manifest says.", r.d.Digest)
		}
		r.off += int64(n)
		if errors.Is(err, io.EOF) && r.off < r.d.Size {
			err = errCut
		}
		switch {
		case err == nil && n == 0:
			continue
		case err == nil || errors.Is(err, io.EOF):
			return n, err
		}
		_ = r.body.Close() // it is broken anyway
		r.body = nil
		if r.ctx.Err() != nil {
			return n, context.Cause(r.ctx)
		}
		r.resumes++
		if errors.Is(err, errStalled) {
			return n, err
		}
		if r.resumes > maxResumes {
			return n, fmt.Errorf("%w: %w", errCut, err)
		}
		if n > 0 {
			return n, nil
		}
		if !pause(r.ctx, r.c.backoff) {
			return 0, context.Cause(r.ctx)
		}
	}
}

// open asks for what is still missing.
func (r *blobReader) open() error {
	first := r.c.try(r.ctx, func() error { return r.get(r.c.client, r.c.url("blobs", r.d.Digest.String()), r.off > 0) })
	if first == nil || len(r.d.URLs) == 0 {
		return first
	}
	// A foreign layer: its manifest names other places. They get no credentials.
	for _, raw := range r.d.URLs {
		u, err := url.Parse(raw)
		if err != nil || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || r.c.repo.Scheme() != "http") {
			continue
		}
		if r.c.try(r.ctx, func() error {
			return r.get(&http.Client{Transport: r.c.guard, CheckRedirect: checkRedirect}, raw, r.off > 0)
		}) == nil {
			return nil
		}
	}
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	return badImage(first, "The layer %s is kept away from its registry, and can't be had from where its manifest says.", r.d.Digest)
}

func (r *blobReader) get(client *http.Client, from string, resume bool) error {
	via := *r.c
	via.client = client
	header := map[string]string{}
	if resume {
		header["Range"] = fmt.Sprintf("bytes=%d-", r.off)
	}
	resp, err := via.request(r.ctx, http.MethodGet, from, header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return err
	}
	skip, err := r.where(resp, resume)
	if err == nil && skip > 0 {
		_, err = io.CopyN(io.Discard, resp.Body, skip)
		if errors.Is(err, io.EOF) {
			err = errCut
		}
	}
	if err != nil {
		_ = resp.Body.Close()
		return err
	}
	r.body = resp.Body
	return nil
}

// where checks that an answer is of the right length, and tells how much of it is known already: not every server knows ranges.
func (r *blobReader) where(resp *http.Response, resume bool) (skip int64, err error) {
	length, partial := r.d.Size, resp.StatusCode == http.StatusPartialContent
	if partial {
		if !resume || resp.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", r.off, r.d.Size-1, r.d.Size) {
			return 0, badImage(nil, "The registry sends another part of %s than was asked for.", r.d.Digest)
		}
		length -= r.off
	} else {
		skip = r.off
	}
	// A proxy may leave the length out, but a wrong one is a lie. Content that the transport unpacked has none.
	if said := resp.Header.Get("Content-Length"); said != "" && said != strconv.FormatInt(length, 10) {
		return 0, badImage(nil, "The registry says that %s has %.20s bytes, and its manifest says %d.", r.d.Digest, said, length)
	}
	return skip, nil
}

// Close ends the download.
func (r *blobReader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}
