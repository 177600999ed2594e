package claude

import (
	"context"
	"encoding/json"
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
}

// Store is what sessions ask of the records.
type Store interface {
	InsertSession(ctx context.Context, ses sandbox.Session) error
	Session(ctx context.Context, account, id string) (sandbox.Session, error)
	Sessions(ctx context.Context, account string, limit int) ([]sandbox.Session, error)
	BeginTurn(ctx context.Context, ses sandbox.Session, run sandbox.Run, ev sandbox.SessionEvent) error
	AppendSessionEvents(ctx context.Context, session string, evs []sandbox.SessionEvent, run string, mirrored int64) error
	SessionEvents(ctx context.Context, session string, after int64, limit int) ([]sandbox.SessionEvent, error)
	Run(ctx context.Context, account, id string) (sandbox.Run, error)
	UnfinishedTurns(ctx context.Context) ([]sandbox.Run, error)
}

// Config is what sessions are made of. Runner and Store are required.
type Config struct {
	Runner Runner
	Store  Store
	Log    *slog.Logger // nil = none

	// Files opens the files of a sandbox; nil = by the Runner's Guest.
	Files func(ctx context.Context, account string, id sandbox.ID) (Files, error)
}

// Sessions holds conversations with Claude. A turn is a run of the CLI; a follower takes its output over from the guest's journal
// into the store, line by line, and goes on after a restart where it stopped. Readers get what is in the store, and in between what
// is too short-lived to be stored. It is safe for concurrent use.
type Sessions struct {
	runner Runner
	store  Store
	log    *slog.Logger
	files  func(ctx context.Context, account string, id sandbox.ID) (Files, error)
	hubs   hubs

	work  chan func(context.Context) // for Serve, which owns every goroutine
	ready chan struct{}              // closed when the turns of the last process have been taken up
	done  chan struct{}              // closed when Serve takes no more work
}

// NewSessions returns sessions that do nothing until Serve runs.
func NewSessions(cfg Config) *Sessions {
	s := &Sessions{
		runner: cfg.Runner, store: cfg.Store, log: cfg.Log, files: cfg.Files, hubs: hubs{open: map[string]*hub{}},
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

// Serve takes up the turns that were not finished when the last process ended, and then follows those that are begun, until ctx
// is done. It returns when all its goroutines have ended; the turns themselves go on. It may be called once.
func (s *Sessions) Serve(ctx context.Context) error {
	defer close(s.done)
	var followers sync.WaitGroup
	defer followers.Wait()
	runs, err := s.store.UnfinishedTurns(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("claude: take up the turns of the last process: %w", err)
	}
	for _, run := range runs {
		h := s.hubs.attach(run.Session)
		h.begin(run.ID, 0)
		followers.Go(func() { s.follow(ctx, h, run, true) })
	}
	close(s.ready)
	for {
		select {
		case f := <-s.work:
			followers.Go(func() { f(ctx) })
		case <-ctx.Done():
			return nil
		}
	}
}

// background gives f to Serve. After Serve has ended f doesn't run; whatever it was for is taken up by the next process.
func (s *Sessions) background(f func(context.Context)) bool {
	select {
	case s.work <- f:
		return true
	case <-s.done:
		return false
	}
}

// waitReady waits until it is known which sessions are busy.
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

// Listed is a session in a list.
type Listed struct {
	sandbox.Session
	Busy bool // whether a turn is running
}

// maxSessions is how many sessions a list holds.
const maxSessions = 200

// Sessions lists the account's sessions, the one last used first.
func (s *Sessions) Sessions(ctx context.Context, account string) ([]Listed, error) {
	all, err := s.store.Sessions(ctx, account, maxSessions)
	if err != nil {
		return nil, err
	}
	var list []Listed
	for _, ses := range all {
		if ses.Turns > 0 { // the others were never told to anybody: their first turn could not begin
			list = append(list, Listed{Session: ses, Busy: s.hubs.busy(ses.ID)})
		}
	}
	return list, nil
}

// Session returns one session of account, and whether a turn is running.
func (s *Sessions) Session(ctx context.Context, account, id string) (ses sandbox.Session, busy bool, err error) {
	ses, err = s.store.Session(ctx, account, id)
	return ses, err == nil && s.hubs.busy(id), err
}

// Grace periods of Interrupt.
const (
	graceInterrupt = 5 * time.Second // from SIGINT to SIGTERM
	graceTerminate = 5 * time.Second // from SIGTERM to SIGKILL
)

// Interrupt stops the turn that is running: the CLI is asked to, and if it doesn't, it is made to. It returns when the first signal
// was sent; the turn's end event tells the rest.
func (s *Sessions) Interrupt(ctx context.Context, account, session string) error {
	if err := s.waitReady(ctx); err != nil {
		return err
	}
	ses, err := s.store.Session(ctx, account, session)
	if err != nil {
		return err
	}
	h := s.hubs.attach(ses.ID)
	defer s.hubs.release(h)
	run, idle, busy := h.running()
	if !busy {
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "session_idle", Detail: "No turn of this session is running."}
	}
	if err := s.runner.Signal(ctx, account, run, "SIGINT"); err != nil {
		if r, rerr := s.store.Run(ctx, account, run); rerr == nil && r.State != sandbox.RunRunning {
			return nil // it ended just now
		}
		return err
	}
	if h.interrupt(run) {
		s.background(func(ctx context.Context) { s.insist(ctx, account, run, idle) })
	}
	return nil
}

// insist makes a run end that was asked to.
func (s *Sessions) insist(ctx context.Context, account, run string, ended <-chan struct{}) {
	for _, step := range []struct {
		grace  time.Duration
		signal string
	}{{graceInterrupt, "SIGTERM"}, {graceTerminate, "SIGKILL"}} {
		timer := time.NewTimer(step.grace)
		select {
		case <-timer.C:
		case <-ended:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if err := s.runner.Signal(ctx, account, run, step.signal); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "could not stop a turn", "run", run, "signal", step.signal, "err", err)
		}
	}
}

// endData is the data of an end event.
type endData struct {
	Type     string           `json:"type"` // "end"
	Run      string           `json:"run"`
	State    sandbox.RunState `json:"state"`
	ExitCode *int             `json:"exit_code"`
	Signal   string           `json:"signal,omitempty"`
	Reason   string           `json:"reason,omitempty"`
}

// promptData is the data of a prompt event.
type promptData struct {
	Type string `json:"type"` // "prompt"
	Text string `json:"text"`
	Run  string `json:"run"`
}

// encode is for values of ours that always encode.
func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // a bug: these types hold nothing that can't be encoded
	}
	return data
}

// isGone reports whether err says that there is nothing more to be had, ever.
func isGone(err error) bool {
	return errors.Is(err, sandbox.ErrGone) || errors.Is(err, sandbox.ErrNotFound) || isNotThere(err)
}
