package guest_test

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func TestBadLimits(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	for _, l := range []guest.Limits{{Memory: -1}, {PIDs: -1}, {OpenFiles: -1}, {Output: -1}} {
		err := c.Setup(t.Context(), guest.Setup{Limits: l})
		if e := (*guest.Error)(nil); !errors.As(err, &e) || e.Code != "bad_limits" || e.Field != "limits" {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

// Who writes faster than it may is held up by its own full pipe; nothing of what it writes is lost, and what others write comes too.
func TestOutputRate(t *testing.T) {
	t.Parallel()
	const rate, size = 128 << 10, 640 << 10
	c := newClient(t, nil)
	if err := c.Setup(t.Context(), guest.Setup{Limits: guest.Limits{Output: rate}}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	cmd := shell(fmt.Sprintf("head -c %d /dev/zero; echo written >&2", size))
	start(t, c, cmd)
	read := 0
	for f, err := range c.Output(t.Context(), cmd.ID, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		switch f.Kind {
		case guest.Stdout:
			read += len(f.Data)
			// However slow this machine is, there is never more than the burst, what time has given, a piece, and the pipe at the end.
			if most := rate + int(time.Since(began).Seconds()*rate) + rate/4 + 64<<10; read > most {
				t.Fatalf("%d bytes after %v, at most %d were allowed", read, time.Since(began), most)
			}
		case guest.Stderr:
			// The last pipe's worth may wait to be read.
			if left := size - read; left > 96<<10 {
				t.Errorf("all was written though %d bytes of it were not read", left)
			}
		}
	}
	if read != size {
		t.Errorf("%d bytes came of %d", read, size)
	}
	if got := run(t, c, shell("echo short")).stdout.String(); got != "short\n" {
		t.Errorf("%q", got)
	}
}

// A process that has ended is not kept waiting, and neither are those who follow it: what it wrote is in the pipe.
func TestOutputRateAtTheEnd(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	if err := c.Setup(t.Context(), guest.Setup{Limits: guest.Limits{Output: 1 << 10}}); err != nil {
		t.Fatal(err)
	}
	const size = 60 << 10 // a minute's worth
	res := run(t, c, shell(fmt.Sprintf("head -c %d /dev/zero", size)))
	if wantExit(t, res.end, 0); res.stdout.Len() != size {
		t.Errorf("%d bytes came of %d", res.stdout.Len(), size)
	}
}

// What the helper starts has less than the helper itself, and can't get more.
func TestHelperLimits(t *testing.T) {
	t.Parallel()
	forEachSetting(t, func(t *testing.T, name string, h *helper) {
		const sysResource = 1 << 24
		if name == "as PID 1" && ownCaps(t)&sysResource == 0 {
			t.Skip("limits of another user's processes are not ours to set")
		}
		for _, files := range []int{5000, 100, 200} { // it may change
			err := h.client.Setup(t.Context(), guest.Setup{
				Env: map[string]string{"PATH": os.Getenv("PATH")}, Limits: guest.Limits{OpenFiles: int64(files), PIDs: 5000},
			})
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("%d %[1]d 5000 5000\n", files)
			res := run(t, h.client, shell("echo $(ulimit -Sn) $(ulimit -Hn) $(grep processes /proc/self/limits | cut -c 27-60 | tr -d a-z)"))
			if got := res.stdout.String(); got != want {
				t.Errorf("the limits are %q, want %q; %s", got, want, res.stderr.String())
			}
			if res := run(t, h.client, shell(fmt.Sprintf("ulimit -n %d", files+1))); res.end.Code == nil || *res.end.Code == 0 {
				t.Errorf("they can be raised: %+v", res.end)
			}
		}
		// The helper has enough for many at once, though each of them has few.
		if err := h.client.Setup(t.Context(), guest.Setup{Env: map[string]string{"PATH": os.Getenv("PATH")}, Limits: guest.Limits{OpenFiles: 64}}); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for i := range 40 {
			cmd := shell(fmt.Sprintf("echo %d; exec sleep 300", i))
			start(t, h.client, cmd)
			ids = append(ids, cmd.ID)
		}
		for i, id := range ids {
			waitFor(t, h.client, id, fmt.Sprintln(i))
		}
	})
}
