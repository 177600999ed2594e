package claude

import (
	"bytes"
	"encoding/json"
	"regexp"
	"unicode"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// maxLine is the longest line of the CLI that is kept. Pictures make lines of some megabytes.
const maxLine = 32 << 20

// The CLI takes its output for a terminal, which it is, and at its end sets right what it may have changed there. That is nothing
// that it says. In its JSON the escape character can't occur.
const escape = 0x1b

// terminal matches control sequences: CSI, OSC, saving and restoring, character sets and the like.
var terminal = regexp.MustCompile(`\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]`)

// splitter cuts a stream into lines. The cut depends on the bytes alone and not on how they were dealt out, so that the same output
// always gives the same lines.
type splitter struct {
	line func(data []byte, next int64) // gets each line that says something, without its end, and the offset after it

	buf  []byte
	cut  int64 // bytes of the present line that were not kept
	skip bool  // up to the next end of a line: its beginning was lost
}

// write takes data that begins at offset. The lines that it gives are good only during the call of line.
func (s *splitter) write(data []byte, offset int64) {
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			s.keep(data)
			return
		}
		offset += int64(i) + 1
		if len(s.buf) == 0 && s.cut == 0 && !s.skip { // the usual case: nothing to put together
			s.emit(data[:i], offset)
		} else {
			s.keep(data[:i])
			s.finish(offset)
		}
		data = data[i+1:]
	}
}

func (s *splitter) keep(data []byte) {
	if s.skip {
		return
	}
	n := min(len(data), maxLine-len(s.buf))
	s.buf = append(s.buf, data[:n]...)
	s.cut += int64(len(data) - n)
}

// finish ends the present line, which may lack its end; offset is where the next one begins.
func (s *splitter) finish(offset int64) {
	switch {
	case s.skip:
	case s.cut > 0:
		s.emit(encode(note{Type: "sandlot", Subtype: "line_too_long", Bytes: int64(len(s.buf)) + s.cut}), offset)
	default:
		s.emit(s.buf, offset)
	}
	s.skip, s.cut = false, 0
	if cap(s.buf) > 1<<20 {
		s.buf = nil
	} else {
		s.buf = s.buf[:0]
	}
}

func (s *splitter) emit(data []byte, offset int64) {
	data = bytes.TrimSuffix(data, []byte("\r"))
	if len(data) > 0 && data[0] != '{' && bytes.IndexByte(data, escape) >= 0 {
		data = bytes.TrimFunc(terminal.ReplaceAll(data, nil), unicode.IsControl)
	}
	if len(bytes.TrimSpace(data)) > 0 {
		s.line(data, offset)
	}
}

// gap says that output was lost here. What follows begins in the middle of a line, as far as one can know.
func (s *splitter) gap(from, to int64) {
	s.buf, s.cut, s.skip = s.buf[:0], 0, true
	s.line(encode(note{Type: "sandlot", Subtype: "gap", From: from, Bytes: to - from}), to)
}

// note is a line of ours among the CLI's. Clients skip types that they don't know.
type note struct {
	Type    string `json:"type"` // "sandlot"
	Subtype string `json:"subtype"`
	From    int64  `json:"from,omitempty"` // offset in the output
	Bytes   int64  `json:"bytes"`          // how many are missing
}

// lineType returns the type of a line of the CLI; "" if it has none.
func lineType(line []byte) string {
	var v struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(line, &v) != nil {
		return ""
	}
	return v.Type
}

// kindOf tells partial lines, which a later line supersedes, from those that last.
func kindOf(line []byte) sandbox.SessionEventKind {
	const partial = "stream_event"
	switch {
	case bytes.HasPrefix(line, []byte(`{"type":"`+partial+`"`)):
		return sandbox.SessionPartial
	case bytes.Contains(line[:min(len(line), 1<<10)], []byte(`"`+partial+`"`)) && lineType(line) == partial:
		return sandbox.SessionPartial
	}
	return sandbox.SessionLine
}
