package build_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestRunArgs tells what reaches the sandbox for each form of RUN.
func TestRunArgs(t *testing.T) {
	sh := func(s string) []string { return []string{"/bin/sh", "-c", s} }
	for name, tc := range map[string]struct {
		commands []string
		argv     []string
		files    []build.File
	}{
		"shell form":       {[]string{`RUN echo "$HOME" && ls`}, sh(`echo "$HOME" && ls`), nil},
		"shell untouched":  {[]string{"ENV A=b", `RUN echo ${A}  '$A' \$A`}, sh(`echo ${A}  '$A' \$A`), nil},
		"exec form":        {[]string{`RUN ["/bin/echo", "$A", "b c"]`}, []string{"/bin/echo", "$A", "b c"}, nil},
		"broken exec form": {[]string{`RUN ["a", ]`}, sh(`["a", ]`), nil},
		"own shell":        {[]string{`SHELL ["/bin/bash", "-o", "pipefail", "-c"]`, "RUN a | b"}, []string{"/bin/bash", "-o", "pipefail", "-c", "a | b"}, nil},
		"continued":        {[]string{`RUN a \`, "# not this", `  && b \`, "  && c"}, sh("a   && b   && c"), nil},
		"heredoc":          {[]string{"RUN <<EOF", "echo $A", "b", "EOF"}, sh("echo $A\nb\n"), nil},
		"heredoc tabs":     {[]string{"RUN <<-EOF", "\techo", "\tEOF"}, sh("echo\n"), nil},
		"heredoc in shell": {[]string{"RUN python3 <<EOF > /x", "print(1)", "EOF"}, sh("python3 <<EOF > /x\nprint(1)\nEOF"), nil},
		"heredoc two":      {[]string{"RUN cat <<A <<B", "1", "A", "2", "B"}, sh("cat <<A <<B\n1\nA\n2\nB"), nil},
		"heredoc script": {[]string{"RUN <<EOF", "#!/usr/bin/env python3", "print(1)", "EOF"}, []string{"/dev/pipes/script"},
			[]build.File{{Path: "/dev/pipes/script", Mode: 0o755, Data: []byte("#!/usr/bin/env python3\nprint(1)\n")}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Settings{})
			r.must(tc.commands...)
			got := r.runner.steps[0]
			if !reflect.DeepEqual(got.Argv, tc.argv) || !reflect.DeepEqual(got.Files, tc.files) {
				t.Errorf("argv is %q with files %+v, want %q with %+v", got.Argv, got.Files, tc.argv, tc.files)
			}
		})
	}
}

func TestRunEnvironment(t *testing.T) {
	r := newRig(t, image.Settings{Env: []string{"LANG=C"}})
	req := r.request("ARG A=1", "ARG NONE", "ENV B=$A", "USER agent", "WORKDIR w", "RUN x", "ARG LATE=1")
	req.Args = map[string]string{"A": "2", "https_proxy": "http://proxy:1", "LATE": "2"}
	req.Secrets = map[string]string{"TOKEN": "sesame"}
	if _, _, err := r.build(req); err != nil {
		t.Fatal(err)
	}
	s := r.runner.steps[0]
	want := map[string]string{"LANG": "C", "A": "2", "B": "2", "HOME": "/home/agent", "HTTPS_PROXY": "http://proxy:1", "https_proxy": "http://proxy:1",
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if !reflect.DeepEqual(s.Env, want) {
		t.Errorf("env is %v, want %v", s.Env, want)
	}
	if !reflect.DeepEqual(s.SecretEnv, map[string]string{"TOKEN": "sesame"}) {
		t.Errorf("secret env is %v", s.SecretEnv)
	}
	if s.Workdir != "/w" || !reflect.DeepEqual(s.User, build.User{UID: 1000, GID: 1001, Groups: []uint32{10}, Home: "/home/agent"}) {
		t.Errorf("runs as %+v in %s", s.User, s.Workdir)
	}
}

func TestRunUser(t *testing.T) {
	for name, tc := range map[string]struct {
		user string
		want build.User
		err  string
	}{
		"none":          {"", build.User{Home: "/root"}, ""},
		"name":          {"agent", build.User{UID: 1000, GID: 1001, Groups: []uint32{10}, Home: "/home/agent"}, ""},
		"uid known":     {"1000", build.User{UID: 1000, GID: 1001, Groups: []uint32{10}, Home: "/home/agent"}, ""},
		"uid unknown":   {"4242", build.User{UID: 4242, Home: "/"}, ""},
		"uid and gid":   {"1000:5", build.User{UID: 1000, GID: 5, Home: "/home/agent"}, ""},
		"name:group":    {"agent:wheel", build.User{UID: 1000, GID: 10, Home: "/home/agent"}, ""},
		"unknown":       {"nobody", build.User{}, `line 2: RUN id: USER is "nobody", and the image's /etc/passwd has no such user`},
		"unknown group": {"agent:staff", build.User{}, "no such group"},
		"too large":     {"99999999999", build.User{}, "line 2"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Settings{})
			user := "LABEL a=b"
			if tc.user != "" {
				user = "USER " + tc.user
			}
			_, _, err := r.build(r.request(user, "RUN id"))
			if tc.err != "" {
				problem(t, err, "dockerfile_invalid", tc.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := r.runner.steps[0].User; !reflect.DeepEqual(got, tc.want) {
				t.Errorf("user is %+v, want %+v", got, tc.want)
			}
		})
	}
}

// TestRunUserHostile has user files that lead elsewhere or nowhere.
func TestRunUserHostile(t *testing.T) {
	for name, files := range map[string][]file{
		"passwd links to itself": {{name: "etc/passwd", link: "passwd"}},
		"passwd is a directory":  {{name: "etc/passwd/"}},
		"passwd is huge":         {{name: "etc/passwd", data: strings.Repeat("a", 5<<20)}},
		"passwd has a long line": {{name: "etc/passwd", data: strings.Repeat("a", 1<<20)}},
		"passwd is elsewhere":    {{name: "etc/passwd", link: "../../../../etc/shadow"}},
		"no passwd":              {{name: "bin/"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Settings{})
			r.base = r.images.add("hostile", image.Settings{}, files...)
			_, _, err := r.build(r.request("USER agent", "RUN id"))
			problem(t, err, "dockerfile_invalid", "line 2")
		})
	}
}

func TestRunMakesLayers(t *testing.T) {
	r := newRig(t, image.Settings{})
	img := r.must("RUN one", "ENV A=b", "RUN two")
	if img.files["ran/1"] == nil || img.files["ran/2"] == nil || img.files["bin/sh"] == nil {
		t.Errorf("files are %v", sortedNames(img.files))
	}
	if r.images.appends != 3 { // two layers, and the settings
		t.Errorf("%d images were made", r.images.appends)
	}
	if r.runner.steps[0].Base != r.base || r.runner.steps[1].Base == r.base {
		t.Error("the second command did not run on what the first left")
	}
	var got []string
	for _, e := range r.events {
		got = append(got, fmt.Sprintf("%s %d/%d line %d %s", e.Kind, e.Step, e.Steps, e.Line, e.Text))
	}
	want := []string{"step 1/3 line 1 RUN one", "step 2/3 line 2 ENV A=b", "step 3/3 line 3 RUN two", "done 0/3 line 0 "}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestRunWithoutChanges(t *testing.T) {
	r := newRig(t, image.Settings{})
	r.runner.do = func(context.Context, build.Step) ([]file, error) { return nil, nil }
	for range 2 {
		id, _, err := r.build(r.request("RUN true"))
		if err != nil || id != r.base || r.images.appends != 0 || len(r.runner.steps) != 1 {
			t.Fatalf("Build = %s, %v with %d images and %d commands, want the base", id, err, r.images.appends, len(r.runner.steps))
		}
	}
}

// TestCache tells which second build runs commands again.
func TestCache(t *testing.T) {
	first := func(r *rig) build.Request {
		req := r.request("ARG A=1", "ENV B=2", "RUN one", "RUN two")
		req.Secrets = map[string]string{"TOKEN": "x"}
		return req
	}
	for name, tc := range map[string]struct {
		change func(*build.Request)
		runs   int
	}{
		"nothing":         {func(*build.Request) {}, 0},
		"a comment":       {func(r *build.Request) { r.Commands = append([]string{"# new", ""}, r.Commands...) }, 0},
		"spaces":          {func(r *build.Request) { r.Commands[2] = "run    one" }, 0},
		"a label":         {func(r *build.Request) { r.Commands = append([]string{"LABEL a=b"}, r.Commands...) }, 0},
		"a secret value":  {func(r *build.Request) { r.Secrets = map[string]string{"TOKEN": "y"} }, 0},
		"proxies":         {func(r *build.Request) { r.Args = map[string]string{"HTTP_PROXY": "http://p"} }, 0},
		"a secret's name": {func(r *build.Request) { r.Secrets = map[string]string{"TOKEN2": "x"} }, 2},
		"a proxy's ARG":   {func(r *build.Request) { r.Commands[0] = "ARG HTTP_PROXY=x A=1" }, 2},
		"an argument":     {func(r *build.Request) { r.Args = map[string]string{"A": "2"} }, 2},
		"the environment": {func(r *build.Request) { r.Commands[1] = "ENV B=3" }, 2},
		"the last":        {func(r *build.Request) { r.Commands[3] = "RUN three" }, 1},
		"the first":       {func(r *build.Request) { r.Commands[2] = "RUN three" }, 2},
		"the user":        {func(r *build.Request) { r.Commands[1] = "ENV B=2\nUSER agent" }, 2},
		"the directory":   {func(r *build.Request) { r.Commands[1] = "ENV B=2\nWORKDIR /usr" }, 2},
		"the shell":       {func(r *build.Request) { r.Commands[1] = "ENV B=2\nSHELL [\"/bin/bash\", \"-c\"]" }, 2},
		"the scope":       {func(r *build.Request) { r.Scope = "other" }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Settings{})
			if _, _, err := r.build(first(r)); err != nil {
				t.Fatal(err)
			}
			req := first(r)
			tc.change(&req)
			if _, _, err := r.build(req); err != nil {
				t.Fatal(err)
			}
			if n := len(r.runner.steps) - 2; n != tc.runs {
				t.Errorf("%d commands ran again, want %d", n, tc.runs)
			}
			cached := 0
			for _, k := range r.kinds() {
				if k == build.KindCached {
					cached++
				}
			}
			if cached < 2-tc.runs {
				t.Errorf("%d steps were told to be cached", cached)
			}
		})
	}
}

func TestFailingCommand(t *testing.T) {
	for name, tc := range map[string]struct {
		output string
		exit   *build.ExitError
		texts  []string
		not    []string
	}{
		"code":          {"one\ntwo\n", &build.ExitError{Code: 3}, []string{"line 3: RUN make all: ended with exit code 3. Its last output:\none\ntwo"}, nil},
		"signal":        {"", &build.ExitError{Signal: "SIGKILL"}, []string{"was ended by SIGKILL and printed nothing"}, nil},
		"long":          {strings.Repeat("line\n", 100) + "last", &build.ExitError{Code: 1}, []string{"last"}, []string{strings.Repeat("line\n", 21)}},
		"wide":          {strings.Repeat(strings.Repeat("w", 5000)+"\n", 20), &build.ExitError{Code: 1}, []string{"www"}, []string{strings.Repeat("w", 2000)}},
		"other escapes": {"\x1bPdcs\x1b\\a\x1b(b\x1b]8;;u\x1b\\c\x1b[1\n\x1b]open\n\x1b\nz\u202Ey\u2066\tx", &build.ExitError{Code: 1}, []string{"abc\n\n\nzy\tx"}, []string{"dcs", "open", "\u202E"}},
		"colours":       {"\x1b[31mred\x1b[0m \x1b]0;title\x07x\x00\x07y\nold\rnew\n\xff\n", &build.ExitError{Code: 1}, []string{"red xy\nnew\n\uFFFD"}, []string{"\x1b", "title", "old"}},
		"secret":        {"the token is se\x1b[1msame and sesame\n", &build.ExitError{Code: 1}, []string{"the token is *** and ***"}, []string{"sesame"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Settings{})
			r.runner.do = func(_ context.Context, s build.Step) ([]file, error) {
				io.WriteString(s.Stdout, tc.output)
				return nil, fmt.Errorf("running: %w", tc.exit)
			}
			req := r.request("ENV A=b", "", "RUN make \\", "  all", "RUN never")
			req.Secrets = map[string]string{"T": "sesame"}
			_, _, err := r.build(req)
			problem(t, err, "build_failed", tc.texts...)
			for _, not := range tc.not {
				if strings.Contains(err.Error(), not) {
					t.Errorf("error holds %.100q: %q", not, err)
				}
			}
			var exit *build.ExitError
			if !errors.As(err, &exit) || *exit != *tc.exit || !errors.Is(err, sandbox.ErrInvalid) {
				t.Errorf("the exit is lost: %v", err)
			}
			if len(err.Error()) > 6000 || len(r.runner.steps) != 1 {
				t.Errorf("error has %d bytes, %d commands ran", len(err.Error()), len(r.runner.steps))
			}
			if id, ok := r.images.Cached("x"); ok || len(r.images.cache) != 0 {
				t.Errorf("a failure was cached: %s", id)
			}
		})
	}
}

// TestRunnerFault is a fault of ours, not of the command: its class stays, and it is not told as a bad request.
func TestRunnerFault(t *testing.T) {
	r := newRig(t, image.Settings{})
	r.runner.do = func(context.Context, build.Step) ([]file, error) {
		return nil, fmt.Errorf("no sandbox free: %w", sandbox.ErrUnavailable)
	}
	_, _, err := r.build(r.request("RUN x"))
	if !errors.Is(err, sandbox.ErrUnavailable) || errors.Is(err, sandbox.ErrInvalid) || !strings.Contains(err.Error(), "line 1: RUN x: no sandbox free") {
		t.Errorf("error is %v", err)
	}
	r.runner.do, r.images.fail = nil, errors.New("disk full")
	if _, _, err = r.build(r.request("RUN x")); err == nil || !strings.Contains(err.Error(), "making a layer: disk full") {
		t.Errorf("error is %v", err)
	}
}

func TestLogStreams(t *testing.T) {
	r := newRig(t, image.Settings{})
	seen := make(chan string)
	r.runner.do = func(_ context.Context, s build.Step) ([]file, error) {
		io.WriteString(s.Stdout, "first\nsec")
		if got := <-seen; got != "first" { // told while the command goes on
			t.Errorf("saw %q", got)
		}
		io.WriteString(s.Stderr, "error\n")
		if got := <-seen; got != "error" { // a line of one stream doesn't wait for one of the other
			t.Errorf("saw %q", got)
		}
		io.WriteString(s.Stdout, "ond\nrest")
		return nil, nil
	}
	var lines []string
	req := r.request("RUN x")
	req.Report = func(e build.Event) {
		if e.Kind == build.KindLog {
			if lines = append(lines, e.Data); len(lines) <= 2 {
				seen <- e.Data
			}
		}
	}
	if _, _, err := r.build(req); err != nil {
		t.Fatal(err)
	}
	if want := []string{"first", "error", "second", "rest"}; !reflect.DeepEqual(lines, want) {
		t.Errorf("lines are %q, want %q", lines, want)
	}
}

// TestSecretsStaySecret writes secrets wherever a command can and looks for them everywhere.
func TestSecretsStaySecret(t *testing.T) {
	secrets := map[string]string{"TOKEN": "sesame-open", "KEY": "-----BEGIN-----\nAAAABBBB\nCCCCDDDD\n-----END-----\n", "EMPTY": "", "PADDED": "  pad-ded  ",
		"LONG": strings.Repeat("long", 4500)}
	leaks := []string{"sesame-open", "AAAABBBB", "CCCCDDDD", "pad-ded", strings.Repeat("long", 4)}
	r := newRig(t, image.Settings{})
	r.runner.do = func(_ context.Context, s build.Step) ([]file, error) {
		for _, name := range []string{"TOKEN", "KEY", "PADDED", "LONG"} {
			if s.SecretEnv[name] != secrets[name] {
				t.Errorf("%s did not reach the command", name)
			}
			for _, w := range []io.Writer{s.Stdout, s.Stderr} {
				fmt.Fprintf(w, "value: %s\n", secrets[name])
				for _, c := range []byte("bytes: " + secrets[name] + "\n") {
					w.Write([]byte{c})
				}
				for i := range 6 { // across the place where a long line is cut
					io.WriteString(w, strings.Repeat("x", 16<<10-i*7)+secrets[name])
				}
				io.WriteString(w, "\n")
			}
		}
		if len(s.Argv) == 3 && strings.Contains(s.Argv[2], "fault") {
			return nil, errors.New("can't run with TOKEN=sesame-open")
		}
		if len(s.Argv) == 3 && strings.Contains(s.Argv[2], "fail") {
			return nil, &build.ExitError{Code: 1}
		}
		return []file{{name: "x", data: "y"}}, nil
	}
	look := func(where, text string) {
		t.Helper()
		for _, leak := range leaks {
			if i := strings.Index(text, leak); i >= 0 {
				t.Fatalf("%s holds %.20q at %d", where, leak, i)
			}
		}
	}
	for _, last := range []string{"RUN ok sesame-open", "RUN fail sesame-open", "RUN fault", "RUN fault sesame-open", "RUN " + strings.Repeat("x", 189) + "sesame-open fail"} {
		req := r.request("ENV A=sesame-open", "LABEL pad-ded=x", "RUN sesame-open first", last)
		req.Secrets = secrets
		id, notices, err := r.build(req)
		for _, e := range r.events {
			look("an event", fmt.Sprintf("%+v", e))
		}
		if len(r.events) < 10 {
			t.Errorf("only %d events", len(r.events))
		}
		look("a notice", fmt.Sprint(notices))
		look("the cache", fmt.Sprint(r.images.cache))
		if err != nil {
			look("the error", fmt.Sprintf("%v %+v %#v", err, err, err))
			for e := err; e != nil; e = errors.Unwrap(e) {
				look("a cause", e.Error())
			}
			continue
		}
		look("the history", fmt.Sprint(r.images.get(id).history))
	}
}

func TestSecretMount(t *testing.T) {
	r := newRig(t, image.Settings{})
	req := r.request("ARG ID=TOKEN", "RUN --mount=type=secret,id=$ID,env=NPM_TOKEN --mount=type=secret,id=absent,env=X x")
	req.Secrets = map[string]string{"TOKEN": "sesame"}
	if _, _, err := r.build(req); err != nil {
		t.Fatal(err)
	}
	if got := r.runner.steps[0].SecretEnv; !reflect.DeepEqual(got, map[string]string{"TOKEN": "sesame", "NPM_TOKEN": "sesame"}) {
		t.Errorf("secret env is %v", got)
	}
	_, _, err := r.build(r.request("RUN --mount=type=secret,id=TOKEN,env=X,required=true x"))
	problem(t, err, "dockerfile_invalid", `no secret "TOKEN"`)
	if _, _, err = r.build(r.request("RUN --mount=type=secret,id=TOKEN,env=X x")); err != nil {
		t.Errorf("a secret that is not required: %v", err)
	}
}

// TestBuildsShareWork has many builds want the same at once: it is done once, and all see its output.
func TestBuildsShareWork(t *testing.T) {
	const n = 8
	r := newRig(t, image.Settings{})
	begun, joined := make(chan struct{}), make(chan struct{}, n)
	r.runner.do = func(_ context.Context, s build.Step) ([]file, error) {
		io.WriteString(s.Stdout, "hello\n")
		close(begun)
		for range n {
			<-joined
		}
		io.WriteString(s.Stdout, "bye\n")
		return nil, &build.ExitError{Code: 7}
	}
	var wg sync.WaitGroup
	for i := range n {
		if i == 1 {
			<-begun
		}
		wg.Go(func() {
			var lines []string
			req := r.request(strings.Repeat("#\n", i)+"#", "RUN x")
			req.Report = func(e build.Event) {
				if e.Kind == build.KindLog {
					if lines = append(lines, e.Data); len(lines) == 1 {
						joined <- struct{}{}
					}
				}
			}
			_, _, err := r.b.Build(t.Context(), req)
			problem(t, err, "build_failed", fmt.Sprintf("line %d: RUN x: ended with exit code 7. Its last output:\nhello\nbye", i+2))
			if !reflect.DeepEqual(lines, []string{"hello", "bye"}) {
				t.Errorf("build %d saw %q", i, lines)
			}
		})
	}
	wg.Wait()
	if len(r.runner.steps) != 1 {
		t.Errorf("the command ran %d times", len(r.runner.steps))
	}
}

// TestLeaving has a build given up while another waits for the same, and then the other too.
func TestLeaving(t *testing.T) {
	r := newRig(t, image.Settings{})
	begun, ended := make(chan struct{}, 2), make(chan error, 2)
	finish := make(chan struct{})
	r.runner.do = func(ctx context.Context, s build.Step) ([]file, error) {
		begun <- struct{}{}
		io.WriteString(s.Stdout, "on\n")
		select {
		case <-finish:
			ended <- nil
			return []file{{name: "x"}}, nil
		case <-ctx.Done():
			ended <- ctx.Err()
			return nil, ctx.Err()
		}
	}
	start := func(ctx context.Context) (seen chan struct{}, done chan error) {
		seen, done = make(chan struct{}, 10), make(chan error, 1)
		req := r.request("RUN x")
		req.Report = func(e build.Event) {
			if e.Kind == build.KindLog {
				seen <- struct{}{}
			}
		}
		go func() {
			_, _, err := r.b.Build(ctx, req)
			done <- err
		}()
		return seen, done
	}
	ctx1, cancel1 := context.WithCancel(t.Context())
	seen1, done1 := start(ctx1)
	<-seen1
	seen2, done2 := start(t.Context())
	<-seen2
	cancel1()
	if err := <-done1; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that left got %v", err)
	}
	close(finish)
	if err := <-done2; err != nil {
		t.Errorf("the one that stayed got %v", err)
	}
	if err := <-ended; err != nil || len(r.runner.steps) != 1 {
		t.Errorf("the command ended with %v, %d ran", err, len(r.runner.steps))
	}

	clear(r.images.cache)
	finish = make(chan struct{})
	ctx3, cancel3 := context.WithCancel(t.Context())
	seen3, done3 := start(ctx3)
	<-seen3
	cancel3()
	if err := <-done3; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the command ended with %v", err)
		}
	default:
		t.Error("the last build left before its command had ended")
	}
}

// TestSlowReader has a viewer that doesn't read while the command prints much: the command is not slowed, and the gap is told.
func TestSlowReader(t *testing.T) {
	const n = 10_000
	r := newRig(t, image.Settings{})
	printed := make(chan struct{})
	r.runner.do = func(_ context.Context, s build.Step) ([]file, error) {
		for i := range n {
			fmt.Fprintln(s.Stdout, i)
		}
		close(printed)
		return nil, nil
	}
	var lines []string
	req := r.request("RUN x")
	req.Report = func(e build.Event) {
		if e.Kind == build.KindLog {
			<-printed
			lines = append(lines, e.Data)
		}
	}
	if _, _, err := r.build(req); err != nil {
		t.Fatal(err)
	}
	if last := lines[len(lines)-1]; last != fmt.Sprint(n-1) {
		t.Errorf("the last line is %q", last)
	}
	told := 0
	for _, l := range lines {
		var gap int
		if _, err := fmt.Sscanf(l, "(%d lines left out)", &gap); err == nil {
			told += gap - 1
		}
	}
	if told+len(lines) != n {
		t.Errorf("%d lines seen and %d told as left out, of %d", len(lines), told, n)
	}
}
