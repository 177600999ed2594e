package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// The sides of a child: a container that joins a sandbox which was started before anybody knew what for, against a whole sandbox.
const (
	childRaw      = "runsc run -detach, a whole sandbox"
	childRawWarm  = "runsc run -detach, into a warm sandbox"
	childHere     = "New, Start, a whole sandbox"
	childHereWarm = "New, Start, into a warm sandbox"
)

// children measures from asking gVisor for a container to the first answer of our guest in it: as a sandbox of its own, and as a child of one
// that runs already, of which only the user namespace is settled. By gVisor's command line and by its functions, on the same root.
func (b *bench) children(ctx context.Context) (_ []*measure, err error) {
	busybox, err := b.images.busybox(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := newRaw(ctx, b, busybox, "child")
	if err != nil {
		return nil, err
	}
	c := &childBench{raw: raw}
	if c.conf, err = c.config(); err != nil {
		return nil, err
	}
	rounds := max(30, b.rounds)
	progress("containers, %d rounds", rounds)
	// gVisor's processes are those of the program that is measured, and don't write to our streams.
	specutils.ExePath = b.bin
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	in, out, messages := os.Stdin, os.Stdout, os.Stderr
	defer func() {
		os.Stdin, os.Stdout, os.Stderr = in, out, messages
		err = errors.Join(err, null.Close())
	}()
	os.Stdin, os.Stdout, os.Stderr = null, null, null
	log.SetLevel(log.Warning)
	log.SetTarget(&log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})

	m := newMeasure("container → its guest answers, image busybox", childRaw, childRawWarm, childHere, childHereWarm)
	starts := newMeasure("the same, until Start has returned", childHere, childHereWarm)
	for round := range rounds + 1 {
		for _, side := range []string{childRaw, childRawWarm, childHere, childHereWarm} {
			answered, started, err := c.once(ctx, side)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", side, err)
			}
			if round == 0 { // it warms up
				continue
			}
			m.add(side, answered)
			if started > 0 {
				starts.add(side, started)
			}
		}
	}
	return []*measure{m, starts}, nil
}

// childBench makes containers of one root.
type childBench struct {
	raw  *raw
	conf *config.Config
	n    int
}

// config is the same for the functions as for the command line.
func (c *childBench) config() (*config.Config, error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	config.RegisterFlags(fs)
	for _, f := range c.raw.globals() {
		name, value, is := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		if !is {
			value = "true"
		}
		if err := fs.Set(name, value); err != nil {
			return nil, fmt.Errorf("flag %s: %w", f, err)
		}
	}
	return config.NewFromFlags(fs)
}

// once makes what a side makes, waits for its guest, and removes it all. started is how long New and Start took, where they are called here.
func (c *childBench) once(ctx context.Context, side string) (answered, started time.Duration, err error) {
	c.n++
	id, parent := fmt.Sprintf("box-%d", c.n), ""
	remove := func() error { return c.raw.remove(ctx, id) }
	if side == childRawWarm || side == childHereWarm {
		parent = fmt.Sprintf("warm-%d", c.n)
		warm, _, err := c.bundle(parent, "", true)
		if err != nil {
			return 0, 0, err
		}
		if err := c.raw.call(ctx, "run", "-detach", "-bundle="+warm, parent); err != nil {
			return 0, 0, err
		}
		remove = func() error { return errors.Join(c.raw.remove(ctx, id), c.raw.remove(ctx, parent)) }
	}
	defer func() { err = errors.Join(err, remove()) }()
	dir, spec, err := c.bundle(id, parent, false)
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if side == childRaw || side == childRawWarm {
		err = c.raw.call(ctx, "run", "-detach", "-bundle="+dir, id)
	} else {
		var made *container.Container
		if made, err = container.New(c.conf, container.Args{ID: id, Spec: spec, BundleDir: dir}); err == nil {
			// We are the parent, so nobody else can reap it.
			remove = func() error {
				return errors.Join(made.Destroy(), c.raw.remove(ctx, id), c.raw.remove(ctx, parent))
			}
			err = made.Start(c.conf)
			started = time.Since(begin)
		}
	}
	if err == nil {
		err = answers(ctx, filepath.Join(dir, "socket", guest.SocketName))
	}
	return time.Since(begin), started, err
}

// bundle makes the bundle of a container: with our guest on the root that is measured, or bare, to be joined by others: no guest, no mounts
// of this host's, so that gVisor needs no file server for it.
func (c *childBench) bundle(id, parent string, bare bool) (string, *specs.Spec, error) {
	dir := filepath.Join(filepath.Dir(c.raw.bundle), id)
	var dirs []string
	for _, d := range []string{"", "root", "socket", "state", "volume"} {
		dirs = append(dirs, filepath.Join(dir, d))
	}
	for _, d := range dirs {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", nil, err
		}
	}
	for _, d := range dirs[2:] {
		if err := os.Chown(d, c.raw.base, c.raw.base); err != nil {
			return "", nil, err
		}
	}
	if err := os.Link(filepath.Join(c.raw.bundle, "root.erofs"), filepath.Join(dir, "root.erofs")); err != nil {
		return "", nil, err
	}
	data, err := json.Marshal(c.raw.config)
	if err != nil {
		return "", nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", nil, err
	}
	spec.Root.Path = dirs[1]
	spec.Annotations = maps.Clone(spec.Annotations)
	spec.Annotations["dev.gvisor.spec.rootfs.source"] = filepath.Join(dir, "root.erofs")
	fromHost := func(m specs.Mount) bool { return m.Type == "bind" }
	switch {
	case bare:
		spec.Mounts = slices.DeleteFunc(spec.Mounts, fromHost)
		spec.Annotations["dev.gvisor.spec.rootfs.overlay"] = "memory" // a file needs a file server
		spec.Annotations[specutils.ContainerdContainerTypeAnnotation] = specutils.ContainerdContainerTypeSandbox
	default:
		// The first bind mount on the workdir, or at least the volume's, is of the bundle that was copied.
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return fromHost(m) && m.Destination == benchWorkdir })
		for i, target := range []string{guest.SocketDir, guest.StateDir, benchWorkdir} {
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: target, Type: "bind", Source: dirs[2+i], Options: []string{"rbind", "rw"}})
		}
		spec.Process.Args = c.raw.guest
	}
	if parent != "" {
		spec.Annotations[specutils.ContainerdContainerTypeAnnotation] = specutils.ContainerdContainerTypeContainer
		spec.Annotations[specutils.ContainerdSandboxIDAnnotation] = parent
	}
	if data, err = json.Marshal(spec); err != nil {
		return "", nil, err
	}
	return dir, &spec, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

const benchWorkdir = "/workspace"

// answers returns when the guest that listens at a path speaks its protocol.
func answers(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			c, err := guest.NewClient(conn, nil)
			if err != nil {
				return err
			}
			_, err = c.Info(ctx)
			return errors.Join(err, c.Close())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the guest: %w", errors.Join(ctx.Err(), err))
		case <-time.After(time.Millisecond): // nobody tells when the socket appears
		}
	}
}
