package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/store"
)

const (
	localKeyFile = "cli.key" // the secret of the key below, for whoever may read the data directory
	localKeyName = "commands on the server's machine"
)

// remote is how a command gets at a server.
type remote struct {
	cfg  config
	json bool
}

func (r *remote) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.cfg.Data, "data", "", "the server's data directory, on its own machine, if SANDLOT_URL is not set (SANDLOT_DATA)")
	f.StringVar(&r.cfg.Database, "database", "", "its database (SANDLOT_DATABASE; default sqlite:DATA/sandlot.db)")
}

// jsonFlag is for commands that print something.
func (r *remote) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.json, "json", false, "print JSON")
}

// aboutRemote ends the long description of each command that talks to a server.
const aboutRemote = `

SANDLOT_URL and SANDLOT_API_KEY name the server and the key to show it. Without them the command looks for a server that was started on this
machine, in its data directory, and who may read that may use it.`

// connect returns a client of the server.
func (r *remote) connect(cmd *cobra.Command) (*client.Client, error) {
	base, key := os.Getenv("SANDLOT_URL"), os.Getenv("SANDLOT_API_KEY")
	if base != "" {
		if key == "" {
			return nil, errors.New("SANDLOT_API_KEY is not set: the server at SANDLOT_URL wants a key")
		}
		return client.New(base, key), nil
	}
	if err := r.cfg.fill(cmd, os.Environ()); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(r.cfg.Data, urlFile))
	if err != nil {
		return nil, fmt.Errorf("SANDLOT_URL is not set, and no server has been started with data directory %s (use --data): %w", r.cfg.Data, err)
	}
	base = strings.TrimSpace(string(b))
	if key != "" {
		return client.New(base, key), nil
	}
	return r.local(cmd.Context(), base)
}

// local returns a client of the server of this machine, with a key of its own, which it makes if there is none that is good.
func (r *remote) local(ctx context.Context, base string) (*client.Client, error) {
	file := filepath.Join(r.cfg.Data, localKeyFile)
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("set SANDLOT_API_KEY, or be who runs the server: %w", err)
	}
	c := client.New(base, strings.TrimSpace(string(b)))
	if err == nil {
		_, err = c.Me(ctx)
		if p, ok := errors.AsType[*api.Problem](err); !ok || p.Status != http.StatusUnauthorized {
			return c, err
		}
	}
	st, err := store.Open(ctx, r.cfg.Database)
	if err != nil {
		return nil, fmt.Errorf("set SANDLOT_API_KEY, or be who runs the server: %w", err)
	}
	defer st.Close()
	account, _, err := st.EnsureAccount(ctx, firstAccount)
	if err != nil {
		return nil, err
	}
	secret, key := server.NewKey()
	key.Account, key.Name = account.ID, localKeyName
	if err := st.PutKey(ctx, key); err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("keeping a key for the next command: %w", err)
	}
	return client.New(base, secret), nil
}

// find returns the ID of the sandbox that a person calls so: by its ID, or by its name if only one that hasn't ended has it.
func find(ctx context.Context, c *client.Client, name string) (string, error) {
	if strings.HasPrefix(name, "sbx_") {
		return name, nil
	}
	var found []string
	err := each(ctx, c, func(sb api.Sandbox) bool {
		if sb.Name == name && !over(sb) {
			found = append(found, sb.ID)
		}
		return true
	})
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return "", fmt.Errorf("there is no sandbox %q; `sandlot ls` lists them", name)
	case len(found) > 1:
		return "", fmt.Errorf("%d sandboxes are called %q; say which by its ID: %s", len(found), name, strings.Join(found, " "))
	}
	return found[0], nil
}

// over reports whether a sandbox has ended.
func over(sb api.Sandbox) bool { return sb.State == "terminated" || sb.State == "error" }

// each calls f with every sandbox, the newest first, until it returns false.
func each(ctx context.Context, c *client.Client, f func(api.Sandbox) bool) error {
	for filter := (client.Filter{Limit: 100}); ; {
		page, err := c.Sandboxes(ctx, filter)
		if err != nil {
			return err
		}
		for _, sb := range page.Sandboxes {
			if !f(sb) {
				return nil
			}
		}
		if filter.Cursor = page.NextCursor; filter.Cursor == "" {
			return nil
		}
	}
}

// printJSON prints v for programs.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
