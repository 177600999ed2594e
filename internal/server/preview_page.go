package server

import (
	"bytes"
	"html/template"
	"net/http"
	"strconv"

	"github.com/sandlot-dev/sandlot/api"
)

// previewPage is what a browser shows when there is no preview.
var previewPage = template.Must(template.New("preview").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{{if .Retry}}<meta http-equiv="refresh" content="{{.Retry}}">
{{end}}<title>{{.Title}}</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 18vh auto 0; padding: 0 1.5rem }
h1 { font-size: 1.25rem; margin: 0 0 .5rem }
p { margin: 0 0 .5rem; opacity: .8 }
small { opacity: .6 }
</style></head>
<body><main><h1>{{.Title}}</h1><p>{{.Detail}}</p>{{if .Retry}}<p>This page tries again by itself.</p>{{end}}
<small>Sandlot preview &middot; {{.Code}} &middot; {{.RequestID}}</small></main></body></html>
`))

// previewRetry is how many seconds a browser waits before it asks again.
const previewRetry = 2

// writePreviewProblem answers with p: a page for people, a problem for programs. What may come right soon is asked for again.
func writePreviewProblem(c *call, title string, p *problem) {
	h := c.w.Header()
	h.Set(api.HeaderRequestID, c.id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if p.Retryable {
		h.Set("Retry-After", strconv.Itoa(previewRetry))
	}
	h.Add("Vary", "Accept")
	if !wantsPage(c.r) {
		p.Title = title
		writeProblem(c.w, c.r, p)
		return
	}
	c.fail(p)
	page := struct {
		Title, Detail, Code, RequestID string
		Retry                          int
	}{Title: title, Detail: p.Detail, Code: p.Code, RequestID: c.id}
	if p.Retryable {
		page.Retry = previewRetry
	}
	var b bytes.Buffer
	if err := previewPage.Execute(&b, page); err != nil { // to memory, of strings: can't fail
		panic(err)
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	c.w.WriteHeader(p.Status)
	if c.r.Method != http.MethodHead {
		_, _ = c.w.Write(b.Bytes()) // a caller that left needs no page
	}
}
