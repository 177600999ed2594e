package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// inside runs a shell script in a sandbox as the agent and returns what it prints.
func inside(t *testing.T, s *server, sandbox, script string) string {
	t.Helper()
	run, err := s.ExecWait(within(t), sandbox, api.Exec{Argv: []string{"sh", "-ec", script}})
	if err != nil || run.ExitCode == nil || *run.ExitCode != 0 {
		t.Fatalf("%s: %+v, %v", script, run, err)
	}
	return run.Stdout
}

// pattern is n bytes that don't repeat soon.
func pattern(n int) []byte {
	b := make([]byte, 0, n+32)
	for i := 0; len(b) < n; i++ {
		sum := sha256.Sum256([]byte(fmt.Sprint(i / 4096)))
		b = append(b, sum[:]...)
		b = fmt.Append(b, i)
	}
	return b[:n]
}

// TestFilesOfASandbox is the file API on real gVisor, on the volume and on the writable layer: owners, ranges, conditions, archives, names, and
// what it does while a program writes.
func TestFilesOfASandbox(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{DiskMiB: 256})
	ctx, id := within(t), sb.ID
	for _, dir := range []string{"/workspace/files", "/var/tmp/files"} {
		data := pattern(5 << 20)
		f, err := s.PutFile(ctx, id, dir+"/a b/caf\xe9", bytes.NewReader(data), client.WriteOptions{Mode: "0751", IfNoneMatch: "*"})
		if err != nil || f.Mode != "0751" || f.UID != 1000 || f.GID != 1000 {
			t.Fatalf("%s: %+v, %v", dir, f, err)
		}
		if got, want := inside(t, s, id, "cd "+dir+"/a*; stat -c '%u %a' caf*; cat caf* | sha256sum"), fmt.Sprintf("1000 751\n%x  -\n", sha256.Sum256(data)); got != want {
			t.Errorf("%s: a program sees %q, want %q", dir, got, want)
		}
		r, err := s.ReadRange(ctx, id, dir+"/a b/caf\xe9", 1<<20, 64<<10, f.ETag)
		if got := readAll(t, r, err); got != string(data[1<<20:1<<20+64<<10]) {
			t.Errorf("%s: a range of %d bytes, or others", dir, len(got))
		}
		// A program's change makes it another version.
		inside(t, s, id, "cd "+dir+"/a*; printf X | dd of=\"$(echo caf*)\" bs=1 seek=10 conv=notrunc 2>/dev/null")
		if _, err := s.PutFile(ctx, id, dir+"/a b/caf\xe9", strings.NewReader("mine"), client.WriteOptions{IfMatch: f.ETag}); client.Code(err) != "changed" {
			t.Errorf("%s: over a program's change: %v", dir, err)
		}
		if _, err := s.ReadRange(ctx, id, dir+"/a b/caf\xe9", 0, 1, f.ETag); client.Code(err) != "changed" {
			t.Errorf("%s: %v", dir, err)
		}
		// Root's file stays root's, and whom a new one belongs to can be said.
		if f, err := s.PutFile(ctx, id, dir+"/roots", strings.NewReader("1"), client.WriteOptions{Owner: "root", Mode: "0600"}); err != nil || f.UID != 0 {
			t.Errorf("%s: %+v, %v", dir, f, err)
		}
		if f, err := s.WriteFile(ctx, id, dir+"/roots", strings.NewReader("2")); err != nil || f.UID != 0 || f.Mode != "0600" {
			t.Errorf("%s: %+v, %v", dir, f, err)
		}
		inside(t, s, id, "cd "+dir+"; ln -s /etc/hostname link; mkdir -m 2770 d; echo x > d/x; chmod 640 d/x")
		for _, format := range []string{"tar", "tar.gz", "zip"} {
			in, err := s.Download(ctx, id, dir, format)
			if err != nil {
				t.Fatal(err)
			}
			done, err := s.Upload(ctx, id, dir+"-"+format, format, "", in)
			if err := errors.Join(err, in.Close()); err != nil || done.Refused != 0 {
				t.Fatalf("%s %s: %+v, %v", dir, format, done, err)
			}
			const see = "find . -mindepth 1 ! -name roots -printf '%P %m %u %l %s %TY-%Tm-%Td %TH:%TM\\n' | sort; sha256sum a*/*"
			if got, want := inside(t, s, id, "cd "+dir+"-"+format+"; "+see), inside(t, s, id, "cd "+dir+"; "+see); withoutSizes(got) != withoutSizes(want) {
				t.Errorf("%s %s:\n%s\nwant\n%s", dir, format, got, want)
			}
		}
		// From the volume to the writable layer is another file system.
		if f, err := s.Move(ctx, id, dir+"/d", "/opt/moved-"+filepath.Base(filepath.Dir(dir)), false); err != nil || f.Mode != "2770" || f.UID != 1000 {
			t.Errorf("%s: %+v, %v", dir, f, err)
		}
	}
	if err := s.Remove(ctx, id, "/workspace"); client.Code(err) != "busy" {
		t.Errorf("the volume was removed: %v", err)
	}

	// An archive's links lead nothing out, not even as root.
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "etc", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "etc/evil", Mode: 0o4755}, {Name: "../../etc/evil"}, {Name: "/etc/evil"},
		{Name: "shadow", Typeflag: tar.TypeLink, Linkname: "etc/shadow"}, {Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "good", Mode: 0o600},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	done, err := s.Upload(ctx, id, "/workspace/hostile", "tar", "root", &b)
	if err != nil || done.Entries != 2 || done.Refused != 5 {
		t.Errorf("%+v, %v", done, err)
	}
	if got := inside(t, s, id, "ls /etc/evil 2>/dev/null || echo none; ls /workspace/hostile | tr '\\n' ' '"); got != "none\netc good " {
		t.Errorf("after a hostile archive: %q", got)
	}

	// The writable layer is full at some point; then the caller learns that, and nothing is left.
	if _, err := s.WriteFile(ctx, id, "/var/tmp/huge", io.LimitReader(endlessZeros{}, 1<<30)); client.Code(err) != "disk_full" {
		t.Errorf("a file larger than the disk: %v", err)
	}
	if got := inside(t, s, id, "ls -A /var/tmp | grep -v ^files || true"); got != "" {
		t.Errorf("left behind: %q", got)
	}

	// It works while a run writes, and a file that shrinks while it is read is never a short success.
	run := start4Ever(t, s, id, "cd /workspace; i=0; while [ ! -e stop ]; do i=$((i+1)); echo line $i >> log; done")
	for range 20 {
		if _, err := s.WriteFile(ctx, id, "/workspace/beside", bytes.NewReader(pattern(100_000))); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ReadDir(ctx, id, "/workspace"); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.ReadFile(ctx, id, "/workspace/log")
	if got := readAll(t, r, err); !strings.HasPrefix(got, "line 1\n") {
		t.Errorf("the log begins %.20q", got)
	}
	if _, err := s.WriteFile(ctx, id, "/workspace/stop", strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	<-run
	inside(t, s, id, "truncate -s 200M /workspace/large")
	r, err = s.ReadFile(ctx, id, "/workspace/large")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }() // it was only read
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	inside(t, s, id, "truncate -s 1M /workspace/large")
	if n, err := io.Copy(io.Discard, r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that shrank: %d bytes, %v", n, err)
	}
}

// withoutSizes leaves out what differs by file system: the sizes of directories.
func withoutSizes(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) > 3 {
			f[len(f)-3] = ""
		}
		out = append(out, strings.Join(f, " "))
	}
	return strings.Join(out, "\n")
}

type endlessZeros struct{}

func (endlessZeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// start4Ever begins a run and returns what is closed at its end.
func start4Ever(t *testing.T, s *server, sandbox, script string) <-chan struct{} {
	t.Helper()
	begun, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for e, err := range s.Exec(within(t), sandbox, api.Exec{Argv: []string{"sh", "-ec", script}}) {
			if err != nil {
				t.Errorf("%s: %v", script, err)
				return
			}
			if e.Start != nil {
				close(begun)
			}
		}
	}()
	<-begun
	return ended
}

// TestWatchOfASandbox checks that what programs do in a sandbox is told, on the volume and on the writable layer.
func TestWatchOfASandbox(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	for _, dir := range []string{"/workspace/w", "/var/tmp/w"} {
		inside(t, s, sb.ID, "mkdir -p "+dir+"/old/deep; echo 1 > "+dir+"/old/f")
		steps := []struct{ want, next string }{
			{"ready", "echo 1 > new"},
			{"created new", "echo 2 >> old/f"},
			{"modified old/f", "mv old renamed"},
			{"moved renamed from old", "touch renamed/deep/x"},
			{"created renamed/deep/x", "mkdir -p a/b; touch a/b/c"},
			{"created a/b/c", "mv new a/b/c"},
			{"moved a/b/c from new", "rm -r a"},
			{"removed a", "rm -r " + dir},
		}
		i := 0
		var seen []string
		for e, err := range s.Watch(within(t), sb.ID, dir, true) {
			if err != nil {
				t.Fatalf("%s: after %q: %v", dir, seen, err)
			}
			line := e.Name
			if e.File != nil && e.File.Path != dir {
				line += " " + strings.TrimPrefix(e.File.Path, dir+"/")
			}
			if e.From != "" {
				line += " from " + strings.TrimPrefix(e.From, dir+"/")
			}
			seen = append(seen, line)
			if i < len(steps) && line == steps[i].want {
				next := steps[i].next
				i++
				inside(t, s, sb.ID, "cd "+dir+"; "+next)
			}
		}
		if i != len(steps) {
			t.Errorf("%s: the watch ended after step %d: %q", dir, i, seen)
		}
	}
}

// TestLargeUploadTakesNoMemory sends more than the server may hold.
func TestLargeUploadTakesNoMemory(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	peak := func() (kib int64) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				if _, err := fmt.Sscan(rest, &kib); err != nil {
					t.Fatal(err)
				}
			}
		}
		return kib
	}
	const size = 1 << 30
	before := peak()
	f, err := s.WriteFile(within(t), sb.ID, "/workspace/large", io.LimitReader(endlessZeros{}, size))
	if err != nil || f.Size != size {
		t.Fatalf("%+v, %v", f, err)
	}
	r, err := s.ReadFile(within(t), sb.ID, "/workspace/large")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r)
	if err := errors.Join(err, r.Close()); err != nil || n != size {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	if grown := peak() - before; grown > 100<<10 {
		t.Errorf("the server grew by %d KiB", grown)
	}
	// Who leaves in the middle leaves nothing behind.
	half := &brokenBody{left: 10 << 20}
	if _, err := s.WriteFile(within(t), sb.ID, "/workspace/half", half); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("half a file: %v", err)
	}
	for left := "x"; left != ""; {
		left = inside(t, s, sb.ID, "cd /workspace; ls -A | grep -e tmp -e half || true")
	}
}

// brokenBody breaks off.
type brokenBody struct{ left int }

func (b *brokenBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, syscall.EPIPE
	}
	n := min(len(p), b.left)
	b.left -= n
	return n, nil
}
