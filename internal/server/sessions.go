package server

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func (s *Server) sessionRoutes(h huma.API) {
	tags := []string{"Claude"}
	add(s, h, strict(huma.Operation{
		OperationID: "prompt", Method: http.MethodPost, Path: "/sandbox/{id}/claude", Tags: tags, Summary: "Tell Claude what to do",
		Description: "Streams what Claude Code says, line by line as it is written. While a turn of the session runs, the prompt waits for it. " +
			"Leaving does not end it: its session goes on, and `GET /session/{id}/events` reads on from any event.",
		Responses: answers(h, nil, "First the event `session`; then one event per line of the CLI's stream-json, without a name; "+
			"`error` (a problem) if it ended abnormally; then `data: [DONE]`."),
		MaxBodyBytes: maxPrompt,
	}), s.prompt)
	add(s, h, strict(huma.Operation{
		OperationID: "list-sessions", Method: http.MethodGet, Path: "/session", Tags: tags, Summary: "List sessions, the one last used first",
	}), s.listSessions)
	add(s, h, strict(huma.Operation{
		OperationID: "get-session", Method: http.MethodGet, Path: "/session/{id}", Tags: tags, Summary: "Look at a session",
	}), s.getSession)
	add(s, h, strict(huma.Operation{
		OperationID: "update-session", Method: http.MethodPatch, Path: "/session/{id}", Tags: tags, Summary: "Change a session",
		Description: "Its title, and with what model and in what permission mode Claude works from now on.",
	}), s.updateSession)
	add(s, h, strict(huma.Operation{
		OperationID: "session-events", Method: http.MethodGet, Path: "/session/{id}/events", Tags: tags, Summary: "Read a session's log",
		Description: "A list, or with `Accept: text/event-stream` a stream that goes on.",
		Responses: answers(h, api.SessionEventList{}, "Events `prompt`, `line`, `partial`, `end`, `ask`, `answer`, `queue` and `notice`, with data "+
			"as in the list. The stream has no end."),
	}), s.sessionEvents)
	add(s, h, strict(huma.Operation{
		OperationID: "interrupt-session", Method: http.MethodPost, Path: "/session/{id}/interrupt", Tags: tags, Summary: "Stop the turn that is running",
		Description: "Claude is asked to stop, and after five seconds made to. Turns that wait go on.",
	}), s.interrupt)
	add(s, h, strict(huma.Operation{
		OperationID: "get-turn", Method: http.MethodGet, Path: "/session/{id}/turn/{turn}", Tags: tags, Summary: "Look at a turn",
	}), s.getTurn)
	add(s, h, strict(huma.Operation{
		OperationID: "edit-turn", Method: http.MethodPatch, Path: "/session/{id}/turn/{turn}", Tags: tags, Summary: "Change the prompt of a turn that waits",
		MaxBodyBytes: maxPrompt,
	}), s.editTurn)
	add(s, h, strict(huma.Operation{
		OperationID: "cancel-turn", Method: http.MethodDelete, Path: "/session/{id}/turn/{turn}", Tags: tags, Summary: "Take a turn that waits back",
	}), s.cancelTurn)
	add(s, h, strict(huma.Operation{
		OperationID: "list-prompts", Method: http.MethodGet, Path: "/session/{id}/prompt", Tags: tags, Summary: "List what Claude asks, and asked",
		Description: "Permissions, questions and plans: those that wait for a decision first.",
	}), s.listAsks)
	add(s, h, strict(huma.Operation{
		OperationID: "get-prompt", Method: http.MethodGet, Path: "/session/{id}/prompt/{prompt}", Tags: tags, Summary: "Look at something that Claude asks",
	}), s.getAsk)
	add(s, h, strict(huma.Operation{
		OperationID: "answer-prompt", Method: http.MethodPost, Path: "/session/{id}/prompt/{prompt}", Tags: tags, Summary: "Decide what Claude asks",
		Description:  "The first decision counts; a later one is refused with the code `already_answered`.",
		MaxBodyBytes: maxPrompt,
	}), s.answerAsk)
	s.socketRoute(h, tags)
}

type promptInput struct {
	SandboxInput
	Body api.Prompt
}

func (s *Server) prompt(ctx context.Context, c *call, in *promptInput) (*huma.StreamResponse, error) {
	turn, err := s.cfg.Sessions.Prompt(ctx, c.account, toPrompt(in.ID, in.Body, c.author()))
	if err != nil {
		return nil, err
	}
	c.w.Header().Set(api.HeaderSession, turn.Session.ID)
	return s.streaming(c, func(ctx context.Context, out *stream) error { return s.followTurn(ctx, out, turn) }), nil
}

// author names who asks, in the records.
func (c *call) author() string {
	if c.key != "" {
		return c.key
	}
	return "web"
}

// followTurn writes what Claude says in one turn, and first that there is one.
func (s *Server) followTurn(ctx context.Context, out *stream, turn claude.Turn) error {
	start := api.SessionStart{Type: "session", Session: turn.Session.ID, Run: turn.Run.ID, Sandbox: string(turn.Turn.Sandbox), Turn: turn.Turn.ID,
		Queued: turn.Queued}
	if turn.Queued {
		if err := out.json(strconv.FormatInt(turn.After, 10), api.EventSession, start); err != nil {
			return err
		}
	}
	for e, err := range s.cfg.Sessions.Events(ctx, turn.Session.Account, turn.Session.ID, turn.After, true) {
		if err != nil {
			return err
		}
		if e.Turn != turn.Turn.ID {
			continue
		}
		id := strconv.FormatInt(e.Seq, 10)
		switch e.Kind {
		case sandbox.SessionPrompt:
			if !turn.Queued {
				err = out.json(id, api.EventSession, start)
			}
		case sandbox.SessionLine, sandbox.SessionPartial:
			err = out.send(id, "", e.Data)
		case sandbox.SessionAsk, sandbox.SessionAnswer, sandbox.SessionNotice:
			err = out.send(id, string(e.Kind), e.Data)
		case sandbox.SessionEnd, sandbox.SessionQueue:
			ended, err := s.cfg.Sessions.Turn(ctx, turn.Session.Account, turn.Session.ID, turn.Turn.ID)
			if err != nil {
				return err
			}
			if e.Kind == sandbox.SessionQueue && ended.State != sandbox.TurnCancelled {
				continue
			}
			return s.ended(ctx, ended)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("the events of %s stopped without an end", turn.Session.ID)
}

// ended is the problem that a turn ended with, if it did.
func (s *Server) ended(ctx context.Context, t sandbox.Turn) error {
	var run sandbox.Run
	if t.Run != "" {
		var err error
		if run, err = s.cfg.Manager.Run(ctx, t.Account, t.Run); err != nil {
			return err
		}
	}
	if p := turnEnd(t, run); p != nil {
		return p
	}
	return nil
}

func (s *Server) listSessions(ctx context.Context, c *call, _ *struct{}) (*body[api.SessionList], error) {
	list, err := s.cfg.Sessions.Sessions(ctx, c.account)
	if err != nil {
		return nil, err
	}
	return &body[api.SessionList]{api.SessionList{Sessions: each(list, fromSession)}}, nil
}

// SessionInput names a session.
type SessionInput struct {
	ID string `path:"id" doc:"The session." example:"ses_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
}

func (s *Server) getSession(ctx context.Context, c *call, in *SessionInput) (*body[api.Session], error) {
	st, err := s.cfg.Sessions.Session(ctx, c.account, in.ID)
	if err != nil {
		return nil, err
	}
	return &body[api.Session]{fromSession(st)}, nil
}

type updateSessionInput struct {
	SessionInput
	Body api.UpdateSession
}

func (s *Server) updateSession(ctx context.Context, c *call, in *updateSessionInput) (*body[api.Session], error) {
	st, err := s.cfg.Sessions.Update(ctx, c.account, in.ID, claude.Change{
		Title: in.Body.Title, Model: in.Body.Model, PermissionMode: in.Body.PermissionMode, By: c.author()})
	if err != nil {
		return nil, err
	}
	return &body[api.Session]{fromSession(st)}, nil
}

// TurnInput names a turn.
type TurnInput struct {
	SessionInput
	Turn string `path:"turn" doc:"The turn." example:"trn_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
}

func (s *Server) getTurn(ctx context.Context, c *call, in *TurnInput) (*body[api.Turn], error) {
	t, err := s.cfg.Sessions.Turn(ctx, c.account, in.ID, in.Turn)
	if err != nil {
		return nil, err
	}
	return &body[api.Turn]{fromTurn(t)}, nil
}

type editTurnInput struct {
	TurnInput
	Body api.EditTurn
}

func (s *Server) editTurn(ctx context.Context, c *call, in *editTurnInput) (*body[api.Turn], error) {
	t, err := s.cfg.Sessions.EditTurn(ctx, c.account, in.ID, in.Turn, in.Body.Prompt, c.author())
	if err != nil {
		return nil, err
	}
	return &body[api.Turn]{fromTurn(t)}, nil
}

func (s *Server) cancelTurn(ctx context.Context, c *call, in *TurnInput) (*body[api.Turn], error) {
	t, err := s.cfg.Sessions.CancelTurn(ctx, c.account, in.ID, in.Turn, c.author())
	if err != nil {
		return nil, err
	}
	return &body[api.Turn]{fromTurn(t)}, nil
}

type listAsksInput struct {
	SessionInput
	State string `query:"state" enum:"all,pending" default:"all" doc:"Which of them."`
}

func (s *Server) listAsks(ctx context.Context, c *call, in *listAsksInput) (*body[api.AskList], error) {
	list, err := s.cfg.Sessions.Asks(ctx, c.account, in.ID, in.State == "pending")
	if err != nil {
		return nil, err
	}
	return &body[api.AskList]{api.AskList{Prompts: each(list, fromAsk)}}, nil
}

// AskInput names something that Claude asks.
type AskInput struct {
	SessionInput
	Prompt string `path:"prompt" doc:"What Claude asks." example:"prm_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
}

func (s *Server) getAsk(ctx context.Context, c *call, in *AskInput) (*body[api.Ask], error) {
	a, err := s.cfg.Sessions.Ask(ctx, c.account, in.ID, in.Prompt)
	if err != nil {
		return nil, err
	}
	return &body[api.Ask]{fromAsk(a)}, nil
}

type answerInput struct {
	AskInput
	Body api.Answer
}

func (s *Server) answerAsk(ctx context.Context, c *call, in *answerInput) (*body[api.Ask], error) {
	d, err := toDecision(in.Body, c.author())
	if err != nil {
		return nil, err
	}
	a, err := s.cfg.Sessions.Answer(ctx, c.account, in.ID, in.Prompt, d)
	if err != nil {
		return nil, err
	}
	return &body[api.Ask]{fromAsk(a)}, nil
}

type sessionEventsInput struct {
	SessionInput
	ResumeInput
	Follow string `query:"follow" enum:"true,false" default:"false" doc:"Stream, as Accept: text/event-stream does."`
	Limit  int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"Of the list; a stream has no end."`
}

func (s *Server) sessionEvents(ctx context.Context, c *call, in *sessionEventsInput) (*huma.StreamResponse, error) {
	after, err := in.after()
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Sessions.Session(ctx, c.account, in.ID); err != nil {
		return nil, err
	}
	if in.Follow == "true" || wantsEvents(c.r) {
		return s.streaming(c, func(ctx context.Context, out *stream) error {
			for e, err := range s.cfg.Sessions.Events(ctx, c.account, in.ID, after, true) {
				if err != nil {
					return err
				}
				if err := out.send(strconv.FormatInt(e.Seq, 10), string(e.Kind), e.Data); err != nil {
					return err
				}
			}
			return ctx.Err()
		}), nil
	}
	list := api.SessionEventList{Events: []api.SessionEvent{}}
	for e, err := range s.cfg.Sessions.Events(ctx, c.account, in.ID, after, false) {
		if err != nil {
			return nil, err
		}
		if len(list.Events) == in.Limit {
			list.More = true
			break
		}
		list.Events = append(list.Events, fromSessionEvent(e))
	}
	return answer(c, list), nil
}

func (s *Server) interrupt(ctx context.Context, c *call, in *SessionInput) (*struct{}, error) {
	return nil, s.cfg.Sessions.Interrupt(ctx, c.account, in.ID)
}
