package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// classes is the one table from what went wrong to what the caller sees. The first class that the error wraps decides.
var classes = []struct {
	class     error
	status    int
	code      string // unless the error brings its own
	retryable bool
}{
	{errStopping, http.StatusServiceUnavailable, "shutting_down", true},
	{sandbox.ErrInvalid, http.StatusBadRequest, "invalid_request", false},
	{sandbox.ErrNotFound, http.StatusNotFound, "not_found", false},
	{sandbox.ErrGone, http.StatusGone, "gone", false},
	{sandbox.ErrState, http.StatusConflict, "wrong_state", false},
	{sandbox.ErrConflict, http.StatusConflict, "conflict", false},
	{sandbox.ErrQuota, http.StatusTooManyRequests, "limit_reached", true},
	{sandbox.ErrUnsupported, http.StatusNotImplemented, "not_supported", false},
	{sandbox.ErrUnavailable, http.StatusServiceUnavailable, "unavailable", true},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "timeout", true},
	{context.Canceled, statusClientGone, "canceled", true},
	{io.ErrUnexpectedEOF, http.StatusBadRequest, "incomplete_body", true},
}

// statusClientGone stands in the log for a caller that left; nobody reads the answer.
const statusClientGone = 499

// errStopping is why a stream or a wait ends when the server shuts down.
var errStopping = errors.New("the server is shutting down")

// problem is an api.Problem as huma wants an error to be.
type problem struct {
	api.Problem
	cause error // for the log only
}

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// Error implements error.
func (p *problem) Error() string { return p.Problem.Error() }

// Unwrap gives the cause.
func (p *problem) Unwrap() error { return p.cause }

// ContentType implements huma.ContentTypeFilter.
func (p *problem) ContentType(string) string { return api.ContentTypeProblem }

// refuse makes a problem that the server itself has found.
func refuse(status int, code, format string, args ...any) *problem {
	return &problem{Problem: api.Problem{
		Title: http.StatusText(status), Status: status, Code: code, Detail: fmt.Sprintf(format, args...),
	}}
}

// problemOf translates err. What it doesn't know is an internal error, of which the caller learns nothing.
func problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuse(http.StatusRequestEntityTooLarge, "too_large", "The request body is longer than %d bytes.", e.Limit)
	}
	said, told := errors.AsType[*sandbox.Problem](err)
	if e, ok := errors.AsType[*guest.Error](err); ok && !told && (e.Status < 500 || e.Status == http.StatusInsufficientStorage) {
		return refuse(e.Status, e.Code, "%s", sentence(e.Detail)).at(e.Field, e.Detail).because(err)
	}
	class := err
	if told {
		class = said.Class // what its cause wraps is of no interest
	}
	for _, c := range classes {
		if !errors.Is(class, c.class) {
			continue
		}
		p := refuse(c.status, c.code, "%s", sentence(c.class.Error())).because(err)
		p.Retryable = c.retryable
		if told {
			p.Code = cmp.Or(said.Code, p.Code)
			p.Detail = cmp.Or(sentence(said.Detail), p.Detail)
			p = p.at(said.Field, said.Detail)
		}
		return p
	}
	return refuse(http.StatusInternalServerError, "internal_error",
		"Internal error. The server's log tells more under the request ID.").because(err)
}

// at names the field at fault; "" names none.
func (p *problem) at(field, message string) *problem {
	if field != "" {
		p.Errors = append(p.Errors, api.FieldError{Location: field, Message: message})
		p.Detail = field + ": " + message
	}
	return p
}

// because keeps the cause for the log.
func (p *problem) because(err error) *problem {
	p.cause = err
	return p
}

// sentence makes a Go error text fit to be read by people.
func sentence(s string) string {
	if s == "" {
		return s
	}
	s = strings.ToUpper(s[:1]) + s[1:]
	if last := s[len(s)-1]; last != '.' && last != '?' {
		s += "."
	}
	return s
}

// hookOnce makes huma's errors ours. Huma offers package variables for it, so they are set once, before the first API of
// this process is built.
var hookOnce sync.Once

func hookHuma() {
	hookOnce.Do(func() {
		huma.DefaultArrayNullable = false // a list of ours is empty, never null
		huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
			return humaProblem(status, msg, errs)
		}
		huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
			p := humaProblem(status, msg, errs)
			callOf(ctx.Context()).fail(p)
			return p
		}
	})
}

// humaProblem translates what huma found.
func humaProblem(status int, msg string, errs []error) *problem {
	switch status {
	case 0: // asked for the type's sake only
		return &problem{}
	case http.StatusInternalServerError:
		return problemOf(errors.Join(append(errs, errors.New(msg))...))
	case http.StatusRequestEntityTooLarge:
		return refuse(status, "too_large", "%s", sentence(msg))
	case http.StatusRequestTimeout:
		p := refuse(status, "body_timeout", "%s", sentence(msg))
		p.Retryable = true
		return p
	case http.StatusUnsupportedMediaType:
		return refuse(status, "unsupported_media_type", "Send the body as JSON, with Content-Type: application/json.")
	}
	p := refuse(http.StatusBadRequest, "invalid_request", "%s", sentence(msg))
	for _, e := range errs {
		d, ok := e.(huma.ErrorDetailer)
		if !ok {
			continue
		}
		detail := d.ErrorDetail()
		location, message := detail.Location, detail.Message
		if name, ok := missing(message); ok {
			location, message = location+"."+name, "is required"
		}
		if message == "unexpected property" {
			message = "unknown field"
		}
		p.Errors = append(p.Errors, api.FieldError{Location: location, Message: message})
	}
	switch len(p.Errors) {
	case 0:
	case 1:
		p.Detail = p.Errors[0].Location + ": " + p.Errors[0].Message
	default:
		p.Detail = fmt.Sprintf("%d fields are wrong, the first is %s: %s", len(p.Errors), p.Errors[0].Location, p.Errors[0].Message)
	}
	return p
}

// missing reads the name of the field that huma misses out of its message.
func missing(message string) (string, bool) {
	rest, ok := strings.CutPrefix(message, "expected required property ")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, " to be present")
}

// locate says of each field of the domain in which part of a request it stands: one of the parameters, else the body.
func (p *problem) locate(params []*huma.Param) {
	for i, e := range p.Errors {
		part, _, _ := strings.Cut(e.Location, ".")
		in := "body"
		switch part {
		case "body", "query", "path", "header":
			continue
		}
		for _, param := range params {
			if param.Name == part {
				in = param.In
			}
		}
		p.Errors[i].Location = in + "." + e.Location
	}
}

// writeProblem answers with p outside of huma.
func writeProblem(w http.ResponseWriter, r *http.Request, p *problem) {
	callOf(r.Context()).fail(p)
	h := w.Header()
	h.Set("Content-Type", api.ContentTypeProblem)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	if r.Method == http.MethodHead {
		return
	}
	_ = json.NewEncoder(w).Encode(p.Problem) // a caller that left reads no error either
}

// unmarshal is json.Unmarshal with errors that a caller can act on.
func unmarshal(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("malformed JSON at byte %d: %w", e.Offset, err)
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if e.Field == "" {
			return fmt.Errorf("%s is out of range", e.Value)
		}
		return fmt.Errorf("%s: %s is out of range", e.Field, e.Value)
	}
	return fmt.Errorf("malformed JSON: %w", err)
}
