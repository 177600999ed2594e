package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func TestStdinAtItsPlace(t *testing.T) {
	t.Parallel()
	type write struct {
		at    int64
		text  string
		close bool
		code  string // "" = taken
	}
	for name, tc := range map[string]struct {
		begin  string
		open   bool
		pty    bool
		writes []write
		want   string // what the process has read
	}{
		"one after the other":        {open: true, writes: []write{{0, "ab", false, ""}, {2, "c", false, ""}, {3, "", true, ""}}, want: "abc"},
		"after what it began with":   {begin: "ab", open: true, writes: []write{{0, "x", false, ""}, {2, "c", true, ""}}, want: "abc"},
		"repeated":                   {open: true, writes: []write{{0, "ab", false, ""}, {0, "ab", false, ""}, {1, "b", false, ""}, {2, "c", true, ""}}, want: "abc"},
		"repeated with the end":      {open: true, writes: []write{{0, "ab", true, ""}, {0, "ab", true, ""}, {0, "ab", false, ""}}, want: "ab"},
		"the end repeated alone":     {open: true, writes: []write{{0, "ab", true, ""}, {2, "", true, ""}}, want: "ab"},
		"repeated in other pieces":   {open: true, writes: []write{{0, "ab", false, ""}, {1, "bcd", false, ""}, {0, "abcde", true, ""}}, want: "abcde"},
		"a gap":                      {open: true, writes: []write{{1, "b", false, "stdin_gap"}, {0, "a", false, ""}, {1, "b", true, ""}}, want: "ab"},
		"a gap before the end":       {open: true, writes: []write{{1, "", true, "stdin_gap"}, {0, "a", true, ""}}, want: "a"},
		"an end that lies behind":    {open: true, writes: []write{{0, "ab", false, ""}, {0, "a", true, "stdin_past"}, {2, "c", true, ""}}, want: "abc"},
		"more after the end":         {open: true, writes: []write{{0, "a", true, ""}, {1, "b", false, "stdin_closed"}, {0, "ab", false, "stdin_closed"}}, want: "a"},
		"all was given at the start": {begin: "ab", writes: []write{{0, "ab", false, ""}, {2, "", true, ""}, {2, "c", false, "stdin_closed"}, {3, "d", false, "stdin_gap"}}, want: "ab"},
		"a terminal":                 {open: true, pty: true, writes: []write{{0, "a\n", false, ""}, {0, "a\nb\n", true, ""}, {4, "", true, ""}}, want: "a\r\nb\r\n"},
		"nothing":                    {open: true, writes: []write{{0, "", false, ""}, {0, "", true, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, nil)
			cmd := shell("cat; echo end >&2; sleep 300")
			cmd.Stdin, cmd.Open = []byte(tc.begin), tc.open
			if tc.pty {
				cmd = shell("stty -echo; echo ready; cat; echo end; sleep 300")
				cmd.Stdio, cmd.Open = guest.StdioPTY, true
			}
			if r := start(t, c, cmd); r.Stdin != int64(len(tc.begin)) {
				t.Errorf("%d bytes were taken at the start", r.Stdin)
			}
			if tc.pty {
				waitFor(t, c, cmd.ID, "ready")
			}
			taken := int64(len(tc.begin))
			for _, w := range tc.writes {
				err := c.WriteStdinAt(t.Context(), cmd.ID, w.at, []byte(w.text), w.close)
				if w.code != "" {
					field := "at"
					if w.code == "stdin_closed" {
						field = ""
					}
					wantRefused(t, err, 409, w.code, field)
				} else if err != nil {
					t.Errorf("%+v: %v", w, err)
				} else {
					taken = max(taken, w.at+int64(len(w.text)))
				}
				if r, err := c.Run(t.Context(), cmd.ID); err != nil || r.Stdin != taken {
					t.Errorf("%+v: %d were taken, want %d: %v", w, r.Stdin, taken, err)
				}
			}
			waitFor(t, c, cmd.ID, "end")
			kill(t, c, cmd.ID)
			res := follow(t, c, cmd.ID, 0)
			got := strings.TrimSuffix(strings.TrimPrefix(res.stdout.String(), "ready\r\n"), "end\r\n")
			if got != tc.want || res.end.Stdin != taken {
				t.Errorf("%q, and %d bytes in the end", got, res.end.Stdin)
			}
			// What was taken stays so when the run has ended, and nothing else is.
			if err := c.WriteStdinAt(t.Context(), cmd.ID, 0, make([]byte, taken), true); err != nil {
				t.Error(err)
			}
			wantRefused(t, c.WriteStdinAt(t.Context(), cmd.ID, taken, []byte("x"), false), 409, "run_ended", "")
		})
	}
}

// Who wrote is killed, again and again, in the middle of a write that the process is slow to read: another goes on with the same bytes,
// in pieces of its own, and the process gets each byte once.
func TestStdinSurvivesItsWriter(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := setUp(t, dial(t, s, nil))
	input := make([]byte, 3<<20)
	for i := range input {
		input[i] = byte(rand.Uint32())
	}
	cmd := shell(`while dd bs=70000 count=1 2>/dev/null >part && [ -s part ]; do cat part; done | sha256sum`)
	cmd.Open = true
	start(t, c, cmd)
	var wg sync.WaitGroup
	defer wg.Wait()
	for done := false; !done; {
		r, err := c.Run(t.Context(), cmd.ID)
		if err != nil {
			t.Fatal(err)
		}
		host := dial(t, s, nil)
		from := max(0, r.Stdin-int64(rand.IntN(100_000))) // what it last knew to be taken
		to := min(int64(len(input)), from+int64(rand.IntN(600_000))+1)
		cut := make(chan struct{})
		wrote, stop := context.WithCancel(t.Context())
		wg.Go(func() { // it dies when a byte more has been taken
			defer close(cut)
			for wrote.Err() == nil {
				if now, err := c.Run(wrote, cmd.ID); err != nil || now.Stdin > r.Stdin {
					break
				}
			}
			_ = host.Close() // which loses what it had sent and not yet had answered
		})
		err = host.WriteStdinAt(t.Context(), cmd.ID, from, input[from:to], false)
		stop()
		if err != nil && !errors.Is(err, guest.ErrLost) {
			t.Fatal(err)
		}
		<-cut
		done = r.Stdin == int64(len(input))
	}
	if err := c.WriteStdinAt(t.Context(), cmd.ID, 0, input, true); err != nil {
		t.Fatal(err)
	}
	if got, want := follow(t, c, cmd.ID, 0).stdout.String(), fmt.Sprintf("%x  -\n", sha256.Sum256(input)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A write that nobody waits for any more is taken whole, and what comes after it waits for it.
func TestStdinIsTakenWhole(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	cmd := shell("echo ready; read go <gate; sha256sum")
	cmd.Open = true
	start(t, c, shell("mkfifo gate"))
	waitForRuns(t, c)
	start(t, c, cmd)
	waitFor(t, c, cmd.ID, "ready")
	input := bytes.Repeat([]byte("0123456789abcdef"), 16<<10) // more than a pipe holds
	ctx, cancel := context.WithCancel(t.Context())
	wrote := make(chan error, 1)
	go func() { wrote <- c.WriteStdinAt(ctx, cmd.ID, 0, input, false) }()
	for r, err := c.Run(t.Context(), cmd.ID); r.Stdin == 0; r, err = c.Run(t.Context(), cmd.ID) {
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-wrote; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	start(t, c, shell("echo go >gate"))
	if err := c.WriteStdinAt(t.Context(), cmd.ID, int64(len(input)), []byte("last"), true); err != nil {
		t.Error(err)
	}
	if got, want := follow(t, c, cmd.ID, 0).stdout.String(), fmt.Sprintf("ready\n%x  -\n", sha256.Sum256(append(input, "last"...))); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// waitForRuns waits for the end of every run.
func waitForRuns(t *testing.T, c *guest.Client) {
	t.Helper()
	all, err := c.Runs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if _, err := c.Wait(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
	}
}
