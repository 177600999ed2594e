// Command toolkit fetches the pinned Claude Code CLI into a directory, for the tests to share, and prints the program's path.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/sandlot-dev/sandlot/internal/claude"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: toolkit DIR")
		os.Exit(2)
	}
	t := claude.OpenToolkit(claude.ToolkitConfig{Dir: os.Args[1], Env: os.Environ(), Log: slog.Default()})
	if err := t.Ensure(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "toolkit:", err)
		os.Exit(1)
	}
	fmt.Println(filepath.Join(t.Dir(), "bin", "claude"))
}
