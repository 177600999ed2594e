package local

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// removeTree removes a directory that a sandbox has written in, with all that is in it, and is content if there is none. A sandbox can make
// directories in directories without end: a walk that holds each of them open, as os.RemoveAll does, would take all files that this process
// may open. So what is deeper is moved up first, and no more than three are ever open. No link is followed.
func removeTree(path string) error {
	dir, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	t := removal{top: dir}
	// Whatever the pass finds is gone or lies in the top directory after it, so what is left is as many levels less deep.
	for {
		left, err := t.empty(dir, true)
		if err != nil {
			return err
		}
		if !left {
			break
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// removal is the work on a directory that is removed.
type removal struct {
	top *os.File
	n   int // names given so far
}

// entries is how many names are read at once: a directory may hold millions.
const entries = 1024

// empty removes what is in dir but for directories that hold others: those are moved to the top. In the top itself, they are emptied. It
// reports whether something is left.
func (t *removal) empty(dir *os.File, top bool) (left bool, err error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil { // what is read below changes meanwhile
		return false, err
	}
	for {
		names, err := dir.Readdirnames(entries)
		if errors.Is(err, io.EOF) {
			return left, nil
		}
		if err != nil {
			return left, err
		}
		for _, name := range names {
			kept, err := t.remove(dir, name, top)
			if err != nil {
				return left, fmt.Errorf("removing %s: %w", filepath.Join(dir.Name(), name), err)
			}
			left = left || kept
		}
	}
}

// remove removes one name of dir, or moves it.
func (t *removal) remove(dir *os.File, name string, top bool) (kept bool, err error) {
	err = unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) { // the latter is POSIX's word for a directory
		return false, err
	}
	err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return false, nil
	case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST):
		return false, err
	case !top:
		return true, t.lift(dir, name)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	sub := os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name))
	defer sub.Close()
	if _, err := t.empty(sub, false); err != nil {
		return false, err
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR); errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return true, nil // a name that reading missed, for others went away: the next pass sees it
	} else if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, err
	}
	return true, nil // what was lifted from it is left
}

// lift moves a directory to the top, under a name that nobody has.
func (t *removal) lift(dir *os.File, name string) error {
	for {
		t.n++
		err := unix.Renameat2(int(dir.Fd()), name, int(t.top.Fd()), ".removed-"+strconv.Itoa(t.n), unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}
