package lifecycle_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestFromCreateToTerminate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	prepared := make(chan sandbox.ID, 1)
	r.start(t, func(c *lifecycle.Config) {
		c.Prepare = func(ctx context.Context, c *guest.Client, sb sandbox.Sandbox) error {
			prepared <- sb.ID
			_, err := c.Info(ctx)
			return err
		}
	})
	sb, err := r.m.Create(t.Context(), lifecycle.Request{
		Account: r.account, Volume: "data", Labels: map[string]string{"team": "x"}, Env: map[string]string{"YOURS": "yours", "BOTH": "yours"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if sb.State != sandbox.Creating && sb.State != sandbox.Running || sb.Name == "" || sb.Engine != "fake" || sb.Spec.Workdir != "/workspace" ||
		sb.Spec.DiskMiB != 10240 || sb.Spec.Timeout != time.Hour || !sb.ExpiresAt.Equal(sb.CreatedAt.Add(time.Hour)) || sb.Spec.Volume.Name != "data" {
		t.Errorf("it was created as %+v", sb)
	}
	sb, err = r.m.WaitReady(within(t), r.account, sb.ID)
	if err != nil || sb.State != sandbox.Running || sb.StartedAt.IsZero() || len(sb.Handle) == 0 {
		t.Fatalf("it is %+v, %v", sb, err)
	}
	if got := <-prepared; got != sb.ID {
		t.Errorf("%s was prepared", got)
	}

	run := r.sh(t, sb, `echo "$OURS|$YOURS|$BOTH|$ANTHROPIC_API_KEY"; exit 3`)
	if want := "ours|yours|yours|token of " + string(sb.ID) + "\n"; r.output(t, run) != want {
		t.Errorf("the environment is not %q", want)
	}
	run, err = r.m.WaitRun(within(t), r.account, run.ID)
	if err != nil || run.State != sandbox.RunExited || run.ExitCode == nil || *run.ExitCode != 3 || run.EndedAt.IsZero() {
		t.Errorf("the run is %+v, %v", run, err)
	}
	if all, _, err := r.m.Runs(t.Context(), sandbox.RunFilter{Account: r.account, Sandbox: sb.ID}); err != nil || len(all) != 1 {
		t.Errorf("the runs are %+v, %v", all, err)
	}
	wantProblem(t, r.m.Signal(t.Context(), r.account, run.ID, "SIGINT"), sandbox.ErrState, "run_ended", "")

	ended, err := r.m.Terminate(within(t), r.account, sb.ID, "Enough.")
	if err != nil || ended.State != sandbox.Terminated || ended.Reason != "Enough." || ended.EndedAt.IsZero() {
		t.Errorf("it ended as %+v, %v", ended, err)
	}
	if left := r.held(t); len(left) > 0 {
		t.Errorf("the engine still holds %v", left)
	}
	want := []string{"accepted", "volume", "starting", "guest", "running", "stopping", "terminated"}
	if got := r.kinds(t, sb.ID); !slices.Equal(got, want) {
		t.Errorf("the events are %v", got)
	}

	// What can't be done with what has ended.
	_, err = r.m.Terminate(t.Context(), r.account, sb.ID, "")
	wantProblem(t, err, sandbox.ErrConflict, "already_terminated", "")
	_, err = r.m.WaitReady(t.Context(), r.account, sb.ID)
	wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
	_, err = r.m.Guest(t.Context(), r.account, sb.ID)
	wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
	_, err = r.m.StartRun(t.Context(), sandbox.Run{Account: r.account, Sandbox: sb.ID}, guest.Command{Argv: []string{"true"}}, nil)
	wantProblem(t, err, sandbox.ErrState, "sandbox_not_running", "")
	if want := "ours|yours|yours|token of " + string(sb.ID) + "\n"; r.output(t, run) != want { // what was recorded
		t.Errorf("afterwards its output is not %q", want)
	}
}

func TestOtherAccountsSeeNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "exit 0")
	a, _, err := r.store.EnsureAccount(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	_, get := r.m.Sandbox(ctx, a.ID, sb.ID)
	_, ready := r.m.WaitReady(ctx, a.ID, sb.ID)
	_, terminate := r.m.Terminate(ctx, a.ID, sb.ID, "")
	_, connect := r.m.Guest(ctx, a.ID, sb.ID)
	_, getRun := r.m.Run(ctx, a.ID, run.ID)
	_, wait := r.m.WaitRun(ctx, a.ID, run.ID)
	_, start := r.m.StartRun(ctx, sandbox.Run{Account: a.ID, Sandbox: sb.ID}, guest.Command{Argv: []string{"true"}}, nil)
	var output error
	foreign := run
	foreign.Account = a.ID
	for _, err := range r.m.Output(ctx, foreign, 0) {
		output = err
	}
	for name, err := range map[string]error{
		"get": get, "wait ready": ready, "terminate": terminate, "guest": connect, "get run": getRun, "wait run": wait, "start": start,
		"output": output, "signal": r.m.Signal(ctx, a.ID, run.ID, "SIGTERM"),
	} {
		if !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if runs, _, err := r.m.Runs(ctx, sandbox.RunFilter{Account: a.ID, Sandbox: sb.ID}); err != nil || len(runs) > 0 {
		t.Errorf("runs: %v, %v", runs, err)
	}
	if all, _, err := r.m.Sandboxes(ctx, sandbox.Filter{Account: a.ID}); err != nil || len(all) > 0 {
		t.Errorf("list: %v, %v", all, err)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	many := make(map[string]string)
	for i := range 33 {
		many["key"+strings.Repeat("x", i)] = "v"
	}
	type change = func(*lifecycle.Request)
	for name, c := range map[string]struct {
		change      change
		field, code string
	}{
		"engine":            {func(q *lifecycle.Request) { q.Engine = "steam" }, "engine", "invalid_request"},
		"image":             {func(q *lifecycle.Request) { q.Image.Source = "docker.io/library/debian" }, "image.registry", "image_not_found"},
		"network":           {func(q *lifecycle.Request) { q.Network.Mode = "open" }, "network.mode", "unsupported"},
		"name too long":     {func(q *lifecycle.Request) { q.Name = strings.Repeat("ü", 101) }, "name", "invalid_request"},
		"name with control": {func(q *lifecycle.Request) { q.Name = "a\x1b[31m" }, "name", "invalid_request"},
		"volume upper case": {func(q *lifecycle.Request) { q.Volume = "Data" }, "volume", "invalid_request"},
		"volume path":       {func(q *lifecycle.Request) { q.Volume = "../x" }, "volume", "invalid_request"},
		"volume too long":   {func(q *lifecycle.Request) { q.Volume = strings.Repeat("x", 65) }, "volume", "invalid_request"},
		"workdir relative":  {func(q *lifecycle.Request) { q.Workdir = "workspace" }, "workdir", "invalid_request"},
		"workdir unclean":   {func(q *lifecycle.Request) { q.Workdir = "/a/../usr" }, "workdir", "invalid_request"},
		"workdir slash":     {func(q *lifecycle.Request) { q.Workdir = "/work/" }, "workdir", "invalid_request"},
		"workdir root":      {func(q *lifecycle.Request) { q.Workdir = "/" }, "workdir", "invalid_request"},
		"workdir system":    {func(q *lifecycle.Request) { q.Workdir = "/usr/src" }, "workdir", "invalid_request"},
		"workdir guest":     {func(q *lifecycle.Request) { q.Workdir = "/var/lib/sandlot/x" }, "workdir", "invalid_request"},
		"workdir NUL":       {func(q *lifecycle.Request) { q.Workdir = "/a\x00b" }, "workdir", "invalid_request"},
		"workdir too long":  {func(q *lifecycle.Request) { q.Workdir = "/" + strings.Repeat("x", 300) }, "workdir", "invalid_request"},
		"too many labels":   {func(q *lifecycle.Request) { q.Labels = many }, "labels", "invalid_request"},
		"label key":         {func(q *lifecycle.Request) { q.Labels = map[string]string{"a b": ""} }, "labels", "invalid_request"},
		"label key empty":   {func(q *lifecycle.Request) { q.Labels = map[string]string{"": ""} }, "labels", "invalid_request"},
		"label value":       {func(q *lifecycle.Request) { q.Labels = map[string]string{"a": "b\nc"} }, "labels", "invalid_request"},
		"env name":          {func(q *lifecycle.Request) { q.Env = map[string]string{"1A": ""} }, "env", "invalid_request"},
		"env NUL":           {func(q *lifecycle.Request) { q.Env = map[string]string{"A": "\x00"} }, "env", "invalid_request"},
		"env too long":      {func(q *lifecycle.Request) { q.Env = map[string]string{"A": strings.Repeat("x", 128<<10)} }, "env", "invalid_request"},
		"env reserved":      {func(q *lifecycle.Request) { q.Env = map[string]string{"ANTHROPIC_BASE_URL": "http://x"} }, "env", "invalid_request"},
		"cpu negative":      {func(q *lifecycle.Request) { q.CPU = -1 }, "cpu", "invalid_request"},
		"cpu NaN":           {func(q *lifecycle.Request) { q.CPU = math.NaN() }, "cpu", "invalid_request"},
		"cpu huge":          {func(q *lifecycle.Request) { q.CPU = math.Inf(1) }, "cpu", "invalid_request"},
		"cpu unsupported":   {func(q *lifecycle.Request) { q.CPU = 0.5 }, "cpu", "unsupported"},
		"memory negative":   {func(q *lifecycle.Request) { q.MemoryMiB = -1 }, "memory_mib", "invalid_request"},
		"memory huge":       {func(q *lifecycle.Request) { q.MemoryMiB = math.MaxInt64 }, "memory_mib", "invalid_request"},
		"memory":            {func(q *lifecycle.Request) { q.MemoryMiB = 512 }, "memory_mib", "unsupported"},
		"pids few":          {func(q *lifecycle.Request) { q.PIDs = 1 }, "pids", "invalid_request"},
		"pids negative":     {func(q *lifecycle.Request) { q.PIDs = -1 }, "pids", "invalid_request"},
		"pids unsupported":  {func(q *lifecycle.Request) { q.PIDs = 100 }, "pids", "unsupported"},
		"files few":         {func(q *lifecycle.Request) { q.OpenFiles = 3 }, "open_files", "invalid_request"},
		"files huge":        {func(q *lifecycle.Request) { q.OpenFiles = math.MaxInt64 }, "open_files", "invalid_request"},
		"files unsupported": {func(q *lifecycle.Request) { q.OpenFiles = 100 }, "open_files", "unsupported"},
		"output negative":   {func(q *lifecycle.Request) { q.OutputKiBS = -1 }, "output_kib_s", "invalid_request"},
		"output huge":       {func(q *lifecycle.Request) { q.OutputKiBS = math.MaxInt64 }, "output_kib_s", "invalid_request"},
		"gpu":               {func(q *lifecycle.Request) { q.GPU = "1" }, "gpu", "no_gpu"},
		"gpu nonsense":      {func(q *lifecycle.Request) { q.GPU = "H100" }, "gpu", "invalid_request"},
		"gpu zero":          {func(q *lifecycle.Request) { q.GPU = "0" }, "gpu", "invalid_request"},
		"gpu many":          {func(q *lifecycle.Request) { q.GPU = "9" }, "gpu", "invalid_request"},
		"disk negative":     {func(q *lifecycle.Request) { q.DiskMiB = -5 }, "disk_mib", "invalid_request"},
		"disk tiny":         {func(q *lifecycle.Request) { q.DiskMiB = 1 }, "disk_mib", "invalid_request"},
		"disk huge":         {func(q *lifecycle.Request) { q.DiskMiB = math.MaxInt64 }, "disk_mib", "invalid_request"},
		"timeout negative":  {func(q *lifecycle.Request) { q.Timeout = -time.Second }, "timeout_s", "invalid_request"},
		"timeout tiny":      {func(q *lifecycle.Request) { q.Timeout = time.Millisecond }, "timeout_s", "invalid_request"},
		"timeout huge":      {func(q *lifecycle.Request) { q.Timeout = 8 * 24 * time.Hour }, "timeout_s", "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			req := lifecycle.Request{Account: r.account}
			c.change(&req)
			_, err := r.m.Create(t.Context(), req)
			wantProblem(t, err, sandbox.ErrInvalid, c.code, c.field)
		})
	}
	if all, _, err := r.m.Sandboxes(t.Context(), sandbox.Filter{}); err != nil || len(all) > 0 {
		t.Errorf("recorded all the same: %v, %v", all, err)
	}
	if _, err := r.m.Create(t.Context(), lifecycle.Request{Account: "nobody"}); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("for nobody: %v", err)
	}
}

func TestGoodRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	for name, req := range map[string]lifecycle.Request{
		"labels":  {Labels: map[string]string{"example.com/team-a_b": "ünï code", strings.Repeat("k", 63): ""}},
		"workdir": {Workdir: "/home/agent/my project"},
		"names":   {Name: "Größe 🦦", Volume: "0.a_b-c", Engine: "fake", Image: sandbox.Image{Source: "host"}, Network: sandbox.Network{Mode: "none"}},
		"limits":  {DiskMiB: 16, Timeout: 7 * 24 * time.Hour},
		"env":     {Env: map[string]string{"_a1": "x\ny", "EMPTY": ""}},
	} {
		req.Account = r.account
		sb, err := r.m.Create(t.Context(), req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if req.Volume == "" && sb.Spec.Volume.Name != strings.ToLower(string(sb.ID)) {
			t.Errorf("%s: the volume is called %s", name, sb.Spec.Volume.Name)
		}
		if _, err := r.m.WaitReady(within(t), r.account, sb.ID); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewNeedsEngines(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.open(t, nil)
	if caps := r.m.Capabilities(); len(caps) != 1 || caps[0].Name != "fake" {
		t.Errorf("capabilities are %+v", caps)
	}
	for name, cfg := range map[string]lifecycle.Config{
		"nothing": {}, "no engine": {Store: r.store}, "twice": {Store: r.store, Engines: []engine.Engine{r.eng, r.eng}},
	} {
		if _, err := lifecycle.New(cfg); err == nil {
			t.Errorf("%s: it was made", name)
		}
	}
}

func TestAfterTheEndOfServe(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	run := r.sh(t, sb, "exec sleep 600")
	r.stop()
	_, create := r.m.Create(t.Context(), lifecycle.Request{Account: r.account})
	_, connect := r.m.Guest(t.Context(), r.account, sb.ID)
	_, wait := r.m.WaitRun(t.Context(), r.account, run.ID)
	for _, err := range []error{create, connect, wait} {
		wantProblem(t, err, sandbox.ErrUnavailable, "shutting_down", "")
	}
	for _, err := range r.m.Output(t.Context(), run, 0) {
		wantProblem(t, err, sandbox.ErrUnavailable, "shutting_down", "")
	}
	if got := r.reach(t, sb.ID, sandbox.Running); got.Reason != "" {
		t.Errorf("it is %+v", got)
	}
}

func TestEvery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var at []time.Duration
		go lifecycle.Every(ctx, slog.New(slog.DiscardHandler), "test", time.Minute, func(context.Context) error {
			at = append(at, time.Since(began))
			return errors.New("comes again all the same")
		})
		time.Sleep(150 * time.Second) // of the bubble's clock
		cancel()
		synctest.Wait()
		if !slices.Equal(at, []time.Duration{0, time.Minute, 2 * time.Minute}) {
			t.Errorf("the passes were at %v", at)
		}
	})
}

func TestSpan(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0 s", 400 * time.Millisecond: "0 s", time.Second: "1 s", 90 * time.Second: "1 min 30 s", time.Hour: "1 h",
		25*time.Hour + 30*time.Minute: "1 d 1 h 30 min", 7 * 24 * time.Hour: "7 d",
	} {
		if got := lifecycle.Span(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{1: 1, 2: 2, 3: 4, 4: 8, 5: 10, 1000: 10} {
		if got := lifecycle.Backoff(failures, time.Second, 10*time.Second); got != want*time.Second {
			t.Errorf("after %d failures: %v", failures, got)
		}
	}
}
