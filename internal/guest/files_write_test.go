package guest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func TestWritesOfOneVersionOnly(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	path := filepath.Join(t.TempDir(), "f")
	put := func(content string, how guest.Write) (guest.File, error) {
		return c.PutFile(t.Context(), path, strings.NewReader(content), how)
	}
	_, err := put("x", guest.Write{IfMatch: "*"})
	wantRefused(t, err, 412, "changed", "path")
	_, err = put("x", guest.Write{IfMatch: `"1"`})
	wantRefused(t, err, 412, "changed", "path")
	first, err := put("first", guest.Write{IfNoneMatch: "*", Mode: 0o600})
	if err != nil || first.Mode != 0o600 {
		t.Fatal(err)
	}
	_, err = put("x", guest.Write{IfNoneMatch: "*"})
	wantRefused(t, err, 412, "exists", "path")
	second, err := put("second", guest.Write{IfMatch: `"other", ` + first.ETag})
	if err != nil || second.ETag == first.ETag || second.Mode != 0o600 {
		t.Fatalf("%+v, %v", second, err)
	}
	_, err = put("x", guest.Write{IfMatch: first.ETag})
	wantRefused(t, err, 412, "changed", "path")
	if _, err = put("third", guest.Write{IfMatch: "*"}); err != nil {
		t.Error(err)
	}
	_, err = put("x", guest.Write{IfNoneMatch: `"some"`})
	wantRefused(t, err, 400, "bad_condition", "If-None-Match")
	if got, _ := readFile(t, c, path); got != "third" {
		t.Errorf("%q", got)
	}
	wantAlone(t, filepath.Dir(path), "f")
}

// wantAlone checks what a directory holds: nothing was left behind.
func wantAlone(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

// Of many who write the same version, one does; of many who make a file, one does.
func TestOneWriterWins(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	f, err := c.WriteFile(t.Context(), dir+"/f", strings.NewReader("0"), 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, how := range map[string]guest.Write{"f": {IfMatch: f.ETag}, "new": {IfNoneMatch: "*"}} {
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				_, err := c.PutFile(t.Context(), dir+"/"+name, strings.NewReader(fmt.Sprint(i)), how)
				if e := (*guest.Error)(nil); err == nil {
					won.Add(1)
				} else if !errors.As(err, &e) || e.Status != 412 {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%s: %d writers won", name, won.Load())
		}
	}
	wantAlone(t, dir, "f", "new")
}

func TestWriteFileReplacesFilesOnly(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	if err := syscall.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := c.WriteFile(t.Context(), dir+"/fifo", strings.NewReader("x"), 0)
	wantRefused(t, err, 400, "not_a_file", "path")
	_, err = c.PutFile(t.Context(), dir+"/f", strings.NewReader("x"), guest.Write{Owner: "nobody at all"})
	wantRefused(t, err, 400, "no_such_user", "owner")
	wantAlone(t, dir, "fifo")
}

// full is a directory on a file system of a megabyte.
func full(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("no file system to fill: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// When the disk is full the caller learns it at once, however much is still to come, and nothing is left.
func TestWritesToAFullDisk(t *testing.T) {
	t.Parallel()
	dir := full(t)
	c := newClient(t, nil)
	if _, err := c.WriteFile(t.Context(), dir+"/old", strings.NewReader("old"), 0); err != nil {
		t.Fatal(err)
	}
	sent := &bottomless{}
	_, err := c.WriteFile(t.Context(), dir+"/old", sent, 0)
	wantRefused(t, err, 507, "disk_full", "path")
	_, err = c.WriteTree(t.Context(), dir, guest.FormatZip, "", sent)
	wantRefused(t, err, 507, "disk_full", "path")
	big := t.TempDir() + "/big"
	if _, err := c.WriteFile(t.Context(), big, bytes.NewReader(everyByte(2<<20)), 0); err != nil {
		t.Fatal(err)
	}
	_, err = c.Copy(t.Context(), big, dir+"/big", false)
	wantRefused(t, err, 507, "disk_full", "path")
	if got, _ := readFile(t, c, dir+"/old"); got != "old" {
		t.Errorf("%q", got)
	}
	wantAlone(t, dir, "old")
}

// bottomless is a body without an end.
type bottomless struct{ n atomic.Int64 }

func (e *bottomless) Read(b []byte) (int, error) {
	e.n.Add(int64(len(b)))
	return len(b), nil
}

func TestOperations(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	ctx := t.Context()
	d, err := c.MakeDir(ctx, dir+"/a/b", 0o750, "")
	if err != nil || d.Type != "directory" || d.Mode != 0o750 || d.Name != "b" || d.Path != dir+"/a/b" {
		t.Errorf("%+v, %v", d, err)
	}
	_, err = c.MakeDir(ctx, dir+"/a/b", 0, "")
	wantRefused(t, err, 409, "exists", "path")
	if _, err := c.WriteFile(ctx, dir+"/a/b/f", strings.NewReader("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", dir+"/a/b/l"); err != nil {
		t.Fatal(err)
	}
	if f, err := c.Chmod(ctx, dir+"/a/b/f", 0o755|fs.ModeSetuid); err != nil || f.Mode != 0o4755 {
		t.Errorf("%+v, %v", f, err)
	}
	// A copy is as the original, and apart from it.
	if f, err := c.Copy(ctx, dir+"/a", dir+"/copy/of a", false); err != nil || f.Type != "directory" {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := c.WriteFile(ctx, dir+"/a/b/f", strings.NewReader("changed"), 0); err != nil {
		t.Fatal(err)
	}
	if got, f := readFile(t, c, dir+"/copy/of a/b/l"); got != "content" || f.Mode != 0o4755 {
		t.Errorf("%q, %+v", got, f)
	}
	if l, err := c.Stat(ctx, dir+"/copy/of a/b/l"); err != nil || l.Target != "f" {
		t.Errorf("%+v, %v", l, err)
	}
	_, err = c.Copy(ctx, dir+"/a", dir+"/copy", false)
	wantRefused(t, err, 409, "exists", "to")
	_, err = c.Move(ctx, dir+"/a/b/f", dir+"/copy/of a/b/f", false)
	wantRefused(t, err, 409, "exists", "to")
	if f, err := c.Move(ctx, dir+"/a/b/f", dir+"/copy/of a/b/f", true); err != nil || f.Name != "f" {
		t.Errorf("%+v, %v", f, err)
	}
	if got, _ := readFile(t, c, dir+"/copy/of a/b/f"); got != "changed" {
		t.Errorf("%q", got)
	}
	if _, err := c.Move(ctx, dir+"/copy/of a", dir+"/deep/down/moved", false); err != nil {
		t.Error(err)
	}
	if err := syscall.Mkfifo(dir+"/a/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = c.Copy(ctx, dir+"/a", dir+"/with a pipe", false)
	wantRefused(t, err, 400, "not_a_file", "path")
	wantAlone(t, dir, "a", "copy", "deep")
	for name, tc := range map[string]struct {
		err    error
		status int
		code   string
		field  string
	}{
		"move nothing":     {second(c.Move(ctx, dir+"/none", dir+"/x", false)), 404, "no_such_file", "path"},
		"move into itself": {second(c.Move(ctx, dir+"/a", dir+"/a/b/c", false)), 400, "bad_path", "to"},
		"copy into itself": {second(c.Copy(ctx, dir+"/a", dir+"/a/c", false)), 400, "bad_path", "to"},
		"move the root":    {second(c.Move(ctx, "/", dir+"/root", false)), 400, "bad_path", "to"},
		"move to nowhere":  {second(c.Move(ctx, dir+"/a", "x", false)), 400, "bad_path", "to"},
		"move over a tree": {second(c.Move(ctx, dir+"/a", dir+"/deep", true)), 409, "exists", "to"},
		"move a mount":     {second(c.Move(ctx, "/proc", dir+"/proc", false)), 409, "busy", "path"},
		"remove a mount":   {c.RemoveAll(ctx, "/proc"), 409, "busy", "path"},
		"chmod nothing":    {second(c.Chmod(ctx, dir+"/none", 0o600)), 404, "no_such_file", "path"},
		"a strange owner":  {second(c.MakeDir(ctx, dir+"/new", 0, "no such user")), 400, "no_such_user", "owner"},
	} {
		t.Run(name, func(t *testing.T) { wantRefused(t, tc.err, tc.status, tc.code, tc.field) })
	}
}

func second[T any](_ T, err error) error { return err }

// A move to another file system is a copy, whole, and then a removal.
func TestMoveToAnotherFileSystem(t *testing.T) {
	t.Parallel()
	other, dir := full(t), t.TempDir()
	c := newClient(t, nil)
	for name, content := range map[string][]byte{"small/f": []byte("x"), "large/f": everyByte(2 << 20)} {
		if _, err := c.WriteFile(t.Context(), dir+"/"+name, bytes.NewReader(content), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := c.Move(t.Context(), dir+"/small", other+"/small", false); err != nil || f.Type != "directory" {
		t.Errorf("%+v, %v", f, err)
	}
	if got, f := readFile(t, c, other+"/small/f"); got != "x" || f.Mode != 0o711 {
		t.Errorf("%q, %+v", got, f)
	}
	_, err := c.Move(t.Context(), dir+"/large", other+"/large", false)
	wantRefused(t, err, 507, "disk_full", "path")
	wantAlone(t, other, "small")
	wantAlone(t, dir, "large")
}

// Files are written and read while a run appends to one and lists them.
func TestFilesWhileARunWrites(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	cmd := shell("i=0; while [ ! -e stop ]; do i=$((i+1)); echo line $i >> log; cp log copy; done; wc -l < log")
	cmd.Dir = dir
	r := start(t, c, cmd)
	for range 50 {
		if _, err := c.WriteFile(t.Context(), dir+"/f", bytes.NewReader(everyByte(100_000)), 0); err != nil {
			t.Fatal(err)
		}
		got, _, err := c.ReadFile(t.Context(), dir+"/log")
		if e := (*guest.Error)(nil); errors.As(err, &e) && e.Status == 404 {
			continue // it has not begun
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(got)
		_ = got.Close()
		if err != nil || len(b) > 0 && !bytes.HasPrefix(b, []byte("line 1\n")) {
			t.Fatalf("%.40q, %v", b, err)
		}
		if _, err := c.ReadDir(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.WriteFile(t.Context(), dir+"/stop", strings.NewReader(""), 0); err != nil {
		t.Fatal(err)
	}
	wantExit(t, follow(t, c, r.ID, 0).end, 0)
}
