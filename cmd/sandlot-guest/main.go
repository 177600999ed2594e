// Command sandlot-guest is the helper inside every sandbox: small, static, and nothing of the server in it.
package main

import (
	"os"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

func main() { os.Exit(guest.Main(os.Args[1:])) }
