package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const sessionColumns = `id, account, sandbox, volume, title, uuid, turns, last_seq, created_at, updated_at`

func scanSession(row scanner) (sandbox.Session, error) {
	var ses sandbox.Session
	var created, updated int64
	err := row.Scan(&ses.ID, &ses.Account, &ses.Sandbox, &ses.Volume, &ses.Title, &ses.UUID, &ses.Turns, &ses.LastSeq, &created, &updated)
	ses.CreatedAt, ses.UpdatedAt = fromMicros(created), fromMicros(updated)
	return ses, err
}

// InsertSession records a session that has no turn yet.
func (s *Store) InsertSession(ctx context.Context, ses sandbox.Session) error {
	return s.update(ctx, "record a session", func(tx tx) error {
		if ses.CreatedAt.IsZero() {
			ses.CreatedAt = tx.now
		}
		if ses.UpdatedAt.IsZero() {
			ses.UpdatedAt = ses.CreatedAt
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO sessions (`+sessionColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			ses.ID, ses.Account, string(ses.Sandbox), ses.Volume, ses.Title, ses.UUID, ses.Turns, ses.LastSeq, micros(ses.CreatedAt), micros(ses.UpdatedAt))
		return err
	})
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

// BeginTurn records, as one, a run that serves ses, the prompt event ev that it answers and one turn more; the
// session moves to the run's sandbox. If the session has a run that has not ended, or an event with ev's number
// or a later one, the error is ErrConflict and nothing is recorded.
func (s *Store) BeginTurn(ctx context.Context, ses sandbox.Session, run sandbox.Run, ev sandbox.SessionEvent) error {
	return s.update(ctx, "begin a turn of "+ses.ID, func(tx tx) error {
		if err := tx.advance(ctx, ses.ID, ev.Seq, ev.Seq); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE sessions SET turns = turns + 1, sandbox = $1 WHERE id = $2`, string(run.Sandbox), ses.ID); err != nil {
			return err
		}
		run.Session = ses.ID
		if err := tx.addRun(ctx, run); err != nil {
			return err // two running runs of a session: the unique index
		}
		return tx.addSessionEvent(ctx, ses.ID, ev)
	})
}

// AppendSessionEvents records, as one, events of a session and the offset up to which run's output has now been taken over,
// so that each line is recorded exactly once, whatever dies in between. Events of kind SessionPartial use up their number
// but are not kept. A number that is not above the session's last, or an offset below the run's, is ErrConflict, and nothing is
// recorded. With run "" the events are not of a run's output.
func (s *Store) AppendSessionEvents(ctx context.Context, session string, evs []sandbox.SessionEvent, run string, mirrored int64) error {
	return s.update(ctx, "append events of "+session, func(tx tx) error {
		if len(evs) > 0 {
			for i := range evs[1:] {
				if evs[i+1].Seq <= evs[i].Seq {
					return fmt.Errorf("%w: number %d follows %d", sandbox.ErrConflict, evs[i+1].Seq, evs[i].Seq)
				}
			}
			if err := tx.advance(ctx, session, evs[0].Seq, evs[len(evs)-1].Seq); err != nil {
				return err
			}
		}
		for _, ev := range evs {
			if ev.Kind == sandbox.SessionPartial {
				continue
			}
			if err := tx.addSessionEvent(ctx, session, ev); err != nil {
				return err
			}
		}
		if run == "" {
			return nil
		}
		res, err := tx.ExecContext(ctx, `UPDATE runs SET mirrored = $1 WHERE id = $2 AND session = $3 AND mirrored <= $1`, mirrored, run, session)
		return one(res, err, "run %s is of another session, or is mirrored beyond %d", run, mirrored)
	})
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
	_, err := tx.ExecContext(ctx, `INSERT INTO session_events (session, seq, run, kind, data, at) VALUES ($1, $2, $3, $4, $5, $6)`,
		session, ev.Seq, ev.Run, string(ev.Kind), ev.Data, micros(ev.At))
	return err
}

// SessionEvents lists the events of a session after number after, in order.
func (s *Store) SessionEvents(ctx context.Context, session string, after int64, limit int) ([]sandbox.SessionEvent, error) {
	return list(ctx, s, "list session events", scanSessionEvent, `SELECT seq, run, kind, data, at FROM session_events
		WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3`, session, after, limited(limit, MaxPage))
}

func scanSessionEvent(row scanner) (sandbox.SessionEvent, error) {
	var ev sandbox.SessionEvent
	var at int64
	err := row.Scan(&ev.Seq, &ev.Run, &ev.Kind, &ev.Data, &at)
	ev.At = fromMicros(at)
	return ev, err
}
