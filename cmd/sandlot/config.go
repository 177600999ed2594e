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

	"github.com/spf13/cobra"
	"golang.org/x/net/http/httpproxy"

	"github.com/sandlot-dev/sandlot/internal/netguard"
)

// config is what the server is told at its start. Each flag has an environment variable of the same name, SANDLOT_…; a
// flag that is given wins.
type config struct {
	Listen    string
	Data      string
	Database  string
	Toolkit   string
	DemoModel bool

	// What operators open that is closed to sandboxes otherwise.
	EgressPrivate     []netip.Prefix // for the proxy of sandboxes
	PrivateRegistries []string       // HOST or HOST:PORT, for pulls of images
	Debug             bool

	// Secrets come from the environment only: arguments are there for everybody to see.
	AdminKey     string
	AnthropicKey string
	Upstream     *url.URL
	Proxy        func(*url.URL) (*url.URL, error) // the way to Upstream: HTTPS_PROXY and its like

	egressPrivate string

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
	f.BoolVar(&c.DemoModel, "demo-model", false, "answer from a script instead of a model (SANDLOT_DEMO_MODEL=1)")
	f.StringVar(&c.egressPrivate, "egress-private", "", "private networks that sandboxes in network mode egress may reach, if their allow-list says so: CIDR,… (SANDLOT_EGRESS_PRIVATE)")
	f.StringSliceVar(&c.PrivateRegistries, "private-registries", nil, "registries that may be at private addresses: HOST[:PORT],… (SANDLOT_PRIVATE_REGISTRIES)")
	f.BoolVar(&c.Debug, "debug", false, "log more (SANDLOT_DEBUG=1)")
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
	text("data", "SANDLOT_DATA", &c.Data)
	text("database", "SANDLOT_DATABASE", &c.Database)
	text("toolkit", "SANDLOT_TOOLKIT", &c.Toolkit)
	text("listen", "SANDLOT_LISTEN", &c.Listen)
	text("egress-private", "SANDLOT_EGRESS_PRIVATE", &c.egressPrivate)
	if v := env["SANDLOT_PRIVATE_REGISTRIES"]; v != "" && !cmd.Flags().Changed("private-registries") {
		c.PrivateRegistries = strings.Split(v, ",")
	}
	for _, s := range strings.FieldsFunc(c.egressPrivate, func(r rune) bool { return r == ',' || r == ' ' }) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("--egress-private: %q is not a network like 10.1.0.0/16", s))
			continue
		}
		c.EgressPrivate = append(c.EgressPrivate, p.Masked())
	}
	if err := netguard.CheckHosts(c.PrivateRegistries); err != nil {
		errs = append(errs, fmt.Errorf("--private-registries: %w", err))
	}
	boolean("demo-model", "SANDLOT_DEMO_MODEL", &c.DemoModel)
	boolean("debug", "SANDLOT_DEBUG", &c.Debug)
	c.AdminKey, c.AnthropicKey, c.Env = env["SANDLOT_ADMIN_KEY"], env["ANTHROPIC_API_KEY"], environ

	if c.AdminKey != "" && len(c.AdminKey) < minAdminKey {
		errs = append(errs, fmt.Errorf("SANDLOT_ADMIN_KEY: use at least %d characters", minAdminKey))
	}
	if err := c.fillData(env); err != nil {
		errs = append(errs, err)
	}
	if c.Database == "" {
		c.Database = "sqlite:" + filepath.Join(c.Data, "sandlot.db")
	}
	if _, _, err := net.SplitHostPort(c.Listen); c.Listen != "" && err != nil {
		errs = append(errs, fmt.Errorf("--listen: %w; use HOST:PORT, for example 127.0.0.1:8080", err))
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

// dialer connects on behalf of sandboxes: to public addresses only, and what the operator opened.
func (c *config) dialer() *netguard.Dialer {
	return &netguard.Dialer{Allow: c.EgressPrivate, Proxy: c.Proxy}
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
