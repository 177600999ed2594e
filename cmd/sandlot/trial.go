package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

// trialResult is what a throw-away sandbox told about this host.
type trialResult struct {
	Env     map[string]string `json:"env,omitempty"` // what the CLI needs here beyond the usual
	Problem string            `json:"-"`             // why sandboxes or the CLI don't work here; "" = they do
}

// trialLimit bounds the trial. A cold and loaded machine takes some seconds.
const trialLimit = 2 * time.Minute

// tryOut starts a throw-away sandbox and the CLI in it, so that a host on which that fails is told at the start and not by the
// first user. A success is remembered for this CLI, this kernel and this version of ours.
func tryOut(ctx context.Context, st *store.Store, eng *local.Engine, env map[string]string, log *slog.Logger) trialResult {
	var result trialResult
	name := fmt.Sprintf("trial:%s:%s:%s:%s", claude.Version, kernel(), version, eng.Capabilities().Isolation)
	if data, err := st.Setting(ctx, name); err == nil && json.Unmarshal(data, &result) == nil {
		return result
	}
	log.Info("trying a sandbox and Claude Code in it, once")
	extra, err := trial(ctx, eng, func(ctx context.Context, c *guest.Client) (map[string]string, error) {
		if err := c.Setup(ctx, guest.Setup{Env: env, Deadline: time.Now().Add(trialLimit)}); err != nil {
			return nil, err
		}
		return claude.SelfTest(ctx, c)
	})
	if err != nil {
		log.Error("sandboxes don't work here", "err", err)
		return trialResult{Problem: problemText(err)}
	}
	result.Env = extra
	if data, err := json.Marshal(result); err == nil {
		if _, err := st.PutSettingIfAbsent(ctx, name, data); err != nil {
			log.Warn("could not remember the trial", "err", err) // it is done again next time
		}
	}
	return result
}

// trial runs use on the guest of a throw-away sandbox and leaves nothing behind.
func trial(ctx context.Context, eng *local.Engine, use func(context.Context, *guest.Client) (map[string]string, error)) (_ map[string]string, err error) {
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "trial"}
	volume := sandbox.Volume{ID: sandbox.NewID(sandbox.PrefixVolume), Name: "trial"}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, eng.Destroy(undo, ref), eng.DeleteVolume(undo, volume))
	}()
	if _, err := eng.Create(ctx, ref, sandbox.Spec{
		Image: sandbox.Image{Source: sandbox.HostImage}, Volume: volume, Workdir: sandbox.DefaultWorkdir, DiskMiB: sandbox.DefaultDiskMiB, Timeout: trialLimit, Network: sandbox.Network{Mode: sandbox.NetworkNone},
	}); err != nil {
		return nil, err
	}
	conn, err := eng.Dial(ctx, ref)
	if err != nil {
		return nil, err
	}
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer c.Close()
	return use(ctx, c)
}

// problemText is what to tell of err: the sentence meant for people, if there is one.
func problemText(err error) string {
	if p, ok := errors.AsType[*sandbox.Problem](err); ok {
		return p.Detail
	}
	return err.Error()
}

// kernel is the release of the running kernel.
func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
