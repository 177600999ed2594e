package lifecycle

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Request is what somebody asks of a new sandbox. The zero value of a field means its default.
type Request struct {
	Account   string
	Name      string        // for people; default: two words
	Engine    string        // default: the first
	Image     sandbox.Image // Source, Commands and the names of secrets; default: sandbox.HostImage
	Volume    string        // name of the account's volume, made on first use; default: a fresh one
	Workdir   string        // default: /workspace
	Labels    map[string]string
	Env       map[string]string
	CPU       float64 // cores; 0 = not limited
	MemoryMiB int64   // 0 = not limited
	DiskMiB   int64   // default: 10240
	Timeout   time.Duration
	GPU       string
	Network   sandbox.Network // default: sandbox.NetworkEgress to every public host

	PIDs       int64 // default: sandbox.DefaultPIDs
	OpenFiles  int64 // default: sandbox.DefaultOpenFiles
	OutputKiBS int64 // 0 = not limited
}

// Bounds on what a request may ask for.
const (
	maxName       = 100
	maxLabels     = 32
	maxLabelKey   = 63
	maxLabelValue = 255
	maxEnv        = 1000
	maxEnvValue   = 128 << 10 // the kernel takes no longer string
	maxWorkdir    = 255
	minDiskMiB    = 16
	maxMiB        = 16 << 20 // 16 TiB
)

var (
	volumeName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)
	labelKey   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$`)
	envName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

	// reservedEnv leads to the server's gateway.
	reservedEnv = []string{"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}

	// A volume must not hide what a sandbox needs: neither these directories, nor anything below the first ones.
	systemTrees = []string{"/usr", "/etc", "/proc", "/dev", "/sys", "/run", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/boot",
		"/var/lib/sandlot", "/var/run", "/opt/sandlot"}
	systemDirs = []string{"/", "/tmp", "/opt", "/var", "/var/lib", "/var/tmp", "/home"}
)

// plan checks a request, fills in the defaults and finds the engine. The volume has its name only.
func (m *Manager) plan(req Request) (sandbox.Spec, engine.Engine, error) {
	spec := sandbox.Spec{
		Image:     req.Image,
		Volume:    sandbox.Volume{Name: req.Volume},
		Workdir:   cmp.Or(req.Workdir, sandbox.DefaultWorkdir),
		Dir:       req.Workdir,
		Env:       req.Env,
		Labels:    req.Labels,
		CPU:       req.CPU,
		MemoryMiB: req.MemoryMiB,
		DiskMiB:   cmp.Or(req.DiskMiB, sandbox.DefaultDiskMiB),
		Timeout:   cmp.Or(req.Timeout, m.cfg.DefaultTimeout),
		GPU:       req.GPU,
		Network:   req.Network,

		PIDs:       cmp.Or(req.PIDs, sandbox.DefaultPIDs),
		OpenFiles:  cmp.Or(req.OpenFiles, sandbox.DefaultOpenFiles),
		OutputKiBS: req.OutputKiBS,
	}
	spec.Image.Source = cmp.Or(spec.Image.Source, sandbox.HostImage)
	e, err := m.engineNamed(req.Engine)
	if err != nil {
		return spec, nil, err
	}
	if err := checkName(req.Name); err != nil {
		return spec, nil, err
	}
	caps := e.Capabilities()
	if spec.Network, err = m.policy(req.Network, caps); err != nil {
		return spec, nil, err
	}
	spec.LimitedBy = caps.Limits
	return spec, e, m.check(spec, caps)
}

// check returns the first thing that is wrong with spec, as a Problem.
func (m *Manager) check(spec sandbox.Spec, caps engine.Capabilities) error {
	for _, check := range []func() error{
		func() error { return checkVolume(spec.Volume.Name) },
		func() error { return checkWorkdir(spec.Workdir) },
		func() error { return checkLabels(spec.Labels) },
		func() error { return checkEnv(spec.Env) },
		func() error { return checkLimits(spec, caps) },
		func() error { return checkGPU(spec.GPU, caps) },
		func() error { return m.checkTimeout(spec.Timeout, caps) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func checkName(name string) error {
	if utf8.RuneCountInString(name) > maxName || !printable(name) {
		return sandbox.Invalid("name", "The name must have at most %d characters, all of them visible.", maxName)
	}
	return nil
}

// printable reports whether s is text on one line.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// policy fills in the defaults of a network policy and checks it.
func (m *Manager) policy(n sandbox.Network, caps engine.Capabilities) (sandbox.Network, error) {
	n.Mode = cmp.Or(n.Mode, sandbox.NetworkEgress)
	if n.Mode == sandbox.NetworkEgress && n.Allow == nil {
		n.Allow = []string{"*"}
	}
	if !slices.Contains(caps.Networks, n.Mode) {
		if n.Mode == sandbox.NetworkOpen && caps.NoOpen != "" {
			return n, unsupported("network.mode", "The network mode %q is not available here: %s.", n.Mode, caps.NoOpen)
		}
		var names []string
		for _, mode := range caps.Networks {
			names = append(names, fmt.Sprintf("%q", mode))
		}
		return n, unsupported("network.mode", "The network mode %.64q is not available here; available: %s.", string(n.Mode), strings.Join(names, ", "))
	}
	if n.Mode != sandbox.NetworkEgress && len(n.Allow) > 0 {
		return n, sandbox.Invalid("network.allow", "Only the mode %q has an allow-list.", sandbox.NetworkEgress)
	}
	if m.cfg.Gateway == nil {
		return n, nil
	}
	return n, m.cfg.Gateway.CheckPolicy(n)
}

// unsupported is a Problem with a request that another server might grant.
func unsupported(field, format string, args ...any) error {
	p := sandbox.Invalid(field, format, args...)
	p.Code = "unsupported"
	return p
}

func checkVolume(name string) error {
	if name != "" && !volumeName.MatchString(name) {
		return sandbox.Invalid("volume", "The name of a volume has 1 to 64 of a-z, 0-9, _, . and -, and begins with a letter or a digit.")
	}
	return nil
}

func checkWorkdir(dir string) error {
	if !path.IsAbs(dir) || path.Clean(dir) != dir || len(dir) > maxWorkdir || !printable(dir) {
		return sandbox.Invalid("workdir", "The workdir must be an absolute path without \".\", \"..\" or a slash at its end, of at most %d bytes.", maxWorkdir)
	}
	if slices.Contains(systemDirs, dir) || slices.ContainsFunc(systemTrees, func(tree string) bool { return dir == tree || strings.HasPrefix(dir, tree+"/") }) {
		return sandbox.Invalid("workdir", "The workdir can't be %s: the volume would hide what the sandbox needs there. Take /workspace, for example.", dir)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return sandbox.Invalid("labels", "There are %d labels; at most %d are allowed.", len(labels), maxLabels)
	}
	for key, value := range labels {
		if len(key) > maxLabelKey || !labelKey.MatchString(key) {
			return sandbox.Invalid("labels", "A label's key has 1 to %d letters, digits and . _ / - and begins and ends with a letter or a digit; %.100q doesn't.", maxLabelKey, key)
		}
		if len(value) > maxLabelValue || !printable(value) {
			return sandbox.Invalid("labels", "The value of label %q must be one line of at most %d bytes.", key, maxLabelValue)
		}
	}
	return nil
}

func checkEnv(env map[string]string) error {
	if len(env) > maxEnv {
		return sandbox.Invalid("env", "There are %d variables; at most %d are allowed.", len(env), maxEnv)
	}
	for name, value := range env {
		switch {
		case !envName.MatchString(name):
			return sandbox.Invalid("env", "A variable's name is made of letters, digits and _, and doesn't begin with a digit; %.100q isn't.", name)
		case slices.Contains(reservedEnv, name):
			return sandbox.Invalid("env", "%s can't be set: it leads to the server's gateway, which holds the key and keeps the network policy so that the sandbox need not.", name)
		case strings.ContainsRune(value, 0) || len(name)+len(value) >= maxEnvValue:
			return sandbox.Invalid("env", "The value of %.100s holds a NUL byte or is too long; at most %d bytes are allowed.", name, maxEnvValue)
		}
	}
	return nil
}

func (m *Manager) checkTimeout(timeout time.Duration, caps engine.Capabilities) error {
	most := m.cfg.MaxTimeout
	if caps.MaxLifetime > 0 {
		most = min(most, caps.MaxLifetime)
	}
	if timeout < time.Second || timeout > most {
		return sandbox.Invalid("timeout_s", "The time limit must be between 1 and %d seconds (%s).", int64(most/time.Second), span(most))
	}
	return nil
}
