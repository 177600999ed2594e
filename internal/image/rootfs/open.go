package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// FS is an image, to be read from the host. Paths begin at the image's root, with or without a slash, and so do the absolute targets of
// its links: nothing leads to a file of the host. It is safe for concurrent use.
type FS struct {
	f      *os.File
	lib    fs.ReadLinkFS // which resolves .. in links by text: it is only given paths without links
	xattrs map[uint64][]byte
}

var (
	_ fs.StatFS    = (*FS)(nil)
	_ fs.ReadDirFS = (*FS)(nil)
)

// Attr is what Sys of every fs.FileInfo here returns, as *Attr.
type Attr struct {
	Ino          uint64 // the same for all hard links of a file
	Nlink        uint32
	UID, GID     uint32
	Major, Minor uint32            // of a device
	Link         string            // the target of a symbolic link
	Xattrs       map[string]string // values are bytes
}

// Open opens a file that Write made.
func Open(name string) (_ *FS, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening the root file system: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening the root file system: %w", errors.Join(err, f.Close()))
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	table, err := readTable(f, st.Size())
	if err != nil {
		return nil, err
	}
	lib, err := erofs.Open(f)
	if err != nil {
		return nil, err
	}
	return &FS{f: f, lib: lib.(fs.ReadLinkFS), xattrs: table}, nil
}

// Close closes the file. What was opened from it can't be read any more.
func (f *FS) Close() error { return f.f.Close() }

// Open opens a file or a directory, following links.
func (f *FS) Open(name string) (fs.File, error) {
	p, i, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	i.name = path.Base("/" + name) // what was asked for
	if i.IsDir() {
		ents, err := f.list(p)
		if err != nil {
			return nil, err
		}
		return &dirFile{info: i, ents: ents}, nil
	}
	return &file{SectionReader: io.NewSectionReader(f.f, i.offset, i.content()), info: i}, nil
}

// Stat tells about what name leads to, following links.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	_, i, err := f.find("stat", name, true)
	if err != nil {
		return nil, err
	}
	i.name = path.Base("/" + name)
	return i, nil
}

// Lstat tells about name itself, even if it is a link.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	_, i, err := f.find("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return i, nil
}

// Readlink returns the target of a symbolic link, as it stands in the image.
func (f *FS) Readlink(name string) (string, error) {
	_, i, err := f.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	if i.mode.Type() != fs.ModeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return i.attr.Link, nil
}

// ReadDir lists a directory by name, following links to it.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	p, i, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !i.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	return f.list(p)
}

// ReadFile reads a regular file of at most limit bytes, following links.
func (f *FS) ReadFile(name string, limit int64) ([]byte, error) {
	_, i, err := f.find("read", name, true)
	if err != nil {
		return nil, err
	}
	switch {
	case i.IsDir():
		return nil, &fs.PathError{Op: "read", Path: name, Err: syscall.EISDIR}
	case !i.mode.IsRegular():
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	case i.size > limit:
		return nil, &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "file_too_large",
			Detail: fmt.Sprintf("%q in the image has %d bytes, but may have %d; make it smaller", name, i.size, limit)}
	}
	b := make([]byte, i.size)
	if _, err := io.ReadFull(io.NewSectionReader(f.f, i.offset, i.size), b); err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

// Walk calls fn for root and all below it, a directory before what it holds and names in order. Links are told, not followed, except
// those that lead to root itself. Paths are absolute. fn may return fs.SkipDir or fs.SkipAll.
func (f *FS) Walk(root string, fn func(name string, info fs.FileInfo) error) error {
	p, i, err := f.find("walk", root, true)
	if err != nil {
		return err
	}
	if err := f.walk(p, i, fn); err != nil && !errors.Is(err, fs.SkipAll) && !errors.Is(err, fs.SkipDir) {
		return err
	}
	return nil
}

func (f *FS) walk(p string, i *info, fn func(string, fs.FileInfo) error) error {
	err := fn(path.Join("/", p), i)
	if !i.IsDir() {
		return err
	}
	if errors.Is(err, fs.SkipDir) {
		return nil
	}
	if err != nil {
		return err
	}
	ents, err := f.list(p)
	if err != nil {
		return err
	}
	for _, e := range ents {
		err := f.walk(path.Join(p, e.Name()), e.(entry).info, fn)
		if errors.Is(err, fs.SkipDir) {
			return nil // the rest of this directory, as fs.WalkDir does it
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find follows name to its place: a path without links, as the library wants it.
func (f *FS) find(op, name string, follow bool) (string, *info, error) {
	fail := func(err error) (string, *info, error) {
		var inner *fs.PathError
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return "", nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	cur, links := ".", 0
	at, err := f.lstat(cur)
	if err != nil {
		return fail(err)
	}
	for rest := name; rest != ""; {
		if !at.IsDir() {
			return fail(syscall.ENOTDIR)
		}
		var c string
		slash := false
		c, rest, slash = strings.Cut(rest, "/")
		next := path.Join(cur, c) // c may be .., and cur has no links
		if next == ".." || strings.HasPrefix(next, "../") {
			next = "."
		}
		i, err := f.lstat(next)
		if err != nil {
			return fail(err)
		}
		if i.mode.Type() == fs.ModeSymlink && (follow || slash) {
			if links++; links > maxLinks {
				return fail(syscall.ELOOP)
			}
			rest = i.attr.Link + "/" + rest
			if path.IsAbs(i.attr.Link) {
				cur = "."
				if at, err = f.lstat(cur); err != nil {
					return fail(err)
				}
			}
			if !slash {
				rest = i.attr.Link
			}
			continue
		}
		cur, at = next, i
	}
	return cur, at, nil
}

func (f *FS) lstat(p string) (*info, error) {
	li, err := f.lib.Lstat(p)
	if err != nil {
		return nil, err
	}
	return f.info(p, li)
}

// list is ReadDir of a path without links.
func (f *FS) list(p string) ([]fs.DirEntry, error) {
	ents, err := fs.ReadDir(f.lib, p)
	if err != nil {
		return nil, err
	}
	for n, e := range ents {
		li, err := e.Info()
		if err != nil {
			return nil, err
		}
		i, err := f.info(path.Join(p, e.Name()), li)
		if err != nil {
			return nil, err
		}
		ents[n] = entry{i}
	}
	return ents, nil
}

func (f *FS) info(p string, li fs.FileInfo) (*info, error) {
	st, ok := li.Sys().(*erofs.Stat)
	if !ok {
		return nil, fmt.Errorf("reading %q: unknown file information %T", p, li.Sys())
	}
	i := &info{name: path.Base(p), size: st.Size, mode: st.Mode, mtime: time.Unix(int64(st.Mtime), int64(st.MtimeNs))}
	i.attr = Attr{Ino: uint64(st.Ino), Nlink: uint32(st.Nlink), UID: st.UID, GID: st.GID}
	switch {
	case st.Mode&fs.ModeDevice != 0:
		i.attr.Major, i.attr.Minor = st.Rdev>>8&0xfff, st.Rdev&0xff|st.Rdev>>12&^0xff
	case st.Mode.Type() == fs.ModeSymlink:
		target, err := f.lib.ReadLink(p)
		if err != nil {
			return nil, err
		}
		i.attr.Link = target
	case st.Mode.IsRegular():
		if r, ok := li.(interface{ DataRange() []erofs.DataRange }); ok && st.Size > 0 {
			ranges := r.DataRange()
			if len(ranges) != 1 {
				return nil, fmt.Errorf("reading %q: its contents are not in one piece", p)
			}
			i.offset = ranges[0].Offset
		}
	}
	var err error
	i.attr.Xattrs, err = decodeXattrs(f.xattrs[i.attr.Ino])
	return i, err
}

// info is an fs.FileInfo.
type info struct {
	name   string
	size   int64
	mode   fs.FileMode
	mtime  time.Time
	offset int64 // of the contents
	attr   Attr
}

func (i *info) Name() string       { return i.name }
func (i *info) Size() int64        { return i.size }
func (i *info) Mode() fs.FileMode  { return i.mode }
func (i *info) ModTime() time.Time { return i.mtime }
func (i *info) IsDir() bool        { return i.mode.IsDir() }
func (i *info) Sys() any           { return &i.attr }

// content is how much can be read: nothing of a device or a pipe.
func (i *info) content() int64 {
	if i.mode.IsRegular() {
		return i.size
	}
	return 0
}

// entry is an fs.DirEntry.
type entry struct{ info *info }

func (e entry) Name() string               { return e.info.name }
func (e entry) IsDir() bool                { return e.info.IsDir() }
func (e entry) Type() fs.FileMode          { return e.info.mode.Type() }
func (e entry) Info() (fs.FileInfo, error) { return e.info, nil }
func (e entry) String() string             { return fs.FormatDirEntry(e) }

// file is an open file; it can be read at any offset.
type file struct {
	*io.SectionReader
	info *info
}

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *file) Close() error               { return nil }

type dirFile struct {
	info *info
	ents []fs.DirEntry
}

func (d *dirFile) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *dirFile) Close() error               { return nil }
func (d *dirFile) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: syscall.EISDIR}
}

func (d *dirFile) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 || n > len(d.ents) {
		if n > 0 && len(d.ents) == 0 {
			return nil, io.EOF
		}
		n = len(d.ents)
	}
	part := d.ents[:n]
	d.ents = d.ents[n:]
	return part, nil
}
