package claude_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// fakeNPM is a directory with a program npm in it that notes its arguments in the file calls and runs script. P is the directory
// under which it must put the native program.
func fakeNPM(t *testing.T, script string) (env []string, calls string) {
	t.Helper()
	dir := t.TempDir()
	calls = filepath.Join(dir, "calls")
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	text := `#!/bin/sh
echo "$*" >> ` + calls + `
prefix=$3
P="$prefix/node_modules/@anthropic-ai/claude-code-linux-` + arch + `"
cli() { mkdir -p "$1"; printf '#!/bin/sh\n%s\n' "$2" > "$1/claude"; }
` + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "npm"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{"PATH=/nowhere", "HOME=" + dir, "PATH=" + dir + ":/usr/bin:/bin"}, calls
}

const goodCLI = `cli "$P" '[ "$1" = --version ] && [ -z "$SECRET" ] && echo "` + claude.Version + ` (Claude Code)"'`

func TestToolkit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		script string
		code   string // of the problem; "" = it works
		detail string
	}{
		{"well", goodCLI, "", ""},
		{"only musl runs", `cli "$P" 'echo cannot; exit 127'; cli "$P-musl" 'echo "` + claude.Version + ` (Claude Code)"'`, "", ""},
		{"npm fails", `echo "npm ERR! no network"; exit 1`, "npm_failed", "no network"},
		{"npm brings nothing", `:`, "claude_unusable", "optional"},
		{"another version", `cli "$P" 'echo 1.0.0'`, "claude_unusable", "1.0.0"},
		{"a link", `mkdir -p "$P"; ln -s /bin/sh "$P/claude"`, "claude_unusable", "not a file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "toolkit")
			env, calls := fakeNPM(t, tt.script)
			tk := claude.OpenToolkit(claude.ToolkitConfig{Dir: dir, Env: append(env, "SECRET=1")})
			broken := tk.Dir() + ".tmp-left"
			for _, d := range []string{broken, tk.Dir()} { // from an installation that was broken off
				if err := os.MkdirAll(d, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			err := tk.Ensure(t.Context())
			if tt.code != "" {
				wantProblem(t, err, sandbox.ErrUnavailable, tt.code, "")
				if err != nil && !strings.Contains(err.Error(), tt.detail) {
					t.Errorf("error %v", err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			left, gerr := filepath.Glob(filepath.Join(dir, "*.tmp-*"))
			if gerr != nil || len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if tt.code != "" {
				return
			}
			fi, err := os.Stat(filepath.Join(tk.Dir(), "bin", "claude"))
			if err != nil || fi.Mode().Perm() != 0o755 {
				t.Fatalf("%v %v", fi, err)
			}
			if err := tk.Ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(calls)
			if lines := strings.Split(strings.TrimSpace(string(text)), "\n"); err != nil || len(lines) != 1 ||
				!strings.HasSuffix(lines[0], "--ignore-scripts --include=optional @anthropic-ai/claude-code@"+claude.Version) {
				t.Errorf("npm was called with %q, %v", text, err)
			}
		})
	}
}

func TestToolkitOnceForAll(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env, calls := fakeNPM(t, goodCLI)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := claude.OpenToolkit(claude.ToolkitConfig{Dir: dir, Env: env}).Ensure(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if text, err := os.ReadFile(calls); err != nil || strings.Count(string(text), "\n") != 1 {
		t.Errorf("npm was called: %s", text)
	}
}

func TestToolkitProblems(t *testing.T) {
	t.Parallel()
	tk := claude.OpenToolkit(claude.ToolkitConfig{Dir: t.TempDir(), Env: []string{"PATH=" + t.TempDir()}})
	wantProblem(t, tk.Ensure(t.Context()), sandbox.ErrUnavailable, "npm_missing", "")

	env, _ := fakeNPM(t, goodCLI)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := claude.OpenToolkit(claude.ToolkitConfig{Dir: t.TempDir(), Env: env}).Ensure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := claude.OpenToolkit(claude.ToolkitConfig{Dir: file}).Ensure(t.Context()); err == nil {
		t.Error("a file as the directory")
	}
}
