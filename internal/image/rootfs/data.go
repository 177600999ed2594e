package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

const (
	blockBits = 12 // gVisor wants whole pages
	blockSize = 1 << blockBits
)

var zeros [blockSize]byte

// data writes contents of files to the blocks where they stay.
type data struct {
	f    *os.File
	next int64 // where the next file begins
	buf  []byte
	err  error // of the host, not of a layer
}

func newData(f *os.File) *data {
	return &data{f: f, next: blockSize, buf: make([]byte, 256*blockSize)} // the first block is the superblock
}

// blocks says how many blocks n bytes take.
func blocks(n int64) int64 { return (n + blockSize - 1) / blockSize }

// put stores size bytes of r. A block of zeros is left out, so it is a hole of the file and costs nothing.
func (d *data) put(r io.Reader, size int64) (uint32, error) {
	if size == 0 {
		return 0, nil
	}
	first := d.next / blockSize
	if first+blocks(size) >= math.MaxUint32 {
		return 0, bad("the image is larger than EROFS can be")
	}
	for left := size; left > 0; {
		b := d.buf[:min(int64(len(d.buf)), left)]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		if d.err = d.write(b, d.next+size-left); d.err != nil {
			return 0, d.err
		}
		left -= int64(len(b))
	}
	d.next += blocks(size) * blockSize
	return uint32(first), nil
}

// write writes the blocks of b that are not zero, neighbours at once.
func (d *data) write(b []byte, off int64) error {
	flush := func(from, to int) error {
		if from == to {
			return nil
		}
		if _, err := d.f.WriteAt(b[from:to], off+int64(from)); err != nil {
			return fmt.Errorf("writing contents: %w", err)
		}
		return nil
	}
	begin := 0
	for i := 0; i < len(b); i += blockSize {
		end := min(i+blockSize, len(b))
		if !bytes.Equal(b[i:end], zeros[:end-i]) {
			continue
		}
		if err := flush(begin, i); err != nil {
			return err
		}
		begin = end
	}
	return flush(begin, len(b))
}

// free gives the disk back what a file held that a later entry replaced. The blocks are not used again, so where the host's file
// system knows no holes, they stay.
func (d *data) free(block uint32, size int64) {
	if size > 0 {
		_ = unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(block)*blockSize, blocks(size)*blockSize)
	}
}
