package guest

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// plan is a Command that has been checked, with everything decided that the kernel wants to know.
type plan struct {
	cmd        Command
	path       string // of the program, absolute
	dir        string
	env        []string
	name       string // of the user
	uid, gid   int
	credential *syscall.Credential // nil: it stays who we are
}

// defaultPath is where programs are looked for when the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// validID reports whether an ID is 1 to 64 letters, digits, _ and -. By hand: every sandbox would wait for an expression to be compiled.
func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

func refuse(code, field, format string, args ...any) *Error {
	return &Error{Status: 400, Code: code, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// plan checks cmd. What it can't see is left to the kernel: see refusal.
func (s *Server) plan(cmd Command) (plan, error) {
	if cmd.Shell && len(cmd.Argv) == 0 {
		cmd.Argv = []string{s.shell(cmd.User)}
	}
	p := plan{cmd: cmd}
	switch {
	case !validID(cmd.ID):
		return p, refuse("bad_id", "id", "an ID is 1 to 64 letters, digits, _ and -")
	case len(cmd.Argv) == 0 || cmd.Argv[0] == "":
		return p, refuse("bad_argv", "argv", "argv must begin with a program")
	case slices.ContainsFunc(cmd.Argv, hasNUL):
		return p, refuse("bad_argv", "argv", "an argument can't hold a NUL byte")
	case cmd.Stdio != StdioPipes && cmd.Stdio != StdioPTY && cmd.Stdio != StdioPTYStdout:
		return p, refuse("bad_stdio", "stdio", "unknown kind of stdio %q", cmd.Stdio)
	case cmd.Timeout < 0:
		return p, refuse("bad_timeout", "timeout", "a timeout can't be negative")
	case hasNUL(cmd.Dir):
		return p, refuse("bad_dir", "dir", "a directory's name can't hold a NUL byte")
	}
	if err := s.planUser(&p); err != nil {
		return p, err
	}
	if err := checkEnv(cmd.Env); err != nil {
		return p, err
	}
	env := s.environment(cmd.Env, p.name)
	for k, v := range env {
		p.env = append(p.env, k+"="+v)
	}
	slices.Sort(p.env)
	if err := s.planDir(&p); err != nil {
		return p, err
	}
	return p, p.find(env)
}

func hasNUL(s string) bool { return strings.ContainsRune(s, 0) }

func checkEnv(env map[string]string) error {
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || hasNUL(v) {
			return refuse("bad_env", "env", "%q can't be a variable: no name may be empty or hold =, nothing may hold a NUL byte", k)
		}
	}
	return nil
}

// environment returns all variables of a process: nothing of the guest's own.
func (s *Server) environment(extra map[string]string, name string) map[string]string {
	env := map[string]string{"USER": name, "LOGNAME": name}
	s.mu.Lock()
	for k, v := range s.env {
		env[k] = v
	}
	s.mu.Unlock()
	for k, v := range extra {
		env[k] = v
	}
	return env
}

// planUser decides who the process is. Where it is whom we are, nothing is changed: a namespace with one user may forbid to.
func (s *Server) planUser(p *plan) error {
	id, err := s.who(p.cmd.User)
	if err != nil {
		return err
	}
	p.name, p.uid, p.gid = id.name, int(id.uid), int(id.gid)
	if len(p.cmd.Groups) > 0 {
		id.groups = p.cmd.Groups
	}
	if p.uid == os.Geteuid() && p.gid == os.Getegid() && len(id.groups) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return refuse("bad_user", "user", "the helper runs as uid %d and can't start a process as uid %d", os.Geteuid(), p.uid)
	}
	p.credential = &syscall.Credential{Uid: id.uid, Gid: id.gid, Groups: id.groups, NoSetGroups: s.noSetGroups}
	return nil
}

// setGroupsDenied reports whether this user namespace forbids setgroups.
func setGroupsDenied() bool {
	b, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(b)) == "deny"
}

// startDir is where processes start unless they say otherwise.
func (s *Server) startDir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.dir, s.cfg.Workdir)
}

func (s *Server) planDir(p *plan) error {
	p.dir = s.startDir()
	if p.cmd.Dir != "" {
		p.dir = p.cmd.Dir
		if !filepath.IsAbs(p.dir) {
			p.dir = filepath.Join(s.startDir(), p.dir)
		}
	}
	if p.cmd.MakeDir {
		if err := os.MkdirAll(p.dir, 0o755); err != nil {
			return refuse("bad_dir", "dir", "%v", err)
		}
	}
	fi, err := os.Stat(p.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("bad_dir", "dir", "%s doesn't exist", p.dir)
	case err != nil:
		return refuse("bad_dir", "dir", "%v", err)
	case !fi.IsDir():
		return refuse("bad_dir", "dir", "%s is not a directory", p.dir)
	case !mayExecute(fi, p.uid, p.gid):
		return refuse("bad_dir", "dir", "%s may not be entered by uid %d", p.dir, p.uid)
	}
	return nil
}

// mayExecute reports whether the mode lets uid run a file or enter a directory.
func mayExecute(fi fs.FileInfo, uid, gid int) bool {
	mode := fi.Mode().Perm()
	if uid == 0 {
		return mode&0o111 != 0 || fi.IsDir()
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		switch {
		case int(st.Uid) == uid:
			return mode&0o100 != 0
		case int(st.Gid) == gid:
			return mode&0o010 != 0
		}
	}
	return mode&0o001 != 0
}

// find looks argv[0] up as the process itself would, in its own PATH and from its own directory.
func (p *plan) find(env map[string]string) error {
	name := p.cmd.Argv[0]
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(p.dir, path)
		}
		return p.take(path, fmt.Sprintf("%s doesn't exist", name))
	}
	list, ok := env["PATH"]
	if !ok {
		list = defaultPath
	}
	err := error(refuse("no_such_program", "argv", "no program %q in PATH (%s)", name, list))
	for _, dir := range filepath.SplitList(list) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(p.dir, dir)
		}
		e := p.take(filepath.Join(dir, name), "")
		if e == nil {
			return nil
		}
		var no *Error
		if errors.As(e, &no) && no.Code == "not_executable" {
			err = e // worth telling if nothing better comes
		}
	}
	return err
}

// take makes path the program if it can be run.
func (p *plan) take(path, missing string) error {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return refuse("no_such_program", "argv", "%s", missing)
	case err != nil:
		return refuse("no_such_program", "argv", "%v", err)
	case !fi.Mode().IsRegular():
		return refuse("not_executable", "argv", "%s is not a program", path)
	case !mayExecute(fi, p.uid, p.gid):
		return refuse("not_executable", "argv", "%s is not executable", path)
	}
	p.path = path
	return nil
}

// refusal says why the kernel didn't start the program.
func (p *plan) refusal(err error) *Error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return refuse("no_such_program", "argv", "%s can't be run: its interpreter or loader is missing", p.path)
	case errors.Is(err, syscall.ENOEXEC):
		return refuse("not_executable", "argv", "%s is not a program for this machine, nor a script that names its interpreter", p.path)
	case errors.Is(err, syscall.EACCES):
		return refuse("not_executable", "argv", "uid %d may not run %s in %s", p.uid, p.path, p.dir)
	case errors.Is(err, syscall.E2BIG), errors.Is(err, syscall.ENAMETOOLONG): // the latter is gVisor's word for it
		return refuse("bad_argv", "argv", "arguments and environment are too long")
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EINVAL):
		return refuse("bad_user", "user", "no process can be started as uid %d: %v", p.uid, err)
	default:
		return &Error{Status: 500, Code: "start_failed", Detail: fmt.Sprintf("%s can't be started: %v", p.path, err)}
	}
}
