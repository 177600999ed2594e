package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
)

// healthOK is the status of a server that can work.
const healthOK = "ok"

func (s *Server) accountRoutes(h huma.API) {
	tags := []string{"Account"}
	add(s, h, strict(huma.Operation{
		OperationID: "me", Method: http.MethodGet, Path: "/me", Tags: tags, Summary: "Who am I?",
	}), s.me)
	add(s, h, strict(huma.Operation{
		OperationID: "list-events", Method: http.MethodGet, Path: "/event", Tags: tags, Summary: "What happened to the sandboxes",
		Description: "A list, oldest first, or with `Accept: text/event-stream` a stream that goes on.",
		Responses:   answers(h, api.EventList{}, "Events named by their kind (`failed` for `error`), with data as in the list. The stream has no end."),
	}), s.listEvents)
	add(s, h, s.free(huma.Operation{
		OperationID: "sign-in", Method: http.MethodPost, Path: "/signin", Tags: tags, Summary: "Exchange an API key for a cookie",
	}), s.signInWithKey)
	add(s, h, s.free(huma.Operation{
		OperationID: "sign-out", Method: http.MethodPost, Path: "/signout", Tags: tags, Summary: "End the browser's session",
	}), s.signOut)

	tags = []string{"Server"}
	add(s, h, s.free(huma.Operation{
		OperationID: "health", Method: http.MethodGet, Path: "/healthz", Tags: tags, Summary: "How is the server?",
		Description: "200 as long as it answers at all.",
	}), s.health)
	add(s, h, s.free(huma.Operation{
		OperationID: "ready", Method: http.MethodGet, Path: "/readyz", Tags: tags, Summary: "Can the server work?",
		Description: "200 if it can, else 503; the body tells why.",
	}), s.ready)
}

func (s *Server) me(ctx context.Context, c *call, _ *struct{}) (*body[api.Me], error) {
	account, err := s.cfg.Store.Account(ctx, c.account)
	if err != nil {
		return nil, err
	}
	return &body[api.Me]{api.Me{Account: account.ID, AccountName: account.Name, Key: c.key}}, nil
}

// healthOutput is an answer with a status of its own.
type healthOutput struct {
	Status       int
	CacheControl string `header:"Cache-Control"`
	Body         api.Health
}

func (s *Server) health(context.Context, *call, *struct{}) (*healthOutput, error) {
	return &healthOutput{Status: http.StatusOK, CacheControl: "no-store", Body: s.cfg.Health()}, nil
}

func (s *Server) ready(context.Context, *call, *struct{}) (*healthOutput, error) {
	out := &healthOutput{Status: http.StatusOK, CacheControl: "no-store", Body: s.cfg.Health()}
	if out.Body.Status != healthOK {
		out.Status = http.StatusServiceUnavailable
	}
	return out, nil
}
