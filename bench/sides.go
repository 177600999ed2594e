package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/gateway"
)

// server is our side: the real server, spoken to over HTTP.
type server struct {
	*client.Client
	cmd  *exec.Cmd
	data string
}

var link = regexp.MustCompile(`(http://[^\s/]+)/signin/`)

func startServer(ctx context.Context, bin, data, toolkit string) (*server, error) {
	const key = "slk_of-the-measurements"
	cmd := exec.CommandContext(context.WithoutCancel(ctx), bin, "serve", "--listen=127.0.0.1:0", "--demo-model", "--data="+data, "--toolkit="+toolkit)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "SANDLOT_ADMIN_KEY=" + key}
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := link.FindStringSubmatch(lines.Text()); m != nil {
			go func() { _, _ = io.Copy(io.Discard, out) }() // until the process ends
			s := &server{Client: client.New(m[1], key), cmd: cmd, data: data}
			return s, s.Ready(ctx)
		}
	}
	return nil, fmt.Errorf("the server ended: %w\n%s", cmd.Wait(), log.String())
}

func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.cmd.Wait()
}

func (s *server) createAndExec(ctx context.Context) (string, error) {
	sb, err := s.Create(ctx, api.CreateSandbox{})
	if err != nil {
		return "", err
	}
	return sb.ID, s.exec(ctx, sb.ID)
}

func (s *server) exec(ctx context.Context, id string) error {
	run, err := s.ExecWait(ctx, id, api.Exec{Argv: []string{"/bin/true"}})
	if err == nil && (run.ExitCode == nil || *run.ExitCode != 0) {
		err = fmt.Errorf("exec ended as %+v", run)
	}
	return err
}

func (s *server) terminate(ctx context.Context, id string) error {
	_, err := s.Terminate(ctx, id)
	return err
}

// prompt is what both sides ask; only the first line of the answer counts.
const prompt = "Say hello."

// firstLine sends a prompt, measures until the CLI's first line, and reads the rest, so that nothing goes on in the background.
func (s *server) firstLine(ctx context.Context, id string) (time.Duration, error) {
	begin, first := time.Now(), time.Duration(0)
	for e, err := range s.Prompt(ctx, id, api.Prompt{Prompt: prompt}) {
		if err != nil {
			return 0, err
		}
		if first == 0 && strings.Contains(e.Data, `"subtype":"init"`) {
			first = time.Since(begin)
		}
	}
	if first == 0 {
		return 0, errors.New("no system/init line came")
	}
	return first, nil
}

// raw is gVisor's own command line, which our program is too, on a copy of a sandbox's root.
type raw struct {
	runsc  string
	root   string
	bundle string
	config map[string]any
}

// newRaw copies the bundle of a real sandbox, so that both sides have the same root and the same mounts.
func newRaw(ctx context.Context, s *server, bin, dir, toolkit string) (_ *raw, err error) {
	sb, err := s.Create(ctx, api.CreateSandbox{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.terminate(context.WithoutCancel(ctx), sb.ID)) }()
	found, err := filepath.Glob(filepath.Join(s.data, "local", "sandboxes", sb.ID+"-*", "bundle"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("looking for the sandbox's bundle: %v, %w", found, err)
	}
	r := &raw{runsc: filepath.Join(dir, "runsc"), root: filepath.Join(dir, "state"), bundle: filepath.Join(dir, "bundle")}
	if err := os.MkdirAll(r.root, 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(bin, r.runsc); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", found[0], r.bundle).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copying the bundle: %w: %s", err, out)
	}
	old, err := filepath.Glob(filepath.Join(r.bundle, "root", ".gvisor.filestore.*"))
	if err != nil {
		return nil, err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return nil, err
		}
	}
	data, err := os.ReadFile(filepath.Join(r.bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &r.config); err != nil {
		return nil, err
	}
	// Sources stand there as the server's processes see them.
	for _, m := range r.config["mounts"].([]any) {
		m := m.(map[string]any)
		source, _ := m["source"].(string)
		switch rest := strings.SplitN(source, "/", 5); {
		case !strings.HasPrefix(source, "/run/sandlot/"):
		case strings.HasPrefix(rest[4], "data/"):
			m["source"] = filepath.Join(s.data, "local", strings.TrimPrefix(rest[4], "data/"))
		case m["destination"] == claude.MountPoint:
			m["source"] = filepath.Join(toolkit, "claude-"+claude.Version)
		default: // the guest's program
			m["source"] = filepath.Join(s.data, "guest")
		}
	}
	root := filepath.Join(r.bundle, "root")
	r.config["root"].(map[string]any)["path"] = root
	r.config["annotations"].(map[string]any)["dev.gvisor.spec.rootfs.source"] = root
	r.config["process"].(map[string]any)["args"] = []string{"/bin/sleep", "600"}
	r.config["mounts"] = slices.DeleteFunc(r.config["mounts"].([]any), func(m any) bool {
		source, _ := m.(map[string]any)["source"].(string)
		return strings.Contains(source, sb.ID) // its socket and state
	})
	data, err = json.Marshal(r.config)
	if err != nil {
		return nil, err
	}
	return r, os.WriteFile(filepath.Join(r.bundle, "config.json"), data, 0o600)
}

func (r *raw) call(ctx context.Context, args ...string) error {
	flags := []string{"--root=" + r.root, "--platform=systrap", "--network=none", "--host-uds=create", "--ignore-cgroups"}
	cmd := exec.CommandContext(ctx, r.runsc, append(flags, args...)...)
	var out bytes.Buffer
	f, err := os.CreateTemp("", "bench-runsc-") // a file: the detached sandbox keeps it open, and nobody waits for that
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		_, _ = f.Seek(0, io.SeekStart)
		_, _ = io.Copy(&out, f)
		return fmt.Errorf("runsc %v: %w: %s", args[0], err, out.String())
	}
	return nil
}

func (r *raw) runAndExec(ctx context.Context, i int) (string, error) {
	id := fmt.Sprintf("bench-%d", i)
	if err := r.call(ctx, "run", "-detach", "-bundle="+r.bundle, id); err != nil {
		return "", err
	}
	return id, r.exec(ctx, id)
}

func (r *raw) exec(ctx context.Context, id string) error { return r.call(ctx, "exec", id, "/bin/true") }

func (r *raw) remove(ctx context.Context, id string) error {
	err := r.call(ctx, "delete", "-force", id)
	// gVisor pins a network namespace by a mount in its directory.
	_ = syscall.Unmount(filepath.Join(r.root, "null-netns"), 0) // it may not be there
	return err
}

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
