// Package rootfs merges an image's layers into one EROFS file, which gVisor mounts as a sandbox's root, reads such files, and turns
// what a sandbox changed back into a layer.
//
// No layer is ever unpacked onto the host: entries become nodes of a tree in memory, and contents go from the stream straight to
// their final blocks. So a hostile layer has no path, link, owner or device of this machine to reach for, and root is not needed.
//
// What gVisor can read decides the format: no compression, no chunks, no extended attributes, no inline data of regular files.
// github.com/erofs/go-erofs can't write that: it stores small files inline whatever one asks, and gVisor can't map those; it has no hard
// links; it puts attributes on inodes, which gVisor then refuses to read; its holes are chunks, which gVisor doesn't know. Its
// reader goes by paths from the root and resolves .. by their text, so a hostile link can cost minutes, or lead elsewhere than in the
// sandbox. So both sides of the format are here (format.go, reader.go), the library checks them in the tests, and:
//
//   - Extended attributes stand in a table behind the file system, which gVisor doesn't look at and Open does. A sandbox doesn't see
//     them; COPY --from does.
//   - A hole of a sparse file is a hole of the EROFS file itself: blocks of zeros are never written.
//   - A character device can't be seen in a sandbox: gVisor reads no device numbers from EROFS, so every one looks like a whiteout
//     (0:0) to its overlay. /dev is gVisor's own in any case.
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Layer opens one layer as an uncompressed tar stream; it may be called more than once.
type Layer func(ctx context.Context) (io.ReadCloser, error)

// Limits bound what layers may ask for, all of them together, whether or not a later layer hides it. Zero is a default.
type Limits struct {
	Bytes    int64 // contents of regular files, holes included; 64 GiB
	Entries  int64 // entries of the layers, and directories that they only imply; 1,000,000
	Metadata int64 // names, link targets and extended attributes, which are held in memory; 256 MiB
}

func (l Limits) withDefaults() Limits {
	set := func(n *int64, v int64) {
		if *n <= 0 {
			*n = v
		}
	}
	set(&l.Bytes, 64<<30)
	set(&l.Entries, 1_000_000)
	set(&l.Metadata, 256<<20)
	return l
}

// stream is how many bytes of tar the other limits can need: headers and padding included, so that a stream of
// nothing but headers ends too.
func (l Limits) stream() int64 {
	const perEntry = 8 << 10 // headers, extended headers, padding
	n := float64(l.Bytes) + 2*float64(l.Metadata) + perEntry*float64(l.Entries) + 1<<20
	if n >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(n)
}

// Stats tell what a merged file holds.
type Stats struct {
	Entries int64 // paths
	Bytes   int64 // contents of regular files, each hard link counted once, holes included
	Size    int64 // of the EROFS file, holes included
}

// Write merges layers, lowest first, into an EROFS file at path, which appears when it is complete and on disk, or not at all. What
// it makes on the way is called .rootfs-* in the same directory; such files are left only by a crash. The same layers give
// the same bytes.
func Write(ctx context.Context, path string, layers []Layer, l Limits) (_ Stats, err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".rootfs-*")
	if err != nil {
		return Stats{}, fmt.Errorf("making the root file system: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignore(f.Close(), os.ErrClosed), ignore(os.Remove(f.Name()), os.ErrNotExist))
		}
	}()
	m := newMerge(f, l.withDefaults())
	for i, open := range layers {
		if err := m.layer(ctx, i, open); err != nil {
			return Stats{}, err
		}
	}
	stats, err := m.finish(ctx)
	if err != nil {
		return Stats{}, fmt.Errorf("writing the root file system: %w", err)
	}
	if err := f.Sync(); err != nil {
		return Stats{}, fmt.Errorf("writing the root file system: %w", err)
	}
	if err := f.Close(); err != nil {
		return Stats{}, fmt.Errorf("writing the root file system: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return Stats{}, fmt.Errorf("putting the root file system in place: %w", err)
	}
	return stats, syncDir(dir)
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("putting the root file system in place: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("putting the root file system in place: %w", err)
	}
	return nil
}

// bad is the error of a layer that can't be merged. The caller adds which layer and entry it is.
func bad(format string, args ...any) *sandbox.Problem {
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "bad_layer", Detail: fmt.Sprintf(format, args...)}
}
