package guest

import (
	"testing"
	"testing/synctest"
	"time"
)

// read pays for bytes as a stream does until the time is over, and returns how many it got through.
func (t *throttle) read(until time.Time) (n int) {
	for time.Now().Before(until) {
		p := t.portion(32 << 10)
		n += p
		t.wait(p, nil, nil)
	}
	return n
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	const rate = 64 << 10
	for name, c := range map[string]struct {
		streams int
		pause   time.Duration
		runs    time.Duration
		want    int // give or take what is read at a time
	}{
		"one stream":                 {1, 0, 10 * time.Second, 11 * rate}, // the burst and ten seconds
		"many share":                 {20, 0, 10 * time.Second, 11 * rate},
		"short output isn't slowed":  {1, 0, time.Millisecond, rate},
		"silence is made up for":     {1, 30 * time.Second, time.Millisecond, rate},
		"but not more than a second": {1, time.Hour, 5 * time.Second, 6 * rate},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var limit throttle
				limit.set(rate)
				if c.pause > 0 {
					limit.read(time.Now().Add(time.Minute))
					time.Sleep(c.pause)
				}
				counts := make(chan int)
				until := time.Now().Add(c.runs)
				for range c.streams {
					go func() { counts <- limit.read(until) }()
				}
				sum := 0
				for range c.streams {
					sum += <-counts
				}
				if slack := (c.streams + 1) * limit.portion(32<<10); sum < c.want-slack || sum > c.want+slack {
					t.Errorf("%d bytes, want about %d", sum, c.want)
				}
			})
		})
	}
}

func TestThrottleLetsGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var limit throttle
		began := time.Now()
		limit.wait(1<<30, nil, nil) // no limit
		limit.set(1)
		for range 2 {
			for i := range 2 {
				closed := make(chan struct{})
				time.AfterFunc(time.Second, func() { close(closed) })
				both := [2]<-chan struct{}{}
				both[i] = closed
				limit.wait(1<<20, both[0], both[1])
			}
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestParseMeminfo(t *testing.T) {
	t.Parallel()
	const gvisors = "MemTotal:         307200 kB\nMemFree:          244364 kB\nMemAvailable:     244364 kB\nCached:            59880 kB\n" +
		"AnonPages:         54144 kB\nMapped:             8680 kB\nShmem:             51200 kB\n"
	if n, err := parseMeminfo(gvisors); err != nil || n != 54156<<10 {
		t.Errorf("%d, %v", n, err)
	}
	for _, bad := range []string{"", "MemTotal: x kB\nMemFree: 1 kB\n", "MemTotal: 1 kB\n"} {
		if n, err := parseMeminfo(bad); err == nil {
			t.Errorf("%q gives %d", bad, n)
		}
	}
}
