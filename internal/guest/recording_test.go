package guest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func openRecording(t *testing.T, dir string, limit int64) *guest.Recording {
	t.Helper()
	r, err := guest.OpenRecording(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// replay reads what a recording holds from an offset on; what isn't there is zeros.
func replay(t *testing.T, r *guest.Recording, offset int64) (out []byte, missing int64, end *guest.Run) {
	t.Helper()
	p := r.From(offset)
	defer p.Close()
	for at := offset; ; {
		f, _, err := p.Next()
		switch {
		case errors.Is(err, guest.ErrNoMore) || errors.Is(err, io.EOF):
			return out, missing, end
		case err != nil:
			t.Fatal(err)
		case f.Kind == guest.Gap:
			if f.GapBegin() != at {
				t.Fatalf("a gap from %d, want %d", f.GapBegin(), at)
			}
			missing += f.Offset - at
			out = append(out, make([]byte, f.Offset-at)...)
			at = f.Offset
		case f.Kind == guest.End:
			run, err := f.Run()
			if err != nil {
				t.Fatal(err)
			}
			end = &run
		case f.Offset != at:
			t.Fatalf("output at %d, want %d", f.Offset, at)
		default:
			out = append(out, f.Data...)
			at += int64(len(f.Data))
		}
	}
}

// noise is output that tells where it is from.
func noise(n int) []byte {
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%d\n", b.Len())
	}
	return b.Bytes()[:n]
}

// frames cuts output into frames of any length.
func frames(all []byte, most int) (fs []guest.Frame) {
	for at := 0; at < len(all); {
		n := min(1+rand.IntN(most), len(all)-at)
		fs = append(fs, guest.Frame{Kind: guest.Kind(1 + rand.IntN(2)), Offset: int64(at), Data: all[at : at+n]})
		at += n
	}
	return fs
}

var ending = []byte(`{"id":"it","state":"exited","code":3}`)

// A recording is opened again and again, each time after its writer was killed in the middle of a write: what comes after is told from
// where it has come to, and nothing is there twice.
func TestRecordingIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "account", "run")
	all := noise(600_000)
	fs := append(frames(all, 9000), guest.Frame{Kind: guest.End, Offset: int64(len(all)), Data: ending})
	for i := 0; i < len(fs); {
		r := openRecording(t, dir, 4<<20)
		_, next, ended := r.Bounds()
		if ended {
			t.Fatal("it has ended")
		}
		for i > 0 && fs[i].Offset+int64(len(fs[i].Data)) > next && fs[i].Offset > next { // what it has lost comes again
			i--
		}
		for n := rand.IntN(8) + 1; n > 0 && i < len(fs); n-- {
			if err := r.Add(fs[i]); err != nil {
				t.Fatal(err)
			}
			i++
		}
		r.Close()
		if i == len(fs) {
			break
		}
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(names) == 0 {
			t.Fatal(names, err)
		}
		last := slices.Max(names)
		if info, err := os.Stat(last); err != nil {
			t.Fatal(err)
		} else if err := os.Truncate(last, info.Size()-rand.Int64N(min(info.Size(), 100)+1)); err != nil {
			t.Fatal(err)
		}
	}
	r := openRecording(t, dir, 4<<20)
	for _, from := range []int64{0, 1, 12345, int64(len(all)) - 1, int64(len(all))} {
		out, missing, end := replay(t, r, from)
		if !bytes.Equal(out, all[from:]) || missing != 0 || end == nil || end.Code == nil || *end.Code != 3 {
			t.Errorf("from %d: %d bytes, %d missing, %+v", from, len(out), missing, end)
		}
	}
	if err := r.Add(fs[0]); err != nil { // is of no account any more
		t.Error(err)
	}
}

// Of too much output the beginning and the end are there, and the files are no larger than they may be.
func TestRecordingKeepsBothEnds(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	dir := filepath.Join(t.TempDir(), "run")
	all := noise(5 << 20)
	r := openRecording(t, dir, limit)
	for _, f := range frames(all, guest.MaxFrame) {
		if err := r.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Add(guest.Frame{Kind: guest.End, Offset: int64(len(all)), Data: ending}); err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, name := range glob(t, filepath.Join(dir, "*")) {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > limit+guest.MaxFrame+100 {
		t.Errorf("%d bytes on disk", size)
	}
	for name, r := range map[string]*guest.Recording{"at once": r, "opened again": openRecording(t, dir, limit)} {
		out, missing, end := replay(t, r, 0)
		if len(out) != len(all) || end == nil {
			t.Fatalf("%s: %d bytes, %+v", name, len(out), end)
		}
		if missing < int64(len(all))-limit || missing > int64(len(all))-limit/2 {
			t.Errorf("%s: %d bytes are missing", name, missing)
		}
		hole := bytes.IndexByte(out, 0)
		rest := hole + int(missing)
		if hole < limit/6 || !bytes.Equal(out[:hole], all[:hole]) || len(all)-rest < limit/2 || !bytes.Equal(out[rest:], all[rest:]) {
			t.Errorf("%s: the hole is from %d to %d", name, hole, rest)
		}
	}
}

// What was skipped is a gap, wherever reading begins.
func TestRecordingWithAGap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := openRecording(t, dir, 1<<20)
	for _, f := range []guest.Frame{
		{Kind: guest.Stdout, Data: []byte("begin")},
		{Kind: guest.Stdout, Offset: 105, Data: []byte("end")},
		{Kind: guest.Stdout, Offset: 106, Data: []byte("nd.")},
		{Kind: guest.End, Offset: 119, Data: ending},
	} {
		if err := r.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []*guest.Recording{r, openRecording(t, dir, 1<<20)} {
		for from, want := range map[int64]string{0: "begin" + strings.Repeat("\x00", 100) + "end." + strings.Repeat("\x00", 10), 50: strings.Repeat("\x00", 55) + "end." + strings.Repeat("\x00", 10), 107: "d." + strings.Repeat("\x00", 10), 115: "\x00\x00\x00\x00"} {
			if out, _, end := replay(t, r, from); string(out) != want || end == nil {
				t.Errorf("from %d: %q, %v", from, out, end)
			}
		}
	}
}

// A disk that is full costs nothing that is tried again.
func TestRecordingOnAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("no mounts here: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	r := openRecording(t, filepath.Join(dir, "run"), 1<<20)
	all := noise(50 << 10)
	failed := 0
	for _, f := range append(frames(all, 5000), guest.Frame{Kind: guest.End, Offset: int64(len(all)), Data: ending}) {
		for r.Add(f) != nil {
			if failed++; failed > 1 {
				t.Fatal("it fails again")
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		}
	}
	if failed == 0 {
		t.Error("the disk was never full")
	}
	for _, r := range []*guest.Recording{r, openRecording(t, filepath.Join(dir, "run"), 1<<20)} {
		if out, missing, end := replay(t, r, 0); !bytes.Equal(out, all) || missing != 0 || end == nil {
			t.Errorf("%d bytes, %d missing, %v", len(out), missing, end)
		}
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return names
}
