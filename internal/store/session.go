package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const sessionColumns = `id, account, sandbox, volume, title, uuid, turns, last_seq, model, permission_mode, created_at, updated_at`

func scanSession(row scanner) (sandbox.Session, error) {
	var ses sandbox.Session
	var created, updated int64
	err := row.Scan(&ses.ID, &ses.Account, &ses.Sandbox, &ses.Volume, &ses.Title, &ses.UUID, &ses.Turns, &ses.LastSeq,
		&ses.Model, &ses.PermissionMode, &created, &updated)
	ses.CreatedAt, ses.UpdatedAt = fromMicros(created), fromMicros(updated)
	return ses, err
}

// InsertSession records a session that has no turn yet.
func (s *Store) InsertSession(ctx context.Context, ses sandbox.Session) error {
	return s.update(ctx, "record a session", func(tx tx) error { return tx.addSession(ctx, ses) })
}

func (tx tx) addSession(ctx context.Context, ses sandbox.Session) error {
	if ses.CreatedAt.IsZero() {
		ses.CreatedAt = tx.now
	}
	if ses.UpdatedAt.IsZero() {
		ses.UpdatedAt = ses.CreatedAt
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO sessions (`+sessionColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		ses.ID, ses.Account, string(ses.Sandbox), ses.Volume, ses.Title, ses.UUID, ses.Turns, ses.LastSeq, ses.Model, ses.PermissionMode,
		micros(ses.CreatedAt), micros(ses.UpdatedAt))
	return err
}

// setSession changes what may change. The CLI's name for the session comes out of a sandbox: one that is another session's is not taken.
func (tx tx) setSession(ctx context.Context, ses sandbox.Session) error {
	res, err := tx.ExecContext(ctx, `UPDATE sessions SET title = $1, sandbox = $2, turns = $3, model = $4, permission_mode = $5,
		uuid = CASE WHEN EXISTS (SELECT 1 FROM sessions o WHERE o.uuid = $6 AND o.id <> $7) THEN uuid ELSE $6 END WHERE id = $7`,
		ses.Title, string(ses.Sandbox), ses.Turns, ses.Model, ses.PermissionMode, ses.UUID, ses.ID)
	return one(res, err, "there is no session %s", ses.ID)
}

// Session returns one session of account.
func (s *Store) Session(ctx context.Context, account, id string) (sandbox.Session, error) {
	ses, err := scanSession(s.read.QueryRowContext(ctx, `SELECT `+sessionColumns+` FROM sessions WHERE id = $1 AND ($2 = '' OR account = $2)`, id, account))
	return ses, s.fail("read a session", missing(err, "session", id))
}

// Sessions lists the account's sessions, the one last used first.
func (s *Store) Sessions(ctx context.Context, account string, limit int) ([]sandbox.Session, error) {
	return list(ctx, s, "list sessions", scanSession, `SELECT `+sessionColumns+` FROM sessions WHERE ($1 = '' OR account = $1)
		ORDER BY updated_at DESC, id DESC LIMIT $2`, account, limited(limit, MaxPage))
}

// advance moves the session's last number to last, if first is above what it is.
func (tx tx) advance(ctx context.Context, session string, first, last int64) error {
	var at int64
	err := tx.QueryRowContext(ctx, `SELECT last_seq FROM sessions WHERE id = $1`, session).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return missing(err, "session", session)
	}
	if err != nil {
		return err
	}
	if first <= at {
		return fmt.Errorf("%w: the session has an event %d already", sandbox.ErrConflict, first)
	}
	res, err := tx.ExecContext(ctx, `UPDATE sessions SET last_seq = $1, updated_at = $2 WHERE id = $3 AND last_seq = $4`, last, micros(tx.now), session, at)
	return one(res, err, "the session has gone on")
}

// one makes an update that did not change exactly one row a conflict, told by format.
func one(res sql.Result, err error, format string, args ...any) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return err
	}
	if n != 1 {
		return fmt.Errorf("%w: %s", sandbox.ErrConflict, fmt.Sprintf(format, args...))
	}
	return nil
}

func (tx tx) addSessionEvent(ctx context.Context, session string, ev sandbox.SessionEvent) error {
	if ev.At.IsZero() {
		ev.At = tx.now
	}
	if ev.Data == nil {
		ev.Data = []byte{}
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO session_events (session, seq, run, turn, kind, data, at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		session, ev.Seq, ev.Run, ev.Turn, string(ev.Kind), ev.Data, micros(ev.At))
	return err
}

// SessionEvents lists the events of a session after number after, in order.
func (s *Store) SessionEvents(ctx context.Context, session string, after int64, limit int) ([]sandbox.SessionEvent, error) {
	return list(ctx, s, "list session events", scanSessionEvent, `SELECT seq, run, turn, kind, data, at FROM session_events
		WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3`, session, after, limited(limit, MaxPage))
}

func scanSessionEvent(row scanner) (sandbox.SessionEvent, error) {
	var ev sandbox.SessionEvent
	var at int64
	err := row.Scan(&ev.Seq, &ev.Run, &ev.Turn, &ev.Kind, &ev.Data, &at)
	ev.At = fromMicros(at)
	return ev, err
}
