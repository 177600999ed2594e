package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coder/websocket"

	"github.com/sandlot-dev/sandlot/api"
)

// Conversation is a WebSocket of a session. Receive must be called again and again; Send may be called beside it.
type Conversation struct{ conn *websocket.Conn }

// maxMessage is the most that a message may hold: a line of the CLI with pictures has some megabytes.
const maxMessage = 64 << 20

// Converse opens a session's WebSocket. What stands in the log after seq comes first.
func (c *Client) Converse(ctx context.Context, session string, after int64) (*Conversation, error) {
	path := segments("session", session, "ws")
	q := url.Values{"after": {strconv.FormatInt(after, 10)}}
	header := http.Header{}
	if c.key != "" {
		header.Set("Authorization", "Bearer "+c.key)
	}
	conn, res, err := websocket.Dial(ctx, c.base+path+"?"+q.Encode(), &websocket.DialOptions{HTTPClient: c.HTTP, HTTPHeader: header})
	if err != nil {
		if res != nil && res.StatusCode/100 != 1 {
			defer func() { _ = res.Body.Close() }() // read for the problem only
			return nil, fmt.Errorf("GET %s: %w", path, readProblem(res))
		}
		return nil, fmt.Errorf("GET %s: %w", path, err)
	}
	conn.SetReadLimit(maxMessage)
	return &Conversation{conn}, nil
}

// Receive returns the next message. Of an event the data is a json.RawMessage.
func (c *Conversation) Receive(ctx context.Context) (api.SocketOut, error) {
	_, b, err := c.conn.Read(ctx)
	if err != nil {
		return api.SocketOut{}, fmt.Errorf("read from the session: %w", err)
	}
	var raw struct {
		Data json.RawMessage `json:"data"`
	}
	var out api.SocketOut
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("read from the session: %w", err)
	}
	if out.SessionEvent != nil && json.Unmarshal(b, &raw) == nil {
		out.Data = raw.Data
	}
	return out, nil
}

// Send sends a message. Its ack or error comes from Receive.
func (c *Conversation) Send(ctx context.Context, in api.SocketIn) error {
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("write to the session: %w", err)
	}
	if err := c.conn.Write(ctx, websocket.MessageText, b); err != nil {
		return fmt.Errorf("write to the session: %w", err)
	}
	return nil
}

// Close ends the connection, and nothing else.
func (c *Conversation) Close() error { return c.conn.Close(websocket.StatusNormalClosure, "") }
