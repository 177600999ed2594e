package guest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if helperDir != "" {
			_ = os.RemoveAll(helperDir) // a leftover in the temporary directory fails no test
		}
		os.Exit(code)
	}))
}

// newServer starts a guest in this process, with the agent being whoever runs the tests.
func newServer(t *testing.T, change func(*guest.Config)) *guest.Server {
	t.Helper()
	cfg := guest.Config{
		StateDir: t.TempDir(), Workdir: t.TempDir(), AgentUID: os.Getuid(), AgentGID: os.Getgid(),
		Version: "test", Grace: 2 * time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	s, err := guest.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Shutdown(context.Background()) })
	return s
}

// dial connects a host to s.
func dial(t *testing.T, s *guest.Server, gateway http.Handler) *guest.Client {
	t.Helper()
	here, there := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.ServeConn(context.Background(), there) }()
	c, err := guest.NewClient(here, gateway)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Log("served:", err)
		}
	})
	return c
}

// setUp gives processes the environment that tests rely on.
func setUp(t *testing.T, c *guest.Client) *guest.Client {
	t.Helper()
	if err := c.Setup(t.Context(), guest.Setup{Env: map[string]string{"PATH": os.Getenv("PATH"), "LC_ALL": "C"}}); err != nil {
		t.Fatal(err)
	}
	return c
}

// newClient is a guest and one host connected to it.
func newClient(t *testing.T, change func(*guest.Config)) *guest.Client {
	t.Helper()
	return setUp(t, dial(t, newServer(t, change), nil))
}

func newID() string { return "run_" + rand.Text() }

// shell is a command that runs a script.
func shell(script string) guest.Command {
	return guest.Command{ID: newID(), Argv: []string{"sh", "-c", script}}
}

func start(t *testing.T, c *guest.Client, cmd guest.Command) guest.Run {
	t.Helper()
	r, err := c.Start(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// result is all that a run has put out.
type result struct {
	stdout, stderr bytes.Buffer
	gaps           int64 // bytes
	end            guest.Run
}

// follow reads a run's output from offset to its end.
func follow(t *testing.T, c *guest.Client, id string, offset int64) *result {
	t.Helper()
	res := new(result)
	for f, err := range c.Output(t.Context(), id, offset, true) {
		if err != nil {
			t.Fatalf("output: %v", err)
		}
		res.add(t, f)
	}
	return res
}

func (res *result) add(t *testing.T, f guest.Frame) {
	t.Helper()
	switch f.Kind {
	case guest.Stdout:
		res.stdout.Write(f.Data)
	case guest.Stderr:
		res.stderr.Write(f.Data)
	case guest.Gap:
		res.gaps += f.Offset - f.GapBegin()
	case guest.End:
		r, err := f.Run()
		if err != nil {
			t.Fatal(err)
		}
		res.end = r
	}
}

// run starts cmd and reads all of its output.
func run(t *testing.T, c *guest.Client, cmd guest.Command) *result {
	t.Helper()
	return follow(t, c, start(t, c, cmd).ID, 0)
}

func wantExit(t *testing.T, r guest.Run, code int) {
	t.Helper()
	if r.State != guest.StateExited || r.Code == nil || *r.Code != code {
		t.Fatalf("ended as %s, code %v, signal %q; want exited with %d", r.State, r.Code, r.Signal, code)
	}
}
