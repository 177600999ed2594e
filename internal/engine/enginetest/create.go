package enginetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// creating are the promises of Create and Capabilities.
var creating = []promise{
	{"CreateIsIdempotentPerRun", createIsIdempotentPerRun},
	{"CreateTwoRunsOfOneIDAreDistinct", createTwoRunsOfOneIDAreDistinct},
	{"CreateCancelledCanBeDestroyed", createCancelledCanBeDestroyed},
	{"CreateBadSpecIsRefused", createBadSpecIsRefused},
	{"CapabilitiesAreFacts", capabilitiesAreFacts},
	{"CancelledContextIsTold", cancelledContextIsTold},
}

// reopening are the promises that need an engine of their own: what outlives Close.
var reopening = append([]promise{{"RefSurvivesReopen", refSurvivesReopen}}, reopeningLimits...)

func createIsIdempotentPerRun(t *testing.T, s suite) {
	ref, spec := s.newRef(t), s.h.Spec(t)
	const callers = 4
	handles := make([]string, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			h, err := s.e.Create(within(t), ref, spec)
			if err != nil {
				t.Errorf("create at the same time: %v", err)
			}
			handles[i] = string(h)
		})
	}
	wg.Wait()
	started := startedAt(t, box{suite: s, ref: ref, spec: spec})
	h, err := s.e.Create(within(t), ref, spec)
	if err != nil {
		t.Fatalf("create again: %v", err)
	}
	for _, other := range handles {
		if other != string(h) {
			t.Errorf("the handles are %q and %q", other, h)
		}
	}
	ref.Handle = h
	if again := startedAt(t, box{suite: s, ref: ref, spec: spec}); !again.Equal(started) {
		t.Errorf("another guest answers: it started at %v, the first at %v", again, started)
	}
}

// startedAt tells guests apart.
func startedAt(t *testing.T, b box) time.Time {
	t.Helper()
	info, err := b.dial(t, nil).Info(within(t))
	if err != nil {
		t.Fatalf("info: %v", err)
	}
	return info.StartedAt
}

func createTwoRunsOfOneIDAreDistinct(t *testing.T, s suite) {
	id := sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox))
	spec := s.h.Spec(t)
	one := s.createAs(t, s.ref(t, id, "1"), spec)
	two := s.createAs(t, s.ref(t, id, "2"), spec)
	one.destroy(t)
	s.wantGone(t, one.ref)
	if got := output(t, two.dial(t, nil), "echo still here"); got != "still here\n" {
		t.Errorf("the other run says %q", got)
	}
}

func createCancelledCanBeDestroyed(t *testing.T, s suite) {
	delays := []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond}
	if s.h.Slow {
		delays = delays[1:5]
	}
	for _, delay := range delays {
		ref := s.newRef(t)
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		_, err := s.e.Create(ctx, ref, s.h.Spec(t))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("create, cancelled after %v: %v", delay, err)
		}
		if err := s.e.Destroy(within(t), ref); err != nil {
			t.Fatalf("destroy after a create cancelled after %v: %v", delay, err)
		}
		s.wantGone(t, ref)
	}
}

func createBadSpecIsRefused(t *testing.T, s suite) {
	caps := s.e.Capabilities()
	bad := map[string]func(*sandbox.Spec){
		"image":   func(spec *sandbox.Spec) { spec.Image = sandbox.Image{Source: "registry.invalid/no/such:image"} },
		"workdir": func(spec *sandbox.Spec) { spec.Workdir = "not/absolute" },
		"network": func(spec *sandbox.Spec) { spec.Network.Mode = "wormhole" },
	}
	if caps.Limits.CPU == "" {
		bad["cpu"] = func(spec *sandbox.Spec) { spec.CPU = 0.5 }
	}
	if caps.Limits.Memory == "" {
		bad["memory"] = func(spec *sandbox.Spec) { spec.MemoryMiB = 256 }
	}
	for what, spoil := range bad {
		ref, spec := s.newRef(t), s.h.Spec(t)
		spoil(&spec)
		_, err := s.e.Create(within(t), ref, spec)
		if !errors.Is(err, sandbox.ErrInvalid) && !errors.Is(err, sandbox.ErrUnsupported) {
			t.Errorf("bad %s: the error is %v", what, err)
		}
		s.wantGone(t, ref) // without a Destroy
	}
}

func capabilitiesAreFacts(t *testing.T, s suite) {
	caps := s.e.Capabilities()
	if caps.Name == "" || caps.Isolation == "" || len(caps.Images) == 0 || len(caps.Networks) == 0 {
		t.Errorf("they say too little: %+v", caps)
	}
	if again := s.e.Capabilities(); fmt.Sprint(again) != fmt.Sprint(caps) {
		t.Errorf("first %+v, then %+v", caps, again)
	}
	uid := output(t, s.create(t, nil).dial(t, nil), "id -u")
	if caps.AgentIsRoot != (uid == "0\n") {
		t.Errorf("AgentIsRoot is %v, but id -u says %q", caps.AgentIsRoot, uid)
	}
}

func cancelledContextIsTold(t *testing.T, s suite) {
	b := s.create(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, create := s.e.Create(ctx, s.newRef(t), s.h.Spec(t))
	_, inspect := s.e.Inspect(ctx, b.ref)
	_, dial := s.e.Dial(ctx, b.ref)
	var list error
	for _, err := range s.e.List(ctx) {
		list = errors.Join(list, err)
	}
	for call, err := range map[string]error{
		"create": create, "inspect": inspect, "dial": dial, "list": list, "destroy": s.e.Destroy(ctx, b.ref),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s says %v", call, err)
		}
	}
	if got := output(t, b.dial(t, nil), "echo alive"); got != "alive\n" {
		t.Errorf("it says %q", got)
	}
}

// What a restarted server needs: with only the recorded Ref it goes on where its predecessor was.
func refSurvivesReopen(t *testing.T, s suite) {
	s.e = s.h.Open(t)
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	t.Cleanup(func() { // by the engine that is open then
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := errors.Join(s.e.Destroy(ctx, ref), s.e.Close()); err != nil {
			t.Errorf("destroy and close: %v", err)
		}
	})
	b := s.createAs(t, ref, s.h.Spec(t))
	c := b.dial(t, nil)
	started, err := c.Start(within(t), named(guest.Command{Argv: []string{"/bin/sh", "-c", "echo before; read line; echo after $line; exit 3"}, Open: true}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.e.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s.e = s.h.Open(t)
	b.suite = s

	if !s.isListed(t, b.ref) || s.phase(t, b.ref) != engine.PhaseRunning {
		t.Fatalf("the reopened engine doesn't know its run")
	}
	handle, err := s.e.Create(within(t), ref, b.spec)
	if err != nil || string(handle) != string(b.ref.Handle) {
		t.Errorf("create again gives handle %q, %v; it was %q", handle, err, b.ref.Handle)
	}
	b.ref.Handle = nil // lost with the reply
	c = b.dialOnly(t, nil)
	if err := c.WriteStdin(within(t), started.ID, newReader("all\n"), false); err != nil {
		t.Fatal(err)
	}
	if r := follow(t, c, started.ID, 0); !r.exited(3) || string(r.stdout) != "before\nafter all\n" {
		t.Errorf("the run went on like this: %v", r)
	}
	b.destroy(t)
	s.wantGone(t, b.ref)
}
