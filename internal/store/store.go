// Package store keeps Sandlot's records: the only SQL there is. Its methods are use-cases, not tables, so that what must
// hold (every change of state has an event, a turn and its prompt are one) can't be forgotten by a caller. The SQL
// text is one for every dialect; what differs stands in a dialect.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

//go:embed migrations
var migrations embed.FS

// Store is the records of one installation. All methods are safe for concurrent use. Errors wrap a class of package
// sandbox where one applies. An account of "" means any account, for the server's own use.
type Store struct {
	dialect dialect
	write   *sql.DB // for SQLite one connection: writers wait in Go, where a ctx can end the wait
	read    *sql.DB

	watchMu  sync.Mutex
	watchers map[chan struct{}]struct{}
}

// dialect is what differs between databases.
type dialect struct {
	name     string
	goose    goose.Dialect
	open     func(ctx context.Context, rest string) (write, read *sql.DB, err error)
	classify func(error) error // the class that a driver's error stands for; nil if none
}

// Open opens the database that url names ("sqlite:/path/to/file"), makes it if it isn't there, and brings its tables up
// to date. A database made by a newer version is refused.
func Open(ctx context.Context, url string) (*Store, error) {
	scheme, rest, ok := strings.Cut(url, ":")
	if !ok || scheme != "sqlite" || rest == "" {
		return nil, fmt.Errorf("open the database: %w: %q isn't of the form sqlite:/path/to/file", sandbox.ErrUnsupported, url)
	}
	d := sqliteDialect
	write, read, err := d.open(ctx, rest)
	if err != nil {
		return nil, fmt.Errorf("open the database %s: %w", url, err)
	}
	s := &Store{dialect: d, write: write, read: read, watchers: make(map[chan struct{}]struct{})}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the database %s: %w", url, err), s.Close())
	}
	return s, nil
}

// Close closes the database. What is under way fails.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	return s.fail("ask the database", s.read.QueryRowContext(ctx, `SELECT 1`).Scan(&one))
}

func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations/"+s.dialect.name)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(s.dialect.goose, s.write, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read its version: %w", err)
	}
	if current > target {
		return fmt.Errorf("%w: it is at version %d, this program knows only %d; use the newer program", sandbox.ErrUnsupported, current, target)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bring it up to date: %w", err)
	}
	return nil
}

// Watch returns a channel that gets a value after every commit that concerns sandboxes, runs or sessions, until ctx ends.
// Several commits may give one value, and a value may mean nothing new: re-read the store. It is never closed.
func (s *Store) Watch(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	s.watchers[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		s.watchMu.Lock()
		defer s.watchMu.Unlock()
		delete(s.watchers, c)
	})
	return c
}

func (s *Store) wake() {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	for c := range s.watchers {
		select {
		case c <- struct{}{}:
		default: // a wake-up is waiting there already
		}
	}
}

// tx is a writing transaction. It reads one clock, so that all it writes bears one time.
type tx struct {
	*sql.Tx
	now time.Time
}

// quietly runs do in a writing transaction. doing names it in errors.
func (s *Store) quietly(ctx context.Context, doing string, do func(tx) error) error {
	t, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return s.fail(doing, err)
	}
	defer func() { _ = t.Rollback() }() // after a commit it does nothing; else the first error tells more
	if err := do(tx{Tx: t, now: now()}); err != nil {
		return s.fail(doing, err)
	}
	return s.fail(doing, t.Commit())
}

// update is quietly, and wakes the watchers after the commit.
func (s *Store) update(ctx context.Context, doing string, do func(tx) error) error {
	if err := s.quietly(ctx, doing, do); err != nil {
		return err
	}
	s.wake()
	return nil
}

// fail says what was being done and adds the class that the driver's error stands for.
func (s *Store) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	if p := (*sandbox.Problem)(nil); errors.As(err, &p) {
		return err // says it better than we could
	}
	if class := s.dialect.classify(err); class != nil {
		return fmt.Errorf("store: %s: %w: %w", doing, class, err)
	}
	return fmt.Errorf("store: %s: %w", doing, err)
}

// missing turns sql.ErrNoRows into a Problem of class ErrNotFound that names what isn't there.
func missing(err error, what, id string) error {
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	const most = 64 // of what a caller sent, in an answer
	if len(id) > most {
		id = id[:most] + "…"
	}
	return &sandbox.Problem{Class: sandbox.ErrNotFound, Code: what + "_not_found", Detail: fmt.Sprintf("There is no %s %q.", what, id)}
}

// scanner is a row.
type scanner interface{ Scan(dest ...any) error }

// list reads all rows of a query with scan.
func list[T any](ctx context.Context, s *Store, doing string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := s.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, s.fail(doing, err)
	}
	defer func() { _ = rows.Close() }() // rows.Err has what went wrong
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, s.fail(doing, err)
		}
		all = append(all, v)
	}
	return all, s.fail(doing, rows.Err())
}

// now is the time as the store keeps it: in UTC, to the microsecond.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// micros is t as it is stored.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// fromMicros is the inverse of micros.
func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// bit is b as it is stored.
func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// limited gives a limit that was not set, or is absurd, a sane value.
func limited(limit, most int) int {
	if limit <= 0 || limit > most {
		return most
	}
	return limit
}
