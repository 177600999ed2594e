package server_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

const live = "sbx_01J00000000000000000000001"

var zero = 0

// script is a manager whose one run writes frames; each waits for its turn if gate is not nil.
func script(gate <-chan struct{}, ended chan<- struct{}, frames ...guest.Frame) *stubManager {
	run := sandbox.Run{ID: "run_1", Account: "a", Sandbox: live, Kind: sandbox.RunExec, State: sandbox.RunRunning, Argv: []string{"x"}}
	return &stubManager{
		startRun: func(sandbox.Run, guest.Command) (sandbox.Run, error) { return run, nil },
		run: func(string) (sandbox.Run, error) {
			run := run
			run.State, run.ExitCode = sandbox.RunExited, &zero
			return run, nil
		},
		output: func(ctx context.Context, _ sandbox.Run, offset int64) iter.Seq2[guest.Frame, error] {
			return func(yield func(guest.Frame, error) bool) {
				if ended != nil {
					defer close(ended)
				}
				for _, f := range frames {
					if f.Kind != guest.End && f.Offset < offset {
						continue
					}
					if gate != nil {
						select {
						case <-gate:
						case <-ctx.Done():
							yield(guest.Frame{}, ctx.Err())
							return
						}
					}
					if !yield(f, nil) {
						return
					}
				}
			}
		},
	}
}

func out(offset int64, data string) guest.Frame {
	return guest.Frame{Kind: guest.Stdout, Offset: offset, Data: []byte(data)}
}

var end = guest.Frame{Kind: guest.End, Data: []byte(`{}`)}

func TestExecStreamComesPieceByPiece(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	gate := make(chan struct{})
	gap := guest.Frame{Kind: guest.Gap, Offset: 20, Data: binary.BigEndian.AppendUint64(nil, 10)}
	*r.Manager = *script(gate, nil, out(0, "one\ntwo"), guest.Frame{Kind: guest.Stderr, Offset: 7, Data: []byte{0xff, 'x', 0}}, gap, end)
	var got []string
	for e, err := range r.Exec(t.Context(), live, api.Exec{Argv: []string{"x"}}) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Start != nil:
			got = append(got, "start "+e.Start.State)
		case e.Gap != nil:
			got = append(got, fmt.Sprintf("gap %d-%d", e.Gap.From, e.Gap.To))
		case e.Exit != nil:
			got = append(got, fmt.Sprintf("exit %d", *e.Exit.ExitCode))
			continue
		default:
			got = append(got, fmt.Sprintf("%s %q @%d", e.Stream, e.Data, e.Offset))
		}
		gate <- struct{}{} // the next piece is only written once this one has arrived
	}
	want := []string{"start running", `stdout "one\ntwo" @7`, `stderr "\xffx\x00" @10`, "gap 10-20", "exit 0"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestRunEventsBeginAnywhere(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	*r.Manager = *script(nil, nil, out(0, "a"), out(1, "b"), out(2, "c"), end)
	for after, want := range []string{"abc", "bc", "c", ""} {
		var got strings.Builder
		for e, err := range r.RunEvents(t.Context(), live, "run_1", int64(after)) {
			if err != nil {
				t.Fatal(err)
			}
			got.Write(e.Data)
		}
		if got.String() != want {
			t.Errorf("after %d: %q, want %q", after, got.String(), want)
		}
	}
	runs, err := r.Runs(t.Context(), live)
	if err == nil || client.Code(err) != "internal_error" {
		t.Errorf("runs of a sandbox the manager can't tell of: %+v, %v", runs, err)
	}
}

func TestExecWaitCollects(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	*r.Manager = *script(nil, nil, out(0, "a\xff"), guest.Frame{Kind: guest.Stderr, Offset: 2, Data: []byte("e")}, end)
	run, err := r.ExecWait(t.Context(), live, api.Exec{Argv: []string{"x"}})
	if err != nil || run.Stdout != "a\uFFFD" || run.Stderr != "e" || run.Truncated || *run.ExitCode != 0 {
		t.Errorf("%+v, %v", run, err)
	}

	var many []guest.Frame
	for i := range 200 {
		many = append(many, out(int64(i)<<16, strings.Repeat("x", 1<<16)))
	}
	*r.Manager = *script(nil, nil, append(many, end)...)
	run, err = r.ExecWait(t.Context(), live, api.Exec{Argv: []string{"x"}})
	if err != nil || len(run.Stdout) != 10<<20 || !run.Truncated {
		t.Errorf("%d bytes, truncated %v, %v", len(run.Stdout), run.Truncated, err)
	}

	*r.Manager = *script(nil, nil)
	r.Manager.output = func(context.Context, sandbox.Run, int64) iter.Seq2[guest.Frame, error] {
		return func(yield func(guest.Frame, error) bool) {
			yield(guest.Frame{}, fmt.Errorf("%w: the sandbox has ended", sandbox.ErrGone))
		}
	}
	r.Manager.run = func(string) (sandbox.Run, error) { return sandbox.Run{State: sandbox.RunLost, Reason: "gone"}, nil }
	run, err = r.ExecWait(t.Context(), live, api.Exec{Argv: []string{"x"}})
	if err != nil || run.State != "lost" || run.ExitCode != nil || !run.Truncated {
		t.Errorf("%+v, %v", run, err)
	}
}

func TestStreamsTellErrors(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	*r.Manager = *script(nil, nil, out(0, "a")) // and no end
	var got string
	for e, err := range r.Exec(t.Context(), live, api.Exec{Argv: []string{"x"}}) {
		got += string(e.Data)
		if err != nil {
			got += client.Code(err)
		}
	}
	if got != "ainternal_error" {
		t.Errorf("got %q", got)
	}
}

func TestLeavingEndsTheStreamOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	ended := make(chan struct{})
	*r.Manager = *script(make(chan struct{}), ended, end) // never gets on
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for e, err := range r.Exec(ctx, live, api.Exec{Argv: []string{"x"}}) {
		if e.Start != nil {
			leave()
		} else if err == nil {
			t.Errorf("got %+v", e)
		}
	}
	<-ended // the handler let go; signal and terminate were not called, else the stubs would have said so
	r.Stop()
	if log := r.Log.String(); strings.Contains(log, "not expected") {
		t.Error(log)
	}
}

func TestAPeerThatReadsNothingIsDropped(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *server.Config) { c.WriteTimeout = 50 * time.Millisecond })
	ended := make(chan struct{})
	*r.Manager = *script(nil, nil)
	r.Manager.output = func(ctx context.Context, _ sandbox.Run, _ int64) iter.Seq2[guest.Frame, error] {
		return func(yield func(guest.Frame, error) bool) {
			defer close(ended)
			for i := int64(0); yield(out(i<<16, strings.Repeat("x", 1<<16)), nil); i++ {
			}
		}
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := `{"argv":["x"]}`
	_, err = fmt.Fprintf(conn, "POST /sandbox/%s/exec HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		live, r.Key, len(body), body)
	if err != nil {
		t.Fatal(err)
	}
	<-ended
}

func TestSilentStreamsBeat(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *server.Config) { c.Heartbeat = 5 * time.Millisecond })
	req, err := http.NewRequestWithContext(t.Context(), "GET", r.URL+"/event", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("X-API-Key", r.Key)
	res, err := r.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for name, want := range map[string]string{
		"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	lines := bufio.NewScanner(res.Body)
	for beats := 0; beats < 3; {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if lines.Text() == ":" {
			beats++
		}
	}
}

func TestEventsAreFollowed(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	*r.Manager = *strictManager(r.Account)
	add := func(kind string) {
		if _, err := r.Store.AppendEvent(t.Context(), sandbox.Event{Account: r.Account, Sandbox: live, Kind: kind, Text: kind + "\nmore"}); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := servertest.AddAccount(t, r.Store, "second")
	for id, account := range map[sandbox.ID]string{live: r.Account, "sbx_01J00000000000000000000002": other} { // tells "accepted" of each
		if err := r.Store.Admit(t.Context(), sandbox.Sandbox{ID: id, Account: account, State: sandbox.Creating, Run: "1"}); err != nil {
			t.Fatal(err)
		}
	}
	add("starting")
	var got []string
	var seqs []int64
	for e, err := range r.FollowEvents(t.Context(), live, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Kind)
		seqs = append(seqs, e.Seq)
		if len(got) == 2 {
			add("error")
		}
		if len(got) == 3 {
			break
		}
	}
	if want := []string{"accepted", "starting", "error"}; !slices.Equal(got, want) {
		t.Errorf("followed %q", got)
	}
	page, err := r.Events(t.Context(), "", seqs[0], 1)
	if err != nil || len(page.Events) != 1 || page.Events[0].Seq != seqs[1] || !page.More {
		t.Errorf("page %+v, %v", page, err)
	}
}

// talk is a session whose one turn is done.
func talk(run sandbox.Run) (*stubSessions, *stubManager) {
	run.ID, run.Session, run.Account = "run_1", "ses_1", "a"
	ses := sandbox.Session{ID: "ses_1", Account: "a", Title: "Hi", Turns: 1, LastSeq: 5}
	log := []sandbox.SessionEvent{
		{Seq: 1, Run: "run_0", Kind: sandbox.SessionEnd, Data: []byte(`{"type":"end"}`)},
		{Seq: 2, Run: run.ID, Turn: "trn_1", Kind: sandbox.SessionPrompt, Data: []byte(`{"type":"prompt","text":"Hi"}`)},
		{Seq: 3, Run: run.ID, Turn: "trn_1", Kind: sandbox.SessionPartial, Data: []byte(`{"type":"stream_event","n": 1}`)},
		{Seq: 4, Run: run.ID, Turn: "trn_1", Kind: sandbox.SessionLine, Data: []byte(`not JSON`)},
		{Seq: 5, Run: run.ID, Turn: "trn_1", Kind: sandbox.SessionEnd, Data: []byte(`{"type":"end"}`)},
	}
	turn := sandbox.Turn{ID: "trn_1", Account: "a", Session: "ses_1", Sandbox: live, Run: run.ID, State: sandbox.TurnFailed}
	if run.ExitCode != nil && *run.ExitCode == 0 {
		turn.State = sandbox.TurnDone
	}
	return &stubSessions{
			turn: turn,
			prompt: func(claude.Prompt) (claude.Turn, error) {
				return claude.Turn{Session: ses, Turn: turn, Run: run, After: 1}, nil
			},
			events: func(ctx context.Context, _ string, after int64, follow bool) iter.Seq2[sandbox.SessionEvent, error] {
				return func(yield func(sandbox.SessionEvent, error) bool) {
					for _, e := range log {
						if e.Seq > after && !yield(e, nil) {
							return
						}
					}
					if follow {
						<-ctx.Done()
						yield(sandbox.SessionEvent{}, ctx.Err())
					}
				}
			},
			get: func(string) (sandbox.Session, bool, error) { return ses, true, nil },
		}, &stubManager{
			run: func(string) (sandbox.Run, error) { return run, nil },
		}
}

func TestPromptStreamsTheCLIsLines(t *testing.T) {
	t.Parallel()
	seven := 7
	for name, tt := range map[string]struct {
		run  sandbox.Run
		code string
	}{
		"well":     {sandbox.Run{State: sandbox.RunExited, ExitCode: &zero}, ""},
		"failed":   {sandbox.Run{State: sandbox.RunExited, ExitCode: &seven}, "run_failed"},
		"signaled": {sandbox.Run{State: sandbox.RunSignaled, Signal: "SIGINT"}, "run_signaled"},
		"timeout":  {sandbox.Run{State: sandbox.RunTimeout}, "run_timeout"},
		"oom":      {sandbox.Run{State: sandbox.RunOOM, Signal: "SIGKILL"}, "run_oom"},
		"lost":     {sandbox.Run{State: sandbox.RunLost, Reason: "the sandbox ended."}, "run_lost"},
		"goes on":  {sandbox.Run{State: sandbox.RunRunning}, "turn_failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			sessions, manager := talk(tt.run)
			*r.Sessions, *r.Manager = *sessions, *manager
			var got []string
			code := ""
			for e, err := range r.Prompt(t.Context(), live, api.Prompt{Prompt: "Hi"}) {
				if err != nil {
					code = client.Code(err)
					continue
				}
				got = append(got, e.ID+" "+e.Name+" "+e.Data)
			}
			want := []string{
				`2 session {"type":"session","session":"ses_1","run":"run_1","sandbox":"` + live + `","turn":"trn_1","queued":false}`,
				`3 message {"type":"stream_event","n": 1}`, `4 message not JSON`,
			}
			if !slices.Equal(got, want) || code != tt.code {
				t.Errorf("code %q, got\n%s", code, strings.Join(got, "\n"))
			}
			res, body := r.ask(t, "POST", "/sandbox/"+live+"/claude", `{"prompt":"Hi"}`)
			if res.Header.Get("Sandlot-Session") != "ses_1" || !strings.HasSuffix(body, "data: [DONE]\n\n") {
				t.Errorf("%v %q", res.Header, body)
			}
		})
	}
}

func TestSessionsAreRead(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	sessions, manager := talk(sandbox.Run{})
	*r.Sessions, *r.Manager = *sessions, *manager
	list, err := r.SessionEvents(t.Context(), "ses_1", 2)
	if err != nil || len(list.Events) != 3 || list.More || list.Events[1].Data != "not JSON" {
		t.Errorf("%+v, %v", list, err)
	}
	_, body := r.ask(t, "GET", "/session/ses_1/events?limit=1", "")
	if !strings.Contains(body, `"more":true`) || strings.Count(body, `"seq"`) != 1 {
		t.Errorf("a page: %s", body)
	}
	var kinds []string
	for e, err := range r.FollowSession(t.Context(), "ses_1", 1) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, fmt.Sprint(e.Seq, e.Kind))
		if e.Kind == "end" {
			break
		}
	}
	if want := []string{"2prompt", "3partial", "4line", "5end"}; !slices.Equal(kinds, want) {
		t.Errorf("followed %q", kinds)
	}
	all, err := r.Client.Sessions(t.Context())
	if err != nil || len(all.Sessions) != 1 || !all.Sessions[0].Busy {
		t.Errorf("%+v, %v", all, err)
	}
	if ses, err := r.Session(t.Context(), "ses_1"); err != nil || ses.Title != "Hi" {
		t.Errorf("%+v, %v", ses, err)
	}
	if err := r.Interrupt(t.Context(), "ses_1"); err != nil {
		t.Error(err)
	}
}

func TestShutdownCutsStreamsAndWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	begun := make(chan struct{})
	*r.Manager = *strictManager(r.Account)
	r.Manager.waitReady = func(ctx context.Context, _ sandbox.ID) (sandbox.Sandbox, error) {
		close(begun)
		<-ctx.Done()
		return sandbox.Sandbox{}, ctx.Err()
	}
	waited := make(chan error, 1)
	go func() {
		_, err := r.Create(context.WithoutCancel(t.Context()), api.CreateSandbox{})
		waited <- err
	}()
	<-begun

	req, err := http.NewRequestWithContext(t.Context(), "GET", r.URL+"/event", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("X-API-Key", r.Key)
	res, err := r.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	r.Stop()
	b, err := io.ReadAll(res.Body)
	if err != nil || strings.Contains(string(b), api.Done) {
		t.Errorf("%q, %v; a stream that is cut must not look as if all had been said", b, err)
	}
	if err := <-waited; client.Code(err) != "shutting_down" {
		t.Errorf("the wait ended with %v", err)
	}
}
