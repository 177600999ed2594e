package lifecycle

import (
	"context"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// WriteStdin writes data to a run's input, of which at bytes came before, and then closes it if last. What was written there already is
// not written again, so that it can be repeated when nobody knows whether it was.
func (m *Manager) WriteStdin(ctx context.Context, account, id string, at int64, data []byte, last bool) error {
	run, err := m.Run(ctx, account, id)
	if err != nil {
		return err
	}
	if run.State != sandbox.RunRunning {
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "run_ended", Detail: "The run has ended; it takes no input."}
	}
	c, err := m.Guest(ctx, account, run.Sandbox)
	if err != nil {
		return err
	}
	return refused(c.WriteStdinAt(ctx, id, at, data, last))
}

// CPUTime is how much of the processor a run's processes have used.
func (m *Manager) CPUTime(ctx context.Context, account, id string) (time.Duration, error) {
	run, err := m.Run(ctx, account, id)
	if err != nil {
		return 0, err
	}
	c, err := m.Guest(ctx, account, run.Sandbox)
	if err != nil {
		return 0, err
	}
	used, err := c.CPUTime(ctx, id)
	return used, refused(err)
}
