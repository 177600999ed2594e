package build

import (
	"context"
	"path"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Bounds of what an image may say of itself.
const (
	maxPorts  = 1000
	maxEnv    = 1 << 20 // of all variables together
	maxLabels = 1 << 20
)

// apply carries out one instruction.
func (s *state) apply(ctx context.Context, ins *instruction) error {
	e := newExpander(s.script.escape, func(name string) (string, bool) { v, ok := s.vars[name]; return v, ok })
	if err := e.expand(ins.cmd); err != nil {
		return ins.problem("%s", parseText(err))
	}
	if p := checkExpanded(ins); p != nil {
		return p
	}
	switch c := ins.cmd.(type) {
	case *instructions.RunCommand:
		return s.run(ctx, ins, c)
	case *instructions.CopyCommand:
		return s.copy(ctx, ins, source{from: c.From, paths: c.SourcePaths, inline: c.SourceContents},
			target{path: c.DestPath, chown: c.Chown, chmod: c.Chmod, link: c.Link})
	case *instructions.AddCommand:
		return s.copy(ctx, ins, source{urls: c.SourcePaths, checksum: c.Checksum, inline: c.SourceContents},
			target{path: c.DestPath, chown: c.Chown, chmod: c.Chmod, link: c.Link})
	case *instructions.WorkdirCommand:
		return s.workdir(ctx, ins, c.Path)
	case *instructions.ArgCommand:
		return s.arg(ins, c, e)
	case *instructions.HealthCheckCommand:
		s.notice("HEALTHCHECK has no effect here: a sandbox's health is told by Sandlot itself")
		return nil
	}
	if p := s.set(ins); p != nil {
		return p
	}
	s.changed = true
	s.history = append(s.history, ins.text)
	return nil
}

// set carries out an instruction that only changes settings.
func (s *state) set(ins *instruction) *sandbox.Problem {
	to := &s.settings
	switch c := ins.cmd.(type) {
	case *instructions.EnvCommand:
		return s.env(ins, c.Env)
	case *instructions.LabelCommand:
		return s.label(ins, c.Labels)
	case *instructions.MaintainerCommand:
		return s.label(ins, instructions.KeyValuePairs{{Key: "maintainer", Value: c.Maintainer}})
	case *instructions.UserCommand:
		to.User = c.User
	case *instructions.ShellCommand:
		to.Shell = c.Shell
	case *instructions.CmdCommand:
		to.Cmd, s.cmdSet = s.commandLine(c.ShellDependantCmdLine), true
	case *instructions.EntrypointCommand:
		to.Entrypoint = s.commandLine(c.ShellDependantCmdLine)
		if !s.cmdSet {
			to.Cmd = nil // the base image's arguments were meant for its own entrypoint
		}
	case *instructions.StopSignalCommand:
		to.StopSignal = c.Signal
	case *instructions.VolumeCommand:
		to.Volumes = addSorted(to.Volumes, c.Volumes)
	case *instructions.ExposeCommand:
		ports, p := exposed(ins, c.Ports)
		if p != nil {
			return p
		}
		if to.Ports = addSorted(to.Ports, ports); len(to.Ports) > maxPorts {
			return ins.problem("more than %d ports", maxPorts)
		}
	default:
		return ins.refuse("is not supported")
	}
	return nil
}

// commandLine is the argument list of a shell or exec form.
func (s *state) commandLine(c instructions.ShellDependantCmdLine) []string {
	if !c.PrependShell {
		return slices.Clone(c.CmdLine)
	}
	return append(s.shell(), strings.Join(c.CmdLine, " "))
}

func (s *state) shell() []string {
	if len(s.settings.Shell) > 0 {
		return slices.Clone(s.settings.Shell)
	}
	return []string{"/bin/sh", "-c"}
}

func (s *state) env(ins *instruction, pairs instructions.KeyValuePairs) *sandbox.Problem {
	for _, kv := range pairs {
		if kv.Key == "" || strings.Contains(kv.Key, "=") {
			return ins.problem("%s is not the name of a variable", quote(kv.Key))
		}
		if len(kv.Key)+len(kv.Value)+2 > maxWord {
			return ins.problem("the variable %s is longer than %d KiB, the most that Linux takes", quote(kv.Key), maxWord>>10)
		}
		s.vars[kv.Key] = kv.Value
		s.settings.Env = setEnv(s.settings.Env, kv.Key, kv.Value)
	}
	size := 0
	for _, kv := range s.settings.Env {
		size += len(kv)
	}
	if size > maxEnv {
		return ins.problem("all variables together are longer than %d KiB", maxEnv>>10)
	}
	return nil
}

func (s *state) label(ins *instruction, pairs instructions.KeyValuePairs) *sandbox.Problem {
	if s.settings.Labels == nil {
		s.settings.Labels = map[string]string{}
	}
	for _, kv := range pairs {
		if kv.Key == "" {
			return ins.problem("a label needs a name")
		}
		s.settings.Labels[kv.Key] = kv.Value
	}
	size := 0
	for k, v := range s.settings.Labels {
		size += len(k) + len(v)
	}
	if size > maxLabels {
		return ins.problem("all labels together are longer than %d KiB", maxLabels>>10)
	}
	return nil
}

// arg declares build arguments. As with BuildKit, a value holds from here on, over an ENV of the same name that stands above; a later ENV holds over it.
func (s *state) arg(ins *instruction, c *instructions.ArgCommand, e *expander) error {
	for _, a := range c.Args {
		s.args[a.Key] = true
		value, given := s.req.Args[a.Key]
		platform, isPlatform := platformArgs()[a.Key]
		switch {
		case given:
		case a.Value != nil:
			v, err := e.word(*a.Value)
			if err != nil {
				return ins.problem("%s", err)
			}
			value = v
		case isPlatform:
			value = platform
		default:
			continue // declared, without a value: not a variable at all
		}
		if len(a.Key)+len(value)+2 > maxWord {
			return ins.problem("the build argument %s is longer than %d KiB, the most that Linux takes", quote(a.Key), maxWord>>10)
		}
		s.vars[a.Key] = value
	}
	return nil
}

// platformArgs are the arguments that have a value without being given one, once an ARG asks for them.
func platformArgs() map[string]string {
	p := "linux/" + runtime.GOARCH
	return map[string]string{
		"TARGETPLATFORM": p, "TARGETOS": "linux", "TARGETARCH": runtime.GOARCH, "TARGETVARIANT": "",
		"BUILDPLATFORM": p, "BUILDOS": "linux", "BUILDARCH": runtime.GOARCH, "BUILDVARIANT": "",
	}
}

// checkExpanded refuses what can't be right after expansion, whatever the image is.
func checkExpanded(ins *instruction) *sandbox.Problem {
	switch c := ins.cmd.(type) {
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(c) {
			if p := refuseMount(ins, m); p != nil {
				return p
			}
		}
	case *instructions.CopyCommand, *instructions.AddCommand:
		return refuseCommand(ins)
	case *instructions.UserCommand:
		if strings.TrimSpace(c.User) == "" || strings.Count(c.User, ":") > 1 {
			return ins.problem("USER needs USER or USER:GROUP, and is %s", quote(c.User))
		}
	case *instructions.WorkdirCommand:
		if strings.TrimSpace(c.Path) == "" {
			return ins.problem("WORKDIR is empty")
		}
	case *instructions.VolumeCommand:
		if slices.Contains(c.Volumes, "") {
			return ins.problem("a volume needs a path")
		}
	case *instructions.StopSignalCommand:
		if !isSignal(c.Signal) {
			return ins.problem("%s is not a signal", quote(c.Signal))
		}
	case *instructions.ExposeCommand:
		_, p := exposed(ins, c.Ports)
		return p
	}
	return nil
}

// isSignal knows signals by number and by name, with and without SIG, and the real-time ones, which stop some init systems.
func isSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n >= 1 && n <= 64
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if unix.SignalNum(name) != 0 {
		return true
	}
	for prefix, most := range map[string]int{"SIGRTMIN": 30, "SIGRTMAX": 30} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if rest == "" {
			return true
		}
		sign := map[string]byte{"SIGRTMIN": '+', "SIGRTMAX": '-'}[prefix]
		n, err := strconv.ParseUint(rest[1:], 10, 8)
		return rest[0] == sign && err == nil && int(n) <= most
	}
	return false
}

// exposed reads EXPOSE: ports and ranges of them, each with its protocol.
func exposed(ins *instruction, specs []string) ([]string, *sandbox.Problem) {
	var out []string
	for _, spec := range specs {
		ports, proto, _ := strings.Cut(spec, "/")
		if proto = strings.ToLower(proto); proto == "" {
			proto = "tcp"
		}
		if !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
			return nil, ins.problem("%s: the protocol must be tcp, udp or sctp", quote(spec))
		}
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to {
			return nil, ins.problem("%s is not a port, or a range of ports, up to 65535", quote(spec))
		}
		if int(to-from)+len(out) >= maxPorts {
			return nil, ins.problem("more than %d ports", maxPorts)
		}
		for n := from; n <= to; n++ {
			out = append(out, strconv.FormatUint(n, 10)+"/"+proto)
		}
	}
	return out, nil
}

// addSorted adds what is not there yet.
func addSorted(to, more []string) []string {
	to = append(slices.Clone(to), more...)
	slices.Sort(to)
	return slices.Compact(to)
}

// setEnv sets a variable where it stands, or at the end.
func setEnv(env []string, key, value string) []string {
	for i, kv := range env {
		if k, _ := cutEnv(kv); k == key {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

func cutEnv(kv string) (key, value string) {
	key, value, _ = strings.Cut(kv, "=")
	return key, value
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// absolute makes p absolute, from the working directory; whether it ended in a slash is for the caller to see.
func (s *state) absolute(p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join("/", s.settings.Workdir, p)
}
