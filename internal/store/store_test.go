package store_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

var _ scs.CtxStore = store.WebSessions{}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens a fresh database in the test's own directory.
func open(t *testing.T) *store.Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "sandlot.db"))
}

func openAt(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func account(t *testing.T, s *store.Store, name string) string {
	t.Helper()
	a, _, err := s.EnsureAccount(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return a.ID
}

// admit records a sandbox of account as change wants it.
func admit(t *testing.T, s *store.Store, account string, change func(*sandbox.Sandbox)) sandbox.Sandbox {
	t.Helper()
	sb := sandbox.Sandbox{
		ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Account: account, Name: "kind-otter", State: sandbox.Creating,
		Engine: "fake", Run: "1", ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond),
		Spec: sandbox.Spec{Image: sandbox.Image{Source: sandbox.HostImage}, Workdir: "/workspace", Timeout: time.Hour, Network: sandbox.Network{Mode: sandbox.NetworkNone}},
	}
	if change != nil {
		change(&sb)
	}
	if err := s.Admit(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	return sb
}

func wantClass(t *testing.T, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("error is %v, want one of class %q", err, class)
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestOpenRefusesOtherURLs(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "sqlite:", "postgres://localhost/x", "/just/a/path"} {
		_, err := store.Open(t.Context(), url)
		wantClass(t, err, sandbox.ErrUnsupported)
	}
	if _, err := store.Open(t.Context(), "sqlite:"+t.TempDir()); err == nil {
		t.Error("a directory was opened as a database")
	}
	junk := filepath.Join(t.TempDir(), "junk.db")
	if err := os.WriteFile(junk, []byte("this is not a database, and long enough for that to be seen"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), "sqlite:"+junk); err == nil {
		t.Error("a file that is no database was opened")
	}
}

func TestOpenRefusesNewerDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sandlot.db")
	s, err := store.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(t.Context(), "sqlite:"+path)
	wantClass(t, err, sandbox.ErrUnsupported)
}

func TestFileIsOfItsUserOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "made", "on the way?", "50% #1.db")
	s := openAt(t, path)
	account(t, s, "first")
	for _, name := range []string{path, path + "-wal"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o", name, mode)
		}
	}
}

func TestReopenFindsAll(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sandlot.db")
	first, err := store.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	acc := account(t, first, "first")
	sb := admit(t, first, acc, nil)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Ping(t.Context()); err == nil {
		t.Error("a closed store answers")
	}
	second := openAt(t, path)
	if err := second.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := second.Sandbox(t.Context(), acc, sb.ID); err != nil {
		t.Error(err)
	}
	if a, created, err := second.EnsureAccount(t.Context(), "first"); err != nil || created || a.ID != acc {
		t.Errorf("the account is now %v, created %v, %v", a, created, err)
	}
}

func TestWatchWakesAfterCommit(t *testing.T) {
	t.Parallel()
	s := open(t)
	acc := account(t, s, "first")
	ctx, cancel := context.WithCancel(t.Context())
	woken := s.Watch(ctx)
	select {
	case <-woken:
		t.Error("woken before anything happened")
	default:
	}
	sb := admit(t, s, acc, nil)
	<-woken
	for range 3 { // several commits, at least one wake-up, and none of them waits for us
		if _, err := s.AppendEvent(t.Context(), sandbox.Event{Account: acc, Sandbox: sb.ID, Kind: "guest", Text: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	<-woken
	if _, err := s.Transition(t.Context(), sb.ID, "other", sandbox.Running, nil); err == nil {
		t.Fatal("a move of another run was allowed")
	}
	select {
	case <-woken:
		t.Error("woken by what was not committed")
	default:
	}
	cancel()
}

func TestCancelledContext(t *testing.T) {
	t.Parallel()
	s := open(t)
	acc := account(t, s, "first")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.EnsureVolume(ctx, acc, "v")
	wantClass(t, err, context.Canceled)
	_, err = s.Events(ctx, acc, "", 0, 0)
	wantClass(t, err, context.Canceled)
}

func TestAccountsAndKeys(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	var wg sync.WaitGroup
	made := make(chan string, 8)
	for range cap(made) {
		wg.Go(func() {
			a, created, err := s.EnsureAccount(ctx, "first")
			if err != nil {
				t.Error(err)
			}
			if created {
				made <- a.ID
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Fatalf("%d callers made the account", len(made))
	}
	acc := <-made
	if a, err := s.Account(ctx, acc); err != nil || a.Name != "first" || a.CreatedAt.IsZero() {
		t.Errorf("account is %+v, %v", a, err)
	}
	_, err := s.Account(ctx, "nobody")
	wantClass(t, err, sandbox.ErrNotFound)

	key := store.Key{ID: sandbox.NewID(sandbox.PrefixKey), Account: acc, Name: "admin", Hash: []byte("hash one"), Last4: "abcd"}
	if err := s.PutKey(ctx, key); err != nil {
		t.Fatal(err)
	}
	got, err := s.KeyByHash(ctx, []byte("hash one"))
	if err != nil || got.ID != key.ID || got.Account != acc || got.Last4 != "abcd" || got.CreatedAt.IsZero() {
		t.Errorf("key is %+v, %v", got, err)
	}
	key.ID, key.Hash = sandbox.NewID(sandbox.PrefixKey), []byte("hash two")
	if err := s.PutKey(ctx, key); err != nil {
		t.Fatal(err)
	}
	_, err = s.KeyByHash(ctx, []byte("hash one"))
	wantClass(t, err, sandbox.ErrNotFound)
	if got, err := s.KeyByHash(ctx, []byte("hash two")); err != nil || got.ID != key.ID {
		t.Errorf("key is %+v, %v", got, err)
	}
	key.Name = "second"
	wantClass(t, s.PutKey(ctx, key), sandbox.ErrConflict) // the same key under another name
	key.Account, key.Hash, key.ID = "nobody", []byte("x"), "key_x"
	wantClass(t, s.PutKey(ctx, key), sandbox.ErrNotFound)
}

func TestSigninWorksOnce(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	acc := account(t, s, "first")
	now := time.Now()
	if err := s.AddSignin(ctx, []byte("late"), acc, now.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := s.TakeSignin(ctx, []byte("late"), now.Add(2*time.Second))
	wantClass(t, err, sandbox.ErrNotFound)
	if err := s.AddSignin(ctx, []byte("good"), acc, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	taken := make(chan string, 8)
	for range cap(taken) {
		wg.Go(func() {
			if got, err := s.TakeSignin(ctx, []byte("good"), now); err == nil {
				taken <- got
			} else if !errors.Is(err, sandbox.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(taken) != 1 || <-taken != acc {
		t.Errorf("the link was not used exactly once")
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	_, err := s.Setting(ctx, "id")
	wantClass(t, err, sandbox.ErrNotFound)
	for _, value := range []string{"one", "two"} {
		if got, err := s.PutSettingIfAbsent(ctx, "id", []byte(value)); err != nil || string(got) != "one" {
			t.Errorf("stored is %q, %v", got, err)
		}
	}
	if got, err := s.Setting(ctx, "id"); err != nil || string(got) != "one" {
		t.Errorf("setting is %q, %v", got, err)
	}
}

func TestWebSessions(t *testing.T) {
	t.Parallel()
	w := open(t).WebSessions()
	if _, found, err := w.Find("t"); found || err != nil {
		t.Errorf("found %v, %v", found, err)
	}
	for _, data := range []string{"one", "two"} {
		if err := w.Commit("t", []byte(data), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if got, found, err := w.Find("t"); string(got) != data || !found || err != nil {
			t.Errorf("found %q, %v, %v", got, found, err)
		}
	}
	if err := w.Commit("old", []byte("x"), time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, found, err := w.Find("old"); found || err != nil {
		t.Errorf("an expired session was found, %v", err)
	}
	for range 2 {
		if err := w.Delete("t"); err != nil {
			t.Fatal(err)
		}
	}
	if _, found, err := w.Find("t"); found || err != nil {
		t.Errorf("a deleted session was found, %v", err)
	}
}
