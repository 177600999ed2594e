package guest_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// watcher reads the changes of a directory.
type watcher struct {
	t    *testing.T
	dir  string
	next func() (guest.Change, error, bool)
	seen []string
}

func watch(t *testing.T, c *guest.Client, dir string, recursive bool) *watcher {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	next, stop := iter.Pull2(c.Watch(ctx, dir, recursive))
	t.Cleanup(func() {
		cancel()
		stop()
	})
	w := &watcher{t: t, dir: dir, next: next}
	if ch := w.one(); ch.Kind != guest.ChangeReady || ch.File.Path != dir || ch.File.Type != "directory" {
		t.Fatalf("first came %+v", ch)
	}
	w.seen = nil
	return w
}

// one returns the next change.
func (w *watcher) one() guest.Change {
	w.t.Helper()
	ch, err, ok := w.next()
	if err != nil || !ok {
		w.t.Fatalf("after %q the watch ended: %v", w.seen[max(0, len(w.seen)-10):], err)
	}
	line := ch.Kind + " " + strings.TrimPrefix(ch.File.Path, w.dir+"/")
	if len(ch.From) > 0 {
		line += " from " + strings.TrimPrefix(string(ch.From), w.dir+"/")
	}
	w.seen = append(w.seen, line)
	return ch
}

// want reads until each of these came, in any order, and nothing else but what may come beside them.
func (w *watcher) want(lines ...string) {
	w.t.Helper()
	w.seen = nil
	for left := slices.Clone(lines); len(left) > 0; {
		w.one()
		last := w.seen[len(w.seen)-1]
		i := slices.Index(left, last)
		if i < 0 && !slices.Contains(lines, last) && !strings.HasPrefix(last, "modified ") {
			w.t.Fatalf("%q came; want %q", w.seen, lines)
		}
		if i >= 0 {
			left = slices.Delete(left, i, i+1)
		}
	}
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWatchTellsWhatHappens(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	do(t, os.MkdirAll(dir+"/old/deep", 0o755))
	do(t, os.WriteFile(dir+"/old/f", []byte("1"), 0o600))
	w := watch(t, c, dir, true)

	do(t, os.WriteFile(dir+"/new", []byte("12"), 0o600))
	w.want("created new")
	do(t, os.WriteFile(dir+"/old/f", []byte("123"), 0o600))
	w.want("modified old/f")
	do(t, os.Chmod(dir+"/old/f", 0o644))
	w.want("modified old/f")
	do(t, os.WriteFile(dir+"/old/deep/x", nil, 0o600))
	w.want("created old/deep/x")
	do(t, os.Rename(dir+"/new", dir+"/old/deep/moved"))
	w.want("moved old/deep/moved from new")
	do(t, os.Symlink("/", dir+"/link")) // which is not followed
	w.want("created link")

	// A directory takes what is in it along, and is still watched there.
	do(t, os.Rename(dir+"/old", dir+"/renamed"))
	w.want("moved renamed from old")
	do(t, os.WriteFile(dir+"/renamed/deep/y", nil, 0o600))
	w.want("created renamed/deep/y")

	// New directories are watched too, and nothing is missed that comes with them.
	do(t, os.MkdirAll(dir+"/a/b/c", 0o755))
	do(t, os.WriteFile(dir+"/a/b/c/f", nil, 0o600))
	w.want("created a", "created a/b", "created a/b/c", "created a/b/c/f")
	do(t, os.WriteFile(dir+"/a/b/c/g", nil, 0o600))
	w.want("created a/b/c/g")

	// What comes through the API, from its parts beside it, is one change of its own name.
	f, err := c.WriteFile(t.Context(), dir+"/a/api", strings.NewReader("x"), 0)
	do(t, err)
	w.want("created a/api")
	if _, err = c.PutFile(t.Context(), dir+"/a/api", strings.NewReader("y"), guest.Write{IfMatch: f.ETag}); err != nil {
		t.Fatal(err)
	}
	w.want("modified a/api")

	do(t, os.RemoveAll(dir+"/a"))
	for last := ""; last != "removed a"; last = w.seen[len(w.seen)-1] {
		if ch := w.one(); ch.Kind != guest.ChangeRemoved && ch.Kind != guest.ChangeModified {
			t.Fatalf("%q", w.seen)
		}
	}
	outside := t.TempDir()
	do(t, os.Rename(dir+"/renamed", outside+"/gone"))
	w.want("removed renamed")
	do(t, os.WriteFile(outside+"/gone/deep/z", nil, 0o600)) // not any more
	do(t, os.WriteFile(dir+"/caf\xe9", nil, 0o600))
	w.want("created caf\xe9")

	do(t, os.RemoveAll(dir))
	for ch := w.one(); ch.Kind != guest.ChangeEnd; ch = w.one() {
		if ch.Kind != guest.ChangeRemoved {
			t.Fatalf("%q", w.seen)
		}
	}
	if _, err, ok := w.next(); ok || err != nil {
		t.Errorf("after the end: %v", err)
	}
}

func TestWatchOfOneDirectory(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	do(t, os.Mkdir(dir+"/d", 0o755))
	w := watch(t, c, dir, false)
	do(t, os.WriteFile(dir+"/d/f", nil, 0o600))
	do(t, os.Mkdir(dir+"/e", 0o755))
	w.want("created e")
	do(t, os.WriteFile(dir+"/e/f", nil, 0o600))
	do(t, os.WriteFile(dir+"/f", nil, 0o600))
	w.want("created f")

	err := first(iter.Pull2(c.Watch(t.Context(), dir+"/f", false)))
	wantRefused(t, err, 400, "not_a_directory", "path")
	err = first(iter.Pull2(c.Watch(t.Context(), dir+"/none", false)))
	wantRefused(t, err, 404, "no_such_file", "path")
}

// first returns the error that comes with the first of what an iterator yields.
func first(next func() (guest.Change, error, bool), stop func()) error {
	defer stop()
	_, err, _ := next()
	return err
}

// When more happens than can be told, that is told, and what happens afterwards too.
func TestWatchIsBounded(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir, other := t.TempDir(), t.TempDir()
	for i := range 3000 {
		do(t, os.Symlink("x", fmt.Sprintf("%s/%d", other, i)))
	}
	w := watch(t, c, dir, true)
	do(t, os.Rename(other, dir+"/many")) // 3,001 at once
	w.want("resync ")
	do(t, os.WriteFile(dir+"/many/new", nil, 0o600))
	w.want("created many/new")
	// A host that reads nothing makes the guest hold no more than a bound, and sees the truth when it reads again.
	for i := range 20_000 {
		do(t, os.Symlink("x", fmt.Sprintf("%s/s%d", dir, i)))
	}
	do(t, os.WriteFile(dir+"/last", nil, 0o600))
	for w.one(); ; w.one() {
		last := w.seen[len(w.seen)-1]
		if strings.HasSuffix(last, " last") {
			break
		}
		if last == "resync " {
			do(t, os.Remove(dir+"/last"))
			do(t, os.WriteFile(dir+"/last", nil, 0o600))
		}
	}
}

func TestWatchesAreCounted(t *testing.T) {
	t.Parallel()
	c := newClient(t, nil)
	dir := t.TempDir()
	var err error
	for n := 0; err == nil && n < 100; n++ {
		next, stop := iter.Pull2(c.Watch(t.Context(), dir, false))
		t.Cleanup(stop)
		_, err, _ = next()
	}
	wantRefused(t, err, 429, "too_many_watches", "")
}

// Where the kernel tells nothing, looking does.
func TestWatchWithoutInotify(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(cfg *guest.Config) { cfg.NoInotify = true })
	dir := t.TempDir()
	do(t, os.MkdirAll(dir+"/d/e", 0o755))
	w := watch(t, c, dir, true)
	do(t, os.WriteFile(dir+"/d/e/f", nil, 0o600))
	do(t, os.Mkdir(dir+"/new", 0o755))
	w.want("created d/e/f", "created new")
	do(t, os.Rename(dir+"/d", dir+"/new/d"))
	w.want("moved new/d from d")
	do(t, os.RemoveAll(dir+"/new/d"))
	w.want("removed new/d")
}

func TestWatchEndsWithTheHost(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := setUp(t, dial(t, s, nil))
	dir := t.TempDir()
	w := watch(t, c, dir, true)
	do(t, c.Close())
	for {
		ch, err, ok := w.next()
		if err != nil || !ok {
			if !errors.Is(err, guest.ErrLost) {
				t.Errorf("%+v, %v", ch, err)
			}
			break
		}
	}
}
