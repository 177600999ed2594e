package store

import (
	"context"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// UnfinishedTurns lists the runs of sessions whose log doesn't close with an end: those that are running, and those that ended
// when nobody was there to record it in the session.
func (s *Store) UnfinishedTurns(ctx context.Context) ([]sandbox.Run, error) {
	return list(ctx, s, "list unfinished turns", scanRun, `SELECT `+runColumns+` FROM runs WHERE id IN (
		SELECT e.run FROM sessions s JOIN session_events e ON e.session = s.id AND e.seq = s.last_seq WHERE e.kind <> 'end') ORDER BY id`)
}
