package guest

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The formats of archives.
const (
	FormatTar   = "tar"
	FormatTarGz = "tar.gz"
	FormatZip   = "zip"
)

const (
	// maxZipEntries bounds what is kept of a zip: its list of files comes last.
	maxZipEntries = 200_000
	// maxDepth bounds how deep directories are followed; each level holds one open.
	maxDepth = 256
	// smallFile is how long a file may be to be read before its header is written, so that it may shrink meanwhile.
	smallFile = 256 << 10
)

// getTree answers with a directory as an archive, streamed. Links are entries of their own and never followed, sockets, pipes and devices
// are left out. An answer that breaks off before the archive's end is not to be used.
func (s *Server) getTree(w http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(err, path)
	}
	defer dir.Close() // only read from
	walk := &treeWalk{live: func() error { return r.Context().Err() }}
	var pack packer
	var finish []func() error
	switch r.URL.Query().Get("format") {
	case FormatTar:
		tw := tar.NewWriter(w)
		pack, finish = &tarPacker{tw: tw}, []func() error{tw.Close}
	case FormatTarGz:
		zw, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return nil, err
		}
		tw := tar.NewWriter(zw)
		pack, finish = &tarPacker{tw: tw}, []func() error{tw.Close, zw.Close}
	case FormatZip:
		if err := walk.count(dir, maxZipEntries); err != nil {
			return nil, err
		}
		zw := zip.NewWriter(w)
		pack, finish = &zipPacker{zw: zw}, []func() error{zw.Close}
	default:
		return nil, badFormat()
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
	if r.Method == http.MethodHead {
		return nil, nil
	}
	err = walk.each(dir, "", 0, pack)
	for _, f := range finish {
		if err == nil {
			err = f()
		}
	}
	if err != nil {
		s.log.Info("an archive was cut off", "path", path, "err", err)
		panic(http.ErrAbortHandler) // the host must not take this for the whole
	}
	return nil, nil
}

func badFormat() *Error {
	return refuse("bad_format", "format", "a format is %s, %s or %s", FormatTar, FormatTarGz, FormatZip)
}

// packer writes entries of an archive. name has no slash at its beginning or end.
type packer interface {
	dir(name string, fi fs.FileInfo) error
	link(name, target string, fi fs.FileInfo) error
	file(name string, f *os.File, fi fs.FileInfo) error
}

// treeWalk goes through a directory by open files, so that nothing that is swapped meanwhile leads it elsewhere.
type treeWalk struct {
	live func() error
	seen int
}

func (t *treeWalk) each(dir *os.File, prefix string, depth int, to packer) error {
	if depth > maxDepth {
		return errors.New("directories are nested too deep")
	}
	for {
		names, err := dir.Readdirnames(1024)
		slices.Sort(names) // the same tree gives much the same archive
		for _, name := range names {
			if err := t.live(); err != nil {
				return err
			}
			if strings.HasPrefix(name, tempPrefix) {
				continue
			}
			if err := t.one(dir, name, prefix+name, depth, to); err != nil && !errors.Is(err, fs.ErrNotExist) { // it has gone in between
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (t *treeWalk) one(dir *os.File, name, full string, depth int, to packer) error {
	t.seen++
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: full, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := readLinkAt(dir, name)
		if err != nil {
			return err
		}
		return to.link(full, target, statOf(name, &st))
	case unix.S_IFREG, unix.S_IFDIR:
	default:
		return nil
	}
	f, err := openAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	fi, err := f.Stat()
	switch {
	case err != nil:
		return err
	case fi.IsDir():
		if err := to.dir(full, fi); err != nil {
			return err
		}
		return t.each(f, full+"/", depth+1, to)
	case fi.Mode().IsRegular():
		return to.file(full, f, fi)
	}
	return nil // it is something else by now
}

// count refuses a tree of too many entries.
func (t *treeWalk) count(dir *os.File, most int) error {
	c := &counter{most: most}
	if err := t.each(dir, "", 0, c); err != nil {
		return err
	}
	_, err := dir.Seek(0, io.SeekStart)
	return err
}

type counter struct{ n, most int }

func (c *counter) add() error {
	if c.n++; c.n > c.most {
		return refuse("too_many_entries", "format", "a zip holds at most %d entries; ask for a tar", c.most)
	}
	return nil
}

func (c *counter) dir(string, fs.FileInfo) error            { return c.add() }
func (c *counter) link(string, string, fs.FileInfo) error   { return c.add() }
func (c *counter) file(string, *os.File, fs.FileInfo) error { return c.add() }

func readLinkAt(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// stat is a fs.FileInfo of what was looked at without being opened.
type stat struct {
	name string
	st   *unix.Stat_t
}

func statOf(name string, st *unix.Stat_t) stat { return stat{name, st} }

func (s stat) Name() string       { return s.name }
func (s stat) Size() int64        { return s.st.Size }
func (s stat) Mode() fs.FileMode  { return fileMode(s.st.Mode&0o7777) | fs.ModeSymlink }
func (s stat) ModTime() time.Time { return time.Unix(s.st.Mtim.Unix()) }
func (s stat) IsDir() bool        { return false }
func (s stat) Sys() any           { return nil }

type tarPacker struct{ tw *tar.Writer }

func (p *tarPacker) header(name string, kind byte, fi fs.FileInfo) *tar.Header {
	h := &tar.Header{Typeflag: kind, Name: name, Mode: int64(modeBits(fi.Mode())), ModTime: fi.ModTime().Truncate(time.Second), Format: tar.FormatPAX}
	if !isText(name) {
		h.Format = tar.FormatGNU // PAX has text only
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		h.Uid, h.Gid = int(st.Uid), int(st.Gid)
	} else if s, ok := fi.(stat); ok {
		h.Uid, h.Gid = int(s.st.Uid), int(s.st.Gid)
	}
	if h.Format == tar.FormatPAX {
		h.ModTime = fi.ModTime()
	}
	return h
}

func (p *tarPacker) dir(name string, fi fs.FileInfo) error {
	return p.tw.WriteHeader(p.header(name+"/", tar.TypeDir, fi))
}

func (p *tarPacker) link(name, target string, fi fs.FileInfo) error {
	h := p.header(name, tar.TypeSymlink, fi)
	if h.Linkname = target; !isText(target) {
		h.Format, h.ModTime = tar.FormatGNU, h.ModTime.Truncate(time.Second)
	}
	return p.tw.WriteHeader(h)
}

// file writes as much as the header says: what a file grows by meanwhile is left out. If it shrinks, what was said is not there, and
// that ends the archive; small files are read first.
func (p *tarPacker) file(name string, f *os.File, fi fs.FileInfo) error {
	h := p.header(name, tar.TypeReg, fi)
	h.Size = fi.Size()
	var from io.Reader = f
	if h.Size <= smallFile {
		b, err := io.ReadAll(io.LimitReader(f, h.Size))
		if err != nil {
			return err
		}
		h.Size, from = int64(len(b)), bytes.NewReader(b)
	}
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.CopyN(p.tw, from, h.Size)
	if errors.Is(err, io.EOF) {
		return errors.New(name + " shrank while it was read")
	}
	return err
}

type zipPacker struct{ zw *zip.Writer }

func (p *zipPacker) create(name string, method uint16, fi fs.FileInfo) (io.Writer, error) {
	h := &zip.FileHeader{Name: name, Method: method, Modified: fi.ModTime()}
	if !isText(name) {
		h.NonUTF8 = true
	}
	h.SetMode(fi.Mode())
	return p.zw.CreateHeader(h)
}

func (p *zipPacker) dir(name string, fi fs.FileInfo) error {
	_, err := p.create(name+"/", zip.Store, fi)
	return err
}

func (p *zipPacker) link(name, target string, fi fs.FileInfo) error {
	w, err := p.create(name, zip.Store, fi)
	if err == nil {
		_, err = io.WriteString(w, target)
	}
	return err
}

// file writes what the file holds when it is read: a zip tells the length behind it.
func (p *zipPacker) file(name string, f *os.File, fi fs.FileInfo) error {
	w, err := p.create(name, zip.Deflate, fi)
	if err == nil {
		_, err = io.Copy(w, io.LimitReader(f, max(fi.Size(), smallFile))) // no race with one that grows
	}
	return err
}
