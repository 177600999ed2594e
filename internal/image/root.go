package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// rootVersion is part of a root's name: when roots are written in another way, those that lie there are made anew.
const rootVersion = "1"

// chainOf names the root of a list of layers.
func chainOf(layers []Layer) string {
	h := sha256.New()
	fmt.Fprintln(h, "root", rootVersion)
	for _, l := range layers {
		fmt.Fprintln(h, l.DiffID)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ensureRoot writes the root of these layers unless it is there. The caller has the layers and the root pinned. report, if any, is told
// how many unpacked bytes of the layers were read.
func (s *Store) ensureRoot(ctx context.Context, layers []Layer, report func(done int64)) error {
	chain := chainOf(layers)
	unlock, err := s.keys.lock(ctx, "root:"+chain)
	if err != nil {
		return err
	}
	defer unlock()
	if fi, err := os.Lstat(s.rootPath(chain)); err == nil && fi.Mode().IsRegular() {
		return nil
	}
	f, err := s.temp("root") // for its name
	if err != nil {
		return err
	}
	name := f.Name()
	defer os.Remove(name)
	if err := errors.Join(f.Close(), os.Remove(name)); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	open := make([]rootfs.Layer, len(layers))
	read := &rootReader{report: report}
	for i, l := range layers {
		open[i] = func(ctx context.Context) (io.ReadCloser, error) { return s.openLayer(ctx, l, read) }
	}
	if _, err := rootfs.Write(ctx, name, open, rootfs.Limits{Bytes: s.cfg.MaxBytes, Entries: s.cfg.MaxEntries}); err != nil {
		return s.rootError(ctx, err, read)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	w, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if err := seal(w); err != nil {
		return err
	}
	if err := place(name, s.rootPath(chain)); err != nil {
		return fmt.Errorf("image: storing the root: %w", err)
	}
	return nil
}

// rootError explains why a root could not be written.
func (s *Store) rootError(ctx context.Context, err error, read *rootReader) error {
	var p *sandbox.Problem
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case read.failed() != nil: // the layers on our disk are no longer what was verified
		return read.failed()
	case errors.As(err, &p):
		return err
	case code(diskFull(err)) != "":
		return diskFull(err)
	}
	return badImage(err, "The layers of the image don't make a root file system: %v.", err)
}

// rootReader is what the readers of all layers of one root share.
type rootReader struct {
	report func(int64)

	mu   sync.Mutex
	done int64
	err  error
}

func (r *rootReader) add(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done += int64(n)
	if r.report != nil {
		r.report(r.done)
	}
}

func (r *rootReader) fail(l Layer, err error) error {
	err = &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "image_damaged", Err: err,
		Detail: fmt.Sprintf("The stored layer %s is damaged. Delete the image and pull it again.", l.Digest)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	return err
}

func (r *rootReader) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// openLayer opens the tar of a layer. What is read to its end is checked once more: disks rot.
func (s *Store) openLayer(ctx context.Context, l Layer, shared *rootReader) (io.ReadCloser, error) {
	f, err := os.Open(s.blobPath(l.Digest))
	if err != nil {
		return nil, shared.fail(l, err)
	}
	z, err := decompress(f)
	if err != nil {
		return nil, errors.Join(shared.fail(l, err), f.Close())
	}
	return &layerReader{ctx: ctx, z: z, f: f, l: l, sum: sha256.New(), shared: shared}, nil
}

type layerReader struct {
	ctx    context.Context
	z      io.ReadCloser
	f      *os.File
	l      Layer
	sum    hash.Hash
	shared *rootReader
}

func (r *layerReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.z.Read(p)
	_, _ = r.sum.Write(p[:n])
	r.shared.add(n)
	if errors.Is(err, io.EOF) && digestOf(r.sum) != r.l.DiffID {
		err = errors.New("its content was changed")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.shared.fail(r.l, err)
	}
	return n, err
}

func (r *layerReader) Close() error { return errors.Join(r.z.Close(), r.f.Close()) }
