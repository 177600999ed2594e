package server

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/sandlot-dev/sandlot/api"
)

//go:embed docs
var docsFS embed.FS

const (
	maxBody   = 1 << 20
	maxPrompt = 12 << 20 // a prompt of 10 MiB, and what JSON adds to it
)

// about is what the API's description says first.
const about = `Sandlot gives every user of a coding agent an isolated computer.

Make a sandbox, run programs or Claude Code in it, and read along. A run belongs to the server: a client that leaves, or a
connection that breaks, never ends it. Every stream can be read on from the id of its last event, by ` + "`Last-Event-ID`" + ` or
` + "`?after=`" + `; one that has said all ends with ` + "`data: [DONE]`" + `.

Every error is problem JSON with a stable ` + "`code`" + `.`

// routes builds the mux: every operation, and the description of them all.
func (s *Server) routes() error {
	hookHuma()
	format := huma.Format{
		Marshal: func(w io.Writer, v any) error {
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false)
			return enc.Encode(v)
		},
		Unmarshal: unmarshal,
	}
	h := humago.New(s.mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: "Sandlot", Version: cmpVersion(s.cfg.Version), Description: about},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", schemaName),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", Description: "An API key."},
					"key":    {Type: "apiKey", In: "header", Name: "X-API-Key", Description: "An API key."},
					"cookie": {Type: "apiKey", In: "cookie", Name: cookieName, Description: "What signing in sets."},
				},
			},
			Security: []map[string][]string{{"bearer": {}}, {"key": {}}, {"cookie": {}}},
		},
		Formats:       map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat: "application/json",
	})
	h.UseMiddleware(func(ctx huma.Context, next func(huma.Context)) {
		callOf(ctx.Context()).op = ctx.Operation()
		next(ctx)
	})

	s.sandboxRoutes(h)
	s.runRoutes(h)
	s.terminalRoutes(h)
	s.sessionRoutes(h)
	s.fileRoutes(h)
	s.imageRoutes(h)
	s.secretRoutes(h)
	s.previewRoutes(h)
	s.accountRoutes(h)

	s.anybody("GET /signin/{token}", s.signinLink)
	return s.describe(h.OpenAPI())
}

// anybody adds a route outside of huma that needs no sign-in.
func (s *Server) anybody(pattern string, handle http.HandlerFunc) {
	s.open[pattern] = true
	s.mux.HandleFunc(pattern, handle)
}

// describe makes /openapi.json and /docs.
func (s *Server) describe(spec *huma.OpenAPI) error {
	for path, item := range spec.Paths {
		if tidy := strings.ReplaceAll(path, "...}", "}"); tidy != path {
			delete(spec.Paths, path)
			spec.Paths[tidy] = item
		}
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("describe the API: %w", err)
	}
	s.spec = newPage("openapi.json", b)
	s.anybody("GET /openapi.json", s.spec.serve)

	tree, err := fs.Sub(docsFS, "docs")
	if err != nil {
		return fmt.Errorf("describe the API: %w", err)
	}
	if s.docs, err = loadSite(tree); err != nil {
		return err
	}
	s.anybody("GET /docs", s.docs.files["index.html"].serve)
	for _, name := range []string{"docs.js", "docs.css"} {
		s.anybody("GET /docs/"+name, s.docs.files[name].serve)
	}
	return nil
}

// handler decodes nothing and encodes nothing: it makes the one call.
type handler[I, O any] func(ctx context.Context, c *call, in *I) (*O, error)

// add adds an operation.
func add[I, O any](s *Server, h huma.API, op huma.Operation, do handler[I, O]) {
	if op.MaxBodyBytes == 0 {
		op.MaxBodyBytes = maxBody
	}
	op.BodyReadTimeout = s.cfg.ReadTimeout
	huma.Register(h, op, func(ctx context.Context, in *I) (*O, error) {
		c := callOf(ctx)
		// The body has been read. A deadline that passed later would end the request.
		_ = c.w.control.SetReadDeadline(time.Time{}) // not supported = none was set
		out, err := do(ctx, c, in)
		if err != nil {
			p := problemOf(err)
			c.fail(p)
			return nil, p
		}
		return out, nil
	})
}

// strict makes op refuse query parameters that it doesn't know.
func strict(op huma.Operation) huma.Operation {
	op.RejectUnknownQueryParameters = true
	return op
}

// free is strict for an operation that needs no sign-in.
func (s *Server) free(op huma.Operation) huma.Operation {
	op.Security = []map[string][]string{{}}
	s.open[op.Method+" "+op.Path] = true
	return strict(op)
}

// schemaName names a schema as its Go type.
func schemaName(t reflect.Type, hint string) string {
	if t == reflect.TypeFor[problem]() {
		return "Problem"
	}
	if t == reflect.TypeFor[api.Problem]() || t == reflect.TypeFor[*api.Problem]() { // the same, on a socket
		return "SocketProblem"
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// answers describes answers that huma can't derive: of an operation that answers with JSON or a stream.
func answers(h huma.API, list any, events string) map[string]*huma.Response {
	content := map[string]*huma.MediaType{}
	if list != nil {
		t := reflect.TypeOf(list)
		content["application/json"] = &huma.MediaType{Schema: h.OpenAPI().Components.Schemas.Schema(t, true, t.Name())}
	}
	if events != "" {
		content[api.ContentTypeEvents] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Description: events}}
	}
	problems := h.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[problem](), true, "Problem")
	return map[string]*huma.Response{
		"200":     {Description: http.StatusText(http.StatusOK), Content: content},
		"default": {Description: "Error", Content: map[string]*huma.MediaType{api.ContentTypeProblem: {Schema: problems}}},
	}
}

// answer sends v as JSON from an operation that may also answer otherwise.
func answer(c *call, v any) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(huma.Context) {
		c.w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(c.w)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(v) // a caller that left needs no answer
	}}
}

// body is an answer with a JSON body.
type body[T any] struct {
	Body T
}

// cmpVersion is the version, or what stands for none: the description must have one.
func cmpVersion(v string) string {
	if v == "" {
		return "dev"
	}
	return v
}
