package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const runColumns = `id, account, sandbox, kind, session, argv, state, exit_code, signal, reason, mirrored, started_at, ended_at`

func scanRun(row scanner) (sandbox.Run, error) {
	var r sandbox.Run
	var argv string
	var started, ended int64
	if err := row.Scan(&r.ID, &r.Account, &r.Sandbox, &r.Kind, &r.Session, &argv, &r.State, &r.ExitCode, &r.Signal, &r.Reason,
		&r.Mirrored, &started, &ended); err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(argv), &r.Argv); err != nil {
		return r, fmt.Errorf("the arguments of %s: %w", r.ID, err)
	}
	r.StartedAt, r.EndedAt = fromMicros(started), fromMicros(ended)
	return r, nil
}

func (tx tx) addRun(ctx context.Context, r sandbox.Run) error {
	argv, err := json.Marshal(r.Argv)
	if err != nil {
		return err
	}
	if r.StartedAt.IsZero() {
		r.StartedAt = tx.now
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO runs (`+runColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		r.ID, r.Account, string(r.Sandbox), string(r.Kind), r.Session, string(argv), string(r.State), r.ExitCode, r.Signal, r.Reason,
		r.Mirrored, micros(r.StartedAt), micros(r.EndedAt))
	return err
}

// InsertRun records a run. It must come before the process is started.
func (s *Store) InsertRun(ctx context.Context, r sandbox.Run) error {
	return s.update(ctx, "record a run", func(tx tx) error { return tx.addRun(ctx, r) })
}

// Run returns one run of account.
func (s *Store) Run(ctx context.Context, account, id string) (sandbox.Run, error) {
	r, err := scanRun(s.read.QueryRowContext(ctx, `SELECT `+runColumns+` FROM runs WHERE id = $1 AND ($2 = '' OR account = $2)`, id, account))
	return r, s.fail("read a run", missing(err, "run", id))
}

// Runs lists the runs of a sandbox, newest first.
func (s *Store) Runs(ctx context.Context, account string, sb sandbox.ID, limit int) ([]sandbox.Run, error) {
	return list(ctx, s, "list runs", scanRun, `SELECT `+runColumns+` FROM runs WHERE sandbox = $1 AND ($2 = '' OR account = $2)
		ORDER BY id DESC LIMIT $3`, string(sb), account, limited(limit, MaxPage))
}

// RunningRuns lists every run of every account whose end is not recorded, oldest first.
func (s *Store) RunningRuns(ctx context.Context) ([]sandbox.Run, error) {
	return list(ctx, s, "list running runs", scanRun, `SELECT `+runColumns+` FROM runs WHERE state = 'running' ORDER BY id`)
}

// EndRun records how a run ended: State, ExitCode, Signal, Reason and EndedAt (default: now) of r. The first end stands: for
// a run that has one already it does nothing.
func (s *Store) EndRun(ctx context.Context, r sandbox.Run) error {
	if r.State == sandbox.RunRunning || r.State == "" {
		return fmt.Errorf("store: end run %s: %w: %q is no end", r.ID, sandbox.ErrState, r.State)
	}
	return s.update(ctx, "end run "+r.ID, func(tx tx) error {
		if r.EndedAt.IsZero() {
			r.EndedAt = tx.now
		}
		_, err := tx.ExecContext(ctx, `UPDATE runs SET state = $1, exit_code = $2, signal = $3, reason = $4, ended_at = $5
			WHERE id = $6 AND state = 'running'`,
			string(r.State), r.ExitCode, r.Signal, r.Reason, micros(r.EndedAt), r.ID)
		return err
	})
}
