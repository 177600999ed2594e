// Package server is Sandlot's HTTP side: routes, sign-in, errors as problem JSON, event streams and the UI's files. A
// handler decodes, makes one call and encodes; what sandboxes, runs and sessions do is decided elsewhere.
package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

// Manager is what the server needs of lifecycle.Manager. Sandbox and Guest take "" for whichever account it is.
type Manager interface {
	Create(ctx context.Context, req lifecycle.Request) (sandbox.Sandbox, error)
	WaitReady(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error)
	Sandbox(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error)
	Sandboxes(ctx context.Context, f sandbox.Filter) (all []sandbox.Sandbox, next string, err error)
	Terminate(ctx context.Context, account string, id sandbox.ID, reason string) (sandbox.Sandbox, error)
	Update(ctx context.Context, account string, id sandbox.ID, c lifecycle.Change) (sandbox.Sandbox, error)
	Suspend(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error)
	Resume(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error)
	Guest(ctx context.Context, account string, id sandbox.ID) (*guest.Client, error)
	Images
	Terminals

	StartRun(ctx context.Context, run sandbox.Run, cmd guest.Command, insert func(context.Context, sandbox.Run) error) (sandbox.Run, error)
	RunShort(ctx context.Context, run sandbox.Run, cmd guest.Command) (_ sandbox.Run, output []guest.Frame, err error)
	Output(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error]
	Run(ctx context.Context, account, id string) (sandbox.Run, error)
	OutputNow(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error]
	WriteStdin(ctx context.Context, run sandbox.Run, at int64, b []byte, closeAfter bool) (taken int64, err error)
	Runs(ctx context.Context, f sandbox.RunFilter) (all []sandbox.Run, next string, err error)
	WaitRun(ctx context.Context, account, id string) (sandbox.Run, error)
	Signal(ctx context.Context, account, run, signal string) error
}

// Sessions is what the server needs of claude.Sessions.
type Sessions interface {
	Prompt(ctx context.Context, account string, p claude.Prompt) (claude.Turn, error)
	Events(ctx context.Context, account, session string, after int64, follow bool) iter.Seq2[sandbox.SessionEvent, error]
	Session(ctx context.Context, account, id string) (claude.State, error)
	Sessions(ctx context.Context, account string) ([]claude.State, error)
	Update(ctx context.Context, account, session string, ch claude.Change) (claude.State, error)
	Interrupt(ctx context.Context, account, session string) error
	Turn(ctx context.Context, account, session, id string) (sandbox.Turn, error)
	EditTurn(ctx context.Context, account, session, id, text, by string) (sandbox.Turn, error)
	CancelTurn(ctx context.Context, account, session, id, by string) (sandbox.Turn, error)
	Asks(ctx context.Context, account, session string, pendingOnly bool) ([]sandbox.Ask, error)
	Ask(ctx context.Context, account, session, id string) (sandbox.Ask, error)
	Answer(ctx context.Context, account, session, id string, d claude.Decision) (sandbox.Ask, error)
}

// Store is what the server needs of store.Store.
type Store interface {
	SigninStore
	TakeSignin(ctx context.Context, hash []byte, now time.Time) (account string, err error)
	KeyByHash(ctx context.Context, hash []byte) (store.Key, error)
	Account(ctx context.Context, id string) (store.Account, error)
	Events(ctx context.Context, account string, id sandbox.ID, after int64, limit int) ([]sandbox.Event, error)
	Watch(ctx context.Context) <-chan struct{}
	WebSessions() store.WebSessions
}

// Config says what a Server serves. Manager, Sessions, Store and Secrets are required.
type Config struct {
	Manager  Manager
	Sessions Sessions
	Store    Store
	Secrets  Secrets
	UI       fs.FS             // with index.html at its top; nil = a page that says that there is none
	Health   func() api.Health // how the server is; nil = always well
	Version  string            // for the API's description
	Log      *slog.Logger      // nil = none

	// PreviewHost is where previews are, "" = nowhere: NAME:PORT or SCHEME://NAME:PORT, whose subdomains lead to this server. Whatever is
	// below that name is a preview and nothing else. PreviewSecret, of at least 16 bytes, signs their tokens.
	PreviewHost    string
	PreviewSecret  []byte
	PreviewTimeout time.Duration // how long a sandbox may take to begin an answer; default: 2 min

	Heartbeat    time.Duration // silence on a stream after which a comment is sent; default: 15 s
	WriteTimeout time.Duration // how long a peer may take nothing of an answer before it is dropped; default: 30 s
	ReadTimeout  time.Duration // how long a peer may send nothing of a body; default: 60 s
	Grace        time.Duration // how long requests may go on when the server shuts down; default: 10 s
}

// Server is an http.Handler that serves the API and the UI.
type Server struct {
	cfg  Config
	mux  *http.ServeMux
	open map[string]bool // patterns of mux that anybody may ask
	ui   *site
	docs *site
	spec *page // openapi.json
	web  *scs.SessionManager
	csrf *http.CrossOriginProtection

	previews *previews // nil = none

	hub     *hub
	sockets sync.WaitGroup // WebSockets, of which http.Server knows nothing

	stop     chan struct{} // closed when the server shuts down
	stopOnce sync.Once
}

// New returns a server. It starts nothing; Serve does, or any other http.Server.
func New(cfg Config) (*Server, error) {
	if cfg.Manager == nil || cfg.Sessions == nil || cfg.Store == nil || cfg.Secrets == nil {
		return nil, errors.New("server: Manager, Sessions, Store and Secrets are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Health == nil {
		cfg.Health = func() api.Health { return api.Health{Status: healthOK, Version: cfg.Version} }
	}
	for d, def := range map[*time.Duration]time.Duration{
		&cfg.PreviewTimeout: previewHeader, &cfg.Heartbeat: 15 * time.Second, &cfg.WriteTimeout: 30 * time.Second, &cfg.ReadTimeout: time.Minute, &cfg.Grace: 10 * time.Second,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	s := &Server{
		cfg: cfg, mux: http.NewServeMux(), open: map[string]bool{}, web: newSessions(cfg.Store.WebSessions()),
		csrf: http.NewCrossOriginProtection(), stop: make(chan struct{}), hub: newHub(cfg.Manager),
	}
	var err error
	if s.ui, err = loadSite(cfg.UI); err != nil {
		return nil, err
	}
	if cfg.PreviewHost != "" {
		if s.previews, err = newPreviews(s); err != nil {
			return nil, err
		}
	}
	if err := s.routes(); err != nil {
		return nil, err
	}
	return s, nil
}

// Handler returns the server as a handler.
func (s *Server) Handler() http.Handler { return s }

// Stop ends all streams and waits, so that the http.Server around can shut down. Runs and sandboxes go on.
func (s *Server) Stop() { s.stopOnce.Do(func() { close(s.stop) }) }

// Serve answers on ln until ctx ends; then it ends the streams, gives other requests the time that Config.Grace says,
// and returns nil. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	hs := &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // broken peers, mostly
	}
	served := make(chan error, 1)
	go func() { served <- hs.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	s.Stop()
	grace, done := context.WithTimeout(base, s.cfg.Grace)
	defer done()
	if err := hs.Shutdown(grace); err != nil {
		s.cfg.Log.Warn("requests were cut off by the shutdown", "error", err)
		cancel()
		_ = hs.Close() // what is left is cut off
	}
	if s.previews != nil {
		s.previews.wait()
	}
	s.sockets.Wait()
	s.hub.stop()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}
