package guest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// Who asks for it gets the end and the output with the answer to the start, if they are there in time and not long.
func TestStartWithin(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	for name, tt := range map[string]struct {
		script string
		within time.Duration
		state  guest.State
		output string // of both streams; "-" = it doesn't come along
	}{
		"short":        {"echo out; echo err >&2; exit 3", time.Minute, guest.StateExited, "out\nerr\n"},
		"silent":       {"exit 3", time.Minute, guest.StateExited, ""},
		"too long":     {"head -c 100000 /dev/zero; exit 3", time.Minute, guest.StateExited, "-"},
		"goes on":      {"read x; exit 3", time.Millisecond, guest.StateRunning, "-"},
		"not asked of": {"read x; exit 3", 0, guest.StateRunning, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := shell(tt.script)
			cmd.Within, cmd.Open = tt.within, tt.state == guest.StateRunning
			r, err := c.Start(t.Context(), cmd)
			if err != nil {
				t.Fatal(err)
			}
			frames, err := r.Frames()
			if err != nil || r.State != tt.state || (frames == nil) != (tt.output == "-") {
				t.Fatalf("%+v, %d frames, %v", r, len(frames), err)
			}
			if cmd.Open {
				if err := c.Signal(t.Context(), r.ID, "SIGKILL"); err != nil {
					t.Error(err)
				}
				return
			}
			wantExit(t, r, 3)
			if frames == nil {
				return
			}
			n := 0
			for _, f := range frames {
				if f.Kind != guest.End {
					n += len(f.Data)
				}
			}
			last := frames[len(frames)-1]
			if end, err := last.Run(); err != nil || end.ID != r.ID || n != len(tt.output) {
				t.Errorf("%d bytes, the last frame is %+v, %v", n, last, err)
			}
			again, err := c.Start(t.Context(), cmd)
			if err != nil || again.PID != r.PID || string(again.Output) != string(r.Output) {
				t.Errorf("asked again: %+v, %v", again, err)
			}
		})
	}
}

// What comes along is believed no more than what is read.
func TestFramesAreChecked(t *testing.T) {
	t.Parallel()
	out := guest.AppendFrame(nil, guest.Frame{Kind: guest.Stdout, Data: []byte("x")})
	end := guest.AppendFrame(nil, guest.Frame{Kind: guest.End, Offset: 1, Data: []byte("{}")})
	for name, b := range map[string][]byte{
		"garbage": []byte("garbage that is no frame"), "no end": out, "a hole": end, "cut": append(out[:len(out):len(out)], end[:5]...),
		"something after the end": append(append(out[:len(out):len(out)], end...), out...),
	} {
		if frames, err := (guest.Run{ID: "r", Output: b}).Frames(); err == nil || frames != nil {
			t.Errorf("%s: %d frames, %v", name, len(frames), err)
		}
	}
	if frames, err := (guest.Run{Output: append(out[:len(out):len(out)], end...)}).Frames(); err != nil || len(frames) != 2 {
		t.Errorf("good ones: %d, %v", len(frames), err)
	}
	if _, err := (guest.Run{Output: []byte{99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}).Frames(); !errors.Is(err, guest.ErrFrame) {
		t.Errorf("an unknown kind: %v", err)
	}
}
