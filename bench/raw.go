package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
)

// raw is gVisor's own command line, which our program is too, on a copy of a sandbox's bundle.
type raw struct {
	runsc  string
	root   string
	bundle string
	config map[string]any
	flags  []string // beyond the usual
	base   int      // the uid of the host that is root inside
	guest  []string // the command line of the real one's process
}

// newRaw copies the bundle of a real sandbox of image, so that both sides have the same root, the same mounts and the same volume. name
// is the copy's.
func newRaw(ctx context.Context, b *bench, image, name string) (_ *raw, err error) {
	s := b.cold
	id, err := s.create(ctx, image, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.terminate(ctx, id)) }()
	found, err := filepath.Glob(filepath.Join(s.data, "local", "sandboxes", id+"-*", "bundle"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("looking for the sandbox's bundle: %v, %w", found, err)
	}
	dir := filepath.Join(b.dir, "raw-"+name)
	r := &raw{runsc: filepath.Join(dir, "runsc"), root: filepath.Join(dir, "state"), bundle: filepath.Join(dir, "bundle")}
	if err := os.MkdirAll(r.root, 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(b.bin, r.runsc); err != nil {
		return nil, err
	}
	for _, d := range []string{r.bundle, filepath.Join(r.bundle, "root")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Link(filepath.Join(found[0], "root.erofs"), filepath.Join(r.bundle, "root.erofs")); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(found[0], "config.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &r.config); err != nil {
		return nil, err
	}
	programs, err := filepath.Glob(filepath.Join(s.data, "guest", "*", filepath.Base(guest.Program)))
	if err != nil || len(programs) != 1 {
		return nil, fmt.Errorf("looking for the guest's program: %v, %w", programs, err)
	}
	r.relocate(b, s, id, filepath.Dir(programs[0]))
	return r, r.write()
}

// relocate makes the copy stand on its own; program is the directory of the guest's. Sources stand in a bundle as the server's processes see them.
func (r *raw) relocate(b *bench, s *server, id, program string) {
	r.config["mounts"] = slices.DeleteFunc(r.config["mounts"].([]any), func(m any) bool {
		source, _ := m.(map[string]any)["source"].(string)
		return strings.Contains(source, id) // its socket and state
	})
	for _, m := range r.config["mounts"].([]any) {
		m := m.(map[string]any)
		source, _ := m["source"].(string)
		switch rest := strings.SplitN(source, "/", 5); {
		case !strings.HasPrefix(source, "/run/sandlot/"):
		case strings.HasPrefix(rest[4], "data/"):
			m["source"] = filepath.Join(s.data, "local", strings.TrimPrefix(rest[4], "data/"))
		case m["destination"] == claude.MountPoint:
			m["source"] = filepath.Join(b.toolkit, "claude-"+claude.Version)
		default: // the guest's program
			m["source"] = program
		}
	}
	r.config["root"].(map[string]any)["path"] = filepath.Join(r.bundle, "root")
	r.annotate("source", filepath.Join(r.bundle, "root.erofs"))
	process := r.config["process"].(map[string]any)
	for _, arg := range process["args"].([]any) {
		arg, _ := arg.(string)
		r.guest = append(r.guest, arg)
	}
	process["args"] = []string{"/bin/sleep", "600"}
	if linux, ok := r.config["linux"].(map[string]any); ok {
		if maps, ok := linux["uidMappings"].([]any); ok && len(maps) > 0 {
			base, _ := maps[0].(map[string]any)["hostID"].(float64)
			r.base = int(base)
		}
	}
}

func (r *raw) annotate(name, value string) {
	r.config["annotations"].(map[string]any)["dev.gvisor.spec.rootfs."+name] = value
}

func (r *raw) write() error {
	data, err := json.Marshal(r.config)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.bundle, "config.json"), data, 0o600)
}

// globals are the flags that come before a command.
func (r *raw) globals() []string {
	return append([]string{"--root=" + r.root, "--platform=systrap", "--network=none", "--host-uds=create", "--ignore-cgroups"}, r.flags...)
}

func (r *raw) call(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, r.runsc, slices.Concat(r.globals(), args)...)
	f, err := os.CreateTemp("", "bench-runsc-") // a file: the detached sandbox keeps it open, and nobody waits for that
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		var out bytes.Buffer
		_, _ = f.Seek(0, io.SeekStart)
		_, _ = io.Copy(&out, f)
		return fmt.Errorf("runsc %v: %w: %s", args, err, out.String())
	}
	return nil
}

func (r *raw) run(ctx context.Context, id string) error {
	return r.call(ctx, "run", "-detach", "-bundle="+r.bundle, id)
}

func (r *raw) exec(ctx context.Context, id string, argv ...string) error {
	return r.call(ctx, append([]string{"exec", id}, argv...)...)
}

func (r *raw) remove(ctx context.Context, id string) error {
	return r.call(context.WithoutCancel(ctx), "delete", "-force", id)
}

// unpin lets go of the network namespaces that gVisor pins by mounts in its directories, below dir, so that it makes one only once.
func unpin(dir string) {
	pins, _ := filepath.Glob(filepath.Join(dir, "raw-*", "state", "null-netns")) // the pattern is well formed
	for _, pin := range pins {
		_ = syscall.Unmount(pin, 0) // where nothing was started there is none
	}
}
