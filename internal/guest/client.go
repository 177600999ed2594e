package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// ErrLost is wrapped by what a Client returns when the connection to the guest is gone. What was asked for may or may not
// have happened; asking again over a new connection tells.
var ErrLost = errors.New("guest: connection lost")

// Limits on what a guest, which a sandbox may have taken over, can make its host hold.
const (
	maxAnswer         = 16 << 20
	maxRefusal        = 64 << 10
	maxGatewayStreams = 256
	maxPortConns      = 512
)

// Client is the host's end of one connection to a guest. All methods are safe for concurrent use. It believes the guest nothing
// that it can check.
type Client struct {
	session *yamux.Session
	http    *http.Client
	ports   *portConns
	done    chan struct{}
}

// NewClient speaks to the guest over conn, which it owns, and serves gateway (nil for none) to the programs of the sandbox.
func NewClient(conn net.Conn, gateway http.Handler) (*Client, error) {
	session, err := yamux.Client(conn, muxConfig())
	if err != nil {
		_ = conn.Close() // the error says more
		return nil, fmt.Errorf("guest: %w", err)
	}
	c := &Client{session: session, ports: newPortConns(), done: make(chan struct{})}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:       func(context.Context, string, string) (net.Conn, error) { return session.Open() },
			DisableKeepAlives: true, // a stream costs less than looking after one
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	go c.serveGateway(gateway)
	return c, nil
}

// notNow is the gateway of a connection that has none, as the engine's own have: another one will come, so who asks may try again.
func notNow(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "the gateway is not connected at the moment", http.StatusServiceUnavailable)
}

// serveGateway answers the sandbox's programs until the connection ends.
func (c *Client) serveGateway(gateway http.Handler) {
	defer close(c.done)
	if gateway == nil {
		gateway = http.HandlerFunc(notNow)
	}
	var handlers requests
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{
		Handler:           handlers.count(gateway),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       5 * time.Minute,
		ErrorLog:          silent(),
	}
	_ = srv.Serve(&limited{streams: newStreams(c.session), free: make(chan struct{}, maxGatewayStreams)}) // it ends with the session
	cancel()
	c.ports.end()
	_ = c.session.Close() // always nil
	_ = srv.Close()       // its connections went with the session
	c.ports.wait()
	handlers.wait()
}

// limited accepts a number of streams at a time and hangs up on more.
type limited struct {
	*streams
	free chan struct{}
}

// Accept returns the next stream that there is room for.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.streams.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &counted{Conn: conn, free: l.free}, nil
		default:
			_ = conn.Close() // nothing was written
		}
	}
}

// counted gives its place back when it is closed.
type counted struct {
	net.Conn
	once sync.Once
	free chan struct{}
}

// CloseWrite ends our direction only, for a connection that the gateway has taken over.
func (c *counted) CloseWrite() error { return c.Conn.Close() }

// Close closes the stream, both ways: it is not read from after that.
func (c *counted) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}

// Done is closed when the connection is gone and the gateway's last answer has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and what the gateway does for it. The sandbox and its runs go on.
func (c *Client) Close() error {
	err := c.session.Close()
	<-c.done
	return err
}

// Info asks the guest what it is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	return call[Info](ctx, c, "GET", "/v1/info", nil)
}

// Setup gives every later process its environment, and the guest its deadline. It may be repeated.
func (c *Client) Setup(ctx context.Context, s Setup) error {
	_, err := call[struct{}](ctx, c, "POST", "/v1/setup", s)
	return err
}

// Suspend makes the guest let go of every socket of its host, so that the sandbox can be written to disk, and returns when it has. The
// connection is gone then. The guest comes back when it is sent SIGUSR1, or by itself after a while.
func (c *Client) Suspend(ctx context.Context) error {
	if _, err := call[struct{}](ctx, c, "POST", "/v1/suspend", nil); err != nil {
		return err
	}
	select {
	case <-c.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("guest: waiting for it to hang up: %w", ctx.Err())
	}
}

// Start starts a process. A second start of the same ID returns the first one's run. A refusal is an *Error.
func (c *Client) Start(ctx context.Context, cmd Command) (Run, error) {
	return call[Run](ctx, c, "POST", "/v1/runs", cmd)
}

// Run returns what the guest knows of a run.
func (c *Client) Run(ctx context.Context, id string) (Run, error) {
	return call[Run](ctx, c, "GET", runPath(id, ""), nil)
}

// Runs lists the runs, oldest first, those with a very long command line without it. The guest forgets the oldest ended ones at
// some point.
func (c *Client) Runs(ctx context.Context) ([]Run, error) {
	return call[[]Run](ctx, c, "GET", "/v1/runs", nil)
}

// Wait returns when the run has ended.
func (c *Client) Wait(ctx context.Context, id string) (Run, error) {
	r, err := call[Run](ctx, c, "GET", runPath(id, "/wait"), nil)
	if err == nil && r.State == StateRunning {
		return r, fmt.Errorf("%w: the guest says that run %s goes on", ErrLost, id)
	}
	return r, err
}

// Signal sends sig ("SIGINT") to the run's process group; SIGKILL goes to all that descends from it.
func (c *Client) Signal(ctx context.Context, id, sig string) error {
	_, err := call[struct{}](ctx, c, "POST", runPath(id, "/signal"), map[string]string{"signal": sig})
	return err
}

// Resize changes the size of the run's terminal.
func (c *Client) Resize(ctx context.Context, id string, size Size) error {
	_, err := call[struct{}](ctx, c, "POST", runPath(id, "/resize"), size)
	return err
}

// WriteStdin writes what r holds to the run's input, piece by piece as it comes, and then closes it if closeAfter. It waits for
// the process to read; after an error, part of it may have been written.
func (c *Client) WriteStdin(ctx context.Context, id string, r io.Reader, closeAfter bool) error {
	buf := make([]byte, maxStdin)
	for {
		n, err := r.Read(buf)
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return fmt.Errorf("guest: input of run %s: %w", id, err)
		}
		path := runPath(id, "/stdin")
		if last && closeAfter {
			path += "?close=1"
		}
		if n > 0 || last && closeAfter {
			if err := c.post(ctx, path, buf[:n]); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// WriteStdinAt writes b to the run's input, of which at bytes were taken before, and then closes it if closeAfter. What lies before the
// place that the input has come to is not taken again. So a write that may have been lost on the way, with the connection or with who sent
// it, is repeated without harm, also in other pieces; Run.Stdin tells how far the input has come. A place that it has not come to is
// refused (409, stdin_gap). It waits for the process to read.
func (c *Client) WriteStdinAt(ctx context.Context, id string, at int64, b []byte, closeAfter bool) error {
	for {
		n := min(len(b), maxStdin)
		last := n == len(b)
		q := url.Values{"at": {strconv.FormatInt(at, 10)}}
		if last && closeAfter {
			q.Set("close", "1")
		}
		if err := c.post(ctx, runPath(id, "/stdin?"+q.Encode()), b[:n]); err != nil || last {
			return err
		}
		at, b = at+int64(n), b[n:]
	}
}

func (c *Client) post(ctx context.Context, path string, body []byte) error {
	resp, err := c.do(ctx, "POST", path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close() // only read from
	_, err = decode[struct{}](c, resp)
	return err
}

// Output yields the run's output from offset on. Without follow it ends where the output does now; with follow it goes on until
// after the End frame. An iteration never ends without End or an error: a connection that is lost is an error, and so are frames
// that don't follow one another. A frame's data is the receiver's.
func (c *Client) Output(ctx context.Context, id string, offset int64, follow bool) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		q := url.Values{"offset": {strconv.FormatInt(offset, 10)}}
		if follow {
			q.Set("follow", "1")
		}
		resp, err := c.do(ctx, "GET", runPath(id, "/output?"+q.Encode()), nil)
		if err != nil {
			yield(Frame{}, err)
			return
		}
		defer resp.Body.Close() // only read from
		if resp.StatusCode != http.StatusOK {
			yield(Frame{}, refusal(resp))
			return
		}
		dec, check := NewDecoder(resp.Body), follower{next: offset}
		for {
			f, err := dec.Next()
			if errors.Is(err, io.EOF) && (check.ended || !follow) {
				return
			}
			if err == nil {
				err = check.check(f)
			}
			if err == nil && f.Kind == End {
				_, err = f.Run()
			}
			if err != nil {
				yield(Frame{}, c.lost(ctx, "output of run "+id, err))
				return
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

func runPath(id, rest string) string { return "/v1/runs/" + url.PathEscape(id) + rest }

// do sends a request. Its error is never an answer of the guest.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, body)
	if err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.lost(ctx, method+" "+req.URL.Path, err)
	}
	return resp, nil
}

// lost says why something came to no good end: the caller gave up, the connection broke, or the guest talks nonsense.
func (c *Client) lost(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("guest: %s: %w", what, ctx.Err())
	case errors.Is(err, ErrFrame):
		return fmt.Errorf("%s: %w", what, err)
	default:
		return fmt.Errorf("%w: %s: %w", ErrLost, what, err)
	}
}

// call sends in as JSON, unless it is nil, and returns the answer.
func call[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var zero T
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return zero, fmt.Errorf("guest: %w", err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return zero, err
	}
	defer resp.Body.Close() // only read from
	v, err := decode[T](c, resp)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("guest: %s: %w", path, ctx.Err())
	}
	return v, err
}

// decode reads an answer.
func decode[T any](c *Client, resp *http.Response) (T, error) {
	var v T
	if resp.StatusCode != http.StatusOK {
		return v, refusal(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return v, fmt.Errorf("%w: %w", ErrLost, err)
	case len(b) > maxAnswer:
		return v, fmt.Errorf("guest: an answer of more than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("guest: an answer that makes no sense: %w", err)
	}
	return v, nil
}

// refusal reads an answer that says no.
func refusal(resp *http.Response) error {
	var e Error
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	if json.Unmarshal(b, &e) != nil || e.Code == "" {
		e = Error{Code: "bad_answer", Detail: "the guest answered " + resp.Status}
	}
	e.Status = resp.StatusCode
	return &e
}
