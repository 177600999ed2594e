package server

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func (s *Server) sandboxRoutes(h huma.API) {
	tags := []string{"Sandboxes"}
	add(s, h, strict(huma.Operation{
		OperationID: "create-sandbox", Method: http.MethodPost, Path: "/sandbox", Tags: tags, Summary: "Make a sandbox",
		Description: "Answers when it runs; with `wait=false` as soon as it is accepted; or streams how it comes about. With no body at all it gets the defaults.",
		Responses:   answers(h, api.Sandbox{}, "The sandbox's events, by their kinds; then `sandbox` (the sandbox, which runs) or `error` (a problem); then `data: [DONE]`."),
	}), s.createSandbox)
	add(s, h, huma.Operation{
		OperationID: "list-sandboxes", Method: http.MethodGet, Path: "/sandbox", Tags: tags, Summary: "List sandboxes, newest first",
		Description: "Filter by `state` (may be repeated) and by labels: `label.KEY=VALUE`.",
	}, s.listSandboxes)
	add(s, h, strict(huma.Operation{
		OperationID: "get-sandbox", Method: http.MethodGet, Path: "/sandbox/{id}", Tags: tags, Summary: "Look at a sandbox",
	}), s.getSandbox)
	add(s, h, strict(huma.Operation{
		OperationID: "update-sandbox", Method: http.MethodPatch, Path: "/sandbox/{id}", Tags: tags, Summary: "Change a sandbox while it lives",
		Description: "Its name, its network policy, or when it ends. What is left out stays.",
	}), s.updateSandbox)
	add(s, h, strict(huma.Operation{
		OperationID: "terminate-sandbox", Method: http.MethodDelete, Path: "/sandbox/{id}", Tags: tags, Summary: "End a sandbox",
		Description: "Its processes are asked to stop, then killed. Answers when nothing is left of it but its volume.",
	}), s.terminateSandbox)
	s.suspendRoutes(h, tags)
}

type createInput struct {
	Wait string `query:"wait" enum:"true,false" default:"true" doc:"Answer only when the sandbox runs."`
	Body *api.CreateSandbox
}

func (s *Server) createSandbox(ctx context.Context, c *call, in *createInput) (*huma.StreamResponse, error) {
	var want api.CreateSandbox
	if in.Body != nil {
		want = *in.Body
	}
	req, err := toRequest(c.account, want)
	if err != nil {
		return nil, err
	}
	sb, err := s.cfg.Manager.Create(ctx, req)
	if err != nil {
		return nil, err
	}
	if wantsEvents(c.r) {
		return s.streaming(c, func(ctx context.Context, out *stream) error { return s.followCreation(ctx, out, sb) }), nil
	}
	if in.Wait != "false" {
		ctx, cancel := c.long(ctx)
		defer cancel()
		if sb, err = s.cfg.Manager.WaitReady(ctx, c.account, sb.ID); err != nil {
			return nil, err
		}
	}
	return answer(c, fromSandbox(sb)), nil
}

// followCreation writes a sandbox's events until it runs, and then the sandbox; or why it doesn't.
func (s *Server) followCreation(ctx context.Context, out *stream, sb sandbox.Sandbox) error {
	wake := s.cfg.Store.Watch(ctx)
	for after := int64(0); ; {
		now, err := s.cfg.Manager.Sandbox(ctx, sb.Account, sb.ID) // before its events: all that led to this state is told
		if err != nil {
			return err
		}
		if after, err = s.sendEvents(ctx, out, sb.Account, sb.ID, after); err != nil {
			return err
		}
		if now.State != sandbox.Creating {
			break
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ready, err := s.cfg.Manager.WaitReady(ctx, sb.Account, sb.ID)
	if err != nil {
		return err
	}
	return out.json("", api.EventSandbox, fromSandbox(ready))
}

type updateInput struct {
	SandboxInput
	Body api.UpdateSandbox
}

func (s *Server) updateSandbox(ctx context.Context, c *call, in *updateInput) (*body[api.Sandbox], error) {
	change := lifecycle.Change{Name: in.Body.Name}
	if in.Body.Network != nil {
		n := toNetwork(in.Body.Network)
		change.Network = &n
	}
	if in.Body.TimeoutS != nil {
		t := seconds(float64(*in.Body.TimeoutS))
		change.Timeout = &t
	}
	sb, err := s.cfg.Manager.Update(ctx, c.account, sandbox.ID(in.ID), change)
	if err != nil {
		return nil, err
	}
	return &body[api.Sandbox]{fromSandbox(sb)}, nil
}

type listInput struct {
	State  []string `query:"state,explode" doc:"Only those in this state; may be repeated."`
	Limit  int      `query:"limit" minimum:"1" maximum:"500" default:"100"`
	Cursor string   `query:"cursor" maxLength:"200" doc:"next_cursor of the page before."`
}

func (s *Server) listSandboxes(ctx context.Context, c *call, in *listInput) (*body[api.SandboxList], error) {
	filter := sandbox.Filter{Account: c.account, Limit: in.Limit, Cursor: in.Cursor}
	for _, state := range in.State {
		filter.States = append(filter.States, sandbox.State(state))
		if !slices.Contains(sandbox.States(), sandbox.State(state)) {
			return nil, sandbox.Invalid("state", "there is no state %q; the states are %s", state, stateNames())
		}
	}
	var err error
	if filter.Labels, err = labels(c.r.URL.Query()); err != nil {
		return nil, err
	}
	all, next, err := s.cfg.Manager.Sandboxes(ctx, filter)
	if err != nil {
		return nil, err
	}
	return &body[api.SandboxList]{api.SandboxList{Sandboxes: each(all, fromSandbox), NextCursor: next}}, nil
}

func stateNames() string {
	var names []string
	for _, s := range sandbox.States() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// labels reads the parameters label.KEY and refuses those that the list doesn't know: a typo would list too much.
func labels(query url.Values) (map[string]string, error) {
	var out map[string]string
	for name, values := range query {
		switch name {
		case "state", "limit", "cursor":
			continue
		}
		key, ok := strings.CutPrefix(name, "label.")
		if !ok || key == "" {
			return nil, sandbox.Invalid("query."+name, "unknown query parameter")
		}
		if len(values) > 1 {
			return nil, sandbox.Invalid("query."+name, "given more than once; a label has one value")
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = values[0]
	}
	return out, nil
}

// SandboxInput names a sandbox.
type SandboxInput struct {
	ID string `path:"id" doc:"The sandbox." example:"sbx_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
}

func (s *Server) getSandbox(ctx context.Context, c *call, in *SandboxInput) (*body[api.Sandbox], error) {
	sb, err := s.cfg.Manager.Sandbox(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	return &body[api.Sandbox]{fromSandbox(sb)}, nil
}

func (s *Server) terminateSandbox(ctx context.Context, c *call, in *SandboxInput) (*body[api.Sandbox], error) {
	ctx, cancel := c.long(ctx)
	defer cancel()
	sb, err := s.cfg.Manager.Terminate(ctx, c.account, sandbox.ID(in.ID), "ended on request")
	if err != nil {
		return nil, err
	}
	return &body[api.Sandbox]{fromSandbox(sb)}, nil
}

type eventsInput struct {
	ResumeInput
	Sandbox string `query:"sandbox" doc:"Only what happened to this sandbox."`
	Limit   int    `query:"limit" minimum:"1" maximum:"500" default:"100" doc:"Of the list; a stream has no end."`
}

// listEvents answers GET /event: a list, or a stream that goes on.
func (s *Server) listEvents(ctx context.Context, c *call, in *eventsInput) (*huma.StreamResponse, error) {
	after, err := in.after()
	if err != nil {
		return nil, err
	}
	id := sandbox.ID(in.Sandbox)
	if id != "" {
		if _, err := s.cfg.Manager.Sandbox(ctx, c.account, id); err != nil {
			return nil, err
		}
	}
	if wantsEvents(c.r) {
		return s.streaming(c, func(ctx context.Context, out *stream) error {
			return s.followEvents(ctx, out, c.account, id, after)
		}), nil
	}
	list, err := s.cfg.Store.Events(ctx, c.account, id, after, in.Limit)
	if err != nil {
		return nil, err
	}
	return answer(c, api.EventList{Events: each(list, fromEvent), More: len(list) == in.Limit}), nil
}

// followEvents writes events as they come until ctx ends.
func (s *Server) followEvents(ctx context.Context, out *stream, account string, id sandbox.ID, after int64) (err error) {
	wake := s.cfg.Store.Watch(ctx)
	for {
		if after, err = s.sendEvents(ctx, out, account, id, after); err != nil {
			return err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sendEvents writes the events that there are after one, and returns the last.
func (s *Server) sendEvents(ctx context.Context, out *stream, account string, id sandbox.ID, after int64) (int64, error) {
	const page = 500
	for {
		list, err := s.cfg.Store.Events(ctx, account, id, after, page)
		if err != nil {
			return after, err
		}
		for _, e := range list {
			after = e.Seq
			name := e.Kind
			if name == api.EventError {
				name = api.EventFailed // or it would be taken for an error of the stream
			}
			if err := out.json(strconv.FormatInt(e.Seq, 10), name, fromEvent(e)); err != nil {
				return after, err
			}
		}
		if len(list) < page {
			return after, nil
		}
	}
}
