// Package test holds what is tested of the repository as a whole: who imports whom, and that every package says what it is.
package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sandlot-dev/sandlot"

// pkg is what `go list` tells of a package.
type pkg struct {
	ImportPath string
	Doc        string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Doc,Imports,Deps", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]pkg{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")] = p
	}
}

// allowed says which of our packages each one may import; ARCHITECTURE.md draws it. A package that isn't named may import none.
var allowed = map[string][]string{
	"client":                     {"api"},
	"internal/claude":            {"internal/guest", "internal/sandbox"},
	"internal/engine":            {"internal/sandbox"},
	"internal/engine/enginetest": {"internal/engine", "internal/guest", "internal/sandbox"},
	"internal/engine/fake":       {"internal/engine", "internal/guest", "internal/sandbox"},
	"internal/engine/local":      {"internal/engine", "internal/guest", "internal/image", "internal/image/build", "internal/image/rootfs", "internal/netguard", "internal/sandbox"},
	"internal/gateway":           {"internal/guest", "internal/netguard", "internal/sandbox"},
	"internal/netguard":          {"internal/sandbox"},
	"internal/image":             {"internal/image/rootfs", "internal/sandbox"},
	"internal/image/build":       {"internal/image", "internal/sandbox"},
	"internal/image/rootfs":      {"internal/sandbox"},
	"internal/lifecycle":         {"internal/engine", "internal/guest", "internal/sandbox"},
	"internal/store":             {"internal/sandbox"},
	"internal/vault":             {"internal/sandbox"},
	"internal/server":            {"api", "internal/claude", "internal/engine", "internal/guest", "internal/lifecycle", "internal/sandbox", "internal/store"},
	"cmd/sandlot-guest":          {"internal/guest"},
}

// free may import everything: they put things together, and nobody imports them.
var free = []string{"cmd/sandlot", "bench", "test/e2e", "test/toolkit", "test/runtime", "internal/server/servertest", "internal/image/imagetest"}

func TestImportsGoOneWay(t *testing.T) {
	t.Parallel()
	for name, p := range list(t) {
		for _, path := range p.Imports {
			ours, ok := strings.CutPrefix(path, module+"/")
			switch {
			case !ok:
			case slices.Contains(free, ours):
				t.Errorf("%s imports %s, which nobody may", name, ours)
			case !slices.Contains(free, name) && !slices.Contains(allowed[name], ours):
				t.Errorf("%s may not import %s: see ARCHITECTURE.md", name, ours)
			}
		}
	}
}

// TestHeavyThingsStayOut bans by name what would bloat what others link, or take the server into a sandbox.
func TestHeavyThingsStayOut(t *testing.T) {
	t.Parallel()
	packages := list(t)
	for name, banned := range map[string][]string{
		"cmd/sandlot-guest":  {"testing", "gvisor.dev/", "modernc.org/", "github.com/danielgtaylor/", "github.com/spf13/cobra", "database/sql"},
		"client":             {"testing", "gvisor.dev/", "modernc.org/", "github.com/danielgtaylor/", module + "/internal"},
		"api":                {"net/http", "testing", module + "/"},
		"cmd/sandlot":        {"testing", "github.com/chromedp/", "go.uber.org/goleak", module + "/internal/engine/fake"},
		"internal/lifecycle": {"gvisor.dev/", "modernc.org/"},
		"internal/server":    {"gvisor.dev/"},
	} {
		for _, dep := range packages[name].Deps {
			for _, b := range banned {
				if dep == b || strings.HasSuffix(b, "/") && strings.HasPrefix(dep, b) {
					t.Errorf("%s depends on %s", name, dep)
				}
			}
		}
		if _, ok := packages[name]; !ok {
			t.Errorf("there is no package %s", name)
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	t.Parallel()
	for name, p := range list(t) {
		if p.Doc == "" && name != "test" && name != "test/e2e" { // go list tells no doc of test files
			t.Errorf("package %s has no comment", name)
		}
	}
}
