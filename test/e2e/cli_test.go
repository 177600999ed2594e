package e2e

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
)

// sandlot runs the binary with arguments and returns what it prints.
func sandlot(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(within(t), path, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestDoctorStartsASandbox(t *testing.T) {
	t.Parallel()
	data := dataDir(t)
	out, err := sandlot(t, nil, "doctor", "--data="+data, "--toolkit="+toolkit())
	if err != nil || !strings.Contains(out, "started, ran a command and was removed") {
		t.Errorf("%v\n%s", err, out)
	}
	if left, err := os.ReadDir(data); err != nil || len(left) > 0 {
		t.Errorf("left in the data directory: %v, %v", left, err)
	}
}

func TestVersionAndBadFlags(t *testing.T) {
	t.Parallel()
	if out, err := sandlot(t, nil, "version"); err != nil || !strings.HasPrefix(out, "sandlot ") {
		t.Errorf("%v, %s", err, out)
	}
	for _, c := range []struct {
		env  string
		args []string
		want string
	}{
		{"HOME=/nonexistent", []string{"serve", "--listen=nonsense", "--data=" + dataDir(t)}, "--listen"},
		{"SANDLOT_EGRESS_PRIVATE=10.0.0.0/8,10.1", []string{"serve", "--data=" + dataDir(t)}, `--egress-private: "10.1"`},
		{"HOME=/nonexistent", []string{"serve", "--private-registries=http://registry", "--data=" + dataDir(t)}, "--private-registries"},
		{"SANDLOT_DEMO_MODEL=perhaps", []string{"serve", "--data=" + dataDir(t)}, "SANDLOT_DEMO_MODEL"},
		{"SANDLOT_ADMIN_KEY=short", []string{"serve", "--data=" + dataDir(t)}, "SANDLOT_ADMIN_KEY"},
		{"ANTHROPIC_BASE_URL=ftp://x", []string{"serve", "--data=" + dataDir(t)}, "ANTHROPIC_BASE_URL"},
		{"HOME=", []string{"serve"}, "--data"},
		{"HOME=/nonexistent", []string{"serve", "--database=mysql:x", "--data=" + dataDir(t)}, "mysql"},
		{"HOME=/nonexistent", []string{"signin", "--data=" + dataDir(t)}, "no server"},
		{"HOME=/nonexistent", []string{"frobnicate"}, "frobnicate"},
	} {
		if out, err := sandlot(t, []string{c.env}, c.args...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s %v: %v, %s", c.env, c.args, err, out)
		}
	}
}

// TestSignInLinks opens the printed link and one of `sandlot signin`, each once.
func TestSignInLinks(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	other, err := sandlot(t, nil, "signin", "--data="+s.data)
	if err != nil {
		t.Fatalf("%v: %s", err, other)
	}
	for _, link := range []string{s.signin, strings.TrimSpace(other)} {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		browser := &http.Client{Jar: jar}
		if _, status := get(t, browser, s.url+"/me"); status != http.StatusUnauthorized {
			t.Errorf("before signing in: %d", status)
		}
		if page, status := get(t, browser, link); status != http.StatusOK || !strings.Contains(page, "<!doctype html>") {
			t.Errorf("the link leads to %d %.80s", status, page)
		}
		if me, status := get(t, browser, s.url+"/me"); status != http.StatusOK || !strings.Contains(me, "account") {
			t.Errorf("signed in: %d %s", status, me)
		}
		if _, status := get(t, &http.Client{}, link); status != http.StatusOK { // the sign-in page, with a reason
			t.Errorf("the used link leads to %d", status)
		}
	}
	if _, err := sandlot(t, nil, "serve", "--listen=127.0.0.1:0", "--data="+s.data, "--toolkit="+toolkit()); err == nil {
		t.Error("a second server started on the same data directory")
	}
}

func get(t *testing.T, c *http.Client, url string) (string, int) {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html,*/*")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body), res.StatusCode
}

// TestMainJobRootless does the main job with a server that an ordinary user started.
func TestMainJobRootless(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can become another user; all other tests here ran rootless")
	}
	const uid = 54322
	dir := dataDir(t)
	if err := os.Chmod(dir, 0o755); err != nil { // that user must reach what is below
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(data, uid, uid); err != nil {
		t.Fatal(err)
	}
	// The shared toolkit may lie where another user can't reach.
	if out, err := exec.CommandContext(within(t), "cp", "-a", toolkit(), filepath.Join(dir, "toolkit")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	o := options{data: data, uid: uid, args: []string{"--demo-model", "--toolkit=" + filepath.Join(dir, "toolkit")}}
	s := start(t, o)
	sb := create(t, s, api.CreateSandbox{})
	wantMainJob(t, prompt(t, s, sb.ID, api.Prompt{Prompt: "Write a small script and run it."}))

	// The next server has a user namespace of its own, and finds the sandbox all the same.
	s.kill(t)
	s = start(t, o)
	if run, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"cat", "hello.sh"}}); err != nil || run.State != "exited" || run.Stdout == "" {
		t.Errorf("exec after the server was killed: %+v, %v", run, err)
	}
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, data)
}
