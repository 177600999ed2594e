package build

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Bounds of output.
const (
	maxLine    = 16 << 10 // a longer line is cut in pieces
	tailLines  = 20
	tailBytes  = 4 << 10
	maxHistory = 4 << 10
)

// mask hides the values of secrets in text.
type mask struct {
	values  []string // longest first, so that one that holds another goes whole
	longest int
	words   *strings.Replacer
}

// stars stand for a value.
const stars = "***"

// newMask returns the mask of secrets: their values, and each line of those with several, since output is told by lines. A line of three
// bytes or fewer is not hidden by itself: a lone brace tells nothing, and hiding it would hide every brace.
func newMask(secrets map[string]string) *mask {
	m := &mask{}
	add := func(v string, least int) {
		if len(v) >= least && !slices.Contains(m.values, v) {
			m.values = append(m.values, v)
		}
	}
	for _, v := range secrets {
		add(v, 1)
		add(strings.TrimSpace(v), 4)
		for part := range strings.Lines(v) {
			add(strings.TrimSpace(part), 4)
		}
		add(cleanLine(v), 4)
	}
	slices.SortFunc(m.values, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var pairs []string
	for _, v := range m.values {
		m.longest = max(m.longest, len(v))
		pairs = append(pairs, v, stars)
	}
	m.words = strings.NewReplacer(pairs...)
	return m
}

// clean returns text without secrets.
func (m *mask) clean(text string) string {
	if len(m.values) == 0 {
		return text
	}
	return m.words.Replace(text)
}

// line makes a line of output fit to show. It is masked twice: a value may hold what cleaning removes, and removing may put one together.
func (m *mask) line(raw string) string { return m.clean(cleanLine(m.clean(raw))) }

// classes are what is kept of an error whose text held a secret.
var classes = []error{sandbox.ErrNotFound, sandbox.ErrInvalid, sandbox.ErrConflict, sandbox.ErrState, sandbox.ErrQuota,
	sandbox.ErrUnsupported, sandbox.ErrUnavailable, sandbox.ErrGone}

// hide returns err, or, if it tells a secret, what is left of it: its text masked, its class, and what kind of problem it is.
func (m *mask) hide(err error) error {
	if err == nil || len(m.values) == 0 || m.clean(err.Error()) == err.Error() {
		return err
	}
	if _, ok := err.(*failure); ok { //nolint:errorlint // one that is not wrapped was made here, of masked lines: what it has in common with a secret is its own words
		return err
	}
	text := m.clean(err.Error())
	var (
		r *reason
		p *sandbox.Problem
	)
	if errors.As(err, &r) {
		return &reason{m.clean(r.text)}
	}
	if errors.As(err, &p) {
		return &sandbox.Problem{Class: p.Class, Code: p.Code, Field: p.Field, Detail: m.clean(p.Detail)}
	}
	for _, class := range classes {
		if errors.Is(err, class) {
			return &masked{text: text, class: class}
		}
	}
	return &masked{text: text}
}

// masked is an error of which only the text and the class may be told.
type masked struct {
	text  string
	class error
}

func (e *masked) Error() string { return e.text }

// Unwrap gives the class.
func (e *masked) Unwrap() error { return e.class }

// historyText is what an image's history says of instructions.
func (s *state) historyText(texts ...string) string {
	h := s.mask.clean(strings.Join(texts, "\n"))
	if len(h) > maxHistory {
		h = strings.ToValidUTF8(h[:maxHistory], "") + "…"
	}
	return h
}

// output turns what a step writes into lines, and keeps the last ones.
type output struct {
	mask *mask
	emit func(line)

	mu      sync.Mutex
	streams []*stream
	last    []string
}

func newOutput(m *mask, emit func(line)) *output { return &output{mask: m, emit: emit} }

// stream returns a writer that never fails. Lines of different streams don't mix.
func (o *output) stream() io.Writer {
	s := &stream{out: o}
	o.streams = append(o.streams, s)
	return s
}

// notice emits a sentence that the user should read.
func (o *output) notice(text string) { o.emit(line{text: o.mask.line(text), notice: true}) }

func (o *output) line(raw string) {
	text := o.mask.line(raw)
	for len(text) > maxLine {
		piece := strings.ToValidUTF8(text[:maxLine], "")
		o.keep(piece)
		text = text[len(piece):]
	}
	o.keep(text)
}

func (o *output) keep(text string) {
	if o.last = append(o.last, text); len(o.last) > tailLines {
		o.last = o.last[1:]
	}
	o.emit(line{text: text})
}

// flush emits lines that were not ended.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.streams {
		if len(s.buf) > 0 {
			o.line(string(s.buf))
			s.buf = nil
		}
	}
}

// tail is the last output, bounded.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var lines []string
	size := 0
	for _, l := range slices.Backward(o.last) {
		if most := tailBytes / 4; len(l) > most {
			l = strings.ToValidUTF8(l[:most], "") + "…"
		}
		if size += len(l) + 1; size > tailBytes {
			break
		}
		lines = append(lines, l)
	}
	slices.Reverse(lines)
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

// stream is one of a step's outputs.
type stream struct {
	out *output
	buf []byte // a line that is not ended yet
}

// Write takes bytes as they come.
func (s *stream) Write(p []byte) (int, error) {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	n, limit := len(p), maxLine+s.out.mask.longest
	for len(p) > 0 {
		if i := bytes.IndexByte(p, '\n'); i >= 0 && len(s.buf)+i <= limit {
			s.out.line(string(append(s.buf, p[:i]...)))
			s.buf, p = s.buf[:0], p[i+1:]
			continue
		}
		take := min(len(p), limit-len(s.buf))
		s.buf, p = append(s.buf, p[:take]...), p[take:]
		if len(s.buf) >= limit {
			s.cut()
		}
	}
	return n, nil
}

// cut emits the beginning of a line that is too long. What may be the beginning of a secret stays.
func (s *stream) cut() {
	text := s.out.mask.clean(string(s.buf))
	at := max(0, len(text)-s.out.mask.longest)
	for at > 0 && !utf8.RuneStart(text[at]) {
		at--
	}
	if at > 0 {
		s.out.line(text[:at])
	}
	s.buf = append(s.buf[:0], text[at:]...)
}

// cleanLine returns what a terminal would show of a line, roughly: no escape sequences, no control characters, and of what a carriage
// return writes over only the last.
func cleanLine(s string) string {
	s = strings.TrimRight(s, "\r")
	if i := strings.LastIndexByte(s, '\r'); i >= 0 {
		s = s[i+1:]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	if strings.IndexFunc(s, hidden) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		if s[0] == 0x1b {
			s = skipEscape(s)
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		if !hidden(r) {
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// hidden reports whether r has no place in a line of text; that includes what turns the direction of text, which can make it say another thing.
func hidden(r rune) bool {
	return r != '\t' && (unicode.IsControl(r) || r >= 0x202A && r <= 0x202E || r >= 0x2066 && r <= 0x2069)
}

// skipEscape returns what follows the escape sequence at the beginning of s.
func skipEscape(s string) string {
	if len(s) < 2 {
		return ""
	}
	switch s[1] {
	case '[': // parameters, then one final byte
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return s[i+1:]
			}
		}
		return ""
	case ']', 'P', '^', '_', 'X': // a string, ended by BEL or ESC \
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return s[i+1:]
			}
			if s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\' {
				return s[i+2:]
			}
		}
		return ""
	}
	_, n := utf8.DecodeRuneInString(s[1:])
	return s[1+n:]
}
