package enginetest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// destroying are the promises of Destroy, Inspect, List and Dial.
var destroying = []promise{
	{"DestroyTwice", destroyTwice},
	{"DestroyUnknown", destroyUnknown},
	{"DestroyWithoutHandle", destroyWithoutHandle},
	{"DestroyDuringCreate", destroyDuringCreate},
	{"DestroyClosesConnections", destroyClosesConnections},
	{"DestroyKillsWhatRuns", destroyKillsWhatRuns},
	{"InspectGone", inspectGone},
	{"InspectRunning", inspectRunning},
	{"ListNamesWhatItRuns", listNamesWhatItRuns},
	{"DialGone", dialGone},
	{"DialTwice", dialTwice},
	{"GuestDeathIsGone", guestDeathIsGone},
	{"DeadlineKills", deadlineKills},
}

func newReader(s string) *strings.Reader { return strings.NewReader(s) }

func destroyTwice(t *testing.T, s suite) {
	b := s.create(t, nil)
	b.destroy(t)
	s.wantGone(t, b.ref)
	b.destroy(t)

	// At the same time as well.
	b = s.create(t, nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.e.Destroy(within(t), b.ref); err != nil {
				t.Errorf("destroy at the same time: %v", err)
			}
		})
	}
	wg.Wait()
	s.wantGone(t, b.ref)
}

func destroyUnknown(t *testing.T, s suite) {
	for _, handle := range [][]byte{nil, []byte("of another world")} {
		ref := s.newRef(t)
		ref.Handle = handle
		if err := s.e.Destroy(within(t), ref); err != nil {
			t.Errorf("with handle %q: %v", handle, err)
		}
	}
}

func destroyWithoutHandle(t *testing.T, s suite) {
	b := s.create(t, nil)
	b.ref.Handle = nil
	b.destroy(t)
	s.wantGone(t, b.ref)
}

func destroyDuringCreate(t *testing.T, s suite) {
	delays := []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond}
	for _, delay := range delays {
		ref, spec := s.newRef(t), s.h.Spec(t)
		created := make(chan error, 1)
		go func() {
			_, err := s.e.Create(within(t), ref, spec)
			created <- err
		}()
		wait(t, delay)
		if err := s.e.Destroy(within(t), ref); err != nil {
			t.Errorf("destroy %v after create began: %v", delay, err)
		}
		// The create may have come first, or may begin only now; either way a destroy after it leaves nothing.
		if err := <-created; err == nil {
			if err := s.e.Destroy(within(t), ref); err != nil {
				t.Errorf("destroy: %v", err)
			}
		}
		s.wantGone(t, ref)
	}
}

// wait lets d pass, which says something only where the passing of time is the point.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

func destroyClosesConnections(t *testing.T, s suite) {
	b := s.create(t, nil)
	c := b.dial(t, nil)
	r, err := c.Start(within(t), named(guest.Command{Argv: []string{"sleep", "600"}}))
	if err != nil {
		t.Fatal(err)
	}
	followed := make(chan error, 1)
	go func() {
		var last error
		for _, err := range c.Output(within(t), r.ID, 0, true) {
			last = err
		}
		followed <- last
	}()
	b.destroy(t)
	select {
	case <-c.Done():
	case <-within(t).Done():
		t.Error("the connection is still open")
	}
	select {
	case <-followed: // with the end of the run, or with an error: both are true
	case <-within(t).Done():
		t.Error("who follows the output waits for ever")
	}
}

// A process that ignores SIGTERM doesn't outlive its sandbox, nor, where there are walls, a daemon of its own session: it
// would go on writing to the volume.
func destroyKillsWhatRuns(t *testing.T, s suite) {
	spec := s.h.Spec(t)
	b := s.createAs(t, s.newRef(t), spec)
	script := `trap '' TERM HUP INT; touch started; while :; do echo x >> ticks; sleep 0.02; done`
	c := b.dial(t, nil)
	argv := []string{"sh", "-c", script}
	if s.h.Isolated {
		argv = append([]string{"setsid"}, argv...)
	}
	if _, err := c.Start(within(t), named(guest.Command{Argv: argv})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process starts", func() bool { return sh(t, c, "test -s ticks").exited(0) })
	b.destroy(t)

	after := s.createAs(t, s.newRef(t), spec).dial(t, nil)
	before := output(t, after, "wc -c < ticks")
	if now := output(t, after, "sleep 0.3; wc -c < ticks"); now != before {
		t.Errorf("the file grew from %s to %s bytes after the sandbox was destroyed", before, now)
	}
}

func inspectGone(t *testing.T, s suite) {
	if p := s.phase(t, s.newRef(t)); p != engine.PhaseGone {
		t.Errorf("what was never made is %s", p)
	}
}

func inspectRunning(t *testing.T, s suite) {
	b := s.create(t, nil)
	if p := s.phase(t, b.ref); p != engine.PhaseRunning {
		t.Errorf("what Create returned is %s", p)
	}
	b.ref.Handle = nil
	if p := s.phase(t, b.ref); p != engine.PhaseRunning {
		t.Errorf("without its handle it is %s", p)
	}
}

func listNamesWhatItRuns(t *testing.T, s suite) {
	began := time.Now().Add(-2 * time.Second) // clocks of files are coarse
	one, two := s.create(t, nil), s.create(t, nil)
	all := listed(within(t), t, s.e)
	for _, b := range []box{one, two} {
		item, ok := all[keyOf(b.ref)]
		if !ok {
			t.Errorf("%v is not listed", b.ref)
			continue
		}
		if item.Phase != engine.PhaseRunning || item.Problem != "" {
			t.Errorf("it is listed as %+v", item)
		}
		if !item.Since.IsZero() && (item.Since.Before(began) || item.Since.After(time.Now().Add(2*time.Second))) {
			t.Errorf("it was made at %v, says the list", item.Since)
		}
	}
	one.destroy(t)
	if s.isListed(t, one.ref) {
		t.Error("what was destroyed is listed")
	}
	if !s.isListed(t, two.ref) {
		t.Error("the other one is not listed any more")
	}
	// What List gave is enough to destroy it.
	if err := s.e.Destroy(within(t), all[keyOf(two.ref)].Ref); err != nil {
		t.Errorf("destroy what was listed: %v", err)
	}
	if s.isListed(t, two.ref) {
		t.Error("it is still listed")
	}
	for range s.e.List(within(t)) {
		break // who reads only the beginning is well served
	}
}

// wantNoDial checks that Dial says that the run is gone.
func (s suite) wantNoDial(t *testing.T, ref engine.Ref) {
	t.Helper()
	conn, err := s.e.Dial(within(t), ref)
	if err == nil {
		_ = conn.Close()
		t.Error("it can be dialed")
	} else if !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("dial says %v", err)
	}
}

func dialGone(t *testing.T, s suite) {
	s.wantNoDial(t, s.newRef(t))
	b := s.create(t, nil)
	b.destroy(t)
	s.wantNoDial(t, b.ref)
}

func dialTwice(t *testing.T, s suite) {
	b := s.create(t, nil)
	one, two := b.dial(t, nil), b.dialOnly(t, nil)
	r, err := one.Start(within(t), named(guest.Command{Argv: []string{"echo", "hello"}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if got := follow(t, two, r.ID, 0); string(got.stdout) != "hello\n" {
		t.Errorf("over the other connection: %v", got)
	}
	b.ref.Handle = nil
	if got := output(t, b.dialOnly(t, nil), "echo no handle"); got != "no handle\n" {
		t.Errorf("without its handle: %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := s.e.Dial(ctx, b.ref)
	if err != nil {
		t.Fatal(err)
	}
	cancel() // bounds the opening only
	three, err := guest.NewClient(conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := three.Info(within(t)); err != nil {
		t.Errorf("after the context of its dial ended: %v", err)
	}
	if err := three.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func guestDeathIsGone(t *testing.T, s suite) {
	if s.h.Kill == nil {
		t.Skip("the harness can't kill a run from outside")
	}
	b := s.create(t, nil)
	c := b.dial(t, nil)
	s.h.Kill(t, b.ref)
	select {
	case <-c.Done():
	case <-within(t).Done():
		t.Fatal("the connection is still open")
	}
	eventually(t, "the phase becomes gone", func() bool { return s.phase(t, b.ref) == engine.PhaseGone })
	s.wantNoDial(t, b.ref)
	b.destroy(t)
	s.wantGone(t, b.ref)
}

// A sandbox ends at its deadline though nobody is there to end it.
func deadlineKills(t *testing.T, s suite) {
	b := s.create(t, nil)
	c := b.dialOnly(t, nil)
	if err := c.Setup(within(t), guest.Setup{Env: env(), Deadline: time.Now().Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(within(t), named(guest.Command{Argv: []string{"sleep", "600"}})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the phase becomes gone", func() bool { return s.phase(t, b.ref) == engine.PhaseGone })
	b.destroy(t)
	s.wantGone(t, b.ref)
}
