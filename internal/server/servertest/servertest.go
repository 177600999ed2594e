// Package servertest starts a whole server for tests: the real store, manager, sessions and HTTP side over the fake
// engine. What stands in is the CLI: a shell script, so that a test needs neither npm nor a model.
package servertest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/fake"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/store"
	"github.com/sandlot-dev/sandlot/internal/vault"
)

// EchoCLI stands in for Claude Code: to each prompt it says init, what it was asked, and that it is done. To the prompt "ask" it asks for a
// permission first, and says what it got.
const EchoCLI = `while read -r line; do
	case $line in *'"type":"user"'*) ;; *) continue ;; esac
	prompt=${line#*'"text":"'}
	prompt=${prompt%%'"'*}
	echo '{"type":"system","subtype":"init"}'
	if [ "$prompt" = ask ]; then
		echo '{"type":"control_request","request_id":"r1","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{"command":"ls"},"tool_use_id":"toolu_1"}}'
		while read -r line; do
			case $line in *'"request_id":"r1"'*) break ;; esac
		done
		prompt="ask, and got ${line##*'"behavior":"'}"
		prompt=${prompt%%'"'*}
	fi
	echo "{\"type\":\"assistant\",\"text\":\"You said $prompt\"}"
	echo '{"type":"result","subtype":"success","is_error":false}'
done
`

// PreviewHost is below which a Server's previews are. Nobody resolves it: send it as the Host of requests to Server.URL.
const PreviewHost = "preview.test"

// Config says what is special about a server. The zero Config is a good one.
type Config struct {
	// CLI is the shell script that stands in for Claude Code; default: EchoCLI.
	CLI string
	// Engine hooks into the fake engine.
	Engine fake.Config
	// Change may alter the HTTP side's configuration.
	Change func(*server.Config)
}

// Server is a running server. Its Client shows the first account's key.
type Server struct {
	*client.Client
	URL      string
	Key      string // the client's
	Account  string // the client's
	Store    *store.Store
	World    *fake.World
	Manager  *lifecycle.Manager
	Sessions *claude.Sessions
	Log      *Log
	Stop     func() // shuts down and waits; also done at the test's end
}

// New starts a server, which ends with the test.
func New(t testing.TB, cfg Config) *Server {
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(t.Context(), "sqlite:"+filepath.Join(dir, "test.db"))
	must(t, err)
	t.Cleanup(func() { must(t, st.Close()) })
	s := &Server{Store: st, World: fake.NewWorld(filepath.Join(dir, "world")), Log: &Log{}}
	t.Cleanup(func() { must(t, s.World.Close()) })
	log := slog.New(slog.NewTextHandler(s.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	eng := fake.Open(s.World, cfg.Engine)
	t.Cleanup(func() { must(t, eng.Close()) })

	s.Manager, err = lifecycle.New(lifecycle.Config{
		Store: st, Engines: []engine.Engine{eng}, Log: log, Env: map[string]string{"PATH": os.Getenv("PATH")}, Grace: time.Second,
		RunsDir: filepath.Join(dir, "runs"),
	})
	must(t, err)
	if cfg.CLI == "" {
		cfg.CLI = EchoCLI
	}
	s.Sessions = claude.NewSessions(claude.Config{
		Runner: runner{s.Manager, cfg.CLI}, Store: st, Log: log,
		Files: func(ctx context.Context, account string, id sandbox.ID) (claude.Files, error) {
			g, err := s.Manager.Guest(ctx, account, id)
			return transcripts{g}, err
		},
	})
	s.Account, s.Key = AddAccount(t, st, "first")

	conf := server.Config{Manager: s.Manager, Sessions: s.Sessions, Store: st, Secrets: Secrets(t, st), Log: log, Version: "test", Grace: 5 * time.Second,
		PreviewHost: PreviewHost, PreviewSecret: []byte("of the tests' previews")}
	if cfg.Change != nil {
		cfg.Change(&conf)
	}
	srv, err := server.New(conf)
	must(t, err)
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)

	serving, stop := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, serve := range []func(context.Context) error{
		s.Manager.Serve, s.Sessions.Serve, func(ctx context.Context) error { return srv.Serve(ctx, ln) },
	} {
		parts.Go(func() {
			if err := serve(serving); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
	s.Stop = sync.OnceFunc(func() {
		stop()
		parts.Wait()
	})
	t.Cleanup(s.Stop)
	s.URL = "http://" + ln.Addr().String()
	s.Client = s.As(t, s.Key)
	return s
}

// As returns a client that shows another key.
func (s *Server) As(t testing.TB, key string) *client.Client {
	c := client.New(s.URL, key)
	c.Backoff = time.Millisecond
	t.Cleanup(c.HTTP.CloseIdleConnections)
	return c
}

// AddAccount makes an account with a key.
func AddAccount(t testing.TB, st *store.Store, name string) (account, secret string) {
	t.Helper()
	a, _, err := st.EnsureAccount(t.Context(), name)
	must(t, err)
	secret, key := server.NewKey()
	key.Account, key.Name = a.ID, "test"
	must(t, st.PutKey(t.Context(), key))
	return a.ID, secret
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// runner starts the script where the CLI was meant.
type runner struct {
	*lifecycle.Manager
	script string
}

// StartRun implements claude.Runner.
func (r runner) StartRun(ctx context.Context, run sandbox.Run, cmd guest.Command, insert func(context.Context, sandbox.Run) error) (sandbox.Run, error) {
	if len(cmd.Argv) > 0 && cmd.Argv[0] == claude.Program {
		cmd.Argv = append([]string{"sh", "-c", r.script}, cmd.Argv...)
		cmd.Dir = "" // the fake engine mounts nothing: its workdir is the volume's own directory
	}
	return r.Manager.StartRun(ctx, run, cmd, insert)
}

// transcripts are a sandbox's files in which every session has a transcript, as if the CLI had written one.
type transcripts struct{ *guest.Client }

// ReadDir implements claude.Files.
func (t transcripts) ReadDir(ctx context.Context, name string) ([]guest.File, error) {
	if path.Base(name) == "projects" {
		return []guest.File{{Name: "-workspace", Type: "directory"}}, nil
	}
	return t.Client.ReadDir(ctx, name)
}

// ReadFile implements claude.Files.
func (t transcripts) ReadFile(ctx context.Context, name string) (io.ReadCloser, guest.File, error) {
	if path.Base(path.Dir(name)) == "-workspace" {
		return io.NopCloser(strings.NewReader(`{"type":"user","message":{"role":"user","content":"x"}}` + "\n")), guest.File{}, nil
	}
	return t.Client.ReadFile(ctx, name)
}

// Log is a log that a test can read.
type Log struct {
	mu sync.Mutex
	b  strings.Builder
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was logged.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Secrets opens a vault on st with a key of its own.
func Secrets(t testing.TB, st *store.Store) *vault.Vault {
	t.Helper()
	v, err := vault.Open(st, filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}
