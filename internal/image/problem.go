package image

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// The fields of a request that a pull can fail for.
const (
	fieldRegistry = "image.registry"
	fieldSecret   = "image.registry_secret"
)

// The causes that only this package tells apart.
var (
	errStalled  = errors.New("no byte came for too long")
	errClosed   = errors.New("the store was closed")
	errRedirect = errors.New("refused redirect")
)

// badImage is content that can't be an image, or isn't what its name says.
func badImage(err error, format string, args ...any) *sandbox.Problem {
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "bad_image", Detail: fmt.Sprintf(format, args...), Err: err}
}

func tooBig(limit int64) *sandbox.Problem {
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "image_too_big",
		Detail: fmt.Sprintf("The image is larger than this server takes: it may have %s unpacked. Use a smaller image, or have the limit raised.", size(limit))}
}

func wrongPlatform(want string, have []string) *sandbox.Problem {
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "wrong_platform",
		Detail: fmt.Sprintf("The image is not made for %s, which this server runs; it is made for %s. Name a tag or digest that is made for %s, "+
			"or build the image for it (docker buildx build --platform=%s).", want, strings.Join(have, ", "), want, want)}
}

func unknownImage(id string) *sandbox.Problem {
	return &sandbox.Problem{Class: sandbox.ErrNotFound, Code: "image_not_found", Detail: fmt.Sprintf("There is no image %.100q here.", id)}
}

// diskFull gives a full disk its own name, and leaves any other error as it is.
func diskFull(err error) error {
	var p *sandbox.Problem
	if err == nil || errors.As(err, &p) || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "disk_full", Err: err,
		Detail: "The server has no disk space left for the image. Delete images or volumes that nobody needs, then try again."}
}

// at names the field at fault where the error itself doesn't know it. Others may hold the same error, so it is copied.
func at(field string, err error) error {
	var p *sandbox.Problem
	if !errors.As(err, &p) || p.Field != "" || p.Class != sandbox.ErrInvalid { //nolint:errorlint // a class stands for itself
		return err
	}
	q := *p
	q.Field = field
	return &q
}

func code(err error) string {
	var p *sandbox.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

// statusError is a registry's refusal. Its text holds nothing that a registry or token server could have put a credential into.
type statusError struct {
	status int
	codes  string // the registry's own codes: "MANIFEST_UNKNOWN"
	wait   time.Duration
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("status %d %s", e.status, http.StatusText(e.status))
	if e.codes != "" {
		s += " (" + e.codes + ")"
	}
	return s
}

// safe turns what the libraries return into errors fit for a log: URLs of token servers and of storage carry signatures in their
// query, and answers of token servers carry tokens.
func safe(err error, wait time.Duration) error {
	var (
		p       *sandbox.Problem
		status  *statusError
		answer  *transport.Error
		link    *url.Error
		network net.Error
		unknown x509.UnknownAuthorityError
	)
	switch {
	case err == nil || errors.As(err, &p):
		return err
	case errors.Is(err, errStalled): // or one of the two ways that were tried
		return errStalled
	case errors.Is(err, errRedirect), errors.Is(err, errClosed), errors.Is(err, errCut), errors.As(err, &status):
		return unlinked(err)
	case errors.As(err, &answer):
		return &statusError{status: answer.StatusCode, codes: codes(answer.Errors), wait: wait}
	case errors.As(err, &link), errors.As(err, &network), errors.As(err, &unknown), errors.Is(err, context.Canceled),
		errors.Is(err, context.DeadlineExceeded):
		return unlinked(err)
	}
	return errors.New("the registry answers in a way that can't be followed")
}

// unlinked takes the query off the URL in an error.
func unlinked(err error) error {
	var link *url.Error
	if !errors.As(err, &link) {
		return err
	}
	where := "the registry"
	if u, perr := url.Parse(link.URL); perr == nil {
		where = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	}
	return fmt.Errorf("%s %s: %w", link.Op, where, link.Err)
}

// codes names the codes in a registry's answer, but only those that look like one.
func codes(list []transport.Diagnostic) string {
	var out []string
	for _, d := range list {
		c := string(d.Code)
		if c != "" && len(c) <= 40 && strings.Trim(c, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == "" && len(out) < 3 {
			out = append(out, c)
		}
	}
	return strings.Join(out, ", ")
}

// transient reports whether trying again soon may help.
func transient(err error) bool {
	var p *sandbox.Problem
	var status *statusError
	switch {
	case errors.As(err, &p), errors.Is(err, errStalled), errors.Is(err, errRedirect), errors.Is(err, errClosed),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &status):
		return status.status == http.StatusTooManyRequests || status.status == http.StatusRequestTimeout || status.status >= 500 && status.status != http.StatusNotImplemented
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.IsTemporary && !dns.IsNotFound
	}
	return broken(err)
}

// broken reports that a connection was made and then lost; one that can't be made at all is told at once.
func broken(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false
	}
	for _, cause := range []error{errCut, unix.ECONNRESET, unix.EPIPE, net.ErrClosed} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return op != nil
}

// explain turns what went wrong between us and a registry into what the caller is told. signed says that credentials were sent.
func explain(err error, host, what string, signed bool) error {
	var p *sandbox.Problem
	if err == nil || errors.As(err, &p) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errClosed) {
		return err
	}
	problem := func(class error, code, field, format string, args ...any) error {
		return &sandbox.Problem{Class: class, Code: code, Field: field, Detail: fmt.Sprintf(format, args...), Err: err}
	}
	var status *statusError
	if errors.As(err, &status) {
		switch status.status {
		case http.StatusUnauthorized, http.StatusForbidden:
			if signed {
				return problem(sandbox.ErrInvalid, "registry_denied", fieldSecret,
					"%s refuses these credentials for %s. Check that they are right, not expired, and allowed to pull it.", host, what)
			}
			return problem(sandbox.ErrInvalid, "registry_denied", fieldRegistry,
				"%s gives %s to nobody without credentials, or has no such image. Check the name; for a private image name a secret in image.registry_secret.", host, what)
		case http.StatusNotFound:
			return problem(sandbox.ErrInvalid, "image_not_found", fieldRegistry, "%s has no %s. Check the name and the tag.", host, what)
		case http.StatusTooManyRequests:
			again := "Try again later"
			if status.wait > 0 {
				again = fmt.Sprintf("Try again in %s", status.wait)
			}
			return problem(sandbox.ErrUnavailable, "registry_rate_limited", fieldRegistry,
				"%s answers that there were too many requests. %s; with credentials registries allow more.", host, again)
		}
		return problem(sandbox.ErrUnavailable, "registry_failed", fieldRegistry, "%s answers with an error (%v). Try again later.", host, status)
	}
	if errors.Is(err, errStalled) {
		return problem(sandbox.ErrUnavailable, "registry_stalled", fieldRegistry, "%s stopped sending %s. Try again later.", host, what)
	}
	why := "it can't be reached"
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var wrongName x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &dns):
		why = "its name can't be resolved"
	case errors.As(err, &unknown), errors.As(err, &wrongName), errors.As(err, &invalid):
		why = "its certificate is not to be trusted"
	case errors.Is(err, unix.ECONNREFUSED):
		why = "nothing answers there"
	case errors.Is(err, errRedirect):
		why = "it redirects to where we don't follow"
	case broken(err):
		why = "the connection broke off again and again"
	}
	return problem(sandbox.ErrUnavailable, "registry_unreachable", fieldRegistry, "The registry %s: %s. Check the name, or try again later.", host, why)
}

// size is a number of bytes for people.
func size(n int64) string {
	for _, u := range []struct {
		name string
		of   int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.of {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(u.of)), ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
