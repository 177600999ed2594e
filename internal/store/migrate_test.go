package store_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestOldTurns brings a database up to date in which each turn was a run of its own. What was running is followed to its end.
func TestOldTurns(t *testing.T) {
	t.Parallel()
	path, before := filepath.Join(t.TempDir(), "old.db"), t.TempDir()
	files, err := filepath.Glob("migrations/sqlite/0000[123]_*.sql")
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, name := range files {
		if err := os.WriteFile(filepath.Join(before, filepath.Base(name)), must[[]byte](t)(os.ReadFile(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	p := must[*goose.Provider](t)(goose.NewProvider(goose.DialectSQLite3, db, os.DirFS(before), goose.WithDisableGlobalRegistry(true)))
	if _, err := p.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	do := func(query string, args ...any) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	do(`INSERT INTO accounts VALUES ('a', 'main', 1)`)
	do(`INSERT INTO sandboxes (id, account, name, state, reason, fault, spec, engine, run, version, created_at, started_at, ended_at, expires_at)
		VALUES ('sbx_1', 'a', 'n', 'running', '', 0, '{}', 'fake', '1', 1, 1, 1, 0, 9)`)
	do(`INSERT INTO sessions VALUES ('ses_1', 'a', 'sbx_1', 'v', 'hi', 'u', 4, 8, 1, 1), ('ses_2', 'a', 'sbx_1', 'v', 'done', 'u2', 1, 2, 1, 1)`)
	for i, r := range []struct {
		session, state string
		code           any
		end            bool
	}{{"ses_1", "exited", 0, true}, {"ses_1", "exited", 1, true}, {"ses_1", "lost", nil, true}, {"ses_1", "running", nil, false}, {"ses_2", "exited", 0, true}} {
		id := fmt.Sprint("run_", i+1)
		do(`INSERT INTO runs VALUES ($1, 'a', 'sbx_1', 'claude', $2, '[]', $3, $4, '', '', 0, 1, 0)`, id, r.session, r.state, r.code)
		seq := 2*i + 1
		if r.session == "ses_2" {
			seq = 1
		}
		do(`INSERT INTO session_events VALUES ($1, $2, $3, 'prompt', '{}', 1)`, r.session, seq, id)
		kind := "line"
		if r.end {
			kind = "end"
		}
		do(`INSERT INTO session_events VALUES ($1, $2, $3, $4, '{}', 1)`, r.session, seq+1, id, kind)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	s := openAt(t, path)
	for id, want := range map[string]sandbox.TurnState{"trn_1": sandbox.TurnDone, "trn_2": sandbox.TurnFailed, "trn_3": sandbox.TurnLost, "trn_4": sandbox.TurnRunning} {
		turn := must[sandbox.Turn](t)(s.Turn(t.Context(), "ses_1", id))
		if turn.State != want || turn.Seq == 0 || (turn.EndSeq != 0) != want.Ended() || turn.Run != "run_"+id[4:] || fmt.Sprint(turn.Number) != id[4:] {
			t.Errorf("turn %+v, want %s", turn, want)
		}
	}
	if busy := must[[]string](t)(s.BusySessions(t.Context())); !reflect.DeepEqual(busy, []string{"ses_1"}) {
		t.Errorf("busy %v", busy)
	}
	if p := must[sandbox.Process](t)(s.Process(t.Context(), "ses_1")); p.Run != "run_4" || !p.Closed {
		t.Errorf("process %+v", p)
	}
	for _, e := range must[[]sandbox.SessionEvent](t)(s.SessionEvents(t.Context(), "ses_1", 0, 0)) {
		if e.Turn != "trn_"+e.Run[4:] {
			t.Errorf("event %+v", e)
		}
	}
}
