package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const runColumns = `id, account, sandbox, kind, session, argv, state, exit_code, signal, reason, mirrored, started_at, ended_at, output_first, output_next`

func scanRun(row scanner) (sandbox.Run, error) {
	var r sandbox.Run
	var argv string
	var started, ended int64
	if err := row.Scan(&r.ID, &r.Account, &r.Sandbox, &r.Kind, &r.Session, &argv, &r.State, &r.ExitCode, &r.Signal, &r.Reason,
		&r.Mirrored, &started, &ended, &r.OutputFirst, &r.OutputNext); err != nil {
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
	_, err = tx.ExecContext(ctx, `INSERT INTO runs (`+runColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
		r.ID, r.Account, string(r.Sandbox), string(r.Kind), r.Session, string(argv), string(r.State), r.ExitCode, r.Signal, r.Reason,
		r.Mirrored, micros(r.StartedAt), micros(r.EndedAt), r.OutputFirst, r.OutputNext)
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

// Runs lists runs of a sandbox, newest first; next is the cursor of the next page, "" on the last.
func (s *Store) Runs(ctx context.Context, f sandbox.RunFilter) (all []sandbox.Run, next string, err error) {
	where, args := []string{"sandbox = $1"}, []any{string(f.Sandbox)}
	and := func(cond string, arg any) {
		args = append(args, arg)
		where = append(where, fmt.Sprintf(cond, len(args)))
	}
	if f.Account != "" {
		and("account = $%d", f.Account)
	}
	if f.Kind != "" {
		and("kind = $%d", string(f.Kind))
	}
	if len(f.States) > 0 {
		var marks []string
		for _, st := range f.States {
			args = append(args, string(st))
			marks = append(marks, fmt.Sprintf("$%d", len(args)))
		}
		where = append(where, "state IN ("+strings.Join(marks, ", ")+")")
	}
	if f.Cursor != "" {
		if !sandbox.IsID(f.Cursor, sandbox.PrefixRun) {
			return nil, "", sandbox.Invalid("cursor", "must be what a page gave as next_cursor")
		}
		and("id < $%d", f.Cursor)
	}
	n := limited(f.Limit, MaxPage)
	args = append(args, n+1)
	all, err = list(ctx, s, "list runs", scanRun, `SELECT `+runColumns+` FROM runs WHERE `+strings.Join(where, " AND ")+
		fmt.Sprintf(" ORDER BY id DESC LIMIT $%d", len(args)), args...)
	if len(all) > n {
		all = all[:n]
		next = all[n-1].ID
	}
	return all, next, err
}

// RunningRuns lists every run of every account whose end is not recorded, oldest first.
func (s *Store) RunningRuns(ctx context.Context) ([]sandbox.Run, error) {
	return list(ctx, s, "list running runs", scanRun, `SELECT `+runColumns+` FROM runs WHERE state = 'running' ORDER BY id`)
}

// EndRun records how a run ended: State, ExitCode, Signal, Reason, EndedAt (default: now, and never before its start, though the clock was
// set back) and, if it is more than is known, OutputNext of r. The first end stands: for a run that has one already it does nothing.
func (s *Store) EndRun(ctx context.Context, r sandbox.Run) error {
	if r.State == sandbox.RunRunning || r.State == "" {
		return fmt.Errorf("store: end run %s: %w: %q is no end", r.ID, sandbox.ErrState, r.State)
	}
	return s.update(ctx, "end run "+r.ID, func(tx tx) error {
		if r.EndedAt.IsZero() {
			r.EndedAt = tx.now
		}
		_, err := tx.ExecContext(ctx, `UPDATE runs SET state = $1, exit_code = $2, signal = $3, reason = $4,
			ended_at = CASE WHEN started_at > $5 THEN started_at ELSE $5 END,
			output_next = CASE WHEN output_next > $7 THEN output_next ELSE $7 END
			WHERE id = $6 AND state = 'running'`,
			string(r.State), r.ExitCode, r.Signal, r.Reason, micros(r.EndedAt), r.ID, r.OutputNext)
		return err
	})
}

// ForgetOutput records that the output of runs is not kept any more.
func (s *Store) ForgetOutput(ctx context.Context, ids []string) error {
	return s.quietly(ctx, "forget output", func(tx tx) error {
		for _, id := range ids {
			if _, err := tx.ExecContext(ctx, `UPDATE runs SET output_first = output_next WHERE id = $1 AND state <> 'running'`, id); err != nil {
				return err
			}
		}
		return nil
	})
}
