package server

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// site serves a tree of static files out of memory.
type site struct {
	files map[string]*page
}

// page is a file that is ready to be sent.
type page struct {
	ctype string
	etag  string
	body  []byte
	gzip  []byte // nil if that is not shorter
}

// contentTypes of the files that a UI has. What the machine's own tables say varies.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".mjs": "text/javascript; charset=utf-8", ".json": "application/json", ".map": "application/json", ".svg": "image/svg+xml",
	".png": "image/png", ".ico": "image/x-icon", ".webp": "image/webp", ".woff2": "font/woff2", ".txt": "text/plain; charset=utf-8",
	".md": "text/plain; charset=utf-8", ".webmanifest": "application/manifest+json",
}

// noUI is what there is to see without a UI.
const noUI = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Sandlot</title>
<h1>Sandlot</h1><p>This server was built without its web UI. The API is described at <a href="/docs">/docs</a>.</p></html>`

// loadSite reads all of tree; nil is the site that says that there is none.
func loadSite(tree fs.FS) (*site, error) {
	s := &site{files: map[string]*page{}}
	if tree == nil {
		s.files["index.html"] = newPage("index.html", []byte(noUI))
		return s, nil
	}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		s.files[name] = newPage(name, b)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the UI: %w", err)
	}
	if s.files["index.html"] == nil {
		s.files["index.html"] = newPage("index.html", []byte(noUI))
	}
	return s, nil
}

func newPage(name string, body []byte) *page {
	sum := sha256.Sum256(body)
	p := &page{ctype: contentTypes[path.Ext(name)], etag: hex.EncodeToString(sum[:12]), body: body}
	if p.ctype == "" {
		p.ctype = "application/octet-stream"
	}
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is good
	_, _ = z.Write(body)                                  // to memory: can't fail
	_ = z.Close()
	if b.Len() < len(body)*9/10 {
		p.gzip = b.Bytes()
	}
	return p
}

// serve answers with the file that r names, or, if a browser wants a page, with index.html: the UI's own routes are made
// there. It reports whether it has.
func (s *site) serve(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	name := strings.TrimPrefix(path.Clean(r.URL.Path), "/")
	if name == "" {
		name = "index.html"
	}
	p := s.files[name]
	if p == nil && wantsPage(r) {
		p = s.files["index.html"]
	}
	if p == nil {
		return false
	}
	p.serve(w, r)
	return true
}

// serve sends the page, or says that the caller has it already.
func (p *page) serve(w http.ResponseWriter, r *http.Request) {
	body, etag := p.body, p.etag
	h := w.Header()
	if p.gzip != nil {
		h.Add("Vary", "Accept-Encoding")
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			body, etag = p.gzip, p.etag+"-gz"
			h.Set("Content-Encoding", "gzip")
		}
	}
	etag = `"` + etag + `"`
	h.Set("ETag", etag)
	h.Set("Cache-Control", "no-cache") // keep it, but ask each time
	h.Set("Content-Type", p.ctype)
	if strings.Contains(r.Header.Get("If-None-Match"), etag) {
		h.Del("Content-Encoding")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a caller that left needs no page
	}
}
