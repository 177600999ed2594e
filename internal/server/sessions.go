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
		Description: "Streams what Claude Code says, line by line as it is written. Leaving does not end it: its session goes on, and " +
			"`GET /session/{id}/events` reads on from any event.",
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
		OperationID: "session-events", Method: http.MethodGet, Path: "/session/{id}/events", Tags: tags, Summary: "Read a session's log",
		Description: "A list, or with `Accept: text/event-stream` a stream that goes on.",
		Responses: answers(h, api.SessionEventList{}, "Events `prompt`, `line`, `partial` and `end`, with data as in the list. "+
			"The stream has no end."),
	}), s.sessionEvents)
	add(s, h, strict(huma.Operation{
		OperationID: "interrupt-session", Method: http.MethodPost, Path: "/session/{id}/interrupt", Tags: tags, Summary: "Stop the turn that is running",
	}), s.interrupt)
}

type promptInput struct {
	SandboxInput
	Body api.Prompt
}

func (s *Server) prompt(ctx context.Context, c *call, in *promptInput) (*huma.StreamResponse, error) {
	turn, err := s.cfg.Sessions.Prompt(ctx, c.account, toPrompt(in.ID, in.Body))
	if err != nil {
		return nil, err
	}
	c.w.Header().Set(api.HeaderSession, turn.Session.ID)
	return s.streaming(c, func(ctx context.Context, out *stream) error { return s.followTurn(ctx, out, turn) }), nil
}

// followTurn writes what Claude says in one turn.
func (s *Server) followTurn(ctx context.Context, out *stream, turn claude.Turn) error {
	for e, err := range s.cfg.Sessions.Events(ctx, turn.Session.Account, turn.Session.ID, turn.After, true) {
		if err != nil {
			return err
		}
		if e.Run != turn.Run.ID {
			continue
		}
		id := strconv.FormatInt(e.Seq, 10)
		switch e.Kind {
		case sandbox.SessionPrompt:
			err = out.json(id, api.EventSession, api.SessionStart{
				Type: "session", Session: turn.Session.ID, Run: turn.Run.ID, Sandbox: string(turn.Run.Sandbox),
			})
		case sandbox.SessionLine, sandbox.SessionPartial:
			err = out.send(id, "", e.Data)
		case sandbox.SessionEnd:
			run, err := s.cfg.Manager.Run(ctx, turn.Run.Account, turn.Run.ID)
			if err != nil {
				return err
			}
			if p := runEnd(run); p != nil {
				return p
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("the events of %s stopped without an end", turn.Session.ID)
}

func (s *Server) listSessions(ctx context.Context, c *call, _ *struct{}) (*body[api.SessionList], error) {
	list, err := s.cfg.Sessions.Sessions(ctx, c.account)
	if err != nil {
		return nil, err
	}
	return &body[api.SessionList]{api.SessionList{Sessions: each(list, func(l claude.Listed) api.Session {
		return fromSession(l.Session, l.Busy)
	})}}, nil
}

// SessionInput names a session.
type SessionInput struct {
	ID string `path:"id" doc:"The session." example:"ses_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
}

func (s *Server) getSession(ctx context.Context, c *call, in *SessionInput) (*body[api.Session], error) {
	ses, busy, err := s.cfg.Sessions.Session(ctx, c.account, in.ID)
	if err != nil {
		return nil, err
	}
	return &body[api.Session]{fromSession(ses, busy)}, nil
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
	if _, _, err := s.cfg.Sessions.Session(ctx, c.account, in.ID); err != nil {
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
