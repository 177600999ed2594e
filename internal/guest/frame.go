package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// frameHead is the length of a frame's header: kind, length, offset.
const frameHead = 1 + 4 + 8

// ErrFrame is what a Decoder says of bytes that are not a frame. The other end may be hostile: believe nothing after it.
var ErrFrame = errors.New("guest: malformed frame")

// AppendFrame appends f in the form of the wire and of the journal's files. It panics if f holds more than MaxFrame.
func AppendFrame(b []byte, f Frame) []byte {
	if len(f.Data) > MaxFrame {
		panic("guest: frame too long")
	}
	b = append(b, byte(f.Kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Data)))
	b = binary.BigEndian.AppendUint64(b, uint64(f.Offset))
	return append(b, f.Data...)
}

// GapFrame returns the frame that says that the output from begin on is gone and reading goes on at resume.
func GapFrame(begin, resume int64) Frame {
	return Frame{Kind: Gap, Offset: resume, Data: binary.BigEndian.AppendUint64(nil, uint64(begin))}
}

// GapBegin returns the offset at which the trimmed part began, for a frame of kind Gap.
func (f Frame) GapBegin() int64 {
	if f.Kind != Gap || len(f.Data) != 8 {
		return f.Offset
	}
	return int64(binary.BigEndian.Uint64(f.Data))
}

// Run returns what a frame of kind End says of the run.
func (f Frame) Run() (Run, error) {
	var r Run
	if f.Kind != End {
		return r, fmt.Errorf("%w: kind %d holds no run", ErrFrame, f.Kind)
	}
	if err := json.Unmarshal(f.Data, &r); err != nil {
		return Run{}, fmt.Errorf("%w: end: %w", ErrFrame, err)
	}
	return r, nil
}

// Frames returns the whole output of a run that came with it, the End frame included; nil if none did.
func (r Run) Frames() ([]Frame, error) {
	if len(r.Output) == 0 {
		return nil, nil
	}
	var all []Frame
	var check follower
	for dec := NewDecoder(bytes.NewReader(r.Output)); ; {
		f, err := dec.Next()
		if errors.Is(err, io.EOF) && check.ended {
			return all, nil
		}
		if err == nil {
			err = check.check(f)
		}
		if err != nil {
			return nil, fmt.Errorf("guest: output of run %s: %w", r.ID, err)
		}
		all = append(all, f)
	}
}

// head is a decoded and checked frame header.
type head struct {
	kind   Kind
	length int
	offset int64
}

// parseHead checks everything that a header alone can tell.
func parseHead(b []byte) (head, error) {
	n := binary.BigEndian.Uint32(b[1:])
	off := binary.BigEndian.Uint64(b[5:])
	h := head{kind: Kind(b[0])}
	switch {
	case h.kind < Stdout || h.kind > End:
		return h, fmt.Errorf("%w: unknown kind %d", ErrFrame, b[0])
	case n > MaxFrame:
		return h, fmt.Errorf("%w: %d bytes of data, more than %d", ErrFrame, n, MaxFrame)
	case off > 1<<62:
		return h, fmt.Errorf("%w: offset %d", ErrFrame, off)
	case h.kind == Gap && n != 8:
		return h, fmt.Errorf("%w: gap with %d bytes of data", ErrFrame, n)
	case (h.kind == Stdout || h.kind == Stderr) && n == 0:
		return h, fmt.Errorf("%w: empty output", ErrFrame)
	}
	h.length, h.offset = int(n), int64(off)
	return h, nil
}

// Decoder reads frames and trusts nothing: what it reads may have been written by a sandbox. It checks each frame by
// itself; that frames follow one another is for its caller to check.
type Decoder struct {
	r    io.Reader
	head [frameHead]byte
}

// NewDecoder returns a Decoder that reads from r. It reads no further than the frames it returns.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{r: r} }

// Next returns the next frame, with data of its own. At the end of the input between two frames it returns io.EOF; in the
// middle of one, io.ErrUnexpectedEOF; for what isn't a frame, an error that wraps ErrFrame.
func (d *Decoder) Next() (Frame, error) {
	if _, err := io.ReadFull(d.r, d.head[:]); err != nil {
		return Frame{}, err
	}
	h, err := parseHead(d.head[:])
	if err != nil {
		return Frame{}, err
	}
	f := Frame{Kind: h.kind, Offset: h.offset, Data: make([]byte, h.length)}
	if _, err := io.ReadFull(d.r, f.Data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	if h.kind == Gap {
		if b := binary.BigEndian.Uint64(f.Data); b > uint64(f.Offset) {
			return Frame{}, fmt.Errorf("%w: gap from %d to %d", ErrFrame, b, f.Offset)
		}
	}
	return f, nil
}

// follower checks that frames follow one another without a hole from an offset on.
type follower struct {
	next  int64
	ended bool
}

// check accepts f as the next frame or says why it can't be.
func (w *follower) check(f Frame) error {
	if w.ended {
		return fmt.Errorf("%w: kind %d after the end", ErrFrame, f.Kind)
	}
	switch f.Kind {
	case Stdout, Stderr:
		if f.Offset != w.next {
			return fmt.Errorf("%w: output at %d, want %d", ErrFrame, f.Offset, w.next)
		}
		w.next += int64(len(f.Data))
	case Gap:
		if f.GapBegin() != w.next {
			return fmt.Errorf("%w: gap at %d, want %d", ErrFrame, f.GapBegin(), w.next)
		}
		w.next = f.Offset
	case End:
		if f.Offset != w.next {
			return fmt.Errorf("%w: end at %d, want %d", ErrFrame, f.Offset, w.next)
		}
		w.ended = true
	}
	return nil
}
