package guest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// everyByte is output that a terminal, or a careless copy, would change: each byte, CR and LF in all orders, no newline at the end.
func everyByte(n int) []byte {
	var b []byte
	for i := range 256 {
		b = append(b, byte(i))
	}
	b = append(b, "\r\n\n\r\r\r\n\n\x04\x03\x1a\x1c\x11\x13\x7f\xff\xc3\x28"...)
	noise := make([]byte, max(0, n-len(b)))
	_, _ = rand.Read(noise) // never fails
	return append(b, noise...)
}

func TestOutputIsByteForByte(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	for _, stdio := range []guest.Stdio{guest.StdioPipes, guest.StdioPTYStdout} {
		for _, size := range []int{0, 4095, 4096, 4097, 65536, 10 << 20} {
			t.Run(fmt.Sprint(stdio, size), func(t *testing.T) {
				t.Parallel()
				want := everyByte(size)
				path := filepath.Join(t.TempDir(), "data")
				if err := os.WriteFile(path, want, 0o600); err != nil {
					t.Fatal(err)
				}
				cmd := shell("cat " + path + "; printf e >&2; exit 4")
				cmd.Stdio = stdio
				res := run(t, c, cmd)
				if !bytes.Equal(res.stdout.Bytes(), want) {
					t.Errorf("%d bytes of stdout, want %d, or they differ", res.stdout.Len(), len(want))
				}
				if res.stderr.String() != "e" {
					t.Errorf("stderr %q", res.stderr.String())
				}
				wantExit(t, res.end, 4)
			})
		}
	}
}

func TestPTYStdoutIsATerminalOnlyThere(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	cmd := shell(`for i in 0 1 2; do test -t $i; printf "$?"; done; stty size <&1; (: </dev/tty) 2>/dev/null; echo "tty $?"; cat`)
	cmd.Stdio, cmd.Size, cmd.Stdin = guest.StdioPTYStdout, guest.Size{Rows: 7, Cols: 99}, []byte("a\r\nb")
	if got := run(t, c, cmd).stdout.String(); !strings.HasPrefix(got, "1017 99\ntty ") || strings.Contains(got, "tty 0\n") || !strings.HasSuffix(got, "\na\r\nb") {
		t.Errorf("%q", got)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	t.Run("is one for all three", func(t *testing.T) {
		t.Parallel()
		cmd := shell(`for i in 0 1 2; do test -t $i; printf "$?"; done; stty size; echo err >&2; (: </dev/tty); echo "tty $?"`)
		cmd.Stdio = guest.StdioPTY
		res := run(t, c, cmd)
		if got := res.stdout.String(); got != "00024 80\r\nerr\r\ntty 0\r\n" || res.stderr.Len() > 0 {
			t.Errorf("%q, stderr %q", got, res.stderr.String())
		}
		wantExit(t, res.end, 0)
	})
	t.Run("is resized", func(t *testing.T) {
		t.Parallel()
		cmd := shell(`trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.02; done`)
		cmd.Stdio, cmd.Open = guest.StdioPTY, true
		start(t, c, cmd)
		waitFor(t, c, cmd.ID, "ready")
		wantRefused(t, c.Resize(t.Context(), cmd.ID, guest.Size{Rows: 0, Cols: 3}), 400, "bad_size", "size")
		if err := c.Resize(t.Context(), cmd.ID, guest.Size{Rows: 33, Cols: 123}); err != nil {
			t.Fatal(err)
		}
		if got := follow(t, c, cmd.ID, 0).stdout.String(); !strings.HasSuffix(got, "33 123\r\n") {
			t.Errorf("%q", got)
		}
		wantRefused(t, c.Resize(t.Context(), cmd.ID, guest.Size{Rows: 1, Cols: 1}), 409, "run_ended", "")
	})
	t.Run("takes input, and its end", func(t *testing.T) {
		t.Parallel()
		cmd := guest.Command{ID: newID(), Argv: []string{"cat"}, Stdio: guest.StdioPTY, Open: true, Stdin: []byte("one\n")}
		start(t, c, cmd)
		if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("two"), true); err != nil {
			t.Fatal(err)
		}
		res := follow(t, c, cmd.ID, 0)
		if got := res.stdout.String(); strings.Count(got, "one\r\n") != 2 || strings.Count(got, "two") != 2 {
			t.Errorf("%q", got)
		}
		wantExit(t, res.end, 0)
	})
	t.Run("may be closed and opened again", func(t *testing.T) {
		t.Parallel()
		cmd := shell(`echo one; exec <&- >&- 2>&-; exec 3>/dev/tty; echo two >&3; exec 3>&-; exec >/dev/tty; echo three; exec >&-; exit 5`)
		cmd.Stdio = guest.StdioPTY
		res := run(t, c, cmd)
		if got := res.stdout.String(); got != "one\r\ntwo\r\nthree\r\n" {
			t.Errorf("%q", got)
		}
		wantExit(t, res.end, 5)
	})
	t.Run("turns ^C into a signal", func(t *testing.T) {
		t.Parallel()
		cmd := shell("trap 'echo int; exit 3' INT; echo ready; while :; do sleep 0.02; done")
		cmd.Stdio, cmd.Open = guest.StdioPTY, true
		start(t, c, cmd)
		waitFor(t, c, cmd.ID, "ready")
		enter(t, c, cmd.ID, "\x03")
		wantExit(t, follow(t, c, cmd.ID, 0).end, 3)
	})
	t.Run("is not what a run with pipes has", func(t *testing.T) {
		t.Parallel()
		cmd := shell("sleep 60")
		start(t, c, cmd)
		wantRefused(t, c.Resize(t.Context(), cmd.ID, guest.Size{Rows: 1, Cols: 1}), 409, "no_terminal", "")
		kill(t, c, cmd.ID)
	})
}

// What a process leaves behind may hold its streams open for ever. The run ends all the same, soon, and the rest lives on.
func TestBackgroundProcessDoesNotHoldTheRun(t *testing.T) {
	t.Parallel()
	for _, stdio := range []guest.Stdio{guest.StdioPipes, guest.StdioPTYStdout} { // a whole terminal hangs up with its session
		t.Run("stdio="+string(stdio), func(t *testing.T) {
			t.Parallel()
			mark := filepath.Join(t.TempDir(), "alive")
			if err := syscall.Mkfifo(mark, 0o600); err != nil {
				t.Fatal(err)
			}
			c := newClient(t, nil)
			cmd := shell(`setsid sh -c 'while [ ! -e ` + mark + `.go ]; do sleep 0.02; done
				i=0; while [ $i -lt 3000 ]; do echo "0123456789012345678901234567890123456789" || exit; i=$((i+1)); done; echo alive >` + mark + `' & echo main`)
			cmd.Stdio = stdio
			res := run(t, c, cmd)
			wantExit(t, res.end, 0)
			if got := strings.TrimSpace(res.stdout.String()); got != "main" {
				t.Errorf("%q", got)
			}
			if err := os.WriteFile(mark+".go", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(mark); err != nil || string(b) != "alive\n" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

func TestChattyBackgroundProcessDoesNotHoldTheRun(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	res := run(t, c, shell("(while :; do echo x; sleep 0.05; done) & sleep 0.1"))
	wantExit(t, res.end, 0)
	_ = syscall.Kill(-res.end.PID, syscall.SIGKILL) // the loop
}

func TestReconnectInTheMiddleOfALine(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := setUp(t, dial(t, s, nil))
	cmd := shell("printf 'first half'; cat")
	cmd.Open = true
	start(t, c, cmd)
	waitFor(t, c, cmd.ID, "half")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	again := dial(t, s, nil)
	if err := again.WriteStdin(t.Context(), cmd.ID, strings.NewReader(", second\n"), true); err != nil {
		t.Fatal(err)
	}
	const all = "first half, second\n"
	for off := range len(all) {
		if got := follow(t, again, cmd.ID, int64(off)).stdout.String(); got != all[off:] {
			t.Errorf("from %d: %q", off, got)
		}
	}
	end := int64(len(all))
	if res := follow(t, again, cmd.ID, end); res.stdout.Len()+res.stderr.Len() > 0 || res.end.State != guest.StateExited {
		t.Errorf("at the end: %+v", res.end)
	}
	for _, off := range []int64{-1, end + 1} {
		for _, err := range again.Output(t.Context(), cmd.ID, off, true) {
			wantRefused(t, err, 400, "bad_offset", "offset")
		}
	}
}

func TestOutputWithoutFollowEndsAtOnce(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	cmd := shell("echo so far; cat")
	cmd.Open = true
	start(t, c, cmd)
	waitFor(t, c, cmd.ID, "so far\n")
	var res result
	for f, err := range c.Output(t.Context(), cmd.ID, 3, false) {
		if err != nil {
			t.Fatal(err)
		}
		res.add(t, f)
	}
	if res.stdout.String() != "far\n" || res.end.ID != "" {
		t.Errorf("%q, %+v", res.stdout.String(), res.end)
	}
	kill(t, c, cmd.ID)
	for f, err := range c.Output(t.Context(), cmd.ID, 0, false) {
		if err != nil {
			t.Fatal(err)
		}
		res.add(t, f)
	}
	if res.end.Signal != "SIGKILL" {
		t.Errorf("%+v", res.end)
	}
}

func TestTrimmedOutputIsAGap(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(cfg *guest.Config) { cfg.JournalLimit = 1 << 20 })
	want := everyByte(4 << 20)
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := guest.Command{ID: newID(), Argv: []string{"cat", path}}
	start(t, c, cmd)
	r, err := c.Wait(t.Context(), cmd.ID)
	if err != nil || r.Next != int64(len(want)) || r.First == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	res := follow(t, c, cmd.ID, 5)
	if res.gaps != r.First-5 || !bytes.Equal(res.stdout.Bytes(), want[r.First:]) {
		t.Errorf("gap %d, %d bytes; want %d, %d", res.gaps, res.stdout.Len(), r.First-5, r.Next-r.First)
	}
}

func TestStalledReaderSlowsNobody(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := setUp(t, dial(t, s, nil))
	stalled := dial(t, s, nil)
	cmd := shell("head -c 8388608 /dev/zero; cat; head -c 8388608 /dev/zero")
	cmd.Open = true
	start(t, c, cmd)
	release, begun, ended := make(chan struct{}), make(chan struct{}), make(chan int64, 1)
	go func() {
		var n int64
		for f, err := range stalled.Output(t.Context(), cmd.ID, 0, true) {
			if err != nil {
				t.Error(err)
				break
			}
			if n == 0 {
				close(begun)
				<-release
			}
			if f.Kind != guest.End {
				n += int64(len(f.Data))
			}
		}
		ended <- n
	}()
	<-begun
	if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("x"), true); err != nil {
		t.Fatal(err)
	}
	if res := follow(t, c, cmd.ID, 0); res.stdout.Len() != 16<<20+1 || res.gaps != 0 {
		t.Errorf("%d bytes, gap %d", res.stdout.Len(), res.gaps)
	}
	close(release)
	if n := <-ended; n != 16<<20+1 {
		t.Errorf("the stalled reader came to %d bytes", n)
	}
}

func TestManyReaders(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	cmd := shell("cat; i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done")
	cmd.Open = true
	start(t, c, cmd)
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if res := follow(t, c, cmd.ID, 0); strings.Count(res.stdout.String(), "\n") != 200 {
				t.Errorf("%d lines", strings.Count(res.stdout.String(), "\n"))
			}
		})
	}
	if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader(""), true); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

func TestLongArgvStillEnds(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	argv := []string{"true"}
	for range 1000 {
		argv = append(argv, strings.Repeat("x", 100))
	}
	cmd := guest.Command{ID: newID(), Argv: argv}
	wantExit(t, run(t, c, cmd).end, 0)
	if r, err := c.Run(t.Context(), cmd.ID); err != nil || len(r.Argv) != len(argv) {
		t.Errorf("%d arguments, %v", len(r.Argv), err)
	}
}

// A disk of the sandbox that is really full.
func TestRunOnAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root may mount")
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("no tmpfs here: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := newClient(t, func(cfg *guest.Config) { cfg.StateDir = dir })
	written := filepath.Join(t.TempDir(), "written")
	if err := syscall.Mkfifo(written, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := shell("head -c 1000000 /dev/zero; echo x >" + written + "; cat; exit 6")
	cmd.Open = true
	start(t, c, cmd)
	if _, err := os.ReadFile(written); err != nil { // by now most of it is lost
		t.Fatal(err)
	}
	_, err := c.WriteFile(t.Context(), dir+"/big", bytes.NewReader(make([]byte, 1<<20)), 0)
	wantRefused(t, err, 507, "disk_full", "path")
	if err := c.WriteStdin(t.Context(), cmd.ID, strings.NewReader("lost too"), true); err != nil {
		t.Fatal(err)
	}
	res := follow(t, c, cmd.ID, 0)
	wantExit(t, res.end, 6)
	if res.gaps == 0 || int64(res.stdout.Len()+res.stderr.Len())+res.gaps != res.end.Next {
		t.Errorf("%d bytes, gap %d, next %d", res.stdout.Len(), res.gaps, res.end.Next)
	}
}

func TestOutputEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	cmd := shell("echo x; sleep 60")
	start(t, c, cmd)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for f, err := range c.Output(ctx, cmd.ID, 0, true) {
		last = err
		if f.Kind == guest.Stdout {
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) {
		t.Error(last)
	}
	if _, err := c.Wait(ctx, cmd.ID); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	kill(t, c, cmd.ID)
}

func TestLostConnectionIsAnError(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := setUp(t, dial(t, s, nil))
	other := dial(t, s, nil)
	cmd := shell("echo x; sleep 60")
	start(t, c, cmd)
	waited := make(chan error, 1)
	go func() {
		_, err := other.Wait(t.Context(), cmd.ID)
		waited <- err
	}()
	var last error
	for f, err := range other.Output(t.Context(), cmd.ID, 0, true) {
		last = err
		if f.Kind == guest.Stdout {
			_ = other.Close()
		}
	}
	if !errors.Is(last, guest.ErrLost) {
		t.Errorf("output: %v", last)
	}
	if err := <-waited; !errors.Is(err, guest.ErrLost) {
		t.Errorf("wait: %v", err)
	}
	<-other.Done()
	if _, err := other.Info(t.Context()); !errors.Is(err, guest.ErrLost) {
		t.Errorf("info: %v", err)
	}
	kill(t, c, cmd.ID)
}

// hostile is a client whose guest answers as it likes.
func hostile(t *testing.T, h http.HandlerFunc) *guest.Client {
	t.Helper()
	here, there := net.Pipe()
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = t.Output()
	session, err := yamux.Server(there, cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(session) }()
	c, err := guest.NewClient(here, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _, _ = c.Close(), session.Close(), srv.Close()
		<-served
	})
	return c
}

func TestClientBelievesNothing(t *testing.T) {
	t.Parallel()
	out := func(off int64, s string) guest.Frame {
		return guest.Frame{Kind: guest.Stdout, Offset: off, Data: []byte(s)}
	}
	end := func(off int64, s string) guest.Frame {
		return guest.Frame{Kind: guest.End, Offset: off, Data: []byte(s)}
	}
	for name, tc := range map[string]struct {
		frames []guest.Frame
		raw    string
		want   error
	}{
		"a hole":              {[]guest.Frame{out(0, "ab"), out(3, "c")}, "", guest.ErrFrame},
		"a repetition":        {[]guest.Frame{out(0, "ab"), out(1, "bc")}, "", guest.ErrFrame},
		"another offset":      {[]guest.Frame{out(7, "ab")}, "", guest.ErrFrame},
		"a gap elsewhere":     {[]guest.Frame{out(0, "ab"), guest.GapFrame(1, 5)}, "", guest.ErrFrame},
		"an end elsewhere":    {[]guest.Frame{out(0, "ab"), end(3, "{}")}, "", guest.ErrFrame},
		"an end without run":  {[]guest.Frame{out(0, "ab"), end(2, "[")}, "", guest.ErrFrame},
		"more after the end":  {[]guest.Frame{end(0, "{}"), out(0, "ab")}, "", guest.ErrFrame},
		"no end":              {[]guest.Frame{out(0, "ab")}, "", guest.ErrLost},
		"nothing":             {nil, "", guest.ErrLost},
		"half a frame":        {[]guest.Frame{out(0, "ab")}, "\x01\x00", guest.ErrLost},
		"an impossible frame": {nil, "HTTP/1.1 200 OK", guest.ErrFrame},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
				var b []byte
				for _, f := range tc.frames {
					b = guest.AppendFrame(b, f)
				}
				_, _ = w.Write(append(b, tc.raw...))
			})
			var last error
			for _, err := range c.Output(t.Context(), "x", 0, true) {
				last = err
			}
			if !errors.Is(last, tc.want) {
				t.Errorf("%v, want %v", last, tc.want)
			}
		})
	}
	for name, h := range map[string]http.HandlerFunc{
		"not JSON":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) },
		"another type": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"id":7}`)) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"a bare no":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
		"an endless no":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(400); endless(w) },
		"an endless yes":  func(w http.ResponseWriter, _ *http.Request) { endless(w) },
		"a run that goes": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"state":"running"}`)) },
		"a cut answer":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := hostile(t, h)
			if r, err := c.Wait(t.Context(), "x"); err == nil {
				t.Errorf("%+v", r)
			}
			if _, _, err := c.ReadFile(t.Context(), "/x"); err == nil {
				t.Error("ReadFile believed it")
			}
		})
	}
}

func endless(w http.ResponseWriter) {
	b := bytes.Repeat([]byte(" "), 1<<20)
	for {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}
