package rootfs

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	whiteout     = ".wh."
	whiteoutMeta = ".wh..wh." // of AUFS: its own bookkeeping, except for
	opaque       = ".wh..wh..opq"
	xattrPrefix  = "SCHILY.xattr."
)

// merge is one image under way.
type merge struct {
	tree   *tree
	data   *data
	limit  Limits
	bytes  int64 // of regular files, so far
	stream int64 // of tar, so far
}

func newMerge(f *os.File, l Limits) *merge {
	m := &merge{data: newData(f), limit: l}
	m.tree = newTree(l, func(i *inode) {
		if i.is(typeRegular) {
			m.data.free(i.block, i.size)
		}
	})
	return m
}

// layer applies one layer to the tree.
func (m *merge) layer(ctx context.Context, n int, open Layer) error {
	m.tree.layer = int32(n)
	rc, err := open(ctx)
	if err != nil {
		return fmt.Errorf("opening layer %d: %w", n+1, err)
	}
	src := &source{ctx: ctx, m: m, r: rc}
	in := bufio.NewReaderSize(src, 64<<10) // archive/tar reads header by header
	name, err := m.entries(tar.NewReader(in))
	if err == nil {
		_, err = io.Copy(io.Discard, in) // padding; and a reader that checks a digest does so at the end
	}
	if cerr := rc.Close(); cerr != nil && err == nil {
		return fmt.Errorf("closing layer %d: %w", n+1, cerr)
	}
	return m.explain(n, name, err, src.err)
}

// explain tells the faults of a layer from those of its source and of this machine.
func (m *merge) explain(n int, name string, err, source error) error {
	if err == nil {
		return nil
	}
	at := fmt.Sprintf("layer %d", n+1)
	if name != "" {
		at += fmt.Sprintf(", entry %q", name)
	}
	var p *sandbox.Problem
	switch {
	case errors.As(err, &p):
		q := *p
		q.Detail = at + ": " + p.Detail
		return &q
	case m.data.err != nil:
		return fmt.Errorf("%s: %w", at, m.data.err)
	case source != nil && !errors.Is(source, io.ErrUnexpectedEOF):
		return fmt.Errorf("reading %s: %w", at, source)
	}
	// What remains is archive/tar's own; not all of its errors have names.
	p = bad("%s: it is not a tar archive, or is cut short; pull the image again, or have it rebuilt", at)
	p.Err = err
	return p
}

// source is a layer's stream, which ends when the context does, or when it is longer than its limits can need.
type source struct {
	ctx context.Context
	m   *merge
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if s.m.stream += int64(n); s.m.stream > s.m.limit.stream() {
		return n, bad("the layers are longer than the limits on bytes, entries and metadata allow in all; use a smaller image, or raise them")
	}
	if err != nil && err != io.EOF { // a wrapped one is an error
		s.err = err
	}
	return n, err
}

// entries applies every entry. With an error comes the name of the entry at fault.
func (m *merge) entries(tr *tar.Reader) (string, error) {
	last := ""
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return "", nil
		}
		if err != nil {
			if last != "" {
				last = "after " + last
			}
			return last, err
		}
		last = h.Name
		if err := m.entry(h, tr); err != nil {
			return last, err
		}
	}
}

// clean is the path of an entry below the root: "" for the root itself.
func clean(name string) (string, error) {
	p := path.Clean(name)
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", bad("it leads out of the image")
	}
	p = strings.TrimPrefix(p, "/")
	if p == "." {
		p = ""
	}
	switch {
	case len(p) > maxPath:
		return "", bad("its path is longer than %d bytes", maxPath)
	case strings.IndexByte(p, 0) >= 0:
		return "", bad("its path has a byte that is zero")
	}
	return p, nil
}

func (m *merge) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return m.tree.count(0) // no path; it concerns none of what we keep
	}
	p, err := clean(h.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(p)
	if strings.HasPrefix(base, whiteout) {
		return m.whiteout(dir, base)
	}
	if h.Typeflag == tar.TypeLink {
		return m.link(h, dir, base)
	}
	ino, err := m.inode(h)
	if err != nil {
		return err
	}
	if err := m.tree.count(len(base) + len(ino.target()) + len(ino.xattrs())); err != nil {
		return err
	}
	if base == "" {
		if !ino.is(typeDir) {
			return bad("it would replace the root directory by a file")
		}
		ino.nlink, m.tree.root.ino = 1, ino
		m.tree.touch(m.tree.root)
		return nil
	}
	parent, err := m.tree.walk(dir, ino)
	if err != nil {
		return err
	}
	if ino.is(typeRegular) {
		if h.Size > m.limit.Bytes-m.bytes {
			return bad("the image's files are larger than %d bytes in all (limit Bytes); use a smaller image, or raise the limit", m.limit.Bytes)
		}
		m.bytes += h.Size
		ino.size = h.Size
		if ino.block, err = m.data.put(r, h.Size); err != nil {
			return err
		}
	}
	return m.tree.put(parent, base, ino)
}

// inode is what a header says, without contents.
func (m *merge) inode(h *tar.Header) (*inode, error) {
	ino := &inode{mode: uint16(h.Mode & 0o7777), mtime: h.ModTime.Unix(), nsec: uint32(h.ModTime.Nanosecond())}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return nil, bad("its owner %d:%d is none that Linux knows", h.Uid, h.Gid)
	}
	ino.uid, ino.gid = uint32(h.Uid), uint32(h.Gid)
	target := ""
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		ino.mode |= typeRegular
	case tar.TypeDir:
		ino.mode |= typeDir
	case tar.TypeFifo:
		ino.mode |= typeFIFO
	case tar.TypeChar, tar.TypeBlock:
		ino.mode |= map[byte]uint16{tar.TypeChar: typeChar, tar.TypeBlock: typeBlock}[h.Typeflag]
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return nil, bad("its device number %d:%d is none that Linux knows", h.Devmajor, h.Devminor)
		}
		ino.rdev = deviceNumber(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxTarget || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, bad("its link target is empty, longer than %d bytes, or has a byte that is zero", maxTarget)
		}
		// Wherever it points, it is followed inside the image only.
		ino.mode, target = typeSymlink|0o777, strings.Clone(h.Linkname)
	default:
		return nil, bad("its type %q is none of a root file system; have the image rebuilt", h.Typeflag)
	}
	xattrs, err := headerXattrs(h)
	if target != "" || xattrs != nil {
		ino.extra = &extra{target, xattrs}
	}
	return ino, err
}

func (m *merge) whiteout(dir, base string) error {
	if err := m.tree.count(0); err != nil {
		return err
	}
	name := strings.TrimPrefix(base, whiteout)
	if base != opaque && strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	if name == "" || name == "." || name == ".." {
		return bad("it hides no name")
	}
	parent, err := m.tree.walk(dir, nil)
	if parent == nil || err != nil {
		return err // nothing there to hide
	}
	if base == opaque {
		m.tree.hideBelow(parent)
	} else if n := parent.child(name); n != nil {
		m.tree.hide(n)
	}
	return nil
}

// link makes a hard link. Its header's owner, mode and times are those of the file it was made from, so they change nothing.
func (m *merge) link(h *tar.Header, dir, base string) error {
	if err := m.tree.count(len(base)); err != nil {
		return err
	}
	if base == "" {
		return bad("it would replace the root directory by a file")
	}
	p, err := clean(h.Linkname)
	if err != nil {
		return bad("its link target %q leads out of the image", h.Linkname)
	}
	parent, err := m.tree.walk(dir, &inode{mtime: h.ModTime.Unix(), nsec: uint32(h.ModTime.Nanosecond())})
	if err != nil {
		return err
	}
	target, err := m.tree.lookup(p)
	if err != nil {
		return err
	}
	for n := target; n != nil; n = n.parent {
		if n == parent.child(base) {
			target = nil // it is what this entry replaces, or is below that
		}
		if n.parent == n {
			break
		}
	}
	switch {
	case target == nil:
		return bad("its link target %q does not exist", h.Linkname)
	case target.isDir():
		return bad("its link target %q is a directory", h.Linkname)
	}
	return m.tree.put(parent, base, target.ino)
}

// deviceNumber is Linux's encoding in 32 bits.
func deviceNumber(major, minor uint32) uint32 { return minor&0xff | major<<8 | minor&^0xff<<12 }
