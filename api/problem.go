package api

import "strings"

// Problem is the body of every error (RFC 9457, application/problem+json), and the data of an "error" event.
type Problem struct {
	Type      string       `json:"type,omitempty"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail" doc:"What is wrong and what to do."`
	Code      string       `json:"code" doc:"Stable; programs decide by it."`
	RequestID string       `json:"request_id,omitempty"`
	Retryable bool         `json:"retryable" doc:"Whether the same request may succeed later."`
	Errors    []FieldError `json:"errors,omitempty" doc:"Each field at fault."`
}

// FieldError is one field at fault.
type FieldError struct {
	Location string `json:"location" example:"body.image.registry"`
	Message  string `json:"message"`
}

// Error gives the problem as one line.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Detail)
	for _, e := range p.Errors {
		if !strings.Contains(p.Detail, e.Message) {
			b.WriteString("; " + e.Location + ": " + e.Message)
		}
	}
	if p.Code != "" {
		b.WriteString(" (" + p.Code + ")")
	}
	return b.String()
}
