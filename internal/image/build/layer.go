package build

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// maxEntries bounds what one COPY may add: its list is kept in memory, its contents are not.
const maxEntries = 250_000

// layer is a layer being planned: a list of files over a base image. Files are opened when the layer is written.
type layer struct {
	look    looker // at the base, or at nothing for --link
	entries map[string]*entry
	owner   *owner // --chown; nil keeps what the source has, and root where it says nothing
	chmod   func(perm uint32, dir bool) uint32
	fixed   bool // chmod doesn't depend on what was there: then it is for directories on the way too, as with Docker
}

// entry is one file of a layer.
type entry struct {
	kind   byte // a type of archive/tar's
	perm   uint32
	owner  owner
	mtime  time.Time
	size   int64
	link   string
	xattrs map[string]string
	open   func() (io.ReadCloser, error)
}

// epoch is the time of what has none of its own, so that the same commands give the same layer.
var epoch = time.Unix(0, 0)

func newLayer(look looker) *layer { return &layer{look: look, entries: map[string]*entry{}} }

// at tells what will stand at p: what this layer puts there, or else the base.
func (l *layer) at(p string) (*node, error) {
	if p == "/" {
		return &node{mode: fs.ModeDir}, nil
	}
	if e := l.entries[p]; e != nil {
		switch e.kind {
		case tar.TypeDir:
			return &node{mode: fs.ModeDir}, nil
		case tar.TypeSymlink:
			return &node{mode: fs.ModeSymlink, link: e.link}, nil
		}
		return &node{}, nil
	}
	return l.look(p)
}

// put adds an entry, whose parent is there. A file takes the place of a file or link, a directory joins one.
func (l *layer) put(p string, e *entry) error {
	if strings.HasPrefix(path.Base(p), ".wh.") {
		return reasonf("%s: a layer can't hold files whose names begin with .wh., which mark what is deleted", quote(p))
	}
	there, err := l.at(p)
	if err != nil {
		return err
	}
	if there != nil && there.mode.IsDir() != (e.kind == tar.TypeDir) {
		if there.mode.IsDir() {
			return reasonf("can't replace the directory %s with a file", quote(p))
		}
		return reasonf("can't copy a directory onto %s, which is none", quote(p))
	}
	if l.owner != nil {
		e.owner = *l.owner
	}
	if l.chmod != nil && e.kind != tar.TypeSymlink {
		e.perm = l.chmod(e.perm, e.kind == tar.TypeDir)
	}
	if l.entries[p] == nil && len(l.entries) >= maxEntries {
		return reasonf("more than %d files in one layer", maxEntries)
	}
	l.entries[p] = e
	return nil
}

// mkdirAll makes the directory p, which is resolved, and its parents.
func (l *layer) mkdirAll(p string) error {
	there, err := l.at(p)
	if err != nil {
		return err
	}
	if there != nil {
		if !there.mode.IsDir() {
			return reasonf("%s is a file, not a directory", quote(p))
		}
		return nil
	}
	if err := l.mkdirAll(path.Dir(p)); err != nil {
		return err
	}
	keep := l.chmod
	if !l.fixed {
		l.chmod = nil
	}
	defer func() { l.chmod = keep }()
	return l.put(p, &entry{kind: tar.TypeDir, perm: 0o755, mtime: epoch})
}

// destination finds where something goes that is called name: to the path, or into it where that is a directory.
func (l *layer) destination(dest string, dir bool, name string, isDir bool) (string, error) {
	real, err := resolve(dest, l.at)
	if err != nil {
		return "", err
	}
	if dir || isDir {
		if err := l.mkdirAll(real); err != nil {
			return "", err
		}
	}
	if isDir {
		return real, nil
	}
	there, err := l.at(real)
	if err != nil {
		return "", err
	}
	if there != nil && there.mode.IsDir() {
		if name == "" {
			return "", reasonf("the URL names no file, and the destination is a directory; give the whole path of the file")
		}
		return path.Join(real, name), nil
	}
	return real, l.mkdirAll(path.Dir(real))
}

// copy plans to copy src, a path in files, to dest: a file as it is, of a directory what is in it. What can't be copied is told to skip.
func (l *layer) copy(ctx context.Context, files Files, src, dest string, dir bool, skip func(string)) error {
	real, err := resolve(src, lookIn(files))
	if err != nil {
		return err
	}
	there, err := lookIn(files)(real)
	if err != nil {
		return err
	}
	if there == nil {
		return reasonf("the image has no %s", quote(src))
	}
	to, err := l.destination(dest, dir, path.Base(src), there.mode.IsDir())
	if err != nil {
		return err
	}
	if there.mode.IsDir() {
		return l.copyDir(ctx, files, real, to, skip)
	}
	return l.copyOne(ctx, files, real, to, skip)
}

func (l *layer) copyDir(ctx context.Context, files Files, from, to string, skip func(string)) error {
	list, err := fs.ReadDir(files, fsName(from))
	if err != nil {
		return fmt.Errorf("reading %s in the image: %w", from, err)
	}
	for _, e := range list {
		if err := l.copyOne(ctx, files, path.Join(from, e.Name()), path.Join(to, e.Name()), skip); err != nil {
			return err
		}
	}
	return nil
}

func (l *layer) copyOne(ctx context.Context, files Files, from, to string, skip func(string)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	info, err := files.Lstat(fsName(from))
	if err != nil {
		return fmt.Errorf("looking at %s in the image: %w", from, err)
	}
	a := files.Attr(info)
	e := &entry{perm: tarMode(info.Mode()), owner: owner{a.UID, a.GID}, mtime: info.ModTime().Truncate(time.Second), xattrs: ownXattrs(a.Xattrs)}
	switch info.Mode().Type() {
	case fs.ModeDir:
		e.kind = tar.TypeDir
		if err := l.put(to, e); err != nil {
			return err
		}
		return l.copyDir(ctx, files, from, to, skip)
	case fs.ModeSymlink:
		e.kind, e.perm = tar.TypeSymlink, 0o777
		if e.link, err = files.ReadLink(fsName(from)); err != nil {
			return fmt.Errorf("reading the link %s in the image: %w", from, err)
		}
	case 0:
		e.kind, e.size = tar.TypeReg, info.Size()
		e.open = func() (io.ReadCloser, error) { return files.Open(fsName(from)) }
	default:
		skip(from)
		return nil
	}
	return l.put(to, e)
}

// write writes the layer as a tar, in the order of its paths.
func (l *layer) write(ctx context.Context, w io.Writer) error {
	paths := make([]string, 0, len(l.entries))
	for p := range l.entries {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	tw := tar.NewWriter(w)
	for _, p := range paths {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := writeEntry(tw, p, l.entries[p]); err != nil {
			return fmt.Errorf("writing %s into a layer: %w", p, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("ending a layer: %w", err)
	}
	return nil
}

func writeEntry(tw *tar.Writer, p string, e *entry) error {
	h := &tar.Header{Typeflag: e.kind, Name: strings.TrimPrefix(p, "/"), Linkname: e.link, Size: e.size, Mode: int64(e.perm),
		Uid: int(e.owner.uid), Gid: int(e.owner.gid), ModTime: e.mtime, Format: tar.FormatPAX}
	if e.kind == tar.TypeDir {
		h.Name += "/"
	}
	if len(e.xattrs) > 0 {
		h.PAXRecords = map[string]string{}
		for k, v := range e.xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if e.kind != tar.TypeReg {
		return nil
	}
	f, err := e.open()
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(tw, io.LimitReader(f, e.size))
	if err == nil && n < e.size {
		err = fmt.Errorf("%d of %d bytes: %w", n, e.size, io.ErrUnexpectedEOF)
	}
	return err
}

// ownXattrs are the extended attributes that go with a file: capabilities of programs above all. Those of overlay file systems are about
// the image they are in.
func ownXattrs(all map[string]string) map[string]string {
	own := maps.Clone(all)
	maps.DeleteFunc(own, func(name, _ string) bool { return strings.HasPrefix(name, "trusted.") })
	return own
}

// tarMode is the mode of a file as tar and chmod write it.
func tarMode(m fs.FileMode) uint32 {
	perm := uint32(m.Perm())
	for bit, flag := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			perm |= flag
		}
	}
	return perm
}

// fileMode is the other way round.
func fileMode(perm uint32, dir bool) fs.FileMode {
	m := fs.FileMode(perm & 0o777)
	for bit, flag := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if perm&flag != 0 {
			m |= bit
		}
	}
	if dir {
		m |= fs.ModeDir
	}
	return m
}
