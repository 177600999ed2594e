package claude

import (
	"context"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Change is what may be changed of a session; nil = as it is.
type Change struct {
	Title          *string
	Model          *string // "" = the CLI's default
	PermissionMode *string
	By             string
}

// Update changes a session. The process that lives works with the new model and mode from now on, and so do those that come after it.
func (s *Sessions) Update(ctx context.Context, account, session string, ch Change) (State, error) {
	if ch.Title != nil && strings.TrimSpace(*ch.Title) == "" {
		return State{}, sandbox.Invalid("title", "The title is empty.")
	}
	model, mode := deref(ch.Model), deref(ch.PermissionMode)
	if err := checkSettings(model, mode); err != nil {
		return State{}, err
	}
	if ch.PermissionMode != nil && mode == "" {
		return State{}, sandbox.Invalid("permission_mode", "There is no such mode; use one of %s.", strings.Join(permissionModes, ", "))
	}
	c, err := s.open(ctx, account, session)
	if err != nil {
		return State{}, err
	}
	defer s.release(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	ses, n := c.ses, notice{Subtype: "changed", By: ch.By, Text: "The session was changed."}
	if ch.Title != nil {
		ses.Title = title(*ch.Title)
		n.Title = ses.Title
	}
	if ch.Model != nil {
		ses.Model = model
		if n.Model = model; model == "" {
			n.Model = "default"
		}
	}
	if ch.PermissionMode != nil {
		ses.PermissionMode, n.PermissionMode = mode, mode
	}
	if ses == c.ses {
		return c.state(), nil
	}
	run, turn := "", ""
	if c.turn != nil {
		run, turn = c.turn.Run, c.turn.ID
	}
	w := sandbox.SessionWrite{Update: &ses, Events: []sandbox.SessionEvent{noticeEvent(run, turn, n)}}
	if p := c.proc; p != nil && !p.Closed {
		before := p.Process
		if data, named := c.adjust(p, ses.Model, ses.PermissionMode); data != nil {
			if err := c.give(ctx, p, w, data, false); err != nil {
				p.restore(before)
				return State{}, err
			}
			for id, what := range named {
				p.controls[id] = what
			}
			c.ses = ses
			return c.state(), nil
		}
	}
	if err := c.commit(ctx, w); err != nil {
		return State{}, err
	}
	c.ses = ses
	return c.state(), nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Grace periods of Interrupt.
const (
	graceInterrupt = 5 * time.Second // from the interrupt to SIGTERM
	graceTerminate = 5 * time.Second // from SIGTERM to SIGKILL
)

// Interrupt stops the turn that runs: the CLI is asked to, and if it doesn't, it is made to. It returns when that is recorded; the turn's
// end event tells the rest. Turns that wait go on.
func (s *Sessions) Interrupt(ctx context.Context, account, session string) error {
	c, err := s.open(ctx, account, session)
	if err != nil {
		return err
	}
	defer s.release(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.turn == nil {
		if c.proc != nil && !c.proc.Closed || len(c.queue) == 0 {
			return &sandbox.Problem{Class: sandbox.ErrState, Code: "session_idle", Detail: "No turn of this session is running."}
		}
		t := c.queue[0] // it is being started
		c.mu.Unlock()
		select {
		case <-t.begun:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	t, p := c.turn, c.proc
	if t.Interrupted && !t.stopAt.IsZero() || p == nil {
		return nil // it is being stopped, or has just ended
	}
	row := t.Turn
	row.Interrupted = true
	w := sandbox.SessionWrite{Turns: []sandbox.Turn{row}}
	if p.Closed {
		err = c.commit(ctx, w)
	} else {
		err = c.give(ctx, p, w, controlLine(newUUID(), map[string]any{"subtype": "interrupt"}), false)
	}
	if err != nil {
		return err
	}
	t.Turn, t.stopAt = row, time.Now()
	c.poke()
	return nil
}
