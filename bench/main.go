// Command bench measures Sandlot against gVisor's own command line and against Claude Code started without any sandbox, side by side in
// one run, and prints medians and their ratios. Compare ratios only: figures of different machines say nothing about each other.
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
	"text/tabwriter"
	"time"
)

func main() {
	rounds := flag.Int("n", 15, "rounds; each does everything once, in turn")
	bin := flag.String("bin", "bin/sandlot", "the program to measure")
	toolkit := flag.String("toolkit", os.Getenv("SANDLOT_TEST_TOOLKIT"), "directory of the Claude Code CLI (default: fetched anew)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *rounds, *bin, *toolkit); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// measure is one figure of each side, by round.
type measure struct {
	name         string
	ours, theirs string // what each side does
	a, b         []time.Duration
}

func run(ctx context.Context, rounds int, bin, toolkit string) (err error) {
	dir, err := os.MkdirTemp("", "sandlot-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if toolkit == "" {
		toolkit = filepath.Join(dir, "toolkit")
	}
	s, err := startServer(ctx, bin, filepath.Join(dir, "data"), toolkit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	raw, err := newRaw(ctx, s, bin, filepath.Join(dir, "raw"), toolkit)
	if err != nil {
		return fmt.Errorf("preparing gVisor's side: %w", err)
	}
	native, err := newNative(dir, toolkit)
	if err != nil {
		return fmt.Errorf("preparing the native side: %w", err)
	}
	defer native.close()

	start := measure{name: "create → first command", ours: "POST /sandbox, exec true", theirs: "runsc run -detach, runsc exec true"}
	exec := measure{name: "exec true", ours: "POST …/exec?wait=true", theirs: "runsc exec"}
	prompt := measure{name: "prompt → system/init", ours: "POST …/claude, new session", theirs: "claude -p, no sandbox"}
	for i := range rounds + 1 {
		fmt.Fprintf(os.Stderr, "\rround %d of %d ", i, rounds)
		if err := round(ctx, s, raw, native, i, &start, &exec, &prompt); err != nil {
			return err
		}
	}
	fmt.Fprint(os.Stderr, "\r                    \r")
	return report(rounds, start, exec, prompt)
}

// round does everything once, our side and the other in turn. The first round warms up and does not count.
func round(ctx context.Context, s *server, raw *raw, native *native, i int, start, exec, prompt *measure) error {
	add := func(m *measure, a, b time.Duration) {
		if i > 0 {
			m.a, m.b = append(m.a, a), append(m.b, b)
		}
	}
	var id, container string
	a, err := timed(func() (err error) { id, err = s.createAndExec(ctx); return err })
	if err != nil {
		return err
	}
	b, err := timed(func() (err error) { container, err = raw.runAndExec(ctx, i); return err })
	if err != nil {
		return err
	}
	add(start, a, b)
	for range 3 {
		a, err := timed(func() error { return s.exec(ctx, id) })
		if err != nil {
			return err
		}
		b, err := timed(func() error { return raw.exec(ctx, container) })
		if err != nil {
			return err
		}
		add(exec, a, b)
	}
	a, err = s.firstLine(ctx, id)
	if err != nil {
		return err
	}
	b, err = native.firstLine(ctx)
	if err != nil {
		return err
	}
	add(prompt, a, b)
	return errors.Join(raw.remove(ctx, container), s.terminate(ctx, id))
}

func timed(f func() error) (time.Duration, error) {
	begin := time.Now()
	err := f()
	return time.Since(begin), err
}

func report(rounds int, ms ...measure) error {
	fmt.Printf("medians of %d rounds, in milliseconds; a ratio below 1 is quicker than the other side\n\n", rounds)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tSandlot\tother side\tratio\tsides")
	for _, m := range ms {
		a, b := median(m.a), median(m.b)
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.2f\t%s / %s\n", m.name, ms1(a), ms1(b), float64(a)/float64(b), m.ours, m.theirs)
	}
	return w.Flush()
}

func ms1(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(ds []time.Duration) time.Duration {
	ds = slices.Sorted(slices.Values(ds))
	return ds[len(ds)/2]
}
