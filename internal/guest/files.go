package guest

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileHeader holds a File as JSON, beside the bytes of its content.
const fileHeader = "Sandlot-File"

// maxEntries is the most that a listing holds; a larger directory is refused rather than cut.
const maxEntries = 20_000

// cleanPath checks a path of a request.
func cleanPath(r *http.Request) (string, error) {
	path := r.FormValue("path")
	if !filepath.IsAbs(path) || hasNUL(path) {
		return "", refuse("bad_path", "path", "a path must be absolute and can't hold a NUL byte")
	}
	return filepath.Clean(path), nil
}

// describe returns what is known of the entry at path.
func describe(path string, fi fs.FileInfo) File {
	f := File{
		Name: fi.Name(), Path: path, Type: "other", Size: fi.Size(),
		Mode: uint32(fi.Mode().Perm()), ModTime: fi.ModTime().UTC(),
	}
	if path == "/" {
		f.Name = "/"
	}
	for bit, special := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if fi.Mode()&special != 0 {
			f.Mode |= bit
		}
	}
	switch {
	case fi.Mode().IsRegular():
		f.Type = "file"
	case fi.IsDir():
		f.Type = "directory"
	case fi.Mode()&fs.ModeSymlink != 0:
		f.Type = "symlink"
		f.Target, _ = os.Readlink(path) // it may have gone in between
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		f.UID, f.GID = int(st.Uid), int(st.Gid)
	}
	return f
}

func (s *Server) getFile(w http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r)
	if err != nil {
		return nil, err
	}
	switch {
	case r.FormValue("stat") == "1":
		fi, err := os.Lstat(path)
		if err != nil {
			return nil, fileError(err, path)
		}
		return describe(path, fi), nil
	case r.FormValue("list") == "1":
		return list(path)
	}
	// Without O_NONBLOCK the opening of a FIFO would wait for its other end.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if errors.Is(err, syscall.ENXIO) { // a socket, or a device without a driver
		return nil, refuse("not_a_file", "path", "%s is not a regular file", path)
	}
	if err != nil {
		return nil, fileError(err, path)
	}
	defer f.Close() // only read from
	fi, err := f.Stat()
	if err != nil {
		return nil, fileError(err, path)
	}
	switch {
	case fi.IsDir():
		return nil, refuse("is_directory", "path", "%s is a directory", path)
	case !fi.Mode().IsRegular():
		return nil, refuse("not_a_file", "path", "%s is not a regular file", path)
	}
	info, err := json.Marshal(describe(path, fi))
	if err != nil {
		return nil, err
	}
	w.Header().Set(fileHeader, string(info))
	w.Header().Set("Content-Type", "application/octet-stream")
	// No length: a file may grow or shrink meanwhile, and those of /proc don't tell theirs. The end of the chunks is the proof
	// that all was read.
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
	if _, err := io.Copy(w, f); err != nil {
		panic(http.ErrAbortHandler) // the host must not take this for the whole file
	}
	return nil, nil
}

// list returns what is in a directory, by name.
func list(path string) (any, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, fileError(err, path)
	}
	defer dir.Close() // only read from
	entries, err := dir.ReadDir(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fileError(err, path)
	}
	if len(entries) > maxEntries {
		return nil, refuse("too_many_entries", "path", "%s holds more than %d entries", path, maxEntries)
	}
	files := make([]File, 0, len(entries))
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue // it has gone in between
		}
		files = append(files, describe(filepath.Join(path, e.Name()), fi))
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	return files, nil
}

// putFile writes a file such that everybody sees the old content or the new one, whole.
func (s *Server) putFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r)
	if err != nil {
		return nil, err
	}
	var mode fs.FileMode
	if v := r.FormValue("mode"); v != "" {
		m, err := strconv.ParseUint(v, 8, 32)
		if err != nil || m > 0o777 {
			return nil, refuse("bad_mode", "mode", "%q is not a mode: octal permission bits are wanted", v)
		}
		mode = fs.FileMode(m)
	}
	uid, gid := s.cfg.AgentUID, s.cfg.AgentGID
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // write through a link, as an editor does
	}
	switch fi, err := os.Lstat(path); {
	case err != nil:
	case r.FormValue("new") == "1":
		return nil, &Error{Status: 409, Code: "exists", Field: "path", Detail: path + " is there already"}
	case fi.IsDir():
		return nil, refuse("is_directory", "path", "%s is a directory", path)
	case fi.Mode().IsRegular(): // it stays whose it is
		if mode == 0 {
			mode = fi.Mode().Perm()
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	if mode == 0 {
		mode = 0o644
	}
	if err := s.makeDirs(filepath.Dir(path)); err != nil {
		return nil, fileError(err, path)
	}
	if err := replace(path, r.Body, mode, uid, gid); err != nil {
		return nil, err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fileError(err, path)
	}
	return describe(path, fi), nil
}

// replace puts what src holds at path, by way of a file beside it.
func replace(path string, src io.Reader, mode fs.FileMode, uid, gid int) (err error) {
	temp := filepath.Join(filepath.Dir(path), ".sandlot-"+rand.Text())
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
	if _, err := io.Copy(f, in); err != nil {
		if in.err != nil {
			return refuse("incomplete", "", "the content ended early: %v", in.err)
		}
		return fileError(err, path)
	}
	if err := chown(f, uid, gid); err != nil {
		return fileError(err, path)
	}
	if err := f.Chmod(mode); err != nil {
		return fileError(err, path)
	}
	if err := f.Close(); err != nil { // where a file system without space may say so
		return fileError(err, path)
	}
	if err := os.Rename(temp, path); err != nil {
		return fileError(err, path)
	}
	return nil
}

// source tells errors of reading from those of writing.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// chown gives f away, if it has to be and we may.
func chown(f *os.File, uid, gid int) error {
	if (uid == os.Geteuid() && gid == os.Getegid()) || os.Geteuid() != 0 {
		return nil
	}
	return f.Chown(uid, gid)
}

// makeDirs makes the directories that are missing, for the agent.
func (s *Server) makeDirs(dir string) error {
	if fi, err := os.Stat(dir); err == nil {
		if !fi.IsDir() {
			return syscall.ENOTDIR
		}
		return nil
	}
	if err := s.makeDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil // somebody was quicker
		}
		return err
	}
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer d.Close() // nothing was written through it
	return chown(d, s.cfg.AgentUID, s.cfg.AgentGID)
}

// deleteFile removes a file or an empty directory, or with recursive=1 a directory and all that is in it.
func (s *Server) deleteFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r)
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, refuse("bad_path", "path", "/ can't be removed")
	}
	if _, err := os.Lstat(path); err != nil {
		return nil, fileError(err, path)
	}
	remove := os.Remove
	if r.FormValue("recursive") == "1" {
		remove = os.RemoveAll
	}
	if err := remove(path); err != nil {
		return nil, fileError(err, path)
	}
	return struct{}{}, nil
}
