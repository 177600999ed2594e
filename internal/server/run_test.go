package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// begin starts a program and leaves it.
func begin(t *testing.T, s *servertest.Server, sb string, in api.Exec) api.Run {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for e, err := range s.Exec(ctx, sb, in) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Start != nil {
			return *e.Start
		}
	}
	t.Fatal("it never started")
	return api.Run{}
}

// follow reads a run's events to the end.
func follow(t *testing.T, s *servertest.Server, sb, run string, after int64) (out []byte, exit api.Run) {
	t.Helper()
	for e, err := range s.RunEvents(t.Context(), sb, run, after) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Data...)
		if e.Exit != nil {
			exit = *e.Exit
		}
	}
	return out, exit
}

func TestStdin(t *testing.T) { // not in parallel: others measure the memory that they take
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	run := begin(t, s, sb.ID, api.Exec{Argv: []string{"cat"}, Stdin: "a", StdinOpen: true})
	big := bytes.Repeat([]byte("0123456789abcde\xff"), 100_000) // 1.6 MB, more than is taken at a time
	for _, w := range []struct {
		at    int64
		data  []byte
		close bool
		want  int64
		code  string
	}{
		{1, []byte("b\r\n\x00"), false, 5, ""},
		{1, []byte("b\r\n\x00"), false, 5, ""}, // again
		{6, []byte("x"), false, 0, "stdin_gap"},
		{5, big, false, 5 + int64(len(big)), ""},
		{5, big, false, 5 + int64(len(big)), ""},
		{-1, []byte("c"), false, 6 + int64(len(big)), ""},
		{6 + int64(len(big)), []byte("d"), true, 7 + int64(len(big)), ""},
		{7 + int64(len(big)), nil, true, 7 + int64(len(big)), ""},
	} {
		taken, err := s.WriteStdin(t.Context(), sb.ID, run.ID, w.at, bytes.NewReader(w.data), w.close)
		if client.Code(err) != w.code || (err == nil) != (w.code == "") || taken != w.want {
			t.Errorf("%d bytes at %d: %d are taken, %v", len(w.data), w.at, taken, err)
		}
	}
	out, exit := follow(t, s, sb.ID, run.ID, 0)
	if want := "ab\r\n\x00" + string(big) + "cd"; string(out) != want || exit.ExitCode == nil || *exit.ExitCode != 0 {
		t.Errorf("%d bytes, want %d; %+v", len(out), len(want), exit)
	}
	for _, at := range []int64{-1, 7 + int64(len(big))} {
		if _, err := s.WriteStdin(t.Context(), sb.ID, run.ID, at, strings.NewReader("x"), false); client.Code(err) != "run_ended" {
			t.Error(err)
		}
	}
	if _, err := s.WriteStdin(t.Context(), sb.ID, "run_01J00000000000000000000000", 0, strings.NewReader("x"), false); problem(t, err).Status != http.StatusNotFound {
		t.Error(err)
	}
}

func TestExecInATerminal(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	run, err := s.ExecWait(t.Context(), sb.ID, api.Exec{Argv: []string{"sh", "-c", "stty size; tty -s && echo terminal >&2"}, PTY: true, Size: &api.Size{Rows: 7, Cols: 99}})
	if err != nil || run.Stdout != "7 99\r\nterminal\r\n" {
		t.Errorf("%+v, %v", run, err)
	}
	_, err = s.ExecWait(t.Context(), sb.ID, api.Exec{Argv: []string{"true"}, Size: &api.Size{Rows: 7, Cols: 99}})
	if p := problem(t, err); p.Status != http.StatusBadRequest || p.Errors[0].Location != "body.size" {
		t.Errorf("%+v", p)
	}
	_, err = s.ExecWait(t.Context(), sb.ID, api.Exec{Argv: []string{"true"}, PTY: true, Size: &api.Size{}})
	if p := problem(t, err); p.Status != http.StatusBadRequest {
		t.Errorf("%+v", p)
	}
}

// Leaving ends the run of a caller who asked for that, and a stubborn one too.
func TestLeavingEndsAnAttachedRun(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	attached := false
	for name, tc := range map[string]struct {
		script, signal string
		wait           bool
	}{
		"polite":   {"echo ready; exec sleep 600", "SIGTERM", false},
		"stubborn": {"trap '' TERM; echo ready; while :; do sleep 0.1; done", "SIGKILL", false},
		"waiting":  {"echo ready; exec sleep 601", "SIGTERM", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			in := api.Exec{Argv: []string{"sh", "-c", tc.script, name}, Detach: &attached}
			id := ""
			if tc.wait {
				waited := make(chan error, 1)
				go func() {
					_, err := s.ExecWait(ctx, sb.ID, in)
					waited <- err
				}()
				for id == "" {
					runs, err := s.RunsWhere(t.Context(), sb.ID, client.RunFilter{States: []string{"running"}})
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range runs.Runs {
						if r.Argv[len(r.Argv)-1] == name && r.OutputNext > 0 {
							id = r.ID
						}
					}
				}
				leave()
				<-waited
			} else {
				for e, err := range s.Exec(ctx, sb.ID, in) {
					if err != nil {
						break
					}
					if e.Start != nil {
						id = e.Start.ID
					}
					if string(e.Data) == "ready\n" {
						leave()
					}
				}
			}
			if _, exit := follow(t, s, sb.ID, id, 0); exit.State != "signaled" || exit.Signal != tc.signal {
				t.Errorf("%+v", exit)
			}
		})
	}
}

func TestListRuns(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	var ids []string // newest first
	for i := range 5 {
		run, err := s.ExecWait(t.Context(), sb.ID, api.Exec{Argv: []string{"sh", "-c", fmt.Sprintf("printf %d; exit %d", 12345, i)}})
		if err != nil || run.OutputNext != 5 {
			t.Fatal(run, err)
		}
		ids = append([]string{run.ID}, ids...)
	}
	goes := begin(t, s, sb.ID, api.Exec{Argv: []string{"sleep", "600"}})
	pages := func(f client.RunFilter) (got []string) {
		t.Helper()
		for {
			page, err := s.RunsWhere(t.Context(), sb.ID, f)
			if err != nil {
				t.Fatal(err)
			}
			if f.Limit > 0 && len(page.Runs) > f.Limit {
				t.Errorf("%d on a page", len(page.Runs))
			}
			for _, r := range page.Runs {
				got = append(got, r.ID)
			}
			if f.Cursor = page.NextCursor; f.Cursor == "" {
				return got
			}
		}
	}
	everyone := strings.Join(append([]string{goes.ID}, ids...), " ")
	for _, tc := range []struct {
		f    client.RunFilter
		want string
	}{
		{client.RunFilter{}, everyone},
		{client.RunFilter{Limit: 1}, everyone},
		{client.RunFilter{Limit: 4}, everyone},
		{client.RunFilter{Limit: 6}, everyone},
		{client.RunFilter{Limit: 2, States: []string{"exited"}}, strings.Join(ids, " ")},
		{client.RunFilter{States: []string{"running", "lost"}}, goes.ID},
		{client.RunFilter{States: []string{"lost"}}, ""},
		{client.RunFilter{Kind: "exec", States: []string{"running"}}, goes.ID},
		{client.RunFilter{Kind: "claude"}, ""},
	} {
		if got := strings.Join(pages(tc.f), " "); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.f, got, tc.want)
		}
	}
	for _, f := range []client.RunFilter{{States: []string{"gone"}}, {Cursor: "x"}, {Limit: 501}} {
		if _, err := s.RunsWhere(t.Context(), sb.ID, f); problem(t, err).Status != http.StatusBadRequest {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// odd is output of every kind that is hard to keep as it is.
var odd = map[string]string{
	"a line of 3 MB":  `head -c 3000000 /dev/zero | tr '\0' x`,
	"every byte":      `i=0; while [ $i -lt 256 ]; do printf "\\$(printf %o $i)"; i=$((i+1)); done`,
	"invalid UTF-8":   `printf 'a\377\376\300b'; printf '\342\202'`,
	"CRLF and CR":     `printf 'a\r\nb\rc\n\r\r\n'`,
	"no newline":      `printf 'no newline'`,
	"nothing":         `:`,
	"empty lines":     `printf '\n\n\n'`,
	"like our stream": `printf 'data: [DONE]\n\nevent: exit\nid: 7\n\n'`,
}

// Whatever a run writes comes byte for byte, by each way to read it, while the sandbox is there and when it is gone.
func TestOutputByteForByte(t *testing.T) { // not in parallel, as above
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	want, runs := map[string][]byte{}, map[string]string{}
	for name, script := range odd {
		run := begin(t, s, sb.ID, api.Exec{Argv: []string{"sh", "-c", script + "; printf 'error\\377' >&2; exit 3"}})
		var stdout bytes.Buffer
		if _, err := s.ReadOutput(t.Context(), sb.ID, run.ID, client.RunOutput{Stream: "stdout", Follow: true}, &stdout); err != nil {
			t.Fatal(err)
		}
		want[name], runs[name] = stdout.Bytes(), run.ID
	}
	var every []byte
	for i := range 256 {
		every = append(every, byte(i))
	}
	for name, text := range map[string]string{
		"a line of 3 MB": strings.Repeat("x", 3_000_000), "every byte": string(every), "invalid UTF-8": "a\xff\xfe\xc0b\xe2\x82", "CRLF and CR": "a\r\nb\rc\n\r\r\n",
		"no newline": "no newline", "nothing": "", "empty lines": "\n\n\n", "like our stream": "data: [DONE]\n\nevent: exit\nid: 7\n\n",
	} {
		if string(want[name]) != text {
			t.Errorf("%s: %.100q, want %.100q", name, want[name], text)
		}
	}
	for _, gone := range []bool{false, true} {
		if gone {
			if _, err := s.Terminate(t.Context(), sb.ID); err != nil {
				t.Fatal(err)
			}
		}
		for name, id := range runs {
			total := int64(len(want[name]) + 6)
			for stream, text := range map[string]string{"stdout": string(want[name]), "stderr": "error\xff"} {
				var raw bytes.Buffer
				o, err := s.ReadOutput(t.Context(), sb.ID, id, client.RunOutput{Stream: stream}, &raw)
				if err != nil || raw.String() != text || o.State != "exited" || o.Missing != 0 || o.Next != total {
					t.Errorf("gone %v, %s, %s: %d bytes, %+v, %v", gone, name, stream, raw.Len(), o, err)
				}
			}
			var raw bytes.Buffer
			if _, err := s.ReadOutput(t.Context(), sb.ID, id, client.RunOutput{}, &raw); err != nil {
				t.Fatal(err)
			}
			sse, exit := follow(t, s, sb.ID, id, 0)
			if !bytes.Equal(sse, raw.Bytes()) || int64(len(sse)) != total || exit.ExitCode == nil || *exit.ExitCode != 3 || exit.OutputNext != total {
				t.Errorf("gone %v, %s: %d bytes as events, %d as bytes, %+v", gone, name, len(sse), raw.Len(), exit)
			}
			if listed := listed(t, s, sb.ID, id); !bytes.Equal(listed, raw.Bytes()) {
				t.Errorf("gone %v, %s: %d bytes listed, %d as bytes", gone, name, len(listed), raw.Len())
			}
			for _, after := range []int64{1, total / 2, total - 1, total} {
				if after > total || after < 0 {
					continue
				}
				rest, _ := follow(t, s, sb.ID, id, after)
				var tail bytes.Buffer
				if _, err := s.ReadOutput(t.Context(), sb.ID, id, client.RunOutput{After: after}, &tail); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(rest, raw.Bytes()[after:]) || !bytes.Equal(tail.Bytes(), raw.Bytes()[after:]) {
					t.Errorf("gone %v, %s, after %d: %d and %d bytes", gone, name, after, len(rest), tail.Len())
				}
			}
		}
	}
}

// listed reads a run's events as lists.
func listed(t *testing.T, s *servertest.Server, sb, run string) (out []byte) {
	t.Helper()
	for after := int64(0); ; {
		list, err := s.RunEventsNow(t.Context(), sb, run, after)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Events {
			if e.Event == api.EventExit {
				return out
			}
			b, err := json.Marshal(e.Data)
			if err != nil {
				t.Fatal(err)
			}
			var o api.Output
			if err := json.Unmarshal(b, &o); err != nil {
				t.Fatal(err)
			}
			data := []byte(o.Data)
			if o.Encoding == "base64" {
				if data, err = base64.StdEncoding.DecodeString(o.Data); err != nil {
					t.Fatal(err)
				}
			}
			out, after = append(out, data...), e.ID
		}
		if !list.More {
			t.Fatalf("no more, and no end: %+v", list.Run)
		}
	}
}

// What there is now is told without waiting for more.
func TestEventsOfARunThatGoesOn(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	run := begin(t, s, sb.ID, api.Exec{Argv: []string{"sh", "-c", "echo on; exec sleep 600"}})
	for list := (api.RunEventList{}); len(list.Events) == 0; {
		var err error
		if list, err = s.RunEventsNow(t.Context(), sb.ID, run.ID, 0); err != nil || !list.More || list.Run.State != "running" {
			t.Fatalf("%+v, %v", list, err)
		}
	}
	var raw bytes.Buffer
	o, err := s.ReadOutput(t.Context(), sb.ID, run.ID, client.RunOutput{}, &raw)
	if err != nil || raw.String() != "on\n" || o.State != "running" || o.Next != 3 {
		t.Errorf("%q, %+v, %v", raw.String(), o, err)
	}
	list, err := s.RunEventsNow(t.Context(), sb.ID, run.ID, 3)
	if err != nil || len(list.Events) != 0 || !list.More {
		t.Errorf("%+v, %v", list, err)
	}
}

// A run whose sandbox dies is lost within seconds, for those who follow it and for those who come later.
func TestLostRun(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	id := ""
	var exit api.Run
	var killed time.Time
	for e, err := range s.Exec(t.Context(), sb.ID, api.Exec{Argv: []string{"sh", "-c", "echo on; exec sleep 600"}}) {
		switch {
		case err != nil:
			t.Fatal(err)
		case e.Start != nil:
			id = e.Start.ID
		case e.Data != nil:
			killed = time.Now()
			s.World.Kill(engine.Ref{ID: sandbox.ID(sb.ID), Run: "1"})
		case e.Exit != nil:
			exit = *e.Exit
		}
	}
	if exit.State != "lost" || exit.ExitCode != nil || time.Since(killed) > 5*time.Second {
		t.Errorf("after %v: %+v", time.Since(killed), exit)
	}
	out, exit := follow(t, s, sb.ID, id, 0)
	if string(out) != "on\n" || exit.State != "lost" || exit.ExitCode != nil {
		t.Errorf("%q, %+v", out, exit)
	}
	list, err := s.RunEventsNow(t.Context(), sb.ID, id, 0)
	if err != nil || list.More || len(list.Events) != 2 || list.Run.State != "lost" {
		t.Errorf("%+v, %v", list, err)
	}
	var raw bytes.Buffer
	o, err := s.ReadOutput(t.Context(), sb.ID, id, client.RunOutput{Follow: true}, &raw)
	if err != nil || raw.String() != "on\n" || o.State != "lost" {
		t.Errorf("%q, %+v, %v", raw.String(), o, err)
	}
	run, err := s.ExecWait(t.Context(), sb.ID, api.Exec{Argv: []string{"true"}})
	if err == nil {
		t.Errorf("a run in a sandbox that is gone: %+v", run)
	}
}
