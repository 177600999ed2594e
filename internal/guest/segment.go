package guest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A connection to a port of the sandbox travels as segments, both ways: a length (4 bytes, big endian, at most maxSegment) and as
// many bytes. Length 0 is the end of what this side has to say: half a close, which the stream under it can't tell from a whole one.
// The stream's own end means that the connection is gone.
const (
	maxSegment    = 32 << 10
	segmentHeader = 4
)

// errSegment is what a reader of segments ends with when the other side talks nonsense.
var errSegment = errors.New("guest: a segment that is too long")

// segmentWriter writes segments. A write that fails may have sent half a segment: nothing can follow it.
type segmentWriter struct {
	w   io.Writer
	buf []byte
	err error
}

// Write writes b as one or more segments.
func (s *segmentWriter) Write(b []byte) (n int, err error) {
	if s.buf == nil {
		s.buf = make([]byte, segmentHeader+maxSegment)
	}
	for len(b) > 0 {
		m := copy(s.buf[segmentHeader:], b)
		if err := s.send(s.buf[:segmentHeader+m]); err != nil {
			return n, err
		}
		n, b = n+m, b[m:]
	}
	return n, nil
}

// end writes the segment that ends this direction.
func (s *segmentWriter) end() error { return s.send(make([]byte, segmentHeader)) }

func (s *segmentWriter) send(segment []byte) error {
	if s.err != nil {
		return s.err
	}
	binary.BigEndian.PutUint32(segment, uint32(len(segment)-segmentHeader))
	_, s.err = s.w.Write(segment)
	return s.err
}

// segmentReader reads what a segmentWriter wrote. Its end is the end of the direction; a stream that ends earlier gives
// io.ErrUnexpectedEOF. A deadline that passes in between loses nothing.
type segmentReader struct {
	r    *bufio.Reader
	left int // of the segment that is being read
	done error
}

// Read reads from one segment.
func (s *segmentReader) Read(b []byte) (int, error) {
	if s.done != nil {
		return 0, s.done
	}
	if s.left == 0 {
		h, err := s.r.Peek(segmentHeader)
		if err != nil {
			return 0, s.broken(err)
		}
		n := binary.BigEndian.Uint32(h)
		_, _ = s.r.Discard(segmentHeader) // it has been peeked
		switch {
		case n == 0:
			s.done = io.EOF
			return 0, s.done
		case n > maxSegment:
			s.done = fmt.Errorf("%w: %d bytes", errSegment, n)
			return 0, s.done
		}
		s.left = int(n)
	}
	if len(b) == 0 {
		return 0, nil
	}
	n, err := s.r.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, s.broken(err)
}

// broken makes the end of the stream an error, for it is not where it should be.
func (s *segmentReader) broken(err error) error {
	if errors.Is(err, io.EOF) {
		s.done = io.ErrUnexpectedEOF
		return s.done
	}
	return err
}
