package claude_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// world is a real store, a scripted runner and sessions on them.
type world struct {
	t       *testing.T
	store   *store.Store
	runner  *fakeRunner
	files   *memFiles
	account string
	sb      sandbox.Sandbox
	*claude.Sessions
	stop func() // ends Serve and waits for it
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	st := must[*store.Store](t)(store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "test.db")))
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	a, _, err := st.EnsureAccount(ctx, "main")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: st, account: a.ID, files: newFiles()}
	w.sb = w.sandbox("work", "/workspace")
	w.runner = &fakeRunner{store: st, runs: map[string]*fakeRun{}, started: make(chan *fakeRun, 100)}
	w.serve()
	t.Cleanup(func() { w.stop() })
	return w
}

// sandbox records a running sandbox.
func (w *world) sandbox(volume, workdir string) sandbox.Sandbox {
	w.t.Helper()
	ctx := w.t.Context()
	v := must[sandbox.Volume](w.t)(w.store.EnsureVolume(ctx, w.account, volume))
	sb := sandbox.Sandbox{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Account: w.account, Name: "test", State: sandbox.Creating,
		Run: "1", Engine: "fake", Spec: sandbox.Spec{Image: sandbox.Image{Source: sandbox.HostImage}, Volume: v, Workdir: workdir, Timeout: time.Hour},
		ExpiresAt: time.Now().Add(time.Hour)}
	if err := w.store.Admit(ctx, sb); err != nil {
		w.t.Fatal(err)
	}
	return must[sandbox.Sandbox](w.t)(w.store.Transition(ctx, sb.ID, "1", sandbox.Running, nil))
}

// serve starts sessions, as a new process would.
func (w *world) serve() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	w.Sessions = claude.NewSessions(claude.Config{Runner: w.runner, Store: w.store,
		Files: func(context.Context, string, sandbox.ID) (claude.Files, error) { return w.files, w.files.err }})
	done := make(chan error, 1)
	go func(s *claude.Sessions) { done <- s.Serve(ctx) }(w.Sessions)
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
}

// restart is the end of one process and the start of the next.
func (w *world) restart() {
	w.stop()
	w.serve()
}

// prompt begins a turn and returns it with its process.
func (w *world) prompt(p claude.Prompt) (claude.Turn, *fakeRun) {
	w.t.Helper()
	if p.Sandbox == "" {
		p.Sandbox = w.sb.ID
	}
	turn := must[claude.Turn](w.t)(w.Prompt(w.t.Context(), w.account, p))
	if turn.Queued {
		w.t.Fatalf("the turn waits: %+v", turn.Turn)
	}
	return turn, w.runner.get(turn.Run.ID)
}

// until reads the session's events after number after, until one is as wanted; it returns that one.
func (w *world) until(session string, after int64, is func(sandbox.SessionEvent) bool) sandbox.SessionEvent {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience())
	defer cancel()
	var all []sandbox.SessionEvent
	for e, err := range w.Events(ctx, w.account, session, after, true) {
		if err != nil {
			w.t.Fatalf("%v after\n%s", err, show(all))
		}
		if is(e) {
			return e
		}
		all = append(all, e)
	}
	w.t.Fatalf("what was waited for is not among\n%s", show(all))
	return sandbox.SessionEvent{}
}

// patience is how long a test waits: in a bubble of package synctest, where time costs nothing, for a day.
func patience() time.Duration {
	if time.Now().Year() < 2001 {
		return 24 * time.Hour
	}
	return time.Minute
}

// kind is for until.
func kind(k sandbox.SessionEventKind) func(sandbox.SessionEvent) bool {
	return func(e sandbox.SessionEvent) bool { return e.Kind == k }
}

// busy reports whether a turn runs.
func (w *world) busy(session string) bool {
	w.t.Helper()
	return must[claude.State](w.t)(w.Session(w.t.Context(), w.account, session)).Busy()
}

// collect reads the session's events after number after, until one of kind end (included).
func (w *world) collect(session string, after int64) []sandbox.SessionEvent {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	var all []sandbox.SessionEvent
	for e, err := range w.Events(ctx, w.account, session, after, true) {
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, e)
		if e.Kind == sandbox.SessionEnd {
			return all
		}
	}
	w.t.Fatalf("no end among %s", show(all))
	return nil
}

// stored reads what is in the store.
func (w *world) stored(session string) []sandbox.SessionEvent {
	w.t.Helper()
	var all []sandbox.SessionEvent
	for e, err := range w.Events(w.t.Context(), w.account, session, 0, false) {
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// show writes events in short: "1 prompt … | 2 line {…}".
func show(evs []sandbox.SessionEvent) string {
	var parts []string
	for _, e := range evs {
		data := string(e.Data)
		if len(data) > 200 {
			data = data[:200] + "…"
		}
		parts = append(parts, fmt.Sprintf("%d %s %s", e.Seq, e.Kind, data))
	}
	return strings.Join(parts, "\n")
}

type ending struct {
	Type, Turn, Outcome, Run, State, Signal, Reason string
	ExitCode                                        *int `json:"exit_code"`
}

func endOf(t *testing.T, evs []sandbox.SessionEvent) ending {
	t.Helper()
	var e ending
	last := evs[len(evs)-1]
	if err := json.Unmarshal(last.Data, &e); err != nil || last.Kind != sandbox.SessionEnd || e.Type != "end" || !bytes.Contains(last.Data, []byte(`"exit_code":`)) {
		t.Fatalf("the last event is %s (%v)", show(evs[len(evs)-1:]), err)
	}
	return e
}

func wantProblem(t *testing.T, err error, class error, code, field string) {
	t.Helper()
	var p *sandbox.Problem
	if !errors.Is(err, class) || !errors.As(err, &p) || p.Code != code || p.Field != field || p.Detail == "" {
		t.Errorf("got %v (%+v), want %v %s at %q", err, p, class, code, field)
	}
}

// fakeRunner runs nothing: the test says what each process writes and how it ends.
type fakeRunner struct {
	store   *store.Store
	refuse  error // of the guest, after the run was recorded
	started chan *fakeRun

	mu      sync.Mutex
	runs    map[string]*fakeRun
	signals []string
	ended   error   // of the sandbox
	mute    bool    // writes to stdin are not taken
	fails   []error // of the next reads of output, each once
	onStart func()
	onRun   func(*fakeRun)
	cpu     time.Duration // used so far
	use     time.Duration // between two looks
}

func (r *fakeRunner) Sandbox(ctx context.Context, account string, id sandbox.ID) (sandbox.Sandbox, error) {
	return r.store.Sandbox(ctx, account, id)
}

func (r *fakeRunner) Guest(context.Context, string, sandbox.ID) (*guest.Client, error) {
	return nil, &sandbox.Problem{Class: sandbox.ErrState, Code: "sandbox_not_running", Detail: "no guest here"}
}

func (r *fakeRunner) StartRun(ctx context.Context, run sandbox.Run, cmd guest.Command, insert func(context.Context, sandbox.Run) error) (sandbox.Run, error) {
	r.mu.Lock()
	ended := r.ended
	r.mu.Unlock()
	if ended != nil {
		return run, ended
	}
	if err := insert(ctx, run); err != nil {
		return run, err
	}
	f := &fakeRun{r: r, run: run, cmd: cmd, changed: make(chan struct{}), typed: make(chan struct{})}
	r.mu.Lock()
	r.runs[run.ID] = f
	r.mu.Unlock()
	if r.onRun != nil {
		r.onRun(f)
	}
	if r.onStart != nil {
		r.onStart()
	}
	if r.refuse != nil {
		f.lose("the guest said no")
		return run, r.refuse
	}
	select {
	case r.started <- f:
	default:
	}
	return r.store.Run(ctx, run.Account, run.ID)
}

func (r *fakeRunner) get(id string) *fakeRun {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.runs[id]
}

func (r *fakeRunner) all() []*fakeRun {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.runs))
}

func (r *fakeRunner) Output(ctx context.Context, run sandbox.Run, offset int64) iter.Seq2[guest.Frame, error] {
	return r.get(run.ID).output(ctx, offset)
}

func (r *fakeRunner) WaitRun(ctx context.Context, account, id string) (sandbox.Run, error) {
	f := r.get(id)
	for {
		f.mu.Lock()
		ended, changed := f.run.State != sandbox.RunRunning, f.changed
		f.mu.Unlock()
		if ended {
			return r.store.Run(ctx, account, id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return sandbox.Run{}, ctx.Err()
		}
	}
}

func (r *fakeRunner) Signal(_ context.Context, _, run, signal string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signals = append(r.signals, signal)
	if f := r.runs[run]; f.onSignal != nil {
		return f.onSignal(signal)
	}
	return nil
}

// WriteStdin takes input exactly once, as the guest does.
func (r *fakeRunner) WriteStdin(_ context.Context, run sandbox.Run, at int64, data []byte, last bool) (int64, error) {
	f := r.get(run.ID)
	if f == nil {
		return 0, &sandbox.Problem{Class: sandbox.ErrNotFound, Code: "no_such_run", Detail: "There is no such run."}
	}
	r.mu.Lock()
	mute := r.mute
	r.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	switch count := int64(len(f.stdin)); {
	case f.run.State != sandbox.RunRunning:
		return 0, &sandbox.Problem{Class: sandbox.ErrState, Code: "run_ended", Detail: "It has ended."}
	case mute:
		return 0, errors.New("it can't be written")
	case at > count:
		return 0, &sandbox.Problem{Class: sandbox.ErrState, Code: "stdin_gap", Detail: "There is a gap."}
	case at+int64(len(data)) > count:
		fresh := data[count-at:]
		f.stdin = append(f.stdin, fresh...)
		if f.onInput != nil {
			f.onInput(fresh)
		}
	}
	if last && !f.closed && f.onClose != nil {
		f.onClose()
	}
	f.closed = f.closed || last
	close(f.typed)
	f.typed = make(chan struct{})
	return at + int64(len(data)), nil
}

func (r *fakeRunner) setUse(use time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.use = use
}

// hear says what signals do.
func (f *fakeRun) hear(onSignal func(string) error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	f.onSignal = onSignal
}

// whenClosed says what the end of the input does.
func (f *fakeRun) whenClosed(onClose func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onClose = onClose
}

func (r *fakeRunner) setEnded(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = err
}

func (r *fakeRunner) setMute(mute bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mute = mute
}

func (r *fakeRunner) CPUTime(context.Context, string, string) (time.Duration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cpu += r.use
	return r.cpu, nil
}

func (r *fakeRunner) fail() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.fails) == 0 {
		return nil
	}
	err := r.fails[0]
	r.fails = r.fails[1:]
	return err
}

func (r *fakeRunner) signalled() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.signals)
}

// fakeRun is a process and its journal.
type fakeRun struct {
	r        *fakeRunner
	cmd      guest.Command
	onSignal func(string) error
	onInput  func([]byte)
	onClose  func()

	mu      sync.Mutex
	run     sandbox.Run
	frames  []guest.Frame
	next    int64
	gone    bool // the journal is
	changed chan struct{}
	stdin   []byte
	closed  bool          // stdin is
	typed   chan struct{} // closed at the next write to stdin
}

// input waits for line n of what was written to the process, and returns it.
func (f *fakeRun) input(t *testing.T, n int) map[string]any {
	t.Helper()
	late := time.After(patience())
	for {
		f.mu.Lock()
		lines, typed := bytes.SplitAfter(f.stdin, []byte("\n")), f.typed
		f.mu.Unlock()
		if len(lines) > n+1 {
			var v map[string]any
			if err := json.Unmarshal(lines[n], &v); err != nil {
				t.Fatalf("input %q: %v", lines[n], err)
			}
			return v
		}
		select {
		case <-typed:
		case <-late:
			t.Fatalf("input %d did not come, only %q", n, lines)
		}
	}
}

// field returns what is at a path of an object.
func field(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

// result ends the turn, as the CLI does.
func (f *fakeRun) result() { f.stdout(`{"type":"result","subtype":"success","is_error":false}`) }

func (f *fakeRun) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeRun) write(kind guest.Kind, s string) {
	f.change(func() {
		f.frames = append(f.frames, guest.Frame{Kind: kind, Offset: f.next, Data: []byte(s)})
		f.next += int64(len(s))
	})
}

func (f *fakeRun) stdout(lines ...string) { f.write(guest.Stdout, strings.Join(lines, "\n")+"\n") }

// exit ends the process, and its record.
func (f *fakeRun) exit(code int) {
	f.finish(func(r *sandbox.Run) { r.State, r.ExitCode = sandbox.RunExited, &code })
}

func (f *fakeRun) finish(set func(*sandbox.Run)) {
	f.mu.Lock()
	run := f.run
	f.mu.Unlock()
	set(&run)
	if err := f.r.store.EndRun(context.Background(), run); err != nil {
		panic(err)
	}
	f.change(func() {
		f.run = run
		f.frames = append(f.frames, guest.Frame{Kind: guest.End, Offset: f.next, Data: []byte("{}")})
	})
}

// lose takes the sandbox away.
func (f *fakeRun) lose(reason string) {
	f.change(func() { f.gone = true })
	f.finish(func(r *sandbox.Run) { r.State, r.Reason = sandbox.RunLost, reason })
}

func (f *fakeRun) output(ctx context.Context, offset int64) iter.Seq2[guest.Frame, error] {
	return func(yield func(guest.Frame, error) bool) {
		if err := f.r.fail(); err != nil {
			yield(guest.Frame{}, err)
			return
		}
		for i := 0; ; {
			f.mu.Lock()
			gone, frames, changed := f.gone, f.frames, f.changed
			f.mu.Unlock()
			if gone {
				yield(guest.Frame{}, fmt.Errorf("%w: the sandbox has ended", sandbox.ErrGone))
				return
			}
			for ; i < len(frames); i++ {
				fr := frames[i]
				end := fr.Kind == guest.End
				if skip := offset - fr.Offset; !end && fr.Kind != guest.Gap && skip > 0 {
					if skip >= int64(len(fr.Data)) {
						continue
					}
					fr.Offset, fr.Data = offset, fr.Data[skip:]
				}
				if !yield(fr, nil) || end {
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(guest.Frame{}, ctx.Err())
				return
			}
		}
	}
}
