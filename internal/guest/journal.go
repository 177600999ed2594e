package guest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// segmentFile is what a journal needs of a file that it writes.
type segmentFile interface {
	io.Writer
	io.Closer
}

// segment is one file of a journal: frames in order, the first of them at offset start. Only the first size bytes count;
// what a failed write left after them is never read.
type segment struct {
	path  string
	start int64
	size  int64
}

// journal is the output of one run on disk, bounded, written before anyone reads it. Offsets count bytes of output.
// One goroutine per stream writes, any number read, and no reader can delay a writer.
//
// A write that fails loses its bytes and nothing else: the run goes on, later writes are tried, and readers are told of
// the hole by a Gap frame.
type journal struct {
	dir     string
	limit   int64 // of bytes on disk
	segSize int64 // a segment is closed when it has grown to this
	keep    int   // so many of the first segments stay, whatever comes after
	open    func(path string) (segmentFile, error)
	read    func(path string) (*os.File, error) // how readers open a segment; nil = os.Open
	failed  func(error)                         // told of the first of a row of failed writes

	mu      sync.Mutex
	segs    []*segment
	active  segmentFile // the last segment's file, nil if the next write must begin a segment
	total   int64       // bytes on disk
	next    int64       // offset after the newest output, lost or not
	written int64       // offset up to which the files tell the story; less than next while writes fail
	end     []byte      // data of the End frame
	ended   bool
	changed chan struct{} // closed at the next change; nil when nobody waits
	buf     []byte
}

// createSegment is journal.open outside of tests.
func createSegment(path string) (segmentFile, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
}

// newJournal makes the directory, which must not exist yet.
func newJournal(dir string, limit int64, failed func(error)) (*journal, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("guest: journal: %w", err)
	}
	const least = 2 * (frameHead + MaxFrame)
	return &journal{
		dir:     dir,
		limit:   max(limit, 2*least),
		segSize: min(max(limit/16, least), 4<<20),
		open:    createSegment,
		failed:  failed,
	}, nil
}

// append adds output of one stream. It never fails: what can't be written becomes a gap.
func (j *journal) append(kind Kind, data []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return // the End frame is the last one
	}
	for most := max(int(j.segSize/4), MaxFrame); len(data) > 0; {
		n := min(len(data), most)
		j.appendFrames(kind, data[:n])
		data = data[n:]
	}
	j.wake()
}

// appendFrames writes output as frames, and before them the gap of earlier failures, in one write.
func (j *journal) appendFrames(kind Kind, data []byte) {
	wasGood := j.written == j.next
	j.buf = j.buf[:0]
	if !wasGood {
		j.buf = AppendFrame(j.buf, GapFrame(j.written, j.next))
	}
	for at := 0; at < len(data); at += MaxFrame {
		j.buf = AppendFrame(j.buf, Frame{Kind: kind, Offset: j.next + int64(at), Data: data[at:min(at+MaxFrame, len(data))]})
	}
	err := j.write(j.buf)
	j.next += int64(len(data))
	if err == nil {
		j.written = j.next
	} else if wasGood && j.failed != nil {
		j.failed(err)
	}
}

// write appends whole frames to the active segment, beginning one and dropping the oldest ones as needed.
func (j *journal) write(b []byte) error {
	n := int64(len(b))
	if j.active != nil && j.segs[len(j.segs)-1].size+n > j.segSize {
		j.seal()
	}
	if j.active == nil {
		path := filepath.Join(j.dir, fmt.Sprintf("%019d", j.written))
		f, err := j.open(path)
		if err != nil {
			return err
		}
		j.active = f
		j.segs = append(j.segs, &segment{path: path, start: j.written})
	}
	for j.total+n > j.limit && len(j.segs) > j.keep+1 {
		j.dropOldest()
	}
	seg := j.segs[len(j.segs)-1]
	if _, err := j.active.Write(b); err != nil {
		// The file may now end in half a frame: never append to it again.
		j.seal()
		if seg.size == 0 {
			j.segs = j.segs[:len(j.segs)-1]
			_ = os.Remove(seg.path) // best effort: the next try truncates it
		}
		return err
	}
	seg.size += n
	j.total += n
	return nil
}

// seal closes the active segment; the next write begins another.
func (j *journal) seal() {
	if j.active != nil {
		_ = j.active.Close() // nothing is buffered, and what was written has been counted
		j.active = nil
	}
}

func (j *journal) dropOldest() {
	old := j.segs[j.keep]
	j.total -= old.size
	_ = os.Remove(old.path) // a reader that holds it open goes on to its end
	j.segs = slices.Delete(j.segs, j.keep, j.keep+1)
}

// finish makes End the last frame. Data is its content.
func (j *journal) finish(data []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seal()
	j.ended, j.end, j.buf = true, data, nil
	j.wake()
}

// bounds returns the offset of the oldest output that is still there, and the one after the newest.
func (j *journal) bounds() (first, next int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segs) == 0 {
		if j.total == 0 && j.next == j.written {
			return 0, j.next
		}
		return j.next, j.next
	}
	return j.segs[0].start, j.next
}

// size returns the bytes on disk.
func (j *journal) size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.total
}

// remove deletes the files. Readers come to an end of their own.
func (j *journal) remove() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seal()
	j.segs, j.total = nil, 0
	return os.RemoveAll(j.dir)
}

// wake tells everyone who waits that something changed. The lock is held.
func (j *journal) wake() {
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}
