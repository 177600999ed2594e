package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/gateway"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/store"
	"github.com/sandlot-dev/sandlot/internal/vault"
	"github.com/sandlot-dev/sandlot/web"
)

// firstAccount is the name of the account that a new server starts with.
const firstAccount = "main"

func serveCommand() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server. Sandboxes outlive it: the next start on the same data directory finds them again.

Environment: SANDLOT_ADMIN_KEY sets the first account's admin key (otherwise one is made and printed once);
ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL say which model service the server's gateway uses.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := loadConfig(cmd, &cfg); err != nil {
				return err
			}
			if err := local.EnterNamespaces(); err != nil {
				return err
			}
			// gVisor's gofer inherits our environment, and our log stays ours when it takes over the standard streams.
			os.Clearenv()
			level := slog.LevelInfo
			if cfg.Debug {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			return serve(cmd.Context(), cfg, log, cmd.OutOrStdout())
		},
	}
	cfg.serveFlags(cmd)
	return cmd
}

// serve runs the server until ctx is done. It reads as the wiring diagram.
func serve(ctx context.Context, cfg config, log *slog.Logger, stdout io.Writer) (err error) {
	var open closers
	defer func() { err = errors.Join(err, open.close()) }()

	unlock, err := lockData(ctx, cfg.Data)
	if err != nil {
		return err
	}
	open.add("data directory", unlock)

	ln, err := listen(ctx, cfg.Listen) // a busy port fails before anything is done
	if err != nil {
		return err
	}
	open.add("listener", func() error { _ = ln.Close(); return nil }) // the server has closed it, if it came so far
	base := "http://" + ln.Addr().String()

	st, err := store.Open(ctx, cfg.Database)
	if err != nil {
		return err
	}
	open.add("store", st.Close)

	gw, err := newGateway(ctx, cfg, st, log)
	if err != nil {
		return err
	}
	toolkit := claude.OpenToolkit(claude.ToolkitConfig{Dir: cfg.Toolkit, Env: cfg.Env, Log: log})
	if err := toolkit.Ensure(ctx); err != nil {
		return fmt.Errorf("getting Claude Code: %w", err)
	}
	secrets, err := vault.Open(st, filepath.Join(cfg.Data, "vault.key"))
	if err != nil {
		return err
	}
	eng, err := openLocal(cfg, toolkit, log)
	if err != nil {
		return err
	}
	open.add("engine", eng.Close)

	env := claude.Env(eng.Capabilities().AgentIsRoot)
	trial := tryOut(ctx, st, eng, env, log)
	for name, value := range trial.Env {
		env[name] = value
	}

	mgr, err := lifecycle.New(lifecycle.Config{
		Store: st, Engines: []engine.Engine{eng}, Gateway: gw, Secrets: secrets, Env: env, Prepare: claude.FirstRun{Token: gw.Token}.Prepare, Log: log,
		MaxSuspended: cfg.MaxSuspended,
		RunsDir:      filepath.Join(cfg.Data, "runs"), RunRetention: cfg.RunRetention, AccountRunBytes: cfg.RunOutputMiB << 20,
		EnvOf: func(sb sandbox.Sandbox) map[string]string { return claude.EnvOf(sb.Spec) },
	})
	if err != nil {
		return err
	}
	sessions := claude.NewSessions(claude.Config{Runner: mgr, Store: st, Log: log, Idle: cfg.SessionIdle, PromptTimeout: cfg.PromptTimeout})

	access, err := firstAccess(ctx, cfg, st)
	if err != nil {
		return err
	}
	health := api.Health{Status: "ok", Version: version, Model: modelName(cfg), Claude: claude.Version,
		Engine: local.Name, Isolation: eng.Capabilities().Isolation}
	if trial.Problem != "" {
		health.Status, health.Problem = "failing", trial.Problem
	}
	previewSecret, err := secretOf(ctx, st, "preview_secret")
	if err != nil {
		return err
	}
	srv, err := server.New(server.Config{
		Manager: mgr, Sessions: sessions, Store: st, Secrets: secrets, UI: web.FS(), Version: version, Log: log,
		PreviewHost: previewHost(cfg, ln.Addr()), PreviewSecret: previewSecret,
		Health: func() api.Health { return health },
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(cfg.Data, urlFile), []byte(base+"\n"), 0o600); err != nil {
		return err
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return mgr.Serve(ctx) })      // takes up what is there, then reaps and reconciles
	g.Go(func() error { return sessions.Serve(ctx) }) // takes up the turns that are running
	g.Go(func() error { return srv.Serve(ctx, ln) })
	announce(stdout, cfg, base, access, trial)
	return g.Wait()
}

// newGateway opens the way to the model. Tokens of sandboxes stay valid over a restart: their secret is in the store.
func newGateway(ctx context.Context, cfg config, st *store.Store, log *slog.Logger) (*gateway.Gateway, error) {
	secret, err := secretOf(ctx, st, "gateway_secret")
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = func(r *http.Request) (*url.URL, error) { return cfg.Proxy(r.URL) } // our environment has been cleared
	gc := gateway.Config{
		Upstream: cfg.Upstream, Key: cfg.AnthropicKey, Secret: secret, Transport: transport, Log: log, Egress: *cfg.dialer(optionEgress),
		Policy: func(ctx context.Context, id sandbox.ID) (gateway.Policy, error) {
			sb, err := st.Sandbox(ctx, "", id)
			return sb.Spec.Network, err
		},
	}
	if cfg.DemoModel {
		gc.Demo = gateway.NewDemo()
	}
	return gateway.New(gc)
}

// secretOf returns the installation's secret of that name, which the first caller makes.
func secretOf(ctx context.Context, st *store.Store, name string) ([]byte, error) {
	fresh := make([]byte, 32)
	_, _ = rand.Read(fresh) // never fails
	return st.PutSettingIfAbsent(ctx, name, fresh)
}

// previewHost is where previews are. On a person's own machine no DNS is needed: names below localhost lead to 127.0.0.1 in browsers.
func previewHost(cfg config, listening net.Addr) string {
	if cfg.PreviewHost != "" {
		return cfg.PreviewHost
	}
	addr, ok := listening.(*net.TCPAddr)
	if !ok || !addr.IP.Equal(net.IPv4(127, 0, 0, 1)) && !addr.IP.Equal(net.IPv6loopback) {
		return ""
	}
	return net.JoinHostPort("localhost", strconv.Itoa(addr.Port))
}

func modelName(cfg config) string {
	if cfg.DemoModel {
		return "demo"
	}
	return "anthropic"
}

func openLocal(cfg config, toolkit *claude.Toolkit, log *slog.Logger) (*local.Engine, error) {
	program, err := installGuest(filepath.Join(cfg.Data, "guest"))
	if err != nil {
		return nil, err
	}
	return local.Open(local.Config{
		Dir: filepath.Join(cfg.Data, "local"), Guest: program, Log: log,
		Mounts:   []local.Mount{{Source: toolkit.Dir(), Target: claude.MountPoint}},
		Registry: netguard.Transport(cfg.dialer(optionRegistries), cfg.PrivateRegistries), Fetch: netguard.Transport(cfg.dialer(optionEgress), nil),
		OpenSubnet: cfg.OpenSubnet, Pool: cfg.Pool,
	})
}

// lockData makes sure that only one server works in a data directory. The lock ends with the process, however it ends.
func lockData(ctx context.Context, data string) (func() error, error) {
	f, err := os.OpenFile(filepath.Join(data, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data: %w", err)
	}
	err = whilePredecessorEnds(ctx, unix.EWOULDBLOCK, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--data: another server is running in %s: %w", data, err), f.Close())
	}
	return f.Close, nil
}

func listen(ctx context.Context, address string) (ln net.Listener, err error) {
	err = whilePredecessorEnds(ctx, unix.EADDRINUSE, func() error {
		ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	return ln, nil
}

// whilePredecessorEnds tries again for a moment while try fails with busy: a server that was just killed may hold on a little.
func whilePredecessorEnds(ctx context.Context, busy error, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		err := try()
		if !errors.Is(err, busy) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// closers are closed in reverse order of being opened.
type closers []closer

type closer struct {
	name  string
	close func() error
}

func (c *closers) add(name string, f func() error) { *c = append(*c, closer{name, f}) }

func (c *closers) close() error {
	var errs []error
	for _, cl := range slices.Backward(*c) {
		if err := cl.close(); err != nil {
			errs = append(errs, fmt.Errorf("closing the %s: %w", cl.name, err))
		}
	}
	return errors.Join(errs...)
}
