package sandbox

import (
	"errors"
	"fmt"
)

// The classes of errors: few, each telling the caller what to do. Wrap them with %w and what was being done, test with
// errors.Is. The server translates each to one HTTP status in one table.
var (
	ErrNotFound    = errors.New("not found")         // it doesn't exist, or isn't yours
	ErrInvalid     = errors.New("invalid")           // change the request
	ErrConflict    = errors.New("conflict")          // something else is in the way; look, then decide
	ErrState       = errors.New("wrong state")       // it is legal, but not now
	ErrQuota       = errors.New("limit reached")     // free something, or raise the limit
	ErrUnsupported = errors.New("not supported")     // this server or engine can't
	ErrUnavailable = errors.New("not available now") // trying again may help
	ErrGone        = errors.New("gone")              // it existed, and has ended
)

// Problem is an error with what a caller should be told: a stable code, the field at fault and a clear sentence.
// It wraps a class; Detail is safe to show, Err may hold more for the log.
type Problem struct {
	Class  error  // one of the Err values
	Code   string // stable, snake_case: "image_not_found"
	Field  string // "image.registry"; "" when no field is at fault
	Detail string // a sentence: what is wrong and what to do
	Err    error  // the cause; for the log only
}

func (p *Problem) Error() string {
	s := p.Detail
	if p.Field != "" {
		s = p.Field + ": " + s
	}
	if p.Err != nil {
		s = fmt.Sprintf("%s: %v", s, p.Err)
	}
	return s
}

// Unwrap gives both the class and the cause to errors.Is and errors.As.
func (p *Problem) Unwrap() []error {
	if p.Err == nil {
		return []error{p.Class}
	}
	return []error{p.Class, p.Err}
}

// Invalid returns a Problem of class ErrInvalid with code "invalid_request" at field.
func Invalid(field, format string, args ...any) *Problem {
	return &Problem{Class: ErrInvalid, Code: "invalid_request", Field: field, Detail: fmt.Sprintf(format, args...)}
}
