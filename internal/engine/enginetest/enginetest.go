// Package enginetest is the definition of engine.Engine as tests: one subtest per promise, named as the promise. Every engine
// must pass it; a promise that is not tested here is not a promise.
package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Harness is an engine under test. The sandboxes need sh, bash and the usual small programs in them; for RunOnImage, nc will do for bash.
type Harness struct {
	// Open opens the engine, and opens the same installation again after Close. The suite never holds two at once and closes
	// what it opened.
	Open func(t *testing.T) engine.Engine
	// Spec returns a good spec with a volume of its own, every default filled in.
	Spec func(t *testing.T) sandbox.Spec
	// Kill kills a run from outside, as the host's OOM killer would, and need not wait. Without it that is not tested.
	Kill func(t *testing.T, ref engine.Ref)
	// Gateway returns the address inside a sandbox that leads to the host's gateway. Default: guest.Gateway.
	Gateway func(ref engine.Ref) string
	// Isolated says that sandboxes are walled off from this machine.
	Isolated bool
	// Slow says that starting a sandbox takes long: what needs many does with fewer.
	Slow bool
}

const (
	patience = 60 * time.Second // for one step; only a broken engine takes so long
	marker   = "SANDLOT_ENGINETEST_MARKER"
)

// Run tests every promise. It sets an environment variable, so t must not be parallel; the subtests are.
func Run(t *testing.T, h Harness) {
	runGroups(t, h, append(slices.Clone(reopening), suspendedReopening...), creating, destroying, guesting, keeping, suspending, walls, limits)
}

// RunLimits tests the promises about limits alone, for an engine that has several ways to keep them.
func RunLimits(t *testing.T, h Harness) { runGroups(t, h, reopeningLimits, limits) }

// RunOnImage tests the promises that depend on the root file system, for an engine that has several.
func RunOnImage(t *testing.T, h Harness) { runGroups(t, h, nil, creating, guesting, keeping, walls) }

func runGroups(t *testing.T, h Harness, reopening []promise, groups ...[]promise) {
	if h.Gateway == nil {
		h.Gateway = func(engine.Ref) string { return guest.Gateway }
	}
	t.Setenv(marker, "of the host") // must not be seen in a sandbox

	for _, p := range reopening {
		t.Run(p.name, func(t *testing.T) { p.test(t, suite{h: h}) })
	}

	e := h.Open(t)
	t.Cleanup(func() { // after the parallel subtests
		if left := listed(context.WithoutCancel(t.Context()), t, e); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	for _, group := range groups {
		for _, p := range group {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				p.test(t, suite{h: h, e: e})
			})
		}
	}
}

// promise is one subtest.
type promise struct {
	name string
	test func(t *testing.T, s suite)
}

// suite is what a promise is tested with.
type suite struct {
	h Harness
	e engine.Engine
}

// newRef names a run that doesn't exist yet and sees to it that it is gone when the test ends.
func (s suite) newRef(t *testing.T) engine.Ref {
	t.Helper()
	return s.ref(t, sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), "1")
}

func (s suite) ref(t *testing.T, id sandbox.ID, run string) engine.Ref {
	t.Helper()
	ref := engine.Ref{ID: id, Run: run}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := s.e.Destroy(ctx, ref); err != nil {
			t.Errorf("destroy %v at the end: %v", ref, err)
		}
	})
	return ref
}

// box is a running sandbox.
type box struct {
	suite
	ref  engine.Ref
	spec sandbox.Spec
}

// create starts a sandbox with a fresh spec that change, if not nil, has changed.
func (s suite) create(t *testing.T, change func(*sandbox.Spec)) box {
	t.Helper()
	spec := s.h.Spec(t)
	if change != nil {
		change(&spec)
	}
	return s.createAs(t, s.newRef(t), spec)
}

func (s suite) createAs(t *testing.T, ref engine.Ref, spec sandbox.Spec) box {
	t.Helper()
	handle, err := s.e.Create(within(t), ref, spec)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	ref.Handle = handle
	return box{suite: s, ref: ref, spec: spec}
}

func (b box) destroy(t *testing.T) {
	t.Helper()
	if err := b.e.Destroy(within(t), b.ref); err != nil {
		t.Fatalf("destroy: %v", err)
	}
}

// env is what every process of the suite gets.
func env() map[string]string {
	return map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
}

// dial connects to the guest and sets it up.
func (b box) dial(t *testing.T, gateway http.Handler) *guest.Client {
	t.Helper()
	c := b.dialOnly(t, gateway)
	if err := c.Setup(within(t), guest.Setup{Env: env(), Deadline: time.Now().Add(time.Hour)}); err != nil {
		t.Fatalf("set the guest up: %v", err)
	}
	return c
}

func (b box) dialOnly(t *testing.T, gateway http.Handler) *guest.Client {
	t.Helper()
	conn, err := b.e.Dial(within(t), b.ref)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	c, err := guest.NewClient(conn, gateway)
	if err != nil {
		t.Fatalf("speak to the guest: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() }) // the sandbox may be gone by then
	return c
}

// result is what a process did.
type result struct {
	stdout, stderr []byte
	run            guest.Run
}

func (r result) String() string {
	code := "none"
	if r.run.Code != nil {
		code = fmt.Sprint(*r.run.Code)
	}
	return fmt.Sprintf("%s, exit code %s, signal %q\nstdout: %.2000q\nstderr: %.2000q", r.run.State, code, r.run.Signal, r.stdout, r.stderr)
}

// exited reports whether the process exited with code.
func (r result) exited(code int) bool {
	return r.run.State == guest.StateExited && r.run.Code != nil && *r.run.Code == code
}

// sh runs a shell script to its end.
func sh(t *testing.T, c *guest.Client, script string) result {
	t.Helper()
	return run(t, c, guest.Command{Argv: []string{"/bin/sh", "-c", script}})
}

// output runs a shell script that must succeed and returns what it wrote.
func output(t *testing.T, c *guest.Client, script string) string {
	t.Helper()
	r := sh(t, c, script)
	if !r.exited(0) {
		t.Fatalf("%s: %v", script, r)
	}
	return string(r.stdout)
}

// run runs a command to its end.
func run(t *testing.T, c *guest.Client, cmd guest.Command) result {
	t.Helper()
	r, err := c.Start(within(t), named(cmd))
	if err != nil {
		t.Fatalf("start %q: %v", cmd.Argv, err)
	}
	return follow(t, c, r.ID, 0)
}

func named(cmd guest.Command) guest.Command {
	if cmd.ID == "" {
		cmd.ID = sandbox.NewID(sandbox.PrefixRun)
	}
	return cmd
}

// follow reads a run's output from offset to its end, and checks that nothing is missing.
func follow(t *testing.T, c *guest.Client, id string, offset int64) result {
	t.Helper()
	var res result
	var stdout, stderr bytes.Buffer
	ended := false
	for f, err := range c.Output(within(t), id, offset, true) {
		if err != nil {
			t.Fatalf("output of %s at %d: %v", id, offset, err)
		}
		if f.Offset != offset {
			t.Fatalf("a frame begins at %d, the one before it ended at %d", f.Offset, offset)
		}
		switch f.Kind {
		case guest.Stdout:
			stdout.Write(f.Data)
			offset += int64(len(f.Data))
		case guest.Stderr:
			stderr.Write(f.Data)
			offset += int64(len(f.Data))
		case guest.Gap:
			t.Fatalf("output is missing before %d", f.Offset)
		case guest.End:
			ended = true
			if res.run, err = f.Run(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !ended {
		t.Fatalf("the output of %s ended without its end", id)
	}
	res.stdout, res.stderr = stdout.Bytes(), stderr.Bytes()
	return res
}

// within returns a context for one step.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until ok, asking now and then: engines tell nothing by themselves.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("in vain: %s", what)
		}
	}
}

func listed(ctx context.Context, t *testing.T, e engine.Engine) map[engineKey]engine.Listed {
	t.Helper()
	all := make(map[engineKey]engine.Listed)
	for item, err := range e.List(ctx) {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		key := keyOf(item.Ref)
		if _, twice := all[key]; twice {
			t.Errorf("%v is listed twice", key)
		}
		all[key] = item
	}
	return all
}

// engineKey is what of a Ref names a run.
type engineKey struct {
	id  sandbox.ID
	run string
}

func keyOf(ref engine.Ref) engineKey { return engineKey{ref.ID, ref.Run} }

// isListed reports whether the engine lists the run.
func (s suite) isListed(t *testing.T, ref engine.Ref) bool {
	t.Helper()
	_, ok := listed(within(t), t, s.e)[keyOf(ref)]
	return ok
}

// phase asks the engine for the run's phase.
func (s suite) phase(t *testing.T, ref engine.Ref) engine.Phase {
	t.Helper()
	st, err := s.e.Inspect(within(t), ref)
	if err != nil {
		t.Fatalf("inspect: %v", err)
	}
	return st.Phase
}

// wantGone checks everything that is true of a run of which nothing is left.
func (s suite) wantGone(t *testing.T, ref engine.Ref) {
	t.Helper()
	if p := s.phase(t, ref); p != engine.PhaseGone {
		t.Errorf("its phase is %s", p)
	}
	if s.isListed(t, ref) {
		t.Errorf("it is still listed")
	}
	s.wantNoDial(t, ref)
}
