package guest_test

import (
	"testing"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func TestStreamsAreSeparate(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	res := run(t, c, shell("echo out; echo err >&2; exit 3"))
	if res.stdout.String() != "out\n" || res.stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", res.stdout.String(), res.stderr.String())
	}
	wantExit(t, res.end, 3)
	if r, err := c.Wait(t.Context(), res.end.ID); err != nil || r.Next != 8 || *r.Code != 3 {
		t.Errorf("Wait: %+v, %v", r, err)
	}
}

func TestStdin(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	cmd := shell("cat; echo end")
	cmd.Stdin = []byte("hello ")
	if got := run(t, c, cmd).stdout.String(); got != "hello end\n" {
		t.Errorf("%q", got)
	}
	_ = guest.StateExited
}
