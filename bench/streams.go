package main

import (
	"bufio"

	"context"
	"errors"
	"fmt"
	"io"

	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

const (
	streamFile  = "/var/tmp/output" // what is written to stdout
	streamMiB   = 56                // of it: less than a journal holds, for who reads slower than that is written has a gap
	streamTimes = 1                 // in a row
	fileMiB     = 256
	lineEvery   = 10 * time.Millisecond
	viewerCount = 500
	runCount    = 200
)

// streams measures output: how much comes through, how late a line is, and what viewers and runs cost.
func (b *bench) streams(ctx context.Context) (_ []*measure, err error) {
	progress("streams: preparing")
	id, err := b.cold.create(ctx, "", "")
	if err != nil {
		return nil, err
	}
	plain, err := newRaw(ctx, b, "", "streams")
	if err != nil {
		return nil, err
	}
	if err := plain.run(ctx, "streams"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, plain.remove(ctx, "streams"), b.cold.terminate(ctx, id)) }()
	fill := script("yes 'a line of output as programs write it, of some length' | head -c %d >%s", streamMiB<<20, streamFile)
	if err := errors.Join(b.cold.exec(ctx, id, fill...), plain.exec(ctx, "streams", fill...)); err != nil {
		return nil, err
	}
	var all []*measure
	for _, part := range []func(context.Context, string, *raw) (*measure, error){b.viewers, b.concurrent, b.delay, b.throughput, b.wholeFile} {
		m, err := part(ctx, id, plain)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// throughput measures how long the same bytes take through a plain pipe and through the API.
func (b *bench) throughput(ctx context.Context, id string, raw *raw) (*measure, error) {
	const plain, events, octets = "runsc exec | pipe", "POST …/exec, events", "GET …/output?follow, bytes"
	m := newMeasure(fmt.Sprintf("%d MiB of output", streamMiB*streamTimes), plain, events, octets)
	argv := slices.Concat([]string{"/bin/cat"}, slices.Repeat([]string{streamFile}, streamTimes))
	const size = streamMiB << 20 * streamTimes
	for round := range max(3, b.rounds/2) + 1 {
		progress("streams: throughput, round %d", round)
		for side, do := range map[string]func() (int64, error){
			plain:  func() (int64, error) { return raw.pipe(ctx, "streams", argv...) },
			events: func() (int64, error) { return b.cold.execEvents(ctx, id, argv) },
			octets: func() (int64, error) { return b.cold.execBytes(ctx, id, argv) },
		} {
			took, err := timed(func() error {
				n, err := do()
				if err == nil && n != size {
					err = fmt.Errorf("%s: %d bytes came, not %d", side, n, int64(size))
				}
				return err
			})
			if err != nil {
				return nil, err
			}
			if round > 0 {
				m.add(side, took)
			}
		}
	}
	return m, nil
}

// pipe runs a program with a pipe as its stdout and returns how much came out.
func (r *raw) pipe(ctx context.Context, id string, argv ...string) (n int64, err error) {
	out, in, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, r.runsc, slices.Concat(r.globals(), []string{"exec", id}, argv)...)
	cmd.Stdout = in
	if err := cmd.Start(); err != nil {
		return 0, errors.Join(err, in.Close())
	}
	if err := in.Close(); err != nil {
		return 0, err
	}
	n, err = io.Copy(io.Discard, bufio.NewReaderSize(onlyReader{out}, 64<<10))
	return n, errors.Join(err, cmd.Wait())
}

// onlyReader hides a file's other methods, so that it is read as a program reads a pipe.
type onlyReader struct{ io.Reader }

// execEvents runs a program and reads its output as events, decoding each.
func (s *server) execEvents(ctx context.Context, id string, argv []string) (n int64, err error) {
	for e, err := range s.Exec(ctx, id, api.Exec{Argv: argv, User: "root"}) {
		if err != nil {
			return n, err
		}
		if e.Gap != nil {
			return n, fmt.Errorf("output is missing: %+v", e.Gap)
		}
		n += int64(len(e.Data))
	}
	return n, nil
}

// execBytes runs a program and reads its output as bytes.
func (s *server) execBytes(ctx context.Context, id string, argv []string) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run := ""
	for e, err := range s.Exec(ctx, id, api.Exec{Argv: argv, User: "root"}) {
		if err != nil {
			return 0, err
		}
		if run = e.Start.ID; run != "" {
			break
		}
	}
	var n counter
	o, err := s.ReadOutput(ctx, id, run, client.RunOutput{Follow: true}, &n)
	if err == nil && o.Missing > 0 {
		err = fmt.Errorf("%d bytes of output are missing", o.Missing)
	}
	return int64(n), err
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// delay measures how much later than through a pipe a line arrives that was just written. Both sides tell the time in the line.
func (b *bench) delay(ctx context.Context, id string, raw *raw) (*measure, error) {
	const plain, events = "runsc exec | pipe", "POST …/exec, events"
	m := newMeasure("a line, from write to read", plain, events)
	lines := 100 * max(1, b.rounds/2)
	argv := script("i=0; while [ $i -lt %d ]; do /bin/date +%%s%%N; sleep %g; i=$((i+1)); done", lines, lineEvery.Seconds())
	late := func(text string, now time.Time) (time.Duration, error) {
		ns, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		return now.Sub(time.Unix(0, ns)), err
	}
	progress("streams: delay")
	var of []time.Duration
	for e, err := range b.cold.Exec(ctx, id, api.Exec{Argv: argv, User: "root"}) {
		now := time.Now()
		if err != nil {
			return nil, err
		}
		if e.Data == nil {
			continue
		}
		d, err := late(string(e.Data), now)
		if err != nil {
			return nil, fmt.Errorf("a line came in pieces, or two at once: %w", err)
		}
		of = append(of, d)
	}
	m.add(events, of...)
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, raw.runsc, slices.Concat(raw.globals(), []string{"exec", "streams"}, argv)...)
	cmd.Stdout = in
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	if err := in.Close(); err != nil {
		return nil, err
	}
	for read := bufio.NewScanner(out); read.Scan(); {
		d, err := late(read.Text(), time.Now())
		if err != nil {
			return nil, err
		}
		m.add(plain, d)
	}
	return m, cmd.Wait()
}

// rss is the resident memory of the server's process, in bytes.
func (s *server) rss() (int64, error) { return rssOf(s.cmd.Process.Pid) }

func rssOf(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no memory", pid)
}

// viewers measures how late a line is for the last of many viewers of one run, and what each costs the server.
func (b *bench) viewers(ctx context.Context, id string, _ *raw) (*measure, error) {
	progress("streams: %d viewers", viewerCount)
	s := b.cold
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gate := filepath.Join("/var/tmp", "gate")
	run := ""
	for e, err := range s.Exec(ctx, id, api.Exec{User: "root", Argv: script("rm -f %[1]s; echo on; until [ -e %[1]s ]; do sleep 0.05; done; date +%%s%%N", gate)}) {
		if err != nil {
			return nil, err
		}
		if e.Start != nil {
			run = e.Start.ID
		}
		if e.Data != nil {
			break
		}
	}
	before, err := s.rss()
	if err != nil {
		return nil, err
	}
	m := newMeasure(fmt.Sprintf("a line, from write to each of %d viewers", viewerCount), "GET …/events")
	var ready, all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	ready.Add(viewerCount)
	for range viewerCount {
		all.Go(func() {
			first := sync.OnceFunc(ready.Done)
			defer first()
			for e, err := range s.RunEvents(ctx, id, run, 0) {
				now := time.Now()
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				}
				if text := string(e.Data); strings.HasPrefix(text, "1") {
					ns, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
					errs = append(errs, err)
					m.add("GET …/events", now.Sub(time.Unix(0, ns)))
				}
				mu.Unlock()
				if e.Data != nil {
					first()
				}
			}
		})
	}
	ready.Wait()
	during, err := s.rss()
	if err != nil {
		return nil, err
	}
	m.note = fmt.Sprintf("%d KiB of memory of the server per viewer", (during-before)/viewerCount>>10)
	if err := s.exec(ctx, id, "/bin/touch", gate); err != nil {
		return nil, err
	}
	all.Wait()
	return m, errors.Join(errs...)
}

// concurrent measures a command that does nothing beside many runs that write a line now and then, and what each of these costs the server.
func (b *bench) concurrent(ctx context.Context, _ string, _ *raw) (_ *measure, err error) {
	progress("streams: %d runs", runCount)
	s := b.cold
	id, err := s.create(ctx, "", "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.terminate(ctx, id)) }()
	const alone, beside = "with nothing else", "beside the runs"
	m := newMeasure(fmt.Sprintf("exec true, %d runs", runCount), alone, beside)
	trues := func(side string) error {
		for range max(30, 3*b.rounds) {
			took, err := timed(func() error { return s.exec(ctx, id, "/bin/true") })
			if err != nil {
				return err
			}
			m.add(side, took)
		}
		return nil
	}
	if err := trues(alone); err != nil {
		return nil, err
	}
	before, err := s.rss()
	if err != nil {
		return nil, err
	}
	for range runCount {
		leave, cancel := context.WithCancel(ctx)
		for e, err := range s.Exec(leave, id, api.Exec{User: "root", Argv: script("while :; do echo on; sleep 20; done")}) {
			if err != nil {
				cancel()
				return nil, err
			}
			if e.Data != nil {
				break
			}
		}
		cancel()
	}
	during, err := s.rss()
	if err != nil {
		return nil, err
	}
	m.note = fmt.Sprintf("%d KiB of memory of the server per run", (during-before)/runCount>>10)
	return m, trues(beside)
}

// wholeFile measures reading a large file out of a sandbox.
func (b *bench) wholeFile(ctx context.Context, id string, raw *raw) (*measure, error) {
	const plain, files = "runsc exec cat | pipe", "GET …/files"
	m := newMeasure(fmt.Sprintf("a file of %d MiB", fileMiB), plain, files)
	const name, size = "/var/tmp/large", int64(fileMiB) << 20
	fill := script("head -c %d /dev/zero >%s", size, name)
	if err := errors.Join(b.cold.exec(ctx, id, fill...), raw.exec(ctx, "streams", fill...)); err != nil {
		return nil, err
	}
	for round := range max(2, b.rounds/3) + 1 {
		progress("streams: file, round %d", round)
		for side, do := range map[string]func() (int64, error){
			plain: func() (int64, error) { return raw.pipe(ctx, "streams", "/bin/cat", name) },
			files: func() (int64, error) {
				r, err := b.cold.ReadFile(ctx, id, name)
				if err != nil {
					return 0, err
				}
				defer r.Close()
				return io.Copy(io.Discard, r)
			},
		} {
			took, err := timed(func() error {
				n, err := do()
				if err == nil && n != size {
					err = fmt.Errorf("%s: %d bytes came, not %d", side, n, size)
				}
				return err
			})
			if err != nil {
				return nil, err
			}
			if round > 0 {
				m.add(side, took)
			}
		}
	}
	return m, nil
}
