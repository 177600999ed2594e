package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// viewed is what a reader of output has seen.
type viewed struct {
	out     []byte // both streams
	missing int64
	pieces  []piece // of out, between the gaps
	end     *guest.Run
	err     error
}

// piece is output that hangs together.
type piece struct{ at, size int64 }

// see reads output from an offset to its end, or until enough of it was seen.
func (r *rig) see(ctx context.Context, run sandbox.Run, offset int64, enough func(*viewed) bool) *viewed {
	v := new(viewed)
	for f, err := range r.m.Output(ctx, run, offset) {
		switch {
		case err != nil:
			v.err = err
			return v
		case f.Kind == guest.Gap:
			if f.GapBegin() != offset {
				v.err = fmt.Errorf("a gap from %d, want %d", f.GapBegin(), offset)
				return v
			}
			v.missing += f.Offset - offset
			offset = f.Offset
		case f.Kind == guest.End:
			end, err := f.Run()
			v.end, v.err = &end, err
		case f.Offset != offset:
			v.err = fmt.Errorf("output at %d, want %d", f.Offset, offset)
			return v
		default:
			if n := len(v.pieces); n == 0 || v.pieces[n-1].at+v.pieces[n-1].size != offset {
				v.pieces = append(v.pieces, piece{at: offset})
			}
			v.pieces[len(v.pieces)-1].size += int64(len(f.Data))
			v.out = append(v.out, f.Data...)
			offset += int64(len(f.Data))
		}
		if enough != nil && enough(v) {
			return v
		}
	}
	return v
}

// end ends the sandbox.
func (r *rig) end(t *testing.T, id sandbox.ID) {
	t.Helper()
	if _, err := r.m.Terminate(within(t), r.account, id, ""); err != nil {
		t.Fatal(err)
	}
}

// What runs wrote can be read when their sandbox is gone, from anywhere, also by the next process; how they ended too.
func TestOutputOutlivesTheSandbox(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	all := "one\r\ntwo\xff\x00three"
	script := `printf 'one\r\n'; printf 'two\377\000' >&2; printf three; `
	exits := r.sh(t, sb, script+"exit 7")
	dies := r.sh(t, sb, script+"kill -9 $$")
	silent := r.sh(t, sb, "exit 3")
	short, _, err := r.m.RunShort(within(t), sandbox.Run{Account: r.account, Sandbox: sb.ID, Kind: sandbox.RunExec}, guest.Command{Argv: []string{"sh", "-c", script + "exit 8"}})
	if err != nil {
		t.Fatal(err)
	}
	stopped := r.sh(t, sb, script+"exec sleep 600")
	if v := r.see(within(t), stopped, 0, func(v *viewed) bool { return len(v.out) == len(all) }); v.err != nil {
		t.Fatal(v.err)
	}
	r.end(t, sb.ID)
	for _, restarted := range []bool{false, true} {
		if restarted {
			r.stop()
			r.start(t, nil)
		}
		for _, c := range []struct {
			run   sandbox.Run
			out   string
			state guest.State
			code  int
		}{{exits, all, "exited", 7}, {dies, all, "signaled", -1}, {silent, "", "exited", 3}, {short, all, "exited", 8}, {stopped, all, "signaled", -1}} {
			for from := range len(c.out) + 1 {
				v := r.see(within(t), c.run, int64(from), nil)
				if v.err != nil || v.end == nil || v.end.State != c.state || v.end.Code != nil && *v.end.Code != c.code || v.missing != 0 {
					t.Fatalf("from %d: %+v", from, v)
				}
				// Which of the two streams the guest read first is open.
				if len(v.out) != len(c.out)-from || from == 0 && (!bytes.Contains(v.out, []byte("two\xff\x00")) && len(c.out) > 0) {
					t.Errorf("from %d: %q", from, v.out)
				}
			}
			row, err := r.m.Run(t.Context(), r.account, c.run.ID)
			if err != nil || row.OutputNext != int64(len(c.out)) || row.OutputFirst != 0 {
				t.Errorf("the row is %+v, %v", row, err)
			}
		}
	}
}

// A run that writes much is read whole while it is there. Afterwards its beginning and its end are.
func TestMuchOutput(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	const lines, size = 700_000, 700_000 * 20
	run := r.sh(t, sb, fmt.Sprintf("seq -f '%%019.0f' %d; test -e go || while ! test -e go; do sleep 0.02; done; echo end", lines))
	v := r.see(within(t), run, 0, func(v *viewed) bool { return len(v.out) >= size })
	whole := v.out
	if v.err != nil || v.missing != 0 || !bytes.HasSuffix(whole, fmt.Appendf(nil, "%019d\n", lines)) {
		t.Fatalf("%v, %d bytes, %d missing", v.err, len(whole), v.missing)
	}
	r.touch(t, sb, "go")
	if v := r.see(within(t), run, size, nil); string(v.out) != "end\n" || v.end == nil {
		t.Errorf("%+v", v)
	}
	if _, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil {
		t.Fatal(err)
	}
	r.end(t, sb.ID)
	v = r.see(within(t), run, 0, nil)
	if v.err != nil || v.end == nil || *v.end.Code != 0 || len(v.out)+int(v.missing) != size+4 {
		t.Fatalf("%v, %d bytes, %d missing, %+v", v.err, len(v.out), v.missing, v.end)
	}
	whole = append(whole, "end\n"...)
	rest := v.out
	for _, p := range v.pieces {
		if !bytes.Equal(rest[:p.size], whole[p.at:p.at+p.size]) {
			t.Errorf("%d bytes at %d are not what was written", p.size, p.at)
		}
		rest = rest[p.size:]
	}
	first, last := v.pieces[0], v.pieces[len(v.pieces)-1]
	if first.at != 0 || first.size < 500_000 || last.at+last.size != size+4 || last.size < 1_000_000 {
		t.Errorf("there is %+v of %d bytes", v.pieces, len(whole))
	}
	var onDisk int64
	for _, name := range glob(t, filepath.Join(r.runs, r.account, run.ID, "*")) {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		onDisk += info.Size()
	}
	if onDisk > 4<<20+1<<17 {
		t.Errorf("%d bytes are kept", onDisk)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Servers come and go while a run writes; a viewer goes on each time from what it saw last, and sees each byte once. So does the recording.
func TestServersComeAndGo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i+1)); [ $((i % 100)) = 0 ] && sleep 0.01; done; exit 9")
	var want strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	var all []byte
	for n := 1; ; n++ {
		v := r.see(within(t), run, int64(len(all)), func(v *viewed) bool { return len(v.out) > 1000*n && n < 8 })
		all = append(all, v.out...)
		if v.err != nil || v.missing != 0 {
			t.Fatalf("%v, %d missing", v.err, v.missing)
		}
		if v.end != nil {
			if v.end.Code == nil || *v.end.Code != 9 {
				t.Errorf("it ended as %+v", v.end)
			}
			break
		}
		r.stop()
		r.start(t, nil)
	}
	if string(all) != want.String() {
		t.Errorf("%d bytes, want %d", len(all), want.Len())
	}
	if got, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil || got.State != sandbox.RunExited || *got.ExitCode != 9 || got.OutputNext != int64(want.Len()) {
		t.Errorf("%+v, %v", got, err)
	}
	r.end(t, sb.ID)
	if v := r.see(within(t), run, 0, nil); string(v.out) != want.String() || v.missing != 0 || v.end == nil || *v.end.Code != 9 {
		t.Errorf("afterwards: %d bytes, %d missing, %+v, %v", len(v.out), v.missing, v.end, v.err)
	}
}

// When the sandbox dies, its runs are lost within seconds; what they wrote is not, and it is never taken for all.
func TestOutputOfALostRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "echo on; exec sleep 600")
	seen, began := make(chan *viewed), make(chan struct{})
	go func() {
		seen <- r.see(within(t), run, 0, func(*viewed) bool { close(began); return false })
	}()
	<-began
	killed := time.Now()
	r.world.Kill(engine.Ref{ID: sb.ID, Run: sb.Run})
	got, err := r.m.WaitRun(within(t), r.account, run.ID)
	if err != nil || got.State != sandbox.RunLost || got.ExitCode != nil || got.OutputNext != 3 || time.Since(killed) > 5*time.Second {
		t.Errorf("after %v it is %+v, %v", time.Since(killed), got, err)
	}
	v := <-seen
	wantProblem(t, v.err, sandbox.ErrGone, "sandbox_gone", "")
	if string(v.out) != "on\n" || v.end != nil {
		t.Errorf("the viewer saw %+v", v)
	}
	v = r.see(within(t), run, 1, nil)
	wantProblem(t, v.err, sandbox.ErrGone, "sandbox_gone", "")
	if string(v.out) != "n\n" || v.end != nil {
		t.Errorf("afterwards it is %+v", v)
	}
}

// What a suspended sandbox's run wrote is read, and its viewers wait for more.
func TestOutputOfASuspendedSandbox(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "echo one; while ! test -e go; do sleep 0.02; done; echo two; exit 6")
	if v := r.see(within(t), run, 0, func(*viewed) bool { return true }); v.err != nil {
		t.Fatal(v.err)
	}
	r.suspend(t, sb.ID)
	for range 2 {
		if v := r.see(within(t), run, 0, func(v *viewed) bool { return string(v.out) == "one\n" }); v.err != nil || v.end != nil {
			t.Errorf("%+v", v)
		}
		r.stop()
		r.start(t, nil)
	}
	began, seen := make(chan struct{}), make(chan *viewed)
	go func() {
		first := sync.OnceFunc(func() { close(began) })
		seen <- r.see(within(t), run, 0, func(*viewed) bool { first(); return false })
	}()
	<-began
	r.resume(t, sb.ID)
	r.touch(t, sb, "go")
	if v := <-seen; string(v.out) != "one\ntwo\n" || v.end == nil || *v.end.Code != 6 {
		t.Errorf("%+v", v)
	}
}

// A full disk on our side hurts no run and no viewer. What could not be recorded is a gap, when there is nowhere else to read it from.
func TestRecordingOnAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	r := newRig(t)
	if err := os.MkdirAll(r.runs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", r.runs, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("no mounts here: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(r.runs, syscall.MNT_DETACH) })
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "seq -f '%09.0f' 30000; exit 5") // 300,000 bytes
	v := r.see(within(t), run, 0, nil)
	if v.err != nil || v.missing != 0 || len(v.out) != 300_000 || *v.end.Code != 5 {
		t.Errorf("%v, %d bytes, %d missing, %+v", v.err, len(v.out), v.missing, v.end)
	}
	whole := v.out
	got, err := r.m.WaitRun(within(t), r.account, run.ID)
	if err != nil || got.State != sandbox.RunExited || *got.ExitCode != 5 || got.OutputNext != 300_000 {
		t.Errorf("%+v, %v", got, err)
	}
	silent := r.sh(t, sb, "exit 4")
	if got, err := r.m.WaitRun(within(t), r.account, silent.ID); err != nil || *got.ExitCode != 4 {
		t.Errorf("%+v, %v", got, err)
	}
	r.end(t, sb.ID)
	v = r.see(within(t), run, 0, nil)
	if v.err != nil || v.end == nil || *v.end.Code != 5 || v.missing == 0 || int64(len(v.out))+v.missing != 300_000 || !bytes.HasPrefix(whole, v.out) {
		t.Errorf("afterwards: %v, %d bytes, %d missing, %+v", v.err, len(v.out), v.missing, v.end)
	}
}

// Output is kept for a time, and only so much of each account's; never is that of a run that goes on removed.
func TestOldOutputIsRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, func(c *lifecycle.Config) { c.AccountRunBytes, c.RunRetention = 250_000, 24*time.Hour })
	sb := r.running(t)
	runs := map[string]sandbox.Run{"goes on": r.sh(t, sb, "seq -f '%09.0f' 10000; exec sleep 600")}
	r.see(within(t), runs["goes on"], 0, func(v *viewed) bool { return len(v.out) == 100_000 })
	for i, name := range []string{"ancient", "older", "newer", "newest"} {
		run := r.sh(t, sb, "seq -f '%09.0f' 10000")
		if _, err := r.m.WaitRun(within(t), r.account, run.ID); err != nil {
			t.Fatal(err)
		}
		runs[name] = run
		at := time.Now().Add(time.Duration(i-10) * time.Minute)
		if name == "ancient" {
			at = at.Add(-48 * time.Hour)
		}
		for _, file := range glob(t, filepath.Join(r.runs, r.account, run.ID, "*")) {
			if err := os.Chtimes(file, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.stop() // its own pass may come at any time
	r.open(t, func(c *lifecycle.Config) { c.AccountRunBytes, c.RunRetention = 1<<30, 24*time.Hour })
	there := func(want ...string) {
		t.Helper()
		for name, run := range runs {
			kept := strings.Contains(strings.Join(want, ","), name)
			if _, err := os.Stat(filepath.Join(r.runs, r.account, run.ID)); (err == nil) != kept {
				t.Errorf("%s: %v", name, err)
			}
			row, err := r.store.Run(t.Context(), "", run.ID)
			if first := row.OutputFirst; err != nil || first != 0 && kept || first != 100_000 && !kept {
				t.Errorf("%s: the row says that its output is there from %d: %v", name, first, err)
			}
		}
	}
	if err := lifecycle.CollectOutput(r.m, t.Context()); err != nil {
		t.Fatal(err)
	}
	there("goes on", "older", "newer", "newest")
	r.open(t, func(c *lifecycle.Config) { c.AccountRunBytes, c.RunRetention = 250_000, 24*time.Hour })
	if err := lifecycle.CollectOutput(r.m, t.Context()); err != nil {
		t.Fatal(err)
	}
	there("goes on", "newest")
	r.start(t, nil)
	r.end(t, sb.ID)
	if v := r.see(within(t), runs["older"], 10, nil); v.err != nil || v.missing != 99_990 || v.end == nil || len(v.out) > 0 {
		t.Errorf("%d bytes, %d missing, %+v, %v", len(v.out), v.missing, v.end, v.err)
	}
}

// Many viewers of one run each see all of it, at their own pace, and cost little; one that stalls costs the others nothing.
func TestManyViewers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "echo first; while ! test -e go; do sleep 0.02; done; seq -f '%09.0f' 2000; exit 2")
	const viewers = 500
	release := make(chan struct{})
	var all, ready sync.WaitGroup
	seen := make(chan *viewed, viewers)
	ready.Add(viewers + 1)
	before := memory()
	for range viewers {
		all.Go(func() {
			first := sync.OnceFunc(ready.Done)
			seen <- r.see(within(t), run, 0, func(*viewed) bool { first(); return false })
		})
	}
	var stalled *viewed
	all.Go(func() {
		first := sync.OnceFunc(func() { ready.Done(); <-release })
		stalled = r.see(within(t), run, 0, func(*viewed) bool { first(); return false })
	})
	ready.Wait()
	if each := (memory() - before) / viewers; each > 48<<10 {
		t.Errorf("a viewer that waits costs %d bytes", each)
	}
	r.touch(t, sb, "go")
	for range viewers {
		if v := <-seen; v.err != nil || v.missing != 0 || len(v.out) != 20_006 || v.end == nil || *v.end.Code != 2 {
			t.Fatalf("%v, %d bytes, %d missing, %+v", v.err, len(v.out), v.missing, v.end)
		}
	}
	r.end(t, sb.ID) // the stalled one reads on what was recorded
	close(release)
	all.Wait()
	if stalled.err != nil || len(stalled.out) != 20_006 || stalled.end == nil {
		t.Errorf("the stalled one: %+v", stalled)
	}
}

// memory is what the heap and the stacks hold after a collection.
func memory() int64 {
	runtime.GC()
	runtime.GC() // what finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// Input is written once, though who writes it can't know whether it was, and the server is another one then.
func TestInputOverRestarts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run, err := r.m.StartRun(within(t), sandbox.Run{Account: r.account, Sandbox: sb.ID, Kind: sandbox.RunExec},
		guest.Command{Argv: []string{"cat"}, Stdin: []byte("0,"), Open: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := "0,"
	for i := range 5 {
		text := fmt.Sprintf("%d,", i+1)
		for range 2 {
			if taken, err := r.m.WriteStdin(within(t), run, int64(len(want)), []byte(text), false); err != nil || taken != int64(len(want)+2) {
				t.Fatal(taken, err)
			}
			r.stop()
			r.start(t, nil)
		}
		want += text
	}
	_, err = r.m.WriteStdin(within(t), run, 1000, []byte("x"), false)
	wantProblem(t, err, sandbox.ErrState, "stdin_gap", "at")
	if taken, err := r.m.WriteStdin(within(t), run, -1, []byte("end"), true); err != nil || taken != int64(len(want)+3) {
		t.Error(taken, err)
	}
	if got := r.output(t, run); got != want+"end" {
		t.Errorf("%q", got)
	}
	ended, err := r.m.WaitRun(within(t), r.account, run.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.m.WriteStdin(within(t), ended, -1, []byte("x"), false)
	wantProblem(t, err, sandbox.ErrState, "run_ended", "")
	if taken, err := r.m.WriteStdin(within(t), ended, 0, []byte("0,1,"), false); err != nil || taken != 4 {
		t.Error(taken, err)
	}
	_, err = r.m.WriteStdin(within(t), ended, int64(len(want)+3), []byte("x"), false)
	if p := (*sandbox.Problem)(nil); !errors.As(err, &p) || p.Code != "run_ended" {
		t.Error(err)
	}
}

// The guest writes on while there is no server, and then dies: what it had written is not lost.
func TestOutputOfAGuestThatDiedAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "echo one; while ! test -e go; do sleep 0.02; done; echo two; echo >written; exec sleep 600")
	if v := r.see(within(t), run, 0, func(*viewed) bool { return true }); v.err != nil {
		t.Fatal(v.err)
	}
	dir, err := r.eng.Engine.(engine.VolumeDirs).VolumeDir(t.Context(), sb.Spec.Volume)
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	written := filepath.Join(dir, "written")
	if err := errors.Join(syscall.Mkfifo(written, 0o666), os.WriteFile(filepath.Join(dir, "go"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(written); err != nil { // waits for it
		t.Fatal(err)
	}
	state, err := r.eng.Engine.(engine.Journals).GuestState(engine.Ref{ID: sb.ID, Run: sb.Run})
	if err != nil {
		t.Fatal(err)
	}
	for files := 0; files == 0; { // the guest may be about to read what was written
		for _, name := range glob(t, filepath.Join(state, "runs", run.ID, "*")) {
			if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte("two\n")) {
				files++
			}
		}
	}
	r.world.Kill(engine.Ref{ID: sb.ID, Run: sb.Run})
	r.start(t, nil)
	got, err := r.m.WaitRun(within(t), r.account, run.ID)
	if err != nil || got.State != sandbox.RunLost || got.OutputNext != 8 {
		t.Errorf("%+v, %v", got, err)
	}
	r.reach(t, sb.ID, sandbox.Error)
	if v := r.see(within(t), run, 0, nil); string(v.out) != "one\ntwo\n" || v.missing != 0 || !errors.Is(v.err, sandbox.ErrGone) {
		t.Errorf("%+v", v)
	}
}

// Many runs at once are each followed, and cost little.
func TestManyRuns(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	const runs = 200
	var all []sandbox.Run
	for i := range runs {
		all = append(all, r.sh(t, sb, fmt.Sprintf("echo first %d; while ! test -e go; do sleep 0.5; done; echo last; exit %d", i, i)))
	}
	for _, run := range all {
		if v := r.see(within(t), run, 0, func(*viewed) bool { return true }); v.err != nil {
			t.Fatal(v.err)
		}
	}
	r.touch(t, sb, "go")
	for i, run := range all {
		got, err := r.m.WaitRun(within(t), r.account, run.ID)
		if err != nil || got.State != sandbox.RunExited || *got.ExitCode != i {
			t.Errorf("%+v, %v", got, err)
		}
		if want, v := fmt.Sprintf("first %d\nlast\n", i), r.see(within(t), run, 0, nil); string(v.out) != want || got.OutputNext != int64(len(want)) {
			t.Errorf("%q, %+v", v.out, got)
		}
	}
}

// A clock that is set back makes no run end before it began, nor does what a guest says.
func TestTimesOfARunWhoseClockJumps(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	r.stop()
	zero := 0
	for name, c := range map[string]struct{ started, told time.Time }{
		"the guest's clock is behind":     {time.Now(), time.Now().Add(-time.Hour)},
		"the guest's clock is ahead":      {time.Now(), time.Now().Add(time.Hour)},
		"ours was set back":               {time.Now().Add(time.Hour), time.Now()},
		"ours was set back, it says none": {time.Now().Add(time.Hour), time.Time{}},
	} {
		run := sandbox.Run{ID: sandbox.NewID(sandbox.PrefixRun), Account: r.account, Sandbox: sb.ID, State: sandbox.RunRunning, StartedAt: c.started}
		if err := r.store.InsertRun(t.Context(), run); err != nil {
			t.Fatal(err)
		}
		if err := lifecycle.Record(r.m, t.Context(), run.ID, guest.Run{State: guest.StateExited, Code: &zero, EndedAt: c.told, Next: 5}); err != nil {
			t.Fatal(err)
		}
		got, err := r.store.Run(t.Context(), "", run.ID)
		if latest := time.Now(); err != nil || got.EndedAt.Before(got.StartedAt) || got.EndedAt.After(latest) && got.EndedAt.After(got.StartedAt) || got.OutputNext != 5 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
