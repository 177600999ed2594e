package guest

import (
	"archive/tar"
	"archive/zip"
	"cmp"
	"compress/gzip"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// What an archive may ask for. It may have been made to hurt whoever unpacks it.
const (
	maxUnpacked = 1_000_000 // entries
	freeUnpack  = 256 << 20 // bytes that any archive may unpack to
	maxRatio    = 200       // beyond that, bytes per byte of the archive
	maxZipList  = 16 << 20  // bytes of a zip's list of files, which is read whole
	maxTold     = 100       // refused entries that are told one by one
)

// Unpacked tells what became of an archive.
type Unpacked struct {
	Entries int       `json:"entries"`           // that were written
	Bytes   int64     `json:"bytes"`             // of files
	Refused int       `json:"refused,omitempty"` // entries that were not written
	Errors  []Refused `json:"errors,omitempty"`  // the first of those
}

// Refused is an entry of an archive that was not written, and why.
type Refused struct {
	Name   string `json:"name"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// putTree unpacks an archive into a directory. Names lead nowhere else: ".." and absolute ones are refused, and no link is followed on the way,
// whether the archive brings it or it was there. Devices and their like are refused too. The rest is written.
func (s *Server) putTree(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	own, err := s.ownerOf(r)
	if err != nil {
		return nil, err
	}
	if err := s.makeDirs(path, own); err != nil {
		return nil, fileError(err, path)
	}
	root, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(err, path)
	}
	defer root.Close() // nothing is written through it
	u := &unpacker{root: root, path: path, own: own, in: &source{r: r.Body}}
	defer u.leave()
	switch r.URL.Query().Get("format") {
	case FormatTar:
		err = u.tar(u.in)
	case FormatTarGz:
		var zr *gzip.Reader
		if zr, err = gzip.NewReader(u.in); err == nil {
			err = u.tar(zr)
		}
	case FormatZip:
		err = u.zip()
	default:
		return nil, badFormat()
	}
	if err == nil {
		err = u.finish()
	}
	if err != nil {
		return nil, u.failure(err)
	}
	_, _ = io.Copy(io.Discard, u.in) // what is behind the archive; the host would take it ill if nobody read it
	return u.done, nil
}

// unpacker writes entries below root.
type unpacker struct {
	root *os.File
	path string
	own  owner
	in   *source // the archive's bytes
	done Unpacked

	at    string   // the directory of the last entry, below root
	atDir *os.File // that, open; nil = root
	dirs  []dirTime
}

type dirTime struct {
	name string
	mode fs.FileMode
	at   time.Time
}

// failure says why the archive as a whole came to no good end.
func (u *unpacker) failure(err error) error {
	so := fmt.Sprintf("; %d entries were written before", u.done.Entries)
	if u.in.err != nil {
		return refuse("incomplete", "", "the archive ended early: %v%s", u.in.err, so)
	}
	if e, ok := errors.AsType[*Error](err); ok {
		e.Detail += so
		return e
	}
	if _, ok := errors.AsType[syscall.Errno](err); ok {
		e := fileError(err, u.path)
		e.Detail += so
		return e
	}
	return refuse("bad_archive", "", "the archive can't be read: %v%s", err, so)
}

// refused notes an entry that isn't written, and reports whether err was of that kind: one that concerns the entry alone.
func (u *unpacker) refused(name string, err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		if _, ok := errors.AsType[syscall.Errno](err); !ok {
			return false
		}
		e = fileError(err, name)
	}
	if e.Status >= 500 || e.Code == "archive_bomb" {
		return false
	}
	u.done.Refused++
	if len(u.done.Errors) < maxTold {
		u.done.Errors = append(u.done.Errors, Refused{Name: clip(strings.ToValidUTF8(name, "\uFFFD")), Code: e.Code, Detail: clip(e.Detail)})
	}
	return true
}

func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func (u *unpacker) tar(from io.Reader) error {
	tr := tar.NewReader(from)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, io.LimitReader(from, 1<<20)) // the padding, and the checksum behind it
			return err
		}
		if err != nil {
			return err
		}
		if n >= maxUnpacked {
			return refuse("too_many_entries", "", "an archive may hold %d entries", maxUnpacked)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e := unpackEntry{name: h.Name, mode: h.FileInfo().Mode(), at: h.ModTime, body: tr}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		case tar.TypeDir:
			e.kind = fs.ModeDir
		case tar.TypeSymlink:
			e.kind, e.target = fs.ModeSymlink, h.Linkname
		case tar.TypeLink:
			e.kind, e.target = fs.ModeIrregular, h.Linkname
		default:
			e.kind = fs.ModeDevice
		}
		if err := u.entry(e); err != nil && !u.refused(h.Name, err) {
			return err
		}
	}
}

// zip keeps the archive in a file without a name while it is unpacked: what is in a zip stands at its end.
func (u *unpacker) zip() error {
	temp := tempPrefix + rand.Text()
	f, err := openAt(u.root, temp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // it has no name, so it is gone then
	if err := unix.Unlinkat(int(u.root.Fd()), temp, 0); err != nil {
		return err
	}
	if _, err := io.Copy(struct{ io.Writer }{f}, u.in); err != nil {
		return err
	}
	limit := &limitedReaderAt{r: f, left: maxZipList}
	zr, err := zip.NewReader(limit, u.in.n)
	if limit.left < 0 {
		return refuse("too_many_entries", "", "the zip's list of files is longer than %d MiB; send a tar", maxZipList>>20)
	}
	if err != nil {
		return err
	}
	limit.open = true
	for _, h := range zr.File {
		if err := u.zipEntry(h); err != nil && !u.refused(h.Name, err) {
			return err
		}
	}
	return nil
}

func (u *unpacker) zipEntry(h *zip.File) error {
	e := unpackEntry{name: h.Name, mode: h.Mode(), kind: h.Mode().Type(), at: h.Modified}
	if h.Mode().Perm() == 0 && e.kind == 0 {
		e.mode = 0o644 // made where there are no modes
	}
	if e.kind != 0 && e.kind != fs.ModeSymlink {
		return u.entry(e)
	}
	body, err := h.Open()
	if err != nil {
		return refuse("bad_entry", "", "it can't be read: %v", err)
	}
	defer body.Close() // only read from
	e.body = body
	if e.kind == fs.ModeSymlink {
		b, err := io.ReadAll(io.LimitReader(body, unix.PathMax))
		if err != nil || len(b) == unix.PathMax {
			return refuse("bad_entry", "", "the link's target can't be read")
		}
		e.target = string(b)
	}
	err = u.entry(e)
	if errors.Is(err, zip.ErrChecksum) || errors.Is(err, zip.ErrFormat) || errors.Is(err, zip.ErrAlgorithm) {
		err = refuse("bad_entry", "", "it can't be read: %v", err)
	}
	return err
}

// limitedReaderAt bounds how much is read until it is opened.
type limitedReaderAt struct {
	r    io.ReaderAt
	left int64
	open bool
}

// ReadAt implements io.ReaderAt.
func (l *limitedReaderAt) ReadAt(b []byte, off int64) (int, error) {
	if !l.open {
		if l.left -= int64(len(b)); l.left < 0 {
			return 0, errors.New("too much to read")
		}
	}
	return l.r.ReadAt(b, off)
}

// unpackEntry is an entry of any kind of archive.
type unpackEntry struct {
	name   string
	kind   fs.FileMode // 0 = a file; ModeIrregular = another name of the file target; ModeDevice = not wanted
	mode   fs.FileMode
	at     time.Time
	target string
	body   io.Reader
}

// split checks an entry's name and takes its directory and last part.
func split(name string) (dir, base string, err error) {
	bad := func(why string) (string, string, error) { return "", "", refuse("bad_name", "", "%s", why) }
	switch {
	case strings.ContainsRune(name, 0):
		return bad("a name can't hold a NUL byte")
	case filepath.IsAbs(name):
		return bad("an absolute name leads out of the directory")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return bad(".. leads out of the directory")
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return bad(fmt.Sprintf("a name has at most %d parts", maxDepth))
	}
	if len(parts) == 0 {
		return "", "", nil
	}
	return strings.Join(parts[:len(parts)-1], "/"), parts[len(parts)-1], nil
}

func (u *unpacker) entry(e unpackEntry) error {
	dirName, base, err := split(e.name)
	if err != nil || base == "" { // the directory itself, which is as it is
		return err
	}
	if e.kind != 0 && e.kind != fs.ModeDir && e.kind != fs.ModeSymlink && e.kind != fs.ModeIrregular {
		return refuse("not_a_file", "", "only files, directories and links are unpacked")
	}
	dir, err := u.enter(dirName)
	if err != nil {
		return err
	}
	full := strings.TrimPrefix(dirName+"/"+base, "/")
	switch e.kind {
	case fs.ModeDir:
		made, err := u.mkdir(dir, base)
		if err != nil {
			return err
		}
		if made {
			u.dirs = append(u.dirs, dirTime{full, e.mode, e.at})
		}
	case fs.ModeSymlink:
		if e.target == "" || strings.ContainsRune(e.target, 0) || len(e.target) >= unix.PathMax {
			return refuse("bad_name", "", "the link has no target that could be one")
		}
		err = u.place(dir, base, func(temp string) error {
			if err := unix.Symlinkat(e.target, int(dir.Fd()), temp); err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return nil
			}
			return unix.Fchownat(int(dir.Fd()), temp, u.own.uid, u.own.gid, unix.AT_SYMLINK_NOFOLLOW)
		})
	case fs.ModeIrregular:
		err = u.hardLink(dir, base, e.target)
	default:
		err = u.place(dir, base, func(temp string) error { return u.content(dir, temp, e) })
	}
	if err == nil {
		u.done.Entries++
	}
	return err
}

// enter opens a directory below root, and makes what is missing of it. Entries come by directory, so the last one stays open.
func (u *unpacker) enter(name string) (*os.File, error) {
	if name == "" {
		return u.root, nil
	}
	if u.atDir != nil && u.at == name {
		return u.atDir, nil
	}
	u.leave()
	dir, err := u.walk(name, true)
	if err == nil {
		u.at, u.atDir = name, dir
	}
	return dir, err
}

func (u *unpacker) leave() {
	if u.atDir != nil {
		_ = u.atDir.Close() // nothing was written through it
		u.atDir = nil
	}
}

// walk opens a directory below root without following a link.
func (u *unpacker) walk(name string, create bool) (*os.File, error) {
	dir := u.root
	for part := range strings.SplitSeq(name, "/") {
		next, err := openDirAt(dir, part)
		if create && errors.Is(err, fs.ErrNotExist) {
			if _, err = u.mkdir(dir, part); err == nil {
				next, err = openDirAt(dir, part)
			}
		}
		if dir != u.root {
			_ = dir.Close() // nothing was written through it
		}
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			return nil, refuse("not_a_directory", "", "%s on the way to it is a link or a file", part)
		}
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// mkdir makes a directory in dir, and reports whether it wasn't there.
func (u *unpacker) mkdir(dir *os.File, name string) (bool, error) {
	err := unix.Mkdirat(int(dir.Fd()), name, 0o755)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return false, refuse("not_a_directory", "", "something else is in the directory's place")
		}
		return false, nil
	}
	if err != nil {
		return false, err
	}
	d, err := openDirAt(dir, name)
	if err != nil {
		return true, err
	}
	defer d.Close() // nothing was written through it
	return true, chown(d, u.own)
}

// place has something made beside its place and puts it there, over a file or link that is there, but never through it.
func (u *unpacker) place(dir *os.File, base string, create func(temp string) error) error {
	temp := tempPrefix + rand.Text()
	err := create(temp)
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), base)
	}
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), temp, 0) // it may never have been
	}
	return err
}

func (u *unpacker) content(dir *os.File, temp string, e unpackEntry) (err error) {
	f, err := openAt(dir, temp, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, f.Close()) }()
	if _, err := io.Copy(struct{ io.Writer }{f}, &bounded{r: e.body, u: u}); err != nil {
		return err
	}
	return dress(f, u.own, e.mode.Perm(), e.at)
}

// bounded is an entry's content as long as it is in a sane proportion to the archive: a few bytes may stand for any number.
type bounded struct {
	r io.Reader
	u *unpacker
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.u.done.Bytes += int64(n)
	if b.u.done.Bytes > freeUnpack && b.u.done.Bytes/maxRatio > b.u.in.n {
		return n, refuse("archive_bomb", "", "the archive unpacks to more than %d times its size", maxRatio)
	}
	return n, err
}

// hardLink gives a file of the tree another name.
func (u *unpacker) hardLink(dir *os.File, base, target string) error {
	toDir, toBase, err := split(target)
	if err != nil {
		return err
	}
	if toBase == "" {
		return refuse("bad_name", "", "the link has no target that could be one")
	}
	from := u.root
	if toDir != "" {
		if from, err = u.walk(toDir, false); err != nil {
			return err
		}
		defer from.Close() // nothing was written through it
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), toBase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "link", Path: target, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return refuse("not_a_file", "", "it is another name of what is no file")
	}
	if toDir+"/"+toBase == strings.Trim(u.at, "/")+"/"+base {
		return nil
	}
	return u.place(dir, base, func(temp string) error {
		return unix.Linkat(int(from.Fd()), toBase, int(dir.Fd()), temp, 0)
	})
}

// finish gives directories that were made their modes and times, when nothing is written into them any more.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		f, err := u.walk(d.name, false)
		if err != nil {
			continue // it has gone in between, or another entry took its place
		}
		err = dress(f, u.own, d.mode.Perm()|d.mode&(fs.ModeSticky|fs.ModeSetgid), d.at)
		_ = f.Close() // nothing was written through it
		if err != nil {
			return err
		}
	}
	return nil
}

// isText reports whether a name is text and not just bytes.
func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
