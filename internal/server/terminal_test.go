package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// seat is a terminal whose output a test waits for.
type seat struct {
	t *testing.T
	*client.Terminal
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	news    chan struct{} // closed and replaced when something came
	out     bytes.Buffer
	events  []client.TerminalEvent
	writer  bool
	exit    *api.TerminalFrame
	problem error
}

// sit opens a terminal and reads it in the background.
func sit(t *testing.T, c *client.Client, sandbox string, o client.TerminalOptions) *seat {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	term, err := c.Terminal(ctx, sandbox, o)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	s := &seat{t: t, Terminal: term, cancel: cancel, done: make(chan struct{}), news: make(chan struct{})}
	go s.read()
	t.Cleanup(s.leave)
	return s
}

func (s *seat) read() {
	defer close(s.done)
	for e, err := range s.Events() {
		s.mu.Lock()
		s.out.Write(e.Data)
		s.events = append(s.events, e)
		s.writer = e.Writer
		if e.Exit != nil {
			s.exit = e.Exit
		}
		s.problem = err
		close(s.news)
		s.news = make(chan struct{})
		s.mu.Unlock()
	}
}

func (s *seat) leave() {
	s.cancel()
	<-s.done
}

// until waits until ok, which looks at s under its lock.
func (s *seat) until(what string, ok func() bool) {
	s.t.Helper()
	late := time.After(time.Minute)
	for {
		s.mu.Lock()
		good, news, out := ok(), s.news, s.out.String()
		s.mu.Unlock()
		if good {
			return
		}
		select {
		case <-news:
		case <-s.done:
			s.mu.Lock()
			defer s.mu.Unlock()
			if !ok() {
				s.t.Fatalf("the terminal ended (%v, %v) before %s; it showed %q", s.exit, s.problem, what, tail(out))
			}
			return
		case <-time.After(200 * time.Millisecond): // ok may want to do something
		case <-late:
			s.t.Fatalf("no %s; the terminal shows %q", what, tail(out))
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-2000):] }

// shows waits until the output holds text.
func (s *seat) shows(text string) {
	s.t.Helper()
	s.until(fmt.Sprintf("%q is shown", text), func() bool { return strings.Contains(s.out.String(), text) })
}

// types sends input.
func (s *seat) types(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.Terminal, text); err != nil {
		s.t.Fatalf("typing %.20q: %v", text, err)
	}
}

// ends waits for the program's end.
func (s *seat) ends() api.TerminalFrame {
	s.t.Helper()
	s.until("end", func() bool { return s.exit != nil })
	return *s.exit
}

func code(f api.TerminalFrame) string {
	if f.ExitCode == nil {
		return f.State + " " + f.Signal
	}
	return fmt.Sprint(f.State, " ", *f.ExitCode)
}

var quiet = map[string]string{"PS1": "$ ", "ENV": ""}

func TestTerminal(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"sh"}, Env: quiet, Cols: 100, Rows: 30})
	a.shows("$ ")
	a.types("stty size; echo term is $TERM\r")
	a.shows("30 100\r\nterm is xterm-256color\r\n")
	a.types("trap 'echo changed' WINCH; echo trap $((1+1)) set\r")
	a.shows("trap 2 set")
	if err := a.Resize(120, 40); err != nil {
		t.Fatal(err)
	}
	a.types("stty size\r")
	a.shows("40 120\r\n")
	a.shows("changed\r\n")

	a.types("sh -c 'echo slee''ping; sleep 1000'\r")
	a.shows("sleeping\r\n")
	again := time.Now()
	a.until("prompt", func() bool { // a shell that is just starting a program may miss the first one
		if now := time.Now(); now.After(again) {
			again = now.Add(time.Second)
			go func() { _, _ = a.Write([]byte("\x03")) }() // only what is in front ends by it
		}
		return strings.HasSuffix(a.out.String(), "$ ")
	})
	a.types("echo $((100+30))\r")
	a.shows("130")
	a.types("sh -c 'trap \"echo got it; exit\" INT; echo re''ady; while :; do sleep 0.02; done'\r")
	a.shows("ready\r\n")
	if err := a.Signal("SIGINT"); err != nil {
		t.Fatal(err)
	}
	a.shows("got it\r\n")
	a.types("exit 7\r")
	if got := code(a.ends()); got != "exited 7" {
		t.Errorf("ended as %s", got)
	}
	run, err := s.Run(t.Context(), sb.ID, a.Run())
	if err != nil || run.Kind != "terminal" || run.ExitCode == nil || *run.ExitCode != 7 {
		t.Errorf("%+v, %v", run, err)
	}

	// Who comes after the end sees all of it.
	b := sit(t, s.Client, sb.ID, client.TerminalOptions{Run: a.Run()})
	if got := code(b.ends()); got != "exited 7" || b.out.String() != a.out.String() {
		t.Errorf("%s; %q, not %q", got, b.out.String(), a.out.String())
	}
	for _, e := range b.events {
		if len(e.Data) > 0 && !e.History {
			t.Errorf("what was written before is not told as history: %+v", e)
		}
	}
	if _, err := s.Terminal(t.Context(), sb.ID, client.TerminalOptions{Run: a.Run(), FromHere: true, Offset: 1 << 30}); client.Code(err) != "invalid_request" {
		t.Errorf("after the end of all output: %v", err)
	}
}

func TestTerminalWithoutArgvIsAShell(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{})
	a.types("echo I am $0; exit\r")
	a.shows("I am /")
	if got := code(a.ends()); got != "exited 0" {
		t.Errorf("ended as %s", got)
	}
}

func TestPipesInsteadOfATerminal(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"sh", "-c", "cat; echo oops >&2; exit 3"}, NoPTY: true})
	want := strings.Repeat("\x00\xff line\n\r", 100_000)
	a.types(want)
	if err := a.CloseInput(); err != nil {
		t.Fatal(err)
	}
	if got := code(a.ends()); got != "exited 3" {
		t.Errorf("ended as %s", got)
	}
	var stdout, stderr bytes.Buffer
	for _, e := range a.events {
		if e.Stream == "stderr" {
			stderr.Write(e.Data)
		} else {
			stdout.Write(e.Data)
		}
	}
	if stdout.String() != want || stderr.String() != "oops\n" {
		t.Errorf("stdout has %d of %d bytes, stderr is %q", stdout.Len(), len(want), stderr.String())
	}
}

// TestWriterAndViewers has one who writes, one who may, and one who may only watch.
func TestWriterAndViewers(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"cat"}, Cols: 100, Rows: 30})
	a.types("one\r")
	a.shows("one\r\none\r\n")
	b := sit(t, s.Client, sb.ID, client.TerminalOptions{Run: a.Run(), Cols: 50, Rows: 20})
	w := sit(t, s.Client, sb.ID, client.TerminalOptions{Run: a.Run(), ReadOnly: true})
	for _, v := range []*seat{b, w} {
		v.shows("one\r\none\r\n")
		if v.writer || v.events[0].Cols != 100 || v.events[0].Rows != 30 {
			t.Errorf("%+v", v.events[0])
		}
		if _, err := v.Write([]byte("x")); !errors.Is(err, client.ErrNotWriter) {
			t.Errorf("writing without the right: %v", err)
		}
	}
	if err := w.Take(); err != nil {
		t.Fatal(err)
	}
	w.until("refusal", func() bool { r := w.events[len(w.events)-1].Refused; return r != nil && r.Code == "read_only" })
	if err := b.Signal("SIGKILL"); err != nil {
		t.Fatal(err)
	}
	b.until("refusal", func() bool { r := b.events[len(b.events)-1].Refused; return r != nil && r.Code == "not_the_writer" })

	if err := b.Take(); err != nil {
		t.Fatal(err)
	}
	a.until("that it is told", func() bool { return !a.writer })
	b.until("that it writes", func() bool { return b.writer })
	w.until("the new size", func() bool { return w.events[len(w.events)-1].Cols == 50 })
	b.types("two\r")
	for _, v := range []*seat{a, b, w} {
		v.shows("two\r\ntwo\r\n")
	}
	b.leave()
	a.until("that it writes again", func() bool { return a.writer })
	a.types("three\r\x04")
	for _, v := range []*seat{a, w} {
		if got := code(v.ends()); got != "exited 0" {
			t.Errorf("ended as %s", got)
		}
	}
	if w.writer {
		t.Error("who only watches was made the writer")
	}
}

// TestEverybodyLeaves leaves a program alone. It goes on, and ends when it is told to.
func TestEverybodyLeaves(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"sh", "-c", "trap 'echo hung up; exit 5' HUP; echo ready; while :; do sleep 0.02; done"}})
	a.shows("ready")
	a.leave()
	if run, err := s.Run(t.Context(), sb.ID, a.Run()); err != nil || run.State != "running" {
		t.Errorf("%+v, %v", run, err)
	}
	run, err := s.EndRun(t.Context(), sb.ID, a.Run())
	if err != nil || run.State != "exited" || *run.ExitCode != 5 {
		t.Errorf("%+v, %v", run, err)
	}
	if again, err := s.EndRun(t.Context(), sb.ID, a.Run()); err != nil || again.State != "exited" {
		t.Errorf("a second time: %+v, %v", again, err)
	}
	b := sit(t, s.Client, sb.ID, client.TerminalOptions{Run: a.Run()})
	b.ends()
	b.shows("hung up")
}

// TestWhoIgnoresHangup is killed.
func TestWhoIgnoresHangup(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"sh", "-c", "trap '' HUP; echo ready; while :; do sleep 0.02; done"}})
	a.shows("ready")
	if run, err := s.EndRun(t.Context(), sb.ID, a.Run()); err != nil || run.State != "signaled" || run.Signal != "SIGKILL" {
		t.Errorf("%+v, %v", run, err)
	}
	if got := code(a.ends()); got != "signaled SIGKILL" {
		t.Errorf("ended as %s", got)
	}
}

// flaky is a way to a server that breaks.
type flaky struct {
	*client.Client
	mu    sync.Mutex
	conns []net.Conn
}

func flakyWay(t *testing.T, s *servertest.Server) *flaky {
	f := &flaky{Client: client.New(s.URL, s.Key)}
	f.Backoff = time.Millisecond
	tr := f.HTTP.Transport.(*http.Transport)
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
		}
		return c, err
	}
	t.Cleanup(tr.CloseIdleConnections)
	return f
}

// cut breaks all connections, without a word.
func (f *flaky) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		_ = c.(*net.TCPConn).SetLinger(0) // what is under way is lost
		_ = c.Close()
	}
	f.conns = nil
}

// TestCutConnections cuts the connection again and again while much goes in and comes out. Nothing is missing and nothing comes twice.
func TestCutConnections(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	f := flakyWay(t, s)
	a := sit(t, f.Client, sb.ID, client.TerminalOptions{Argv: []string{"cat"}, NoPTY: true})
	var want bytes.Buffer
	for i := range 40 {
		var part bytes.Buffer
		for j := range 500 {
			fmt.Fprintf(&part, "line %d of part %d\n", j, i)
		}
		want.Write(part.Bytes())
		a.types(part.String())
		if i%4 == 1 {
			f.cut()
		}
	}
	f.cut()
	if err := a.CloseInput(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log("closing the input while the connection is cut:", err)
	}
	if got := code(a.ends()); got != "exited 0" {
		t.Errorf("ended as %s", got)
	}
	if !bytes.Equal(a.out.Bytes(), want.Bytes()) {
		got, want, i := a.out.Bytes(), want.Bytes(), 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Errorf("%d bytes came back of %d; they differ from %d on: %.60q, not %.60q", len(got), len(want), i, got[i:], want[i:])
	}
	cuts := 0
	for _, e := range a.events {
		if e.Cut != nil {
			cuts++
		}
	}
	if cuts == 0 {
		t.Error("the connection was never cut")
	}
}

// TestHistoryIsBounded comes back to a program that has written a lot.
func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"sh", "-c", "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done; cat"}})
	a.shows("line 59999\r\n")
	b := sit(t, s.Client, sb.ID, client.TerminalOptions{Run: a.Run()})
	b.shows("line 59999\r\n")
	got := b.out.String()
	if len(got) > 256<<10 || len(got) < 200<<10 || !strings.HasPrefix(got, "line ") || !strings.HasSuffix(a.out.String(), got) {
		t.Errorf("%d bytes of history that begin with %.20q", len(got), got)
	}
	c := sit(t, s.Client, sb.ID, client.TerminalOptions{Run: a.Run(), FromHere: true})
	c.until("all of it", func() bool { return c.out.String() == a.out.String() })
}

// TestProgramThatReadsNothing types more than anybody wants to hold. What waits is bounded, others see the output meanwhile, signals get
// through, and who takes over can too.
func TestProgramThatReadsNothing(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{Change: func(c *server.Config) { c.Heartbeat, c.WriteTimeout = 20*time.Millisecond, 500*time.Millisecond }})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"sh", "-c", "stty raw -echo; echo ready; while :; do echo tick; sleep 0.05; done"}})
	a.shows("ready")
	typed := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(a.Terminal, io.LimitReader(endless{}, 64<<20)) // it ends with the program
		typed <- n
	}()
	a.until("many ticks while nothing is read", func() bool { return bytes.Count(a.out.Bytes(), []byte("tick")) > 30 })
	b := sit(t, s.Client, sb.ID, client.TerminalOptions{Run: a.Run()})
	b.shows("tick")
	if err := a.Signal("SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if got := code(b.ends()); got != "signaled SIGKILL" {
		t.Errorf("ended as %s", got)
	}
	a.ends()
	if n := <-typed; n > 2<<20 {
		t.Errorf("%d bytes of input were taken for a program that reads none", n)
	}
	for _, e := range a.events {
		if e.Cut != nil {
			t.Errorf("the connection was cut: %v", e.Cut)
		}
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// TestPaste pastes a megabyte.
func TestPaste(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"sh", "-c", "stty -echo; echo ready; md5sum; exit 0"}})
	a.shows("ready")
	line := strings.Repeat("a line of a paste, with ünïcode; ", 3) + "\n"
	a.types(strings.Repeat(line, 1<<20/len(line)+1))
	a.types("\x04")
	a.ends()
	b := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"md5sum"}, NoPTY: true})
	b.types(strings.Repeat(line, 1<<20/len(line)+1))
	if err := b.CloseInput(); err != nil {
		t.Fatal(err)
	}
	b.ends()
	if sum := strings.Fields(b.out.String()); len(sum) == 0 || !strings.Contains(a.out.String(), sum[0]) {
		t.Errorf("%q is not the sum %v", a.out.String(), sum)
	}
}

// TestTenViewers has ten viewers of one terminal of which one reads nothing. It stalls only itself.
func TestTenViewers(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"sh", "-c", "stty -echo; read go; head -c 8000000 /dev/zero | tr '\\0' x; echo; echo over; cat"}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stalled := raw(ctx, t, s, "/sandbox/"+sb.ID+"/terminal?run="+a.Run(), nil)
	seats := []*seat{a}
	for range 8 {
		seats = append(seats, sit(t, s.Client, sb.ID, client.TerminalOptions{Run: a.Run()}))
	}
	a.types("go\r")
	for _, v := range seats {
		v.shows("over\r\n")
		if v.out.Len() < 8_000_000 {
			t.Errorf("a viewer saw %d bytes", v.out.Len())
		}
	}
	// Now it reads on, and has missed nothing.
	n := 0
	for n < 8_000_000 {
		kind, b, err := stalled.Read(ctx)
		if err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if kind == websocket.MessageBinary {
			n += len(b)
		}
	}
}

// raw opens a WebSocket and takes the first frame.
func raw(ctx context.Context, t *testing.T, s *servertest.Server, path string, h http.Header) *websocket.Conn {
	t.Helper()
	if h == nil {
		h = http.Header{"Authorization": {"Bearer " + s.Key}}
	}
	conn, res, err := websocket.Dial(ctx, s.URL+path, &websocket.DialOptions{HTTPClient: s.HTTP, HTTPHeader: h})
	if err != nil {
		t.Fatalf("%v, %v", err, res)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	conn.SetReadLimit(-1)
	if f := frame(ctx, t, conn); f.Type != "start" {
		t.Fatalf("the first frame is %+v", f)
	}
	return conn
}

// frame reads up to the next JSON frame.
func frame(ctx context.Context, t *testing.T, conn *websocket.Conn) api.TerminalFrame {
	t.Helper()
	for {
		kind, b, err := conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if kind == websocket.MessageText {
			var f api.TerminalFrame
			if err := json.Unmarshal(b, &f); err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
}

// TestWindow sends no more than was acknowledged and a window.
func TestWindow(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn := raw(ctx, t, s, "/sandbox/"+sb.ID+"/terminal?window=65536&tty=false&argv=head&argv=-c&argv=1000000&argv=/dev/zero", nil)
	var got, acked int64
	for got < 1_000_000 {
		kind, b, err := conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if kind != websocket.MessageBinary {
			continue
		}
		got += int64(len(b))
		if got-acked > 64<<10+64<<10 { // what is on its way when the window closes is one frame
			t.Fatalf("%d bytes came beyond what was acknowledged", got-acked)
		}
		if got-acked >= 64<<10 {
			// A ping is answered though the window is closed: nothing else is sent before that.
			text(ctx, t, conn, `{"type":"ping"}`)
			if f := frame(ctx, t, conn); f.Type != "pong" {
				t.Fatalf("%+v", f)
			}
			acked = got
			text(ctx, t, conn, fmt.Sprintf(`{"type":"ack","offset":%d}`, acked))
		}
	}
	if f := frame(ctx, t, conn); code(f) != "exited 0" {
		t.Errorf("%+v", f)
	}
	if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("closed with %v", err)
	}
}

func text(ctx context.Context, t *testing.T, conn *websocket.Conn, s string) {
	t.Helper()
	if err := conn.Write(ctx, websocket.MessageText, []byte(s)); err != nil {
		t.Fatal(err)
	}
}

func TestGarbageFrames(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	a := sit(t, s.Client, sb.ID, client.TerminalOptions{Argv: []string{"cat"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	path := "/sandbox/" + sb.ID + "/terminal?run=" + a.Run()
	for send, want := range map[string]websocket.StatusCode{
		"no JSON":                      websocket.StatusPolicyViolation,
		`{"type":7}`:                   websocket.StatusPolicyViolation,
		`["resize"]`:                   websocket.StatusPolicyViolation,
		"\xff\xfe":                     websocket.StatusPolicyViolation,
		`{"type":"ack","offset":1e99}`: websocket.StatusPolicyViolation,
		`{"type":"` + strings.Repeat("x", 70<<10) + `"}`: websocket.StatusMessageTooBig,
	} {
		conn := raw(ctx, t, s, path, nil)
		text(ctx, t, conn, send)
		for {
			if _, _, err := conn.Read(ctx); err != nil {
				if got := websocket.CloseStatus(err); got != want {
					t.Errorf("%.20q: closed with %v, %v", send, got, err)
				}
				break
			}
		}
	}
	conn := raw(ctx, t, s, path, nil)
	for send, want := range map[string]string{
		`{"type":"dance"}`:                    "unknown_frame",
		`{}`:                                  "unknown_frame",
		`null`:                                "unknown_frame",
		`{"type":"resize","cols":0,"rows":5}`: "bad_size",
		`{"type":"resize","cols":70000,"rows":5}`:  "bad_size",
		`{"type":"signal","signal":"SIGNONSENSE"}`: "not_the_writer",
	} {
		text(ctx, t, conn, send)
		if f := frame(ctx, t, conn); f.Type != "error" || f.Problem == nil || f.Problem.Code != want {
			t.Errorf("%s: %+v", send, f)
		}
	}
	// Bytes that are no WebSocket at all.
	c, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n%s", path, s.Key, bytes.Repeat([]byte{0xff, 0x7f, 0, 3}, 500))
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the server didn't hang up: %v", err)
	}
	a.types("still here\r")
	a.shows("still here\r\nstill here\r\n")
}

// TestTerminalRefusals are problems, told before there is a WebSocket, and nothing is started.
func TestTerminalRefusals(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	claude := ""
	for e, err := range s.Prompt(t.Context(), sb.ID, api.Prompt{Prompt: "Hi"}) {
		if err != nil {
			t.Fatal(err)
		}
		var start api.SessionStart
		if e.Name == "session" && json.Unmarshal([]byte(e.Data), &start) == nil {
			claude = start.Run
		}
	}
	jar := signedIn(t, s)
	upgrade := http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}}
	key := http.Header{"X-Api-Key": {s.Key}}
	cookie := func(origin string) http.Header {
		h := http.Header{"Cookie": {jar}}
		if origin != "" {
			h.Set("Origin", origin)
		}
		return h
	}
	for name, c := range map[string]struct {
		query  string
		h      []http.Header
		status int
		code   string
	}{
		"nobody":                    {"", []http.Header{upgrade}, 401, "unauthenticated"},
		"no upgrade":                {"", []http.Header{key}, 426, "upgrade_required"},
		"no key of the handshake":   {"", []http.Header{key, {"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}}}, 400, "bad_websocket"},
		"a page of another origin":  {"", []http.Header{upgrade, cookie("http://evil.test")}, 403, "cross_origin"},
		"a preview":                 {"", []http.Header{upgrade, cookie("http://3000-" + strings.ToLower(strings.ReplaceAll(sb.ID, "_", "-")) + "." + servertest.PreviewHost)}, 403, "cross_origin"},
		"another port":              {"", []http.Header{upgrade, cookie("http://127.0.0.1:1")}, 403, "cross_origin"},
		"no origin":                 {"", []http.Header{upgrade, cookie("")}, 403, "cross_origin"},
		"origin null":               {"", []http.Header{upgrade, cookie("null")}, 403, "cross_origin"},
		"no such program":           {"?argv=no-such-program", []http.Header{upgrade, key}, 400, "no_such_program"},
		"no such user":              {"?user=no-such-user", []http.Header{upgrade, key}, 400, "no_such_user"},
		"no such directory":         {"?dir=/no/such/dir", []http.Header{upgrade, key}, 400, "bad_dir"},
		"bad variable":              {"?env=X", []http.Header{upgrade, key}, 400, "invalid_request"},
		"unknown parameter":         {"?colour=red", []http.Header{upgrade, key}, 400, "invalid_request"},
		"too wide":                  {"?cols=2001", []http.Header{upgrade, key}, 400, "invalid_request"},
		"after without a run":       {"?after=5", []http.Header{upgrade, key}, 400, "invalid_request"},
		"watching what isn't there": {"?readonly=true", []http.Header{upgrade, key}, 400, "invalid_request"},
		"no such run":               {"?run=run_nope", []http.Header{upgrade, key}, 404, "run_not_found"},
		"no terminal":               {"?run=" + claude, []http.Header{upgrade, key}, 409, "not_a_terminal"},
		"run and argv":              {"?run=" + claude + "&argv=sh", []http.Header{upgrade, key}, 400, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/sandbox/"+sb.ID+"/terminal"+c.query, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range c.h {
				for name, v := range h {
					req.Header[name] = v
				}
			}
			res, err := s.HTTP.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var p api.Problem
			if err := json.NewDecoder(res.Body).Decode(&p); err != nil || res.StatusCode != c.status || p.Code != c.code || p.Detail == "" {
				t.Errorf("%d %+v, %v; want %d %s", res.StatusCode, p, err, c.status, c.code)
			}
		})
	}
	conn := raw(t.Context(), t, s, "/sandbox/"+sb.ID+"/terminal?argv=cat", cookie(s.URL))
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("with a cookie and our own origin: %v", err)
	}
	runs, err := s.Runs(t.Context(), sb.ID)
	if err != nil || len(runs.Runs) != 5 { // Claude's, the last, and three that the guest refused
		t.Errorf("%+v, %v", runs, err)
	}
	if _, err := s.Terminate(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Terminal(t.Context(), sb.ID, client.TerminalOptions{}); client.Code(err) != "sandbox_not_running" {
		t.Errorf("after the end: %v", err)
	}
}

// signedIn returns the cookie of somebody who has signed in.
func signedIn(t *testing.T, s *servertest.Server) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/signin", strings.NewReader(`{"key":"`+s.Key+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := s.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if len(res.Cookies()) == 0 {
		t.Fatal("no cookie")
	}
	return res.Cookies()[0].Name + "=" + res.Cookies()[0].Value
}

// TestShutdownTellsTerminals closes with 1001, so that clients know to come back.
func TestShutdownTellsTerminals(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	conn := raw(t.Context(), t, s, "/sandbox/"+sb.ID+"/terminal?argv=cat", nil)
	stopped := make(chan struct{})
	go func() { s.Stop(); close(stopped) }()
	for {
		if _, _, err := conn.Read(t.Context()); err != nil {
			if got := websocket.CloseStatus(err); got != websocket.StatusGoingAway {
				t.Errorf("closed with %v", err)
			}
			break
		}
	}
	<-stopped
}

// TestVanishedViewer stops to answer without a word. The server finds out, and somebody else writes.
func TestVanishedViewer(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{Change: func(c *server.Config) { c.Heartbeat, c.WriteTimeout = 20*time.Millisecond, 300*time.Millisecond }})
	sb := create(t, s)
	a := raw(t.Context(), t, s, "/sandbox/"+sb.ID+"/terminal?argv=cat", nil) // nobody reads it any more, so no ping is answered
	runs, err := s.Runs(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	b := sit(t, s.Client, sb.ID, client.TerminalOptions{Run: runs.Runs[0].ID})
	b.until("that it writes", func() bool { return b.writer })
	b.types("mine\r")
	b.shows("mine\r\nmine\r\n")
	if _, _, err := a.Read(t.Context()); err == nil {
		t.Log("what was sent before was still there")
	}
}
