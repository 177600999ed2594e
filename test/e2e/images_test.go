package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/image/imagetest"
)

const hubUser, hubPassword = "joe", "the-password-of-joe"

// hub is a registry that wants a password, and answers what a hook says.
type hub struct {
	host string

	mu   sync.Mutex
	hook func(w http.ResponseWriter, r *http.Request) (answered bool)
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{}
	real := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != hubUser || password != hubPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		h.mu.Lock()
		hook := h.hook
		h.mu.Unlock()
		if hook == nil || !hook(w, r) {
			real.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	h.host = strings.TrimPrefix(srv.URL, "http://")
	return h
}

func (h *hub) set(hook func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook = hook
}

func (h *hub) push(t *testing.T, repository string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(h.host + "/" + repository)
	must(t, err)
	must(t, remote.Write(ref, img, remote.WithContext(within(t)), remote.WithAuth(&authn.Basic{Username: hubUser, Password: hubPassword})))
	return ref.String()
}

// withHub starts a server that knows the hub and its password.
func withHub(t *testing.T, args ...string) (*server, *hub) {
	t.Helper()
	h := newHub(t)
	s := start(t, options{args: append([]string{"--demo-model", "--private-registries=" + h.host}, args...)})
	must(t, s.call(t, "PUT", "/secret/hub", api.PutSecret{Values: map[string]string{"USERNAME": hubUser, "PASSWORD": hubPassword}}, nil))
	return s, h
}

// stream sends a request and returns the events of the answer.
func stream(t *testing.T, s *server, method, path string, in any) (all []client.Event) {
	t.Helper()
	res, err := s.send(t, method, path, "text/event-stream", in)
	must(t, err)
	defer res.Body.Close()
	for e, err := range client.ReadEvents(res.Body) {
		must(t, err)
		all = append(all, e)
	}
	return all
}

// TestImagesOverHTTP is the life of an image: pulled, built upon, saved, exported, imported and deleted, with sandboxes on it.
func TestImagesOverHTTP(t *testing.T) {
	t.Parallel()
	s, hub := withHub(t)
	busybox := hub.push(t, "busybox:1", imagetest.Image(t, func(c *v1.Config) {
		c.Env, c.User, c.WorkingDir = append(c.Env, "FROM_IMAGE=yes", "LD_PRELOAD=/nowhere.so"), "node", "/srv"
	}, imagetest.Busybox(t)))
	must(t, s.call(t, "PUT", "/secret/used", api.PutSecret{Values: map[string]string{"USED": "the-secret-that-is-used"}}, nil))
	must(t, s.call(t, "PUT", "/secret/other", api.PutSecret{Values: map[string]string{"OTHER": "the-secret-of-others"}}, nil))

	// Created at once, with the pull told as it goes.
	var sb api.Sandbox
	var kinds []string
	for _, e := range stream(t, s, "POST", "/sandbox", api.CreateSandbox{Image: &api.Image{Registry: busybox, RegistrySecret: "hub"}}) {
		kinds = append(kinds, e.Name)
		if e.Name == "sandbox" {
			must(t, json.Unmarshal([]byte(e.Data), &sb))
		}
	}
	if sb.State != "running" || !slices.Contains(kinds, "image") || sb.Image.User != "node" || sb.Image.Digest == "" {
		t.Fatalf("%v, %+v", kinds, sb)
	}
	if got := say(t, s, sb.ID, "id -u; echo $FROM_IMAGE; ls /usr/share 2>/dev/null | wc -l"); got != "1234\nyes\n0\n" {
		t.Errorf("in it: %q", got)
	}
	wantUnseen(t, s, sb.ID, hubPassword)

	// Built upon. A command gets the secrets that were named and nothing else; the log comes line by line.
	build := api.MakeImage{Image: api.Image{Registry: busybox, RegistrySecret: "hub", Secrets: []string{"used"}, DockerfileCommands: []string{
		"USER root", "ENV GREETING=hello", "RUN env | sort | sed 's/^/saw /'; ls /proc | grep -c '^[0-9]' | sed 's/^/processes /'", "WORKDIR /app",
		"RUN echo $GREETING > made && echo ${#USED} >> made",
		"RUN (nc -w 2 8.8.8.8 53 </dev/null || nc -w 2 169.254.169.254 80 </dev/null) && echo got out; " +
			"printf 'GET http://example.com/ HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $(echo ${http_proxy#http://} | tr : ' ') | head -n 1",
	}}, Network: &api.Network{Mode: "none"}}
	var built api.StoredImage
	var lines []string
	for _, e := range stream(t, s, "POST", "/image", build) {
		switch e.Name {
		case "progress":
			var p api.ImageProgress
			must(t, json.Unmarshal([]byte(e.Data), &p))
			if p.Output {
				lines = append(lines, p.Text)
			}
		case "image":
			must(t, json.Unmarshal([]byte(e.Data), &built))
		case "error":
			t.Fatal(e.Data)
		}
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"saw GREETING=hello", "saw FROM_IMAGE=yes", "saw USED=", " 403 Forbidden"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %q:\n%s", want, text)
		}
	}
	for _, not := range []string{"ANTHROPIC", "saw OTHER", "the-secret", hubPassword, "got out"} {
		if strings.Contains(text, not) {
			t.Errorf("the log has %q:\n%s", not, text)
		}
	}
	var processes int
	if _, err := fmt.Sscanf(text[strings.Index(text, "processes "):], "processes %d", &processes); err != nil || processes > 8 {
		t.Errorf("a build sees %d processes, %v", processes, err)
	}
	if built.Kind != "build" || built.Workdir != "/app" || built.Env["GREETING"] != "hello" {
		t.Errorf("built: %+v", built)
	}
	from := create(t, s, api.CreateSandbox{Image: &api.Image{Snapshot: built.ID}})
	if got := say(t, s, from.ID, "cat /app/made; env | grep -c USED"); got != "hello\n23\n0\n" {
		t.Errorf("in the built image: %q", got)
	}
	wantUnseen(t, s, from.ID, "the-secret-that-is-used")

	// One that fails says where and how.
	build.Image.DockerfileCommands = []string{"ENV A=1", "RUN echo before; exit 7"}
	wantProblem(t, s.call(t, "POST", "/image", build, nil), http.StatusBadRequest, "build_failed", "image.dockerfile_commands", "7", "before")

	// Saved, and started from again.
	say(t, s, from.ID, "echo kept > /tmp/x; echo changed > /app/made 2>/dev/null; mkdir -p /workspace/v; echo in the volume > /workspace/v/f")
	if _, err := s.ExecWait(within(t), from.ID, api.Exec{User: "root", Argv: []string{"sh", "-c", "echo saved > /app/saved; rm -r /usr/lib; ln -s / /app/out"}}); err != nil {
		t.Fatal(err)
	}
	var snap api.StoredImage
	must(t, s.call(t, "POST", "/sandbox/"+from.ID+"/snapshot", api.Snapshot{Name: "mine"}, &snap))
	again := create(t, s, api.CreateSandbox{Image: &api.Image{Snapshot: snap.ID}})
	if got := say(t, s, again.ID, "cat /app/saved; ls -d /usr/lib /workspace/v 2>/dev/null; readlink /app/out"); got != "saved\n/\n" {
		t.Errorf("in the snapshot: %q", got)
	}

	// Exported in both formats and imported.
	for _, format := range []string{"oci", "docker"} {
		res, err := s.send(t, "GET", "/image/"+snap.ID+"/export?format="+format, "application/x-tar", nil)
		must(t, err)
		archive := readAll(t, res.Body, nil)
		var list api.StoredImageList
		must(t, s.call(t, "POST", "/image/import?name=copy-"+format, strings.NewReader(archive), &list))
		if len(list.Images) != 1 || list.Images[0].Kind != "import" || list.Images[0].Name != "copy-"+format {
			t.Fatalf("imported: %+v", list)
		}
		copied := create(t, s, api.CreateSandbox{Image: &api.Image{Snapshot: list.Images[0].ID}})
		if got := say(t, s, copied.ID, "cat /app/saved; echo $GREETING; ls -d /usr/lib 2>/dev/null"); got != "saved\nhello\n" {
			t.Errorf("in the copy by %s: %q", format, got)
		}
		if _, err := s.Terminate(within(t), copied.ID); err != nil {
			t.Error(err)
		}
		wantProblem(t, s.call(t, "POST", "/image/import", strings.NewReader(archive[:len(archive)/2]), nil), http.StatusBadRequest, "", "")
	}

	// Deleted under a sandbox, which goes on and can even be saved.
	must(t, s.call(t, "DELETE", "/image/"+snap.ID, nil, nil))
	if got := say(t, s, again.ID, "cat /app/saved"); got != "saved\n" {
		t.Errorf("after its image was deleted: %q", got)
	}
	must(t, s.call(t, "POST", "/sandbox/"+again.ID+"/snapshot", nil, nil))
	_, err := s.Create(within(t), api.CreateSandbox{Image: &api.Image{Snapshot: snap.ID}})
	wantProblem(t, err, http.StatusBadRequest, "image_not_found", "image.snapshot")
}

// TestMainJobOnImages has Claude do the main job where neither this machine's programs nor, once, its C library are.
func TestMainJobOnImages(t *testing.T) {
	t.Parallel()
	s, hub := withHub(t)
	for name, layer := range map[string]v1.Layer{"glibc": imagetest.Glibc(t), "busybox": imagetest.Busybox(t)} {
		t.Run(name, func(t *testing.T) {
			ref := hub.push(t, name+":1", imagetest.Image(t, nil, layer))
			sb := create(t, s, api.CreateSandbox{Image: &api.Image{Registry: ref, RegistrySecret: "hub"}})
			wantMainJob(t, prompt(t, s, sb.ID, api.Prompt{Prompt: "Write a small script and run it."}))
		})
	}
}

// say runs a shell script as the agent and returns what it wrote.
func say(t *testing.T, s *server, id, script string) string {
	t.Helper()
	run, err := s.ExecWait(within(t), id, api.Exec{Argv: []string{"sh", "-c", script}})
	if err != nil || run.State != "exited" {
		t.Fatalf("%s: %+v, %v", script, run, err)
	}
	return run.Stdout + run.Stderr
}

// wantUnseen checks that a secret is nowhere in a sandbox and nowhere in the log.
func wantUnseen(t *testing.T, s *server, id, secret string) {
	t.Helper()
	run, err := s.ExecWait(within(t), id, api.Exec{User: "root", Argv: []string{"sh", "-c",
		"env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null; grep -r '" + secret[:len(secret)-1] + "[" + secret[len(secret)-1:] + "]' /etc /tmp /srv /app /workspace /run /var /root 2>/dev/null; true"}})
	if err != nil || strings.Contains(run.Stdout, secret) {
		t.Errorf("a secret is in the sandbox: %v, %q", err, run.Stdout)
	}
	if strings.Contains(s.log.String(), secret) {
		t.Error("a secret is in the server's log")
	}
}

// wantProblem checks a refusal: its status, its code, the field at fault and words of its detail. "" is any.
func wantProblem(t *testing.T, err error, status int, code, field string, words ...string) {
	t.Helper()
	p := (*api.Problem)(nil)
	if !errors.As(err, &p) {
		t.Errorf("no problem but %v", err)
		return
	}
	if p.Status != status || code != "" && p.Code != code {
		t.Errorf("%d %s, want %d %s: %v", p.Status, p.Code, status, code, err)
	}
	if field != "" && !slices.ContainsFunc(p.Errors, func(e api.FieldError) bool { return e.Location == field || e.Location == "body."+field }) {
		t.Errorf("the field at fault is not %s: %+v", field, p.Errors)
	}
	for _, w := range words {
		if !strings.Contains(p.Detail, w) {
			t.Errorf("the detail lacks %q: %s", w, p.Detail)
		}
	}
	if len(p.Detail) < 10 {
		t.Errorf("the detail says nothing: %q", p.Detail)
	}
}

// TestBadInput asks for what can't be had. Each answer says what is wrong and where, and nothing is left on the disk.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s, hub := withHub(t)
	layer := imagetest.Busybox(t)
	good := hub.push(t, "good:1", imagetest.Image(t, nil, layer))
	noUser := hub.push(t, "nouser:1", imagetest.Image(t, func(c *v1.Config) { c.User = "nobody-here" }, layer))
	otherMachine := imagetest.Image(t, nil, layer)
	cf, err := otherMachine.ConfigFile()
	must(t, err)
	cf = cf.DeepCopy()
	cf.Architecture = "s390x"
	otherMachine, err = mutate.ConfigFile(otherMachine, cf)
	must(t, err)
	otherPlatform := hub.push(t, "s390x:1", otherMachine)
	lying := hub.push(t, "lying:1", imagetest.Image(t, nil, imagetest.Layer(t, imagetest.File{Name: "true", Mode: 0o644, Data: strings.Repeat("x", 1000)})))
	hub.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v2/lying/blobs/") {
			_, _ = w.Write(bytes.Repeat([]byte("a lie"), 100))
			return true
		}
		return false
	})
	must(t, s.call(t, "PUT", "/secret/wrong", api.PutSecret{Values: map[string]string{"USERNAME": hubUser, "PASSWORD": "not-the-password"}}, nil))
	must(t, s.call(t, "PUT", "/secret/odd", api.PutSecret{Values: map[string]string{"COLOUR": "blue"}}, nil))
	image := func(ref, secret string) api.CreateSandbox {
		return api.CreateSandbox{Image: &api.Image{Registry: ref, RegistrySecret: secret}}
	}
	// The one that is good is pulled first: it is to stay.
	sb := create(t, s, image(good, "hub"))
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Fatal(err)
	}
	before := diskOf(t, s)
	for name, tc := range map[string]struct {
		in          api.CreateSandbox
		status      int
		code, field string
	}{
		"unknown image":             {image(hub.host+"/no/such:1", "hub"), 400, "image_not_found", "image.registry"},
		"unknown tag":               {image(hub.host+"/good:2", "hub"), 400, "image_not_found", "image.registry"},
		"a name that is none":       {image("Not A Name", ""), 400, "", "image.registry"},
		"a private address":         {image("127.0.0.1:1/x:1", ""), 400, "address_refused", "image.registry"},
		"wrong platform":            {image(otherPlatform, "hub"), 400, "wrong_platform", "image.registry"},
		"no credentials":            {image(good+"-none", ""), 400, "registry_denied", ""},
		"bad credentials":           {image(noUser, "wrong"), 400, "registry_denied", "image.registry_secret"},
		"a secret that is none":     {image(noUser, "odd"), 400, "", "image.registry_secret"},
		"no such secret":            {image(noUser, "nope"), 400, "secret_not_found", "image.registry_secret"},
		"a lie about a digest":      {image(lying, "hub"), 400, "bad_image", "image.registry"},
		"snapshot of nobody":        {api.CreateSandbox{Image: &api.Image{Snapshot: "img_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"}}, 400, "image_not_found", "image.snapshot"},
		"both kinds of image":       {api.CreateSandbox{Image: &api.Image{Registry: good, Snapshot: "img_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"}}, 400, "invalid_request", "image.snapshot"},
		"commands on the host's":    {api.CreateSandbox{Image: &api.Image{DockerfileCommands: []string{"RUN true"}}}, 400, "invalid_request", "image.dockerfile_commands"},
		"a command that is refused": {api.CreateSandbox{Image: &api.Image{Registry: good, RegistrySecret: "hub", DockerfileCommands: []string{"RUN --device=x true"}}}, 400, "", "image.dockerfile_commands"},
		"a workdir that is no path": {api.CreateSandbox{Workdir: "/home/x/../y"}, 400, "invalid_request", "workdir"},
		"more memory than there is": {api.CreateSandbox{MemoryMiB: 8 << 20}, 400, "over_capacity", "memory_mib"},
		"more cores than there are": {api.CreateSandbox{CPU: 1000}, 400, "over_capacity", "cpu"},
		"a time beyond the limit":   {api.CreateSandbox{TimeoutS: 1 << 40}, 400, "invalid_request", "timeout_s"},
		"a disk beyond the limit":   {api.CreateSandbox{DiskMiB: 1 << 40}, 400, "invalid_request", "disk_mib"},
		"a GPU":                     {api.CreateSandbox{GPU: "9"}, 400, "", "gpu"},
		"a private range":           {api.CreateSandbox{Network: &api.Network{Mode: "egress", Allow: []string{"10.0.0.0/8"}}}, 400, "", "network.allow"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Create(within(t), tc.in)
			wantProblem(t, err, tc.status, tc.code, tc.field)
		})
	}
	for want, tc := range map[string]api.CreateSandbox{
		"--private-registries":     image("127.0.0.1:1/x:1", ""),
		"--egress-private":         {Image: &api.Image{Registry: good, RegistrySecret: "hub", DockerfileCommands: []string{"ADD http://127.0.0.1:1/x /x"}}},
		"--platform=linux/":        image(otherPlatform, "hub"),
		"Dockerfile command USER.": image(noUser, "hub"),
	} {
		_, err := s.Create(within(t), tc)
		wantProblem(t, err, 400, "", "", want)
	}
	wantNothingLeft(t, s.data)
	for path, size := range diskOf(t, s) {
		if _, was := before[path]; !was {
			t.Errorf("left on the disk: %s, %d bytes", path, size)
		}
	}
	_, err = s.Create(within(t), image(noUser, "hub"))
	wantProblem(t, err, 400, "unknown_user", "image.registry")
	// Here the image itself is a good one, which stays for a while.
	_, err = s.Create(within(t), api.CreateSandbox{Workdir: "/data/file",
		Image: &api.Image{Registry: good, RegistrySecret: "hub", DockerfileCommands: []string{"RUN mkdir /data; echo x > /data/file"}}})
	wantProblem(t, err, 400, "invalid_request", "workdir")
	for _, want := range []string{hubPassword, "not-the-password"} {
		if strings.Contains(s.log.String(), want) {
			t.Error("a password is in the log")
		}
	}
	wantNothingLeft(t, s.data)

	// A registry that stalls keeps nobody from giving up.
	reached, leave := make(chan struct{}, 16), make(chan struct{})
	defer close(leave)
	hub.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/v2/good-stalling") {
			return false
		}
		reached <- struct{}{}
		select {
		case <-leave:
		case <-r.Context().Done():
		}
		return true
	})
	waiting, err := s.CreateNoWait(within(t), image(hub.host+"/good-stalling:1", "hub"))
	must(t, err)
	<-reached
	if ended, err := s.Terminate(within(t), waiting.ID); err != nil || ended.State != "terminated" {
		t.Errorf("ending a sandbox whose registry stalls: %+v, %v", ended, err)
	}
	wantNothingLeft(t, s.data)
}

// diskOf are the files of a server, but for its database and volumes, with their sizes.
func diskOf(t *testing.T, s *server) map[string]int64 {
	t.Helper()
	found := map[string]int64{}
	err := filepath.WalkDir(filepath.Join(s.data, "local"), func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // it went at this moment
		}
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, "/local/volumes") {
			return fs.SkipDir
		}
		if fi, err := d.Info(); err == nil && !d.IsDir() {
			found[strings.TrimPrefix(path, s.data)] = fi.Size()
		}
		return nil
	})
	must(t, err)
	return found
}
