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

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// FS is an image, to be read from the host. Paths begin at the image's root, with or without a slash, and so do the absolute targets of
// its links: nothing leads to a file of the host. It is safe for concurrent use.
type FS struct {
	f *os.File
	r *reader
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
	r, err := newReader(f)
	if err != nil {
		return nil, fmt.Errorf("opening the root file system: %w", errors.Join(err, f.Close()))
	}
	return &FS{f: f, r: r}, nil
}

// Close closes the file. What was opened from it can't be read any more.
func (f *FS) Close() error { return f.f.Close() }

// Open opens a file or a directory, following links.
func (f *FS) Open(name string) (fs.File, error) {
	i, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	i.name = path.Base("/" + name) // what was asked for
	if i.IsDir() {
		ents, err := f.r.list(i)
		if err != nil {
			return nil, err
		}
		return &dirFile{info: i, ents: ents}, nil
	}
	return &file{SectionReader: io.NewSectionReader(f.f, i.offset(), i.content()), info: i}, nil
}

// Stat tells about what name leads to, following links.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	i, err := f.find("stat", name, true)
	if err != nil {
		return nil, err
	}
	i.name = path.Base("/" + name)
	return i, nil
}

// Lstat tells about name itself, even if it is a link.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	i, err := f.find("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return i, nil
}

// Readlink returns the target of a symbolic link, as it stands in the image.
func (f *FS) Readlink(name string) (string, error) {
	i, err := f.find("readlink", name, false)
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
	i, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !i.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	return f.r.list(i)
}

// ReadFile reads a regular file of at most limit bytes, following links.
func (f *FS) ReadFile(name string, limit int64) ([]byte, error) {
	i, err := f.find("read", name, true)
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
	if _, err := io.ReadFull(io.NewSectionReader(f.f, i.offset(), i.size), b); err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

// Walk calls fn for root and all below it, a directory before what it holds and names in order. Links are told, not followed, except
// those that lead to root itself. Paths are absolute and begin with root. fn may return fs.SkipDir or fs.SkipAll.
func (f *FS) Walk(root string, fn func(name string, info fs.FileInfo) error) error {
	i, err := f.find("walk", root, true)
	if err != nil {
		return err
	}
	if err := f.walk(path.Join("/", root), i, fn); err != nil && !errors.Is(err, fs.SkipAll) && !errors.Is(err, fs.SkipDir) {
		return err
	}
	return nil
}

func (f *FS) walk(p string, i *info, fn func(string, fs.FileInfo) error) error {
	err := fn(p, i)
	if !i.IsDir() {
		return err
	}
	if errors.Is(err, fs.SkipDir) {
		return nil
	}
	if err != nil {
		return err
	}
	ents, err := f.r.list(i)
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

// find follows name as the kernel does with / at the image's root.
func (f *FS) find(op, name string, follow bool) (*info, error) {
	fail := func(err error) (*info, error) { return nil, &fs.PathError{Op: op, Path: name, Err: err} }
	at, err := f.r.root()
	if err != nil {
		return fail(err)
	}
	up, links := []*info{}, 0 // the directories above
	for rest := name; rest != ""; {
		if !at.IsDir() {
			return fail(syscall.ENOTDIR)
		}
		var c string
		slash := false
		c, rest, slash = strings.Cut(rest, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			if n := len(up); n > 0 {
				at, up = up[n-1], up[:n-1]
			}
			continue
		}
		i, err := f.r.lookup(at, c)
		if err != nil {
			return fail(err)
		}
		if i.mode.Type() == fs.ModeSymlink && (follow || slash) {
			if links++; links > maxLinks {
				return fail(syscall.ELOOP)
			}
			if slash {
				rest = i.attr.Link + "/" + rest
			} else {
				rest = i.attr.Link
			}
			if path.IsAbs(i.attr.Link) && len(up) > 0 {
				at, up = up[0], up[:0]
			}
			continue
		}
		at, up = i, append(up, at)
	}
	return at, nil
}

// info is an fs.FileInfo.
type info struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
	attr  Attr
	data  []extent
}

func (i *info) Name() string       { return i.name }
func (i *info) Size() int64        { return i.size }
func (i *info) Mode() fs.FileMode  { return i.mode }
func (i *info) ModTime() time.Time { return i.mtime }
func (i *info) IsDir() bool        { return i.mode.IsDir() }
func (i *info) Sys() any           { return &i.attr }

// offset is where the contents of a regular file are; they are in one piece.
func (i *info) offset() int64 {
	if len(i.data) > 0 {
		return i.data[0].off
	}
	return 0
}

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
