package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

var sqliteDialect = dialect{
	name:     "sqlite",
	goose:    goose.DialectSQLite3,
	open:     openSQLite,
	classify: classifySQLite,
}

// openSQLite opens the file at path: one connection that writes and some that only read.
func openSQLite(ctx context.Context, path string) (write, read *sql.DB, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, nil, err
	}
	if err := ownFile(path); err != nil {
		return nil, nil, err
	}
	write, err = sql.Open("sqlite", sqliteDSN(path, url.Values{"_txlock": {"immediate"}}))
	if err != nil {
		return nil, nil, err
	}
	write.SetMaxOpenConns(1)
	if err := write.PingContext(ctx); err != nil { // first, so that the readers find it in WAL mode
		return nil, nil, errors.Join(err, write.Close())
	}
	read, err = sql.Open("sqlite", sqliteDSN(path, url.Values{"_pragma": {"query_only(1)"}}))
	if err != nil {
		return nil, nil, errors.Join(err, write.Close())
	}
	read.SetMaxOpenConns(max(4, runtime.GOMAXPROCS(0)))
	return write, read, nil
}

// ownFile makes the file, or takes it, for this user only: it holds hashes and what people told Claude. SQLite gives its
// side files the same mode.
func ownFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

func sqliteDSN(path string, more url.Values) string {
	q := url.Values{"_pragma": {
		"busy_timeout(10000)", // first: switching to WAL may have to wait as well
		"journal_mode(WAL)",
		"synchronous(NORMAL)", // with WAL: a power cut may lose the last commits, never the file
		"foreign_keys(1)",
	}}
	for k, v := range more {
		q[k] = append(q[k], v...)
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// classifySQLite tells errors by their code, never by their text.
func classifySQLite(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return nil
	}
	switch e.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return sandbox.ErrConflict
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return fmt.Errorf("%w: what it refers to isn't there", sandbox.ErrNotFound)
	}
	switch e.Code() & 0xff { // the primary code
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR:
		return sandbox.ErrUnavailable
	}
	return nil
}
