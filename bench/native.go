package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/gateway"
)

// native is Claude Code on this host, without a sandbox, with the same demo model.
type native struct {
	program, dir string
	model        *httptest.Server
}

func newNative(dir, toolkit string) (*native, error) {
	n := &native{program: filepath.Join(toolkit, "claude-"+claude.Version, "bin", "claude"), dir: filepath.Join(dir, "native")}
	n.model = httptest.NewServer(http.Handler(gateway.NewDemo()))
	return n, os.MkdirAll(n.dir, 0o755)
}

func (n *native) close() { n.model.Close() }

func (n *native) firstLine(ctx context.Context) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, n.program, "-p", "--output-format=stream-json", "--verbose", "--include-partial-messages",
		"--permission-mode=bypassPermissions")
	cmd.Dir, cmd.Stdin = n.dir, strings.NewReader(prompt)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.dir, "IS_SANDBOX=1", "ANTHROPIC_BASE_URL=" + n.model.URL,
		"ANTHROPIC_API_KEY=none", "DISABLE_AUTOUPDATER=1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begin, first := time.Now(), time.Duration(0)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for r := bufio.NewReader(out); ; {
		line, err := r.ReadString('\n')
		if first == 0 && strings.Contains(line, `"subtype":"init"`) {
			first = time.Since(begin)
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("claude: %w", err)
	}
	if first == 0 {
		return 0, errors.New("no system/init line came")
	}
	return first, nil
}
