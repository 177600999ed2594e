// Package e2e tests the real binary: real gVisor, the real Claude Code CLI, a real browser. Only the model is a stand-in.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

const adminKey = "slk_of-the-end-to-end-tests"

// patience bounds one step. The machine may be slow and loaded; only what is broken takes so long.
const patience = 2 * time.Minute

// server is a running `sandlot serve`.
type server struct {
	*client.Client
	url    string
	signin string // the link that it printed
	data   string
	cmd    *exec.Cmd
	log    *lockedBuffer
	exited chan struct{}
}

// options say how a server is started.
type options struct {
	data string   // default: a fresh directory
	env  []string // added
	args []string // added; default: --demo-model
	uid  uint32   // default: whoever runs the tests
}

// binary is the program under test: built by test/run.sh, or now.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("SANDLOT_TEST_BIN"); path != "" {
		return path, nil
	}
	cmd := exec.Command("make", "--no-print-directory", "build")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w: %s", err, out)
	}
	return filepath.Abs("../../bin/sandlot")
})

// toolkit is the directory of the CLI that all tests share.
func toolkit() string {
	if dir := os.Getenv("SANDLOT_TEST_TOOLKIT"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "sandlot-test", "toolkit")
}

// dataDir is a directory for a server, closed to others as a home often is; it is removed at the end, which fails if a mount is left in it.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandlot-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("a server's data can't be removed: %v", err)
		}
	})
	return dir
}

var signinLink = regexp.MustCompile(`(http://[^\s/]+)/signin/\S+`)

// start starts a server and returns when it is ready.
func start(t *testing.T, o options) *server {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{data: o.data, log: &lockedBuffer{}, exited: make(chan struct{})}
	if s.data == "" {
		s.data = dataDir(t)
	}
	if o.args == nil {
		o.args = []string{"--demo-model"}
	}
	s.cmd = exec.Command(path, append([]string{"serve", "--listen=127.0.0.1:0", "--data=" + s.data, "--toolkit=" + toolkit()}, o.args...)...)
	s.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.data, "SANDLOT_ADMIN_KEY=" + adminKey,
		"SANDLOT_POOL=0"}, o.env...) // what lies ready would be in the way of those who count what is left
	s.cmd.Stderr = s.log
	if o.uid != 0 {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: o.uid, Gid: o.uid}}
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found := make(chan []string, 1)
	go func() {
		defer close(s.exited)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if m := signinLink.FindStringSubmatch(lines.Text()); m != nil {
				found <- m
			}
			fmt.Fprintln(s.log, lines.Text())
		}
		_ = s.cmd.Wait() // how it ended shows in the log
	}()
	t.Cleanup(func() {
		s.stop(t)
		if t.Failed() {
			t.Logf("the server said:\n%s", s.log.String())
		}
	})
	select {
	case m := <-found:
		s.signin, s.url = m[0], m[1]
	case <-s.exited:
		t.Fatalf("the server ended before it was ready:\n%s", s.log.String())
	case <-time.After(patience):
		t.Fatalf("the server is not ready:\n%s", s.log.String())
	}
	s.Client = client.New(s.url, adminKey)
	if err := s.Ready(within(t)); err != nil {
		t.Fatalf("not ready: %v", err)
	}
	return s
}

// stop ends the sandboxes and the server, as a person would.
func (s *server) stop(t *testing.T) {
	t.Helper()
	select {
	case <-s.exited:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := s.Sandboxes(ctx, client.Filter{})
	if err != nil {
		t.Errorf("listing sandboxes at the end: %v", err)
	}
	for _, sb := range list.Sandboxes {
		if sb.State == "terminated" || sb.State == "error" {
			continue
		}
		if _, err := s.Terminate(ctx, sb.ID); err != nil && client.Code(err) != "already_terminated" {
			t.Errorf("terminating %s at the end: %v", sb.ID, err)
		}
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	select {
	case <-s.exited:
	case <-ctx.Done():
		t.Error("the server did not end when asked")
		_ = s.cmd.Process.Kill() // so that nothing is left
		<-s.exited
	}
}

// kill ends the server as a crash would.
func (s *server) kill(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.exited
}

// call asks the server for what the client has no method for. in and out may be nil.
func (s *server) call(t *testing.T, method, path string, in, out any) error {
	t.Helper()
	res, err := s.send(t, method, path, "application/json", in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// send sends a request and returns the answer, whose body the caller closes; a refusal is an error that wraps *api.Problem. in is a reader, or
// becomes JSON.
func (s *server) send(t *testing.T, method, path, accept string, in any) (*http.Response, error) {
	t.Helper()
	body, ok := in.(io.Reader)
	if !ok && in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(within(t), method, s.url+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+adminKey)
	req.Header.Set("Accept", accept)
	if in != nil && !ok {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := s.HTTP.Do(req)
	if err != nil || res.StatusCode/100 == 2 {
		return res, err
	}
	defer res.Body.Close()
	p := &api.Problem{Status: res.StatusCode}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(p); err != nil {
		return nil, fmt.Errorf("%s %s: %s, without a problem: %w", method, path, res.Status, err)
	}
	return nil, fmt.Errorf("%s %s: %w", method, path, p)
}

// within returns a context for one step.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// runtimes counts gVisor's processes that work for a data directory.
func runtimes(t *testing.T, data string) int {
	t.Helper()
	return len(runtimePIDs(t, data))
}

func runtimePIDs(t *testing.T, data string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		cmdline, err := os.ReadFile(f)
		if err == nil && bytes.HasPrefix(cmdline, []byte("runsc-")) && bytes.Contains(cmdline, []byte(data+"/")) {
			pid, err := strconv.Atoi(strings.Split(f, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// wantNothingLeft checks that a server's sandboxes left no process and no mount.
func wantNothingLeft(t *testing.T, data string) {
	t.Helper()
	if n := runtimes(t, data); n > 0 {
		t.Errorf("%d of gVisor's processes are left", n)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), data) {
		t.Errorf("a mount is left below %s:\n%s", data, mounts)
	}
	left, err := os.ReadDir(filepath.Join(data, "local", "sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("directories of sandboxes are left: %v", left)
	}
}

func readAll(t *testing.T, r io.ReadCloser, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// lockedBuffer is a buffer that a process writes while a test reads.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
