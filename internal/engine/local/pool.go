package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// MaxPool is the most that Config.Pool may be.
const MaxPool = 16

const (
	// maxClasses is of how many classes sandboxes lie ready at most.
	maxClasses = 4
	// classIdle is how long after its last use a class is kept for.
	classIdle = 10 * time.Minute
	// slotLife is how long a sandbox lies ready before another takes its place. It ends itself a little after that: its server may be gone.
	slotLife = time.Hour

	// A sandbox is started ahead when nobody has asked for one for poolQuiet, so that it doesn't disturb what the last one is
	// used for; where somebody always asks, after poolPatience.
	poolQuiet    = 250 * time.Millisecond
	poolPatience = 3 * time.Second
	tidyEvery    = 30 * time.Second

	// Nothing is started ahead on a machine with less memory or disk available than this; with half of it, what lies ready is given up.
	poolMemory = 1 << 30
	poolDisk   = 4 * minFree
)

// class is all of a spec that is settled when a sandbox starts. Sandboxes of one class differ only in what their guests are told later, and in
// a volume that is new: that one, its sandbox can bring along.
type class struct {
	digest  string
	agent   string
	workdir string
	volume  string // that is there already, and has its own range of uids; "" = a new one

	cpu                          float64
	memory, disk, pids, maxFiles int64
}

// classOf returns the class of spec, or false if nothing of that kind is started ahead.
func (e *Engine) classOf(spec sandbox.Spec) (class, bool) {
	c := class{
		digest: spec.Image.Digest, agent: spec.Image.Settings.Agent, workdir: spec.Workdir,
		cpu: spec.CPU, memory: spec.MemoryMiB, disk: spec.DiskMiB,
		pids: cmp.Or(spec.PIDs, sandbox.DefaultPIDs), maxFiles: cmp.Or(spec.OpenFiles, sandbox.DefaultOpenFiles),
	}
	if spec.Image.IsHost() {
		c.digest = e.host.digest
	}
	if spec.GPU != "" || spec.Network.Mode == sandbox.NetworkOpen || !sandbox.IsID(spec.Volume.ID, sandbox.PrefixVolume) {
		return c, false
	}
	if _, err := os.Lstat(e.volumePath(spec.Volume.ID)); err == nil {
		c.volume = spec.Volume.ID
	}
	return c, true
}

// spec is what a sandbox of the class is started by.
func (c class) spec() sandbox.Spec {
	return sandbox.Spec{
		Image:   sandbox.Image{Source: c.digest, Digest: c.digest, Settings: sandbox.ImageSettings{Agent: c.agent}},
		Volume:  sandbox.Volume{ID: cmp.Or(c.volume, slotVolume)},
		Workdir: c.workdir, CPU: c.cpu, MemoryMiB: c.memory, DiskMiB: c.disk, PIDs: c.pids, OpenFiles: c.maxFiles,
		Timeout: slotLife, Network: sandbox.Network{Mode: sandbox.NetworkNone},
	}
}

// usage is how a class was asked for.
type usage struct {
	times int
	last  time.Time
}

// pool keeps sandboxes started that nobody has asked for yet, so that Create need only take one. Each is a whole sandbox, with its guest
// waiting; until it is taken it has no name of ours, no secrets, and a volume that is nobody's.
type pool struct {
	e      *Engine
	size   int // of each class
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{}

	// filling is held while a sandbox is being started ahead.
	filling sync.Mutex

	mu      sync.Mutex
	busy    int       // creates under way
	last    time.Time // when the last one was over
	asked   map[class]*usage
	slots   []*slot
	taken   int           // slots that became somebody's
	changed chan struct{} // closed and replaced whenever slots change
}

func newPool(e *Engine) *pool {
	p := &pool{e: e, size: min(max(e.cfg.Pool, 0), MaxPool), wake: make(chan struct{}, 1), asked: map[class]*usage{}, changed: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// start begins to fill the pool: at first with what a sandbox is by default.
func (p *pool) start() {
	if p.size == 0 {
		return
	}
	p.wg.Go(p.run)
}

// usual is the class that is always kept: of the sandboxes that are asked for without a wish.
func (p *pool) usual() class {
	return class{
		digest: p.e.host.digest, workdir: sandbox.DefaultWorkdir,
		disk: sandbox.DefaultDiskMiB, pids: sandbox.DefaultPIDs, maxFiles: sandbox.DefaultOpenFiles,
	}
}

// close ends the filling and what nobody has asked for.
func (p *pool) close() {
	p.cancel()
	p.wg.Wait()
	p.mu.Lock()
	slots := p.slots
	p.slots = nil
	p.mu.Unlock()
	p.give(slots)
}

// creating notes that a sandbox of spec is being made, and returns what to call when that is over.
func (p *pool) creating(spec sandbox.Spec) (done func(made bool)) {
	if p.size == 0 {
		return func(bool) {}
	}
	c, ok := p.e.classOf(spec)
	p.mu.Lock()
	p.busy++
	p.mu.Unlock()
	return func(made bool) {
		p.mu.Lock()
		p.busy--
		p.last = time.Now()
		if made && ok {
			p.ask(c)
			if c.volume == "" { // by the next time it is there
				c.volume = spec.Volume.ID
				p.ask(c)
			}
		}
		p.mu.Unlock()
		p.poke()
	}
}

// ask notes the use of a class. p.mu is held.
func (p *pool) ask(c class) {
	u := p.asked[c]
	if u == nil {
		u = &usage{}
		p.asked[c] = u
	}
	u.times++
	u.last = time.Now()
}

func (p *pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // it is awake already
	}
}

// run keeps the pool as it should be.
func (p *pool) run() {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		p.tidy()
		for p.ctx.Err() == nil && p.roomy() {
			c, ok := p.missing()
			if !ok || !p.calm() {
				break
			}
			if err := p.fill(c); err != nil {
				if p.ctx.Err() == nil {
					p.e.cfg.Log.Warn("a sandbox could not be started ahead", "err", err)
				}
				p.forget(func(other class) bool { return other == c })
				break // the usual class is tried again at the next occasion
			}
		}
		select {
		case <-p.wake:
		case <-tick.C:
		case <-p.ctx.Done():
			return
		}
	}
}

// wanted are the classes of which sandboxes are to lie ready, the one that was asked for last first. A volume that was used once is
// likely not to be soon again. p.mu is held.
func (p *pool) wanted() []class {
	var all []class
	for c, u := range p.asked {
		if c != p.usual() && (c.volume == "" || u.times > 1) && time.Since(u.last) < classIdle {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b class) int { return p.asked[b].last.Compare(p.asked[a].last) })
	return append(all[:min(len(all), maxClasses-1)], p.usual())
}

// missing returns a class of which another sandbox should lie ready.
func (p *pool) missing() (class, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.wanted() {
		n := 0
		for _, s := range p.slots {
			if s.class == c {
				n++
			}
		}
		if n < p.size {
			return c, true
		}
	}
	return class{}, false
}

// tidy gives up what is not wanted any more, and what lies there for too long.
func (p *pool) tidy() {
	p.mu.Lock()
	for c, u := range p.asked {
		if time.Since(u.last) > classIdle {
			delete(p.asked, c)
		}
	}
	wanted := p.wanted()
	p.mu.Unlock()
	pressed := p.pressed()
	p.drop(func(s *slot) bool {
		return pressed || time.Since(s.made) > slotLife-deadlineGrace || !slices.Contains(wanted, s.class)
	})
}

// drop gives up slots, and returns when nothing is left of them.
func (p *pool) drop(which func(*slot) bool) {
	var dropped []*slot
	p.mu.Lock()
	p.slots = slices.DeleteFunc(p.slots, func(s *slot) bool {
		if which(s) {
			dropped = append(dropped, s)
			return true
		}
		return false
	})
	p.mu.Unlock()
	p.give(dropped)
}

// forget forgets that classes were asked for.
func (p *pool) forget(which func(class) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.asked {
		if which(c) {
			delete(p.asked, c)
		}
	}
}

// forgetVolume gives up all that has a volume, which is about to be deleted.
func (p *pool) forgetVolume(id string) {
	if p.size == 0 {
		return
	}
	p.filling.Lock() // what is being started just now is among the slots after that
	defer p.filling.Unlock()
	p.forget(func(c class) bool { return c.volume == id })
	p.drop(func(s *slot) bool { return s.class.volume == id })
}

// calm waits until nobody has asked for a sandbox for a while; false if the pool ends.
func (p *pool) calm() bool {
	for late := time.Now().Add(poolPatience); ; {
		p.mu.Lock()
		wait := poolQuiet - time.Since(p.last)
		if p.busy > 0 {
			wait = poolQuiet
		}
		p.mu.Unlock()
		if wait = min(wait, time.Until(late)); wait <= 0 {
			return true
		}
		select {
		case <-time.After(wait):
		case <-p.ctx.Done():
			return false
		}
	}
}

// roomy reports whether this machine has so much left that something may be started that nobody has asked for.
func (p *pool) roomy() bool {
	memory, errMemory := available()
	disk, errDisk := free(p.e.cfg.Dir)
	return errMemory == nil && memory >= poolMemory && errDisk == nil && disk >= poolDisk
}

// pressed reports whether this machine needs what the pool holds.
func (p *pool) pressed() bool {
	memory, errMemory := available()
	disk, errDisk := free(p.e.cfg.Dir)
	return errMemory == nil && memory < poolMemory/2 || errDisk == nil && disk < poolDisk/2
}

// available is how much memory programs of this machine could get.
func available() (uint64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib uint64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo doesn't say how much memory is available")
}
