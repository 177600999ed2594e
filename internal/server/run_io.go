package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// maxListed is about how much output a list of events holds.
const maxListed = 1 << 20

// octets are bytes. Each use has its own: huma writes into what it is given.
func octets() *huma.MediaType {
	return &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
}

// inOctets describes an answer of bytes.
func inOctets(h huma.API) map[string]*huma.Response {
	all := answers(h, nil, "")
	all["200"].Content["application/octet-stream"] = octets()
	return all
}

// listRunEvents is what there is of a run's events after an offset.
func (s *Server) listRunEvents(ctx context.Context, run sandbox.Run, after int64) (api.RunEventList, error) {
	list := api.RunEventList{Events: []api.RunEvent{}, More: true}
	size, offset := 0, after
	for f, err := range s.cfg.Manager.OutputNow(ctx, run, after) {
		if errors.Is(err, sandbox.ErrGone) {
			break
		}
		if err != nil {
			return list, err
		}
		if f.Kind == guest.End {
			list.More = false
			break
		}
		ev := api.RunEvent{ID: f.Offset, Event: api.EventGap, Data: api.Gap{From: max(f.GapBegin(), offset), To: f.Offset}}
		if f.Kind != guest.Gap {
			ev.ID += int64(len(f.Data))
			ev.Event, ev.Data = api.EventOutput, fromOutput(f)
		}
		list.Events = append(list.Events, ev)
		offset = ev.ID
		if size += len(f.Data); size >= maxListed {
			break
		}
	}
	now, err := s.cfg.Manager.Run(ctx, run.Account, run.ID)
	if err != nil {
		return list, err
	}
	if now.State == sandbox.RunRunning && !list.More { // its end has been seen; it is about to be recorded
		if now, err = s.cfg.Manager.WaitRun(ctx, run.Account, run.ID); err != nil {
			return list, err
		}
	}
	list.Run = fromRun(now)
	if now.State == sandbox.RunLost && size < maxListed { // nobody has seen its end, and nothing comes any more
		if now.OutputNext > offset {
			list.Events = append(list.Events, api.RunEvent{ID: now.OutputNext, Event: api.EventGap, Data: api.Gap{From: offset, To: now.OutputNext}})
		}
		list.More = false
	}
	if !list.More {
		list.Events = append(list.Events, api.RunEvent{Event: api.EventExit, Data: list.Run})
	}
	return list, nil
}

type runOutputInput struct {
	RunInput
	Stream string `query:"stream" enum:"stdout,stderr,all" default:"all"`
	After  int64  `query:"after" minimum:"0" doc:"Begin after this offset, which counts the bytes of both streams."`
	Follow string `query:"follow" enum:"true,false" default:"false" doc:"Go on until the run ends."`
}

func (s *Server) runOutput(ctx context.Context, c *call, in *runOutputInput) (*huma.StreamResponse, error) {
	run, err := s.run(ctx, c, &in.RunInput)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		ctx, cancel := c.long(hctx.Context())
		defer cancel()
		h := c.w.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
		h.Set("Content-Disposition", "attachment")
		h.Set("Cache-Control", "no-store")
		h.Set("Trailer", strings.Join([]string{api.HeaderRunState, api.HeaderOutputNext, api.HeaderOutputMissing}, ", "))
		c.w.WriteHeader(http.StatusOK)
		if err := s.sendOutput(ctx, c, run, in); err != nil {
			c.fail(problemOf(err))
			panic(http.ErrAbortHandler) // half of it must not look like the whole
		}
	}}, nil
}

// sendOutput writes a run's output, and what is to be known of it as trailers.
func (s *Server) sendOutput(ctx context.Context, c *call, run sandbox.Run, in *runOutputInput) error {
	output := s.cfg.Manager.OutputNow
	if in.Follow == "true" {
		output = s.cfg.Manager.Output
	}
	next, missing, ended := in.After, int64(0), false
	for f, err := range output(ctx, run, in.After) {
		if errors.Is(err, sandbox.ErrGone) { // the row tells what became of it
			ended = true
			break
		}
		if err != nil {
			return err
		}
		switch f.Kind {
		case guest.Gap:
			missing += f.Offset - next
			next = f.Offset
			continue
		case guest.End:
			ended = true
			continue
		}
		next = f.Offset + int64(len(f.Data))
		if in.Stream == "stdout" && f.Kind != guest.Stdout || in.Stream == "stderr" && f.Kind != guest.Stderr {
			continue
		}
		if _, err := c.w.Write(f.Data); err != nil {
			return err
		}
		if in.Follow == "true" {
			if err := c.w.FlushError(); err != nil {
				return err
			}
		}
	}
	now, err := s.cfg.Manager.Run(ctx, run.Account, run.ID)
	if err == nil && ended && now.State == sandbox.RunRunning {
		now, err = s.cfg.Manager.WaitRun(ctx, run.Account, run.ID)
	}
	if err != nil {
		return err
	}
	if ended && now.OutputNext > next {
		missing += now.OutputNext - next
		next = now.OutputNext
	}
	h := c.w.Header()
	h.Set(api.HeaderRunState, string(now.State))
	h.Set(api.HeaderOutputNext, strconv.FormatInt(next, 10))
	h.Set(api.HeaderOutputMissing, strconv.FormatInt(missing, 10))
	return nil
}

type stdinInput struct {
	RunInput
	At    int64  `query:"at" minimum:"-1" default:"-1" doc:"How many bytes of input were taken before these. What was taken already, by an earlier try, is not taken again; a place that the input has not come to is refused. Default: after whatever was taken, and then a try must not be repeated."`
	Close string `query:"close" enum:"true,false" default:"false" doc:"Close the input after it."`
}

// stdinPiece is how much input is taken at a time.
const stdinPiece = 256 << 10

func (s *Server) writeStdin(ctx context.Context, c *call, in *stdinInput) (*body[api.StdinTaken], error) {
	run, err := s.run(ctx, c, &in.RunInput)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.long(ctx)
	defer cancel()
	from := &patientReader{c: c, timeout: s.cfg.ReadTimeout}
	defer func() { _ = c.w.control.SetReadDeadline(time.Time{}) }() // not supported = none was set
	at, taken := in.At, int64(0)
	for buf := make([]byte, stdinPiece); ; {
		n, err := from.Read(buf)
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return nil, refuse(http.StatusBadRequest, "incomplete_body", "The input's bytes did not arrive whole; those that did were written.").because(err)
		}
		_ = c.w.control.SetReadDeadline(time.Time{}) // the process may take its time
		if n > 0 || last {
			if taken, err = s.cfg.Manager.WriteStdin(ctx, run, at, buf[:n], last && in.Close == "true"); err != nil {
				return nil, err
			}
			if at >= 0 {
				at = taken
			}
		}
		if last {
			return &body[api.StdinTaken]{api.StdinTaken{Taken: taken}}, nil
		}
	}
}
