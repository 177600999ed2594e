package guest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Tail reads a run's journal where its guest has put it, for an engine whose guests' state is on this host: the guest has no work with
// that. Whoever is root in the sandbox may write there: nothing but plain files is opened, no link leads out, and what isn't a journal is a
// gap. It is for one goroutine.
type Tail struct {
	root *os.Root
	dir  string
	j    *journal
	r    *reader
	size int64 // of all that was there at the last look
}

// OpenTail begins to read at offset. stateDir is the guest's.
func OpenTail(stateDir, run string, offset int64) (*Tail, error) {
	if run == "." || !filepath.IsLocal(run) || filepath.Base(run) != run {
		return nil, fs.ErrInvalid
	}
	root, err := os.OpenRoot(stateDir)
	if err != nil {
		return nil, err
	}
	t := &Tail{root: root, dir: filepath.Join("runs", run)}
	t.j = &journal{read: func(path string) (*os.File, error) {
		f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			_ = f.Close() // never used
			return nil, fs.ErrInvalid
		}
		return f, nil
	}}
	t.r = t.j.newReader(offset)
	return t, nil
}

// Next returns the next frame, whose data is the caller's. With nothing more now it returns ErrNoMore: ask again. There is never an End.
func (t *Tail) Next() (Frame, error) {
	f, _, err := t.r.next()
	if errors.Is(err, ErrNoMore) && t.look() {
		f, _, err = t.r.next()
	}
	if err == nil {
		f.Data = slices.Clone(f.Data)
	}
	return f, err
}

// Close ends the reading.
func (t *Tail) Close() {
	t.r.close()
	_ = t.root.Close() // only read from
}

// look looks which segments there are, and how large they are. It reports whether that has changed.
func (t *Tail) look() bool {
	dir, err := t.root.Open(t.dir)
	if err != nil {
		return false
	}
	const most = 1000 // a journal has fewer
	entries, _ := dir.ReadDir(most)
	_ = dir.Close() // only read from
	var segs []*segment
	var size int64
	for _, e := range entries {
		start, err := strconv.ParseInt(e.Name(), 10, 64)
		if err != nil || start < 0 || !e.Type().IsRegular() {
			continue
		}
		// After the listing: of all but the last this is the size for good.
		info, err := t.root.Lstat(filepath.Join(t.dir, e.Name()))
		if err != nil {
			continue
		}
		segs = append(segs, &segment{path: filepath.Join(t.dir, e.Name()), start: start, size: info.Size()})
		size += start + info.Size()
	}
	if size == t.size {
		return false
	}
	t.size = size
	slices.SortFunc(segs, bySegmentStart)
	for i, s := range segs { // the reader knows the one that it is in
		if t.r.seg != nil && t.r.seg.start == s.start {
			t.r.seg.size = s.size
			segs[i] = t.r.seg
		}
	}
	t.j.segs = segs
	return true
}
