package client

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// Event is one server-sent event.
type Event struct {
	ID   string // the last id that was seen, also when this event brought none of its own
	Name string // "message" when it has none
	Data string
}

// MaxEvent is the most bytes that one event may have; a longer one is an error.
const MaxEvent = 64 << 20

// ErrEventTooLong says that an event is longer than MaxEvent.
var ErrEventTooLong = fmt.Errorf("an event is longer than %d MiB", MaxEvent>>20)

// ReadEvents reads server-sent events from r as the HTML standard has them. It ends when r does; an event that is not
// complete then is dropped. Any error of r but io.EOF is yielded last.
func ReadEvents(r io.Reader) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		var (
			lines = lineReader{r: bufio.NewReaderSize(r, 32<<10), left: MaxEvent}
			id    string
			name  string
			data  strings.Builder
			some  bool // whether data holds a line, maybe an empty one
		)
		for {
			line, err := lines.next()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					yield(Event{}, fmt.Errorf("read events: %w", err))
				}
				return
			}
			if len(line) == 0 {
				lines.left = MaxEvent
				if some {
					if name == "" {
						name = "message"
					}
					if !yield(Event{ID: id, Name: name, Data: data.String()}, nil) {
						return
					}
				}
				name, some = "", false
				data.Reset()
				continue
			}
			field, value, _ := bytes.Cut(line, []byte(":"))
			value = bytes.TrimPrefix(value, []byte(" "))
			switch string(field) {
			case "data":
				if some {
					data.WriteByte('\n')
				}
				some = true
				data.Write(value)
			case "event":
				name = string(value)
			case "id":
				if bytes.IndexByte(value, 0) < 0 {
					id = string(value)
				}
			}
		}
	}
}

// lineReader cuts a stream into lines that end with LF, CR or both.
type lineReader struct {
	r     *bufio.Reader
	left  int  // bytes that may still come before the event is too long
	cr    bool // the last line ended with CR: a LF that follows belongs to it
	line  []byte
	begun bool // a byte order mark can only stand at the very beginning
}

// next returns the next line without its end, valid until the next call. A line that has no end is not a line.
func (l *lineReader) next() ([]byte, error) {
	const large = 256 << 10 // a buffer that is larger is not kept
	if cap(l.line) > large {
		l.line = nil
	}
	line := l.line[:0]
	for {
		if _, err := l.r.Peek(1); err != nil {
			return nil, err
		}
		chunk, _ := l.r.Peek(l.r.Buffered()) // what is buffered is there
		if l.cr {
			l.cr = false
			if chunk[0] == '\n' {
				_, _ = l.r.Discard(1) // it is there
				continue
			}
		}
		end := bytes.IndexByte(chunk, '\n')
		before := chunk
		if end >= 0 {
			before = chunk[:end]
		}
		if cr := bytes.IndexByte(before, '\r'); cr >= 0 {
			end, l.cr = cr, true
		}
		n := end
		if n < 0 {
			n = len(chunk)
		}
		if l.left -= n; l.left < 0 {
			return nil, ErrEventTooLong
		}
		line = append(line, chunk[:n]...)
		if end < 0 {
			_, _ = l.r.Discard(n) // it is there
			continue
		}
		_, _ = l.r.Discard(n + 1) // it is there
		l.line = line
		if !l.begun {
			l.begun = true
			line = bytes.TrimPrefix(line, []byte("\uFEFF"))
		}
		return line, nil
	}
}
