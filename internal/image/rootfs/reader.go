package rootfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"time"
)

var errDamaged = errors.New("the EROFS file is damaged")

// reader reads the inodes and directories of a file that Write made.
type reader struct {
	r      io.ReaderAt
	size   int64
	meta   int64 // where the inodes are
	rootID uint64
	xattrs map[uint64][]byte
}

// extent is a piece of a file's contents.
type extent struct{ off, size int64 }

func newReader(f *os.File) (*reader, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sb := make([]byte, 128)
	if _, err := f.ReadAt(sb, superOffset); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint32(sb) != superMagic || sb[12] != blockBits || le.Uint32(sb[80:]) != 0 {
		return nil, errors.New("it is no EROFS file of this program")
	}
	r := &reader{r: f, size: st.Size(), meta: int64(le.Uint32(sb[40:])) * blockSize, rootID: uint64(le.Uint16(sb[14:]))}
	r.xattrs, err = readTable(f, st.Size())
	return r, err
}

func (r *reader) root() (*info, error) { return r.inode("/", r.rootID) }

// inode reads what an inode says.
func (r *reader) inode(name string, nid uint64) (*info, error) {
	damaged := fmt.Errorf("inode %d: %w", nid, errDamaged)
	if nid > uint64(r.size)/slotSize {
		return nil, damaged
	}
	at := r.meta + int64(nid)*slotSize
	b := make([]byte, inodeSize)
	if _, err := r.r.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("inode %d: %w", nid, err)
	}
	le := binary.LittleEndian
	mode, size, raw := le.Uint16(b[4:]), int64(le.Uint64(b[8:])), le.Uint32(b[16:])
	i := &info{
		name: name, size: size, mode: fileMode(mode), mtime: time.Unix(int64(le.Uint64(b[32:])), int64(le.Uint32(b[40:]))),
		attr: Attr{Ino: nid, Nlink: le.Uint32(b[44:]), UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:])},
	}
	plain := extent{int64(raw) * blockSize, size}
	switch le.Uint16(b) {
	case layoutPlain:
	case layoutInline:
		plain.size &^= blockSize - 1
		i.data = []extent{{at + inodeSize, size - plain.size}}
	default:
		return nil, damaged
	}
	if plain.size > 0 {
		i.data = append([]extent{plain}, i.data...)
	}
	if size < 0 || plain.size > r.size || plain.size > 0 && plain.off+plain.size > r.size {
		return nil, damaged
	}
	switch i.mode.Type() {
	case fs.ModeSymlink:
		if size > maxTarget {
			return nil, damaged
		}
		b, err := r.read(i, 0, size)
		if err != nil {
			return nil, err
		}
		i.attr.Link = string(b)
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		i.attr.Major, i.attr.Minor = raw>>8&0xfff, raw&0xff|raw>>12&^0xff
	}
	var err error
	i.attr.Xattrs, err = decodeXattrs(r.xattrs[nid])
	return i, err
}

// read reads a part of an inode's contents that lies in one piece.
func (r *reader) read(i *info, off, size int64) ([]byte, error) {
	for _, e := range i.data {
		if off < e.size {
			b := make([]byte, min(size, e.size-off))
			_, err := r.r.ReadAt(b, e.off+off)
			if err != nil && (!errors.Is(err, io.EOF) || len(b) > 0) {
				return nil, fmt.Errorf("inode %d: %w", i.attr.Ino, err)
			}
			return b, nil
		}
		off -= e.size
	}
	return nil, fmt.Errorf("inode %d: %w", i.attr.Ino, errDamaged)
}

// block calls fn for the names in a block of a directory until it returns false.
func (r *reader) block(dir *info, n int64, fn func(name []byte, nid uint64) bool) error {
	b, err := r.read(dir, n*blockSize, blockSize)
	if err != nil {
		return err
	}
	damaged := fmt.Errorf("directory %d: %w", dir.attr.Ino, errDamaged)
	if len(b) < direntSize {
		return damaged
	}
	le := binary.LittleEndian
	first := int(le.Uint16(b[8:]))
	if first < direntSize || first%direntSize != 0 || first > len(b) {
		return damaged
	}
	for at := 0; at < first; at += direntSize {
		begin, end := int(le.Uint16(b[at+8:])), len(b)
		if at+direntSize < first {
			end = int(le.Uint16(b[at+direntSize+8:]))
		}
		if begin < first || end < begin || end > len(b) {
			return damaged
		}
		name, _, _ := bytes.Cut(b[begin:end], zeros[:1]) // the last is followed by padding
		if !fn(name, le.Uint64(b[at:])) {
			return nil
		}
	}
	return nil
}

// lookup finds a name in a directory. Blocks are in order, so few are read.
func (r *reader) lookup(dir *info, name string) (*info, error) {
	var err error
	n := sort.Search(int(blocks(dir.size)), func(n int) bool {
		after := false
		err = errors.Join(err, r.block(dir, int64(n), func(first []byte, _ uint64) bool {
			after = string(first) > name
			return false
		}))
		return after
	})
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fs.ErrNotExist
	}
	var nid uint64
	found := false
	err = r.block(dir, int64(n-1), func(s []byte, id uint64) bool {
		nid, found = id, string(s) == name
		return !found
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fs.ErrNotExist
	}
	return r.child(dir, name, nid)
}

// child reads the inode of a name in a directory. A directory always has a higher number than the one it is in, so even in
// a damaged file none is in itself.
func (r *reader) child(dir *info, name string, nid uint64) (*info, error) {
	i, err := r.inode(name, nid)
	if err == nil && i.IsDir() && nid <= dir.attr.Ino {
		return nil, fmt.Errorf("directory %d: %w", nid, errDamaged)
	}
	return i, err
}

// list reads a directory, sorted by name.
func (r *reader) list(dir *info) ([]fs.DirEntry, error) {
	var ents []fs.DirEntry
	for n := range blocks(dir.size) {
		var inner error
		err := r.block(dir, n, func(name []byte, nid uint64) bool {
			if s := string(name); s != "." && s != ".." {
				var i *info
				if i, inner = r.child(dir, s, nid); inner == nil {
					ents = append(ents, entry{i})
				}
			}
			return inner == nil
		})
		if err := errors.Join(err, inner); err != nil {
			return nil, err
		}
	}
	return ents, nil
}

// fileMode is a mode of Linux in Go's terms.
func fileMode(mode uint16) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, is := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= is
		}
	}
	switch mode & typeMask {
	case typeDir:
		m |= fs.ModeDir
	case typeSymlink:
		m |= fs.ModeSymlink
	case typeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case typeBlock:
		m |= fs.ModeDevice
	case typeFIFO:
		m |= fs.ModeNamedPipe
	case typeSocket:
		m |= fs.ModeSocket
	}
	return m
}
