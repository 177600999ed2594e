package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const socketPath = "/session/{id}/ws"

// socketRoute adds the WebSocket of a session, and its description: it isn't an operation as the others are.
func (s *Server) socketRoute(h huma.API, tags []string) {
	schemas := h.OpenAPI().Components.Schemas
	responses := answers(h, nil, "")
	delete(responses, "200")
	responses["101"] = &huma.Response{Description: "Messages: SocketOut from the server, SocketIn to it.", Content: map[string]*huma.MediaType{
		"application/json": {Schema: &huma.Schema{AnyOf: []*huma.Schema{
			schemas.Schema(reflect.TypeFor[api.SocketOut](), true, "SocketOut"), schemas.Schema(reflect.TypeFor[api.SocketIn](), true, "SocketIn")}}}}}
	h.OpenAPI().AddOperation(&huma.Operation{
		OperationID: "session-socket", Method: http.MethodGet, Path: socketPath, Tags: tags, Summary: "Follow and use a session over a WebSocket",
		Description: "Text messages of JSON. The server sends the log after `after` and all that is added (`event`), and how the session stands " +
			"(`state`); the client sends prompts, answers, interrupts and changes, each of which gets an `ack` or an `error` with its `ref`. " +
			"A client that stops reading is cut off, and reads on from the last seq that it saw.",
		Parameters: []*huma.Param{
			{Name: "id", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "after", In: "query", Schema: &huma.Schema{Type: huma.TypeInteger}, Description: "Begin after this event."},
		},
		Responses: responses,
	})
	s.mux.HandleFunc("GET "+socketPath, s.sessionSocket)
}

// sessionSocket serves one WebSocket.
func (s *Server) sessionSocket(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	after, session := int64(0), r.PathValue("id")
	var err error
	if v := r.URL.Query().Get("after"); v != "" {
		if after, err = strconv.ParseInt(v, 10, 64); err != nil || after < 0 {
			writeProblem(c.w, r, problemOf(sandbox.Invalid("after", "must be the seq of an event, a whole number")))
			return
		}
	}
	if _, err := s.cfg.Sessions.Session(r.Context(), c.account, session); err != nil {
		writeProblem(c.w, r, problemOf(err))
		return
	}
	s.sockets.Add(1) // before http.Server lets go of the connection and knows nothing of it any more
	defer s.sockets.Done()
	// A browser sends its cookie from any page, so the page must be ours; a key is sent only by who has it.
	conn, err := websocket.Accept(c.w, r, &websocket.AcceptOptions{InsecureSkipVerify: c.key != ""})
	if err != nil {
		return // it has been answered
	}
	c.w.status = http.StatusSwitchingProtocols
	defer func() { _ = conn.CloseNow() }() // it was closed properly, if that was possible
	conn.SetReadLimit(maxPrompt)
	ctx, release := c.long(r.Context())
	defer release()
	(&socket{s: s, c: c, conn: conn, session: session}).serve(ctx, after)
}

// socket is one WebSocket of a session.
type socket struct {
	s       *Server
	c       *call
	conn    *websocket.Conn
	session string

	mu sync.Mutex // of writes: the log and the answers come from different goroutines
}

// serve returns when the peer has gone, or can't be served any more.
func (so *socket) serve(ctx context.Context, after int64) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A read or write whose context ends cuts the connection, and the end has still to be told then.
	open, shut := context.WithCancel(context.WithoutCancel(ctx))
	defer shut()
	var parts sync.WaitGroup
	parts.Go(func() { cancel(so.events(ctx, open, after)) })
	parts.Go(func() { cancel(so.beat(ctx, open)) })
	parts.Go(func() { cancel(so.read(open)) })
	<-ctx.Done()
	switch cause := context.Cause(ctx); {
	case so.c.stopping():
		_ = so.conn.Close(websocket.StatusGoingAway, "the server is shutting down") // a peer that left needs no end
	case errors.Is(cause, errTooSlow):
		so.c.fail(refuse(http.StatusRequestTimeout, "too_slow", "The messages were not read; read on from the last seq."))
	case errors.Is(cause, errPeerGone), errors.Is(cause, context.Canceled):
		_ = so.conn.Close(websocket.StatusNormalClosure, "") // it may be gone
	default:
		p := problemOf(cause)
		so.c.fail(p)
		_ = so.send(open, api.SocketOut{Type: api.SocketError, Problem: &p.Problem}) // as above
		_ = so.conn.Close(websocket.StatusInternalError, p.Code)
	}
	shut()
	parts.Wait()
}

// Why a socket ends from its peer's side.
var (
	errTooSlow  = errors.New("the peer doesn't read")
	errPeerGone = errors.New("the peer is gone")
)

// send writes one message. A peer that takes none for too long is cut off, so that it holds no more than this message.
func (so *socket) send(open context.Context, out api.SocketOut) error {
	b, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	so.mu.Lock()
	defer so.mu.Unlock()
	short, cancel := context.WithTimeout(open, so.s.cfg.WriteTimeout)
	defer cancel()
	if err := so.conn.Write(short, websocket.MessageText, b); err != nil {
		if short.Err() != nil && open.Err() == nil {
			return errTooSlow
		}
		return fmt.Errorf("%w: write to the socket: %w", errPeerGone, err)
	}
	return nil
}

// events sends the log, and how the session stands whenever that may have changed.
func (so *socket) events(ctx, open context.Context, after int64) error {
	if err := so.state(ctx, open); err != nil {
		return err
	}
	for e, err := range so.s.cfg.Sessions.Events(ctx, so.c.account, so.session, after, true) {
		if err != nil {
			return err
		}
		ev := fromSessionEvent(e)
		if err := so.send(open, api.SocketOut{Type: api.SocketEvent, SessionEvent: &ev}); err != nil {
			return err
		}
		if e.Kind == sandbox.SessionLine || e.Kind == sandbox.SessionPartial {
			continue
		}
		if err := so.state(ctx, open); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (so *socket) state(ctx, open context.Context) error {
	st, err := so.s.cfg.Sessions.Session(ctx, so.c.account, so.session)
	if err != nil {
		return err
	}
	ses := fromSession(st)
	return so.send(open, api.SocketOut{Type: api.SocketState, Session: &ses})
}

// beat finds out whether the peer is there.
func (so *socket) beat(ctx, open context.Context) error {
	tick := time.NewTicker(so.s.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		short, cancel := context.WithTimeout(open, so.s.cfg.WriteTimeout)
		err := so.conn.Ping(short)
		cancel()
		if err != nil {
			return fmt.Errorf("%w: ping: %w", errPeerGone, err)
		}
	}
}

// read does what the peer sends, one message after the other.
func (so *socket) read(ctx context.Context) error {
	for {
		kind, b, err := so.conn.Read(ctx)
		if err != nil {
			return fmt.Errorf("%w: read from the socket: %w", errPeerGone, err)
		}
		var in api.SocketIn
		if kind != websocket.MessageText {
			err = sandbox.Invalid("", "Messages are text: JSON.")
		} else if uerr := json.Unmarshal(b, &in); uerr != nil {
			err = sandbox.Invalid("", "The message is not what was expected: %v", uerr)
		}
		out := api.SocketOut{Type: api.SocketAck, Ref: in.Ref}
		if err == nil {
			err = so.do(ctx, in, &out)
		}
		if err != nil {
			p := problemOf(err)
			so.c.fail(p)
			out = api.SocketOut{Type: api.SocketError, Ref: in.Ref, Problem: &p.Problem}
		}
		if err := so.send(ctx, out); err != nil {
			return err
		}
	}
}

func (so *socket) do(ctx context.Context, in api.SocketIn, out *api.SocketOut) error {
	sessions, account, author := so.s.cfg.Sessions, so.c.account, so.c.author()
	switch in.Type {
	case api.SocketPrompt:
		p := claude.Prompt{Sandbox: sandbox.ID(in.Sandbox), Session: so.session, Text: in.Text, Author: author}
		if in.Model != nil {
			p.Model = *in.Model
		}
		if in.PermissionMode != nil {
			p.PermissionMode = *in.PermissionMode
		}
		turn, err := sessions.Prompt(ctx, account, p)
		if err != nil {
			return err
		}
		t := shownTurn(turn.Turn)
		out.Turn = &t
	case api.SocketAnswer:
		d, err := toDecision(api.Answer{Behavior: in.Behavior, Message: in.Message, Interrupt: in.Interrupt, Scope: in.Scope, Answers: in.Answers,
			Input: in.Input, Permissions: in.Permissions}, author)
		if err != nil {
			return err
		}
		a, err := sessions.Answer(ctx, account, so.session, in.Prompt, d)
		if err != nil {
			return err
		}
		decided := fromAsk(a)
		out.Prompt = &decided
	case api.SocketInterrupt:
		return sessions.Interrupt(ctx, account, so.session)
	case api.SocketSet:
		_, err := sessions.Update(ctx, account, so.session, claude.Change{Title: in.Title, Model: in.Model, PermissionMode: in.PermissionMode, By: author})
		return err
	default:
		return sandbox.Invalid("type", "Messages are of type prompt, answer, interrupt or set.")
	}
	return nil
}
