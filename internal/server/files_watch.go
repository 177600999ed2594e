package server

import (
	"context"
	"iter"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
)

const watchEvents = "`ready` (from here on changes are told), `created`, `modified`, `removed`, `moved` (each with the `file`, `moved` with `from`; what happens to a directory " +
	"stands for all in it), `resync` (more has changed than is told: read anew), `partial` (the tree is too large: not all of it is watched) or `error`; `data: [DONE]` when the directory is gone."

// changes are the kinds that are passed on; another would be the sandbox's words.
var changes = []string{
	guest.ChangeReady, guest.ChangeCreated, guest.ChangeModified, guest.ChangeRemoved, guest.ChangeMoved, guest.ChangeResync, guest.ChangePartial,
}

// watchFiles streams what happens in a directory.
func (s *Server) watchFiles(ctx context.Context, c *call, g *guest.Client, name string, in *readFileInput) (*huma.StreamResponse, error) {
	ctx, cancel := c.long(ctx)
	next, stop := iter.Pull2(g.Watch(ctx, name, in.Recursive))
	first, err, _ := next()
	if err != nil {
		stop()
		cancel()
		return nil, err
	}
	resumed := in.LastID != ""
	reply := s.streaming(c, func(sctx context.Context, out *stream) error {
		defer context.AfterFunc(sctx, cancel)() // the peer is gone
		n := 0
		for ch, ok := first, true; ok && ch.Kind != guest.ChangeEnd; {
			if slices.Contains(changes, ch.Kind) {
				n++
				if err := out.json(strconv.Itoa(n), ch.Kind, fromChange(ch)); err != nil {
					return err
				}
			}
			if ch.Kind == guest.ChangeReady && resumed {
				n++
				if err := out.json(strconv.Itoa(n), api.FileResync, api.FileChange{}); err != nil {
					return err
				}
			}
			var err error
			if ch, err, ok = next(); err != nil {
				return err
			}
		}
		return nil
	})
	return &huma.StreamResponse{Body: func(h huma.Context) {
		defer cancel()
		defer stop()
		reply.Body(h)
	}}, nil
}

func fromChange(ch guest.Change) api.FileChange {
	out := api.FileChange{From: string(ch.From), FromEscaped: escaped(string(ch.From))}
	if ch.File != (guest.File{}) {
		f := fromFile(ch.File)
		out.File = &f
	}
	return out
}
