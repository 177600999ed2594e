package guest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Recording is a copy of a run's output that its host keeps, bounded, in files that outlast the sandbox: a journal of which the beginning
// and the end stay when there is too much of it, for the one says what was done and the other how it went. One goroutine adds to it, any
// number read.
type Recording struct{ j *journal }

// ErrNoMore says that a recording holds no more now.
var ErrNoMore = errNoMore

// OpenRecording opens the recording in dir, as far as there is one: the directory is made when something is added. Of limit bytes on disk
// about a quarter are the beginning. What a process that was killed has left half written is not part of it.
func OpenRecording(dir string, limit int64) (*Recording, error) {
	const least = frameHead + MaxFrame
	j := &journal{dir: dir, limit: max(limit, 8*least), keep: 2}
	j.segSize = max(j.limit/8, 2*least)
	j.open = func(path string) (segmentFile, error) {
		f, err := createSegment(path)
		if errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return nil, err
			}
			f, err = createSegment(path)
		}
		return f, err
	}
	if err := j.restore(); err != nil {
		return nil, fmt.Errorf("guest: recording: %w", err)
	}
	return &Recording{j}, nil
}

// restore finds what an earlier process has written.
func (j *journal) restore() error {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		start, err := strconv.ParseInt(e.Name(), 10, 64)
		info, infoErr := e.Info()
		if err != nil || infoErr != nil || !info.Mode().IsRegular() {
			continue
		}
		j.segs = append(j.segs, &segment{path: filepath.Join(j.dir, e.Name()), start: start, size: info.Size()})
		j.total += info.Size()
	}
	slices.SortFunc(j.segs, bySegmentStart)
	for len(j.segs) > 0 {
		last := j.segs[len(j.segs)-1]
		whole, err := j.scan(last)
		if err != nil {
			return err
		}
		j.total += whole - last.size
		last.size = whole
		if whole > 0 {
			return nil
		}
		if err := os.Remove(last.path); err != nil {
			return err
		}
		j.segs = j.segs[:len(j.segs)-1]
	}
	return nil
}

func bySegmentStart(a, b *segment) int { return cmp.Compare(a.start, b.start) }

// scan reads the last segment and returns how much of it is whole frames.
func (j *journal) scan(s *segment) (whole int64, err error) {
	b, err := os.ReadFile(s.path)
	if err != nil {
		return 0, err
	}
	j.next = s.start
	for dec := NewDecoder(bytes.NewReader(b)); ; {
		f, err := dec.Next()
		if err != nil { // the end, or what is no frame: a write that was cut off
			break
		}
		whole += int64(frameHead + len(f.Data))
		j.next = f.Offset
		switch f.Kind {
		case Stdout, Stderr:
			j.next += int64(len(f.Data))
		case End:
			j.ended, j.end = true, f.Data
		}
	}
	j.written = j.next
	return whole, nil
}

// Bounds returns the offset of the first output that is there, the one after the newest, and whether the run's end is there.
func (r *Recording) Bounds() (first, next int64, ended bool) {
	first, next = r.j.bounds()
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	return first, next, r.j.ended
}

// Add adds the next frame of the run. What was added before is not added again, and what lies between is a gap. After an error nothing
// was added, and the same frame may be tried again.
func (r *Recording) Add(f Frame) error {
	j := r.j
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return nil
	}
	if f.Offset > j.next { // the next write tells it
		j.next = f.Offset
	}
	switch f.Kind {
	case Stdout, Stderr:
		skip := j.next - f.Offset
		if skip >= int64(len(f.Data)) {
			return nil
		}
		f.Data, f.Offset = f.Data[skip:], j.next
	case End:
		f.Offset = j.next
	default:
		return nil
	}
	j.buf = j.buf[:0]
	if j.written < j.next {
		j.buf = AppendFrame(j.buf, GapFrame(j.written, j.next))
	}
	j.buf = AppendFrame(j.buf, f)
	if err := j.write(j.buf); err != nil {
		return fmt.Errorf("guest: recording: %w", err)
	}
	if f.Kind == End {
		j.seal()
		j.ended, j.end, j.buf = true, bytes.Clone(f.Data), nil
	} else {
		j.next += int64(len(f.Data))
	}
	j.written = j.next
	j.wake()
	return nil
}

// Wake makes those who wait for more look again.
func (r *Recording) Wake() {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	r.j.wake()
}

// Close closes what is open. The recording stays where it is.
func (r *Recording) Close() {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	r.j.seal()
}

// Replay reads a recording from an offset on, at its own pace.
type Replay struct{ r *reader }

// From begins to read at offset.
func (r *Recording) From(offset int64) *Replay { return &Replay{r.j.newReader(offset)} }

// Next returns the next frame. With nothing more now it returns ErrNoMore and a channel that is closed when that may have changed; after
// the End frame, io.EOF. What isn't there is a gap. A frame's data is the caller's.
func (p *Replay) Next() (Frame, <-chan struct{}, error) {
	f, wait, err := p.r.next()
	if err == nil {
		f.Data = bytes.Clone(f.Data)
	}
	return f, wait, err
}

// Close ends the reading.
func (p *Replay) Close() { p.r.close() }
