// Package web is the user interface: plain HTML, CSS and ES modules that the browser runs as they are, without a build
// step. The binary carries them.
package web

import (
	"embed"
	"io/fs"
)

//go:embed index.html favicon.svg js style vendor
var files embed.FS

// FS returns the files of the user interface. Every path that is neither a file in it nor the API's belongs to
// index.html, whose script reads the location.
func FS() fs.FS { return files }
