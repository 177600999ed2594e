package lifecycle

import (
	"context"
	"time"
)

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
