package web_test

import (
	"io/fs"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/web"
)

// read returns each file of the UI with one of the endings.
func read(t *testing.T, endings ...string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(web.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, e := range endings {
			if strings.HasSuffix(name, e) {
				b, err := fs.ReadFile(web.FS(), name)
				if err != nil {
					return err
				}
				files[name] = string(b)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

var (
	importing = regexp.MustCompile(`\b(?:from|import)\s*\(?\s*"([.@a-z][^"\s]*)"`)
	linked    = regexp.MustCompile(`(?:src|href)="(/[^"]+)"`)
)

// TestModules checks that every module that is imported is there: without a build step nobody else would.
func TestModules(t *testing.T) {
	t.Parallel()
	for name, text := range read(t, ".js") {
		if strings.HasPrefix(name, "vendor/highlight/") || strings.HasPrefix(name, "vendor/xterm/") || name == "vendor/purify.js" || name == "vendor/marked.js" {
			continue // whole by themselves
		}
		for _, m := range importing.FindAllStringSubmatch(text, -1) {
			if !strings.HasPrefix(m[1], ".") {
				t.Errorf("%s imports %q: only relative paths work in a browser without an import map", name, m[1])
				continue
			}
			if _, err := fs.Stat(web.FS(), path.Join(path.Dir(name), m[1])); err != nil {
				t.Errorf("%s imports %q: %v", name, m[1], err)
			}
		}
	}
}

// TestPage checks that the page holds to its own content security policy.
func TestPage(t *testing.T) {
	t.Parallel()
	page := read(t, "index.html")["index.html"]
	for _, bad := range []string{"<style", "style=", "onclick", "onload", "http:", "https:"} {
		if strings.Contains(page, bad) {
			t.Errorf("index.html contains %q", bad)
		}
	}
	// Named here, all modules come at once; found one after the other, each level of imports costs a round trip.
	for name := range read(t, ".js") {
		if strings.HasPrefix(name, "vendor/highlight/") || strings.HasPrefix(name, "vendor/xterm/") {
			continue // loaded when code, or a terminal, is shown
		}
		if !strings.Contains(page, `="/`+name+`"`) {
			t.Errorf("index.html doesn't name %s", name)
		}
	}
	for _, m := range linked.FindAllStringSubmatch(page, -1) {
		if _, err := fs.Stat(web.FS(), m[1][1:]); err != nil && m[1] != "/docs" {
			t.Errorf("index.html names %s: %v", m[1], err)
		}
	}
	if regexp.MustCompile(`<script(?:\s[^>]*)?>[^<]`).MatchString(page) {
		t.Error("index.html has an inline script")
	}
}

// TestSize keeps the UI light: what every visitor loads stays small, and files stay readable.
func TestSize(t *testing.T) {
	t.Parallel()
	for name, text := range read(t, ".js", ".css") {
		switch {
		case strings.HasPrefix(name, "vendor/"):
			if len(text) > 340<<10 {
				t.Errorf("%s has %d bytes", name, len(text))
			}
		case strings.Count(text, "\n") > 600:
			t.Errorf("%s has more than 600 lines", name)
		}
	}
}

// TestScripts runs the tests of the parts that need no document.
func TestScripts(t *testing.T) {
	t.Parallel()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed")
	}
	out, err := exec.CommandContext(t.Context(), node, "--test", "--test-reporter=tap", "test/").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
