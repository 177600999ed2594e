package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// EnsureVolume returns the account's volume of that name and makes its record if it isn't there.
func (s *Store) EnsureVolume(ctx context.Context, account, name string) (v sandbox.Volume, err error) {
	err = s.quietly(ctx, "make a volume", func(tx tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO volumes (id, account, name, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (account, name) DO NOTHING`,
			sandbox.NewID(sandbox.PrefixVolume), account, name, micros(tx.now)); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT id, name FROM volumes WHERE account = $1 AND name = $2`, account, name).Scan(&v.ID, &v.Name)
	})
	return v, err
}

// ForgetVolume removes the record of a volume. Removing what isn't there succeeds.
func (s *Store) ForgetVolume(ctx context.Context, id string) error {
	return s.quietly(ctx, "forget a volume", func(tx tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM volumes WHERE id = $1`, id)
		return err
	})
}

const sandboxColumns = `id, account, name, state, reason, fault, spec, engine, run, handle, version, created_at, started_at, ended_at, expires_at, suspended_at, suspended_until`

func scanSandbox(row scanner) (sandbox.Sandbox, error) {
	var sb sandbox.Sandbox
	var spec string
	var fault, created, started, ended, expires, suspended, until int64
	if err := row.Scan(&sb.ID, &sb.Account, &sb.Name, &sb.State, &sb.Reason, &fault, &spec, &sb.Engine, &sb.Run, &sb.Handle, &sb.Version,
		&created, &started, &ended, &expires, &suspended, &until); err != nil {
		return sb, err
	}
	if err := json.Unmarshal([]byte(spec), &sb.Spec); err != nil {
		return sb, fmt.Errorf("the spec of %s: %w", sb.ID, err)
	}
	sb.Fault = fault != 0
	sb.CreatedAt, sb.StartedAt, sb.EndedAt, sb.ExpiresAt = fromMicros(created), fromMicros(started), fromMicros(ended), fromMicros(expires)
	sb.SuspendedAt, sb.SuspendedUntil = fromMicros(suspended), fromMicros(until)
	return sb, nil
}

// Admit records a new sandbox, which must be Creating, and its event "accepted". It must come before anything is made.
func (s *Store) Admit(ctx context.Context, sb sandbox.Sandbox) error {
	if sb.State != sandbox.Creating {
		return fmt.Errorf("store: admit %s: %w: it is %s", sb.ID, sandbox.ErrState, sb.State)
	}
	spec, err := json.Marshal(sb.Spec)
	if err != nil {
		return fmt.Errorf("store: admit %s: %w", sb.ID, err)
	}
	return s.update(ctx, "admit a sandbox", func(tx tx) error {
		if sb.CreatedAt.IsZero() {
			sb.CreatedAt = tx.now
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO sandboxes (`+sandboxColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0, 0)`,
			string(sb.ID), sb.Account, sb.Name, string(sb.State), sb.Reason, bit(sb.Fault), string(spec), sb.Engine, sb.Run, sb.Handle, 1,
			micros(sb.CreatedAt), 0, 0, micros(sb.ExpiresAt)); err != nil {
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(sb.Spec.Labels)) {
			if _, err := tx.ExecContext(ctx, `INSERT INTO sandbox_labels (sandbox, key, value) VALUES ($1, $2, $3)`,
				string(sb.ID), key, sb.Spec.Labels[key]); err != nil {
				return err
			}
		}
		_, err := tx.addEvent(ctx, sandbox.Event{Account: sb.Account, Sandbox: sb.ID, Kind: "accepted", Text: "The request is accepted."})
		return err
	})
}

// Transition moves one sandbox to state to and appends the event that tells of it, with Reason as its text. change, which
// may be nil, sets what else is new of Name, Reason, Fault, Handle, ExpiresAt, SuspendedAt, SuspendedUntil, and of the spec's Image, Network
// and Timeout; the rest is not its to change. run must be the
// sandbox's, else the error is ErrConflict: what was decided on one incarnation must not land on another. A move that the
// table doesn't allow is ErrState; the sandbox as it is stored is returned then too.
func (s *Store) Transition(ctx context.Context, id sandbox.ID, run string, to sandbox.State, change func(*sandbox.Sandbox)) (sandbox.Sandbox, error) {
	return s.changeSandbox(ctx, id, run, change, to)
}

// Amend changes a sandbox without moving it, and tells no event: its handle, say, or why it is still stopping.
func (s *Store) Amend(ctx context.Context, id sandbox.ID, run string, change func(*sandbox.Sandbox)) (sandbox.Sandbox, error) {
	return s.changeSandbox(ctx, id, run, change, "")
}

// changeSandbox is Transition, or Amend if to is "".
func (s *Store) changeSandbox(ctx context.Context, id sandbox.ID, run string, change func(*sandbox.Sandbox), to sandbox.State) (sandbox.Sandbox, error) {
	var stored sandbox.Sandbox
	err := s.update(ctx, "change sandbox "+string(id), func(tx tx) error {
		var err error
		stored, err = scanSandbox(tx.QueryRowContext(ctx, `SELECT `+sandboxColumns+` FROM sandboxes WHERE id = $1`, string(id)))
		if err != nil {
			return missing(err, "sandbox", string(id))
		}
		if stored.Run != run {
			return fmt.Errorf("%w: run %s was meant, it is at %s", sandbox.ErrConflict, run, stored.Run)
		}
		if to != "" {
			if err := stored.State.To(to); err != nil {
				return err
			}
		}
		sb := changed(stored, change, to, tx.now)
		spec, err := json.Marshal(sb.Spec)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `UPDATE sandboxes SET name = $1, state = $2, reason = $3, fault = $4, handle = $5, version = $6,
			started_at = $7, ended_at = $8, expires_at = $9, suspended_at = $10, suspended_until = $11, spec = $12 WHERE id = $13 AND version = $14`,
			sb.Name, string(sb.State), sb.Reason, bit(sb.Fault), sb.Handle, sb.Version, micros(sb.StartedAt), micros(sb.EndedAt), micros(sb.ExpiresAt),
			micros(sb.SuspendedAt), micros(sb.SuspendedUntil), string(spec), string(id), stored.Version)
		if err := one(res, err, "it was changed at the same time"); err != nil {
			return err
		}
		if to != "" {
			if _, err := tx.addEvent(ctx, sandbox.Event{Account: sb.Account, Sandbox: sb.ID, Kind: string(to), Text: transitionText(sb, stored.State, tx.now)}); err != nil {
				return err
			}
		}
		stored = sb
		return nil
	})
	return stored, err
}

// changed is stored with change applied to what may change, in state to if that isn't "".
func changed(stored sandbox.Sandbox, change func(*sandbox.Sandbox), to sandbox.State, now time.Time) sandbox.Sandbox {
	wish := stored
	if change != nil {
		change(&wish)
	}
	sb := stored
	sb.Name, sb.Reason, sb.Fault, sb.Handle, sb.ExpiresAt = wish.Name, wish.Reason, wish.Fault, wish.Handle, wish.ExpiresAt
	sb.Spec.Image, sb.Spec.Network, sb.Spec.Timeout = wish.Spec.Image, wish.Spec.Network, wish.Spec.Timeout
	sb.SuspendedAt, sb.SuspendedUntil = wish.SuspendedAt, wish.SuspendedUntil
	sb.Version++
	if to == "" {
		return sb
	}
	sb.State = to
	if to == sandbox.Running && sb.StartedAt.IsZero() {
		sb.StartedAt = now
	}
	if to.Terminal() {
		sb.EndedAt = now
	}
	return sb
}

// transitionText is what an event says: the reason, if there is one.
func transitionText(sb sandbox.Sandbox, from sandbox.State, now time.Time) string {
	if sb.Reason != "" {
		return sb.Reason
	}
	switch sb.State {
	case sandbox.Running:
		if from != sandbox.Creating {
			return "The sandbox is running again, where it left off."
		}
		return fmt.Sprintf("The sandbox is running, %v after it was asked for.", now.Sub(sb.CreatedAt).Round(time.Millisecond))
	case sandbox.Suspending:
		return "The sandbox is being suspended: its memory is written to disk."
	case sandbox.Suspended:
		return "The sandbox is suspended: it holds neither CPU nor memory."
	case sandbox.Resuming:
		return "The sandbox is being resumed: its memory is read from disk."
	case sandbox.Stopping:
		return "The sandbox is being stopped."
	default:
		return "The sandbox has ended; nothing of it is left but its volume."
	}
}

// Sandbox returns one sandbox of account.
func (s *Store) Sandbox(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error) {
	sb, err := scanSandbox(s.read.QueryRowContext(ctx, `SELECT `+sandboxColumns+` FROM sandboxes WHERE id = $1 AND ($2 = '' OR account = $2)`,
		string(id), account))
	return sb, s.fail("read a sandbox", missing(err, "sandbox", string(id)))
}

// Filter says which sandboxes to list.
type Filter = sandbox.Filter

// MaxPage is the most that one call lists.
const MaxPage = 500

// Sandboxes lists sandboxes, newest first. next is "" on the last page.
func (s *Store) Sandboxes(ctx context.Context, f Filter) (all []sandbox.Sandbox, next string, err error) {
	if f.Cursor != "" && !sandbox.IsID(f.Cursor, sandbox.PrefixSandbox) {
		return nil, "", sandbox.Invalid("cursor", "this is not a cursor that a list gave")
	}
	limit := limited(f.Limit, MaxPage)
	var where []string
	var args []any
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	if f.Account != "" {
		where = append(where, `account = `+arg(f.Account))
	}
	if f.Cursor != "" {
		where = append(where, `id < `+arg(f.Cursor))
	}
	if len(f.States) > 0 {
		var in []string
		for _, state := range f.States {
			in = append(in, arg(string(state)))
		}
		where = append(where, `state IN (`+strings.Join(in, ", ")+`)`)
	}
	for _, key := range slices.Sorted(maps.Keys(f.Labels)) {
		where = append(where, `EXISTS (SELECT 1 FROM sandbox_labels l WHERE l.sandbox = sandboxes.id AND l.key = `+arg(key)+` AND l.value = `+arg(f.Labels[key])+`)`)
	}
	query := `SELECT ` + sandboxColumns + ` FROM sandboxes`
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, ` AND `)
	}
	query += ` ORDER BY id DESC LIMIT ` + arg(limit+1)
	all, err = list(ctx, s, "list sandboxes", scanSandbox, query, args...)
	if len(all) > limit {
		all = all[:limit]
		next = string(all[limit-1].ID)
	}
	return all, next, err
}

// Due lists what must be brought to an end: sandboxes past their deadline, or suspended for too long, first, then those that are
// stopping.
func (s *Store) Due(ctx context.Context, now time.Time, limit int) ([]sandbox.Sandbox, error) {
	return list(ctx, s, "list due sandboxes", scanSandbox, `SELECT `+sandboxColumns+` FROM sandboxes
		WHERE state = 'stopping' OR (state IN ('creating', 'running') AND expires_at <= $1) OR (state = 'suspended' AND suspended_until <= $1)
		ORDER BY CASE state WHEN 'stopping' THEN 1 ELSE 0 END, expires_at LIMIT $2`, micros(now), limited(limit, MaxPage))
}
