package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// budget bounds what all layers of one image unpack to, together.
type budget struct {
	limit int64
	used  atomic.Int64
}

func (s *Store) budget() *budget { return &budget{limit: s.cfg.MaxBytes} }

// measured is what a layer turned out to be.
type measured struct {
	digest, diffID string
	size, unpacked int64
	broken         error // it can't be unpacked
}

// measure copies a layer to dst and looks into it on the way: nothing is held in memory, and it is read once.
func measure(ctx context.Context, src io.Reader, dst io.Writer, b *budget) (measured, error) {
	in, out, sum, diff := &counted{ctx: ctx, r: src}, &noted{w: dst}, sha256.New(), sha256.New()
	tee := io.TeeReader(in, io.MultiWriter(out, sum))
	m := measured{}
	m.unpacked, m.broken = unpack(tee, diff, b)
	if !errors.Is(m.broken, errBudget) {
		_, _ = io.Copy(io.Discard, tee) // the rest counts for the digest; in and out have noted what fails
	}
	switch {
	case in.err != nil:
		return m, in.err
	case out.err != nil:
		return m, out.err
	case errors.Is(m.broken, errBudget):
		return m, tooBig(b.limit)
	}
	m.size, m.digest, m.diffID = in.n, digestOf(sum), digestOf(diff)
	return m, nil
}

var errBudget = errors.New("the limit is reached")

func unpack(r io.Reader, to io.Writer, b *budget) (n int64, err error) {
	z, err := decompress(r)
	if err != nil {
		return 0, err
	}
	defer z.Close()
	buf := make([]byte, 128<<10)
	for {
		k, err := z.Read(buf)
		n += int64(k)
		if b.used.Add(int64(k)) > b.limit {
			return n, errBudget
		}
		_, _ = to.Write(buf[:k]) // a hash
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// counted notes how much was read and what failed, which decompressors hide.
type counted struct {
	ctx context.Context
	r   io.Reader
	n   int64
	err error
}

func (c *counted) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil && c.err == nil {
		c.err = context.Cause(c.ctx)
	}
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

type noted struct {
	w   io.Writer
	err error
}

func (w *noted) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.err = diskFull(fmt.Errorf("storing a layer: %w", err))
	}
	return n, err
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

func digestBytes(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// temp makes a file for work under way.
func (s *Store) temp(kind string) (*os.File, error) {
	f, err := os.CreateTemp(s.path("tmp", ""), kind+"-*")
	if err != nil {
		return nil, diskFull(fmt.Errorf("image: %w", err))
	}
	return f, nil
}

// seal puts a temporary file on disk for good, so that what is renamed is whole after a crash of the machine too.
func seal(f *os.File) error {
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return diskFull(fmt.Errorf("storing on disk: %w", err))
	}
	return nil
}

// place renames a sealed file to where it belongs.
func place(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return diskFull(err)
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeJSON replaces a file at once or not at all.
func (s *Store) writeJSON(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.writeFile(name, data)
}

func (s *Store) writeFile(name string, data []byte) error {
	f, err := s.temp("file")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(data); err != nil {
		return errors.Join(diskFull(err), f.Close())
	}
	if err := seal(f); err != nil {
		return err
	}
	return place(f.Name(), name)
}

// layer tells what is known of a blob that is there. The caller has it pinned.
func (s *Store) layer(digest string) (layerInfo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.layers[digest]
	if !ok {
		return layerInfo{}, false
	}
	if fi, err := os.Stat(s.blobPath(digest)); err != nil || fi.Size() != l.Size {
		delete(s.layers, digest) // somebody took it away
		return layerInfo{}, false
	}
	return *l, true
}

// layerOf finds a blob by what it unpacks to, and pins it.
func (s *Store) layerOf(diffID string) (layerInfo, func(), bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		if l.DiffID == diffID {
			return *l, s.pinLocked(l.Digest), true
		}
	}
	return layerInfo{}, nil, false
}

// addLayer makes a sealed temporary file the blob of a layer. The caller has it pinned.
func (s *Store) addLayer(l layerInfo, from string) (layerInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.layers[l.Digest]
	if ok {
		hosts := l.Hosts
		l = *old
		if l.Hosts = union(old.Hosts, hosts); len(l.Hosts) == len(old.Hosts) {
			return l, nil
		}
	}
	if err := s.writeJSON(s.layerPath(l.Digest), l); err != nil {
		return l, fmt.Errorf("recording a layer: %w", err)
	}
	if !ok {
		if err := place(from, s.blobPath(l.Digest)); err != nil {
			return l, fmt.Errorf("storing a layer: %w", err)
		}
	}
	s.layers[l.Digest] = &l
	return l, nil
}

// addConfig stores a configuration. The caller has it pinned.
func (s *Store) addConfig(data []byte) error {
	name := s.blobPath(digestBytes(data))
	if fi, err := os.Stat(name); err == nil && fi.Size() == int64(len(data)) {
		return nil
	}
	if err := s.writeFile(name, data); err != nil {
		return fmt.Errorf("storing the configuration: %w", err)
	}
	return nil
}

func (s *Store) readConfig(id string) (*v1.ConfigFile, error) {
	data, err := os.ReadFile(s.blobPath(id))
	if err != nil {
		return nil, err
	}
	if digestBytes(data) != id {
		return nil, errors.New("its content was changed")
	}
	return parseConfig(data)
}

// drop removes those of these blobs and roots that no image has and nobody works with.
func (s *Store) drop(keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.dropLocked(keys); err != nil {
		s.cfg.Log.Warn("part of an image can't be removed; it is tried again later", "error", err)
	}
}

func (s *Store) dropLocked(keys []string) (freed int64, err error) {
	needed := s.neededLocked()
	for _, k := range keys {
		if needed[k] || s.pins[k] > 0 {
			continue
		}
		n, rerr := s.removeLocked(k)
		freed += n
		err = errors.Join(err, rerr)
	}
	return freed, err
}

func (s *Store) neededLocked() map[string]bool {
	needed := map[string]bool{}
	for _, r := range s.images {
		for _, k := range r.needs() {
			needed[k] = true
		}
	}
	return needed
}

// removeLocked removes a blob or a root. A root that a sandbox has a link of frees nothing yet.
func (s *Store) removeLocked(key string) (freed int64, err error) {
	name := s.rootPath(key)
	if isDigest(key) {
		name = s.blobPath(key)
	}
	var st unix.Stat_t
	if serr := unix.Stat(name, &st); serr == nil && st.Nlink == 1 {
		freed = st.Size
	}
	if isDigest(key) { // the blob goes first: a description without one is nothing
		delete(s.layers, key)
		err = os.Remove(name)
		name = s.layerPath(key)
	}
	for _, e := range []error{err, os.Remove(name)} {
		if e != nil && !errors.Is(e, fs.ErrNotExist) {
			return 0, fmt.Errorf("image: %w", e)
		}
	}
	return freed, nil
}

// sweep removes blobs or roots that no image has, nobody works with, and that were made before a time; zero means whenever.
func (s *Store) sweep(before time.Time, dir string) (freed int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := s.neededLocked()
	suffix := map[string]string{"roots": ".erofs"}[dir]
	err = s.eachFile(dir, suffix, func(name string, fi fs.FileInfo) error {
		key := strings.TrimSuffix(name, suffix)
		if dir != "roots" {
			key = "sha256:" + name
		}
		if needed[key] || s.pins[key] > 0 || !before.IsZero() && !fi.ModTime().Before(before) {
			return nil
		}
		n, err := s.removeLocked(key)
		freed += n
		return err
	})
	return freed, err
}

// Collect removes the images that keep doesn't name and nobody has used for that long, and blobs and roots of that age that belong to no
// image: of pulls that were broken off, say. It returns how many bytes of disk that freed. Work under way is not disturbed.
func (s *Store) Collect(ctx context.Context, keep func(id string) bool, olderThan time.Duration) (freed int64, err error) {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	before := time.Now().Add(-olderThan)
	all, err := s.List(ctx)
	if err != nil {
		return 0, err
	}
	for _, img := range all {
		if ctx.Err() != nil {
			return freed, context.Cause(ctx)
		}
		if img.UsedAt.After(before) || keep(img.ID) {
			continue
		}
		n, err := s.collect(img.ID, before)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	for _, dir := range []string{"blobs/sha256", "roots"} {
		n, err := s.sweep(before, dir)
		freed += n
		if err != nil {
			return freed, fmt.Errorf("image: %w", err)
		}
	}
	return freed, nil
}

// collect deletes an image unless it has come into use since it was looked at.
func (s *Store) collect(id string, before time.Time) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.images[id]
	if !ok || r.usedAt.After(before) || s.pins[id] > 0 {
		return 0, nil
	}
	return s.deleteLocked(id)
}
