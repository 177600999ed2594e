package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func openJournal(t *testing.T, limit int64) *journal {
	t.Helper()
	j, err := newJournal(filepath.Join(t.TempDir(), "j"), limit, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.remove(); err != nil {
			t.Error(err)
		}
	})
	return j
}

// readAll reads what there is from off on and checks that nothing is missing or told twice. It returns the output, with what a
// gap swallowed as zeros, and the length of all gaps.
func readAll(t *testing.T, j *journal, off int64) (out []byte, gap int64, end bool) {
	t.Helper()
	r := j.newReader(off)
	defer r.close()
	check := follower{next: off}
	for {
		f, _, err := r.next()
		if errors.Is(err, errNoMore) || errors.Is(err, io.EOF) {
			if check.ended != errors.Is(err, io.EOF) {
				t.Fatalf("ended %v, then %v", check.ended, err)
			}
			return out, gap, check.ended
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := check.check(f); err != nil {
			t.Fatal(err)
		}
		switch f.Kind {
		case Gap:
			n := f.Offset - f.GapBegin()
			out, gap = append(out, make([]byte, n)...), gap+n
		case Stdout, Stderr:
			out = append(out, f.Data...)
		}
	}
}

// text is output of n bytes without zeros.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + r.IntN(255))
	}
	return b
}

func TestJournalReadsFromEveryOffset(t *testing.T) {
	t.Parallel()
	j := openJournal(t, 1<<20)
	all := text(1, 5000)
	for rest := all; len(rest) > 0; {
		n := min(len(rest), 1+len(rest)%97)
		j.append(Stdout+Kind(n%2), rest[:n])
		rest = rest[n:]
	}
	j.finish([]byte(`{}`))
	for off := range len(all) + 1 {
		if got, gap, end := readAll(t, j, int64(off)); !bytes.Equal(got, all[off:]) || gap != 0 || !end {
			t.Fatalf("from %d: %d bytes, gap %d, end %v", off, len(got), gap, end)
		}
	}
}

func TestJournalIsBounded(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	j := openJournal(t, limit)
	all := text(2, 5<<20)
	slow := j.newReader(0) // has the first segment open when it is dropped
	defer slow.close()
	for rest := all; len(rest) > 0; {
		n := min(len(rest), 100_000)
		j.append(Stdout, rest[:n])
		rest = rest[n:]
		if len(all)-len(rest) == n {
			if f, _, err := slow.next(); err != nil || f.Offset != 0 {
				t.Fatalf("%+v, %v", f, err)
			}
		}
	}
	var onDisk int64
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		onDisk += fi.Size()
	}
	if onDisk > limit || onDisk != j.size() {
		t.Errorf("%d bytes on disk, %d counted, limit %d", onDisk, j.size(), limit)
	}
	first, next := j.bounds()
	if next != int64(len(all)) || first < next-limit || first > next-limit/2 {
		t.Errorf("bounds %d, %d", first, next)
	}
	for _, off := range []int64{0, 1, first - 1, first, first + 1, next - 1, next} {
		got, gap, _ := readAll(t, j, off)
		if want := max(0, first-off); gap != want {
			t.Errorf("from %d: gap %d, want %d", off, gap, want)
		}
		if !bytes.Equal(got[gap:], all[max(off, first):]) {
			t.Errorf("from %d: wrong output", off)
		}
	}
	check := follower{next: int64(MaxFrame)} // after the first frame
	for {
		f, _, err := slow.next()
		if err != nil {
			break
		}
		if err := check.check(f); err != nil {
			t.Fatal(err)
		}
	}
	if check.next != next {
		t.Errorf("the slow reader came to %d of %d", check.next, next)
	}
}

// badFile fails as a full disk does: after some bytes.
type badFile struct {
	segmentFile
	disk *disk
}

type disk struct {
	full     bool
	openFull bool
	torn     int // bytes that still fit
}

var errFull = errors.New("no space left")

func (f badFile) Write(b []byte) (int, error) {
	if f.disk.full {
		n, _ := f.segmentFile.Write(b[:min(f.disk.torn, len(b))])
		return n, errFull
	}
	return f.segmentFile.Write(b)
}

func TestJournalOnAFullDisk(t *testing.T) {
	t.Parallel()
	for _, torn := range []int{0, 1, 20} {
		for _, atOpen := range []bool{false, true} {
			t.Run(fmt.Sprint(torn, atOpen), func(t *testing.T) {
				t.Parallel()
				j := openJournal(t, 1<<20)
				var told int
				j.failed = func(err error) {
					told++
					if !errors.Is(err, errFull) {
						t.Errorf("told %v", err)
					}
				}
				d := &disk{torn: torn}
				j.open = func(path string) (segmentFile, error) {
					if d.full && d.openFull {
						return nil, errFull
					}
					f, err := createSegment(path)
					return badFile{f, d}, err
				}
				live := j.newReader(0)
				defer live.close()
				follow := follower{}
				catchUp := func() {
					for {
						f, _, err := live.next()
						if err != nil {
							return
						}
						if err := follow.check(f); err != nil {
							t.Fatal(err)
						}
					}
				}

				j.append(Stdout, []byte("good "))
				catchUp()
				d.full, d.openFull = true, atOpen
				j.append(Stdout, []byte("lost "))
				j.append(Stderr, []byte("lost again "))
				catchUp()
				if told != 1 {
					t.Errorf("told %d times of one failure", told)
				}
				d.full = false
				j.append(Stdout, []byte("back "))
				catchUp()
				want := "good " + string(make([]byte, 16)) + "back "
				for off := range len(want) + 1 {
					if got, _, _ := readAll(t, j, int64(off)); string(got) != want[off:] {
						t.Errorf("from %d: %q, want %q", off, got, want[off:])
					}
				}
				d.full = true
				j.append(Stdout, []byte("tail"))
				catchUp()
				if follow.next != int64(len(want)) {
					t.Errorf("the live reader is at %d of %d", follow.next, len(want))
				}
				j.finish([]byte(`{}`))
				j.append(Stdout, []byte("too late"))
				catchUp()
				if !follow.ended || follow.next != int64(len(want))+4 {
					t.Errorf("the live reader ended: %v, at %d", follow.ended, follow.next)
				}
				if got, gap, end := readAll(t, j, 0); string(got) != want+"\x00\x00\x00\x00" || gap != 20 || !end {
					t.Errorf("%q, gap %d, end %v", got, gap, end)
				}
				if first, next := j.bounds(); first != 0 || next != int64(len(want))+4 {
					t.Errorf("bounds %d, %d", first, next)
				}
			})
		}
	}
}

func TestJournalThatNeverWorked(t *testing.T) {
	t.Parallel()
	j := openJournal(t, 1<<20)
	j.open = func(string) (segmentFile, error) { return nil, errFull }
	if first, next := j.bounds(); first != 0 || next != 0 {
		t.Errorf("bounds %d, %d", first, next)
	}
	j.append(Stdout, []byte("lost"))
	if first, next := j.bounds(); first != 4 || next != 4 {
		t.Errorf("bounds %d, %d", first, next)
	}
	j.finish([]byte(`{}`))
	if got, gap, end := readAll(t, j, 1); len(got) != 3 || gap != 3 || !end {
		t.Errorf("%q, gap %d, end %v", got, gap, end)
	}
}

// Root of a sandbox can get at the files. Readers must come to an end all the same, and miss no more than is told.
func TestJournalThatWasTamperedWith(t *testing.T) {
	t.Parallel()
	damage := map[string]func(path string, size int64) error{
		"removed":   func(path string, _ int64) error { return os.Remove(path) },
		"emptied":   func(path string, _ int64) error { return os.Truncate(path, 0) },
		"cut":       func(path string, size int64) error { return os.Truncate(path, size/2) },
		"zeros":     func(path string, size int64) error { return os.WriteFile(path, make([]byte, size), 0o600) },
		"noise":     func(path string, size int64) error { return os.WriteFile(path, text(4, int(size)), 0o600) },
		"directory": func(path string, _ int64) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"an end": func(path string, size int64) error {
			return overwrite(path, size, AppendFrame(nil, Frame{Kind: End, Data: []byte("{}")}))
		},
		"a wild offset": func(path string, size int64) error {
			return overwrite(path, size, AppendFrame(nil, Frame{Kind: Stdout, Offset: 1 << 61, Data: []byte("x")}))
		},
		"a wild gap": func(path string, size int64) error {
			return overwrite(path, size, AppendFrame(nil, GapFrame(1<<60, 1<<61)))
		},
	}
	for name, spoil := range damage {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for victim := range 3 {
				j := openJournal(t, 64<<20)
				j.segSize = 1000
				all := text(3, 3000)
				for i := range 30 {
					j.append(Stdout, all[i*100:(i+1)*100])
				}
				seg := j.segs[victim]
				if victim == 2 {
					seg = j.segs[len(j.segs)-1] // the active one
				}
				if err := spoil(seg.path, seg.size); err != nil {
					t.Fatal(err)
				}
				_, _, _ = readAll(t, j, 0) // ends
				j.append(Stdout, []byte("more"))
				j.finish([]byte(`{}`))
				got, gap, end := readAll(t, j, 0)
				if !end || len(got) != 3004 || gap > 1100 || gap == 0 {
					t.Errorf("segment %d: %d bytes, gap %d, end %v", victim, len(got), gap, end)
				}
			}
		})
	}
}

// overwrite puts b at the beginning of a file and leaves the rest.
func overwrite(path string, size int64, b []byte) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	copy(old, b)
	return os.WriteFile(path, old[:size], 0o600)
}

// FuzzJournal writes pieces of any size with failures in between, and reads from any offset.
func FuzzJournal(f *testing.F) {
	f.Add([]byte{10, 200, 3, 255, 255, 7}, uint16(3), int64(5))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255}, uint16(0), int64(70000))
	f.Fuzz(func(t *testing.T, sizes []byte, failing uint16, off int64) {
		if len(sizes) > 200 {
			t.Skip()
		}
		j := openJournal(t, 1)
		j.segSize, j.limit = 20_000, 60_000
		d := &disk{torn: 5}
		j.open = func(path string) (segmentFile, error) {
			f, err := createSegment(path)
			return badFile{f, d}, err
		}
		var all []byte
		for i, n := range sizes {
			d.full = failing>>(i%16)&1 == 1
			piece := text(uint64(i), int(n)*int(n)/10+1)
			j.append(Stdout, piece)
			all = append(all, piece...)
		}
		j.finish([]byte(`{}`))
		off = min(max(off, 0), int64(len(all)))
		got, _, end := readAll(t, j, off)
		if !end || len(got) != len(all)-int(off) {
			t.Fatalf("%d bytes from %d of %d, end %v", len(got), off, len(all), end)
		}
		for i, b := range got {
			if b != 0 && b != all[int(off)+i] {
				t.Fatalf("wrong byte at %d", int(off)+i)
			}
		}
	})
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	p, ok := parseStat([]byte("12 (a) (b ) S 3 4 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876 100 200\n"))
	if !ok || p != (process{pid: 12, parent: 3, group: 4, session: 5, began: "9876", resident: 200 * int64(os.Getpagesize()), ticks: 26}) {
		t.Errorf("%+v, %v", p, ok)
	}
	for _, bad := range []string{"", "12", "12 (a", "12 )a( S 1 2 3", "12 (a) S 1", "x (a) S 3 4 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876",
		"12 (a) S x 4 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876"} {
		if p, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}
