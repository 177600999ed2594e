package guest_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// reach connects to a listening guest as soon as it answers.
func reach(t *testing.T, socket string) *guest.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C { // the socket appears at some moment
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			c, err := guest.NewClient(conn, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			if _, err = c.Info(ctx); err == nil {
				return c
			}
		}
		if ctx.Err() != nil {
			t.Fatal("the guest doesn't come back")
		}
	}
}

func socketOf(h *helper) string { return h.path("socket/" + guest.SocketName) }

// A guest that is suspended holds no socket; the signal brings it back, with what runs in it and its output whole.
func TestHelperSuspends(t *testing.T) {
	t.Parallel()
	h := startHelper(t, nil, "")
	defer h.end(t)
	if err := h.cmd.Process.Signal(syscall.SIGUSR1); err != nil { // nobody waits for it: it means nothing
		t.Fatal(err)
	}
	second := reach(t, socketOf(h))
	cmd := shell("echo before; read go; echo after")
	cmd.Open = true
	r := start(t, second, cmd)
	if err := h.client.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socketOf(h)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is still there: %v", err)
	}
	select {
	case <-second.Done():
	case <-time.After(10 * time.Second):
		t.Error("another host is still connected")
	}
	if err := h.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	h.client = reach(t, socketOf(h))
	if err := h.client.WriteStdin(t.Context(), r.ID, strings.NewReader("go\n"), true); err != nil {
		t.Fatal(err)
	}
	got := follow(t, h.client, r.ID, 0)
	if got.stdout.String() != "before\nafter\n" {
		t.Errorf("output %q", got.stdout.String())
	}
}

// A guest whose host died in the middle of a suspension comes back by itself.
func TestSuspensionEndsByItself(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(cfg *guest.Config) { cfg.QuietLimit = 50 * time.Millisecond })
	dir := t.TempDir()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), ln) }()
	c := reach(t, filepath.Join(dir, "s"))
	if err := c.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if over := s.Suspended(); over != nil {
		<-over
	}
	setUp(t, dial(t, s, nil))
}

// While it is suspended, a guest neither ends at its deadline nor kills what takes too long; both move by that time.
func TestSuspensionDoesNotCount(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(cfg *guest.Config) { cfg.QuietLimit = time.Hour })
	c := setUp(t, dial(t, s, nil))
	const limit, quiet = 300 * time.Millisecond, 700 * time.Millisecond
	deadline := time.Now().Add(limit + time.Minute)
	if err := c.Setup(t.Context(), guest.Setup{Env: map[string]string{"PATH": os.Getenv("PATH")}, Deadline: deadline}); err != nil {
		t.Fatal(err)
	}
	cmd := shell("sleep 600")
	cmd.Timeout = limit
	began := time.Now()
	r := start(t, c, cmd)
	if err := c.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, s, nil).Info(t.Context()); !errors.Is(err, guest.ErrLost) {
		t.Errorf("it answers while it is suspended: %v", err)
	}
	<-time.After(quiet) // the passing of time is what is tested
	s.Resume()
	c = dial(t, s, nil)
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if moved := info.Deadline.Sub(deadline); moved < quiet || moved > quiet+10*time.Second {
		t.Errorf("the deadline moved by %v", moved)
	}
	ended, err := c.Wait(t.Context(), r.ID)
	if err != nil || ended.State != guest.StateTimeout {
		t.Errorf("%+v, %v", ended, err)
	}
	if took := time.Since(began); took < limit+quiet {
		t.Errorf("it was killed after %v", took)
	}
}

// Two suspensions at once are one too many.
func TestSuspendTwice(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := dial(t, s, nil)
	if err := c.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Suspend(t.Context()); !errors.Is(err, guest.ErrLost) {
		t.Errorf("over the connection that is gone: %v", err)
	}
	s.Resume()
	if err := dial(t, s, nil).Suspend(t.Context()); err != nil { // and once more
		t.Fatal(err)
	}
	s.Resume()
	s.Resume()
	setUp(t, dial(t, s, nil))
}
