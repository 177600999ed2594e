package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/store"
)

// access is how the first person gets in.
type access struct {
	key    string // "" unless it was made just now
	signin string // a one-time token
}

// firstAccess makes the first account and its admin key, if they aren't there, and a sign-in link for this start.
func firstAccess(ctx context.Context, cfg config, st *store.Store) (access, error) {
	account, created, err := st.EnsureAccount(ctx, firstAccount)
	if err != nil {
		return access{}, err
	}
	var a access
	switch {
	case cfg.AdminKey != "":
		err = st.PutKey(ctx, adminKey(account.ID, cfg.AdminKey))
	case created:
		var key store.Key
		a.key, key = server.NewKey()
		key.Account, key.Name = account.ID, adminKeyName
		err = st.PutKey(ctx, key)
	}
	if err != nil {
		return access{}, err
	}
	a.signin, err = server.IssueSignin(ctx, st, account.ID)
	return a, err
}

// adminKeyName is the name of the first account's key; SANDLOT_ADMIN_KEY replaces it.
const adminKeyName = "admin"

func adminKey(account, secret string) store.Key {
	sum := sha256.Sum256([]byte(secret))
	return store.Key{ID: sandbox.NewID(sandbox.PrefixKey), Account: account, Name: adminKeyName, Hash: sum[:], Last4: secret[len(secret)-4:]}
}

// announce tells the person at the terminal what to do next.
func announce(w io.Writer, cfg config, base string, a access, trial trialResult) {
	var b strings.Builder
	fmt.Fprintf(&b, "\nSandlot %s is running.\n\n", version)
	fmt.Fprintf(&b, "  Open     %s/signin/%s\n           signs your browser in, once, within 15 minutes; `sandlot signin` prints another\n", base, a.signin)
	if a.key != "" {
		fmt.Fprintf(&b, "  API key  %s\n           shown only now\n", a.key)
	}
	switch {
	case cfg.DemoModel:
		b.WriteString("  Model    demo model: answers come from a script, not from Claude; set ANTHROPIC_API_KEY for the real one\n")
	case cfg.AnthropicKey == "":
		b.WriteString("  Model    none: set ANTHROPIC_API_KEY, or use --demo-model\n")
	default:
		fmt.Fprintf(&b, "  Model    %s\n", cfg.Upstream)
	}
	fmt.Fprintf(&b, "  Data     %s\n", cfg.Data)
	if trial.Problem != "" {
		fmt.Fprintf(&b, "\n  Sandboxes don't work here: %s\n", trial.Problem)
	}
	b.WriteString("\n")
	_, _ = io.WriteString(w, b.String()) // a closed terminal is no reason to stop
}
