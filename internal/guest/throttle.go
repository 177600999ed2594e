package guest

import (
	"sync"
	"time"
)

// throttle is how fast output is read, over all runs together. Who writes faster waits: its pipe stays full.
type throttle struct {
	mu   sync.Mutex
	rate int64     // bytes per second; 0 = as fast as it comes
	next time.Time // when what has been read will have been paid for
}

const (
	// throttleBurst is for how long nothing may have been read and be made up for: short output is never slowed.
	throttleBurst = time.Second
	// throttleStep is the longest that one stream holds up another.
	throttleStep = 100 * time.Millisecond
)

func (t *throttle) set(rate int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rate = max(rate, 0)
}

// limited reports whether there is a limit.
func (t *throttle) limited() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rate > 0
}

// portion is how much of most to read at a time.
func (t *throttle) portion(most int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rate == 0 {
		return most
	}
	const least = 256
	return min(most, max(least, int(t.rate/int64(time.Second/throttleStep))))
}

// pay takes n bytes as read and returns how long to wait before the next.
func (t *throttle) pay(n int) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rate == 0 {
		return 0
	}
	now := time.Now()
	if floor := now.Add(-throttleBurst); t.next.Before(floor) {
		t.next = floor
	}
	t.next = t.next.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	return t.next.Sub(now)
}

// wait pays for n bytes and waits until they are paid for, or one of the channels is closed.
func (t *throttle) wait(n int, gone, cut <-chan struct{}) {
	d := t.pay(n)
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-gone:
	case <-cut:
	}
}
