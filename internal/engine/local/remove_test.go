package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemoveTree removes directories of every kind, and nothing that they lead to.
func TestRemoveTree(t *testing.T) {
	t.Parallel()
	keep := t.TempDir()
	if err := os.WriteFile(filepath.Join(keep, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, fill := range map[string]func(dir string) error{
		"nothing":     func(string) error { return nil },
		"no such":     os.Remove,
		"a few files": func(dir string) error { return os.WriteFile(filepath.Join(dir, "f"), nil, 0o400) },
		"links": func(dir string) error {
			return errors.Join(os.Symlink(keep, filepath.Join(dir, "l")), os.Symlink("l/../..", filepath.Join(dir, "m")), os.Mkdir(filepath.Join(dir, "d"), 0o700),
				os.Symlink(keep, filepath.Join(dir, "d", "l")), os.Link(filepath.Join(keep, "file"), filepath.Join(dir, "hard")))
		},
		"a FIFO and a socket's place": func(dir string) error {
			return errors.Join(unix.Mkfifo(filepath.Join(dir, "p"), 0), unix.Mknod(filepath.Join(dir, "s"), unix.S_IFSOCK, 0))
		},
		"names that removing gives": func(dir string) error {
			return os.MkdirAll(filepath.Join(dir, ".removed-1/.removed-2/.removed-1/.removed-3/x"), 0o700)
		},
		"many": func(dir string) error {
			for i := range 3 * entries {
				if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(i%7), fmt.Sprint(i), "x"), 0o700); err != nil {
					return err
				}
			}
			return nil
		},
		"deep": func(dir string) error {
			fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
			for range 3000 {
				if err != nil {
					return err
				}
				err = unix.Mkdirat(fd, "deep", 0o700)
				next, openErr := unix.Openat(fd, "deep", unix.O_DIRECTORY|unix.O_RDONLY, 0)
				err, fd = errors.Join(err, openErr, unix.Close(fd)), next
			}
			return errors.Join(err, unix.Mkdirat(fd, strings.Repeat("n", 255), 0o700), unix.Close(fd))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "top")
			if err := errors.Join(os.Mkdir(dir, 0o700), fill(dir)); err != nil {
				t.Fatal(err)
			}
			if err := removeTree(dir); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
	if data, err := os.ReadFile(filepath.Join(keep, "file")); err != nil || string(data) != "x" {
		t.Errorf("what the links led to is %q, %v", data, err)
	}
	if err := removeTree(filepath.Join(keep, "file")); err == nil {
		t.Error("a file was taken for a directory")
	}
}
