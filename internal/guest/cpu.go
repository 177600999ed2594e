package guest

import (
	"context"
	"time"
)

// tick is the unit of the times in /proc.
const tick = time.Second / 100

// cpuTime is the answer to how much of the processor a run has used.
type cpuTime struct {
	Used time.Duration `json:"used"`
}

// cpu adds up what the run's processes have used that live. It is for comparing: what ends takes its share along, unless its parent waits.
func (r *run) cpu() cpuTime {
	var ticks int64
	for _, p := range family(r.child.pid, nil) {
		ticks += p.ticks
	}
	return cpuTime{time.Duration(ticks) * tick}
}

// CPUTime is how much of the processor the run's processes have used that live now.
func (c *Client) CPUTime(ctx context.Context, id string) (time.Duration, error) {
	t, err := call[cpuTime](ctx, c, "GET", runPath(id, "/cpu"), nil)
	return t.Used, err
}
