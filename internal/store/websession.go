package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"time"
)

// WebSessions keeps the sessions of browsers that are signed in. It has the method set of scs.CtxStore. A cookie's token
// is stored as a hash only, so that who reads the database can't take over a session.
type WebSessions struct{ s *Store }

// WebSessions returns the sessions of browsers.
func (s *Store) WebSessions() WebSessions { return WebSessions{s} }

// FindCtx returns the data stored for token; found is false if there is none or it has expired.
func (w WebSessions) FindCtx(ctx context.Context, token string) (data []byte, found bool, err error) {
	err = w.s.read.QueryRowContext(ctx, `SELECT data FROM web_sessions WHERE hash = $1 AND expires_at > $2`, tokenHash(token), micros(now())).Scan(&data)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, false, nil
	}
	return data, err == nil, w.s.fail("find a web session", err)
}

// CommitCtx stores data for token until expiry, in place of what was there, and drops what has expired.
func (w WebSessions) CommitCtx(ctx context.Context, token string, data []byte, expiry time.Time) error {
	return w.s.quietly(ctx, "store a web session", func(tx tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM web_sessions WHERE expires_at <= $1`, micros(tx.now)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO web_sessions (hash, data, expires_at) VALUES ($1, $2, $3)
			ON CONFLICT (hash) DO UPDATE SET data = excluded.data, expires_at = excluded.expires_at`, tokenHash(token), data, micros(expiry))
		return err
	})
}

// DeleteCtx forgets token. It need not be there.
func (w WebSessions) DeleteCtx(ctx context.Context, token string) error {
	return w.s.quietly(ctx, "delete a web session", func(tx tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM web_sessions WHERE hash = $1`, tokenHash(token))
		return err
	})
}

// Find is FindCtx for callers that have no context; scs asks for it but doesn't use it.
func (w WebSessions) Find(token string) ([]byte, bool, error) {
	return w.FindCtx(context.Background(), token)
}

// Commit is CommitCtx for callers that have no context.
func (w WebSessions) Commit(token string, data []byte, expiry time.Time) error {
	return w.CommitCtx(context.Background(), token, data, expiry)
}

// Delete is DeleteCtx for callers that have no context.
func (w WebSessions) Delete(token string) error { return w.DeleteCtx(context.Background(), token) }

func tokenHash(token string) []byte {
	h := sha256.Sum256([]byte(token))
	return h[:]
}
