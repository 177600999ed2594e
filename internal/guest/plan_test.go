package guest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFileErrors(t *testing.T) {
	t.Parallel()
	for err, want := range map[syscall.Errno]string{
		syscall.ENOENT: "404 no_such_file", syscall.ENOTDIR: "400 not_a_directory", syscall.EISDIR: "400 is_directory",
		syscall.ELOOP: "400 bad_path", syscall.ENAMETOOLONG: "400 bad_path", syscall.EINVAL: "400 bad_path",
		syscall.EACCES: "400 permission_denied", syscall.EPERM: "400 permission_denied", syscall.EROFS: "400 read_only",
		syscall.ENOTEMPTY: "409 not_empty", syscall.EBUSY: "409 busy", syscall.ETXTBSY: "409 busy",
		syscall.ENOSPC: "507 disk_full", syscall.EDQUOT: "507 disk_full", syscall.EFBIG: "507 disk_full", syscall.EIO: "500 io_error",
	} {
		e := fileError(&os.PathError{Op: "open", Path: "/x", Err: err}, "/x")
		if got := fmt.Sprint(e.Status, " ", e.Code); got != want || e.Field != "path" || e.Detail == "" {
			t.Errorf("%v: %+v, want %s", err, e, want)
		}
	}
}

func TestRefusalsOfTheKernel(t *testing.T) {
	t.Parallel()
	p := plan{path: "/bin/x", dir: "/", uid: 7}
	for err, want := range map[syscall.Errno]string{
		syscall.ENOENT: "400 no_such_program argv", syscall.ENOEXEC: "400 not_executable argv", syscall.EACCES: "400 not_executable argv",
		syscall.E2BIG: "400 bad_argv argv", syscall.ENAMETOOLONG: "400 bad_argv argv", syscall.EPERM: "400 bad_user user",
		syscall.EINVAL: "400 bad_user user", syscall.EAGAIN: "500 start_failed ",
	} {
		if e := p.refusal(err); fmt.Sprint(e.Status, " ", e.Code, " ", e.Field) != want {
			t.Errorf("%v: %+v, want %s", err, e, want)
		}
	}
}

func TestMayExecute(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	me, group := os.Getuid(), os.Getgid()
	if me == 0 { // who owns it is to be somebody ordinary
		me, group = 12345, 12346
		if err := os.Chown(path, me, group); err != nil {
			t.Fatal(err)
		}
	}
	const other = 54321
	for _, tc := range []struct {
		mode     os.FileMode
		uid, gid int
		want     bool
	}{
		{0o644, me, group, false}, {0o644, 0, 0, false}, {0o100, 0, 0, true}, {0o001, 0, 0, true},
		{0o100, me, other, true}, {0o677, me, group, false}, {0o010, other, group, true}, {0o701, other, group, false},
		{0o001, other, other, true}, {0o770, other, other, false},
	} {
		if err := os.Chmod(path, tc.mode); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := mayExecute(fi, tc.uid, tc.gid); got != tc.want {
			t.Errorf("%o by %d:%d: %v", tc.mode, tc.uid, tc.gid, got)
		}
	}
}

func TestParseArgs(t *testing.T) {
	t.Parallel()
	cfg, err := parseArgs(nil, io.Discard)
	if err != nil || !cfg.Confine || cfg.SocketPath != "/run/sandlot/socket/guest.sock" || cfg.StateDir != StateDir || cfg.Workdir != "/workspace" ||
		cfg.AgentUID != 1000 || cfg.AgentGID != 1000 || cfg.GatewayAddr != Gateway || !cfg.Deadline.IsZero() || cfg.Version == "" {
		t.Errorf("%+v, %v", cfg, err)
	}
	cfg, err = parseArgs(strings.Fields("--socket-dir /s --state-dir /t --workdir /w --agent 7:8 --deadline 2026-01-02T15:04:05Z --gateway= --grace 1s --dir /a --dir /b/c"), io.Discard)
	if err != nil || cfg.SocketPath != "/s/guest.sock" || cfg.StateDir != "/t" || cfg.Workdir != "/w" || cfg.AgentUID != 7 || cfg.AgentGID != 8 ||
		cfg.GatewayAddr != "" || !slices.Equal(cfg.Dirs, []string{"/a", "/b/c"}) || cfg.Grace != time.Second || !cfg.Deadline.Equal(time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)) {
		t.Errorf("%+v, %v", cfg, err)
	}
	for _, bad := range []string{"--agent 7", "--dir relative", "--agent a:b", "--agent -1:0", "--deadline tomorrow", "more", "--nope"} {
		if _, err := parseArgs(strings.Fields(bad), io.Discard); err == nil {
			t.Errorf("%s: accepted", bad)
		}
	}
}

// Of runs that have ended the newest are kept; of those that go on, all.
func TestRegistryForgets(t *testing.T) {
	t.Parallel()
	var g registry
	var ends []context.CancelFunc
	for i := range 10 {
		j := openJournal(t, 1<<20)
		j.append(Stdout, make([]byte, 1000-frameHead))
		r := &run{journal: j}
		r.ctx, r.cancel = context.WithCancel(t.Context())
		ends = append(ends, r.cancel)
		if _, fresh, err := g.start(fmt.Sprint(i), func() (*run, error) { return r, nil }); err != nil || !fresh {
			t.Fatal(fresh, err)
		}
	}
	if old := g.prune(0, 0); len(old) != 0 {
		t.Errorf("%d living runs were forgotten", len(old))
	}
	for _, end := range ends[:9] {
		end()
	}
	if old := g.prune(7, 1<<30); len(old) != 2 || len(g.list()) != 8 {
		t.Errorf("%d forgotten by number, %d left", len(old), len(g.list()))
	}
	if old := g.prune(7, 3500); len(old) != 4 || len(g.list()) != 4 {
		t.Errorf("%d forgotten by size, %d left", len(old), len(g.list()))
	}
	for id, there := range map[string]bool{"0": false, "5": false, "6": true, "8": true, "9": true} {
		if _, err := g.get(id); (err == nil) != there {
			t.Errorf("run %s: %v", id, err)
		}
	}
	ends[9]()
}
