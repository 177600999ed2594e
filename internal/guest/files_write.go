package guest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of files that are being written, beside the file whose place they take. Watches don't tell of them.
const tempPrefix = ".sandlot-tmp-"

// condition says which version of a file may be replaced, by ETag.
type condition struct {
	none bool   // nothing may be there
	any  bool   // something must be there
	tags string // one of these must be there, as If-Match has them
}

func conditionOf(h http.Header) (condition, error) {
	c := condition{tags: strings.TrimSpace(h.Get("If-Match"))}
	if c.tags == "*" {
		c.any, c.tags = true, ""
	}
	switch none := strings.TrimSpace(h.Get("If-None-Match")); none {
	case "":
	case "*":
		c.none = true
	default:
		return c, refuse("bad_condition", "If-None-Match", "only * is possible when a file is written")
	}
	return c, nil
}

// check compares the condition with what is at path now.
func (c condition) check(path string) error {
	if c == (condition{}) {
		return nil
	}
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if c.any || c.tags != "" {
			return &Error{Status: 412, Code: "changed", Field: "path", Detail: path + " isn't there any more"}
		}
		return nil
	case err != nil:
		return fileError(err, path)
	case c.none:
		return &Error{Status: 412, Code: "exists", Field: "path", Detail: path + " is there already"}
	case c.tags == "":
		return nil
	}
	now := describe(path, fi).ETag
	for tag := range strings.SplitSeq(c.tags, ",") {
		if tag = strings.TrimSpace(tag); tag == now && now != "" {
			return nil
		}
	}
	return &Error{Status: 412, Code: "changed", Field: "path", Detail: path + " has changed since"}
}

// parseMode reads octal permission bits; "" is 0.
func parseMode(v string, most uint32) (fs.FileMode, error) {
	if v == "" {
		return 0, nil
	}
	m, err := strconv.ParseUint(v, 8, 32)
	if err != nil || m > uint64(most) {
		return 0, refuse("bad_mode", "mode", "%q is not a mode: octal permission bits up to %o are wanted", v, most)
	}
	return fileMode(uint32(m)), nil
}

// fileMode is the reverse of modeBits.
func fileMode(bits uint32) fs.FileMode {
	m := fs.FileMode(bits & 0o777)
	for bit, special := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if bits&bit != 0 {
			m |= special
		}
	}
	return m
}

// owner is whom new files belong to.
type owner struct{ uid, gid int }

func (s *Server) ownerOf(r *http.Request) (owner, error) {
	id, err := s.who(r.URL.Query().Get("owner"))
	if e, ok := errors.AsType[*Error](err); ok && e.Field == "user" {
		e.Field = "owner"
	}
	return owner{int(id.uid), int(id.gid)}, err
}

// putFile writes a file such that everybody sees the old content or the new one, whole. What is there already stays whose it is.
func (s *Server) putFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	cond, err := conditionOf(r.Header)
	if err != nil {
		return nil, err
	}
	mode, err := parseMode(q.Get("mode"), 0o777)
	if err != nil {
		return nil, err
	}
	own, err := s.ownerOf(r)
	if err != nil {
		return nil, err
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // write through a link, as an editor does
	}
	switch fi, err := os.Lstat(path); {
	case err != nil:
	case q.Get("new") == "1":
		return nil, &Error{Status: 409, Code: "exists", Field: "path", Detail: path + " is there already"}
	case fi.IsDir():
		return nil, refuse("is_directory", "path", "%s is a directory", path)
	case fi.Mode().IsRegular():
		if mode == 0 {
			mode = fi.Mode().Perm()
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && q.Get("owner") == "" {
			own = owner{int(st.Uid), int(st.Gid)}
		}
	case fi.Mode()&fs.ModeSymlink == 0:
		return nil, refuse("not_a_file", "path", "%s is not a regular file", path)
	}
	if err := cond.check(path); err != nil { // before all of it was sent
		return nil, err
	}
	if mode == 0 {
		mode = 0o644
	}
	if err := s.makeDirs(filepath.Dir(path), own); err != nil {
		return nil, fileError(err, path)
	}
	if err := s.replace(path, r.Body, mode, own, cond); err != nil {
		return nil, err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fileError(err, path)
	}
	return describe(path, fi), nil
}

// replace puts what src holds at path, by way of a file beside it. However it fails, nothing is left of it.
func (s *Server) replace(path string, src io.Reader, mode fs.FileMode, own owner, cond condition) (err error) {
	temp := tempBeside(path)
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fileError(err, path)
	}
	defer func() {
		if err != nil {
			_, _ = f.Close(), os.Remove(temp) // it is of no use, and err says why
		}
	}()
	in := &source{r: src}
	buf := wideBuffers.Get().(*[wideBuffer]byte)
	defer wideBuffers.Put(buf)
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, in, buf[:]); err != nil {
		if in.err != nil {
			return refuse("incomplete", "", "the content ended early: %v", in.err)
		}
		return fileError(err, path)
	}
	if err := chown(f, own); err != nil {
		return fileError(err, path)
	}
	if err := f.Chmod(mode); err != nil {
		return fileError(err, path)
	}
	if err := f.Close(); err != nil { // where a file system without space may say so
		return fileError(err, path)
	}
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	if err := cond.check(path); err != nil {
		return err
	}
	if !cond.none {
		if err := os.Rename(temp, path); err != nil {
			return fileError(err, path)
		}
		return nil
	}
	err = renameNew(temp, path)
	if errors.Is(err, syscall.EEXIST) {
		return &Error{Status: 412, Code: "exists", Field: "path", Detail: path + " is there already"}
	}
	if err != nil {
		return fileError(err, path)
	}
	return nil
}

func tempBeside(path string) string { return filepath.Join(filepath.Dir(path), tempPrefix+rand.Text()) }

// renameNew renames without replacing: who comes second gets EEXIST, programs of the sandbox included.
func renameNew(from, to string) error {
	var err error
	for {
		err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	if err == nil {
		return nil
	}
	// The file system can't, or it never could: a directory into itself, say.
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if fi.Mode().IsRegular() {
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	}
	if _, err := os.Lstat(to); err == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EEXIST}
	}
	return os.Rename(from, to)
}

// source tells errors of reading from those of writing, and counts.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// chown gives f away, if it has to be and we may.
func chown(f *os.File, own owner) error {
	if own == (owner{os.Geteuid(), os.Getegid()}) || os.Geteuid() != 0 {
		return nil
	}
	return f.Chown(own.uid, own.gid)
}

// makeDirs makes the directories that are missing.
func (s *Server) makeDirs(dir string, own owner) error {
	if fi, err := os.Stat(dir); err == nil {
		if !fi.IsDir() {
			return syscall.ENOTDIR
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if dir == "/" {
		return fmt.Errorf("there is no root: %w", syscall.ENOENT)
	}
	if err := s.makeDirs(filepath.Dir(dir), own); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
				return nil // somebody was quicker
			}
			return syscall.ENOTDIR
		}
		return err
	}
	d, err := openDir(dir)
	if err != nil {
		return err
	}
	defer d.Close() // nothing was written through it
	return chown(d, own)
}
