package guest

import (
	"bufio"
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
	"time"

	"golang.org/x/sys/unix"
)

// makeDir makes a directory, and those above it that are missing.
func (s *Server) makeDir(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	mode, err := parseMode(r.URL.Query().Get("mode"), 0o3777)
	if err != nil {
		return nil, err
	}
	if mode == 0 {
		mode = 0o755
	}
	own, err := s.ownerOf(r)
	if err != nil {
		return nil, err
	}
	if err := s.makeDirs(filepath.Dir(path), own); err != nil {
		return nil, fileError(err, path)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, fileError(err, path)
	}
	d, err := openDir(path)
	if err != nil {
		return nil, fileError(err, path)
	}
	defer d.Close() // nothing was written through it
	if err := chown(d, own); err != nil {
		return nil, fileError(err, path)
	}
	if err := d.Chmod(mode); err != nil {
		return nil, fileError(err, path)
	}
	fi, err := d.Stat()
	if err != nil {
		return nil, fileError(err, path)
	}
	f := describe(path, fi)
	f.Name = filepath.Base(path)
	return f, nil
}

// chmodFile changes permission bits. A link is followed, as links have none of their own.
func (s *Server) chmodFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	v := r.URL.Query().Get("mode")
	if v == "" {
		return nil, refuse("bad_mode", "mode", "no mode was given")
	}
	mode, err := parseMode(v, 0o7777)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, fileError(err, path)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fileError(err, path)
	}
	return describe(path, fi), nil
}

// moveFile renames; from one file system to another it copies and removes.
func (s *Server) moveFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.transfer(r, func(from, to string, overwrite bool) error {
		if err := notMounted(from); err != nil {
			return err
		}
		err := s.rename(from, to, overwrite)
		if !errors.Is(err, syscall.EXDEV) {
			return err
		}
		if err := s.copyTo(r, from, to, overwrite); err != nil {
			return err
		}
		if err := os.RemoveAll(from); err != nil {
			return fmt.Errorf("it was copied, but the original can't be removed: %w", err)
		}
		return nil
	})
}

// copyFile copies a file or a directory with all that is in it. Owners, modes and times are kept, links are copied as links.
func (s *Server) copyFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.transfer(r, func(from, to string, overwrite bool) error { return s.copyTo(r, from, to, overwrite) })
}

func (s *Server) transfer(r *http.Request, do func(from, to string, overwrite bool) error) (any, error) {
	from, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	to, err := cleanPath(r, "to")
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(from); err != nil {
		return nil, fileError(err, from)
	}
	if from == to || from == "/" || strings.HasPrefix(to, from+"/") {
		return nil, refuse("bad_path", "to", "%s can't be put at or below itself", from)
	}
	own := owner{s.cfg.AgentUID, s.cfg.AgentGID}
	if err := s.makeDirs(filepath.Dir(to), own); err != nil {
		return nil, toError(err, to)
	}
	if err := do(from, to, r.URL.Query().Get("overwrite") == "1"); err != nil {
		return nil, toError(err, to)
	}
	fi, err := os.Lstat(to)
	if err != nil {
		return nil, toError(err, to)
	}
	return describe(to, fi), nil
}

func toError(err error, to string) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := fileError(err, to)
	if e.Code != "disk_full" {
		e.Field = "to"
	}
	return e
}

// rename puts from at to; without overwrite only where nothing is.
func (s *Server) rename(from, to string, overwrite bool) error {
	if !overwrite {
		return renameNew(from, to)
	}
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	return os.Rename(from, to)
}

// copyTo makes the copy beside its place and puts it there when it is whole.
func (s *Server) copyTo(r *http.Request, from, to string, overwrite bool) (err error) {
	if _, err := os.Lstat(to); err == nil && !overwrite {
		return syscall.EEXIST
	}
	temp := tempBeside(to)
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	if err := copyTree(r, from, temp); err != nil {
		return err
	}
	return s.rename(temp, to, overwrite)
}

// copyTree copies what is at from to a place where nothing is.
func copyTree(r *http.Request, from, to string) error {
	if err := r.Context().Err(); err != nil {
		return err
	}
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("nothing is known of %s", from)
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err == nil {
			err = os.Symlink(target, to)
		}
		if err == nil && os.Geteuid() == 0 {
			err = os.Lchown(to, int(st.Uid), int(st.Gid))
		}
		return err
	case fi.IsDir():
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		if err := copyEntries(r, from, to); err != nil {
			return err
		}
	case fi.Mode().IsRegular():
		if err := copyContent(from, to); err != nil {
			return err
		}
	default:
		return refuse("not_a_file", "path", "%s is neither a file nor a directory nor a link, and can't be copied", from)
	}
	f, err := os.OpenFile(to, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close() // only looked at
	return dress(f, owner{int(st.Uid), int(st.Gid)}, fi.Mode(), fi.ModTime())
}

// dress gives an open file its owner, mode and time. By the open file and not by name, where something else may be by now.
func dress(f *os.File, own owner, mode fs.FileMode, at time.Time) error {
	if err := chown(f, own); err != nil {
		return err
	}
	if err := f.Chmod(fileMode(modeBits(mode))); err != nil {
		return err
	}
	return setTime(f, at)
}

func setTime(f *os.File, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if at.IsZero() || err != nil {
		return nil //nolint:nilerr // a time that can't be stored isn't worth a file
	}
	path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, 0)
}

func copyEntries(r *http.Request, from, to string) error {
	dir, err := openDir(from)
	if err != nil {
		return err
	}
	defer dir.Close() // only read from
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			if err := copyTree(r, filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func copyContent(from, to string) (err error) {
	in, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close() // only read from
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// deleteFile removes a file or an empty directory, or with recursive=1 a directory and all that is in it.
func (s *Server) deleteFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, refuse("bad_path", "path", "/ can't be removed")
	}
	if _, err := os.Lstat(path); err != nil {
		return nil, fileError(err, path)
	}
	if err := notMounted(path); err != nil {
		return nil, err
	}
	remove := os.Remove
	if r.URL.Query().Get("recursive") == "1" {
		remove = os.RemoveAll
	}
	if err := remove(path); err != nil {
		return nil, fileError(err, path)
	}
	return struct{}{}, nil
}

// notMounted refuses what is, or has in it, a file system of its own: removing it would empty it and then fail.
func notMounted(path string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil // then the kernel says so
	}
	defer f.Close() // only read from
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if at := unescapeMount(fields[4]); at == path || strings.HasPrefix(at, path+"/") {
			return &Error{Status: 409, Code: "busy", Field: "path", Detail: fmt.Sprintf("%s can't be removed: a file system is mounted at %s", path, at)}
		}
	}
	return nil
}

// unescapeMount reads a path as mountinfo has it.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// openDirAt opens a directory in dir and follows no link. Not by O_DIRECTORY: with that gVisor follows one, O_NOFOLLOW or not.
func openDirAt(dir *os.File, name string) (*os.File, error) {
	f, err := openAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return onlyDir(f)
}

// openDir is openDirAt for a path; a link before its last part is followed.
func openDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return onlyDir(f)
}

func onlyDir(f *os.File) (*os.File, error) {
	fi, err := f.Stat()
	if err == nil && !fi.IsDir() {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: syscall.ENOTDIR}
	}
	if err != nil {
		_ = f.Close() // only looked at
		return nil, err
	}
	return f, nil
}

// openAt opens name in dir and follows no link.
func openAt(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}
