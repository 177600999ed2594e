package claude

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	framesAhead = 16      // frames read ahead of the store
	maxBatch    = 256     // lines recorded at once
	batchBytes  = 1 << 20 // or so many bytes
	stderrTail  = 4 << 10

	// lostNumbers is what the numbers skip when a new process finds the output of a turn gone: its predecessor may have given
	// numbers to partial lines that nobody can count any more.
	lostNumbers = 1 << 20

	batchDelay = 50 * time.Millisecond // or after so long, though more is coming

	// patience is how many passes may fail before the output of a turn that has ended is given up.
	patience = 8

	firstBackoff, maxBackoff = 200 * time.Millisecond, 30 * time.Second
)

// follow takes the output of run over into the store, until its end is recorded or ctx is done. What fails is begun anew from what
// the store holds: a pass can stop anywhere.
func (s *Sessions) follow(ctx context.Context, h *hub, run sandbox.Run, resumed bool) {
	defer func() {
		h.end()
		s.hubs.release(h)
	}()
	backoff := firstBackoff
	for tries := 1; ctx.Err() == nil; tries++ {
		err := s.mirror(ctx, h, run.ID, resumed, tries > patience)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.log.WarnContext(ctx, "following a turn broke off; beginning anew", "session", run.Session, "run", run.ID, "err", err)
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// mirror is one pass of follow: from where the store is to the end of the run. resumed says that a process before this one has
// followed the turn too; with giveUp the output of a run that has ended need not be read to its end.
func (s *Sessions) mirror(ctx context.Context, h *hub, id string, resumed, giveUp bool) error {
	run, err := s.store.Run(ctx, "", id)
	if err != nil {
		return err
	}
	ses, err := s.store.Session(ctx, "", run.Session)
	if err != nil {
		return err
	}
	h.stored(ses.LastSeq)
	m := &mirror{store: s.store, hub: h, run: run, next: ses.LastSeq + 1, offset: run.Mirrored, at: run.Mirrored}
	m.split.line = m.line
	whole, err := s.copy(ctx, m)
	if err != nil {
		if !giveUp || run.State == sandbox.RunRunning || ctx.Err() != nil {
			return err
		}
		s.log.ErrorContext(ctx, "the rest of a turn's output is given up", "session", run.Session, "run", run.ID, "err", err)
	}
	if !whole { // numbers that readers have seen must not come again
		m.next = max(m.next, h.highest()+1)
		if resumed {
			m.next += lostNumbers
		}
	}
	if run, err = s.runner.WaitRun(ctx, run.Account, run.ID); err != nil {
		return err
	}
	m.add(sandbox.SessionEvent{Kind: sandbox.SessionEnd, Data: encode(m.end(run, h.wasInterrupted()))}, m.offset)
	// The hub isn't told: readers see the end when follow says that the session is idle, so that whoever sees it can go on at once.
	return m.record(ctx)
}

// copy reads the run's output to its end. It returns false if the output is gone before that.
func (s *Sessions) copy(ctx context.Context, m *mirror) (whole bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	items := make(chan item, framesAhead)
	done := make(chan struct{})
	defer func() {
		cancel()
		<-done
	}()
	go func() {
		defer close(done)
		defer close(items)
		for f, err := range s.runner.Output(ctx, m.run, m.run.Mirrored) {
			select {
			case items <- item{f, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		var it item
		var ok bool
		select {
		case it, ok = <-items:
		default: // nothing is waiting: record what there is before waiting for more
			if err := m.flush(ctx); err != nil {
				return false, err
			}
			it, ok = <-items
		}
		switch {
		case !ok && ctx.Err() != nil:
			return false, ctx.Err()
		case !ok:
			return false, errors.New("the output stopped without an end")
		case it.err != nil && isGone(it.err):
			m.split.finish(m.at)
			return false, m.flush(ctx)
		case it.err != nil:
			return false, errors.Join(it.err, m.flush(ctx))
		case m.frame(it.frame):
			m.split.finish(m.at)
			return true, m.flush(ctx)
		case m.full():
			if err := m.flush(ctx); err != nil {
				return false, err
			}
		}
	}
}

type item struct {
	frame guest.Frame
	err   error
}

// mirror is the state of one pass.
type mirror struct {
	store Store
	hub   *hub
	run   sandbox.Run
	split splitter

	next   int64 // number of the next event
	offset int64 // after the last lasting line: what may be recorded as taken over
	at     int64 // after the last byte that was looked at
	batch  []sandbox.SessionEvent
	bytes  int
	since  time.Time // when the first of the batch was put there
	stderr []byte    // the end of it
}

// frame takes one frame; true at the end of the run.
func (m *mirror) frame(f guest.Frame) bool {
	switch f.Kind {
	case guest.End:
		return true
	case guest.Gap:
		from := m.at
		if len(f.Data) == 8 {
			from = max(from, int64(binary.BigEndian.Uint64(f.Data)))
		}
		if f.Offset > m.at {
			m.split.gap(from, f.Offset)
			m.at = f.Offset
		}
		return false
	}
	data := f.Data
	if known := m.at - f.Offset; known > 0 { // seen before a connection was made anew
		data = data[min(known, int64(len(data))):]
	}
	at := m.at
	m.at = max(m.at, f.Offset+int64(len(f.Data)))
	switch f.Kind {
	case guest.Stdout:
		m.split.write(data, max(at, f.Offset))
	case guest.Stderr:
		m.stderr = append(m.stderr, data...)
		if n := len(m.stderr) - stderrTail; n > 0 {
			m.stderr = append(m.stderr[:0], m.stderr[n:]...)
		}
	}
	return false
}

// line takes one line; next is the offset after it.
func (m *mirror) line(data []byte, next int64) {
	ev := sandbox.SessionEvent{Kind: kindOf(data), Data: bytes.Clone(data)}
	if ev.Kind != sandbox.SessionPartial {
		m.add(ev, next)
		return
	}
	ev.Seq, ev.Run, ev.At = m.next, m.run.ID, time.Now()
	m.next++
	m.hub.partial(ev, len(m.batch) == 0)
}

// add puts a lasting event into the batch; next is the offset after it.
func (m *mirror) add(ev sandbox.SessionEvent, next int64) {
	ev.Seq, ev.Run, ev.At = m.next, m.run.ID, time.Now()
	m.next++
	m.offset = next
	if len(m.batch) == 0 {
		m.since = ev.At
	}
	m.batch = append(m.batch, ev)
	m.bytes += len(ev.Data)
}

func (m *mirror) full() bool {
	return len(m.batch) >= maxBatch || m.bytes >= batchBytes || len(m.batch) > 0 && time.Since(m.since) >= batchDelay
}

// flush records the batch and how far it reaches, as one. Partials after it may then be read.
func (m *mirror) flush(ctx context.Context) error {
	if len(m.batch) == 0 {
		return nil
	}
	if err := m.record(ctx); err != nil {
		return err
	}
	m.hub.stored(m.next - 1)
	return nil
}

func (m *mirror) record(ctx context.Context) error {
	if err := m.store.AppendSessionEvents(ctx, m.run.Session, m.batch, m.run.ID, m.offset); err != nil {
		return err
	}
	m.batch, m.bytes = nil, 0
	return nil
}

// end says how the run ended.
func (m *mirror) end(run sandbox.Run, interrupted bool) endData {
	e := endData{Type: "end", Run: run.ID, State: run.State, ExitCode: run.ExitCode, Signal: run.Signal, Reason: run.Reason}
	switch {
	case e.Reason != "":
	case interrupted:
		e.Reason = "It was interrupted on request."
	case run.State != sandbox.RunExited || run.ExitCode == nil || *run.ExitCode != 0:
		e.Reason = strings.TrimSpace(strings.ToValidUTF8(string(m.stderr), "?"))
	}
	return e
}
