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
	var ok bool
	switch data := strings.NewReader(e.Data); e.Name {
	case api.EventStart:
		out.Start, err = decode[*api.Run](data)
	case api.EventExit:
		out.Exit, err = decode[*api.Run](data)
	case api.EventGap:
		out.Gap, err = decode[*api.Gap](data)
	case api.EventOutput:
		if out.Stream, out.Data, ok = plainOutput(e.Data); ok {
			break
		}
		var o api.Output
		if err = json.Unmarshal([]byte(e.Data), &o); err != nil {
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

// plainOutput decodes an api.Output in the form in which it mostly comes, many times as fast as the general way. Not ok means: try that.
func plainOutput(text string) (stream string, data []byte, ok bool) {
	rest, ok := strings.CutPrefix(text, `{"stream":"`)
	if !ok {
		return "", nil, false
	}
	stream, rest, ok = strings.Cut(rest, `","data":"`)
	rest, end := strings.CutSuffix(rest, `"}`)
	if !ok || !end || stream != "stdout" && stream != "stderr" {
		return "", nil, false
	}
	data = make([]byte, 0, len(rest))
	for {
		i := strings.IndexByte(rest, '\\')
		before := rest
		if i >= 0 {
			before = rest[:i]
		}
		if strings.IndexByte(before, '"') >= 0 { // there is more than the data
			return "", nil, false
		}
		data = append(data, before...)
		if i < 0 {
			return stream, data, true
		}
		if i+1 == len(rest) {
			return "", nil, false
		}
		switch c := rest[i+1]; c {
		case 'n':
			data = append(data, '\n')
		case 'r':
			data = append(data, '\r')
		case 't':
			data = append(data, '\t')
		case '"', '\\', '/':
			data = append(data, c)
		default:
			return "", nil, false
		}
		rest = rest[i+2:]
	}
}

// Runs lists a sandbox's runs, the newest first.
func (c *Client) Runs(ctx context.Context, sandbox string) (api.RunList, error) {
	return call[api.RunList](ctx, c, http.MethodGet, segments("sandbox", sandbox, "run"), nil, nil)
}

// RunFilter says which runs to list. The zero one means the newest of all.
type RunFilter struct {
	States []string // any of these
	Kind   string
	Limit  int    // of a page
	Cursor string // NextCursor of the page before
}

// RunsWhere lists a page of a sandbox's runs, the newest first.
func (c *Client) RunsWhere(ctx context.Context, sandbox string, f RunFilter) (api.RunList, error) {
	q := url.Values{"state": f.States}
	for name, v := range map[string]string{"kind": f.Kind, "cursor": f.Cursor} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	return call[api.RunList](ctx, c, http.MethodGet, segments("sandbox", sandbox, "run"), q, nil)
}

// RunEventsNow returns what there is of a run's events after an offset, and doesn't wait for more.
func (c *Client) RunEventsNow(ctx context.Context, sandbox, run string, after int64) (api.RunEventList, error) {
	q := url.Values{"after": {strconv.FormatInt(after, 10)}}
	return call[api.RunEventList](ctx, c, http.MethodGet, segments("sandbox", sandbox, "run", run, "events"), q, nil)
}

// RunOutput is what to read of a run's output, and, once it has been read, what there was.
type RunOutput struct {
	Stream string // "stdout", "stderr", "" = both as they came
	After  int64  // begin after this offset
	Follow bool   // to the end of the run

	State   string // of the run, after the last byte
	Next    int64  // the offset after it
	Missing int64  // bytes that are not kept any more
}

// ReadOutput writes a run's output to w, byte for byte as the run wrote it.
func (c *Client) ReadOutput(ctx context.Context, sandbox, run string, o RunOutput, w io.Writer) (RunOutput, error) {
	q := url.Values{"after": {strconv.FormatInt(o.After, 10)}, "follow": {strconv.FormatBool(o.Follow)}}
	if o.Stream != "" {
		q.Set("stream", o.Stream)
	}
	res, err := c.send(ctx, request{method: http.MethodGet, path: segments("sandbox", sandbox, "run", run, "output"), query: q})
	if err != nil {
		return o, err
	}
	defer func() { _ = res.Body.Close() }() // all that matters was read
	if _, err := io.Copy(w, res.Body); err != nil {
		return o, fmt.Errorf("read the output of %s: %w", run, err)
	}
	o.State = res.Trailer.Get(api.HeaderRunState)
	for name, to := range map[string]*int64{api.HeaderOutputNext: &o.Next, api.HeaderOutputMissing: &o.Missing} {
		if *to, err = strconv.ParseInt(res.Trailer.Get(name), 10, 64); err != nil {
			return o, fmt.Errorf("read the output of %s: %w: its trailer %s: %w", run, ErrCut, name, err)
		}
	}
	return o, nil
}

// WriteStdin writes what r holds to a run's input and then, if closeAfter, closes it. It returns how many bytes of input the run has taken
// in all, which is the at of what comes next: with it a write may be repeated after an error, and nothing is written twice. With at below 0
// it comes after whatever was taken.
func (c *Client) WriteStdin(ctx context.Context, sandbox, run string, at int64, r io.Reader, closeAfter bool) (int64, error) {
	q := url.Values{"close": {strconv.FormatBool(closeAfter)}}
	if at >= 0 {
		q.Set("at", strconv.FormatInt(at, 10))
	}
	res, err := c.send(ctx, request{
		method: http.MethodPost, path: segments("sandbox", sandbox, "run", run, "stdin"), query: q, body: r, ctype: "application/octet-stream", accept: "application/json",
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }() // all that matters was read
	taken, err := decode[api.StdinTaken](res.Body)
	return taken.Taken, err
}

// Run returns one run.
func (c *Client) Run(ctx context.Context, sandbox, run string) (api.Run, error) {
	return call[api.Run](ctx, c, http.MethodGet, segments("sandbox", sandbox, "run", run), nil, nil)
}

// Signal sends a signal ("SIGINT") to a run's process and all it started.
func (c *Client) Signal(ctx context.Context, sandbox, run, signal string) error {
	return c.call(ctx, http.MethodPost, segments("sandbox", sandbox, "run", run, "signal"), nil, api.Signal{Signal: signal}, nil)
}

// EndRun ends a run, kindly at first, and returns it when it has ended.
func (c *Client) EndRun(ctx context.Context, sandbox, run string) (api.Run, error) {
	return call[api.Run](ctx, c, http.MethodDelete, segments("sandbox", sandbox, "run", run), nil, nil)
}
