package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// recordings are the copies of runs' output on this host: DIR/ACCOUNT/RUN. They are read when the guest doesn't have it any more, and by
// all viewers of a run that writes at a pace that the copying keeps.
type recordings struct {
	dir   string
	bytes int64 // of one run

	mu   sync.Mutex
	open map[string]*recording
}

// recording is one that is open.
type recording struct {
	*guest.Recording
	all   *recordings
	key   string
	users int         // guarded by all.mu
	live  atomic.Bool // what the run writes comes here at once
}

// take opens the recording of a run, or joins those who have; nil if there are none here.
func (s *recordings) take(account, id string) (*recording, error) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := filepath.Join(account, id)
	r := s.open[key]
	if r == nil {
		disk, err := guest.OpenRecording(filepath.Join(s.dir, key), s.bytes)
		if err != nil {
			return nil, err
		}
		r = &recording{Recording: disk, all: s, key: key}
		s.open[key] = r
	}
	r.users++
	return r, nil
}

// release ends what take began.
func (r *recording) release() {
	if r == nil {
		return
	}
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	if r.users--; r.users == 0 {
		r.Close()
		delete(r.all.open, r.key)
	}
}

// setLive says whether what the run writes comes here at once; who waits for it learns.
func (r *recording) setLive(live bool) {
	if r == nil {
		return
	}
	r.live.Store(live)
	r.Wake()
}

// next returns how much output of a run is known here without looking at the disk; 0 if it isn't open.
func (s *recordings) next(account, id string) int64 {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.open[filepath.Join(account, id)]; r != nil {
		_, next, _ := r.Bounds()
		return next
	}
	return 0
}

// takeRecording is take for who does without when the disk says no.
func (m *Manager) takeRecording(account, id string) *recording {
	r, err := m.recordings.take(account, id)
	if err != nil {
		m.log.Warn("the recording of a run can't be opened", "run", id, "err", err)
	}
	return r
}

// recorded returns the offset after the newest output of a run that was recorded.
func (m *Manager) recorded(account, id string) int64 {
	r := m.takeRecording(account, id)
	if r == nil {
		return 0
	}
	defer r.release()
	_, next, _ := r.Bounds()
	return next
}

// recordShort writes down all the output of a run that came at once.
func (m *Manager) recordShort(account, id string, output []guest.Frame) {
	if len(output) == 1 {
		return // there was none; the row tells its end
	}
	r := m.takeRecording(account, id)
	if r == nil {
		return
	}
	defer r.release()
	for _, f := range output {
		if err := r.Add(f); err != nil {
			m.log.Warn("the output of a run is not recorded", "run", id, "err", err)
			return
		}
	}
}

// A run is copied as it writes, until it writes more than fast in a moment: then only now and then, each time its last part, so that what
// nobody reads costs little. When it has calmed down it is followed again.
const (
	fast   = 256 << 10
	moment = 250 * time.Millisecond
	lull   = time.Second
)

// errFast says that a run writes too much to be followed, or that the disk doesn't take it.
var errFast = errors.New("lifecycle: a run is not followed for now")

// follow copies a run's output until its end, which it returns. What can't be copied never keeps it from the end.
func (k *keeper) follow(ctx context.Context, c *guest.Client, run sandbox.Run, rec *recording) (guest.Run, error) {
	id := run.ID
	if rec == nil {
		return c.Wait(ctx, id)
	}
	defer k.reading()()
	rec.setLive(true)
	for {
		ended, err := k.followLive(ctx, c, id, rec)
		if err == nil || ctx.Err() != nil || errors.Is(err, guest.ErrLost) {
			return ended, err
		}
		if !errors.Is(err, errFast) { // the guest refuses, or what it says makes no sense: what it says of the end decides
			rec.setLive(false)
			return c.Wait(ctx, id)
		}
		rec.setLive(false)
		ended, over, err := k.followSlowly(ctx, c, run, rec)
		if over || err != nil {
			return ended, err
		}
		rec.setLive(true)
	}
}

func (k *keeper) followLive(ctx context.Context, c *guest.Client, id string, rec *recording) (guest.Run, error) {
	_, next, _ := rec.Bounds()
	var since time.Time
	written := 0
	for f, err := range c.Output(ctx, id, next, true) {
		if err != nil {
			return guest.Run{}, err
		}
		err = rec.Add(f)
		if err != nil {
			k.m.log.Warn("the output of a run is not recorded for now", "run", id, "err", err)
		}
		if f.Kind == guest.End {
			return f.Run()
		}
		if now := time.Now(); now.Sub(since) > moment {
			since, written = now, 0
		}
		if written += len(f.Data) + 16; written > fast || err != nil {
			return guest.Run{}, errFast
		}
	}
	return guest.Run{}, guest.ErrLost
}

// followSlowly looks at a run now and then. It returns when the run is over, or writes so little that it can be followed.
func (k *keeper) followSlowly(ctx context.Context, c *guest.Client, run sandbox.Run, rec *recording) (ended guest.Run, over bool, err error) {
	id := run.ID
	last, err := c.Run(ctx, id)
	if err != nil {
		return ended, false, err
	}
	for {
		short, cancel := context.WithTimeout(ctx, lull)
		ended, err := c.Wait(short, id)
		late := short.Err() != nil
		cancel()
		if err != nil && (!late || ctx.Err() != nil) {
			return ended, false, err
		}
		now, copyErr := k.catchUp(ctx, c, run, rec)
		if copyErr != nil {
			k.m.log.Warn("the output of a run is not recorded for now", "run", id, "err", copyErr)
		}
		if err == nil {
			return ended, true, nil
		}
		if copyErr == nil && now.Next-last.Next < fast {
			return ended, false, nil
		}
		last = now
	}
}

// catchUp copies what there is of a run's output, the end of it if that is much.
func (k *keeper) catchUp(ctx context.Context, c *guest.Client, run sandbox.Run, rec *recording) (guest.Run, error) {
	now, err := c.Run(ctx, run.ID)
	if err != nil {
		return now, err
	}
	_, from, ended := rec.Bounds()
	if ended || now.Next < from {
		return now, nil
	}
	if head := min(k.m.cfg.RunBytes/4, now.Next); from < head {
		if err := k.copyRange(ctx, c, run, rec, from, head); err != nil {
			return now, err
		}
		_, from, _ = rec.Bounds()
	}
	return now, k.copyRange(ctx, c, run, rec, max(from, now.Next-k.m.cfg.RunBytes/2), math.MaxInt64)
}

// copyRange copies what there is of a run's output from one offset to about another.
func (k *keeper) copyRange(ctx context.Context, c *guest.Client, run sandbox.Run, rec *recording, from, to int64) error {
	if t := k.tail(ctx, run, from); t != nil {
		err := drain(t, rec, to)
		t.Close()
		if err != nil {
			return err
		}
		_, next, _ := rec.Bounds()
		from = max(from, next)
	}
	if from >= to {
		return nil
	}
	for f, err := range c.Output(ctx, run.ID, from, false) {
		if err == nil {
			err = rec.Add(f)
		}
		if err != nil || f.Offset >= to {
			return err
		}
	}
	return nil
}

// drain copies what there is in the files of a journal up to about an offset.
func drain(t *guest.Tail, rec *recording, until int64) error {
	for {
		f, err := t.Next()
		if err != nil { // there is no more
			return nil
		}
		if err := rec.Add(f); err != nil {
			return err
		}
		if f.Offset >= until {
			return nil
		}
	}
}

// salvage copies what a guest that is gone has left of the output of runs that nobody has seen the end of.
func (k *keeper) salvage(ctx context.Context) {
	if k.m.recordings == nil {
		return
	}
	runs, err := k.running(ctx)
	if err != nil {
		return // the end of the sandbox waits for the store anyway
	}
	const most = 256 << 20 // more than an honest guest leaves
	for _, run := range runs {
		rec := k.m.takeRecording(run.Account, run.ID)
		if rec == nil {
			continue
		}
		_, next, _ := rec.Bounds()
		if t := k.tail(ctx, run, next); t != nil {
			if err := drain(t, rec, next+most); err != nil {
				k.m.log.Warn("the last output of a run is not recorded", "run", run.ID, "err", err)
			}
			t.Close()
		}
		rec.release()
	}
}

// rescue copies what is not copied yet of any run, before the guest goes.
func (k *keeper) rescue(ctx context.Context, c *guest.Client, account string) {
	if k.m.recordings == nil {
		return
	}
	const most = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	all, err := c.Runs(ctx)
	if err != nil {
		return // it has been told
	}
	for _, r := range all {
		// Of what the guest tells, only what has a row is believed to be a run of ours.
		row, err := k.m.cfg.Store.Run(ctx, account, r.ID)
		if err != nil || row.Sandbox != k.id {
			continue
		}
		if row.State != sandbox.RunRunning && row.OutputNext > 0 && row.OutputFirst == row.OutputNext {
			continue // it was removed for its age, and stays so
		}
		rec := k.m.takeRecording(account, r.ID)
		if rec == nil {
			continue
		}
		if _, next, ended := rec.Bounds(); !ended && r.Next > next && !rec.live.Load() {
			if _, err := k.catchUp(ctx, c, row, rec); err != nil {
				k.m.log.Warn("the last output of a run is not recorded", "run", r.ID, "err", err)
			}
		}
		rec.release()
	}
}

// collectOutput removes the recordings that are older than they need be, and of each account the oldest that are too much.
func (m *Manager) collectOutput(ctx context.Context) error {
	if m.recordings == nil {
		return nil
	}
	running, err := m.cfg.Store.RunningRuns(ctx)
	if err != nil {
		return err
	}
	busy := make(map[string]bool)
	for _, r := range running {
		busy[r.ID] = true
	}
	accounts, err := os.ReadDir(m.recordings.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for old output: %w", err)
	}
	var errs []error
	for _, a := range accounts {
		errs = append(errs, m.collectOutputOf(ctx, filepath.Join(m.recordings.dir, a.Name()), busy))
	}
	return errors.Join(errs...)
}

// kept is a recording on disk.
type kept struct {
	id   string
	size int64
	at   time.Time // of its last change
}

func (m *Manager) collectOutputOf(ctx context.Context, dir string, busy map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for old output: %w", err)
	}
	var all []kept
	var total int64
	for _, e := range entries {
		k := kept{id: e.Name()}
		files, err := os.ReadDir(filepath.Join(dir, k.id))
		if err != nil {
			return fmt.Errorf("look for old output: %w", err)
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				k.size += info.Size()
				if info.ModTime().After(k.at) {
					k.at = info.ModTime()
				}
			}
		}
		total += k.size
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b kept) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.id, b.id)) })
	var gone []string
	for _, k := range all {
		if time.Since(k.at) < m.cfg.RunRetention && total <= m.cfg.AccountRunBytes {
			break
		}
		if busy[k.id] || m.recordings.isOpen(filepath.Base(dir), k.id) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, k.id)); err != nil {
			return fmt.Errorf("remove old output: %w", err)
		}
		total -= k.size
		gone = append(gone, k.id)
	}
	if len(gone) == 0 {
		return nil
	}
	m.log.Info("old output was removed", "runs", len(gone))
	return m.cfg.Store.ForgetOutput(ctx, gone)
}

func (s *recordings) isOpen(account, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[filepath.Join(account, id)] != nil
}

// withOutput fills in what is known of a running run's output.
func (m *Manager) withOutput(r sandbox.Run) sandbox.Run {
	if r.State == sandbox.RunRunning {
		r.OutputNext = max(r.OutputNext, m.recordings.next(r.Account, r.ID))
	}
	return r
}
