// Command sandlot is the one binary: the server, its tools, and, by re-exec, gVisor's sentry and gofer.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
)

// version is set by the linker.
var version = "dev"

func main() {
	local.Main() // doesn't return in a process of gVisor's
	if filepath.Base(os.Args[0]) == filepath.Base(guest.Program) {
		os.Exit(guest.Main(os.Args[1:]))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its surroundings as parameters. It returns the exit code: 0, 1 for an error, 130 after an interrupt, or
// that of the program in a sandbox.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "sandlot",
		Short:         "A self-hosted home for coding agents: isolated computers that run Claude Code.",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(serveCommand(), doctorCommand(), signinCommand(), versionCommand())
	root.AddCommand(lsCommand(), createCommand(), rmCommand(), execCommand(), shellCommand())
	err := root.ExecuteContext(ctx)
	code := exitCode(0)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130
	default:
		fmt.Fprintln(stderr, "sandlot:", err)
		return 1
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "sandlot", version) },
	}
}
