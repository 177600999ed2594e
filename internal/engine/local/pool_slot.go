package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/container"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// What lies ready is told from runs by its name alone: its directory is sandboxes/pool-X, and pool-X is its container's ID to gVisor. When it
// becomes a run, the directory is renamed to the run's key, in one step: before that it is nobody's, and goes with its server or when
// the next one starts; after that it is the run's like any other. gVisor can't rename a container, so the directory also says which
// one it is.
const (
	slotPrefix    = "pool-"
	slotVolume    = "slot"   // Volume.ID of a spec of which the volume comes later
	slotVolumeDir = "volume" // of a slot: its volume, until that has a name
	idFile        = "container"
	readyFile     = "ready" // for people and tools that look on: it waits

	// slotLimit bounds the work on one slot.
	slotLimit = 20 * time.Second
)

func isSlot(name string) bool { return strings.HasPrefix(name, slotPrefix) }

func (e *Engine) containerFile(k string) string { return filepath.Join(e.sandboxDir(k), idFile) }

func (e *Engine) volumePath(id string) string { return filepath.Join(e.cfg.Dir, "volumes", id) }

// containerID is the ID by which gVisor knows a run: its key, unless it was started ahead.
func (e *Engine) containerID(k string) string {
	id, err := os.ReadFile(e.containerFile(k))
	if err != nil || !isSlot(string(id)) {
		return k
	}
	return string(id)
}

func (e *Engine) fullID(k string) container.FullID {
	id := e.containerID(k)
	return container.FullID{SandboxID: id, ContainerID: id}
}

// adopted returns the keys of the runs that were started ahead, by the IDs of their containers.
func (e *Engine) adopted() (map[string]string, error) {
	dirs, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil {
		return nil, fmt.Errorf("looking for sandboxes: %w", err)
	}
	runs := map[string]string{}
	for _, d := range dirs {
		if id := e.containerID(d.Name()); !isSlot(d.Name()) && id != d.Name() {
			runs[id] = d.Name()
		}
	}
	return runs, nil
}

// slot is a sandbox that lies ready.
type slot struct {
	id    string
	class class
	made  time.Time
	entry entry // holds the container, as that of a run does
}

// fill starts one.
func (p *pool) fill(c class) error {
	p.filling.Lock()
	defer p.filling.Unlock()
	if p.ctx.Err() != nil {
		return p.ctx.Err()
	}
	s := &slot{id: slotPrefix + strings.ToLower(strings.TrimPrefix(sandbox.NewID(sandbox.PrefixSandbox), sandbox.PrefixSandbox)), class: c, made: time.Now()}
	ctx, cancel := context.WithTimeout(p.ctx, slotLimit)
	defer cancel()
	err := p.e.create(ctx, &s.entry, s.id, c.spec())
	if err == nil {
		err = os.WriteFile(filepath.Join(p.e.sandboxDir(s.id), readyFile), nil, 0o600)
	}
	if err != nil {
		p.give([]*slot{s})
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots = append(p.slots, s)
	p.tell()
	return nil
}

// tell tells those who wait that slots have changed. p.mu is held.
func (p *pool) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// makeSlotVolume makes what will be the volume of a slot, and notes which container it is. base stands for root in it.
func (e *Engine) makeSlotVolume(k string, spec sandbox.Spec, base uint32) error {
	if !isSlot(k) {
		return nil
	}
	if err := os.WriteFile(e.containerFile(k), []byte(k), 0o600); err != nil || spec.Volume.ID != slotVolume {
		return err
	}
	dir := filepath.Join(e.sandboxDir(k), slotVolumeDir)
	uid, gid := e.agent(spec)
	return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755), os.Lchown(dir, int(base)+uid, int(base)+gid))
}

// give destroys slots that are nobody's. What can't be destroyed now, the next start does.
func (p *pool) give(slots []*slot) {
	for _, s := range slots {
		ctx, cancel := context.WithTimeout(context.Background(), slotLimit)
		if err := p.e.destroy(ctx, &s.entry, s.id); err != nil {
			p.e.cfg.Log.Warn("a sandbox that was started ahead can't be destroyed", "slot", s.id, "err", err)
		}
		cancel()
	}
}

// removeSlots destroys what an earlier process has started ahead and nobody got.
func (e *Engine) removeSlots() {
	left := map[string]bool{}
	for _, dir := range []string{filepath.Join(e.cfg.Dir, "sandboxes"), e.conf.RootDir} {
		names, err := os.ReadDir(dir)
		if err != nil {
			e.cfg.Log.Warn("looking for what was started ahead", "err", err)
			return
		}
		for _, n := range names {
			if id, _, _ := strings.Cut(n.Name(), "_sandbox:"); isSlot(id) {
				left[id] = true
			}
		}
	}
	procs, err := e.living()
	if err != nil {
		e.cfg.Log.Warn("looking for what was started ahead", "err", err)
		return
	}
	for _, p := range procs {
		if isSlot(p.id) {
			left[p.id] = true
		}
	}
	runs, err := e.adopted()
	if err != nil { // on doubt nothing is destroyed
		e.cfg.Log.Warn("looking for what was started ahead", "err", err)
		return
	}
	for id := range left {
		if _, is := runs[id]; is {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), slotLimit)
		if err := e.destroy(ctx, &entry{made: takeChild(e.conf.RootDir, id)}, id); err != nil {
			e.cfg.Log.Warn("what an earlier server has started ahead can't be destroyed", "slot", id, "err", err)
		}
		cancel()
	}
}

// take takes a slot out of the pool that suits c, for good.
func (p *pool) take(c class) *slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.slots {
		if s.class == c && time.Since(s.made) < slotLife {
			p.slots = append(p.slots[:i:i], p.slots[i+1:]...)
			p.tell()
			return s
		}
	}
	return nil
}

// adopt makes a run of what lies ready, if there is something of its class; else, or if that fails, the run is to be made.
func (p *pool) adopt(ctx context.Context, en *entry, k string, spec sandbox.Spec) bool {
	if p.size == 0 {
		return false
	}
	c, ok := p.e.classOf(spec)
	if !ok || p.e.roomToStart() != nil {
		return false
	}
	s := p.take(c)
	if s == nil {
		return false
	}
	if err := p.e.adopt(ctx, s, k, spec); err != nil {
		p.e.cfg.Log.Warn("a sandbox that was started ahead is of no use", "slot", s.id, "sandbox", k, "err", err)
		p.give([]*slot{s})
		return false
	}
	en.made = s.entry.made
	if err := p.e.watches.start(k, spec.MemoryMiB, en.made); err != nil {
		p.e.cfg.Log.Warn("the memory of a sandbox that was started ahead can't be watched", "slot", s.id, "sandbox", k, "err", errors.Join(err, p.e.destroy(ctx, en, k)))
		return false
	}
	p.mu.Lock()
	p.taken++
	p.mu.Unlock()
	return true
}

// adopt gives a slot the volume, the deadline and, with that, the name of a run. Until the last step it stays a slot.
func (e *Engine) adopt(ctx context.Context, s *slot, k string, spec sandbox.Spec) error {
	if s.class.volume == "" {
		if err := e.nameVolume(s, spec.Volume); err != nil {
			return err
		}
	}
	if err := e.tellDeadline(ctx, s, time.Now().Add(spec.Timeout+deadlineGrace)); err != nil {
		return fmt.Errorf("telling its guest: %w", err)
	}
	if err := e.renameBundle(s, k, spec); err != nil {
		return fmt.Errorf("renaming what is in its bundle: %w", err)
	}
	e.watches.stop(s.id)
	if err := remove(filepath.Join(e.sandboxDir(s.id), readyFile)); err != nil { // this also says since when the directory is what it is
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return os.Rename(e.sandboxDir(s.id), e.sandboxDir(k))
}

// nameVolume makes the volume of a slot the one that v is the record of, which isn't there yet. What is mounted goes with it.
func (e *Engine) nameVolume(s *slot, v sandbox.Volume) error {
	e.mu.Lock() // as in volumeFor: nobody else makes it meanwhile
	defer e.mu.Unlock()
	from, to := filepath.Join(e.sandboxDir(s.id), slotVolumeDir), e.volumePath(v.ID)
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("naming its volume: %w", err)
	}
	return nil
}

// tellDeadline tells the guest when the run is to end itself. Everything else it will be told by whoever asked for the run.
func (e *Engine) tellDeadline(ctx context.Context, s *slot, deadline time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, slotLimit)
	defer cancel()
	conn, err := dialGuest(ctx, e.socketDir(s.id))
	if err != nil {
		return err
	}
	c, err := guest.NewClient(conn, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Setup(ctx, guest.Setup{Deadline: deadline})
}

// renameBundle makes the bundle say where things will be when the slot is the run k: a suspended run is brought back by what it says.
func (e *Engine) renameBundle(s *slot, k string, spec sandbox.Spec) error {
	path := filepath.Join(e.sandboxDir(s.id), "bundle", "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var oci specs.Spec
	if err := json.Unmarshal(data, &oci); err != nil {
		return err
	}
	old := filepath.Join(e.stage.dir, "sandboxes", s.id)
	moved := func(path string) string {
		rest, ok := below(path, old)
		switch {
		case !ok:
			return path
		case rest == slotVolumeDir:
			return filepath.Join(e.stage.dir, "volumes", spec.Volume.ID)
		default:
			return filepath.Join(e.stage.dir, "sandboxes", k, rest)
		}
	}
	oci.Root.Path = moved(oci.Root.Path)
	for i := range oci.Mounts {
		oci.Mounts[i].Source = moved(oci.Mounts[i].Source)
	}
	for name, value := range oci.Annotations {
		oci.Annotations[name] = moved(value)
	}
	if data, err = json.Marshal(oci); err != nil {
		return err
	}
	return replaceFile(path, data)
}
