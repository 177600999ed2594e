// Package claude runs the Claude Code CLI in sandboxes: it fetches the program, prepares its first run, builds its command
// line, and turns its stream of JSON lines into the ordered log of a session that outlives connections, runs and servers.
package claude

import (
	"path"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Version is the version of the CLI that sandboxes get. Its protocol is not documented in full, so a new version comes with
// a look at the tests that run the real one.
const Version = "2.1.197"

// Where things are inside a sandbox.
const (
	MountPoint = "/opt/sandlot/claude"      // of the toolkit, read-only
	Program    = MountPoint + "/bin/claude" // the CLI
	cacheDir   = "/var/tmp/sandlot-cache"   // on the sandbox's own layer: caches would only slow the volume down
	ourDir     = ".sandlot"                 // below the working directory, so on the volume: what outlives a sandbox
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + MountPoint + "/bin"

	// DefaultWorkdir is where the volume is mounted unless a sandbox says otherwise.
	DefaultWorkdir = "/workspace"
)

// Home is the home directory of a sandbox whose volume is mounted at workdir.
func Home(workdir string) string { return path.Join(workdir, ourDir, "home") }

// configDir is where the CLI keeps its settings and transcripts. It lies on the volume, so a session can be resumed in
// another sandbox.
func configDir(workdir string) string { return path.Join(Home(workdir), ".claude") }

// HomeEnv returns the variables that depend on where the volume is mounted.
func HomeEnv(workdir string) map[string]string {
	return map[string]string{"HOME": Home(workdir), "CLAUDE_CONFIG_DIR": configDir(workdir)}
}

// EnvOf returns the variables that depend on the sandbox.
func EnvOf(spec sandbox.Spec) map[string]string {
	env := HomeEnv(spec.Workdir)
	if uid, _, _ := strings.Cut(spec.Image.Settings.Agent, ":"); uid == "0" { // the image's own wish
		env["IS_SANDBOX"] = "1"
	}
	return env
}

// Env returns the environment of every process in a sandbox, for the default working directory: see HomeEnv for others.
// agentIsRoot says that processes run as uid 0; the CLI then wants to be told that it is in a sandbox.
func Env(agentIsRoot bool) map[string]string {
	env := map[string]string{
		"PATH":                        searchPath,
		"LANG":                        "C.UTF-8",
		"XDG_CACHE_HOME":              cacheDir,
		"npm_config_cache":            cacheDir + "/npm",
		"DISABLE_AUTOUPDATER":         "1",
		"DISABLE_INSTALLATION_CHECKS": "1", // it is where no installer of its own would put it
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
	}
	for k, v := range HomeEnv(DefaultWorkdir) {
		env[k] = v
	}
	if agentIsRoot {
		env["IS_SANDBOX"] = "1"
	}
	return env
}

// command returns how a process is started that serves turns: their prompts come as lines of its input, and its output is read as it
// would be on a terminal, so that it isn't held back. What a caller chose stands in the form --flag=value, so that it can't
// become a flag of its own. That permissions may be bypassed must be said at the start, or the mode can't be chosen later.
func command(t sandbox.Turn, uuid string, resume bool, spec sandbox.Spec, run string) guest.Command {
	argv := []string{Program, "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose", "--include-partial-messages",
		"--replay-user-messages", "--permission-prompt-tool", "stdio", "--allow-dangerously-skip-permissions"}
	if resume {
		argv = append(argv, "--resume="+uuid)
	} else {
		argv = append(argv, "--session-id="+uuid)
	}
	argv = append(argv, "--permission-mode="+t.PermissionMode)
	if t.Model != "" {
		argv = append(argv, "--model="+t.Model)
	}
	env := HomeEnv(spec.Workdir)
	if spec.Env["HOME"] != "" { // the sandbox's maker wants another; where transcripts are is ours to say
		delete(env, "HOME")
	}
	if spec.Env["CLAUDE_CODE_SHELL"] == "" {
		env["CLAUDE_CODE_SHELL"] = guest.Shell // where it isn't there, the CLI looks for one itself
	}
	return guest.Command{ID: run, Argv: argv, Env: env, Dir: spec.Workdir, User: guest.UserAgent, Stdio: guest.StdioPTYStdout, Open: true}
}
