package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
)

// TestEgress has programs with no settings of their own reach a server through the proxy, as far as the sandbox's policy of the moment allows.
func TestEgress(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"curl", "git"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("SANDLOT_MUST_RUN") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	// Not 127.0.0.1: programs ask no proxy for that, and it is the sandbox's own.
	const address = "127.0.0.2"
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address+":0")
	must(t, err)
	repo := makeRepository(t)
	cut := make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("/repo.git/", http.StripPrefix("/repo.git/", http.FileServer(http.Dir(repo))))
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "a page") })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(w, "it begins")
		_ = http.NewResponseController(w).Flush() // if it fails, the reader waits in vain
		<-r.Context().Done()
		close(cut)
	})
	upstream := httptest.NewUnstartedServer(mux)
	_ = upstream.Listener.Close() // for the other one
	upstream.Listener = listener
	upstream.Start()
	t.Cleanup(upstream.Close)
	host := listener.Addr().String()
	_, port, err := net.SplitHostPort(host)
	must(t, err)

	s := start(t, options{args: []string{"--demo-model", "--egress-private=" + address}})
	sb := create(t, s, api.CreateSandbox{Network: &api.Network{Mode: "none"}})
	policy := func(n api.Network) {
		t.Helper()
		var got api.Sandbox
		if err := s.call(t, "PATCH", "/sandbox/"+sb.ID, api.UpdateSandbox{Network: &n}, &got); err != nil || got.Network.Mode != n.Mode {
			t.Fatalf("the policy is %+v, %v", got.Network, err)
		}
	}
	fetch := func(url string) (string, int) {
		t.Helper()
		run, err := s.ExecWait(within(t), sb.ID, api.Exec{Argv: []string{"curl", "-sS", "-f", "-m", "20", url}})
		if err != nil || run.ExitCode == nil {
			t.Fatalf("curl: %+v, %v", run, err)
		}
		return run.Stdout + run.Stderr, *run.ExitCode
	}
	wantRefused := func(when, url string) {
		t.Helper()
		if out, code := fetch(url); code == 0 || strings.Contains(out, "a page") || !strings.Contains(out, "403") {
			t.Errorf("%s: %s gives %d %q", when, url, code, out)
		}
	}
	page := "http://" + host + "/page"
	wantRefused("mode none", page)

	policy(api.Network{Mode: "egress", Allow: []string{address + ":" + port}})
	if out, code := fetch(page); code != 0 || out != "a page" {
		t.Errorf("allowed: %d %q", code, out)
	}
	if got := say(t, s, sb.ID, "git clone -q http://"+host+"/repo.git /tmp/clone && cat /tmp/clone/file"); got != "of the repository\n" {
		t.Errorf("git: %q", got)
	}
	wantRefused("another port", "http://"+address+":1/")
	wantRefused("another address", "http://127.0.0.3:"+port+"/")
	wantRefused("metadata", "http://169.254.169.254/latest/meta-data/")
	wantRefused("a host that is not allowed", "http://example.com/")

	// A connection that is open ends with the policy that allowed it.
	events, seen := s.Exec(within(t), sb.ID, api.Exec{Argv: []string{"curl", "-sS", "-N", "http://" + host + "/endless"}}), false
	for e, err := range events {
		must(t, err)
		if strings.Contains(string(e.Data), "it begins") {
			seen = true
			policy(api.Network{Mode: "none"})
			<-cut
		}
		if e.Exit != nil && (!seen || e.Exit.ExitCode == nil || *e.Exit.ExitCode == 0) {
			t.Errorf("the open connection: seen %v, %+v", seen, e.Exit)
		}
	}
	wantRefused("mode none again", page)

	// Every host is every host on the web's ports.
	policy(api.Network{Mode: "egress", Allow: []string{"*"}})
	wantRefused("every host", page)
}

// makeRepository makes a repository that git clones from a server of files.
func makeRepository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("of the repository\n"), 0o644))
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "file"}, {"commit", "-q", "-m", "first"}, {"update-server-info"}} {
		cmd := exec.CommandContext(within(t), "git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	return filepath.Join(dir, ".git")
}
