package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Account is a tenant. It owns everything else.
type Account struct {
	ID        string // UUID
	Name      string // unique
	CreatedAt time.Time
}

// Key is an API key of an account. The key itself is not kept.
type Key struct {
	ID        string
	Account   string
	Name      string // unique in the account
	Hash      []byte // SHA-256 of the key
	Last4     string // its last characters, to tell keys apart
	CreatedAt time.Time
}

// EnsureAccount returns the account of that name and makes it if it isn't there.
func (s *Store) EnsureAccount(ctx context.Context, name string) (a Account, created bool, err error) {
	err = s.quietly(ctx, "make an account", func(tx tx) error {
		id := newUUID()
		if _, err := tx.ExecContext(ctx, `INSERT INTO accounts (id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING`,
			id, name, micros(tx.now)); err != nil {
			return err
		}
		a, err = scanAccount(tx.QueryRowContext(ctx, `SELECT id, name, created_at FROM accounts WHERE name = $1`, name))
		created = a.ID == id
		return err
	})
	return a, created, err
}

// Account returns one account.
func (s *Store) Account(ctx context.Context, id string) (Account, error) {
	a, err := scanAccount(s.read.QueryRowContext(ctx, `SELECT id, name, created_at FROM accounts WHERE id = $1`, id))
	return a, s.fail("read an account", missing(err, "account", id))
}

func scanAccount(row scanner) (Account, error) {
	var a Account
	var at int64
	err := row.Scan(&a.ID, &a.Name, &at)
	a.CreatedAt = fromMicros(at)
	return a, err
}

// newUUID returns a random (version 4) UUID.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// PutKey stores a key. It replaces the account's key of the same name, which ceases to be valid.
func (s *Store) PutKey(ctx context.Context, k Key) error {
	return s.quietly(ctx, "store a key", func(tx tx) error {
		if k.CreatedAt.IsZero() {
			k.CreatedAt = tx.now
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO keys (id, account, name, hash, last4, created_at) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (account, name) DO UPDATE SET id = excluded.id, hash = excluded.hash, last4 = excluded.last4, created_at = excluded.created_at`,
			k.ID, k.Account, k.Name, k.Hash, k.Last4, micros(k.CreatedAt))
		return err
	})
}

// KeyByHash finds the key with the SHA-256 hash.
func (s *Store) KeyByHash(ctx context.Context, hash []byte) (Key, error) {
	var k Key
	var at int64
	err := s.read.QueryRowContext(ctx, `SELECT id, account, name, hash, last4, created_at FROM keys WHERE hash = $1`, hash).
		Scan(&k.ID, &k.Account, &k.Name, &k.Hash, &k.Last4, &at)
	k.CreatedAt = fromMicros(at)
	return k, s.fail("look up a key", missing(err, "key", ""))
}

// AddSignin stores the hash of a link that signs in to account once, until expires.
func (s *Store) AddSignin(ctx context.Context, hash []byte, account string, expires time.Time) error {
	return s.quietly(ctx, "store a sign-in link", func(tx tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM signins WHERE expires_at <= $1`, micros(tx.now)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO signins (hash, account, expires_at) VALUES ($1, $2, $3)`, hash, account, micros(expires))
		return err
	})
}

// TakeSignin uses up a sign-in link and returns its account. A link that was used, has expired or never was is ErrNotFound.
func (s *Store) TakeSignin(ctx context.Context, hash []byte, now time.Time) (account string, err error) {
	err = s.quietly(ctx, "use a sign-in link", func(tx tx) error {
		row := tx.QueryRowContext(ctx, `DELETE FROM signins WHERE hash = $1 AND expires_at > $2 RETURNING account`, hash, micros(now))
		if err := missing(row.Scan(&account), "signin", ""); errors.Is(err, sandbox.ErrNotFound) {
			return &sandbox.Problem{Class: sandbox.ErrNotFound, Code: "signin_not_found",
				Detail: "This sign-in link was used already or has expired. Ask for a fresh one."}
		} else if err != nil {
			return err
		}
		return nil
	})
	return account, err
}

// Setting returns a value of the installation.
func (s *Store) Setting(ctx context.Context, key string) ([]byte, error) {
	var v []byte
	err := s.read.QueryRowContext(ctx, `SELECT value FROM settings WHERE key = $1`, key).Scan(&v)
	return v, s.fail("read a setting", missing(err, "setting", key))
}

// PutSettingIfAbsent stores a value of the installation unless there is one, and returns the one that is then stored.
func (s *Store) PutSettingIfAbsent(ctx context.Context, key string, value []byte) (stored []byte, err error) {
	err = s.quietly(ctx, "store a setting", func(tx tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING`, key, value); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT value FROM settings WHERE key = $1`, key).Scan(&stored)
	})
	return stored, err
}
