package guest_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func readFile(t *testing.T, c *guest.Client, path string) (string, guest.File) {
	t.Helper()
	r, f, err := c.ReadFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return string(b), f
}

func TestFilesComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"empty": nil, "small": []byte("hello\n"), "bytes": everyByte(0), "big": everyByte(9 << 20),
		"a new/deep er/päth\n/file": []byte("x"),
	} {
		path := filepath.Join(dir, name)
		f, err := c.WriteFile(t.Context(), path, bytes.NewReader(content), 0o751)
		if err != nil {
			t.Fatal(err)
		}
		got, g := readFile(t, c, path)
		if got != string(content) {
			t.Errorf("%q: %d bytes, want %d, or they differ", name, len(got), len(content))
		}
		want := guest.File{Name: filepath.Base(name), Path: path, Type: "file", Size: int64(len(content)), Mode: 0o751, UID: os.Getuid(), GID: os.Getgid()}
		for _, f := range []guest.File{f, g} {
			want.ModTime, want.ETag = f.ModTime, f.ETag
			if f != want || f.ModTime.IsZero() || f.ETag == "" {
				t.Errorf("%+v, want %+v", f, want)
			}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 5 {
		t.Errorf("something was left behind: %v, %v", entries, err)
	}
}

func TestCreateFileReplacesNothing(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	path := filepath.Join(t.TempDir(), "new", "f")
	if f, err := c.CreateFile(t.Context(), path, strings.NewReader("first"), 0o600); err != nil || f.Mode != 0o600 {
		t.Errorf("%+v, %v", f, err)
	}
	_, err := c.CreateFile(t.Context(), path, strings.NewReader("second"), 0o600)
	if e := (*guest.Error)(nil); !errors.As(err, &e) || e.Code != "exists" || e.Status != 409 {
		t.Errorf("where something is: %v", err)
	}
	if got, _ := readFile(t, c, path); got != "first" {
		t.Errorf("%q", got)
	}
}

func TestWriteFileReplacesTheWholeFile(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	path := filepath.Join(t.TempDir(), "f")
	link := path + "-link"
	if err := os.Symlink("f", link); err != nil {
		t.Fatal(err)
	}
	write := func(path, content string, mode fs.FileMode) guest.File {
		f, err := c.WriteFile(t.Context(), path, strings.NewReader(content), mode)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := write(path, "a long first content", 0); f.Mode != 0o644 {
		t.Errorf("mode %o", f.Mode)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close() // only read from
	if f := write(link, "second", 0); f.Mode != 0o600 || f.Path != path {
		t.Errorf("%+v", f)
	}
	if b, _ := io.ReadAll(old); string(b) != "a long first content" {
		t.Errorf("who has it open reads %q", b)
	}
	if got, _ := readFile(t, c, link); got != "second" {
		t.Errorf("%q", got)
	}
	if f, err := c.Stat(t.Context(), link); err != nil || f.Type != "symlink" || f.Target != "f" {
		t.Errorf("%+v, %v", f, err)
	}
	broken := errors.New("broken")
	_, err = c.WriteFile(t.Context(), path, io.MultiReader(strings.NewReader("half"), errReader{broken}), 0)
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { write(path, strings.Repeat("third", 1000), 0) })
		wg.Go(func() {
			if got, _ := readFile(t, c, path); got != "second" && got != strings.Repeat("third", 1000) {
				t.Errorf("somebody saw %q", got)
			}
		})
	}
	wg.Wait()
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 2 {
		t.Errorf("something was left behind: %v, %v", entries, err)
	}
}

func TestReadDirAndRemove(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	if files, err := c.ReadDir(t.Context(), dir); err != nil || files == nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	sub := filepath.Join(dir, "d")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sub, 0o700|fs.ModeSetgid|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "b"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "d/x"} {
		if _, err := c.WriteFile(t.Context(), filepath.Join(dir, name), strings.NewReader("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	files, err := c.ReadDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, f.Name+" "+f.Type+" "+f.Target)
	}
	if want := "a file ,b other ,c symlink nowhere,d directory "; strings.Join(got, ",") != want {
		t.Errorf("%q, want %q", strings.Join(got, ","), want)
	}
	if files[3].Mode != 0o3700 {
		t.Errorf("mode %o", files[3].Mode)
	}
	wantRefused(t, c.Remove(t.Context(), sub), 409, "not_empty", "path")
	for _, name := range []string{"a", "b", "c", "d/x", "d"} {
		if err := c.Remove(t.Context(), filepath.Join(dir, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantRefused(t, c.Remove(t.Context(), sub), 404, "no_such_file", "path")
	if _, err := c.WriteFile(t.Context(), sub+"/a/b/c", strings.NewReader("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveAll(t.Context(), sub); err != nil {
		t.Error(err)
	}
	wantRefused(t, c.RemoveAll(t.Context(), sub), 404, "no_such_file", "path")
	if f, err := c.Stat(t.Context(), "/"); err != nil || f.Type != "directory" || f.Name != "/" {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestFilesRefuse(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	sock, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sock.Close() }) // after the parallel parts
	read := func(path string) error {
		_, _, err := c.ReadFile(t.Context(), path)
		return err
	}
	write := func(path string) error {
		_, err := c.WriteFile(t.Context(), path, strings.NewReader("x"), 0)
		return err
	}
	stat := func(path string) error { _, err := c.Stat(t.Context(), path); return err }
	dirOf := func(path string) error { _, err := c.ReadDir(t.Context(), path); return err }
	remove := func(path string) error { return c.Remove(t.Context(), path) }
	for name, tc := range map[string]struct {
		do     func(string) error
		path   string
		status int
		code   string
	}{
		"read nothing":            {read, dir + "/none", 404, "no_such_file"},
		"read a directory":        {read, dir, 400, "is_directory"},
		"read a FIFO":             {read, fifo, 400, "not_a_file"},
		"read a socket":           {read, dir + "/sock", 400, "not_a_file"},
		"read a device":           {read, "/dev/null", 400, "not_a_file"},
		"read in a loop":          {read, dir + "/loop", 400, "bad_path"},
		"read below a file":       {read, file + "/x", 400, "not_a_directory"},
		"read a relative path":    {read, "etc/passwd", 400, "bad_path"},
		"read no path":            {read, "", 400, "bad_path"},
		"read a NUL":              {read, "/etc\x00", 400, "bad_path"},
		"read a long name":        {read, "/" + strings.Repeat("x", 300), 400, "bad_path"},
		"write a directory":       {write, dir, 400, "is_directory"},
		"write below a file":      {write, file + "/x", 400, "not_a_directory"},
		"write deep below a file": {write, file + "/x/y/z", 400, "not_a_directory"},
		"write a relative path":   {write, "x", 400, "bad_path"},
		"write a long name":       {write, dir + "/" + strings.Repeat("x", 300), 400, "bad_path"},
		"stat nothing":            {stat, dir + "/none", 404, "no_such_file"},
		"list nothing":            {dirOf, dir + "/none", 404, "no_such_file"},
		"list a file":             {dirOf, file, 400, "not_a_directory"},
		"remove nothing":          {remove, dir + "/none", 404, "no_such_file"},
		"remove everything":       {remove, "//x/..", 400, "bad_path"},
		"remove a relative path":  {remove, "x", 400, "bad_path"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantRefused(t, tc.do(tc.path), tc.status, tc.code, "path")
		})
	}
	// One refusal while a long body is on its way.
	_, err = c.WriteFile(t.Context(), dir, bytes.NewReader(make([]byte, 8<<20)), 0)
	wantRefused(t, err, 400, "is_directory", "path")
}

func TestReadFileOfProc(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	if got, f := readFile(t, c, "/proc/self/status"); f.Size != 0 || !strings.Contains(got, "Pid:") {
		t.Errorf("%q, %+v", got, f)
	}
}

// Files made through a guest that is root belong to the agent, directories too; those that exist stay whose they are.
func TestFilesBelongToTheAgent(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	const agent = 12345
	c := newClient(t, func(cfg *guest.Config) { cfg.AgentUID, cfg.AgentGID = agent, agent })
	dir := t.TempDir()
	f, err := c.WriteFile(t.Context(), dir+"/a/b", strings.NewReader("x"), 0)
	if err != nil || f.UID != agent || f.GID != agent {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := c.Stat(t.Context(), dir+"/a"); err != nil || f.UID != agent || f.GID != agent {
		t.Errorf("%+v, %v", f, err)
	}
	if err := os.Chown(dir+"/a/b", 7, 8); err != nil {
		t.Fatal(err)
	}
	f, err = c.WriteFile(t.Context(), dir+"/a/b", strings.NewReader("y"), 0)
	if err != nil || f.UID != 7 || f.GID != 8 {
		t.Errorf("%+v, %v", f, err)
	}
}
