// Command runtime is gVisor and nothing else: tests with the race detector use it, since gVisor's sentry doesn't start in a
// program that has the detector in it.
package main

import (
	"fmt"
	"os"

	"github.com/sandlot-dev/sandlot/internal/engine/local"
)

func main() {
	local.Main()
	fmt.Fprintln(os.Stderr, "runtime: this program is started by the local engine only")
	os.Exit(2)
}
