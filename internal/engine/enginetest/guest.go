package enginetest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
)

// guesting are the promises that the byte stream of Dial leads to a guest that does its work.
var guesting = []promise{
	{"GuestHandshake", guestHandshake},
	{"GuestReachesGateway", guestReachesGateway},
	{"GuestJournalSurvivesReconnect", guestJournalSurvivesReconnect},
	{"GuestJournalIsOnTheHost", guestJournalIsOnTheHost},
}

// guestHandshake runs many small checks in one sandbox.
func guestHandshake(t *testing.T, s suite) {
	b := s.create(t, nil)
	c := b.dial(t, nil)
	for _, check := range []struct {
		name string
		test func(*testing.T, *guest.Client)
	}{
		{"Info", info},
		{"Exec", exec},
		{"EnvAndDir", envAndDir},
		{"NoSuchProgram", noSuchProgram},
		{"StartIsIdempotent", startIsIdempotent},
		{"Stdin", stdin},
		{"Signal", signal},
		{"Timeout", timeout},
		{"RawPTYIsByteExact", rawPTYIsByteExact},
		{"PTYResize", ptyResize},
		{"LargeOutput", largeOutput},
		{"BinaryClean", binaryClean},
		{"Concurrent50", concurrent50},
		{"Files", files},
	} {
		t.Run(check.name, func(t *testing.T) { check.test(t, c) })
	}
}

// guestJournalIsOnTheHost reads on the host what runs have written, while the guest is there and when it is gone.
func guestJournalIsOnTheHost(t *testing.T, s suite) {
	p, ok := engine.As[engine.Journals](s.e)
	if !ok {
		t.Skip("this engine's guests keep their state elsewhere")
	}
	b := s.create(t, nil)
	r := sh(t, b.dial(t, nil), "echo out; echo err >&2")
	dir, err := p.GuestState(b.ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, killed := range []bool{false, true} {
		if killed {
			if s.h.Kill == nil {
				break
			}
			s.h.Kill(t, b.ref)
			eventually(t, "the phase becomes gone", func() bool { return s.phase(t, b.ref) == engine.PhaseGone })
		}
		tail, err := guest.OpenTail(dir, r.run.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := map[guest.Kind]string{}
		for f, err := tail.Next(); err == nil; f, err = tail.Next() {
			got[f.Kind] += string(f.Data)
		}
		tail.Close()
		if got[guest.Stdout] != "out\n" || got[guest.Stderr] != "err\n" || len(got) != 2 {
			t.Errorf("killed %v: it is %q", killed, got)
		}
	}
	if _, err := p.GuestState(engine.Ref{ID: "../x", Run: "1"}); err == nil {
		t.Error("there is a state of what is no sandbox")
	}
}

func info(t *testing.T, c *guest.Client) {
	i, err := c.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if !i.Ready || i.Workdir == "" || i.StartedAt.IsZero() || i.Deadline.Before(time.Now()) {
		t.Errorf("it says %+v", i)
	}
}

func exec(t *testing.T, c *guest.Client) {
	r := sh(t, c, "echo out; echo err >&2; exit 41")
	if !r.exited(41) || string(r.stdout) != "out\n" || string(r.stderr) != "err\n" {
		t.Errorf("%v", r)
	}
	if r.run.EndedAt.Before(r.run.StartedAt) || r.run.PID == 0 {
		t.Errorf("%+v", r.run)
	}
	waited, err := c.Wait(within(t), r.run.ID)
	if err != nil || waited.State != guest.StateExited || waited.Code == nil || *waited.Code != 41 {
		t.Errorf("wait says %+v, %v", waited, err)
	}
}

func envAndDir(t *testing.T, c *guest.Client) {
	r := run(t, c, guest.Command{Argv: []string{"sh", "-c", `pwd; echo "$ONE|$LC_ALL"`}, Dir: "/usr", Env: map[string]string{"ONE": "a 'b'\n$c"}})
	if want := "/usr\na 'b'\n$c|C\n"; string(r.stdout) != want {
		t.Errorf("%v, want %q", r, want)
	}
}

func noSuchProgram(t *testing.T, c *guest.Client) {
	_, err := c.Start(within(t), named(guest.Command{Argv: []string{"/no/such/program"}}))
	var refused *guest.Error
	if !errors.As(err, &refused) || refused.Code != "no_such_program" || refused.Status != http.StatusBadRequest {
		t.Errorf("the error is %v", err)
	}
}

func startIsIdempotent(t *testing.T, c *guest.Client) {
	cmd := named(guest.Command{Argv: []string{"sh", "-c", "echo once"}})
	first, err := c.Start(within(t), cmd)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Start(within(t), cmd)
	if err != nil || again.PID != first.PID {
		t.Errorf("first %+v, then %+v, %v", first, again, err)
	}
	if r := follow(t, c, cmd.ID, 0); string(r.stdout) != "once\n" {
		t.Errorf("%v", r)
	}
}

func stdin(t *testing.T, c *guest.Client) {
	if r := run(t, c, guest.Command{Argv: []string{"cat"}, Stdin: []byte("given at once")}); string(r.stdout) != "given at once" {
		t.Errorf("%v", r)
	}
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	started, err := c.Start(within(t), named(guest.Command{Argv: []string{"sha256sum"}, Stdin: data[:10], Open: true}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteStdin(within(t), started.ID, bytes.NewReader(data[10:]), true); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if r := follow(t, c, started.ID, 0); !strings.HasPrefix(string(r.stdout), hex.EncodeToString(sum[:])) {
		t.Errorf("%v", r)
	}
}

func signal(t *testing.T, c *guest.Client) {
	started, err := c.Start(within(t), named(guest.Command{Argv: []string{"sleep", "600"}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(within(t), started.ID, "SIGTERM"); err != nil {
		t.Fatal(err)
	}
	if r := follow(t, c, started.ID, 0); r.run.State != guest.StateSignaled || r.run.Signal != "SIGTERM" || r.run.Code != nil {
		t.Errorf("%v", r)
	}
}

func timeout(t *testing.T, c *guest.Client) {
	r := run(t, c, guest.Command{Argv: []string{"sh", "-c", "sleep 600 & sleep 600"}, Timeout: 200 * time.Millisecond})
	if r.run.State != guest.StateTimeout {
		t.Errorf("%v", r)
	}
}

func rawPTYIsByteExact(t *testing.T, c *guest.Client) {
	script := `test -t 1 || echo no terminal; test -t 0 && echo stdin too; cat; printf 'end\n' >&2`
	data := "line\nCRLF\r\n\ttab \x00\x01\x03\x04\x11\x13\x1a\x1b\x7f\xff no newline"
	r := run(t, c, guest.Command{Argv: []string{"sh", "-c", script}, Stdio: guest.StdioPTYStdout, Stdin: []byte(data)})
	if string(r.stdout) != data || string(r.stderr) != "end\n" {
		t.Errorf("%v, want %q", r, data)
	}
}

func ptyResize(t *testing.T, c *guest.Client) {
	started, err := c.Start(within(t), named(guest.Command{
		Argv: []string{"sh", "-c", "stty size; read line; stty size"}, Stdio: guest.StdioPTY, Size: guest.Size{Rows: 24, Cols: 80}, Open: true,
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Resize(within(t), started.ID, guest.Size{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteStdin(within(t), started.ID, newReader("go on\n"), false); err != nil {
		t.Fatal(err)
	}
	r := follow(t, c, started.ID, 0)
	if !strings.HasSuffix(strings.ReplaceAll(string(r.stdout), "\r", ""), "\n50 132\n") {
		t.Errorf("%v", r)
	}
}

func largeOutput(t *testing.T, c *guest.Client) {
	r := sh(t, c, "head -c 10485760 /dev/urandom > large && cat large && sha256sum large >&2 && rm large")
	sum := sha256.Sum256(r.stdout)
	if len(r.stdout) != 10<<20 || !strings.HasPrefix(string(r.stderr), hex.EncodeToString(sum[:])) {
		t.Errorf("%d bytes with hash %x; %s", len(r.stdout), sum, r.stderr)
	}
}

func binaryClean(t *testing.T, c *guest.Client) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	if r := run(t, c, guest.Command{Argv: []string{"cat"}, Stdin: all}); !bytes.Equal(r.stdout, all) {
		t.Errorf("%v", r)
	}
}

func concurrent50(t *testing.T, c *guest.Client) {
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			started, err := c.Start(within(t), named(guest.Command{Argv: []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)}}))
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			r, err := c.Wait(within(t), started.ID)
			if err != nil || r.Code == nil || *r.Code != i || r.Next != int64(len(fmt.Sprintln(i))) {
				t.Errorf("run %d: %+v, %v", i, r, err)
			}
		})
	}
	wg.Wait()
}

func files(t *testing.T, c *guest.Client) {
	i, err := c.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	path := i.Workdir + "/made/on the way/ü.bin"
	data := "bytes\x00\xff"
	if _, err := c.WriteFile(within(t), path, newReader(data), 0o640); err != nil {
		t.Fatal(err)
	}
	if got := output(t, c, "cat 'made/on the way/ü.bin'"); got != data {
		t.Errorf("a process reads %q", got)
	}
	r, f, err := c.ReadFile(within(t), path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || string(got) != data || f.Size != int64(len(data)) || f.Mode&0o777 != 0o640 {
		t.Errorf("read %q, %+v, %v", got, f, err)
	}
	if all, err := c.ReadDir(within(t), i.Workdir+"/made"); err != nil || len(all) != 1 || all[0].Name != "on the way" || all[0].Type != "directory" {
		t.Errorf("the directory is %+v, %v", all, err)
	}
	if err := c.Remove(within(t), path); err != nil {
		t.Fatal(err)
	}
	var refused *guest.Error
	if _, err := c.Stat(within(t), path); !errors.As(err, &refused) || refused.Status != http.StatusNotFound {
		t.Errorf("after its removal: %v", err)
	}
}

// httpGet is a shell script that asks the gateway at addr for path.
func httpGet(addr, path string) string {
	return connect(addr, fmt.Sprintf(`printf "GET %s HTTP/1.0\r\nHost: gateway\r\n\r\n"`, path))
}

// connect is a shell script that sends what say writes to a TCP address and writes what comes back, with nothing but bash or nc. It fails if
// nobody is there.
func connect(addr, say string) string {
	host, port, _ := strings.Cut(addr, ":")
	return fmt.Sprintf(`if command -v bash >/dev/null; then bash -c 'exec 3<>/dev/tcp/%s/%s && %s >&3 && cat <&3'; else %[3]s | nc %[1]s %[2]s; fi`, host, port, say)
}

func guestReachesGateway(t *testing.T, s suite) {
	b, other := s.create(t, nil), s.create(t, nil)
	say := func(word string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, word, " ", r.URL.Path) })
	}
	c, otherC := b.dial(t, say("one")), other.dial(t, say("other"))
	for range 2 {
		if got := output(t, c, httpGet(s.h.Gateway(b.ref), "/v1/x")); !strings.HasSuffix(got, "\r\n\r\none /v1/x") {
			t.Errorf("the answer is %q", got)
		}
	}
	if got := output(t, otherC, httpGet(s.h.Gateway(other.ref), "/y")); !strings.HasSuffix(got, "\r\n\r\nother /y") {
		t.Errorf("the answer in the other sandbox is %q", got)
	}
	// A new connection takes over, as after a restart of the server.
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	c = b.dialOnly(t, say("new"))
	if got := output(t, c, httpGet(s.h.Gateway(b.ref), "/z")); !strings.HasSuffix(got, "\r\n\r\nnew /z") {
		t.Errorf("over the new connection the answer is %q", got)
	}
}

func guestJournalSurvivesReconnect(t *testing.T, s suite) {
	b := s.create(t, nil)
	c := b.dial(t, nil)
	const lines = 200
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); [ $i = 100 ] && read go; done; exit 5", lines)
	started, err := c.Start(within(t), named(guest.Command{Argv: []string{"sh", "-c", script}, Open: true}))
	if err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	for f, err := range c.Output(within(t), started.ID, 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(f.Data)
		if seen.Len() >= 100 { // in the middle, wherever that is
			break
		}
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	c = b.dialOnly(t, nil)
	if err := c.WriteStdin(within(t), started.ID, newReader("go\n"), false); err != nil {
		t.Fatal(err)
	}
	rest := follow(t, c, started.ID, int64(seen.Len()))
	var want strings.Builder
	for i := range lines {
		fmt.Fprintln(&want, "line", i)
	}
	if got := seen.String() + string(rest.stdout); got != want.String() || !rest.exited(5) {
		t.Errorf("put together: %q; %v", got, rest)
	}
}
