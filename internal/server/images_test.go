package server_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/server"
)

var refusal = &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "disk_full", Detail: "No."}

// exporting is a manager with one image, of whose archive begun comes before the refusal.
type exporting struct {
	*stubManager
	begun string
}

func (m exporting) Image(_ context.Context, _, id string) (sandbox.StoredImage, error) {
	return sandbox.StoredImage{ID: id}, nil
}

func (m exporting) ExportImage(_ context.Context, _, _ string, _ engine.ArchiveFormat, w io.Writer) error {
	if m.begun == "" {
		return refusal
	}
	if _, err := io.WriteString(w, m.begun); err != nil {
		return err
	}
	return refusal
}

// TestAnArchiveThatFails is refused like anything else while nothing of it is sent; after that it is broken off.
func TestAnArchiveThatFails(t *testing.T) {
	t.Parallel()
	for name, begun := range map[string]string{"at once": "", "half way": strings.Repeat("x", 1<<20)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *server.Config) { c.Manager = exporting{&stubManager{}, begun} })
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.URL+"/image/"+sandbox.NewID(sandbox.PrefixImage)+"/export", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+r.Key)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if begun != "" {
				if res.StatusCode != http.StatusOK || err == nil {
					t.Errorf("status %d with %d bytes, %v; want one that breaks off", res.StatusCode, len(body), err)
				}
				return
			}
			if err != nil || res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Content-Type") != api.ContentTypeProblem ||
				res.Header.Get("Content-Disposition") != "" || !strings.Contains(string(body), "disk_full") {
				t.Errorf("status %d %v %v: %s", res.StatusCode, res.Header, err, body)
			}
		})
	}
}
