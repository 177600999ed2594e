package claude

import (
	"context"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Activity says what a session does.
type Activity string

// What a session may do.
const (
	Idle    Activity = "idle"
	Working Activity = "working" // a turn runs, or is about to
	Waiting Activity = "waiting" // for a person's decision
)

// State is a session and how it stands.
type State struct {
	sandbox.Session
	Activity     Activity
	Process      *sandbox.Process // the CLI's, that lives; nil = none
	LastOutputAt time.Time        // of that process
	Turn         *sandbox.Turn    // that runs
	Queue        []sandbox.Turn   // that wait, in order
	Asks         []sandbox.Ask    // that are pending
}

// Busy reports whether a turn runs, or is about to.
func (s State) Busy() bool { return s.Activity != Idle }

// state is how the session stands. The caller holds mu.
func (c *conv) state() State {
	st := State{Session: c.session(), Activity: Idle, Asks: append([]sandbox.Ask(nil), c.asks...)}
	for _, t := range c.queue {
		st.Queue = append(st.Queue, t.Turn)
	}
	if c.turn != nil {
		t := c.turn.Turn
		st.Turn = &t
	}
	if p := c.proc; p != nil {
		row := p.Process
		st.Process, st.LastOutputAt = &row, p.spoke
	}
	switch {
	case len(c.asks) > 0:
		st.Activity = Waiting
	case c.turn != nil || len(c.queue) > 0:
		st.Activity = Working
	}
	return st
}

// Session returns one session of account and how it stands.
func (s *Sessions) Session(ctx context.Context, account, id string) (State, error) {
	if err := s.waitReady(ctx); err != nil {
		return State{}, err
	}
	ses, err := s.store.Session(ctx, account, id)
	if err != nil {
		return State{}, err
	}
	return s.stateOf(ses), nil
}

// stateOf is a session's state. What nobody writes to stands still.
func (s *Sessions) stateOf(ses sandbox.Session) State {
	s.mu.Lock()
	c := s.convs[ses.ID]
	s.mu.Unlock()
	if c == nil {
		return State{Session: ses, Activity: Idle}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.loaded {
		return State{Session: ses, Activity: Idle}
	}
	return c.state()
}

// maxSessions is how many sessions a list holds.
const maxSessions = 200

// Sessions lists the account's sessions, the one last used first.
func (s *Sessions) Sessions(ctx context.Context, account string) ([]State, error) {
	if err := s.waitReady(ctx); err != nil {
		return nil, err
	}
	all, err := s.store.Sessions(ctx, account, maxSessions)
	if err != nil {
		return nil, err
	}
	var list []State
	for _, ses := range all {
		if ses.Turns > 0 { // the others were never told to anybody: their first turn could not begin
			list = append(list, s.stateOf(ses))
		}
	}
	return list, nil
}
