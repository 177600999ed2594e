package local

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// VolumeDir implements engine.VolumeDirs.
func (e *Engine) VolumeDir(_ context.Context, v sandbox.Volume) (string, error) {
	agent := e.ids.agent()
	dir, _, err := e.volumeFor(v, agent, agent)
	return dir, err
}

// GuestState implements engine.Journals.
func (e *Engine) GuestState(ref engine.Ref) (string, error) {
	k, err := key(ref)
	return e.stateDir(k), err
}

// DeleteVolume implements engine.VolumeDirs.
func (e *Engine) DeleteVolume(_ context.Context, v sandbox.Volume) error {
	if !sandbox.IsID(v.ID, sandbox.PrefixVolume) {
		return fmt.Errorf("%w: volume ID %q", sandbox.ErrInvalid, v.ID)
	}
	e.pool.forgetVolume(v.ID)
	if err := removeTree(filepath.Join(e.cfg.Dir, "volumes", v.ID)); err != nil {
		return fmt.Errorf("deleting volume %s: %w", v.ID, err)
	}
	return nil
}

// volumeFor returns the volume's directory, made on first use, and the host's uid that stands for root in its sandboxes. While there is
// nothing in it, it belongs to the user inside that uid and gid name. As real
// root the directory's own owner is the record of its range: whatever a sandbox does to it stays within the range.
func (e *Engine) volumeFor(v sandbox.Volume, uid, gid int) (dir string, base uint32, err error) {
	if !sandbox.IsID(v.ID, sandbox.PrefixVolume) {
		return "", 0, fmt.Errorf("%w: volume ID %q", sandbox.ErrInvalid, v.ID)
	}
	dir = filepath.Join(e.cfg.Dir, "volumes", v.ID)

	// One at a time, so that two first uses neither collide nor take the same range.
	e.mu.Lock()
	defer e.mu.Unlock()
	fi, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return e.makeVolume(dir, uid, gid)
	}
	if err != nil {
		return "", 0, fmt.Errorf("opening volume %s: %w", v.ID, err)
	}
	if !e.ids.perVolume {
		return dir, 0, nil
	}
	base, ok := rangeOf(fi)
	if !ok {
		return "", 0, fmt.Errorf("opening volume %s: its directory belongs to a user of this host; it was not made by this engine", v.ID)
	}
	if int(fi.Sys().(*syscall.Stat_t).Uid-base) != uid && isEmpty(dir) {
		if err := os.Lchown(dir, int(base)+uid, int(base)+gid); err != nil {
			return "", 0, fmt.Errorf("giving volume %s to the image's user: %w", v.ID, err)
		}
	}
	return dir, base, nil
}

// isEmpty reports whether a directory is known to be empty.
func isEmpty(dir string) bool {
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	return errors.Is(err, io.EOF)
}

// rangeOf returns the start of the range that a file's owner lies in.
func rangeOf(fi fs.FileInfo) (uint32, bool) {
	uid := fi.Sys().(*syscall.Stat_t).Uid
	if uid < rangeFirst || uid >= rangeFirst+rangeCount*rangeSize {
		return 0, false
	}
	return uid / rangeSize * rangeSize, true
}

func (e *Engine) makeVolume(dir string, uid, gid int) (string, uint32, error) {
	var base uint32
	if e.ids.perVolume {
		n, err := e.nextRange()
		if err != nil {
			return "", 0, fmt.Errorf("taking a range of uids: %w", err)
		}
		base = rangeFirst + n*rangeSize
	}
	// Made aside and renamed: a volume never stands there with the wrong owner.
	fresh, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return "", 0, fmt.Errorf("making a volume: %w", err)
	}
	defer os.RemoveAll(fresh)
	if err := errors.Join(os.Chmod(fresh, 0o755), os.Lchown(fresh, int(base)+uid, int(base)+gid), os.Rename(fresh, dir)); err != nil {
		return "", 0, fmt.Errorf("making a volume: %w", err)
	}
	return dir, base, nil
}

// nextRange takes the next number of a range. Numbers are used again only after all have been used: then the oldest
// volumes' ranges repeat, which costs their isolation from each other on the host's disk, not that from the host.
func (e *Engine) nextRange() (uint32, error) {
	path := filepath.Join(e.cfg.Dir, "next-range")
	var n uint64
	data, err := os.ReadFile(path)
	if err == nil {
		n, err = strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
	}
	if errors.Is(err, fs.ErrNotExist) {
		// Two servers on one host begin at different places, so that their sandboxes have different users too.
		sum := sha256.Sum256([]byte(e.cfg.Dir))
		n, err = uint64(binary.BigEndian.Uint32(sum[:])), nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", path, err)
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, fmt.Appendln(nil, (n+1)%rangeCount), 0o600); err != nil {
		return 0, err
	}
	return uint32(n % rangeCount), os.Rename(fresh, path)
}

// free reports the bytes that are free for us on the file system of path.
func free(path string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("asking for the free space of %s: %w", path, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}
