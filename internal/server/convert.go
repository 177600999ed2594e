package server

import (
	"encoding/base64"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// This file is the only place where the domain's types and the wire's meet.

// seconds converts a number of seconds; what doesn't fit is the longest there is.
func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}

// timeOrNil is nil for a time that isn't known.
func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// mapOr is m, never nil: an empty object on the wire.
func mapOr(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// each converts a list; the result is never nil: an empty array on the wire.
func each[A, B any](list []A, convert func(A) B) []B {
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = convert(a)
	}
	return out
}

func toRequest(account string, in api.CreateSandbox) (lifecycle.Request, error) {
	req := lifecycle.Request{
		Account: account, Name: in.Name, Engine: in.Engine, Volume: in.Volume, Workdir: in.Workdir, Labels: in.Labels, Env: in.Env,
		CPU: in.CPU, MemoryMiB: in.MemoryMiB, DiskMiB: in.DiskMiB, Timeout: seconds(float64(in.TimeoutS)), Network: toNetwork(in.Network),
		GPU: in.GPU, PIDs: in.PIDs, OpenFiles: in.OpenFiles, OutputKiBS: in.OutputKiBS,
	}
	var err error
	req.Image, err = toImage(in.Image)
	return req, err
}

func fromSandbox(sb sandbox.Sandbox) api.Sandbox {
	return api.Sandbox{
		ID: string(sb.ID), Name: sb.Name, State: string(sb.State), Reason: sb.Reason, Engine: sb.Engine,
		Image: fromImageSpec(sb.Spec.Image), Volume: sb.Spec.Volume.Name, VolumeID: sb.Spec.Volume.ID, Workdir: sb.Spec.Workdir,
		Labels: mapOr(sb.Spec.Labels), Network: api.Network{Mode: string(sb.Spec.Network.Mode), Allow: sb.Spec.Network.Allow}, CPU: sb.Spec.CPU,
		MemoryMiB: sb.Spec.MemoryMiB, DiskMiB: sb.Spec.DiskMiB, TimeoutS: int64(sb.Spec.Timeout / time.Second),
		GPU: sb.Spec.GPU, Limits: fromLimits(sb.Spec),
		CreatedAt: sb.CreatedAt.UTC(), StartedAt: timeOrNil(sb.StartedAt), EndedAt: timeOrNil(sb.EndedAt), ExpiresAt: sb.ExpiresAt.UTC(),
		SuspendedAt: timeOrNil(sb.SuspendedAt), SuspendedUntil: timeOrNil(sb.SuspendedUntil),
	}
}

func fromLimits(spec sandbox.Spec) api.Limits {
	limit := func(value float64, by string) api.Limit {
		if value == 0 || by == "" {
			return api.Limit{By: "none"}
		}
		return api.Limit{Value: &value, By: by}
	}
	by := spec.LimitedBy
	return api.Limits{
		CPU: limit(spec.CPU, by.CPU), Memory: limit(float64(spec.MemoryMiB), by.Memory), PIDs: limit(float64(spec.PIDs), by.PIDs),
		Disk: limit(float64(spec.DiskMiB), by.Disk), OpenFiles: limit(float64(spec.OpenFiles), by.OpenFiles),
		Output: limit(float64(spec.OutputKiBS), by.Output),
	}
}

func toCommand(in api.Exec) (guest.Command, error) {
	cmd := guest.Command{
		Argv: in.Argv, Env: in.Env, Dir: in.Dir, User: in.User, Stdin: []byte(in.Stdin), Open: in.StdinOpen, Timeout: seconds(in.TimeoutS),
	}
	if in.PTY {
		cmd.Stdio = guest.StdioPTY
	}
	if in.Size != nil {
		if !in.PTY {
			return cmd, sandbox.Invalid("body.size", "only a terminal has a size: ask for pty too")
		}
		cmd.Size = guest.Size{Rows: in.Size.Rows, Cols: in.Size.Cols}
	}
	return cmd, nil
}

func fromRun(r sandbox.Run) api.Run {
	return api.Run{
		ID: r.ID, Sandbox: string(r.Sandbox), Kind: string(r.Kind), Session: r.Session, Argv: each(r.Argv, func(s string) string { return s }),
		State: string(r.State), ExitCode: r.ExitCode, Signal: r.Signal, Reason: r.Reason,
		StartedAt: r.StartedAt.UTC(), EndedAt: timeOrNil(r.EndedAt), OutputFirst: r.OutputFirst, OutputNext: r.OutputNext,
	}
}

// text is output as a JSON string can hold it.
func text(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

// streamOf names the stream that f is of.
func streamOf(f guest.Frame) string {
	if f.Kind == guest.Stderr {
		return "stderr"
	}
	return "stdout"
}

func fromOutput(f guest.Frame) api.Output {
	out := api.Output{Stream: streamOf(f), Data: string(f.Data)}
	if !utf8.Valid(f.Data) {
		out.Data, out.Encoding = base64.StdEncoding.EncodeToString(f.Data), "base64"
	}
	return out
}

func fromEvent(e sandbox.Event) api.Event {
	return api.Event{Seq: e.Seq, Sandbox: string(e.Sandbox), Kind: e.Kind, Text: e.Text, At: e.At.UTC()}
}

func fromPort(p guest.Port) api.Port {
	return api.Port{Port: int(p.Port), PID: p.PID, Process: p.Process}
}

// runEnd tells an end of a run that isn't a good one as a problem; nil = it was.
func runEnd(r sandbox.Run) *problem {
	switch {
	case r.State == sandbox.RunExited && r.ExitCode != nil && *r.ExitCode == 0:
		return nil
	case r.State == sandbox.RunExited && r.ExitCode != nil:
		return refuse(endStatus, "run_failed", "The run ended with exit code %d.", *r.ExitCode)
	case r.State == sandbox.RunSignaled:
		return refuse(endStatus, "run_signaled", "The run was ended by %s.", r.Signal)
	case r.State == sandbox.RunTimeout:
		return refuse(endStatus, "run_timeout", "The run was killed at its time limit.")
	case r.State == sandbox.RunOOM:
		return refuse(endStatus, "run_oom", "The run was killed because the sandbox's memory was used up.")
	default:
		return refuse(endStatus, "run_lost", "The run's end was not seen: %s.", strings.TrimSuffix(r.Reason, "."))
	}
}

// endStatus is the status of a problem that is no fault of ours or of the request: what ran in the sandbox failed.
const endStatus = 502
