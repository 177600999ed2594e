package store

import (
	"context"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func (tx tx) addEvent(ctx context.Context, ev sandbox.Event) (seq int64, err error) {
	if ev.At.IsZero() {
		ev.At = tx.now
	}
	err = tx.QueryRowContext(ctx, `INSERT INTO events (account, sandbox, kind, text, at) VALUES ($1, $2, $3, $4, $5) RETURNING seq`,
		ev.Account, string(ev.Sandbox), ev.Kind, ev.Text, micros(ev.At)).Scan(&seq)
	return seq, err
}

// AppendEvent records that something happened to a sandbox and returns the event's number. Its time, if not set, is now.
// Changes of state need no call: Admit and Transition tell their own.
func (s *Store) AppendEvent(ctx context.Context, ev sandbox.Event) (seq int64, err error) {
	err = s.update(ctx, "append an event", func(tx tx) error {
		seq, err = tx.addEvent(ctx, ev)
		return err
	})
	return seq, err
}

// Events lists the events after number after, oldest first: those of one sandbox, or of all if sb is "".
func (s *Store) Events(ctx context.Context, account string, sb sandbox.ID, after int64, limit int) ([]sandbox.Event, error) {
	return list(ctx, s, "list events", scanEvent, `SELECT seq, account, sandbox, kind, text, at FROM events
		WHERE seq > $1 AND ($2 = '' OR account = $2) AND ($3 = '' OR sandbox = $3) ORDER BY seq LIMIT $4`,
		after, account, string(sb), limited(limit, MaxPage))
}

func scanEvent(row scanner) (sandbox.Event, error) {
	var ev sandbox.Event
	var at int64
	err := row.Scan(&ev.Seq, &ev.Account, &ev.Sandbox, &ev.Kind, &ev.Text, &at)
	ev.At = fromMicros(at)
	return ev, err
}
