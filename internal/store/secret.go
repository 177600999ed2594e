package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const secretColumns = `id, account, name, keys, sealed, created_at, updated_at`

func scanSecret(row scanner) (sandbox.Secret, error) {
	var s sandbox.Secret
	var keys string
	var created, updated int64
	if err := row.Scan(&s.ID, &s.Account, &s.Name, &keys, &s.Sealed, &created, &updated); err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(keys), &s.Keys); err != nil {
		return s, fmt.Errorf("the keys of secret %s: %w", s.ID, err)
	}
	s.CreatedAt, s.UpdatedAt = fromMicros(created), fromMicros(updated)
	return s, nil
}

// PutSecret records a secret. One of the same name keeps its ID, which the values are sealed for: see seal.
func (s *Store) PutSecret(ctx context.Context, account, name string, keys []string, seal func(id string) ([]byte, error)) (secret sandbox.Secret, err error) {
	list, err := json.Marshal(keys)
	if err != nil {
		return secret, fmt.Errorf("store: record a secret: %w", err)
	}
	err = s.quietly(ctx, "record a secret", func(tx tx) error {
		id := sandbox.NewID(sandbox.PrefixSecret)
		old, err := scanSecret(tx.QueryRowContext(ctx, `SELECT `+secretColumns+` FROM secrets WHERE account = $1 AND name = $2`, account, name))
		switch {
		case err == nil:
			id = old.ID
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		sealed, err := seal(id)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO secrets (`+secretColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $6)
			ON CONFLICT (account, name) DO UPDATE SET keys = excluded.keys, sealed = excluded.sealed, updated_at = excluded.updated_at`,
			id, account, name, string(list), sealed, micros(tx.now)); err != nil {
			return err
		}
		secret, err = scanSecret(tx.QueryRowContext(ctx, `SELECT `+secretColumns+` FROM secrets WHERE id = $1`, id))
		return err
	})
	return secret, err
}

// Secret returns the account's secret of that name.
func (s *Store) Secret(ctx context.Context, account, name string) (sandbox.Secret, error) {
	secret, err := scanSecret(s.read.QueryRowContext(ctx, `SELECT `+secretColumns+` FROM secrets WHERE account = $1 AND name = $2`, account, name))
	return secret, s.fail("read a secret", missing(err, "secret", name))
}

// Secrets lists the secrets of an account by name.
func (s *Store) Secrets(ctx context.Context, account string) ([]sandbox.Secret, error) {
	return list(ctx, s, "list secrets", scanSecret, `SELECT `+secretColumns+` FROM secrets WHERE account = $1 ORDER BY name`, account)
}

// DeleteSecret removes the account's secret of that name.
func (s *Store) DeleteSecret(ctx context.Context, account, name string) error {
	return s.quietly(ctx, "delete a secret", func(tx tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM secrets WHERE account = $1 AND name = $2`, account, name)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return missingOr(err, "secret", name)
		}
		return nil
	})
}

// missingOr is err, or, if that is nil, the Problem that what isn't there.
func missingOr(err error, what, id string) error {
	if err != nil {
		return err
	}
	return missing(sql.ErrNoRows, what, id)
}
