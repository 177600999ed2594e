package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The kinds of Change.
const (
	ChangeReady    = "ready"    // changes are told from here on; File is the directory
	ChangeCreated  = "created"  //
	ChangeModified = "modified" // its content, mode or owner; or it was replaced whole
	ChangeRemoved  = "removed"  // of File only name, path and type are known; for a directory it stands for all that was in it
	ChangeMoved    = "moved"    // from From
	ChangeResync   = "resync"   // too much has changed to be told: read anew what is shown
	ChangePartial  = "partial"  // the tree is too large: some of it, the deeper parts first, isn't watched
	ChangeEnd      = "end"      // the directory itself has gone; nothing follows
)

// Change is something that happened in a watched directory.
type Change struct {
	Kind string `json:"kind"`
	File File   `json:"file,omitzero"`
	From []byte `json:"from,omitempty"` // where it was; bytes, as names are
}

// What one watch may cost.
const (
	maxWatches = 32      // at a time
	maxWatched = 100_000 // entries that are known of
	maxBatch   = 1000    // changes that are told one by one
	maxMarks   = 4096    // names that are to be looked at; beyond that, all are
)

// Changes are told together, so that a file that is written bit by bit is told of a few times and not a thousand.
const (
	settle    = 50 * time.Millisecond
	pollEvery = 2 * time.Second // where the kernel doesn't tell of changes
)

// watchFiles answers with Changes, one JSON object per line, until the host hangs up or the directory goes. The truth is what a look at the
// names shows; inotify only says where to look. So nothing is lost when its queue overflows, and where there is none, looking every other
// second does.
func (s *Server) watchFiles(w http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	if s.files.watches.Add(1) > maxWatches {
		s.files.watches.Add(-1)
		return nil, &Error{Status: 429, Code: "too_many_watches", Detail: fmt.Sprintf("at most %d watches of a sandbox at a time", maxWatches)}
	}
	defer s.files.watches.Add(-1)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	wt, err := newWatch(path, r.URL.Query().Get("recursive") == "1", !s.cfg.NoInotify)
	if err != nil {
		return nil, fileError(err, path)
	}
	defer wt.close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc, rc := json.NewEncoder(w), http.NewResponseController(w)
	tell := func(changes []Change) error {
		for _, c := range changes {
			if err := enc.Encode(c); err != nil {
				return err
			}
		}
		return rc.Flush()
	}
	err = wt.run(ctx, tell)
	if err != nil || ctx.Err() != nil {
		panic(http.ErrAbortHandler) // the host has gone, or must not take this for the end
	}
	return nil, nil
}

// fileVersion is what tells that an entry has changed.
type fileVersion struct {
	ino, mode    uint64
	size         int64
	mtime, ctime int64
}

func versionOf(fi fs.FileInfo) fileVersion {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fileVersion{}
	}
	v := fileVersion{ino: st.Ino, mode: uint64(st.Mode)<<32 | uint64(st.Uid), size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}
	if fi.IsDir() { // these change with what is in it
		v.size, v.ctime, v.mtime = 0, 0, 0
	}
	return v
}

// renamed reports whether b may be a after a rename. Numbers of inodes are used again, so more must fit.
func renamed(a, b fileVersion) bool {
	return a.ino == b.ino && a.mode == b.mode && a.size == b.size && a.mtime == b.mtime
}

// watched is an entry that is known of.
type watched struct {
	name   string
	parent *watched
	v      fileVersion
	isDir  bool
	kind   string
	within map[string]*watched // of a directory that is watched
	wd     int                 // inotify's number for it; -1 = none
}

func (n *watched) path(root string) string {
	var parts []string
	for ; n.parent != nil; n = n.parent {
		parts = append(parts, n.name)
	}
	slices.Reverse(parts)
	return strings.TrimSuffix(root, "/") + "/" + strings.Join(parts, "/")
}

// lost reports whether n, or a directory that it is in, has gone.
func (n *watched) lost() bool {
	for ; n.parent != nil; n = n.parent {
		if n.parent.within[n.name] != n {
			return true
		}
	}
	return false
}

// watch is one watch of a directory.
type watch struct {
	path      string
	recursive bool
	notify    *inotify // nil where there is none
	root      *watched
	byWD      map[int]*watched
	blind     map[*watched]bool // directories that inotify doesn't watch
	entries   int
	partial   bool // something isn't watched
	told      bool // that

	batch []Change
	gone  []*watched // found missing, perhaps found elsewhere; their parent is where they were
	fresh []*watched // found new
}

func newWatch(path string, recursive, listen bool) (*watch, error) {
	w := &watch{path: path, recursive: recursive, byWD: map[int]*watched{}, blind: map[*watched]bool{}}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, syscall.ENOTDIR
	}
	w.root = &watched{v: versionOf(fi), isDir: true, kind: "directory", wd: -1}
	if listen {
		w.notify = newInotify() // before anything is looked at
	}
	w.scan(w.root, false)
	return w, nil
}

func (w *watch) close() {
	if w.notify != nil {
		w.notify.close()
	}
}

// run tells changes until ctx ends, the directory goes or tell fails.
func (w *watch) run(ctx context.Context, tell func([]Change) error) error {
	fi, err := os.Stat(w.path)
	if err != nil {
		return tell([]Change{{Kind: ChangeEnd}})
	}
	w.batch = append(w.batch, Change{Kind: ChangeReady, File: describe(w.path, fi)})
	w.tellPartial()
	if err := tell(w.batch); err != nil {
		return err
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		var touched <-chan struct{}
		if w.notify != nil {
			touched = w.notify.touched
		}
		var late bool
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-touched:
			if err := waitFor(ctx, settle); err != nil {
				return err
			}
		case <-poll.C:
			late = true
		}
		if late && len(w.blind) == 0 {
			continue
		}
		w.batch = w.batch[:0]
		if fi, err := os.Stat(w.path); err != nil || versionOf(fi).ino != w.root.v.ino {
			return tell([]Change{{Kind: ChangeEnd}})
		}
		w.look(late)
		if len(w.batch) > maxBatch {
			w.batch = append(w.batch[:0], Change{Kind: ChangeResync})
		}
		w.tellPartial()
		if len(w.batch) == 0 {
			continue
		}
		if err := tell(w.batch); err != nil {
			return err
		}
	}
}

func waitFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *watch) tellPartial() {
	if w.partial && !w.told {
		w.told = true
		w.batch = append(w.batch, Change{Kind: ChangePartial})
	}
}

// look looks at all that was touched, and at what has to be looked at again and again.
func (w *watch) look(late bool) {
	var marks map[mark]struct{}
	all := false
	if w.notify != nil {
		marks, all = w.notify.take()
	}
	if all {
		w.lookAtAll(w.root)
	}
	for m := range marks {
		if dir := w.byWD[m.wd]; dir != nil && m.name != "" {
			w.compare(dir, m.name)
		}
	}
	if late {
		for dir := range w.blind {
			w.lookAt(dir)
		}
	}
	w.settleUp()
}

// lookAt compares one directory with what is known of it.
func (w *watch) lookAt(dir *watched) {
	names := map[string]bool{}
	err := eachName(dir.path(w.path), func(name string) {
		names[name] = true
		w.compare(dir, name)
	})
	if err != nil {
		return // whoever looks at the directory above sees that it has gone
	}
	for name := range dir.within {
		if !names[name] {
			w.compare(dir, name)
		}
	}
}

func (w *watch) lookAtAll(dir *watched) {
	w.lookAt(dir)
	for _, n := range dir.within {
		if n.within != nil {
			w.lookAtAll(n)
		}
	}
}

func eachName(path string, do func(string)) error {
	dir, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer dir.Close() // only read from
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			do(name)
		}
		if err != nil {
			return nil // that was all, or the directory is going
		}
	}
}

// compare looks at one name.
func (w *watch) compare(dir *watched, name string) {
	if strings.HasPrefix(name, tempPrefix) {
		return
	}
	old := dir.within[name]
	fi, err := os.Lstat(strings.TrimSuffix(dir.path(w.path), "/") + "/" + name)
	if err != nil {
		if old != nil && errors.Is(err, fs.ErrNotExist) {
			delete(dir.within, name)
			w.gone = append(w.gone, old)
		}
		return
	}
	v := versionOf(fi)
	switch {
	case old == nil:
	case old.v == v:
		return
	case old.v.ino == v.ino && old.isDir == fi.IsDir():
		old.v = v
		w.batch = append(w.batch, Change{Kind: ChangeModified, File: describe(old.path(w.path), fi)})
		return
	default: // something else is in its place
		w.gone = append(w.gone, old)
	}
	if old == nil && w.entries >= maxWatched {
		w.partial = true
		return
	}
	n := &watched{name: name, parent: dir, v: v, isDir: fi.IsDir(), kind: describe("", fi).Type, wd: -1}
	dir.within[name] = n
	w.fresh = append(w.fresh, n)
}

// place is a name in a directory.
type place struct {
	dir  *watched
	name string
}

// settleUp finds out what was moved among what is gone and what is new, and tells the rest as what it is.
func (w *watch) settleUp() {
	gone, fresh := w.gone, w.fresh
	w.gone, w.fresh = nil, nil
	left := map[uint64][]*watched{}
	was := map[place]*watched{}
	for _, n := range gone {
		left[n.v.ino] = append(left[n.v.ino], n)
		was[place{n.parent, n.name}] = n
	}
	take := func(n *watched) bool {
		i := slices.Index(left[n.v.ino], n)
		if i >= 0 {
			left[n.v.ino] = slices.Delete(left[n.v.ino], i, i+1)
		}
		return i >= 0
	}
	var movedDirs []*watched
	for _, n := range fresh {
		if n.parent.within[n.name] != n {
			continue // replaced again
		}
		full := n.path(w.path)
		fi, err := os.Lstat(full)
		if err != nil {
			delete(n.parent.within, n.name) // it went as it came
			continue
		}
		if i := slices.IndexFunc(left[n.v.ino], func(o *watched) bool { return o.isDir == n.isDir && renamed(o.v, n.v) }); i >= 0 {
			old := left[n.v.ino][i]
			take(old)
			from := old.path(w.path)
			old.name, old.parent, old.v = n.name, n.parent, n.v
			n.parent.within[n.name] = old // with all that is known of what is in it
			w.batch = append(w.batch, Change{Kind: ChangeMoved, File: describe(full, fi), From: []byte(from)})
			if old.within != nil {
				movedDirs = append(movedDirs, old)
			}
			continue
		}
		kind := ChangeCreated
		if old := was[place{n.parent, n.name}]; old != nil && !old.isDir && !n.isDir && take(old) {
			kind = ChangeModified
		} else {
			w.entries++
		}
		w.batch = append(w.batch, Change{Kind: kind, File: describe(full, fi)})
		if n.isDir && w.recursive {
			w.scan(n, true)
		}
	}
	for _, n := range gone {
		if take(n) {
			w.lose(n)
		}
	}
	// What happened in a directory that was moved was looked for where it no longer was.
	for _, dir := range movedDirs {
		w.lookAtAll(dir)
	}
	if len(movedDirs) > 0 {
		w.settleUp()
	}
}

// lose tells that an entry has gone, if it has: its directory may have been moved before it was looked for.
func (w *watch) lose(n *watched) {
	if n.parent.lost() { // which is told, and stands for this
		w.drop(n)
		return
	}
	full := n.path(w.path)
	replaced := n.parent.within[n.name] != nil
	if fi, err := os.Lstat(full); err == nil && !replaced && versionOf(fi).ino == n.v.ino && fi.IsDir() == n.isDir {
		n.parent.within[n.name] = n
		w.compare(n.parent, n.name)
		return
	}
	if !replaced { // otherwise what was told of the name says it
		w.batch = append(w.batch, Change{Kind: ChangeRemoved, File: File{Name: n.name, Path: full, Type: n.kind}})
	}
	w.drop(n)
}

// drop forgets an entry and all that was in it.
func (w *watch) drop(n *watched) {
	w.entries--
	if n.wd >= 0 && w.byWD[n.wd] == n {
		delete(w.byWD, n.wd)
		w.notify.remove(n.wd)
	}
	delete(w.blind, n)
	for _, c := range n.within {
		w.drop(c)
	}
}

// scan begins to watch a directory, and with recursive those in it, the near ones first. tell says that what is found is new.
func (w *watch) scan(dir *watched, tell bool) {
	for queue := []*watched{dir}; len(queue) > 0; queue = queue[1:] {
		d := queue[0]
		path := d.path(w.path)
		d.within = map[string]*watched{}
		d.wd = -1
		if w.notify != nil {
			d.wd = w.notify.add(path) // before it is looked at
		}
		if d.wd >= 0 {
			w.byWD[d.wd] = d
		} else {
			w.blind[d] = true
		}
		_ = eachName(path, func(name string) { // what can't be read has nothing to tell
			if strings.HasPrefix(name, tempPrefix) {
				return
			}
			if w.entries >= maxWatched {
				w.partial = true
				return
			}
			full := strings.TrimSuffix(path, "/") + "/" + name
			fi, err := os.Lstat(full)
			if err != nil {
				return
			}
			n := &watched{name: name, parent: d, v: versionOf(fi), isDir: fi.IsDir(), kind: describe("", fi).Type, wd: -1}
			d.within[name] = n
			w.entries++
			if tell {
				w.batch = append(w.batch, Change{Kind: ChangeCreated, File: describe(full, fi)})
			}
			if n.isDir && w.recursive {
				queue = append(queue, n)
			}
		})
	}
}

// mark is a name in a directory that something happened to.
type mark struct {
	wd   int
	name string
}

// inotify collects what the kernel tells.
type inotify struct {
	f       *os.File
	touched chan struct{}

	mu    sync.Mutex
	marks map[mark]struct{} // guarded by mu
	all   bool              // more was touched than marks hold; guarded by mu
	wg    sync.WaitGroup
}
