package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long output is waited for after a process has ended: until the streams end, but when something it left behind holds
// them open, until they have been silent for this long, and no longer than that.
const (
	drainSilence = 300 * time.Millisecond
	drainMost    = 2 * time.Second
)

// run is one process that the guest has started.
type run struct {
	journal *journal
	nursery *nursery
	child   *child
	io      *stdio
	in      *stdin
	grace   time.Duration
	timeout time.Duration
	open    bool // stdin, after what it begins with
	quiet   *suspension
	output  *throttle

	ctx    context.Context // done when the run has ended: bounds work on its input
	cancel context.CancelFunc
	ended  chan struct{}
	wg     sync.WaitGroup // everything that works for it, also after its end

	mu    sync.Mutex
	state Run  // First, Next and Stdin aside
	oom   bool // it was killed because memory was used up
}

// spawn starts the process that p describes and everything that serves it.
func (s *Server) spawn(p plan) (*run, error) {
	streams, err := openStdio(p.cmd.Stdio, p.cmd.Size, p.uid, p.gid)
	if err != nil {
		return nil, &Error{Status: 500, Code: "start_failed", Detail: err.Error()}
	}
	j, err := newJournal(s.journalDir(p.cmd.ID), s.cfg.JournalLimit, func(err error) {
		s.log.Error("output is being lost", "run", p.cmd.ID, "err", err)
	})
	if err != nil {
		streams.closeChild()
		streams.close()
		return nil, fileError(err, "")
	}
	attr := &syscall.ProcAttr{
		Dir:   p.dir,
		Env:   p.env,
		Files: []uintptr{uintptr(streams.child[0]), uintptr(streams.child[1]), uintptr(streams.child[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: streams.pty, Credential: p.credential},
	}
	child, err := s.nursery.start(p.path, p.cmd.Argv, attr)
	streams.closeChild()
	if err != nil {
		streams.close()
		_ = j.remove() // it is empty, and the next start of this ID makes it anew or says why not
		return nil, p.refusal(err)
	}
	r := &run{
		journal: j,
		nursery: s.nursery,
		child:   child,
		io:      streams,
		in:      newStdin(streams, p.cmd.Stdin),
		grace:   s.cfg.Grace,
		timeout: p.cmd.Timeout,
		open:    p.cmd.Open,
		quiet:   &s.quiet,
		output:  &s.output,
		ended:   make(chan struct{}),
		state:   Run{ID: p.cmd.ID, Argv: p.cmd.Argv, PID: child.pid, State: StateRunning, StartedAt: time.Now().UTC()},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Go(func() { r.feed(p.cmd.Stdin, !p.cmd.Open) })
	r.wg.Go(r.supervise)
	return r, nil
}

// feed writes what stdin begins with, and then what comes with a place.
func (r *run) feed(b []byte, last bool) {
	_ = r.in.writeTaken(r.ctx, b, last) // a process need not read its input
	if !last {
		r.in.serve(r.ctx)
	}
}

// supervise sees the run through to its End frame.
func (r *run) supervise() {
	active := make(chan struct{}, 1)
	for _, o := range r.io.outs {
		r.wg.Go(func() { o.pump(r.journal, active, r.child.done, r.output) })
	}
	late := r.wait()
	over := time.Now().UTC()
	r.drain(active)
	r.finish(late, over)
}

// wait returns when the process has ended; true if it was killed for taking too long.
func (r *run) wait() bool {
	if r.endsInTime() {
		return false
	}
	var known map[int]process
	if !r.nursery.signal(r.child, func(pid int) { known = signalFamily(pid, nil, syscall.SIGTERM) }) {
		<-r.child.done // it ended by itself just then
		return false
	}
	t := time.NewTimer(r.grace)
	defer t.Stop()
	select {
	case <-r.child.done:
	case <-t.C:
	}
	killFamily(r.child.pid, known)
	<-r.child.done
	return true
}

// endsInTime returns true when the process has ended, false when it has had its time. Suspensions don't count.
func (r *run) endsInTime() bool {
	if r.timeout <= 0 {
		<-r.child.done
		return true
	}
	began := r.quiet.active()
	for left := r.timeout; left > 0; left = r.timeout - (r.quiet.active() - began) {
		t := time.NewTimer(left)
		select {
		case <-r.child.done:
			t.Stop()
			return true
		case <-t.C:
		}
		if over := r.quiet.quiet(); over != nil { // the clock may have jumped: how far is known when it is over
			select {
			case <-r.child.done:
				return true
			case <-over:
			}
		}
	}
	return false
}

// drain waits until all output is journalled.
func (r *run) drain(active <-chan struct{}) {
	done := make(chan struct{})
	r.wg.Go(func() {
		for _, o := range r.io.outs {
			<-o.done
		}
		close(done)
	})
	silence, most := time.NewTimer(drainSilence), time.NewTimer(drainMost)
	defer silence.Stop()
	defer most.Stop()
	for quiet := false; !quiet; {
		select {
		case <-done:
			return
		case <-active:
			silence.Reset(drainSilence)
		case <-silence.C:
			quiet = true
			for _, o := range r.io.outs {
				if o.waiting() { // it is only us who are slow
					quiet = false
				}
			}
			silence.Reset(drainSilence)
		case <-most.C:
			quiet = true
		}
	}
	for _, o := range r.io.outs {
		close(o.cut)
	}
	for _, o := range r.io.outs {
		if o.file.SetReadDeadline(time.Unix(1, 0)) != nil {
			return // nothing can be told to this stream; the journal refuses what comes after its end
		}
	}
	<-done
}

// finish states how the run ended.
func (r *run) finish(late bool, over time.Time) {
	status := r.child.status
	r.mu.Lock()
	st := &r.state
	switch {
	case status.Exited():
		code := status.ExitStatus()
		st.State, st.Code = StateExited, &code
	default:
		st.State, st.Signal = StateSignaled, signalName(status.Signal())
	}
	switch {
	case late:
		st.State = StateTimeout
	case r.oom && status.Signaled() && status.Signal() == syscall.SIGKILL:
		st.State = StateOOM
	}
	st.EndedAt = st.StartedAt.Add(over.Sub(st.StartedAt)) // as long after as it ran, though the clock was set meanwhile
	st.First, st.Next = r.journal.bounds()
	st.Stdin = r.in.taken.Load()
	end := *st
	r.mu.Unlock()
	data, err := json.Marshal(end.brief())
	if err != nil { // it can't be: times are in range, strings may be anything
		panic(err)
	}
	r.cancel() // before anybody can have read the end
	if !r.io.pty {
		_ = r.io.in.Close() // also of a background process that nobody can write to any more
	}
	r.journal.finish(data)
	close(r.ended)
}

// brief returns r without a command line that is too long to be told more than once: a frame holds MaxFrame, and a list many runs.
func (r Run) brief() Run {
	const most = 4 << 10
	n := 0
	for _, a := range r.Argv {
		n += len(a) + 1
	}
	if n > most {
		r.Argv = nil
	}
	return r
}

// abandon closes the streams that background processes still hold open, and waits for everything. The run has ended.
func (r *run) abandon() {
	r.io.close()
	r.wg.Wait()
}

// view returns what is known of the run now.
func (r *run) view() Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.state
	v.First, v.Next = r.journal.bounds()
	v.Stdin = r.in.taken.Load()
	return v
}

// maxWhole is how many bytes of a journal go into an answer. More is read as a stream.
const maxWhole = 32 << 10

// whole returns view, with the output if the run has ended and there is not much.
func (r *run) whole(ctx context.Context) Run {
	v := r.view()
	if v.State == StateRunning || r.journal.size() > maxWhole {
		return v
	}
	rd := r.journal.newReader(0)
	defer rd.close()
	var out bytes.Buffer
	if err := rd.copyTo(ctx, &out, func() error { return nil }, false); err != nil {
		return v // who wants it reads it
	}
	v.Output = out.Bytes()
	return v
}

// signal sends sig to the process's group; KILL goes to everything of the run. What is in front of a terminal has a group of its own,
// which gVisor doesn't tell us: it gets its signals as who sits at a terminal sends them, as characters.
func (r *run) signal(sig syscall.Signal) bool {
	if sig != syscall.SIGKILL {
		return r.nursery.signal(r.child, func(pid int) {
			_ = syscall.Kill(-pid, sig) // it is there, and ours to signal
		})
	}
	var known map[int]process
	if !r.nursery.signal(r.child, func(pid int) { known = signalFamily(pid, nil, sig) }) {
		return false
	}
	killFamily(r.child.pid, known)
	return true
}

// outOfMemory kills everything of the run and notes why; false if its first process has ended by itself.
func (r *run) outOfMemory() bool {
	var known map[int]process
	if !r.nursery.signal(r.child, func(pid int) {
		r.mu.Lock()
		r.oom = true
		r.mu.Unlock()
		known = signalFamily(pid, nil, syscall.SIGKILL)
	}) {
		return false
	}
	killFamily(r.child.pid, known)
	return true
}

// alive reports whether the run's end is still to come.
func (r *run) alive() bool { return r.ctx.Err() == nil }

// terminate asks the whole family to end and returns whom it asked.
func (r *run) terminate() (known map[int]process) {
	r.nursery.signal(r.child, func(pid int) { known = signalFamily(pid, nil, syscall.SIGTERM) })
	return known
}

func (r *run) resize(size Size) error {
	if r.io.master == nil {
		return &Error{Status: 409, Code: "no_terminal", Detail: "the run has no terminal"}
	}
	if !r.alive() {
		return runEnded(r.state.ID)
	}
	if err := control(r.io.master, func(fd int) error { return setSize(fd, size) }); err != nil {
		return runEnded(r.state.ID)
	}
	return nil
}

// signalName returns "SIGKILL" and the like.
func signalName(sig syscall.Signal) string {
	if n := unix.SignalName(sig); n != "" {
		return n
	}
	return fmt.Sprintf("SIG%d", int(sig))
}

func runEnded(id string) *Error {
	return &Error{Status: 409, Code: "run_ended", Detail: fmt.Sprintf("run %s has ended", id)}
}

// write writes to the process's input, no longer than the run lasts.
func (r *run) write(ctx context.Context, b []byte, last bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	return r.in.write(ctx, b, last)
}

// writeAt is write for a write with a place in the input, which may be repeated.
func (r *run) writeAt(ctx context.Context, p placement) error {
	life, end := context.WithCancel(r.ctx)
	defer end()
	if !r.open { // all of it was given at the start
		end()
	}
	return r.in.writeAt(ctx, life, p)
}
