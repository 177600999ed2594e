package guest

import (
	"os"
	"path/filepath"
)

// shell returns the program that a person who sits down at a terminal as user gets: what /etc/passwd says, but bash where that is no
// more than a plain sh, as it is in many images for want of a choice. It is not started as a login shell, because /etc/profile would undo
// the sandbox's PATH.
func (s *Server) shell(user string) string {
	own := ""
	if id, err := s.who(user); err == nil {
		_ = eachAccount(filepath.Join(s.cfg.Root, "etc/passwd"), 7, func(f []string) bool { // one that can't be read names no shell
			if uid, ok := parseID(f[2]); ok && uid == id.uid && (own == "" || f[0] == id.name) {
				own = f[6]
			}
			return true
		})
	}
	switch filepath.Base(own) {
	case ".", "sh", "dash", "ash", "false", "nologin":
	default:
		if s.isProgram(own) {
			return own
		}
	}
	s.mu.Lock()
	path := s.env["PATH"]
	s.mu.Unlock()
	for _, dir := range filepath.SplitList(path + ":" + defaultPath) {
		bash := filepath.Join(dir, "bash")
		if bash != Shell && s.isProgram(bash) { // Shell is sh by another name
			return bash
		}
	}
	return "/bin/sh"
}

// isProgram reports whether path, absolute, is something that can be run.
func (s *Server) isProgram(path string) bool {
	if !filepath.IsAbs(path) {
		return false
	}
	fi, err := os.Stat(filepath.Join(s.cfg.Root, path))
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}
