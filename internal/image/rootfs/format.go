package rootfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strings"
)

// The parts of EROFS that are used here (https://docs.kernel.org/filesystems/erofs.html). The file is, in this order: a block with the
// superblock; contents of files as they came; blocks of large directories; inodes, each followed by the rest of its
// directory or its link target; the table of attributes.
const (
	superOffset = 1024
	superMagic  = 0xe0f5e1e2
	slotSize    = 32 // an inode's number is its place, in these
	inodeSize   = 64 // the extended form: owners of 32 bits, times
	direntSize  = 12

	layoutPlain  = 0<<1 | 1 // | 1: extended
	layoutInline = 2<<1 | 1

	// The root is not number 0, with which old C libraries hide a directory entry.
	rootNID = 2
)

// fileTypes are what a directory says of its entries.
var fileTypes = map[uint16]byte{
	typeRegular: 1, typeDir: 2, typeChar: 3, typeBlock: 4, typeFIFO: 5, typeSocket: 6, typeSymlink: 7,
}

// finish writes everything but the contents.
func (m *merge) finish(ctx context.Context) (Stats, error) {
	w := &formatter{ctx: ctx, nid: rootNID}
	m.tree.root.finish()
	if err := w.place(m.tree.root); err != nil {
		return Stats{}, err
	}
	pos := m.data.next
	out := bufio.NewWriterSize(io.NewOffsetWriter(m.data.f, pos), 1<<20)
	w.out, w.pos = out, pos
	if err := w.blocks(m.tree.root); err != nil {
		return Stats{}, err
	}
	meta := w.pos
	if meta/blockSize+blocks(w.nid*slotSize) >= math.MaxUint32 {
		return Stats{}, bad("the image is larger than EROFS can be")
	}
	if err := w.inodes(m.tree.root, meta); err != nil {
		return Stats{}, err
	}
	if err := w.padTo(blocks(w.pos) * blockSize); err != nil {
		return Stats{}, err
	}
	end := w.pos
	if err := w.write(w.table); err != nil {
		return Stats{}, err
	}
	if err := w.write(footer(end, int64(len(w.table)), crc32.Checksum(w.table, castagnoli))); err != nil {
		return Stats{}, err
	}
	if err := out.Flush(); err != nil {
		return Stats{}, err
	}
	if _, err := m.data.f.WriteAt(superblock(w.count, meta/blockSize, end/blockSize), 0); err != nil {
		return Stats{}, err
	}
	return Stats{Entries: w.paths, Bytes: w.bytes, Size: w.pos}, nil
}

// finish sorts what is below n, as EROFS wants it: by bytes.
func (n *node) finish() {
	if !n.isDir() {
		return
	}
	d := n.dir
	d.sorted = make([]*node, 0, len(d.children))
	for _, c := range d.children {
		c.finish()
		d.sorted = append(d.sorted, c)
	}
	d.children = nil
	slices.SortFunc(d.sorted, func(a, b *node) int { return strings.Compare(a.name, b.name) })
}

// formatter goes through the tree three times, always in the same order: to number the inodes, to write the large directories, and
// to write the inodes.
type formatter struct {
	ctx   context.Context
	out   *bufio.Writer
	pos   int64 // in the file
	nid   int64 // the next free one
	ents  []dirent
	buf   []byte // for one inode, or one block of a directory
	table []byte // of attributes, by inode number
	count int64  // of inodes
	paths int64
	bytes int64
}

// dirent is a line of a directory.
type dirent struct {
	name string
	ino  *inode
}

// list is what directory n holds, in order. It is valid until the next call.
func (w *formatter) list(n *node) []dirent {
	w.ents = w.ents[:0]
	self, parent := dirent{".", n.ino}, dirent{"..", n.parent.ino}
	w.ents = append(w.ents, self, parent)
	for _, c := range n.sorted() {
		w.ents = append(w.ents, dirent{c.name, c.ino})
	}
	// Names before "." and between it and ".." exist: they begin with a space, '-', ".\x01" and the like.
	if len(n.sorted()) > 0 && n.sorted()[0].name < ".." {
		slices.SortFunc(w.ents, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	}
	return w.ents
}

// fit is how many of ents go into one block, and how many bytes they take there.
func fit(ents []dirent) (n, used int) {
	for _, e := range ents {
		size := direntSize + len(e.name)
		if used+size > blockSize {
			break
		}
		n, used = n+1, used+size
	}
	return n, used
}

// split is how many of ents stand in blocks of their own, how many blocks that is, and how many bytes follow the inode.
func split(ents []dirent) (n int, full int64, tail int) {
	for n < len(ents) {
		k, used := fit(ents[n:])
		if n+k == len(ents) && used <= blockSize-inodeSize {
			return n, full, used
		}
		n, full = n+k, full+1
	}
	return n, full, 0
}

// place numbers n's inode, and those below, and sets the size of directories. An inode and what follows it lie in one block.
func (w *formatter) place(n *node) error {
	w.paths++
	if n.ino.nid != 0 {
		return nil // another hard link came before
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	w.count++
	tail := 0
	switch ino := n.ino; ino.mode & typeMask {
	case typeDir:
		ents := w.list(n)
		last, full, rest := split(ents)
		tail, ino.size = rest, full*blockSize+int64(rest)
		if rest == 0 { // its last block is not full, so the directory ends in it
			_, used := lastBlock(ents[:last])
			ino.size = (full-1)*blockSize + int64(used)
		}
		ino.nlink = 2
		for _, c := range n.sorted() {
			if c.isDir() {
				ino.nlink++
			}
		}
	case typeSymlink:
		ino.size = int64(len(ino.target()))
		tail = inlineTarget(ino)
	case typeRegular:
		w.bytes += ino.size
	}
	const perBlock = blockSize / slotSize
	slots := int64(inodeSize+tail+slotSize-1) / slotSize
	if in := w.nid % perBlock; in+slots > perBlock {
		w.nid += perBlock - in
	}
	if w.nid+slots > math.MaxUint32 {
		return errors.New("too many inodes")
	}
	n.ino.nid = uint32(w.nid)
	w.nid += slots
	for _, c := range n.sorted() {
		if err := w.place(c); err != nil {
			return err
		}
	}
	return nil
}

// lastBlock is the last of the blocks that ents fill.
func lastBlock(ents []dirent) (n, used int) {
	for len(ents) > 0 {
		n, used = fit(ents)
		ents = ents[n:]
	}
	return n, used
}

// inlineTarget is how much of a link's target follows its inode: all, but for the few that are too long.
func inlineTarget(i *inode) int {
	if len(i.target()) <= blockSize-inodeSize {
		return len(i.target())
	}
	return 0
}

// blocks writes the blocks of n and of what is below that don't follow an inode.
func (w *formatter) blocks(n *node) error {
	ino := n.ino
	switch {
	case ino.is(typeDir):
		ents := w.list(n)
		last, full, _ := split(ents)
		if full > 0 {
			ino.block = uint32(w.pos / blockSize)
		}
		for rest := ents[:last]; len(rest) > 0; {
			k, _ := fit(rest)
			if err := w.dirents(rest[:k]); err != nil {
				return err
			}
			if err := w.padTo(blocks(w.pos) * blockSize); err != nil {
				return err
			}
			rest = rest[k:]
		}
	case ino.is(typeSymlink) && inlineTarget(ino) == 0 && ino.block == 0:
		ino.block = uint32(w.pos / blockSize)
		if err := w.write([]byte(ino.target())); err != nil {
			return err
		}
		return w.padTo(blocks(w.pos) * blockSize)
	}
	for _, c := range n.sorted() {
		if err := w.blocks(c); err != nil {
			return err
		}
	}
	return nil
}

// dirents writes the lines of one block: first what is of fixed size, then the names.
func (w *formatter) dirents(ents []dirent) error {
	b := w.buf[:0]
	off := direntSize * len(ents)
	for _, e := range ents {
		b = binary.LittleEndian.AppendUint64(b, uint64(e.ino.nid))
		b = binary.LittleEndian.AppendUint16(b, uint16(off))
		b = append(b, fileTypes[e.ino.mode&typeMask], 0)
		off += len(e.name)
	}
	for _, e := range ents {
		b = append(b, e.name...)
	}
	w.buf = b
	return w.write(b)
}

// inodes writes the inodes of n and of what is below, where place said, and collects their attributes.
func (w *formatter) inodes(n *node, meta int64) error {
	at := meta + int64(n.ino.nid)*slotSize
	if at < w.pos {
		return nil // another hard link came before
	}
	if err := w.padTo(at); err != nil {
		return err
	}
	ino := n.ino
	if len(ino.xattrs()) > 0 {
		w.table = binary.AppendUvarint(w.table, uint64(ino.nid))
		w.table = appendBytes(w.table, string(ino.xattrs()))
	}
	layout, raw := layoutPlain, ino.block
	var tail []dirent
	switch ino.mode & typeMask {
	case typeDir:
		ents := w.list(n)
		last, _, _ := split(ents)
		if tail = ents[last:]; len(tail) > 0 {
			layout = layoutInline
		}
	case typeSymlink:
		if inlineTarget(ino) > 0 {
			layout = layoutInline
		}
	case typeChar, typeBlock:
		raw = ino.rdev
	}
	b := append(w.buf[:0], zeros[:inodeSize]...)
	le := binary.LittleEndian
	le.PutUint16(b[0:], uint16(layout))
	le.PutUint16(b[4:], ino.mode)
	le.PutUint64(b[8:], uint64(ino.size))
	le.PutUint32(b[16:], raw)
	le.PutUint32(b[20:], ino.nid)
	le.PutUint32(b[24:], ino.uid)
	le.PutUint32(b[28:], ino.gid)
	le.PutUint64(b[32:], uint64(ino.mtime))
	le.PutUint32(b[40:], ino.nsec)
	le.PutUint32(b[44:], ino.nlink)
	if layout == layoutInline {
		b = append(b, ino.target()...)
	}
	w.buf = b
	if err := w.write(b); err != nil {
		return err
	}
	if err := w.dirents(tail); err != nil {
		return err
	}
	for _, c := range n.sorted() {
		if err := w.inodes(c, meta); err != nil {
			return err
		}
	}
	return nil
}

func (w *formatter) write(b []byte) error {
	n, err := w.out.Write(b)
	w.pos += int64(n)
	return err
}

func (w *formatter) padTo(pos int64) error {
	if pos < w.pos || pos-w.pos > blockSize {
		return fmt.Errorf("the layout of the file is wrong at %d, which should be %d", w.pos, pos)
	}
	return w.write(zeros[:pos-w.pos])
}

func superblock(inodes, meta, total int64) []byte {
	b := make([]byte, blockSize)
	sb, le := b[superOffset:], binary.LittleEndian
	le.PutUint32(sb[0:], superMagic)
	sb[12] = blockBits
	le.PutUint16(sb[14:], rootNID)
	le.PutUint64(sb[16:], uint64(inodes))
	le.PutUint32(sb[36:], uint32(total))
	le.PutUint32(sb[40:], uint32(meta))
	copy(sb[64:80], "sandlot") // the volume's name
	return b
}
