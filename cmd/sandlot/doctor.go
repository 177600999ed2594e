package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
)

func doctorCommand() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say whether this machine can run sandboxes, and what to do if not",
		Long:  "Look at this machine, start a real sandbox, and print one line for each finding. The exit code is 1 if something keeps sandboxes from working.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := loadConfig(cmd, &cfg); err != nil {
				return err
			}
			d := &doctor{out: cmd.OutOrStdout()}
			if err := local.EnterNamespaces(); err != nil {
				d.fault("user namespace", err)
			} else {
				os.Clearenv()
				d.examine(cmd.Context(), cfg)
			}
			if d.faults > 0 {
				return fmt.Errorf("%d of the findings above keep sandboxes from working", d.faults)
			}
			return nil
		},
	}
	cfg.flags(cmd)
	return cmd
}

// doctor prints findings.
type doctor struct {
	out    io.Writer
	faults int
}

func (d *doctor) ok(what, found string)   { fmt.Fprintf(d.out, "ok     %-16s %s\n", what, found) }
func (d *doctor) note(what, found string) { fmt.Fprintf(d.out, "note   %-16s %s\n", what, found) }
func (d *doctor) fault(what string, err error) {
	d.faults++
	fmt.Fprintf(d.out, "fault  %-16s %s\n", what, problemText(err))
}

func (d *doctor) examine(ctx context.Context, cfg config) {
	d.ok("system", fmt.Sprintf("%s/%s, kernel %s, %d cores", runtime.GOOS, runtime.GOARCH, kernel(), runtime.NumCPU()))
	d.facts(cfg)
	d.sandbox(ctx, cfg)
}

// facts prints what the local engine knows of this machine, and whether npm is there.
func (d *doctor) facts(cfg config) {
	for _, f := range local.Examine(cfg.Data) {
		switch f.Level {
		case local.Fine:
			d.ok(f.What, f.Found)
		case local.Notable:
			d.note(f.What, f.Found)
		case local.Fault:
			d.fault(f.What, errors.New(f.Found))
		}
	}
	toolkit := claude.OpenToolkit(claude.ToolkitConfig{Dir: cfg.Toolkit, Env: cfg.Env})
	if _, err := os.Stat(toolkit.Dir()); err == nil {
		d.ok("Claude Code", claude.Version+" is installed")
		return
	}
	if npm, err := lookPath("npm", cfg.Env); err == nil {
		d.ok("Claude Code", fmt.Sprintf("not fetched yet; the first start gets %s with %s", claude.Version, npm))
	} else {
		d.fault("Claude Code", errors.New("npm is not on the PATH, and the first start fetches Claude Code with it: install Node.js and npm"))
	}
}

// lookPath finds a program on the PATH of env: our own environment has been cleared.
func lookPath(name string, env []string) (string, error) {
	for _, kv := range env {
		if list, ok := strings.CutPrefix(kv, "PATH="); ok {
			for _, dir := range filepath.SplitList(list) {
				path := filepath.Join(dir, name)
				if fi, err := os.Stat(path); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
					return path, nil
				}
			}
		}
	}
	return "", exec.ErrNotFound
}

// sandbox starts a real one in a directory of its own, so that it works beside a running server.
func (d *doctor) sandbox(ctx context.Context, cfg config) {
	err := func() (err error) {
		dir, err := os.MkdirTemp(cfg.Data, "doctor-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
		program, err := installGuest(filepath.Join(dir, "guest"))
		if err != nil {
			return err
		}
		eng, err := local.Open(local.Config{Dir: filepath.Join(dir, "local"), Guest: program, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		defer eng.Close()
		d.ok("isolation", eng.Capabilities().Isolation)
		begin := time.Now()
		_, err = trial(ctx, eng, func(ctx context.Context, c *guest.Client) (map[string]string, error) {
			if err := c.Setup(ctx, guest.Setup{Deadline: time.Now().Add(trialLimit)}); err != nil {
				return nil, err
			}
			if _, err := c.Start(ctx, guest.Command{ID: "trial", Argv: []string{"/bin/true"}}); err != nil {
				return nil, err
			}
			run, err := c.Wait(ctx, "trial")
			if err == nil && (run.Code == nil || *run.Code != 0) {
				err = fmt.Errorf("/bin/true ended as %s", run.State)
			}
			return nil, err
		})
		if err == nil {
			d.ok("sandbox", fmt.Sprintf("started, ran a command and was removed in %d ms", time.Since(begin).Milliseconds()))
		}
		return err
	}()
	if err != nil {
		d.fault("sandbox", err)
	}
}
