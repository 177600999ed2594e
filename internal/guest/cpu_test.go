package guest_test

import (
	"testing"
	"time"
)

// TestCPUTime tells who works from who waits, children included.
func TestCPUTime(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	start := func(script string) string {
		t.Helper()
		r, err := c.Start(t.Context(), shell(script))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Signal(t.Context(), r.ID, "SIGKILL") }) // it may have ended
		return r.ID
	}
	busy, idle := start("(while :; do :; done) & wait"), start("sleep 1000")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		used, err := c.CPUTime(t.Context(), busy)
		if err != nil {
			t.Fatal(err)
		}
		if used >= 200*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a loop has used %v", used)
		}
	}
	if used, err := c.CPUTime(t.Context(), idle); err != nil || used > 100*time.Millisecond {
		t.Errorf("sleeping has used %v, %v", used, err)
	}
	if _, err := c.CPUTime(t.Context(), "run_none"); err == nil {
		t.Error("there is no such run")
	}
}
