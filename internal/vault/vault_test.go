package vault_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
	"github.com/sandlot-dev/sandlot/internal/vault"
)

type rig struct {
	dir, key string
	st       *store.Store
	v        *vault.Vault
	one, two string // accounts
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir()}
	r.key = filepath.Join(r.dir, "key")
	var err error
	if r.st, err = store.Open(t.Context(), "sqlite:"+filepath.Join(r.dir, "db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.st.Close() })
	for name, id := range map[string]*string{"one": &r.one, "two": &r.two} {
		a, _, err := r.st.EnsureAccount(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		*id = a.ID
	}
	if r.v, err = vault.Open(r.st, r.key); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSecretsAreKept(t *testing.T) {
	r := newRig(t)
	first, err := r.v.Put(t.Context(), r.one, "registry", map[string]string{"USERNAME": "me", "PASSWORD": "hunter2-hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(first.Keys, " "); got != "PASSWORD USERNAME" {
		t.Errorf("its keys are %q", got)
	}
	again, err := vault.Open(r.st, r.key) // a server that starts anew
	if err != nil {
		t.Fatal(err)
	}
	values, err := again.Values(t.Context(), r.one, "registry")
	if err != nil || values["PASSWORD"] != "hunter2-hunter2" {
		t.Errorf("%v, %v", values, err)
	}
	second, err := r.v.Put(t.Context(), r.one, "registry", map[string]string{"TOKEN": "t"})
	if err != nil || second.ID != first.ID || second.CreatedAt != first.CreatedAt {
		t.Errorf("replaced: %+v, %v", second, err)
	}
	if values, err := r.v.Values(t.Context(), r.one, "registry"); err != nil || len(values) != 1 {
		t.Errorf("the old values stayed: %v, %v", values, err)
	}
	if list, err := r.v.List(t.Context(), r.one); err != nil || len(list) != 1 || list[0].Name != "registry" {
		t.Errorf("%v, %v", list, err)
	}
	for name, err := range map[string]error{
		"another account's":  func() error { _, err := r.v.Values(t.Context(), r.two, "registry"); return err }(),
		"deleted by another": func() error { return r.v.Delete(t.Context(), r.two, "registry") }(),
	} {
		if !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.v.Delete(t.Context(), r.one, "registry"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.v.Values(t.Context(), r.one, "registry"); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
}

func TestNothingIsReadableOnDisk(t *testing.T) {
	r := newRig(t)
	if _, err := r.v.Put(t.Context(), r.one, "s", map[string]string{"KEY": "hunter2-hunter2"}); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(r.dir, f.Name()))
		if err != nil || bytes.Contains(b, []byte("hunter2")) {
			t.Errorf("%s holds the value, or: %v", f.Name(), err)
		}
	}
	if fi, err := os.Stat(r.key); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", fi.Mode(), err)
	}
	// With another key, nothing opens; and a key that is none is refused.
	other, err := vault.Open(r.st, filepath.Join(r.dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Values(t.Context(), r.one, "s"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("opened with another key: %v", err)
	}
	if err := os.WriteFile(r.key, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Open(r.st, r.key); err == nil {
		t.Error("half a key was taken")
	}
}

func TestBadSecretsAreRefused(t *testing.T) {
	r := newRig(t)
	many := map[string]string{}
	for i := range 101 {
		many["K"+strings.Repeat("x", i)] = "v"
	}
	for name, tc := range map[string]struct {
		name   string
		values map[string]string
		field  string
	}{
		"no name":        {"", map[string]string{"A": "b"}, "name"},
		"name of a path": {"../x", map[string]string{"A": "b"}, "name"},
		"no values":      {"s", nil, "values"},
		"bad key":        {"s", map[string]string{"1A": "b"}, "values"},
		"NUL":            {"s", map[string]string{"A": "b\x00"}, "values"},
		"too many":       {"s", many, "values"},
		"too large":      {"s", map[string]string{"A": strings.Repeat("x", 300<<10)}, "values"},
	} {
		_, err := r.v.Put(t.Context(), r.one, tc.name, tc.values)
		var p *sandbox.Problem
		if !errors.As(err, &p) || p.Field != tc.field || !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%s: %v, want a problem at %s", name, err, tc.field)
		}
	}
}
