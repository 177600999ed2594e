package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/http/httpproxy"

	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/server"
)

// config is what the server is told at its start. Each flag has an environment variable of the same name, SANDLOT_…; a
// flag that is given wins.
type config struct {
	Listen      string
	PreviewHost string
	Data        string
	Database    string
	Toolkit     string
	DemoModel   bool
	Debug       bool

	// What the operator opens to sandboxes though it isn't on the public internet.
	EgressPrivate     []netip.Prefix // to the programs in them
	PrivateRegistries []string       // to the pulls of their images, as host or host:port
	egressPrivate     []string       // EgressPrivate as it was given

	MaxSuspended time.Duration // for which a sandbox may be suspended before it ends
	OpenSubnet   netip.Prefix  // where sandboxes with a network device have their addresses
	Pool         int           // sandboxes of each image in use that are started ahead
	RunRetention time.Duration // for which the output of runs is kept
	RunOutputMiB int64         // of all output that is kept of an account

	SessionIdle   time.Duration // for which Claude's process is kept without a turn
	PromptTimeout time.Duration // after which what Claude asks is denied

	// Secrets come from the environment only: arguments are there for everybody to see.
	AdminKey     string
	AnthropicKey string
	Upstream     *url.URL
	Proxy        func(*url.URL) (*url.URL, error) // the way to Upstream: HTTPS_PROXY and its like

	// Env is the environment as it was, for the programs of this host that the server starts (npm).
	Env []string
}

// flags adds the flags of config to a command.
func (c *config) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.Data, "data", "", "directory for all data (SANDLOT_DATA; default $XDG_DATA_HOME/sandlot or ~/.local/share/sandlot)")
	f.StringVar(&c.Toolkit, "toolkit", "", "directory in which the Claude Code CLI is, or will be put (SANDLOT_TOOLKIT; default DATA/toolkit)")
	f.StringVar(&c.Database, "database", "", "sqlite:PATH (SANDLOT_DATABASE; default sqlite:DATA/sandlot.db)")
}

func (c *config) serveFlags(cmd *cobra.Command) {
	c.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&c.Listen, "listen", "127.0.0.1:8080", "address to serve on (SANDLOT_LISTEN)")
	f.StringVar(&c.PreviewHost, "preview-host", "", "`host` below which previews of sandboxes are, [https://]NAME[:PORT]; *.NAME must lead here "+
		"(SANDLOT_PREVIEW_HOST; default localhost:PORT when listening on loopback, else none)")
	f.BoolVar(&c.DemoModel, "demo-model", false, "answer from a script instead of a model (SANDLOT_DEMO_MODEL=1)")
	f.DurationVar(&c.SessionIdle, "session-idle", 10*time.Minute, "how long Claude's process is kept without a turn (SANDLOT_SESSION_IDLE)")
	f.DurationVar(&c.PromptTimeout, "prompt-timeout", 30*time.Minute, "after which what Claude asks a person is denied (SANDLOT_PROMPT_TIMEOUT)")
	f.DurationVar(&c.MaxSuspended, "max-suspended", 30*24*time.Hour, "how long a sandbox may be suspended before it ends (SANDLOT_MAX_SUSPENDED)")
	f.TextVar(&c.OpenSubnet, "open-subnet", local.DefaultOpenSubnet,
		"private IPv4 addresses, used by nobody else, for sandboxes with network mode open (SANDLOT_OPEN_SUBNET)")
	f.IntVar(&c.Pool, "pool", 1, "how many sandboxes of each image in use are started ahead, so that a new one is there at once; each needs about 50 MiB; 0 for none (SANDLOT_POOL)")
	f.DurationVar(&c.RunRetention, "run-retention", 30*24*time.Hour, "how long the output of runs is kept (SANDLOT_RUN_RETENTION)")
	f.Int64Var(&c.RunOutputMiB, "run-output-mib", 1024,
		"MiB of output that are kept of an account's runs, the newest; of each run at most 4, its beginning and its end (SANDLOT_RUN_OUTPUT_MIB)")
	f.BoolVar(&c.Debug, "debug", false, "log more (SANDLOT_DEBUG=1)")
	f.StringSliceVar(&c.egressPrivate, "egress-private", nil,
		"private addresses that sandboxes may be allowed to reach, as CIDR,… (SANDLOT_EGRESS_PRIVATE); this machine's own only one by one")
	f.StringSliceVar(&c.PrivateRegistries, "private-registries", nil,
		"image registries on private addresses, as HOST[:PORT],… (SANDLOT_PRIVATE_REGISTRIES)")
}

// fill takes what flags didn't say from the environment and the defaults, and checks everything.
func (c *config) fill(cmd *cobra.Command, environ []string) error {
	env := map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		env[name] = value
	}
	var errs []error
	text := func(flag, name string, dst *string) {
		if v := env[name]; v != "" && !cmd.Flags().Changed(flag) {
			*dst = v
		}
	}
	boolean := func(flag, name string, dst *bool) {
		if v := env[name]; v != "" && !cmd.Flags().Changed(flag) {
			b, err := strconv.ParseBool(v)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s=%q: use 1 or 0", name, v))
			}
			*dst = b
		}
	}
	list := func(flag, name string, dst *[]string) {
		if v := env[name]; v != "" && !cmd.Flags().Changed(flag) {
			*dst = strings.Split(v, ",")
		}
	}
	text("data", "SANDLOT_DATA", &c.Data)
	text("database", "SANDLOT_DATABASE", &c.Database)
	text("toolkit", "SANDLOT_TOOLKIT", &c.Toolkit)
	text("listen", "SANDLOT_LISTEN", &c.Listen)
	span := func(flag, name string, dst *time.Duration) {
		if v := env[name]; v != "" && !cmd.Flags().Changed(flag) {
			d, err := time.ParseDuration(v)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s=%q: use a time like 10m or 720h", name, v))
			}
			*dst = d
		}
	}
	span("max-suspended", "SANDLOT_MAX_SUSPENDED", &c.MaxSuspended)
	serving := cmd.Flags().Lookup("run-retention") != nil // no other command has these
	span("session-idle", "SANDLOT_SESSION_IDLE", &c.SessionIdle)
	span("prompt-timeout", "SANDLOT_PROMPT_TIMEOUT", &c.PromptTimeout)
	span("run-retention", "SANDLOT_RUN_RETENTION", &c.RunRetention)
	for flag, d := range map[string]time.Duration{"session-idle": c.SessionIdle, "prompt-timeout": c.PromptTimeout} {
		if serving && d < time.Second {
			errs = append(errs, fmt.Errorf("--%s: %v is less than a second", flag, d))
		}
	}
	if c.MaxSuspended < 0 {
		errs = append(errs, fmt.Errorf("--max-suspended: %v is below 0", c.MaxSuspended))
	}
	if v := env["SANDLOT_RUN_OUTPUT_MIB"]; v != "" && !cmd.Flags().Changed("run-output-mib") {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("SANDLOT_RUN_OUTPUT_MIB=%q: use a number", v))
			n = c.RunOutputMiB
		}
		c.RunOutputMiB = n
	}
	if serving && c.RunRetention <= 0 {
		errs = append(errs, fmt.Errorf("--run-retention: %v is not above 0", c.RunRetention))
	}
	if serving && (c.RunOutputMiB < 1 || c.RunOutputMiB > 1<<40) {
		errs = append(errs, fmt.Errorf("--run-output-mib: %d is not above 0", c.RunOutputMiB))
	}
	if v := env["SANDLOT_POOL"]; v != "" && !cmd.Flags().Changed("pool") {
		n, err := strconv.Atoi(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("SANDLOT_POOL=%q: use a number", v))
		}
		c.Pool = n
	}
	if c.Pool < 0 || c.Pool > local.MaxPool {
		errs = append(errs, fmt.Errorf("--pool: %d is not from 0 to %d", c.Pool, local.MaxPool))
	}
	if v := env["SANDLOT_OPEN_SUBNET"]; v != "" && !cmd.Flags().Changed("open-subnet") {
		if err := c.OpenSubnet.UnmarshalText([]byte(v)); err != nil {
			errs = append(errs, fmt.Errorf("SANDLOT_OPEN_SUBNET: %w", err))
		}
	}
	text("preview-host", "SANDLOT_PREVIEW_HOST", &c.PreviewHost)
	boolean("demo-model", "SANDLOT_DEMO_MODEL", &c.DemoModel)
	boolean("debug", "SANDLOT_DEBUG", &c.Debug)
	list("egress-private", "SANDLOT_EGRESS_PRIVATE", &c.egressPrivate)
	list("private-registries", "SANDLOT_PRIVATE_REGISTRIES", &c.PrivateRegistries)
	c.AdminKey, c.AnthropicKey, c.Env = env["SANDLOT_ADMIN_KEY"], env["ANTHROPIC_API_KEY"], environ

	if c.AdminKey != "" && len(c.AdminKey) < minAdminKey {
		errs = append(errs, fmt.Errorf("SANDLOT_ADMIN_KEY: use at least %d characters", minAdminKey))
	}
	if err := c.fillData(env); err != nil {
		errs = append(errs, err)
	}
	if err := c.fillPrivate(); err != nil {
		errs = append(errs, err)
	}
	if c.Database == "" {
		c.Database = "sqlite:" + filepath.Join(c.Data, "sandlot.db")
	}
	if _, _, err := net.SplitHostPort(c.Listen); c.Listen != "" && err != nil {
		errs = append(errs, fmt.Errorf("--listen: %w; use HOST:PORT, for example 127.0.0.1:8080", err))
	}
	if c.PreviewHost != "" {
		if err := server.CheckPreviewHost(c.PreviewHost); err != nil {
			errs = append(errs, fmt.Errorf("--preview-host: %w", err))
		}
	}
	base := env["ANTHROPIC_BASE_URL"]
	if base == "" {
		base = "https://api.anthropic.com"
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		errs = append(errs, fmt.Errorf("ANTHROPIC_BASE_URL=%q: use a URL like https://api.anthropic.com", base))
	}
	c.Upstream = u
	c.Proxy = httpproxy.FromEnvironment().ProxyFunc()
	return errors.Join(errs...)
}

const minAdminKey = 16

// The options that open private addresses, as refusals name them.
const (
	optionEgress     = "--egress-private"
	optionRegistries = "--private-registries"
)

// dialer connects on behalf of sandboxes: to public addresses only, and what the operator opened. option is how, for who is refused.
func (c *config) dialer(option string) *netguard.Dialer {
	return &netguard.Dialer{Allow: c.EgressPrivate, Proxy: c.Proxy, Option: option}
}

// fillPrivate reads what is opened of the private network.
func (c *config) fillPrivate() error {
	for _, s := range c.egressPrivate {
		s = strings.TrimSpace(s)
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p != p.Masked() {
			return fmt.Errorf("--egress-private: %q: use a range of addresses like 10.20.0.0/16, or an address", s)
		}
		c.EgressPrivate = append(c.EgressPrivate, p)
	}
	for i, h := range c.PrivateRegistries {
		c.PrivateRegistries[i] = strings.TrimSpace(h)
	}
	if err := netguard.CheckHosts(c.PrivateRegistries); err != nil {
		return fmt.Errorf("--private-registries: %w; use HOST or HOST:PORT", err)
	}
	return nil
}

func (c *config) fillData(env map[string]string) error {
	if c.Data == "" {
		switch {
		case env["XDG_DATA_HOME"] != "":
			c.Data = filepath.Join(env["XDG_DATA_HOME"], "sandlot")
		case env["HOME"] != "":
			c.Data = filepath.Join(env["HOME"], ".local", "share", "sandlot")
		default:
			return errors.New("--data: HOME is not set, so say where the data should be")
		}
	}
	abs, err := filepath.Abs(c.Data)
	if err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	c.Data = abs
	if c.Toolkit == "" {
		c.Toolkit = filepath.Join(c.Data, "toolkit")
	}
	c.Toolkit, err = filepath.Abs(c.Toolkit)
	return err
}

// loadConfig fills c for cmd and makes the data directory.
func loadConfig(cmd *cobra.Command, c *config) error {
	if err := c.fill(cmd, os.Environ()); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Data, 0o711); err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	return nil
}
