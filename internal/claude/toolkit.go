package claude

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// npmPackage is the CLI's name in npm. Its native program comes as an optional dependency of its own for each platform.
const npmPackage = "@anthropic-ai/claude-code"

// ToolkitConfig says where the CLI is kept and how it is fetched.
type ToolkitConfig struct {
	Dir string       // holds a directory for each version; made when needed
	Env []string     // environment for npm: its proxy and registry settings come from there; nil = ours
	Log *slog.Logger // nil = none
}

// Toolkit is a directory of this host with the CLI in it, to be mounted read-only into every sandbox.
type Toolkit struct {
	cfg     ToolkitConfig
	version string
}

// OpenToolkit returns the toolkit below cfg.Dir. It touches nothing; see Ensure.
func OpenToolkit(cfg ToolkitConfig) *Toolkit {
	if cfg.Env == nil {
		cfg.Env = os.Environ()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Toolkit{cfg: cfg, version: Version}
}

// Dir is the directory to mount at MountPoint. It is there only when the CLI in it is whole.
func (t *Toolkit) Dir() string { return filepath.Join(t.cfg.Dir, "claude-"+t.version) }

// Ensure fetches the CLI if it isn't there. Processes that call it at once wait for each other; an installation that was
// broken off is begun again.
func (t *Toolkit) Ensure(ctx context.Context) error {
	if t.installed() {
		return nil
	}
	if err := os.MkdirAll(t.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("claude: make the toolkit's directory: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(t.cfg.Dir, "lock"))
	if err != nil {
		return fmt.Errorf("claude: lock the toolkit: %w", err)
	}
	defer unlock()
	if t.installed() { // by another process, while we waited
		return nil
	}
	return t.install(ctx)
}

func (t *Toolkit) installed() bool {
	fi, err := os.Stat(filepath.Join(t.Dir(), "bin", "claude"))
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 && fi.Size() > 0
}

// install works in a directory beside the final one and renames it when everything was tried. The lock is held, so what
// lies there from before is nobody's.
func (t *Toolkit) install(ctx context.Context) (err error) {
	left, err := filepath.Glob(t.Dir() + ".tmp-*")
	if err != nil {
		return fmt.Errorf("claude: %w", err)
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("claude: remove a broken installation: %w", err)
		}
	}
	tmp, err := os.MkdirTemp(t.cfg.Dir, filepath.Base(t.Dir())+".tmp-")
	if err != nil {
		return fmt.Errorf("claude: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()

	t.cfg.Log.InfoContext(ctx, "fetching Claude Code with npm, once; it takes about 250 MB", "version", t.version, "dir", t.Dir())
	begin := time.Now()
	if err := t.npm(ctx, tmp); err != nil {
		return err
	}
	program, err := t.pick(ctx, tmp)
	if err != nil {
		return err
	}
	out := filepath.Join(tmp, "out")
	if err := assemble(program, out); err != nil {
		return fmt.Errorf("claude: put the toolkit together: %w", err)
	}
	if err := os.RemoveAll(t.Dir()); err != nil { // something that isn't whole
		return fmt.Errorf("claude: remove a broken installation: %w", err)
	}
	if err := os.Rename(out, t.Dir()); err != nil {
		return fmt.Errorf("claude: %w", err)
	}
	t.cfg.Log.InfoContext(ctx, "Claude Code is there", "version", t.version, "took", time.Since(begin).Round(time.Second))
	return nil
}

// npm installs the package below tmp. Its scripts need not run: all we want is the native program.
func (t *Toolkit) npm(ctx context.Context, tmp string) error {
	npm, err := lookPath("npm", t.cfg.Env)
	if err != nil {
		return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "npm_missing", Err: err,
			Detail: "npm is not on the PATH, and Sandlot fetches Claude Code with it. Install Node.js with npm (https://nodejs.org) and start again."}
	}
	cmd := exec.CommandContext(ctx, npm, "install", "--prefix", tmp, "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts",
		"--include=optional", npmPackage+"@"+t.version)
	cmd.Dir, cmd.Env = tmp, t.cfg.Env
	cmd.WaitDelay = 5 * time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("claude: npm install: %w", ctx.Err())
	}
	if err != nil {
		return &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "npm_failed", Err: err, Detail: fmt.Sprintf(
			"npm could not install %s@%s (%v). Check the network and the free space in %s; behind a proxy or with a registry of your own, "+
				"set them in npm's configuration. npm said: %s", npmPackage, t.version, err, t.cfg.Dir, tail(out, 2<<10))}
	}
	return nil
}

// pick finds the native program among those that npm brought: the first that runs here. An npm that doesn't know C libraries
// brings both.
func (t *Toolkit) pick(ctx context.Context, tmp string) (string, error) {
	arch, ok := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	if !ok {
		return "", &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "no_claude_for_arch",
			Detail: "There is no Claude Code for " + runtime.GOARCH + "; use an amd64 or arm64 machine."}
	}
	var errs []error
	for _, libc := range []string{"", "-musl"} {
		program := filepath.Join(tmp, "node_modules", npmPackage+"-linux-"+arch+libc, "claude")
		fi, err := os.Lstat(program)
		if err == nil && !fi.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a file", program)
		}
		if err == nil {
			err = t.verify(ctx, program, tmp)
		}
		if err == nil {
			return program, nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	return "", &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "claude_unusable", Err: err, Detail: fmt.Sprintf(
		"npm brought no Claude Code %s that runs on this machine (linux, %s). If npm is told to omit optional dependencies or to use another platform, "+
			"undo that. What was seen: %v", t.version, arch, err)}
}

// verify runs the program. It gets no environment of ours, so it can't touch anybody's settings.
func (t *Toolkit) verify(ctx context.Context, program, tmp string) error {
	if err := os.Chmod(program, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	home := filepath.Join(tmp, "home")
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Dir = tmp
	cmd.Env = []string{"HOME=" + home, "CLAUDE_CONFIG_DIR=" + home, "PATH=/usr/bin:/bin", "DISABLE_AUTOUPDATER=1"}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w: %s", program, err, tail(out, 512))
	}
	if !isVersion(string(out), t.version) {
		return fmt.Errorf("%s --version says %q, not %s", program, tail(out, 100), t.version)
	}
	return nil
}

// isVersion reports whether the CLI's answer to --version is version.
func isVersion(out, version string) bool {
	first, _, _ := strings.Cut(strings.TrimSpace(out), " ")
	return first == version
}

// assemble makes the directory that is mounted: the program, on disk for good, readable by every uid.
func assemble(program, out string) error {
	bin := filepath.Join(out, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{out, bin} {
		if err := os.Chmod(dir, 0o755); err != nil { // whatever our umask is
			return err
		}
	}
	target := filepath.Join(bin, "claude")
	if err := os.Rename(program, target); err != nil {
		return err
	}
	f, err := os.Open(target)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lock takes the lock file, waiting for whoever holds it. It ends with the process, however that ends.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil // nothing was written to it
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		}
	}
}

// lookPath finds a program on the PATH of env, which need not be ours.
func lookPath(name string, env []string) (string, error) {
	for i := len(env) - 1; i >= 0; i-- { // of a variable set twice, the last counts
		list, ok := strings.CutPrefix(env[i], "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			file := filepath.Join(dir, name)
			if fi, err := os.Stat(file); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
				return file, nil
			}
		}
		break
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// tail is the end of what a program said, at most n bytes.
func tail(out []byte, n int) string {
	out = bytes.TrimSpace(out)
	if len(out) > n {
		out = append([]byte("…"), out[len(out)-n:]...)
	}
	return strings.ToValidUTF8(string(out), "?")
}
