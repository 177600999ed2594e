package claude

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// processes is what the self-test asks of a guest; *guest.Client has it.
type processes interface {
	Start(ctx context.Context, cmd guest.Command) (guest.Run, error)
	Wait(ctx context.Context, id string) (guest.Run, error)
	Output(ctx context.Context, id string, offset int64, follow bool) iter.Seq2[guest.Frame, error]
}

// noJIT is what to set where the CLI's JavaScript engine crashes on its own machine code.
var noJIT = map[string]string{"BUN_JSC_useJIT": "0"}

// SelfTest tries the CLI in the sandbox behind c, which should be a throw-away one: it asks for the version, and lets the CLI play
// one turn up to its first call of the model, which may fail. A crash is tried once more, and then with a slower but safer
// setting. It returns what must be set in sandboxes of this host; an error says that the CLI doesn't work here.
func SelfTest(ctx context.Context, c *guest.Client) (env map[string]string, err error) {
	return selfTest(ctx, c)
}

func selfTest(ctx context.Context, p processes) (map[string]string, error) {
	var last trialRun
	for i, env := range []map[string]string{nil, nil, noJIT} {
		last = trialRun{}
		for _, try := range trials {
			t, err := runTrial(ctx, p, fmt.Sprintf("selftest-%d-%s", i, try.name), try.argv, env)
			if err != nil {
				return nil, fmt.Errorf("claude: self-test: %w", err)
			}
			if !t.crashed() && !try.ok(t) {
				return nil, &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "claude_unusable", Detail: fmt.Sprintf(
					"Claude Code doesn't work in a sandbox of this machine: %q %s and said: %s", strings.Join(try.argv, " "), t.how(), t.said())}
			}
			if last = t; t.crashed() {
				break
			}
		}
		if !last.crashed() {
			return env, nil
		}
	}
	return nil, &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "claude_crashes", Detail: fmt.Sprintf(
		"Claude Code crashes in a sandbox of this machine, also without its just-in-time compiler: it %s and said: %s", last.how(), last.said())}
}

// trials are what is run, and how to tell that it worked.
var trials = []struct {
	name string
	argv []string
	ok   func(trialRun) bool
}{
	{"version", []string{Program, "--version"}, func(t trialRun) bool { return t.code(0) && isVersion(t.stdout, Version) }},
	{"turn", []string{Program, "-p", "--output-format", "stream-json", "--verbose", "--no-session-persistence"}, func(t trialRun) bool {
		return strings.Contains(t.stdout, `"subtype":"init"`) && strings.Contains(t.stdout, `"type":"result"`)
	}},
}

// trialRun is one run of the CLI and what it said.
type trialRun struct {
	run            guest.Run
	stdout, stderr string
}

func runTrial(ctx context.Context, p processes, id string, argv []string, env map[string]string) (trialRun, error) {
	// Should the model be reachable, it must not be asked for anything that costs; should it not be, the CLI must not try for minutes.
	full := map[string]string{"ANTHROPIC_BASE_URL": "http://" + guest.Gateway, "ANTHROPIC_API_KEY": "sk-sandlot-self-test", "CLAUDE_CODE_MAX_RETRIES": "0"}
	for k, v := range env {
		full[k] = v
	}
	var t trialRun
	if _, err := p.Start(ctx, guest.Command{ID: id, Argv: argv, Env: full, User: guest.UserAgent, Stdin: []byte("Say hello.")}); err != nil {
		return t, err
	}
	for f, err := range p.Output(ctx, id, 0, true) {
		if err != nil {
			return t, err
		}
		switch f.Kind {
		case guest.Stdout:
			t.stdout += string(f.Data)
		case guest.Stderr:
			t.stderr += string(f.Data)
		}
	}
	run, err := p.Wait(ctx, id)
	t.run = run
	return t, err
}

func (t trialRun) code(want int) bool {
	return t.run.State == guest.StateExited && t.run.Code != nil && *t.run.Code == want
}

// crashed reports whether a signal ended it that programs give themselves: then trying again may help.
func (t trialRun) crashed() bool {
	switch t.run.Signal {
	case "SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGTRAP", "SIGFPE":
		return t.run.State == guest.StateSignaled
	}
	return t.code(132) || t.code(134) || t.code(135) || t.code(136) || t.code(139) // as a shell tells it
}

func (t trialRun) how() string {
	if t.run.Code != nil {
		return fmt.Sprintf("exited with code %d", *t.run.Code)
	}
	return fmt.Sprintf("ended (%s %s)", t.run.State, t.run.Signal)
}

func (t trialRun) said() string {
	said := tail([]byte(t.stdout+"\n"+t.stderr), 600)
	if said == "" {
		return "nothing"
	}
	return said
}
