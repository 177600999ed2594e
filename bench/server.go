package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// server is our side: the real server, spoken to over HTTP.
type server struct {
	*client.Client
	cmd  *exec.Cmd
	data string
	pool int

	mu      sync.Mutex
	stirred bool // since the last rest it has made sandboxes
}

var link = regexp.MustCompile(`(http://[^\s/]+)/signin/`)

func startServer(ctx context.Context, b *bench, data string, pool int) (*server, error) {
	const key = "slk_of-the-measurements"
	cmd := exec.CommandContext(context.WithoutCancel(ctx), b.bin, "serve", "--listen=127.0.0.1:0", "--demo-model", "--data="+data, "--toolkit="+b.toolkit,
		fmt.Sprintf("--pool=%d", pool), "--private-registries="+b.images.host)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "SANDLOT_ADMIN_KEY=" + key}
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := link.FindStringSubmatch(lines.Text()); m != nil {
			go func() { _, _ = io.Copy(io.Discard, out) }() // until the process ends
			s := &server{Client: client.New(m[1], key), cmd: cmd, data: data, pool: pool, stirred: true}
			return s, s.Ready(ctx)
		}
	}
	return nil, fmt.Errorf("the server ended: %w\n%s", cmd.Wait(), log.String())
}

func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.cmd.Wait()
}

// create makes a sandbox; image "" is host, volume "" a fresh one.
func (s *server) create(ctx context.Context, image, volume string) (string, error) {
	s.mu.Lock()
	s.stirred = true
	s.mu.Unlock()
	in := api.CreateSandbox{Volume: volume}
	if image != "" {
		in.Image = &api.Image{Registry: image}
	}
	sb, err := s.Create(ctx, in)
	return sb.ID, err
}

// exec runs a program as root, as gVisor's command line does, to its end.
func (s *server) exec(ctx context.Context, id string, argv ...string) error {
	run, err := s.ExecWait(ctx, id, api.Exec{Argv: argv, User: "root"})
	if err == nil && (run.ExitCode == nil || *run.ExitCode != 0) {
		err = fmt.Errorf("%q ended as %+v", argv, run)
	}
	return err
}

func (s *server) terminate(ctx context.Context, id string) error {
	_, err := s.Terminate(context.WithoutCancel(ctx), id)
	return err
}

// rest waits until the server starts nothing ahead any more, so that what is measured next is not disturbed by that.
func (s *server) rest(ctx context.Context) error {
	const (
		still = 600 * time.Millisecond // more than it waits itself after somebody has come
		most  = 30 * time.Second
	)
	s.mu.Lock()
	stirred := s.stirred
	s.stirred = false
	s.mu.Unlock()
	if s.pool == 0 || !stirred {
		return nil
	}
	sandboxes := filepath.Join(s.data, "local", "sandboxes")
	last, since := -1, time.Now()
	for late := time.Now().Add(most); ; {
		begun, err := filepath.Glob(filepath.Join(sandboxes, "pool-*"))
		if err != nil {
			return err
		}
		ready, err := filepath.Glob(filepath.Join(sandboxes, "pool-*", "ready"))
		if err != nil {
			return err
		}
		if len(ready) != last || len(begun) != len(ready) {
			last, since = len(ready), time.Now()
		}
		if last >= s.pool && time.Since(since) > still {
			return nil
		}
		if time.Now().After(late) {
			return fmt.Errorf("of %d sandboxes that were begun ahead, %d are ready after %v", len(begun), len(ready), most)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// prompt is what both sides ask; only the first line of the answer counts.
const prompt = "Say hello."

// firstLine sends a prompt, measures until the CLI's first line, and reads the rest, so that nothing goes on in the background.
func (s *server) firstLine(ctx context.Context, id string) (time.Duration, error) {
	begin, first := time.Now(), time.Duration(0)
	for e, err := range s.Prompt(ctx, id, api.Prompt{Prompt: prompt}) {
		if err != nil {
			return 0, err
		}
		if first == 0 && strings.Contains(e.Data, `"subtype":"init"`) {
			first = time.Since(begin)
		}
	}
	if first == 0 {
		return 0, errors.New("no system/init line came")
	}
	return first, nil
}
