package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// identity is whom a process runs as.
type identity struct {
	name     string
	uid, gid uint32
	groups   []uint32
}

// maxAccounts bounds how much of /etc/passwd and /etc/group is read: the sandbox may have written them.
const maxAccounts = 4 << 20

// who finds out whom a command runs as. user is UserAgent, or what an image may say: a name or a number, perhaps with a group behind a
// colon. Names are looked up below root, which is "/" but for tests.
func (s *Server) who(user string) (identity, error) {
	agent := identity{name: UserAgent, uid: uint32(s.cfg.AgentUID), gid: uint32(s.cfg.AgentGID)}
	switch user {
	case "", UserAgent:
		number := strconv.Itoa(s.cfg.AgentUID)
		if agent.uid == 0 {
			agent.name = UserRoot
		} else if own, err := lookupUser(s.cfg.Root, number); err == nil && own.name != number {
			agent.name = own.name // it may be the image's user: USER says what id and whoami do
		}
		return agent, nil
	case UserRoot:
		return identity{name: UserRoot}, nil
	}
	return lookupUser(s.cfg.Root, user)
}

func lookupUser(root, user string) (identity, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" || hasGroup && group == "" {
		return identity{}, refuse("bad_user", "user", "%q is no user: say a name or a number, or one with a group behind a colon", user)
	}
	var id identity
	uid, numeric := parseID(name)
	found := false
	err := eachAccount(filepath.Join(root, "etc/passwd"), 4, func(f []string) bool {
		u, okU := parseID(f[2])
		g, okG := parseID(f[3])
		if okU && okG && (f[0] == name || numeric && u == uid) {
			id, found = identity{name: f[0], uid: u, gid: g}, true
		}
		return !found
	})
	switch {
	case err != nil:
		return id, err
	case !found && numeric:
		id = identity{name: name, uid: uid}
	case !found:
		return id, refuse("no_such_user", "user", "there is no user %q in /etc/passwd", name)
	}
	if hasGroup {
		id.gid, err = lookupGroup(root, group)
		return id, err
	}
	return id, eachAccount(filepath.Join(root, "etc/group"), 4, func(f []string) bool {
		if g, ok := parseID(f[2]); ok && g != id.gid && found && slices.Contains(strings.Split(f[3], ","), id.name) && len(id.groups) < maxGroups {
			id.groups = append(id.groups, g)
		}
		return true
	})
}

// maxGroups is how many groups the kernel gives a process at most; real files name a few.
const maxGroups = 1 << 10

func lookupGroup(root, group string) (uint32, error) {
	gid, numeric := parseID(group)
	if numeric {
		return gid, nil
	}
	found := false
	err := eachAccount(filepath.Join(root, "etc/group"), 3, func(f []string) bool {
		if g, ok := parseID(f[2]); ok && f[0] == group {
			gid, found = g, true
		}
		return !found
	})
	if err == nil && !found {
		err = refuse("no_such_user", "user", "there is no group %q in /etc/group", group)
	}
	return gid, err
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31) // -1 has a meaning of its own to the kernel
	return uint32(n), err == nil
}

// eachAccount calls fn with the fields of each line of at least n, until it says no more. A file that isn't there has no lines.
func eachAccount(file string, n int, fn func([]string) bool) error {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it may be anything
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxAccounts))
	for lines.Scan() {
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) >= n && !fn(fields) {
			return nil
		}
	}
	return nil // a line that is too long ends the file, as for other programs
}

// furnish gives an image what programs expect of a computer and images may lack: the agent's name, the usual files of /etc, a /tmp. What
// is there stays.
func furnish(root string, uid, gid int, home string) error {
	var errs []error
	for _, dir := range []struct {
		name string
		mode fs.FileMode
	}{{"etc", 0o755}, {"tmp", 0o777 | fs.ModeSticky}, {"var/tmp", 0o777 | fs.ModeSticky}, {"root", 0o700}} {
		path := filepath.Join(root, dir.name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, os.MkdirAll(path, 0o755), os.Chmod(path, dir.mode))
		}
	}
	for name, text := range map[string]string{
		"etc/hosts":    "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost\n",
		"etc/hostname": "sandbox\n",
		"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":    "root:x:0:\n",
	} {
		// Images often hold these empty, as places for their runtime to mount over.
		if fi, err := os.Stat(filepath.Join(root, name)); errors.Is(err, fs.ErrNotExist) || err == nil && fi.Mode().IsRegular() && fi.Size() == 0 {
			errs = append(errs, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
		}
	}
	known := false
	errs = append(errs, eachAccount(filepath.Join(root, "etc/passwd"), 4, func(f []string) bool {
		known = f[2] == strconv.Itoa(uid) || f[0] == UserAgent
		return !known
	}))
	if !known && uid != 0 {
		errs = append(errs,
			appendLine(filepath.Join(root, "etc/passwd"), fmt.Sprintf("%s:x:%d:%d:agent:%s:/bin/sh\n", UserAgent, uid, gid, home)),
			appendLine(filepath.Join(root, "etc/group"), fmt.Sprintf("%s:x:%d:\n", UserAgent, gid)))
	}
	return errors.Join(append(errs, furnishShell(root))...)
}

// furnishShell puts Shell where an image has a shell, but none that Claude Code takes for one.
func furnishShell(root string) error {
	for _, dir := range []string{"bin", "usr/bin", "usr/local/bin"} {
		for _, name := range []string{"bash", "zsh"} {
			if _, err := os.Lstat(filepath.Join(root, dir, name)); err == nil {
				return nil
			}
		}
	}
	path := filepath.Join(root, Shell)
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("#!/bin/sh\nexec /bin/sh \"$@\"\n"), 0o755))
}

// appendLine adds a line to a file whose last line may lack its end.
func appendLine(file, line string) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() > 0 {
		last := make([]byte, 1)
		if _, err = f.ReadAt(last, fi.Size()-1); err == nil && last[0] != '\n' {
			line = "\n" + line
		}
	}
	if err == nil {
		_, err = f.WriteString(line)
	}
	return errors.Join(err, f.Close())
}
