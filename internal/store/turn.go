package store

import (
	"context"
	"fmt"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const turnColumns = `id, account, session, number, sandbox, run, state, text, model, permission_mode, author, uuid, taken, interrupted,
	reason, seq, end_seq, created_at, started_at, ended_at`

func scanTurn(row scanner) (sandbox.Turn, error) {
	var t sandbox.Turn
	var taken, interrupted, created, started, ended int64
	err := row.Scan(&t.ID, &t.Account, &t.Session, &t.Number, &t.Sandbox, &t.Run, &t.State, &t.Text, &t.Model, &t.PermissionMode, &t.Author,
		&t.UUID, &taken, &interrupted, &t.Reason, &t.Seq, &t.EndSeq, &created, &started, &ended)
	t.Taken, t.Interrupted = taken != 0, interrupted != 0
	t.CreatedAt, t.StartedAt, t.EndedAt = fromMicros(created), fromMicros(started), fromMicros(ended)
	return t, err
}

// OpenTurns lists the turns of a session that wait or run, in order.
func (s *Store) OpenTurns(ctx context.Context, session string) ([]sandbox.Turn, error) {
	return list(ctx, s, "list turns", scanTurn, `SELECT `+turnColumns+` FROM turns
		WHERE session = $1 AND state IN ('queued', 'running') ORDER BY number`, session)
}

// Turn returns one turn of a session.
func (s *Store) Turn(ctx context.Context, session, id string) (sandbox.Turn, error) {
	t, err := scanTurn(s.read.QueryRowContext(ctx, `SELECT `+turnColumns+` FROM turns WHERE session = $1 AND id = $2`, session, id))
	return t, s.fail("read a turn", missing(err, "turn", id))
}

func (tx tx) addTurn(ctx context.Context, t sandbox.Turn) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO turns (`+turnColumns+`) SELECT $1, $2, $3, coalesce(max(number), 0) + 1, $4, $5, $6, $7, $8, $9, $10,
		$11, $12, $13, $14, $15, $16, $17, $18, $19 FROM turns WHERE session = $3`,
		t.ID, t.Account, t.Session, string(t.Sandbox), t.Run, string(t.State), t.Text, t.Model, t.PermissionMode, t.Author, t.UUID,
		bit(t.Taken), bit(t.Interrupted), t.Reason, t.Seq, t.EndSeq, micros(t.CreatedAt), micros(t.StartedAt), micros(t.EndedAt))
	return err
}

func (tx tx) setTurn(ctx context.Context, t sandbox.Turn) error {
	res, err := tx.ExecContext(ctx, `UPDATE turns SET sandbox = $1, run = $2, state = $3, model = $4, permission_mode = $5, taken = $6,
		interrupted = $7, reason = $8, seq = $9, end_seq = $10, started_at = $11, ended_at = $12 WHERE id = $13 AND session = $14`,
		string(t.Sandbox), t.Run, string(t.State), t.Model, t.PermissionMode, bit(t.Taken), bit(t.Interrupted), t.Reason, t.Seq, t.EndSeq,
		micros(t.StartedAt), micros(t.EndedAt), t.ID, t.Session)
	return one(res, err, "there is no turn %s", t.ID)
}

func (tx tx) setTurnText(ctx context.Context, t sandbox.Turn) error {
	res, err := tx.ExecContext(ctx, `UPDATE turns SET text = $1 WHERE id = $2 AND session = $3 AND state = 'queued'`, t.Text, t.ID, t.Session)
	return one(res, err, "turn %s doesn't wait", t.ID)
}

const askColumns = `id, account, session, turn, run, request, kind, tool, tool_use, agent, title, description, reason, input, suggestions,
	answer, state, answered_by, created_at, expires_at, answered_at`

func scanAsk(row scanner) (sandbox.Ask, error) {
	var a sandbox.Ask
	var input, suggestions, answer string
	var created, expires, answered int64
	err := row.Scan(&a.ID, &a.Account, &a.Session, &a.Turn, &a.Run, &a.Request, &a.Kind, &a.Tool, &a.ToolUse, &a.Agent, &a.Title, &a.Description,
		&a.Reason, &input, &suggestions, &answer, &a.State, &a.AnsweredBy, &created, &expires, &answered)
	a.Input, a.Suggestions, a.Answer = []byte(input), []byte(suggestions), []byte(answer)
	a.CreatedAt, a.ExpiresAt, a.AnsweredAt = fromMicros(created), fromMicros(expires), fromMicros(answered)
	return a, err
}

// Asks lists the asks of a session: those that are pending first, and each group with the newest first.
func (s *Store) Asks(ctx context.Context, session string, pendingOnly bool, limit int) ([]sandbox.Ask, error) {
	return list(ctx, s, "list asks", scanAsk, `SELECT `+askColumns+` FROM prompts WHERE session = $1 AND ($2 = 0 OR state = 'pending')
		ORDER BY state = 'pending' DESC, id DESC LIMIT $3`, session, bit(pendingOnly), limited(limit, MaxPage))
}

// Ask returns one ask of a session.
func (s *Store) Ask(ctx context.Context, session, id string) (sandbox.Ask, error) {
	a, err := scanAsk(s.read.QueryRowContext(ctx, `SELECT `+askColumns+` FROM prompts WHERE session = $1 AND id = $2`, session, id))
	return a, s.fail("read an ask", missing(err, "prompt", id))
}

// text is JSON as it is stored.
func text(json []byte) string {
	if len(json) == 0 {
		return "null"
	}
	return string(json)
}

func (tx tx) addAsk(ctx context.Context, a sandbox.Ask) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO prompts (`+askColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)`,
		a.ID, a.Account, a.Session, a.Turn, a.Run, a.Request, string(a.Kind), a.Tool, a.ToolUse, a.Agent, a.Title, a.Description, a.Reason,
		text(a.Input), text(a.Suggestions), text(a.Answer), string(a.State), a.AnsweredBy, micros(a.CreatedAt), micros(a.ExpiresAt), micros(a.AnsweredAt))
	return err
}

// settleAsk is where the first answer wins.
func (tx tx) settleAsk(ctx context.Context, a sandbox.Ask) error {
	res, err := tx.ExecContext(ctx, `UPDATE prompts SET state = $1, answer = $2, answered_by = $3, answered_at = $4
		WHERE id = $5 AND session = $6 AND state = 'pending'`,
		string(a.State), text(a.Answer), a.AnsweredBy, micros(a.AnsweredAt), a.ID, a.Session)
	return one(res, err, "ask %s is not pending", a.ID)
}

// Process returns the living process of a session; ErrNotFound if there is none.
func (s *Store) Process(ctx context.Context, session string) (sandbox.Process, error) {
	var p sandbox.Process
	var closed int64
	err := s.read.QueryRowContext(ctx, `SELECT run, session, sandbox, stdin, closed, model, permission_mode FROM session_processes WHERE session = $1`,
		session).Scan(&p.Run, &p.Session, &p.Sandbox, &p.Stdin, &closed, &p.Model, &p.PermissionMode)
	p.Closed = closed != 0
	return p, s.fail("read a process", missing(err, "process", session))
}

func (tx tx) putProcess(ctx context.Context, p sandbox.Process) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO session_processes (run, session, sandbox, stdin, closed, model, permission_mode)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (run) DO UPDATE SET stdin = $4, closed = $5, model = $6, permission_mode = $7`,
		p.Run, p.Session, string(p.Sandbox), p.Stdin, bit(p.Closed), p.Model, p.PermissionMode)
	return err
}

func (tx tx) removeProcess(ctx context.Context, run string) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM session_inputs WHERE run = $1`, run); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM session_processes WHERE run = $1`, run)
	return err
}

// Inputs lists what is still to be written to a process, in order.
func (s *Store) Inputs(ctx context.Context, run string) ([]sandbox.Input, error) {
	return list(ctx, s, "list inputs", func(row scanner) (sandbox.Input, error) {
		in := sandbox.Input{Run: run}
		var closes int64
		err := row.Scan(&in.At, &in.Data, &closes)
		in.Close = closes != 0
		return in, err
	}, `SELECT at, data, closes FROM session_inputs WHERE run = $1 ORDER BY at, closes`, run)
}

func (tx tx) addInput(ctx context.Context, in sandbox.Input) error {
	data := in.Data
	if data == nil {
		data = []byte{}
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO session_inputs (run, at, data, closes) VALUES ($1, $2, $3, $4)`, in.Run, in.At, data, bit(in.Close))
	return err
}

// InputWritten forgets an input that the process has got.
func (s *Store) InputWritten(ctx context.Context, in sandbox.Input) error {
	return s.quietly(ctx, "forget an input", func(tx tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM session_inputs WHERE run = $1 AND at = $2 AND closes = $3`, in.Run, in.At, bit(in.Close))
		return err
	})
}

// BusySessions lists the sessions that have a living process, or a turn that waits or runs.
func (s *Store) BusySessions(ctx context.Context) ([]string, error) {
	return list(ctx, s, "list busy sessions", func(row scanner) (id string, err error) { return id, row.Scan(&id) },
		`SELECT session FROM session_processes UNION SELECT session FROM turns WHERE state IN ('queued', 'running') ORDER BY 1`)
}

// WriteSession does all that w says as one, or nothing. Event numbers that are not above the session's last, an offset below the
// run's, a second running run or turn of the session, and an ask that isn't pending are ErrConflict.
func (s *Store) WriteSession(ctx context.Context, w sandbox.SessionWrite) error {
	return s.update(ctx, "write to "+w.Session, func(tx tx) error { return tx.writeSession(ctx, w) })
}

func (tx tx) writeSession(ctx context.Context, w sandbox.SessionWrite) error {
	if w.New != nil {
		if err := tx.addSession(ctx, *w.New); err != nil {
			return err
		}
	}
	if err := tx.addSessionEvents(ctx, w.Session, w.Events); err != nil {
		return err
	}
	if w.Update != nil {
		if err := tx.setSession(ctx, *w.Update); err != nil {
			return err
		}
	}
	if w.Begin != nil {
		run := *w.Begin
		run.Session = w.Session
		if err := tx.addRun(ctx, run); err != nil {
			return err // two running runs of a session: the unique index
		}
	}
	if w.Run != "" {
		res, err := tx.ExecContext(ctx, `UPDATE runs SET mirrored = $1 WHERE id = $2 AND session = $3 AND mirrored <= $1`, w.Mirrored, w.Run, w.Session)
		if err := one(res, err, "run %s is of another session, or is mirrored beyond %d", w.Run, w.Mirrored); err != nil {
			return err
		}
	}
	if w.Process != nil {
		if err := tx.putProcess(ctx, *w.Process); err != nil {
			return err
		}
	}
	if err := each(ctx, w.NewTurns, tx.addTurn); err != nil {
		return err
	}
	if w.Text != nil {
		if err := tx.setTurnText(ctx, *w.Text); err != nil {
			return err
		}
	}
	if err := each(ctx, w.Turns, tx.setTurn); err != nil {
		return err
	}
	if err := each(ctx, w.NewAsks, tx.addAsk); err != nil {
		return err
	}
	if err := each(ctx, w.Settled, tx.settleAsk); err != nil {
		return err
	}
	if err := each(ctx, w.Inputs, tx.addInput); err != nil {
		return err
	}
	if w.Gone != "" {
		return tx.removeProcess(ctx, w.Gone)
	}
	return nil
}

func (tx tx) addSessionEvents(ctx context.Context, session string, evs []sandbox.SessionEvent) error {
	if len(evs) == 0 {
		return nil
	}
	for i := range evs[1:] {
		if evs[i+1].Seq <= evs[i].Seq {
			return fmt.Errorf("%w: number %d follows %d", sandbox.ErrConflict, evs[i+1].Seq, evs[i].Seq)
		}
	}
	if err := tx.advance(ctx, session, evs[0].Seq, evs[len(evs)-1].Seq); err != nil {
		return err
	}
	for _, ev := range evs {
		if ev.Kind == sandbox.SessionPartial || ev.Live {
			continue
		}
		if err := tx.addSessionEvent(ctx, session, ev); err != nil {
			return err
		}
	}
	return nil
}

// each calls do for every item until one fails.
func each[T any](ctx context.Context, items []T, do func(context.Context, T) error) error {
	for _, item := range items {
		if err := do(ctx, item); err != nil {
			return err
		}
	}
	return nil
}
