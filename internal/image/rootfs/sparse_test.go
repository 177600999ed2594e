package rootfs_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
)

// sparse is the archive of one sparse file: "begin" at its begin, "end" at its end, and a hole between. archive/tar can read these
// formats, but not write them.
func sparse(t testing.TB, format, name string, size int64) []byte {
	t.Helper()
	frags := []struct {
		off  int64
		data string
	}{{0, "begin"}, {size - 3, "end"}}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Format: tar.FormatPAX}
	body := frags[0].data + frags[1].data
	switch format {
	case "0.1":
		h.PAXRecords = map[string]string{
			"GNU.sparse.size": fmt.Sprint(size), "GNU.sparse.numblocks": "2",
			"GNU.sparse.map": fmt.Sprintf("0,5,%d,3", size-3), "GNU.sparse.name": name,
		}
	case "1.0":
		h.PAXRecords = map[string]string{
			"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": fmt.Sprint(size), "GNU.sparse.name": name,
		}
		m := fmt.Sprintf("2\n0\n5\n%d\n3\n", size-3)
		body = m + strings.Repeat("\x00", 512-len(m)) + body
	case "gnu":
		return gnuSparse(name, size, body)
	}
	h.Size = int64(len(body))
	if h.PAXRecords != nil {
		// archive/tar refuses to write these records, so they are written as the body of a header of their own.
		var recs strings.Builder
		for k, v := range h.PAXRecords {
			n := len(k) + len(v) + 3
			for len(strconv.Itoa(n))+len(k)+len(v)+3 != n {
				n = len(strconv.Itoa(n)) + len(k) + len(v) + 3
			}
			fmt.Fprintf(&recs, "%d %s=%s\n", n, k, v)
		}
		raw(&b, &tar.Header{Typeflag: tar.TypeXHeader, Name: "PaxHeaders/" + name, Size: int64(recs.Len())}, recs.String())
		h.PAXRecords = nil
	}
	raw(&b, h, body)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// raw writes a header in the oldest format, and its body.
func raw(w *bytes.Buffer, h *tar.Header, body string) {
	b := make([]byte, 512)
	copy(b, h.Name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x0000000000000\x00", h.Size))
	b[156] = h.Typeflag
	copy(b[257:], "ustar\x0000")
	seal(b)
	w.Write(b)
	w.WriteString(body)
	w.Write(make([]byte, (512-len(body)%512)%512))
}

func seal(b []byte) {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// gnuSparse is the old format of GNU tar, with its map in the header.
func gnuSparse(name string, size int64, body string) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x0000000000000\x00", len(body)))
	b[156] = tar.TypeGNUSparse
	copy(b[257:], "ustar  \x00")
	for i, n := range []int64{0, 5, size - 3, 3} {
		copy(b[386+12*i:], fmt.Sprintf("%011o\x00", n))
	}
	copy(b[483:], fmt.Sprintf("%011o\x00", size))
	seal(b)
	b = append(b, body...)
	return append(b, make([]byte, 512-len(body)+1024)...)
}

// TestSparse reads sparse files of all formats. What is a hole in the archive costs no disk.
func TestSparse(t *testing.T) {
	const size = 6 << 30
	for _, format := range []string{"0.1", "1.0", "gnu"} {
		t.Run(format, func(t *testing.T) {
			name, stats, err := write(t, rootfs.Limits{}, sparse(t, format, "s", size))
			if err != nil {
				t.Fatal(err)
			}
			if stats.Bytes != size {
				t.Errorf("%d bytes, want %d", stats.Bytes, int64(size))
			}
			if used := onDisk(t, name); used > 1<<20 {
				t.Errorf("it takes %d bytes on disk", used)
			}
			img, err := rootfs.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer img.Close()
			f, err := img.Open("s")
			if err != nil {
				t.Fatal(err)
			}
			var begin, end [8]byte
			r := f.(io.ReaderAt)
			if _, err := r.ReadAt(begin[:], 0); err != nil || string(begin[:]) != "begin\x00\x00\x00" {
				t.Errorf("begin %q, %v", begin, err)
			}
			if _, err := r.ReadAt(end[:], size-8); err != nil || string(end[:]) != "\x00\x00\x00\x00\x00end" {
				t.Errorf("end %q, %v", end, err)
			}
		})
	}
}

// TestSparseBombs asks for more than there is.
func TestSparseBombs(t *testing.T) {
	for _, size := range []int64{65 << 30, math.MaxInt64} {
		_, _, err := write(t, rootfs.Limits{}, sparse(t, "1.0", "s", size))
		badLayer(t, err, "limit Bytes")
	}
	_, _, err := write(t, rootfs.Limits{Bytes: 1 << 20}, sparse(t, "0.1", "a", 600<<10), sparse(t, "0.1", "b", 600<<10))
	badLayer(t, err, `layer 2, entry "b"`)
}

// TestReplacedFilesAreFreed has a large file in one layer that the next replaces.
func TestReplacedFilesAreFreed(t *testing.T) {
	large := strings.Repeat("x", 32<<20)
	for name, next := range map[string]ent{"Replaced": file("d/a", "1"), "Whiteout": file("d/.wh.a", ""), "Opaque": file(".wh..wh..opq", "")} {
		f, stats, err := write(t, rootfs.Limits{}, archive(t, file("d/a", large)), archive(t, next))
		if err != nil {
			t.Fatal(err)
		}
		if used := onDisk(t, f); used > 1<<20 || stats.Bytes > 1 {
			t.Errorf("%s: %+v, %d bytes on disk", name, stats, used)
		}
	}
}

func onDisk(t *testing.T, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}
