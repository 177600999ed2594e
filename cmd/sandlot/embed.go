package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// The guest's program is built into this directory before the server is (see Makefile). A plain `go build` or `go install`
// finds only the directory.
//
//go:embed all:guestbin
var guestbin embed.FS

// installGuest puts the guest's program into a directory of its own below dir and returns its path. The directory is named by
// the program's content, so sandboxes that are running keep the one they started with.
func installGuest(dir string) (string, error) {
	program, err := guestProgram()
	if err != nil {
		return "", fmt.Errorf("reading the guest's program: %w", err)
	}
	defer program.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	name := filepath.Base(guest.Program)
	out, err := os.OpenFile(filepath.Join(fresh, name), os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, sum), program)
	if err := errors.Join(err, out.Close(), os.Chmod(fresh, 0o755)); err != nil {
		return "", fmt.Errorf("installing the guest's program: %w", err)
	}
	final := filepath.Join(dir, hex.EncodeToString(sum.Sum(nil)[:8]))
	if err := os.Rename(fresh, final); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("installing the guest's program: %w", err)
	}
	return filepath.Join(final, name), nil
}

// guestProgram is the embedded program, or this very program, which is a guest too when it is started by that name.
func guestProgram() (io.ReadCloser, error) {
	f, err := guestbin.Open("guestbin/" + filepath.Base(guest.Program))
	if errors.Is(err, fs.ErrNotExist) {
		return os.Open("/proc/self/exe")
	}
	return f, err
}
