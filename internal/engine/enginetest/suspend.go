package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// suspending are the promises of engine.Suspender. They don't apply to an engine that isn't one.
var suspending = []promise{
	{"SuspendKeepsProcesses", suspendKeepsProcesses},
	{"SuspendKeepsFiles", suspendKeepsFiles},
	{"SuspendedIsNotRunning", suspendedIsNotRunning},
	{"SuspendTwiceAndAgain", suspendTwiceAndAgain},
	{"SuspendDoesNotCountForTimeouts", suspendDoesNotCountForTimeouts},
	{"SuspendGone", suspendGone},
	{"SuspendCancelledEndsTruthfully", suspendCancelledEndsTruthfully},
	{"DestroyDuringSuspend", destroyDuringSuspend},
	{"DestroyDuringResume", destroyDuringResume},
}

// suspendedReopening need an engine of their own.
var suspendedReopening = []promise{
	{"SuspendSurvivesReopen", suspendSurvivesReopen},
}

// suspender returns the engine's power, or skips.
func (s suite) suspender(t *testing.T) engine.Suspender {
	t.Helper()
	p, ok := engine.As[engine.Suspender](s.e)
	if !ok {
		t.Skip("the engine is no engine.Suspender")
	}
	return p
}

func (b box) suspend(t *testing.T) {
	t.Helper()
	if err := b.suspender(t).Suspend(within(t), b.ref); err != nil {
		t.Fatalf("suspend: %v", err)
	}
	if p := b.phase(t, b.ref); p != engine.PhaseSuspended {
		t.Fatalf("after suspend its phase is %s", p)
	}
}

func (b box) resume(t *testing.T) {
	t.Helper()
	if err := b.suspender(t).Resume(within(t), b.ref, b.spec); err != nil {
		t.Fatalf("resume: %v", err)
	}
	if p := b.phase(t, b.ref); p != engine.PhaseRunning {
		t.Fatalf("after resume its phase is %s", p)
	}
}

// startCounter starts a program that counts in its own memory: for each line of input a number of output. It holds a file open that
// has been deleted, and one that it appends to.
func startCounter(t *testing.T, c *guest.Client) string {
	t.Helper()
	const script = `exec 3>appended 4<>deleted; rm deleted; echo kept >&4; i=0; while read x; do i=$((i+1)); echo $i; echo $i >&3; done; echo end`
	r, err := c.Start(within(t), named(guest.Command{Argv: []string{"bash", "-c", script}, Open: true}))
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

// count makes the counter write the next numbers and waits until they are journalled. It returns the offset after them.
func count(t *testing.T, c *guest.Client, id string, from, to int, offset int64) int64 {
	t.Helper()
	if err := c.WriteStdin(within(t), id, newReader(strings.Repeat("x\n", to-from+1)), false); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintln(&want, i)
	}
	got := ""
	for f, err := range c.Output(within(t), id, offset, true) {
		if err != nil {
			t.Fatal(err)
		}
		got += string(f.Data)
		if len(got) >= want.Len() {
			break
		}
	}
	if got != want.String() {
		t.Fatalf("it counted %q, want %q", got, want.String())
	}
	return offset + int64(len(got))
}

func suspendKeepsProcesses(t *testing.T, s suite) {
	s.suspender(t)
	b := s.create(t, nil)
	say := func(word string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, word) })
	}
	c := b.dial(t, say("before"))
	id := startCounter(t, c)
	before := startedAt(t, b)
	offset := count(t, c, id, 1, 100, 0)
	next := 101
	for range 2 {
		b.suspend(t)
		b.resume(t)
		c = b.dial(t, say("after"))
		offset = count(t, c, id, next, next+99, offset)
		next += 100
	}
	if got := output(t, c, "tail -n 1 appended; wc -l <appended"); strings.TrimSpace(got) != "300\n300" {
		t.Errorf("the file that it appends to ends with %q", got)
	}
	if got := output(t, c, httpGet(s.h.Gateway(b.ref), "/")); !strings.HasSuffix(got, "\r\n\r\nafter") {
		t.Errorf("the gateway says %q", got)
	}
	if !startedAt(t, b).Equal(before) {
		t.Error("it is another guest")
	}
	if err := c.WriteStdin(within(t), id, newReader(""), true); err != nil {
		t.Fatal(err)
	}
	r := follow(t, c, id, 0) // the whole journal: no line lost, none twice
	var want strings.Builder
	for i := 1; i <= 300; i++ {
		fmt.Fprintln(&want, i)
	}
	if string(r.stdout) != want.String()+"end\n" || !r.exited(0) {
		t.Errorf("%v", r)
	}
}

func suspendKeepsFiles(t *testing.T, s suite) {
	s.suspender(t)
	b := s.create(t, nil)
	c := b.dial(t, nil)
	// On the writable layer, in memory and on the volume: one that is big, many that are small.
	const script = `set -e; d=$(mktemp -d /tmp/engine.XXXXXX); m=$(mktemp -d /dev/shm/engine.XXXXXX); echo $d $m
head -c 50000000 /dev/urandom >$d/big; head -c 3000000 /dev/urandom >$m/big; head -c 3000000 /dev/urandom >big
i=0; while [ $i -lt 300 ]; do echo $i >$d/small.$i; ln -s small.$i $d/link.$i; i=$((i+1)); done; chmod 0400 $d/small.7; mkdir $d/empty`
	dirs := strings.Fields(output(t, c, script))
	sum := fmt.Sprintf(`cd /; { find %s -printf '%%P %%m %%u %%s %%l\n' | sort; find %[1]s "$OLDPWD/big" -type f -print0 | sort -z | xargs -0 sha256sum; } | sha256sum`,
		strings.Join(dirs, " "))
	before := output(t, c, sum)
	b.suspend(t)
	b.resume(t)
	c = b.dial(t, nil)
	if after := output(t, c, sum); after != before {
		t.Errorf("the files differ: %s, %s", before, after)
	}
	output(t, c, fmt.Sprintf("set -e; echo more >>%s/small.9; rm -r %[1]s/empty; test $(wc -l <%[1]s/small.9) = 2; rm -r %s", dirs[0], strings.Join(dirs, " ")))
}

func suspendedIsNotRunning(t *testing.T, s suite) {
	p := s.suspender(t)
	b := s.create(t, nil)
	c := b.dial(t, nil)
	b.suspend(t)
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Error("a connection to its guest lives on")
	}
	if _, err := s.e.Dial(within(t), b.ref); !errors.Is(err, sandbox.ErrState) {
		t.Errorf("dial: %v", err)
	}
	if _, err := s.e.Create(within(t), b.ref, b.spec); !errors.Is(err, sandbox.ErrState) {
		t.Errorf("create: %v", err)
	}
	if got := listed(within(t), t, s.e)[keyOf(b.ref)]; got.Phase != engine.PhaseSuspended {
		t.Errorf("it is listed as %+v", got)
	}
	if err := p.Suspend(within(t), b.ref); err != nil {
		t.Errorf("suspend again: %v", err)
	}
	b.destroy(t)
	s.wantGone(t, b.ref)
}

func suspendTwiceAndAgain(t *testing.T, s suite) {
	p := s.suspender(t)
	b := s.create(t, nil)
	if err := p.Resume(within(t), b.ref, b.spec); err != nil {
		t.Errorf("resume of what runs: %v", err)
	}
	errs := make(chan error, 3)
	for range cap(errs) {
		go func() { errs <- p.Suspend(within(t), b.ref) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("suspend at the same time: %v", err)
		}
	}
	for range cap(errs) {
		go func() { errs <- p.Resume(within(t), b.ref, b.spec) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("resume at the same time: %v", err)
		}
	}
	if got := output(t, b.dial(t, nil), "echo alive"); got != "alive\n" {
		t.Errorf("it says %q", got)
	}
}

func suspendDoesNotCountForTimeouts(t *testing.T, s suite) {
	s.suspender(t)
	b := s.create(t, nil)
	c := b.dial(t, nil)
	const limit = 5 * time.Second
	cmd := named(guest.Command{Argv: []string{"sh", "-c", "read x; echo got $x"}, Open: true, Timeout: limit})
	if _, err := c.Start(within(t), cmd); err != nil {
		t.Fatal(err)
	}
	b.suspend(t)
	wait(t, limit+time.Second) // or there would be nothing to see
	b.resume(t)
	c = b.dial(t, nil)
	if err := c.WriteStdin(within(t), cmd.ID, newReader("it\n"), true); err != nil {
		t.Fatal(err)
	}
	if r := follow(t, c, cmd.ID, 0); string(r.stdout) != "got it\n" || !r.exited(0) {
		t.Errorf("%v", r)
	}
}

func suspendGone(t *testing.T, s suite) {
	p := s.suspender(t)
	ref, spec := s.newRef(t), s.h.Spec(t)
	if err := p.Suspend(within(t), ref); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("suspend: %v", err)
	}
	if err := p.Resume(within(t), ref, spec); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("resume: %v", err)
	}
	s.wantGone(t, ref)
}

func suspendCancelledEndsTruthfully(t *testing.T, s suite) {
	p := s.suspender(t)
	b := s.create(t, nil)
	id := startCounter(t, b.dial(t, nil))
	offset := count(t, b.dial(t, nil), id, 1, 10, 0)
	for i, do := range []func() error{
		func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			return p.Suspend(ctx, b.ref)
		},
		func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			return p.Resume(ctx, b.ref, b.spec)
		},
	} {
		err := do()
		t.Logf("step %d: %v", i, err)
		// Asking again joins what is under way, and tells.
		if i == 0 {
			b.suspend(t)
		} else {
			b.resume(t)
		}
	}
	count(t, b.dial(t, nil), id, 11, 20, offset)
}

func destroyDuringSuspend(t *testing.T, s suite) {
	p := s.suspender(t)
	for _, delay := range []time.Duration{0, 5 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond} {
		b := s.create(t, nil)
		done := make(chan error, 1)
		go func() { done <- p.Suspend(within(t), b.ref) }()
		wait(t, delay)
		b.destroy(t)
		<-done // it may have been quicker
		b.destroy(t)
		s.wantGone(t, b.ref)
	}
}

func destroyDuringResume(t *testing.T, s suite) {
	p := s.suspender(t)
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 80 * time.Millisecond, 150 * time.Millisecond} {
		b := s.create(t, nil)
		b.suspend(t)
		done := make(chan error, 1)
		go func() { done <- p.Resume(within(t), b.ref, b.spec) }()
		wait(t, delay)
		b.destroy(t)
		<-done // as above
		b.destroy(t)
		s.wantGone(t, b.ref)
	}
}

func suspendSurvivesReopen(t *testing.T, s suite) {
	s.e = s.h.Open(t)
	if _, ok := engine.As[engine.Suspender](s.e); !ok {
		if err := s.e.Close(); err != nil {
			t.Error(err)
		}
		t.Skip("the engine is no engine.Suspender")
	}
	b := box{suite: s, ref: engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}, spec: s.h.Spec(t)}
	t.Cleanup(func() { // by the engine that is open then
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := errors.Join(b.e.Destroy(ctx, b.ref), b.e.Close()); err != nil {
			t.Errorf("destroy and close: %v", err)
		}
	})
	var err error
	if b.ref.Handle, err = s.e.Create(within(t), b.ref, b.spec); err != nil {
		t.Fatal(err)
	}
	c := b.dial(t, nil)
	id := startCounter(t, c)
	offset := count(t, c, id, 1, 10, 0)
	reopen := func() {
		t.Helper()
		if err := b.e.Close(); err != nil {
			t.Fatal(err)
		}
		b.e = s.h.Open(t)
	}
	for next := 11; next < 31; next += 10 {
		reopen() // so that who suspends it is not who made it
		b.suspend(t)
		reopen()
		if p := b.phase(t, b.ref); p != engine.PhaseSuspended {
			t.Fatalf("after a reopen its phase is %s", p)
		}
		b.resume(t)
		offset = count(t, b.dial(t, nil), id, next, next+9, offset)
	}
	b.suspend(t)
	reopen()
	b.destroy(t)
	b.wantGone(t, b.ref)
}
