package fake_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/enginetest"
	"github.com/sandlot-dev/sandlot/internal/engine/fake"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newWorld(t *testing.T) *fake.World {
	t.Helper()
	w := fake.NewWorld(t.TempDir())
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func newSpec(*testing.T) sandbox.Spec {
	return sandbox.Spec{
		Image: sandbox.Image{Source: sandbox.HostImage}, Workdir: "/workspace", DiskMiB: 1024, Timeout: time.Hour, Network: sandbox.Network{Mode: sandbox.NetworkNone},
		Volume: sandbox.Volume{ID: sandbox.NewID(sandbox.PrefixVolume), Name: "data"},
	}
}

func TestContract(t *testing.T) {
	w := newWorld(t)
	enginetest.Run(t, enginetest.Harness{
		Open:    func(*testing.T) engine.Engine { return fake.Open(w, fake.Config{}) },
		Spec:    newSpec,
		Kill:    func(_ *testing.T, ref engine.Ref) { w.Kill(ref) },
		Gateway: w.Gateway,
	})
}

func TestHooksFailAndLoseReplies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	boom := errors.New("boom")
	var at fake.Op // where to fail
	e := fake.Open(w, fake.Config{Hook: func(_ context.Context, op fake.Op, _ engine.Ref) error {
		if op == at {
			return boom
		}
		return nil
	}})
	ref, spec := engine.Ref{ID: "sbx_1", Run: "1"}, newSpec(t)
	for _, c := range []struct {
		op    fake.Op
		phase engine.Phase
	}{{fake.Create, engine.PhaseGone}, {fake.Made, engine.PhaseStarting}, {fake.Created, engine.PhaseRunning}} {
		at = c.op
		if _, err := e.Create(t.Context(), ref, spec); !errors.Is(err, boom) {
			t.Errorf("%s: %v", c.op, err)
		}
		if st, err := e.Inspect(t.Context(), ref); err != nil || st.Phase != c.phase {
			t.Errorf("after %s it is %s, %v", c.op, st.Phase, err)
		}
		if _, err := e.Dial(t.Context(), ref); c.op == fake.Made && !errors.Is(err, sandbox.ErrUnavailable) {
			t.Errorf("dial while it is half made: %v", err)
		}
		if got := w.Gateway(ref); (got == "") != (c.op != fake.Created) {
			t.Errorf("after %s the gateway is at %q", c.op, got)
		}
	}
	at = ""
	if _, err := e.Create(t.Context(), ref, spec); err != nil { // goes on with what is there
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, err := e.Dial(t.Context(), ref); !errors.Is(err, sandbox.ErrUnavailable) {
		t.Errorf("dial after close: %v", err)
	}
	w.Kill(ref)
	w.Kill(engine.Ref{ID: "sbx_2"}) // nobody
	if _, err := fake.Open(w, fake.Config{}).Create(t.Context(), ref, spec); !errors.Is(err, sandbox.ErrGone) {
		t.Errorf("create of what was killed: %v", err)
	}
}

func TestVolumesStayInside(t *testing.T) {
	t.Parallel()
	e := fake.Open(newWorld(t), fake.Config{})
	for _, id := range []string{"../x", "/etc", ""} {
		v := sandbox.Volume{ID: id}
		if _, err := e.VolumeDir(t.Context(), v); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%q: %v", id, err)
		}
		if err := e.DeleteVolume(t.Context(), v); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%q: %v", id, err)
		}
		spec := newSpec(t)
		spec.Volume = v
		if _, err := e.Create(t.Context(), engine.Ref{ID: "sbx_1", Run: "1"}, spec); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
}
