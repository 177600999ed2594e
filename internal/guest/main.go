package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Main is the helper program. args are those after its name. It returns the exit status: 0 when it ended as it should, by a
// signal or at the deadline.
func Main(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg, err := parseArgs(args, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2 // the flag package has said why
	}
	cfg.Log = log
	if err := serve(cfg); err != nil {
		log.Error("the guest failed", "err", err)
		return 1
	}
	return 0
}

// parseArgs reads the command line.
func parseArgs(args []string, out io.Writer) (Config, error) {
	cfg := Config{Confine: true, Version: version()}
	fs := flag.NewFlagSet("sandlot-guest", flag.ContinueOnError)
	fs.SetOutput(out)
	socketDir := fs.String("socket-dir", SocketDir, "`directory` to listen in")
	fs.StringVar(&cfg.StateDir, "state-dir", StateDir, "`directory` for the output of runs")
	fs.StringVar(&cfg.Workdir, "workdir", "/workspace", "`directory` in which processes start")
	fs.StringVar(&cfg.GatewayAddr, "gateway", Gateway, "loopback `address` that leads to the host's gateway; empty for none")
	fs.BoolVar(&cfg.Furnish, "furnish", false, "add to /etc, /tmp and /root what an image lacks; for a file system that is the sandbox's own")
	fs.Func("dir", "absolute `path` of a directory to make where it is missing; may be repeated", func(s string) error {
		if !filepath.IsAbs(s) {
			return fmt.Errorf("%q is not absolute", s)
		}
		cfg.Dirs = append(cfg.Dirs, s)
		return nil
	})
	fs.DurationVar(&cfg.Grace, "grace", 0, "`time` between TERM and KILL; 0 for the default")
	fs.Func("agent", "`uid:gid` of the user processes (default 1000:1000)", func(s string) (err error) {
		cfg.AgentUID, cfg.AgentGID, err = parseAgent(s)
		return err
	})
	cfg.AgentUID, cfg.AgentGID = 1000, 1000
	fs.Func("deadline", "`time` (RFC 3339) at which the guest ends itself", func(s string) (err error) {
		cfg.Deadline, err = time.Parse(time.RFC3339Nano, s)
		return err
	})
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	if fs.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q", fs.Arg(0))
		_, _ = fmt.Fprintln(out, err) // there is nowhere else to say it
		return cfg, err
	}
	cfg.SocketPath = filepath.Join(*socketDir, SocketName)
	return cfg, nil
}

func parseAgent(s string) (uid, gid int, err error) {
	u, g, ok := strings.Cut(s, ":")
	uid, errU := strconv.Atoi(u)
	gid, errG := strconv.Atoi(g)
	if !ok || errU != nil || errG != nil || uid < 0 || gid < 0 {
		return 0, 0, fmt.Errorf("%q is not uid:gid", s)
	}
	return uid, gid, nil
}

// version returns what the build recorded of itself.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// serve runs the guest until it is told to end.
func serve(cfg Config) error {
	// Signals first: as PID 1 there is no default action for one that has no handler, and a program of the sandbox may send any.
	// They are caught, not ignored, because what is ignored stays so in children.
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(term)
	rest := make(chan os.Signal, 1)
	signal.Notify(rest, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	defer signal.Stop(rest)

	back := make(chan os.Signal, 1)
	signal.Notify(back, syscall.SIGUSR1)
	defer signal.Stop(back)

	syscall.Umask(0o022)
	if err := prepareWorkdir(cfg.Workdir, cfg.AgentUID, cfg.AgentGID); err != nil {
		return err
	}
	if !cfg.Furnish {
		cfg.Log.Debug("the file system stays as it is")
	} else if err := furnish("/", cfg.AgentUID, cfg.AgentGID, filepath.Join(cfg.Workdir, ".sandlot", "home")); err != nil {
		cfg.Log.Warn("the image lacks something that can't be added", "err", err) // most programs live without
	}
	for _, dir := range cfg.Dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			cfg.Log.Warn("a directory that the image wants can't be made", "err", err)
		}
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(cfg.StateDir, 0o700); err != nil {
		return err
	}
	ln, err := listen(cfg.SocketPath)
	if err != nil {
		return err
	}
	s, err := NewServer(cfg)
	if err != nil {
		_ = ln.Close() // the error says more
		return err
	}
	cfg.Log.Info("listening", "socket", cfg.SocketPath, "version", cfg.Version)
	go func() {
		for {
			select {
			case sig := <-term:
				cfg.Log.Info("signal", "signal", sig.String())
				s.Shutdown(context.Background())
			case <-back:
				s.Resume()
			case <-s.Done():
				return
			}
		}
	}()
	err = serveAll(s, ln, cfg.SocketPath)
	s.Shutdown(context.Background()) // after an error; otherwise it waits for the one under way
	return err
}

// serveAll answers hosts, on a socket made anew after each suspension, until the guest ends.
func serveAll(s *Server, ln net.Listener, path string) error {
	for {
		if err := s.Serve(context.Background(), ln); err != nil {
			return err
		}
		if over := s.Suspended(); over != nil {
			<-over
		}
		select {
		case <-s.closing:
			return nil
		default:
		}
		var err error
		if ln, err = listen(path); err != nil {
			return err
		}
	}
}

// prepareWorkdir makes the working directory the agent's, if nobody has used it yet.
func prepareWorkdir(dir string, uid, gid int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // only read from
	fi, err := d.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return nil
	}
	if _, err := d.ReadDir(1); !errors.Is(err, io.EOF) {
		return nil // it is in use: leave it as it is
	}
	return chown(d, owner{uid, gid})
}

// listen opens the socket for the host; nobody else of the sandbox but root may connect.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177) // before anybody can connect
	defer unix.Umask(old)
	var lc net.ListenConfig
	return lc.Listen(context.Background(), "unix", path)
}
