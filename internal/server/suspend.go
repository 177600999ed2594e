package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func (s *Server) suspendRoutes(h huma.API, tags []string) {
	add(s, h, strict(huma.Operation{
		OperationID: "suspend-sandbox", Method: http.MethodPost, Path: "/sandbox/{id}/suspend", Tags: tags, Summary: "Put a sandbox to sleep",
		Description: "Writes the memory of its processes and its files to disk and frees CPU and memory. Answers when that is done. Runs stay `running` and go on " +
			"when it is resumed; meanwhile whatever needs the sandbox is refused with code `sandbox_suspended`. Also a turn of Claude may be suspended: its call to " +
			"the model breaks, and Claude tries again. What can't be written (a program that listens on a Unix socket in the volume, say) is refused, and the sandbox goes on. " +
			"The time in which it is suspended is not counted by `timeout_s`; after `suspended_until` it ends.",
	}), s.changing(s.cfg.Manager.Suspend))
	add(s, h, strict(huma.Operation{
		OperationID: "resume-sandbox", Method: http.MethodPost, Path: "/sandbox/{id}/resume", Tags: tags, Summary: "Wake a suspended sandbox",
		Description: "Answers when it runs: with its processes where they were. Clocks in it have jumped, and connections to the outside are broken.",
	}), s.changing(s.cfg.Manager.Resume))
}

// changing is an operation that brings a sandbox into another state and waits for it.
func (s *Server) changing(do func(context.Context, string, sandbox.ID) (sandbox.Sandbox, error)) handler[SandboxInput, body[api.Sandbox]] {
	return func(ctx context.Context, c *call, in *SandboxInput) (*body[api.Sandbox], error) {
		ctx, cancel := c.long(ctx)
		defer cancel()
		sb, err := do(ctx, c.account, sandbox.ID(in.ID))
		if err != nil {
			return nil, err
		}
		return &body[api.Sandbox]{fromSandbox(sb)}, nil
	}
}
