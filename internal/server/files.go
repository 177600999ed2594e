package server

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func (s *Server) fileRoutes(h huma.API) {
	tags := []string{"Files"}
	bytes := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
	read := answers(h, api.FileList{}, "")
	read["200"].Content["application/octet-stream"] = bytes
	const route = "/sandbox/{id}/files/{path...}"
	add(s, h, strict(huma.Operation{
		OperationID: "read-file", Method: http.MethodGet, Path: route, Tags: tags, Parameters: pathParam, Summary: "Read a file or list a directory",
		Description: "A file is answered with as bytes, a directory as JSON. The path is relative to the sandbox's root.", Responses: read,
	}), s.readFile)
	add(s, h, strict(huma.Operation{
		OperationID: "write-file", Method: http.MethodPut, Path: route, Tags: tags, Parameters: pathParam, Summary: "Write a file",
		Description: "Whole or not at all. Directories above it are made.",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/octet-stream": bytes}},
	}), s.writeFile)
	add(s, h, strict(huma.Operation{
		OperationID: "delete-file", Method: http.MethodDelete, Path: route, Tags: tags, Parameters: pathParam, Summary: "Delete a file or a directory with all that is in it",
	}), s.deleteFile)
}

// pathParam describes the rest of the route, which huma doesn't take for a parameter when it is empty: the root.
var pathParam = []*huma.Param{{
	Name: "path", In: "path", Required: true, Description: "Path in the sandbox, from its root.", Example: "workspace/main.go",
	Schema: &huma.Schema{Type: huma.TypeString},
}}

// fileOf is the path in the sandbox that a request names.
func fileOf(c *call) string { return path.Clean("/" + c.r.PathValue("path")) }

func (s *Server) readFile(ctx context.Context, c *call, in *SandboxInput) (*huma.StreamResponse, error) {
	g, err := s.cfg.Manager.Guest(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	name := fileOf(c)
	r, file, err := g.ReadFile(ctx, name)
	if e, ok := errors.AsType[*guest.Error](err); ok && e.Code == "is_directory" {
		entries, err := g.ReadDir(ctx, name)
		if err != nil {
			return nil, err
		}
		return answer(c, api.FileList{Path: name, Entries: each(entries, fromFile)}), nil
	}
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(huma.Context) { sendFile(c, r, file, path.Base(name)) }}, nil
}

// sendFile sends what a sandbox wrote: as something to keep, never as something that runs in our origin.
func sendFile(c *call, r io.ReadCloser, file guest.File, name string) {
	defer func() { _ = r.Close() }() // it was only read
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	if d := mime.FormatMediaType("attachment", map[string]string{"filename": name}); d != "" {
		h.Set("Content-Disposition", d)
	} else {
		h.Set("Content-Disposition", "attachment")
	}
	h.Set("Last-Modified", file.ModTime.UTC().Format(http.TimeFormat))
	var from io.Reader = r
	if file.Size > 0 { // the files of /proc have a size of 0 and more in them
		h.Set("Content-Length", strconv.FormatInt(file.Size, 10))
		from = io.LimitReader(r, file.Size) // it may be growing
	}
	if c.r.Method == http.MethodHead {
		return
	}
	n, err := io.Copy(c.w, from)
	if err != nil || n < file.Size {
		panic(http.ErrAbortHandler) // half a file must not look like a whole one
	}
}

func (s *Server) writeFile(ctx context.Context, c *call, in *SandboxInput) (*body[api.File], error) {
	g, err := s.cfg.Manager.Guest(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	from := &patientReader{c: c, timeout: s.cfg.ReadTimeout}
	file, err := g.WriteFile(ctx, fileOf(c), from, 0)
	_ = c.w.control.SetReadDeadline(time.Time{}) // not supported = none was set
	if err != nil {
		if cause := from.err.Load(); cause != nil {
			err = refuse(http.StatusBadRequest, "incomplete_body", "The file's bytes did not arrive whole.").because(*cause)
		}
		return nil, err
	}
	return &body[api.File]{fromFile(file)}, nil
}

// patientReader reads a body for as long as its bytes keep coming.
type patientReader struct {
	c       *call
	timeout time.Duration
	err     atomic.Pointer[error] // why it stopped before the end; whoever sends the bytes on reads in its own goroutine
}

func (p *patientReader) Read(b []byte) (int, error) {
	_ = p.c.w.control.SetReadDeadline(time.Now().Add(p.timeout)) // not supported = no deadline
	n, err := p.c.r.Body.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		p.err.Store(&err)
	}
	return n, err
}

func (s *Server) deleteFile(ctx context.Context, c *call, in *SandboxInput) (*struct{}, error) {
	g, err := s.cfg.Manager.Guest(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	return nil, g.RemoveAll(ctx, fileOf(c))
}
