package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// maxCollected is the most of each of stdout and stderr that exec with wait=true answers with.
const maxCollected = 10 << 20

const runStream = "Events `start` (the run), `output` (its id is the offset after it), `gap` (output that is no longer there), `exit` (the run) " +
	"or `error` (a problem); then `data: [DONE]`."

func (s *Server) runRoutes(h huma.API) {
	tags := []string{"Runs"}
	add(s, h, strict(huma.Operation{
		OperationID: "exec", Method: http.MethodPost, Path: "/sandbox/{id}/exec", Tags: tags, Summary: "Run a program",
		Description: "Streams what it writes; with `wait=true` answers with all of it when it has ended. Leaving does not end it.",
		Responses:   answers(h, api.Run{}, runStream), MaxBodyBytes: maxPrompt,
	}), s.exec)
	add(s, h, strict(huma.Operation{
		OperationID: "list-runs", Method: http.MethodGet, Path: "/sandbox/{id}/run", Tags: tags, Summary: "List a sandbox's runs, newest first",
	}), s.listRuns)
	add(s, h, strict(huma.Operation{
		OperationID: "get-run", Method: http.MethodGet, Path: "/sandbox/{id}/run/{run}", Tags: tags, Summary: "Look at a run",
	}), s.getRun)
	add(s, h, strict(huma.Operation{
		OperationID: "run-events", Method: http.MethodGet, Path: "/sandbox/{id}/run/{run}/events", Tags: tags, Summary: "Follow a run",
		Description: "From any offset of its output; goes on until the run ends. Who asks for JSON gets what there is now. The output can be read when the " +
			"sandbox is gone too: its beginning and its end, when it is more than a few MiB.",
		Responses: answers(h, api.RunEventList{}, runStream),
	}), s.runEvents)
	add(s, h, strict(huma.Operation{
		OperationID: "run-output", Method: http.MethodGet, Path: "/sandbox/{id}/run/{run}/output", Tags: tags, Summary: "Read a run's output as bytes",
		Description: "Byte for byte as it was written. Trailers say how the run was then, and whether bytes are missing.", Responses: inOctets(h),
	}), s.runOutput)
	add(s, h, strict(huma.Operation{
		OperationID: "write-stdin", Method: http.MethodPost, Path: "/sandbox/{id}/run/{run}/stdin", Tags: tags, Summary: "Write to a run's input",
		Description: "The body's bytes; answers when the process has them. With `at` it may be repeated, and nothing is written twice.",
		RequestBody: &huma.RequestBody{Content: map[string]*huma.MediaType{"application/octet-stream": octets()}},
	}), s.writeStdin)
	add(s, h, strict(huma.Operation{
		OperationID: "signal-run", Method: http.MethodPost, Path: "/sandbox/{id}/run/{run}/signal", Tags: tags, Summary: "Send a signal",
		Description: "To the run's process and all that it started.",
	}), s.signalRun)
}

type execInput struct {
	SandboxInput
	Wait string `query:"wait" enum:"true,false" default:"false" doc:"Answer when the program has ended, with its output."`
	Body api.Exec
}

func (s *Server) exec(ctx context.Context, c *call, in *execInput) (*huma.StreamResponse, error) {
	run := sandbox.Run{
		ID: sandbox.NewID(sandbox.PrefixRun), Account: c.account, Sandbox: sandbox.ID(in.ID), Kind: sandbox.RunExec, Argv: in.Body.Argv,
	}
	cmd, err := toCommand(in.Body)
	if err != nil {
		return nil, err
	}
	cmd.ID = run.ID
	attached := in.Body.Detach != nil && !*in.Body.Detach
	if in.Wait == "true" {
		ended, err := s.collect(ctx, c, run, cmd)
		if err != nil {
			if attached && ctx.Err() != nil {
				s.abandonRun(ctx, c, run)
			}
			return nil, err
		}
		return answer(c, ended), nil
	}
	if run, err = s.cfg.Manager.StartRun(ctx, run, cmd, nil); err != nil {
		if attached && ctx.Err() != nil {
			s.abandonRun(ctx, c, run)
		}
		return nil, err
	}
	return s.streaming(c, func(ctx context.Context, out *stream) error {
		err := s.followRun(ctx, out, run, 0)
		if attached && ctx.Err() != nil {
			s.abandonRun(ctx, c, run)
		}
		return err
	}), nil
}

// abandonRun ends a run that nobody wants any more: the caller has left who asked for it to be attached. When the server shuts down, callers
// haven't left.
func (s *Server) abandonRun(ctx context.Context, c *call, run sandbox.Run) {
	const grace = 5 * time.Second
	ctx, cancel := c.long(context.WithoutCancel(ctx))
	defer cancel()
	for _, signal := range []string{"SIGTERM", "SIGKILL"} {
		if c.stopping() {
			return
		}
		if err := s.cfg.Manager.Signal(ctx, run.Account, run.ID, signal); err != nil {
			return // it has ended, or its sandbox has
		}
		short, stop := context.WithTimeout(ctx, grace)
		_, err := s.cfg.Manager.WaitRun(short, run.Account, run.ID)
		stop()
		if err == nil {
			return
		}
	}
}

// collect starts a run, waits for its end and returns it with its output.
func (s *Server) collect(ctx context.Context, c *call, run sandbox.Run, cmd guest.Command) (api.Run, error) {
	ctx, cancel := c.long(ctx)
	defer cancel()
	run, short, err := s.cfg.Manager.RunShort(ctx, run, cmd)
	if err != nil {
		return api.Run{}, err
	}
	var stdout, stderr []byte
	truncated := false
	keep := func(to *[]byte, b []byte) {
		if room := maxCollected - len(*to); len(b) > room {
			b, truncated = b[:room], true
		}
		*to = append(*to, b...)
	}
	output := s.cfg.Manager.Output(ctx, run, 0)
	if short != nil {
		output = func(yield func(guest.Frame, error) bool) {
			for _, f := range short {
				if !yield(f, nil) {
					return
				}
			}
		}
	}
	for f, err := range output {
		if errors.Is(err, sandbox.ErrGone) {
			truncated = true // the sandbox is gone; how the run ended stands in its row
			break
		}
		if err != nil {
			return api.Run{}, err
		}
		switch f.Kind {
		case guest.Stdout:
			keep(&stdout, f.Data)
		case guest.Stderr:
			keep(&stderr, f.Data)
		case guest.Gap:
			truncated = true
		}
	}
	if short == nil {
		if run, err = s.cfg.Manager.WaitRun(ctx, run.Account, run.ID); err != nil {
			return api.Run{}, err
		}
	}
	out := fromRun(run)
	out.Stdout, out.Stderr, out.Truncated = text(stdout), text(stderr), truncated
	return out, nil
}

// followRun writes a run's output from an offset until its end.
func (s *Server) followRun(ctx context.Context, out *stream, run sandbox.Run, offset int64) error {
	if err := out.json("", api.EventStart, fromRun(run)); err != nil {
		return err
	}
	for f, err := range s.cfg.Manager.Output(ctx, run, offset) {
		if errors.Is(err, sandbox.ErrGone) {
			return s.tellGone(ctx, out, run, offset, err)
		}
		if err != nil {
			return err
		}
		next := f.Offset
		switch f.Kind {
		case guest.Stdout, guest.Stderr:
			next += int64(len(f.Data))
			err = out.output(f)
		case guest.Gap:
			err = out.json(strconv.FormatInt(next, 10), api.EventGap, api.Gap{From: max(f.GapBegin(), offset), To: next})
		case guest.End:
			ended, waitErr := s.cfg.Manager.WaitRun(ctx, run.Account, run.ID)
			if waitErr != nil {
				return waitErr
			}
			return out.json("", api.EventExit, fromRun(ended))
		}
		if err != nil {
			return err
		}
		offset = next
	}
	return fmt.Errorf("the output of %s stopped without an end", run.ID)
}

// tellGone writes how a run ended whose output is not to be had any more, and how much of that is missing.
func (s *Server) tellGone(ctx context.Context, out *stream, run sandbox.Run, offset int64, gone error) error {
	ended, err := s.cfg.Manager.Run(ctx, run.Account, run.ID)
	if err != nil || ended.State == sandbox.RunRunning {
		return gone
	}
	if ended.OutputNext > offset {
		if err := out.json(strconv.FormatInt(ended.OutputNext, 10), api.EventGap, api.Gap{From: offset, To: ended.OutputNext}); err != nil {
			return err
		}
	}
	return out.json("", api.EventExit, fromRun(ended))
}

type listRunsInput struct {
	SandboxInput
	State  []string `query:"state,explode" enum:"running,exited,signaled,timeout,oom,lost" doc:"Only those in this state; may be repeated."`
	Kind   string   `query:"kind" maxLength:"20" doc:"Only those of this kind."`
	Limit  int      `query:"limit" minimum:"1" maximum:"500" default:"100"`
	Cursor string   `query:"cursor" maxLength:"200" doc:"next_cursor of the page before."`
}

func (s *Server) listRuns(ctx context.Context, c *call, in *listRunsInput) (*body[api.RunList], error) {
	if _, err := s.cfg.Manager.Sandbox(ctx, c.account, sandbox.ID(in.ID)); err != nil {
		return nil, err
	}
	f := sandbox.RunFilter{Account: c.account, Sandbox: sandbox.ID(in.ID), Kind: sandbox.RunKind(in.Kind), Limit: in.Limit, Cursor: in.Cursor}
	f.States = each(in.State, func(st string) sandbox.RunState { return sandbox.RunState(st) })
	runs, next, err := s.cfg.Manager.Runs(ctx, f)
	if err != nil {
		return nil, err
	}
	return &body[api.RunList]{api.RunList{Runs: each(runs, fromRun), NextCursor: next}}, nil
}

// RunInput names a run of a sandbox.
type RunInput struct {
	SandboxInput
	Run string `path:"run" doc:"The run." example:"run_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
}

// run returns the run that in names.
func (s *Server) run(ctx context.Context, c *call, in *RunInput) (sandbox.Run, error) {
	run, err := s.cfg.Manager.Run(ctx, c.account, in.Run)
	if err == nil && string(run.Sandbox) != in.ID {
		err = fmt.Errorf("%w: %s is a run of another sandbox", sandbox.ErrNotFound, in.Run)
	}
	return run, err
}

func (s *Server) getRun(ctx context.Context, c *call, in *RunInput) (*body[api.Run], error) {
	run, err := s.run(ctx, c, in)
	if err != nil {
		return nil, err
	}
	return &body[api.Run]{fromRun(run)}, nil
}

type runEventsInput struct {
	RunInput
	ResumeInput
}

func (s *Server) runEvents(ctx context.Context, c *call, in *runEventsInput) (*huma.StreamResponse, error) {
	after, err := in.after()
	if err != nil {
		return nil, err
	}
	run, err := s.run(ctx, c, &in.RunInput)
	if err != nil {
		return nil, err
	}
	if wantsList(c.r) {
		list, err := s.listRunEvents(ctx, run, after)
		if err != nil {
			return nil, err
		}
		return answer(c, list), nil
	}
	return s.streaming(c, func(ctx context.Context, out *stream) error { return s.followRun(ctx, out, run, after) }), nil
}

type signalInput struct {
	RunInput
	Body api.Signal
}

func (s *Server) signalRun(ctx context.Context, c *call, in *signalInput) (*struct{}, error) {
	run, err := s.run(ctx, c, &in.RunInput)
	if err != nil {
		return nil, err
	}
	return nil, s.cfg.Manager.Signal(ctx, c.account, run.ID, in.Body.Signal)
}
