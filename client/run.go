package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/sandlot-dev/sandlot/api"
)

// decode reads JSON.
func decode[T any](r io.Reader) (T, error) {
	var out T
	if err := json.NewDecoder(r).Decode(&out); err != nil {
		return out, fmt.Errorf("decode the answer: %w", err)
	}
	return out, nil
}

// RunEvent is one event of a run's stream. Exactly one of Start, Data, Gap and Exit is set.
type RunEvent struct {
	Offset int64    // bytes of output up to here; begin after it to go on
	Start  *api.Run // the run as it began
	Stream string   // "stdout" or "stderr"
	Data   []byte
	Gap    *api.Gap // output that is no longer there
	Exit   *api.Run // the run's end; the last event
}

// ExecWait runs a program and waits for its end. If ctx ends before, the program goes on.
func (c *Client) ExecWait(ctx context.Context, sandbox string, in api.Exec) (api.Run, error) {
	return call[api.Run](ctx, c, http.MethodPost, segments("sandbox", sandbox, "exec"), url.Values{"wait": {"true"}}, in)
}

// Exec runs a program and follows its output, over cut connections too. Leaving does not end the program.
func (c *Client) Exec(ctx context.Context, sandbox string, in api.Exec) iter.Seq2[RunEvent, error] {
	return func(yield func(RunEvent, error) bool) {
		r := request{method: http.MethodPost, path: segments("sandbox", sandbox, "exec")}
		if err := r.json(in); err != nil {
			yield(RunEvent{}, err)
			return
		}
		var run string
		var offset int64
		for e, err := range c.stream(ctx, r) {
			if run != "" && ctx.Err() == nil && errors.Is(err, ErrCut) {
				for e, err := range c.RunEvents(ctx, sandbox, run, offset) {
					if e.Start == nil && !yield(e, err) {
						return
					}
				}
				return
			}
			out, err := runEvent(e, err)
			if out.Start != nil {
				run = out.Start.ID
			}
			offset = max(offset, out.Offset)
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

// RunEvents follows a run's output from an offset to its end.
func (c *Client) RunEvents(ctx context.Context, sandbox, run string, after int64) iter.Seq2[RunEvent, error] {
	return func(yield func(RunEvent, error) bool) {
		route := segments("sandbox", sandbox, "run", run, "events")
		for e, err := range c.follow(ctx, route, nil, strconv.FormatInt(after, 10)) {
			out, err := runEvent(e, err)
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

// runEvent decodes e.
func runEvent(e Event, err error) (RunEvent, error) {
	var out RunEvent
	if err != nil {
		return out, err
	}
	if e.ID != "" {
		if out.Offset, err = seq(e); err != nil {
			return out, err
		}
	}
	switch data := strings.NewReader(e.Data); e.Name {
	case api.EventStart:
		out.Start, err = decode[*api.Run](data)
	case api.EventExit:
		out.Exit, err = decode[*api.Run](data)
	case api.EventGap:
		out.Gap, err = decode[*api.Gap](data)
	case api.EventOutput:
		var o api.Output
		if o, err = decode[api.Output](data); err != nil {
			break
		}
		out.Stream, out.Data = o.Stream, []byte(o.Data)
		if o.Encoding == "base64" {
			out.Data, err = base64.StdEncoding.DecodeString(o.Data)
		}
	default:
		err = errors.New("unknown")
	}
	if err != nil {
		return RunEvent{}, fmt.Errorf("event %q: %w", e.Name, err)
	}
	return out, nil
}

// Runs lists a sandbox's runs, the newest first.
func (c *Client) Runs(ctx context.Context, sandbox string) (api.RunList, error) {
	return call[api.RunList](ctx, c, http.MethodGet, segments("sandbox", sandbox, "run"), nil, nil)
}

// Run returns one run.
func (c *Client) Run(ctx context.Context, sandbox, run string) (api.Run, error) {
	return call[api.Run](ctx, c, http.MethodGet, segments("sandbox", sandbox, "run", run), nil, nil)
}

// Signal sends a signal ("SIGINT") to a run's process and all it started.
func (c *Client) Signal(ctx context.Context, sandbox, run, signal string) error {
	return c.call(ctx, http.MethodPost, segments("sandbox", sandbox, "run", run, "signal"), nil, api.Signal{Signal: signal}, nil)
}
