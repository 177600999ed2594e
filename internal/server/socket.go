package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
)

// mayUpgrade says what keeps a request from becoming a WebSocket: all of it before anything is done for it.
func (s *Server) mayUpgrade(c *call) *problem {
	h := c.r.Header
	if !hasToken(h, "Connection", "upgrade") || !hasToken(h, "Upgrade", "websocket") || !c.r.ProtoAtLeast(1, 1) || c.r.ProtoMajor != 1 {
		c.w.Header().Set("Connection", "Upgrade")
		c.w.Header().Set("Upgrade", "websocket")
		return refuse(http.StatusUpgradeRequired, "upgrade_required", "This is a WebSocket: ask with Connection: Upgrade and Upgrade: websocket, over HTTP/1.1.")
	}
	if h.Get("Sec-WebSocket-Version") != "13" || len(h.Get("Sec-WebSocket-Key")) != 24 {
		c.w.Header().Set("Sec-WebSocket-Version", "13")
		return refuse(http.StatusBadRequest, "bad_websocket", "Sec-WebSocket-Version must be 13, and Sec-WebSocket-Key 16 bytes as base64.")
	}
	// A browser sends the cookie along whoever wrote the page, and asks nobody before it opens a socket; but it says whose page it is.
	if c.key == "" && !ownOrigin(c.r) {
		return refuse(http.StatusForbidden, "cross_origin", "A page of another origin may not do this in your name. Without a browser, use an API key.")
	}
	return nil
}

// ownOrigin reports whether a request comes from a page of ours.
func ownOrigin(r *http.Request) bool {
	u, err := url.Parse(r.Header.Get("Origin"))
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

// hasToken reports whether a header of tokens holds one.
func hasToken(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// closing is how a socket ends, and the error of who ends it.
type closing struct {
	code   websocket.StatusCode // 0 = there is nobody to tell
	reason string
}

// Error implements error.
func (c closing) Error() string { return c.reason }

// conversation is what happens on a WebSocket.
type conversation interface {
	// read takes what the peer says until ctx ends, the connection is gone or it has had enough, which may be a closing.
	read(ctx context.Context, conn *websocket.Conn) error
	// talk says all there is to say until ctx ends, and how to close.
	talk(ctx context.Context, conn *websocket.Conn) closing
	// deaf reports whether read is waiting for something else than the peer.
	deaf() bool
}

// socket returns an answer that is a WebSocket. A peer that is gone is found out, and one that is there is told when the server shuts
// down.
func (s *Server) socket(c *call, conv conversation) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		s.sockets.Add(1) // before http.Server lets go of the connection and knows nothing of it any more
		defer s.sockets.Done()
		conn, err := websocket.Accept(c.w, c.r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // mayUpgrade was stricter
		if err != nil {
			c.fail(refuse(http.StatusBadRequest, "bad_websocket", "The WebSocket could not be opened.").because(err))
			return
		}
		c.w.status = http.StatusSwitchingProtocols
		defer func() { _ = conn.CloseNow() }() // it was closed properly, if that was possible
		long, release := c.long(hctx.Context())
		defer release()
		ctx, cancel := context.WithCancelCause(long)
		defer cancel(nil)
		// A read whose context ends cuts the connection, and the end may still have to be told then.
		reading, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		var parts sync.WaitGroup
		parts.Go(func() { cancel(conv.read(reading, conn)) })
		parts.Go(func() { cancel(s.beat(ctx, conn, conv)) })
		end := conv.talk(ctx, conn)
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, errStopping):
			end = closing{websocket.StatusGoingAway, "the server is shutting down"}
		case cause != nil:
			end = closing{}
			_ = errors.As(cause, &end)
		}
		cancel(nil)
		if end.code != 0 {
			_ = conn.Close(end.code, end.reason) // a peer that left needs no end
		}
		_ = conn.CloseNow()
		stop()
		parts.Wait()
	}}
}

// beat returns when the peer is gone: it doesn't answer pings though it could.
func (s *Server) beat(ctx context.Context, conn *websocket.Conn, conv conversation) error {
	tick := time.NewTicker(s.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if conv.deaf() {
			continue // an answer would not be read
		}
		short, cancel := s.writing(ctx)
		err := conn.Ping(short)
		cancel()
		if err != nil && !conv.deaf() {
			return fmt.Errorf("the peer doesn't answer: %w", err)
		}
	}
}

// writing returns a context for a write to a peer that takes something now and then. A write whose context ends cuts the connection, even
// if the peer has got all of it, so ctx's end leaves it a moment.
func (s *Server) writing(ctx context.Context) (context.Context, context.CancelFunc) {
	const moment = time.Second
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.WriteTimeout)
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(moment, cancel)
		context.AfterFunc(short, func() { t.Stop() })
	})
	return short, func() {
		stop()
		cancel()
	}
}
