package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const filesRoute = "/sandbox/{id}/files/{path...}"

func (s *Server) fileRoutes(h huma.API) {
	tags := []string{"Files"}
	bytes := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
	schema := func(v any) *huma.Schema { return answers(h, v, "")["200"].Content["application/json"].Schema }
	read := answers(h, api.FileList{}, "With watch: "+watchEvents)
	read["200"].Content["application/octet-stream"] = bytes
	read["200"].Content["application/json"] = &huma.MediaType{Schema: &huma.Schema{OneOf: []*huma.Schema{schema(api.FileList{}), schema(api.File{})}}}
	add(s, h, strict(huma.Operation{
		OperationID: "read-file", Method: http.MethodGet, Path: filesRoute, Tags: tags, Parameters: pathParam, Summary: "Read a file, list, download or watch a directory",
		Description: "A file is answered with as bytes, a directory as JSON. The path is relative to the sandbox's root, each part percent-encoded; names are bytes and need not be UTF-8.\n\n" +
			"Files know `Range`, `If-Range`, `If-None-Match`, `If-Match` and the like, by the `ETag` that each answer has. A file that shrinks while it is read ends in a connection " +
			"that is cut off, never in a short answer that looks whole.\n\nWith `format` a directory is an archive: links are links and not followed, modes are kept, sockets, pipes and devices are left out.\n\n" +
			"With `watch` a directory's changes come as events: " + watchEvents + " Nothing is kept for who isn't there: a stream that is opened again says `ready`, and `resync` where a `Last-Event-ID` shows that one was cut.",
		Responses: read,
	}), s.readFile)
	add(s, h, strict(huma.Operation{
		OperationID: "write-file", Method: http.MethodPut, Path: filesRoute, Tags: tags, Parameters: pathParam, Summary: "Write a file, or unpack an archive",
		Description: "A file is written whole or not at all, and read by others as the old one until then. Directories above it are made. What is replaced keeps owner and mode; what is new belongs to the agent. " +
			"`If-Match` replaces only the version with that ETag, `If-None-Match: *` nothing; otherwise the answer is 412 with `changed` or `exists`.\n\n" +
			"With `format` the body is an archive, and the path a directory to unpack it in. Entries that would lead elsewhere (`..`, absolute names, names behind a link) and what is neither file, directory nor link " +
			"are not written, and told in the answer.",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/octet-stream": bytes}},
		Responses: map[string]*huma.Response{
			"200":     {Description: http.StatusText(http.StatusOK), Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{OneOf: []*huma.Schema{schema(api.File{}), schema(api.Unpacked{})}}}}},
			"default": read["default"],
		},
	}), s.writeFile)
	add(s, h, strict(huma.Operation{
		OperationID: "do-with-file", Method: http.MethodPost, Path: filesRoute, Tags: tags, Parameters: pathParam, Summary: "Make a directory, move, copy, change the mode",
		Description: "Answers with what is there afterwards. Where something is already, the answer is 409 with `exists`.",
	}), s.fileOp)
	add(s, h, strict(huma.Operation{
		OperationID: "delete-file", Method: http.MethodDelete, Path: filesRoute, Tags: tags, Parameters: pathParam, Summary: "Delete a file or a directory with all that is in it",
	}), s.deleteFile)
}

// pathParam describes the rest of the route, which huma doesn't take for a parameter when it is empty: the root.
var pathParam = []*huma.Param{{
	Name: "path", In: "path", Required: true, Description: "Path in the sandbox, from its root.", Example: "workspace/main.go",
	Schema: &huma.Schema{Type: huma.TypeString},
}}

// fileOf is the path in the sandbox that a request names.
func fileOf(c *call) string { return path.Clean("/" + c.r.PathValue("path")) }

// escaped returns the path as it stands in an address, if JSON can't hold it.
func escaped(name string) string {
	if utf8.ValidString(name) {
		return ""
	}
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

func fromFile(f guest.File) api.File {
	return api.File{
		Name: f.Name, Path: f.Path, Escaped: escaped(f.Path), Type: f.Type, Size: f.Size, Mode: fmt.Sprintf("%04o", f.Mode),
		UID: f.UID, GID: f.GID, ModTime: f.ModTime.UTC(), Target: f.Target, ETag: f.ETag,
	}
}

type readFileInput struct {
	SandboxInput
	Stat      bool   `query:"stat" doc:"Answer with what the entry is, as JSON, without following a link."`
	Limit     int    `query:"limit" minimum:"1" maximum:"20000" doc:"Entries of a directory to list at most. Default: as many as fit, up to 20,000."`
	Cursor    string `query:"cursor" doc:"The next_cursor of the page before."`
	Contains  string `query:"contains" doc:"List only entries whose name holds this, in letters of either case."`
	Format    string `query:"format" enum:"tar,tar.gz,zip" doc:"Download a directory as an archive."`
	Watch     bool   `query:"watch" doc:"Follow what changes in a directory, as events."`
	Recursive bool   `query:"recursive" doc:"With watch: in the directories below, too."`
	LastID    string `header:"Last-Event-ID" doc:"With watch: the stream was cut."`
}

func (s *Server) readFile(ctx context.Context, c *call, in *readFileInput) (*huma.StreamResponse, error) {
	g, err := s.cfg.Manager.Guest(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	name := fileOf(c)
	switch {
	case in.Watch:
		return s.watchFiles(ctx, c, g, name, in)
	case in.Stat:
		file, err := g.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		return answer(c, fromFile(file)), nil
	case in.Format != "":
		return s.sendTree(ctx, c, g, name, in)
	}
	r, err := g.OpenFile(ctx, name, c.r.Method == http.MethodHead, c.r.Header)
	if e, ok := errors.AsType[*guest.Error](err); ok && e.Code == "is_directory" {
		return s.listDir(ctx, c, g, name, in)
	}
	if err != nil {
		return nil, err
	}
	if r.Status == http.StatusRequestedRangeNotSatisfiable {
		_ = r.Close() // only read from
		c.w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(r.File.Size, 10))
		return nil, refuse(r.Status, "range_not_satisfiable", "The file has %d bytes; the range lies behind them or is none.", r.File.Size)
	}
	return &huma.StreamResponse{Body: func(huma.Context) { sendFile(c, r, path.Base(name)) }}, nil
}

// listDir answers with a page of a directory.
func (s *Server) listDir(ctx context.Context, c *call, g *guest.Client, name string, in *readFileInput) (*huma.StreamResponse, error) {
	after, err := base64.RawURLEncoding.DecodeString(in.Cursor)
	if err != nil || strings.ContainsAny(string(after), "/\x00") {
		return nil, sandbox.Invalid("cursor", "is not a next_cursor of a directory")
	}
	page, err := g.ReadDirPage(ctx, name, string(after), in.Contains, in.Limit)
	if err != nil {
		return nil, err
	}
	list := api.FileList{Path: name, Entries: each(page.Entries, fromFile)}
	if n := len(page.Entries); page.More && n > 0 {
		list.NextCursor = base64.RawURLEncoding.EncodeToString([]byte(page.Entries[n-1].Name))
	}
	return answer(c, list), nil
}

// attachment sets the headers of what a sandbox wrote: something to keep, never something that runs in our origin.
func attachment(h http.Header, name string) {
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	if d := mime.FormatMediaType("attachment", map[string]string{"filename": name}); d != "" && utf8.ValidString(name) {
		h.Set("Content-Disposition", d)
	} else {
		h.Set("Content-Disposition", "attachment")
	}
}

var (
	contentRange = regexp.MustCompile(`^bytes \d+-\d+/\d+$`)
	manyRanges   = regexp.MustCompile(`^multipart/byteranges; boundary=[0-9A-Za-z]{1,70}$`)
	etags        = regexp.MustCompile(`^"[0-9a-z-]{1,100}"$`)
)

// sendFile sends a file, or what was asked for of it. What the guest says of it may be the sandbox's words.
func sendFile(c *call, r *guest.Content, name string) {
	defer func() { _ = r.Close() }() // it was only read
	h := c.w.Header()
	attachment(h, name)
	h.Set("Last-Modified", r.File.ModTime.UTC().Format(http.TimeFormat))
	if etags.MatchString(r.File.ETag) {
		h.Set("ETag", r.File.ETag)
		h.Set("Accept-Ranges", "bytes")
	}
	switch {
	case r.Status == http.StatusNotModified:
		h.Del("Content-Type")
		c.w.WriteHeader(r.Status)
		return
	case r.Status != http.StatusPartialContent:
	case contentRange.MatchString(r.Range):
		h.Set("Content-Range", r.Range)
	case manyRanges.MatchString(r.Type):
		h.Set("Content-Type", r.Type)
	default:
		panic(http.ErrAbortHandler) // nobody could tell which part it is
	}
	if r.Length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(r.Length, 10))
	}
	c.w.WriteHeader(r.Status)
	if c.r.Method == http.MethodHead {
		return
	}
	copyOut(c, r)
}

// copyOut sends all of r. Half a file must not look like a whole one.
func copyOut(c *call, r io.Reader) {
	if _, err := io.CopyBuffer(struct{ io.Writer }{c.w}, struct{ io.Reader }{r}, make([]byte, 256<<10)); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// sendTree sends a directory as an archive.
func (s *Server) sendTree(ctx context.Context, c *call, g *guest.Client, name string, in *readFileInput) (*huma.StreamResponse, error) {
	r, err := g.ReadTree(ctx, name, in.Format)
	if err != nil {
		return nil, err
	}
	base := path.Base(name)
	if base == "/" {
		base = in.ID
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		defer func() { _ = r.Close() }() // it was only read
		attachment(c.w.Header(), base+"."+in.Format)
		c.w.WriteHeader(http.StatusOK)
		if c.r.Method != http.MethodHead {
			copyOut(c, r)
		}
	}}, nil
}

type writeFileInput struct {
	SandboxInput
	Mode        string `query:"mode" pattern:"^[0-7]{1,4}$" doc:"Octal permission bits. Default: as before, or 0644." example:"0755"`
	HeaderMode  string `header:"Sandlot-Mode" pattern:"^[0-7]{1,4}$" doc:"The same as mode."`
	Owner       string `query:"owner" doc:"Whom it belongs to: agent, root, or a user of the sandbox by name or number. Default: as before, or the agent."`
	Format      string `query:"format" enum:"tar,tar.gz,zip" doc:"The body is an archive, to be unpacked below the path."`
	IfMatch     string `header:"If-Match" doc:"Replace only this version; * = only if it is there."`
	IfNoneMatch string `header:"If-None-Match" doc:"* = only if nothing is there."`
}

func (s *Server) writeFile(ctx context.Context, c *call, in *writeFileInput) (*huma.StreamResponse, error) {
	g, err := s.cfg.Manager.Guest(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	mode := in.Mode
	if mode == "" {
		mode = in.HeaderMode
	}
	bits, err := modeOf(mode)
	if err != nil {
		return nil, err
	}
	if in.Format != "" && (mode != "" || in.IfMatch != "" || in.IfNoneMatch != "") {
		return nil, sandbox.Invalid("format", "goes with owner only; modes are in the archive, and conditions are about one file")
	}
	from := &patientReader{c: c, timeout: s.cfg.ReadTimeout}
	var out any
	if in.Format != "" {
		var done guest.Unpacked
		done, err = g.WriteTree(ctx, fileOf(c), in.Format, in.Owner, from)
		out = fromUnpacked(done)
	} else {
		var file guest.File
		file, err = g.PutFile(ctx, fileOf(c), from, guest.Write{Mode: bits, Owner: in.Owner, IfMatch: in.IfMatch, IfNoneMatch: in.IfNoneMatch})
		out = fromFile(file)
		if etags.MatchString(file.ETag) {
			c.w.Header().Set("ETag", file.ETag)
		}
	}
	_ = c.w.control.SetReadDeadline(time.Time{}) // not supported = none was set
	if err != nil {
		if cause := from.err.Load(); cause != nil {
			err = refuse(http.StatusBadRequest, "incomplete_body", "The file's bytes did not arrive whole.").because(*cause)
		}
		return nil, err
	}
	return answer(c, out), nil
}

func fromUnpacked(u guest.Unpacked) api.Unpacked {
	return api.Unpacked{Entries: u.Entries, Bytes: u.Bytes, Refused: u.Refused, Errors: each(u.Errors, func(r guest.Refused) api.UnpackRefusal {
		return api.UnpackRefusal{Name: r.Name, Code: r.Code, Detail: r.Detail}
	})}
}

// modeOf reads octal permission bits; "" is 0.
func modeOf(s string) (fs.FileMode, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n == 0 || n > 0o7777 {
		return 0, sandbox.Invalid("mode", "must be octal permission bits from 1 to 7777")
	}
	m := fs.FileMode(n & 0o777)
	for bit, special := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if n&bit != 0 {
			m |= special
		}
	}
	return m, nil
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

type fileOpInput struct {
	SandboxInput
	Body api.FileOp
}

func (s *Server) fileOp(ctx context.Context, c *call, in *fileOpInput) (*body[api.File], error) {
	op, name := in.Body, fileOf(c)
	mode, err := modeOf(op.Mode)
	if err != nil {
		return nil, err
	}
	to := op.To
	if op.ToEscaped != "" {
		if to, err = url.PathUnescape(op.ToEscaped); err != nil || op.To != "" {
			return nil, sandbox.Invalid("to_escaped", "must be a percent-encoded path, and stand alone")
		}
	}
	transfer := op.Op == api.FileMove || op.Op == api.FileCopy
	switch {
	case transfer && !strings.HasPrefix(to, "/"):
		return nil, sandbox.Invalid("to", "must be a path from the sandbox's root")
	case !transfer && (to != "" || op.Overwrite):
		return nil, sandbox.Invalid("to", "belongs to move and copy, as overwrite does")
	case transfer && op.Mode != "", op.Op == api.FileChmod && op.Mode == "":
		return nil, sandbox.Invalid("mode", "belongs to chmod, which needs it, and to mkdir")
	case op.Owner != "" && op.Op != api.FileMkdir:
		return nil, sandbox.Invalid("owner", "belongs to mkdir")
	}
	g, err := s.cfg.Manager.Guest(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	var file guest.File
	switch op.Op {
	case api.FileMkdir:
		file, err = g.MakeDir(ctx, name, mode, op.Owner)
	case api.FileMove:
		file, err = g.Move(ctx, name, to, op.Overwrite)
	case api.FileCopy:
		file, err = g.Copy(ctx, name, to, op.Overwrite)
	case api.FileChmod:
		file, err = g.Chmod(ctx, name, mode)
	}
	if err != nil {
		return nil, err
	}
	return &body[api.File]{fromFile(file)}, nil
}

type deleteFileInput struct {
	SandboxInput
	Recursive bool `query:"recursive" default:"true" doc:"Delete a directory with all that is in it; false: only if it is empty."`
}

func (s *Server) deleteFile(ctx context.Context, c *call, in *deleteFileInput) (*struct{}, error) {
	g, err := s.cfg.Manager.Guest(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	if in.Recursive {
		return nil, g.RemoveAll(ctx, fileOf(c))
	}
	return nil, g.Remove(ctx, fileOf(c))
}
