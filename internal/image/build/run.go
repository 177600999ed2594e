package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// run carries out a RUN: its command in a sandbox, its changes as a layer.
func (s *state) run(ctx context.Context, ins *instruction, c *instructions.RunCommand) error {
	argv, files := s.runArgs(c)
	secretEnv, mapping, p := s.secretEnv(ins, c)
	if p != nil {
		return p
	}
	env := maps.Clone(s.vars)
	k := newKey("run", s.req.Scope, s.id, s.settings.User, s.settings.Workdir).list(argv).pairs(env).list(mapping)
	for _, f := range files {
		k.add(f.Path, string(f.Data))
	}
	for name, value := range s.proxies() { // they say how the network is reached, not what comes of it
		if _, declared := env[name]; !declared {
			env[name] = value
		}
	}
	return s.step(ctx, ins, k.sum(), nil, func(ctx context.Context, log *output) (string, error) {
		user, err := s.runUser(ctx)
		if err != nil {
			return "", err
		}
		if _, ok := env["HOME"]; !ok {
			env["HOME"] = user.Home
		}
		step := Step{Base: s.id, Argv: argv, Env: env, SecretEnv: secretEnv, User: user, Workdir: s.absolute(""), Files: files,
			Stdout: log.stream(), Stderr: log.stream()}
		return s.runStep(ctx, step, log, ins.text)
	})
}

// runStep runs one command and makes a layer of what it changed.
func (s *state) runStep(ctx context.Context, step Step, log *output, history string) (string, error) {
	diff, err := s.req.Runner.Run(ctx, step)
	log.flush()
	if err != nil {
		var exit *ExitError
		if errors.As(err, &exit) {
			return "", &failure{exit: exit, tail: log.tail()}
		}
		return "", err
	}
	if diff == nil {
		return step.Base, nil
	}
	defer diff.Close()
	return s.append(ctx, step.Base, diff, history)
}

// runArgs is the argument list of a RUN, and the file that it runs if it is a script of its own.
func (s *state) runArgs(c *instructions.RunCommand) ([]string, []File) {
	if len(c.Files) == 0 || !c.PrependShell {
		return s.commandLine(c.ShellDependantCmdLine), nil
	}
	line := strings.Join(c.CmdLine, " ")
	if parser.MustParseHeredoc(line) == nil { // a command that has heredocs: they are the shell's business
		for _, f := range c.Files {
			line += "\n" + f.Data + f.Name
		}
		return append(s.shell(), line), nil
	}
	body := c.Files[0].Data
	if c.Files[0].Chomp {
		body = parser.ChompHeredocContent(body)
	}
	if !strings.HasPrefix(body, "#!") {
		return append(s.shell(), body), nil
	}
	const script = "/dev/pipes/script"
	return []string{script}, []File{{Path: script, Mode: 0o755, Data: []byte(body)}}
}

// secretEnv is the secret part of a RUN's environment, and what of it the RUN is cached by: the names.
func (s *state) secretEnv(ins *instruction, c *instructions.RunCommand) (env map[string]string, mapping []string, p *sandbox.Problem) {
	env = maps.Clone(s.req.Secrets)
	for _, m := range instructions.GetMounts(c) {
		id := m.CacheID
		if id == "" {
			id = m.Source
		}
		name := *m.Env
		if name == "" {
			name = id
		}
		value, ok := s.req.Secrets[id]
		switch {
		case ok:
			env[name] = value
			mapping = append(mapping, name+"="+id)
		case m.Required:
			return nil, nil, ins.problem("the build has no secret %s; name it in secrets", quote(id))
		}
	}
	return env, append(mapping, sortedKeys(s.req.Secrets)...), nil
}

// proxies are the build arguments that every RUN gets without an ARG, in both spellings.
func (s *state) proxies() map[string]string {
	out := map[string]string{}
	for _, name := range sortedKeys(s.req.Args) {
		if isProxy(name) {
			out[strings.ToUpper(name)] = s.req.Args[name]
			out[strings.ToLower(name)] = s.req.Args[name]
		}
	}
	return out
}

func isProxy(name string) bool {
	switch strings.ToLower(name) {
	case "http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy":
		return true
	}
	return false
}

// failure is a command that failed, and its last words.
type failure struct {
	exit *ExitError
	tail string
}

func (f *failure) Error() string { return f.exit.Error() }

// Unwrap gives the exit.
func (f *failure) Unwrap() error { return f.exit }

// reason is why a step can't work: a sentence that each build that waited for it completes with its own line.
type reason struct{ text string }

func (r *reason) Error() string { return r.text }

func reasonf(format string, args ...any) error { return &reason{fmt.Sprintf(format, args...)} }

// stepError tells which line failed and how.
func stepError(ins *instruction, err error) error {
	var (
		r *reason
		f *failure
		p *sandbox.Problem
	)
	switch {
	case errors.As(err, &r):
		return ins.problem("%s", r.text)
	case errors.As(err, &f):
		p := ins.problem("%s", f.exit)
		p.Code, p.Err = "build_failed", f.exit
		if f.tail == "" {
			p.Detail += " and printed nothing"
		} else {
			p.Detail += ". Its last output:\n" + f.tail
		}
		return p
	case errors.As(err, &p): // of the store, say: it knows better what is wrong, and we know where
		q := *p
		q.Detail = fmt.Sprintf("line %d: %s: %s", ins.line, ins.short(), p.Detail)
		q.Field = field
		return &q
	}
	return fmt.Errorf("line %d: %s: %w", ins.line, ins.short(), err)
}

// step does something that has a result to be cached, once for all builds that need it now. release, if not nil, gives back what work
// needs: it is called once, when work has ended or another build's was used.
func (s *state) step(ctx context.Context, ins *instruction, key string, release func(),
	work func(ctx context.Context, log *output) (string, error)) error {
	if release == nil {
		release = func() {}
	}
	if id, ok := s.req.Images.Cached(key); ok {
		release()
		s.report(Event{Kind: KindCached})
		s.id = id
		return nil
	}
	follow := func(l line) {
		if l.notice {
			s.notice("%s", l.text)
		} else {
			s.report(Event{Kind: KindLog, Data: l.text})
		}
	}
	id, mine, err := s.b.flights.do(ctx, key, follow, func(ctx context.Context, emit func(line)) (string, error) {
		defer release()
		if id, ok := s.req.Images.Cached(key); ok { // another flight ended just now
			return id, nil
		}
		id, err := work(ctx, newOutput(s.mask, emit))
		if err != nil {
			return "", s.mask.hide(err)
		}
		if err := s.req.Images.Remember(key, id); err != nil {
			return "", fmt.Errorf("remembering a step: %w", err)
		}
		return id, nil
	})
	if !mine {
		release()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("building an image: %w", context.Cause(ctx))
	}
	if err != nil {
		return stepError(ins, err)
	}
	s.id = id
	return nil
}

// append makes an image of base and one layer. The settings stay what they are until the end: what they say is no business of a layer's cache.
func (s *state) append(ctx context.Context, base string, layer io.Reader, history string) (string, error) {
	id, err := s.req.Images.Append(ctx, base, layer, func(*image.Settings) {}, s.historyText(history))
	if err != nil {
		return "", fmt.Errorf("making a layer: %w", err)
	}
	return id, nil
}
