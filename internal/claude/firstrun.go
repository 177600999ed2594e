package claude

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Files is what this package asks of a sandbox's file system; *guest.Client has it.
type Files interface {
	ReadFile(ctx context.Context, path string) (io.ReadCloser, guest.File, error)
	WriteFile(ctx context.Context, path string, r io.Reader, mode fs.FileMode) (guest.File, error)
	CreateFile(ctx context.Context, path string, r io.Reader, mode fs.FileMode) (guest.File, error) // code "exists" if it is there
	ReadDir(ctx context.Context, path string) ([]guest.File, error)
	Remove(ctx context.Context, path string) error
}

// maxSettings bounds what we read of files that a sandbox may have written.
const maxSettings = 4 << 20

// Prepare writes what keeps the CLI from asking a newcomer's questions (theme, trust, dangers) in a sandbox on its volume. On
// a volume that was used before it adds only what is missing, and a file of the user's that it can't read it leaves alone.
func Prepare(ctx context.Context, c *guest.Client, sb sandbox.Sandbox) error {
	return FirstRun{}.Prepare(ctx, c, sb)
}

// FirstRun prepares sandboxes for the CLI, like the function Prepare, and can do more if it is told more.
type FirstRun struct {
	// Token, if set, returns the model token of a sandbox, so that the CLI on a terminal doesn't ask whether to use it.
	Token func(sandbox.ID) string
}

// Prepare is the function of that name.
func (f FirstRun) Prepare(ctx context.Context, c *guest.Client, sb sandbox.Sandbox) error {
	return f.prepare(ctx, c, sb)
}

func (f FirstRun) prepare(ctx context.Context, files Files, sb sandbox.Sandbox) error {
	workdir := sb.Spec.Workdir
	token := ""
	if f.Token != nil {
		token = f.Token(sb.ID)
	}
	name := path.Join(configDir(workdir), ".claude.json")
	settings, err := mergeSettings(nil, workdir, token)
	if err != nil {
		return err
	}
	// On a new volume, which most are, it is enough to write them, both at once: somebody waits for the sandbox.
	var both errgroup.Group
	both.Go(func() error {
		// What we keep on the volume is not part of the user's project.
		_, err := create(ctx, files, path.Join(workdir, ourDir, ".gitignore"), []byte("*\n"))
		return err
	})
	var used bool
	both.Go(func() (err error) {
		used, err = create(ctx, files, name, settings)
		return err
	})
	if err := both.Wait(); err != nil || !used {
		return err
	}
	old, err := read(ctx, files, name)
	if err != nil && !isNotThere(err) { // a link that leads nowhere is there and isn't
		return err
	}
	fresh, err := mergeSettings(old, workdir, token)
	if err != nil || bytes.Equal(fresh, old) {
		return nil //nolint:nilerr // a file that isn't JSON is the user's to mend; the CLI says so and goes on
	}
	return write(ctx, files, name, fresh)
}

// mergeSettings adds to the CLI's own state what it would have noted after its first questions. If nothing is missing it returns
// old.
func mergeSettings(old []byte, workdir, token string) ([]byte, error) {
	state := map[string]any{}
	if len(bytes.TrimSpace(old)) > 0 {
		dec := json.NewDecoder(bytes.NewReader(old))
		dec.UseNumber() // numbers go back as they came
		if err := dec.Decode(&state); err != nil {
			return nil, fmt.Errorf("claude: read the CLI's state: %w", err)
		}
		if state == nil {
			return nil, errors.New("claude: read the CLI's state: it is null")
		}
	}
	m := merge{}
	m.absent(state, "hasCompletedOnboarding", true)
	m.absent(state, "theme", "dark")
	m.absent(state, "bypassPermissionsModeAccepted", true)
	if projects, ok := m.object(state, "projects"); ok {
		if project, ok := m.object(projects, workdir); ok {
			m.absent(project, "hasTrustDialogAccepted", true)
			m.absent(project, "hasCompletedProjectOnboarding", true)
		}
	}
	if len(token) >= keyTail {
		if answers, ok := m.object(state, "customApiKeyResponses"); ok {
			m.approve(answers, token[len(token)-keyTail:])
		}
	}
	if !m.changed {
		return old, nil
	}
	return json.MarshalIndent(state, "", "  ")
}

const (
	keyTail     = 20 // the CLI knows a key by that many of its last characters
	maxApproved = 50 // sandboxes come and go; their tokens needn't pile up
)

// merge changes JSON objects without overruling what is there.
type merge struct{ changed bool }

func (m *merge) absent(o map[string]any, key string, value any) {
	if _, ok := o[key]; !ok {
		o[key], m.changed = value, true
	}
}

// object returns the object at key, made if need be; false if something else is there.
func (m *merge) object(o map[string]any, key string) (map[string]any, bool) {
	m.absent(o, key, map[string]any{})
	child, ok := o[key].(map[string]any)
	return child, ok
}

func (m *merge) approve(answers map[string]any, key string) {
	m.absent(answers, "approved", []any{})
	m.absent(answers, "rejected", []any{})
	list, ok := answers["approved"].([]any)
	if !ok || slices.Contains(list, any(key)) {
		return
	}
	list = append(list, key)
	answers["approved"], m.changed = list[max(0, len(list)-maxApproved):], true
}

func read(ctx context.Context, files Files, name string) ([]byte, error) {
	r, _, err := files.ReadFile(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("claude: read %s: %w", name, err)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxSettings))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("claude: read %s: %w", name, err)
	}
	return data, nil
}

func write(ctx context.Context, files Files, name string, data []byte) error {
	if _, err := files.WriteFile(ctx, name, strings.NewReader(string(data)), 0o600); err != nil {
		return fmt.Errorf("claude: write %s: %w", name, err)
	}
	return nil
}

// create writes a file if it isn't there, and reports whether it was.
func create(ctx context.Context, files Files, name string, data []byte) (used bool, err error) {
	_, err = files.CreateFile(ctx, name, bytes.NewReader(data), 0o600)
	if e := (*guest.Error)(nil); errors.As(err, &e) && e.Code == "exists" {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("claude: write %s: %w", name, err)
	}
	return false, nil
}

// isNotThere reports whether the guest answered that there is no such file.
func isNotThere(err error) bool {
	var e *guest.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}
