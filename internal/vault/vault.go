// Package vault keeps the secrets of accounts: named sets of values, encrypted before they reach the store, with a key that
// is not in the database. The server can use the values; nobody is ever shown them again.
package vault

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Store is what the vault needs of store.Store. Sealed values are opaque to it.
type Store interface {
	PutSecret(ctx context.Context, account, name string, keys []string, seal func(id string) ([]byte, error)) (sandbox.Secret, error)
	Secret(ctx context.Context, account, name string) (sandbox.Secret, error)
	Secrets(ctx context.Context, account string) ([]sandbox.Secret, error)
	DeleteSecret(ctx context.Context, account, name string) error
}

// Vault seals and opens secrets. It is safe for concurrent use.
type Vault struct {
	store Store
	aead  cipher.AEAD
}

const keySize = 32

// Open returns a vault whose key is in keyFile, which is made if it isn't there. Whoever loses that file loses the secrets.
func Open(store Store, keyFile string) (*Vault, error) {
	key, err := readKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("open the vault: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("open the vault: %w", err)
	}
	// Nonces are random and 96 bits long: safe for 2³² secrets.
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("open the vault: %w", err)
	}
	return &Vault{store: store, aead: aead}, nil
}

func readKey(file string) ([]byte, error) {
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, keySize)
		_, _ = rand.Read(key) // never fails
		return key, writeKey(file, key)
	}
	if err != nil {
		return nil, err
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("%s has %d bytes, not %d: it is no key of a vault", file, len(key), keySize)
	}
	return key, nil
}

// writeKey makes the file whole or not at all: half a key would lock everybody out.
func writeKey(file string, key []byte) error {
	fresh := file + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, file)
}

// Bounds on a secret.
const (
	maxValues = 100
	maxBytes  = 256 << 10
)

var (
	secretName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)
	valueName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

// Put keeps values under name, in the stead of what was there.
func (v *Vault) Put(ctx context.Context, account, name string, values map[string]string) (sandbox.Secret, error) {
	if err := check(name, values); err != nil {
		return sandbox.Secret{}, err
	}
	plain, err := json.Marshal(values)
	if err != nil {
		return sandbox.Secret{}, fmt.Errorf("seal secret %q: %w", name, err)
	}
	keys := slices.Sorted(maps.Keys(values))
	return v.store.PutSecret(ctx, account, name, keys, func(id string) ([]byte, error) {
		return v.aead.Seal(nil, nil, plain, place(account, id)), nil
	})
}

func check(name string, values map[string]string) error {
	if !secretName.MatchString(name) {
		return sandbox.Invalid("name", "The name of a secret has 1 to 64 of a-z, 0-9, _, . and -, and begins with a letter or a digit.")
	}
	if len(values) == 0 || len(values) > maxValues {
		return sandbox.Invalid("values", "A secret has 1 to %d values; this one has %d.", maxValues, len(values))
	}
	total := 0
	for key, value := range values {
		if !valueName.MatchString(key) {
			return sandbox.Invalid("values", "The name of a value is made of letters, digits and _, and doesn't begin with a digit; %.100q isn't.", key)
		}
		if strings.ContainsRune(value, 0) {
			return sandbox.Invalid("values", "The value of %s holds a NUL byte.", key)
		}
		total += len(key) + len(value)
	}
	if total > maxBytes {
		return sandbox.Invalid("values", "The values have %d bytes together; at most %d are allowed.", total, maxBytes)
	}
	return nil
}

// place binds sealed values to where they belong: a row that was moved to another account or secret doesn't open.
func place(account, id string) []byte { return []byte("secret:" + account + ":" + id) }

// Values opens the account's secret of that name.
func (v *Vault) Values(ctx context.Context, account, name string) (map[string]string, error) {
	s, err := v.store.Secret(ctx, account, name)
	if err != nil {
		return nil, err
	}
	plain, err := v.aead.Open(nil, nil, s.Sealed, place(account, s.ID))
	if err != nil {
		return nil, fmt.Errorf("open secret %q: it was sealed with another key, or changed: %w", name, err)
	}
	var values map[string]string
	if err := json.Unmarshal(plain, &values); err != nil {
		return nil, fmt.Errorf("open secret %q: %w", name, err)
	}
	return values, nil
}

// List returns the account's secrets, by name.
func (v *Vault) List(ctx context.Context, account string) ([]sandbox.Secret, error) {
	return v.store.Secrets(ctx, account)
}

// Delete removes the account's secret of that name.
func (v *Vault) Delete(ctx context.Context, account, name string) error {
	return v.store.DeleteSecret(ctx, account, name)
}
