package claude

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Runner is what sessions ask of the manager of sandboxes.
type Runner interface {
	Sandbox(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error)
	Guest(ctx context.Context, account string, id sandbox.ID) (*guest.Client, error)
	StartRun(ctx context.Context, run sandbox.Run, cmd guest.Command, insert func(context.Context, sandbox.Run) error) (sandbox.Run, error)
	Output(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error]
	WaitRun(ctx context.Context, account, id string) (sandbox.Run, error)
	Signal(ctx context.Context, account, run, signal string) error

	// WriteStdin writes data to a run's input, of which at bytes came before; what was written there already is not written again.
	WriteStdin(ctx context.Context, run sandbox.Run, at int64, b []byte, closeAfter bool) (taken int64, err error)
	// CPUTime is how much of the processor a run's processes have used.
	CPUTime(ctx context.Context, account, run string) (time.Duration, error)
}

// Store is what sessions ask of the records.
type Store interface {
	Session(ctx context.Context, account, id string) (sandbox.Session, error)
	Sessions(ctx context.Context, account string, limit int) ([]sandbox.Session, error)
	BusySessions(ctx context.Context) ([]string, error)
	WriteSession(ctx context.Context, w sandbox.SessionWrite) error
	SessionEvents(ctx context.Context, session string, after int64, limit int) ([]sandbox.SessionEvent, error)
	OpenTurns(ctx context.Context, session string) ([]sandbox.Turn, error)
	Turn(ctx context.Context, session, id string) (sandbox.Turn, error)
	Asks(ctx context.Context, session string, pendingOnly bool, limit int) ([]sandbox.Ask, error)
	Ask(ctx context.Context, session, id string) (sandbox.Ask, error)
	Process(ctx context.Context, session string) (sandbox.Process, error)
	Inputs(ctx context.Context, run string) ([]sandbox.Input, error)
	InputWritten(ctx context.Context, in sandbox.Input) error
	Run(ctx context.Context, account, id string) (sandbox.Run, error)
}

// Config is what sessions are made of. Runner and Store are required.
type Config struct {
	Runner Runner
	Store  Store
	Log    *slog.Logger // nil = none

	Idle          time.Duration // for which the CLI's process is kept without a turn; default: 10 min
	PromptTimeout time.Duration // after which what Claude asks is denied; default: 30 min
	Quiet         time.Duration // after which it is told that Claude says nothing; default: 1 min

	// Files opens the files of a sandbox; nil = by the Runner's Guest.
	Files func(ctx context.Context, account string, id sandbox.ID) (Files, error)
}

// Sessions holds conversations with Claude. A process of the CLI serves a session turn by turn; a follower takes its output over from the
// guest's journal into the store, line by line, and goes on after a restart where it stopped. What is written to the process is
// recorded first, and repeated after a restart. Readers get what is in the store, and in between what is too short-lived to
// be stored. It is safe for concurrent use.
type Sessions struct {
	runner Runner
	store  Store
	log    *slog.Logger
	files  func(ctx context.Context, account string, id sandbox.ID) (Files, error)
	hubs   hubs

	idle, promptTimeout, quiet time.Duration

	mu    sync.Mutex
	convs map[string]*conv // guarded by mu

	work  chan func(context.Context) // for Serve, which owns every goroutine
	ready chan struct{}              // closed when the sessions of the last server have been taken up
	done  chan struct{}              // closed when Serve takes no more work
}

// NewSessions returns sessions that do nothing until Serve runs.
func NewSessions(cfg Config) *Sessions {
	s := &Sessions{
		runner: cfg.Runner, store: cfg.Store, log: cfg.Log, files: cfg.Files, hubs: hubs{open: map[string]*hub{}}, convs: map[string]*conv{},
		idle: cmp.Or(cfg.Idle, 10*time.Minute), promptTimeout: cmp.Or(cfg.PromptTimeout, 30*time.Minute), quiet: cmp.Or(cfg.Quiet, time.Minute),
		work: make(chan func(context.Context)), ready: make(chan struct{}), done: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.files == nil {
		s.files = func(ctx context.Context, account string, id sandbox.ID) (Files, error) {
			c, err := s.runner.Guest(ctx, account, id)
			if err != nil {
				return nil, err
			}
			return c, nil
		}
	}
	return s
}

// Serve takes up the sessions whose processes or turns the last server left, and then drives them and those that are begun, until ctx is
// done. It returns when all its goroutines have ended; the processes themselves go on. It may be called once.
func (s *Sessions) Serve(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(s.done)
	busy, err := s.store.BusySessions(ctx)
	for _, id := range busy {
		if err == nil {
			err = s.takeUp(ctx, id, &workers)
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("claude: take up the sessions of the last server: %w", err)
	}
	close(s.ready)
	for {
		select {
		case f := <-s.work:
			workers.Go(func() { f(ctx) })
		case <-ctx.Done():
			return nil
		}
	}
}

// takeUp goes on with a session where the last server stopped.
func (s *Sessions) takeUp(ctx context.Context, id string, workers *sync.WaitGroup) error {
	c, err := s.conv(ctx, id)
	if err != nil {
		return err
	}
	c.driving = true
	if p := c.proc; p != nil {
		workers.Go(func() { c.follow(ctx, p) })
	}
	workers.Go(func() { c.drive(ctx) }) // which gives c back
	return nil
}

// later gives f to Serve. After Serve has ended f doesn't run; whatever it was for is taken up by the next server.
func (s *Sessions) later(f func(context.Context)) bool {
	select {
	case s.work <- f:
		return true
	case <-s.done:
		return false
	}
}

// waitReady waits until the sessions of the last server have been taken up.
func (s *Sessions) waitReady(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.done:
		return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "shutting_down", Detail: "The server is shutting down; try again."}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isGone reports whether err says that there is nothing more to be had, ever.
func isGone(err error) bool {
	return errors.Is(err, sandbox.ErrGone) || errors.Is(err, sandbox.ErrNotFound) || isNotThere(err)
}
