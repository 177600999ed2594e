package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// exitCode is what a command ends with that has said all there is to say.
type exitCode int

// Error implements error.
func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// lostCode is the exit code when the program's own was not seen, as with ssh.
const lostCode = 255

func shellCommand() *cobra.Command {
	var r remote
	var o client.TerminalOptions
	var env []string
	cmd := &cobra.Command{
		Use:   "shell [SANDBOX] [-- PROGRAM ARGUMENT…]",
		Short: "Sit at a terminal in a sandbox",
		Long: `Sit at a terminal in a sandbox, with the user's shell or another program. Its exit code is this command's.

The program belongs to the server: if the connection breaks it goes on, and this command comes back to it by itself. At the beginning of a line
  ~.  leaves; the program goes on, and ` + "`sandlot shell --run RUN`" + ` comes back to it
  ~t  takes over, if somebody else writes at the same terminal
  ~~  types a ~
When standard input is not a terminal, the program gets it through a pipe, and its output comes through pipes.` + aboutRemote,
		Example: "  sandlot shell quiet-otter\n  sandlot shell quiet-otter -- claude\n  echo ls | sandlot shell quiet-otter",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.connect(cmd)
			if err != nil {
				return err
			}
			name, argv := "", args
			if dash := cmd.ArgsLenAtDash(); dash != 0 && len(args) > 0 {
				name, argv = args[0], args[1:]
			}
			if o.Env, err = pairs("--env", env); err != nil {
				return err
			}
			o.Argv = argv
			id, err := seatOf(cmd.Context(), c, name, o)
			if err != nil {
				return err
			}
			o.NoPTY = !term.IsTerminal(int(os.Stdin.Fd()))
			return sit(cmd.Context(), c, id, o)
		},
	}
	r.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Run, "run", "", "come back to this run")
	f.BoolVar(&o.ReadOnly, "readonly", false, "with --run: only watch")
	f.BoolVar(&o.Take, "take", false, "with --run: be the one who writes, whoever is now")
	programFlags(cmd, &o, &env)
	return cmd
}

func programFlags(cmd *cobra.Command, o *client.TerminalOptions, env *[]string) {
	f := cmd.Flags()
	f.StringVarP(&o.User, "user", "u", "", "who runs it; default: agent")
	f.StringVarP(&o.Dir, "dir", "w", "", "where it starts; default: the sandbox's working directory")
	f.StringArrayVarP(env, "env", "e", nil, "NAME=value; may be repeated")
}

func execCommand() *cobra.Command {
	var r remote
	var o client.TerminalOptions
	var env []string
	var tty bool
	cmd := &cobra.Command{
		Use:   "exec SANDBOX -- PROGRAM [ARGUMENT…]",
		Short: "Run a program in a sandbox",
		Long: `Run a program in a sandbox. Its exit code is this command's, and its standard input is, unless that is a terminal. An interrupt ends it.
With --json, print the run as JSON, with its output, when it has ended.` + aboutRemote,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := r.connect(cmd)
			if err != nil {
				return err
			}
			if o.Env, err = pairs("--env", env); err != nil {
				return err
			}
			id, err := find(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			o.Argv, o.NoPTY = args[1:], !tty
			if r.json {
				return execJSON(cmd, c, id, o)
			}
			return sit(cmd.Context(), c, id, o)
		},
	}
	r.flags(cmd)
	r.jsonFlag(cmd)
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "on a terminal, as `sandlot shell` does")
	programFlags(cmd, &o, &env)
	return cmd
}

// execJSON runs a program and prints all of it at its end.
func execJSON(cmd *cobra.Command, c *client.Client, id string, o client.TerminalOptions) error {
	in := api.Exec{Argv: o.Argv, Env: o.Env, Dir: o.Dir, User: o.User}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		b, err := io.ReadAll(os.Stdin)
		if err != nil {
			return fmt.Errorf("standard input: %w", err)
		}
		in.Stdin = string(b)
	}
	run, err := c.ExecWait(cmd.Context(), id, in)
	if err != nil {
		return err
	}
	if err := printJSON(cmd.OutOrStdout(), run); err != nil {
		return err
	}
	return codeOf(run.State, run.ExitCode, run.Signal, run.Reason)
}

// seatOf returns the sandbox that name means, or in which the run is to be found.
func seatOf(ctx context.Context, c *client.Client, name string, o client.TerminalOptions) (string, error) {
	if name != "" {
		return find(ctx, c, name)
	}
	if o.Run == "" {
		return "", errors.New("say which sandbox; `sandlot ls` lists them")
	}
	found, failed := "", error(nil)
	err := each(ctx, c, func(sb api.Sandbox) bool {
		_, err := c.Run(ctx, sb.ID, o.Run)
		if err == nil {
			found = sb.ID
		} else if p, ok := errors.AsType[*api.Problem](err); !ok || p.Status != 404 {
			failed = err
		}
		return found == "" && failed == nil
	})
	if err = errors.Join(err, failed); err == nil && found == "" {
		err = fmt.Errorf("there is no run %s in any of your sandboxes", o.Run)
	}
	return found, err
}

// sit sits at a terminal, or at a pipe, until the program ends or the person leaves.
func sit(ctx context.Context, c *client.Client, id string, o client.TerminalOptions) error {
	s := &seat{ctx: ctx, c: c, sandbox: id, stdin: int(os.Stdin.Fd()), raw: !o.NoPTY && term.IsTerminal(int(os.Stdin.Fd()))}
	if s.raw {
		if o.Cols, o.Rows = size(); o.Run == "" {
			o.Env = withTerm(o.Env)
		}
	}
	leave, cancel := context.WithCancelCause(context.WithoutCancel(ctx)) // what an interrupt means is ours to say
	defer cancel(nil)
	var err error
	if s.t, err = c.Terminal(leave, id, o); err != nil {
		return err
	}
	s.leave = func() { cancel(errLeft) }
	end, err := s.run(leave)
	if end == nil {
		return err
	}
	return codeOf(end.State, end.ExitCode, end.Signal, end.Reason)
}

// errLeft is why a conversation ends that the person has ended.
var errLeft = errors.New("left")

// withTerm tells the program about our terminal.
func withTerm(env map[string]string) map[string]string {
	out := map[string]string{}
	for _, name := range []string{"TERM", "COLORTERM"} {
		if v := os.Getenv(name); v != "" && v != "dumb" {
			out[name] = v
		}
	}
	for name, value := range env {
		out[name] = value
	}
	return out
}

// size returns the size of our terminal, 0 if it isn't known.
func size() (cols, rows int) {
	cols, rows, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		cols, rows, err = term.GetSize(int(os.Stdin.Fd()))
	}
	if err != nil {
		return 0, 0
	}
	return cols, rows
}

// codeOf turns a program's end into ours.
func codeOf(state string, code *int, signal, reason string) error {
	switch {
	case code != nil && *code == 0 && state == "exited":
		return nil
	case code != nil && state == "exited":
		return exitCode(*code)
	case signal != "" && state == "signaled":
		if n := unix.SignalNum(signal); n != 0 {
			return exitCode(128 + int(n))
		}
	}
	if reason == "" {
		reason = "Its exit code was not seen."
	}
	fmt.Fprintf(os.Stderr, "sandlot: the program ended as %s. %s\n", state, reason)
	return exitCode(lostCode)
}

// patience is how long a connection may be away before the person is told.
const patience = 2 * time.Second
