package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
)

// reader reads one journal from an offset on, at its own pace. What it can't read back, because the file is gone or is not
// what was written (root of the sandbox may do as it likes), is a gap like any other.
type reader struct {
	j    *journal
	off  int64 // everything before it has been returned
	done bool  // the End frame too

	seg  *segment // where it reads
	file *os.File
	pos  int64  // in the file: of buf[0]
	buf  []byte // read ahead: frames, the last one perhaps not whole
	at   int    // what has been used of buf
	back []byte // what buf is part of: as large as it has to be, and nothing while there is nothing to read
}

// The room that a reader has for what it reads ahead: it begins with little, for many readers wait at the end of what there is.
const (
	leastBack = 4 << 10
	mostBack  = 2 * (frameHead + MaxFrame)
)

// errNoMore says that there is no more output now.
var errNoMore = errors.New("no more output yet")

func (j *journal) newReader(off int64) *reader {
	return &reader{j: j, off: off}
}

func (r *reader) close() {
	if r.file != nil {
		_ = r.file.Close() // only read from
		r.file = nil
	}
}

// next returns the next frame, whose data stays valid until the next call. With nothing more to return now it returns
// errNoMore and a channel that is closed when that may have changed; after the End frame, io.EOF.
func (r *reader) next() (Frame, <-chan struct{}, error) {
	for {
		if f, ok := r.parse(); ok {
			return f, nil, nil
		}
		f, wait, err := r.advance()
		if err != nil || f.Kind != 0 {
			return f, wait, err
		}
	}
}

// parse takes frames from buf until one has something new. False means that buf holds no whole frame.
func (r *reader) parse() (Frame, bool) {
	for {
		b := r.buf[r.at:]
		if len(b) < frameHead {
			return Frame{}, false
		}
		h, err := parseHead(b)
		if err != nil {
			r.giveUp()
			return Frame{}, false
		}
		if len(b) < frameHead+h.length {
			return Frame{}, false
		}
		f := Frame{Kind: h.kind, Offset: h.offset, Data: b[frameHead : frameHead+h.length]}
		r.at += frameHead + h.length
		f, ok := r.cut(f)
		if ok {
			return f, true
		}
	}
}

// cut removes from f what was returned before; false if nothing is left.
func (r *reader) cut(f Frame) (Frame, bool) {
	switch f.Kind {
	case Gap:
		if f.Offset <= r.off {
			return f, false
		}
		if f.GapBegin() > r.off {
			r.giveUp()
			return f, false
		}
		f = GapFrame(r.off, f.Offset)
		r.off = f.Offset
		return f, true
	case Stdout, Stderr:
		if f.Offset > r.off {
			r.giveUp()
			return f, false
		}
		skip := r.off - f.Offset
		if skip >= int64(len(f.Data)) {
			return f, false
		}
		f.Data, f.Offset = f.Data[skip:], r.off
		r.off += int64(len(f.Data))
		return f, true
	default:
		r.giveUp()
		return f, false
	}
}

// giveUp skips the rest of a segment that is not what was written.
func (r *reader) giveUp() { r.buf, r.at, r.pos = nil, 0, math.MaxInt64 }

// advance fills buf, or goes to the next segment, or returns a frame that no file holds (a gap, the end).
func (r *reader) advance() (Frame, <-chan struct{}, error) {
	j := r.j
	j.mu.Lock()
	if r.seg != nil && r.pos+int64(len(r.buf)) < r.seg.size { // what is left in buf is no whole frame
		size := r.seg.size
		j.mu.Unlock() // a reader's work on files delays nobody
		r.fill(size)
		return Frame{}, nil, nil
	}
	if seg := j.after(r.seg, r.off); seg != nil {
		j.mu.Unlock()
		r.openSegment(seg)
		if seg.start > r.off {
			f := GapFrame(r.off, seg.start)
			r.off = seg.start
			return f, nil, nil
		}
		return Frame{}, nil, nil
	}
	defer j.mu.Unlock()
	if j.ended {
		switch {
		case r.done:
			return Frame{}, nil, io.EOF
		case r.off < j.next:
			f := GapFrame(r.off, j.next)
			r.off = j.next
			return f, nil, nil
		default:
			r.done = true
			return Frame{Kind: End, Offset: r.off, Data: j.end}, nil, nil
		}
	}
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	if r.at == len(r.buf) {
		r.pos += int64(r.at)
		r.buf, r.back, r.at = nil, nil, 0
	}
	return Frame{}, j.changed, errNoMore
}

// after returns the segment to read after prev, or with no prev the one that holds off; nil if there is none yet.
// The lock is held.
func (j *journal) after(prev *segment, off int64) *segment {
	if prev == nil {
		for i := len(j.segs) - 1; i > 0; i-- {
			if j.segs[i].start <= off {
				return j.segs[i]
			}
		}
		if len(j.segs) > 0 {
			return j.segs[0]
		}
		return nil
	}
	for _, s := range j.segs {
		if s.start > prev.start {
			return s
		}
	}
	return nil
}

// openSegment begins to read seg. A file that is gone counts as one with nothing in it.
func (r *reader) openSegment(seg *segment) {
	r.close()
	r.seg, r.buf, r.pos, r.at = seg, nil, 0, 0
	open := r.j.read
	if open == nil {
		open = os.Open
	}
	f, err := open(seg.path)
	if err != nil {
		r.giveUp()
		return
	}
	r.file = f
}

// fill reads on in the file, up to size.
func (r *reader) fill(size int64) {
	r.pos += int64(r.at)
	rest := r.buf[r.at:]
	if len(r.buf) == len(r.back) && len(r.back) < mostBack { // there is more than fits, perhaps of one frame
		r.back = make([]byte, min(max(leastBack, 4*len(r.back)), mostBack))
	}
	have := copy(r.back, rest)
	r.at = 0
	want := int(min(int64(len(r.back)), size-r.pos))
	if have >= want {
		r.giveUp()
		return
	}
	if _, err := r.file.ReadAt(r.back[have:want], r.pos+int64(have)); err != nil {
		r.giveUp()
		return
	}
	r.buf = r.back[:want]
}

// copyTo writes frames to w as they come, and calls flush whenever it has caught up. Without follow it ends there; with
// follow it ends after the End frame, or with ctx.
func (r *reader) copyTo(ctx context.Context, w io.Writer, flush func() error, follow bool) error {
	var b [frameHead]byte
	for {
		f, wait, err := r.next()
		switch {
		case err == nil:
			b[0] = byte(f.Kind)
			binary.BigEndian.PutUint32(b[1:], uint32(len(f.Data)))
			binary.BigEndian.PutUint64(b[5:], uint64(f.Offset))
			if _, err := w.Write(b[:]); err != nil {
				return err
			}
			if _, err := w.Write(f.Data); err != nil {
				return err
			}
			continue
		case errors.Is(err, io.EOF):
			return flush()
		case !errors.Is(err, errNoMore):
			return err
		}
		if err := flush(); err != nil || !follow {
			return err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
