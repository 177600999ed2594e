// Command bench measures Sandlot against gVisor's own command line on the same root, and against Claude Code started without any sandbox,
// side by side in one run, and prints medians and their ratios. Compare ratios only: figures of different machines, or of different runs
// on one machine, say nothing about each other. It needs root, because gVisor's own command line does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// options are what the command line says.
type options struct {
	rounds   int           // of what is done one after the other
	batch    int           // how many are started together, or one after a fixed time
	interval time.Duration // that time
	only     []string
	bin      string
	toolkit  string
	json     bool
}

// usual is what is measured unless asked otherwise; groups is what can be.
var (
	usual  = []string{"start", "exec", "files", "reads", "prompt", "streams"}
	groups = append(slices.Clone(usual), "child")
)

func main() {
	var o options
	flag.IntVar(&o.rounds, "n", 10, "rounds: how often each thing is done one after the other (exec and child: at least 30 times; files, reads and prompt: a third)")
	flag.IntVar(&o.batch, "batch", 4, "how many sandboxes the modes staggered and burst start")
	flag.DurationVar(&o.interval, "interval", 200*time.Millisecond, "time between two starts of the mode staggered")
	only := flag.String("only", strings.Join(usual, ","), "what to measure; child too: containers that join a warm sandbox")
	flag.StringVar(&o.bin, "bin", "bin/sandlot", "the program to measure")
	flag.StringVar(&o.toolkit, "toolkit", os.Getenv("SANDLOT_TEST_TOOLKIT"), "directory of the Claude Code CLI (default: fetched anew)")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()
	o.only = strings.Split(*only, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o options) check() error {
	for _, name := range o.only {
		if !slices.Contains(groups, name) {
			return fmt.Errorf("-only: there is no %q; there are %s", name, strings.Join(groups, ", "))
		}
	}
	if o.rounds < 1 || o.batch < 1 || o.interval < 0 {
		return errors.New("-n and -batch must be above 0, -interval not below")
	}
	if os.Geteuid() != 0 {
		return errors.New("gVisor's own command line, which is the other side, needs root")
	}
	return nil
}

// bench is all that a run of measurements works with.
type bench struct {
	options
	dir    string
	images *images
	cold   *server // makes every sandbox when it is asked for
	pooled *server // has some started ahead
}

func run(ctx context.Context, o options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	b := &bench{options: o}
	if b.dir, err = os.MkdirTemp("", "sandlot-bench-"); err != nil {
		return err
	}
	defer func() {
		unpin(b.dir)
		err = errors.Join(err, os.RemoveAll(b.dir))
	}()
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.toolkit == "" {
		b.toolkit = filepath.Join(b.dir, "toolkit")
	}
	b.images = newImages()
	defer b.images.close()
	for _, s := range []struct {
		to   **server
		name string
		pool int
	}{{&b.cold, "cold", 0}, {&b.pooled, "pooled", pooled}} {
		if *s.to, err = startServer(ctx, b, filepath.Join(b.dir, s.name), s.pool); err != nil {
			return fmt.Errorf("starting the %s server: %w", s.name, err)
		}
		defer func() { err = errors.Join(err, (*s.to).stop()) }()
	}
	var all report
	for _, g := range []struct {
		name    string
		measure func(context.Context) ([]*measure, error)
	}{{"start", b.starts}, {"exec", b.execs}, {"files", b.files}, {"reads", b.reads}, {"prompt", b.prompts}, {"streams", b.streams}, {"child", b.children}} {
		if !slices.Contains(o.only, g.name) {
			continue
		}
		ms, err := g.measure(ctx)
		if err != nil {
			return fmt.Errorf("measuring %s: %w", g.name, err)
		}
		all = append(all, ms...)
	}
	if o.json {
		return all.json(os.Stdout)
	}
	return all.table(os.Stdout)
}

// progress tells a person who waits what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// execs measures a command that does nothing, in sandboxes that run already.
func (b *bench) execs(ctx context.Context) (_ []*measure, err error) {
	progress("exec")
	m := newMeasure("exec true", "runsc exec", "POST …/exec?wait=true")
	id, err := b.cold.create(ctx, "", "")
	if err != nil {
		return nil, err
	}
	raw, err := newRaw(ctx, b, "", "exec")
	if err != nil {
		return nil, err
	}
	if err := raw.run(ctx, "exec"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, raw.remove(ctx, "exec"), b.cold.terminate(ctx, id)) }()
	for i := range max(30, 3*b.rounds) + 1 {
		ours, err := timed(func() error { return b.cold.exec(ctx, id, "/bin/true") })
		if err != nil {
			return nil, err
		}
		theirs, err := timed(func() error { return raw.exec(ctx, "exec", "/bin/true") })
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first warms up
			m.add("POST …/exec?wait=true", ours)
			m.add("runsc exec", theirs)
		}
	}
	return []*measure{m}, nil
}

// prompts measures how long Claude Code takes to its first line.
func (b *bench) prompts(ctx context.Context) (_ []*measure, err error) {
	progress("prompt")
	native, err := newNative(b.dir, b.toolkit)
	if err != nil {
		return nil, err
	}
	defer native.close()
	m := newMeasure("prompt → system/init", "claude -p, no sandbox", "POST …/claude, new session")
	id, err := b.cold.create(ctx, "", "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.cold.terminate(ctx, id)) }()
	for i := range max(1, b.rounds/3) + 1 {
		ours, err := b.cold.firstLine(ctx, id)
		if err != nil {
			return nil, err
		}
		theirs, err := native.firstLine(ctx)
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first warms up
			m.add("POST …/claude, new session", ours)
			m.add("claude -p, no sandbox", theirs)
		}
	}
	return []*measure{m}, nil
}

func timed(f func() error) (time.Duration, error) {
	begin := time.Now()
	err := f()
	return time.Since(begin), err
}
