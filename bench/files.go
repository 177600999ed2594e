package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// work is what a sandbox does with files. before is not measured.
type work struct {
	name   string
	before func(dir string) []string
	argv   func(dir string) []string
}

func script(format string, args ...any) []string {
	return []string{"/bin/sh", "-ec", fmt.Sprintf(format, args...)}
}

// works are the kinds of work, in a directory.
var works = []work{
	{"git clone of a local repository",
		func(dir string) []string { return script("mkdir -p %s", dir) },
		func(dir string) []string {
			return script("HOME=%[1]s git -c safe.directory='*' clone -q --no-local %[2]s/repo.git %[1]s/clone", dir, benchDir)
		}},
	{"npm install of local packages",
		func(dir string) []string { return script("mkdir -p %[1]s && cp -r %[2]s/app %[1]s/app", dir, benchDir) },
		func(dir string) []string {
			return script("cd %[1]s/app && HOME=%[1]s node $(find /usr -path '*/npm/bin/npm-cli.js' -print) install --offline --no-audit --no-fund --ignore-scripts "+
				"--no-update-notifier --cache %[1]s/cache >/dev/null", dir)
		}},
}

// walk is work that needs no directory: all of the root is looked at once.
var walk = work{"find over the root", func(string) []string { return []string{"/bin/true"} },
	func(string) []string {
		return script("find / -xdev -type f -newer /nonexistent -o -print | wc -l >/dev/null")
	}}

// site is one place to work in: a side, and how to do something in a fresh sandbox of it.
type site struct {
	name string
	dir  string // where writing work is done
	open func(ctx context.Context) (do func(argv ...string) error, remove func() error, err error)
}

// files measures work with many files, in sandboxes that have done nothing before, on the file systems that were tried.
func (b *bench) files(ctx context.Context) ([]*measure, error) {
	progress("files: preparing")
	ref, layer, err := b.images.tools(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	layers, volumes, err := b.sites(ctx, ref, layer)
	if err != nil {
		return nil, err
	}
	var all []*measure
	for _, place := range []struct {
		name  string
		sites []site
		works []work
	}{
		{"writable layer", layers, append([]work{walk}, works...)},
		{"volume", volumes, works},
	} {
		ms := map[string]*measure{}
		for _, w := range place.works {
			ms[w.name] = newMeasure(w.name + ", " + place.name)
			all = append(all, ms[w.name])
		}
		for round := range max(1, b.rounds/3) {
			progress("files: %s, round %d", place.name, round+1)
			for _, s := range place.sites {
				if err := s.measure(ctx, place.works, ms); err != nil {
					return nil, fmt.Errorf("%s: %w", s.name, err)
				}
			}
		}
	}
	return all, nil
}

func (s site) measure(ctx context.Context, works []work, ms map[string]*measure) (err error) {
	do, remove, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	for i, w := range works {
		dir := fmt.Sprintf("%s/work%d", s.dir, i)
		if err := do(w.before(dir)...); err != nil {
			return err
		}
		took, err := timed(func() error { return do(w.argv(dir)...) })
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		ms[w.name].add(s.name, took)
		// The host's disk is as busy as the work before has left it, unless that is over.
		if out, err := exec.CommandContext(ctx, "sync").CombinedOutput(); err != nil {
			return fmt.Errorf("sync: %w: %s", err, out)
		}
	}
	return nil
}

// sites are where writing work is measured: on the writable layer, and on a volume.
func (b *bench) sites(ctx context.Context, ref, layer string) (layers, volumes []site, err error) {
	const scratch, volume = "/var/tmp", "/workspace"
	sandlot := func(dir string) site {
		return site{name: "Sandlot", dir: dir, open: func(ctx context.Context) (func(...string) error, func() error, error) {
			id, err := b.cold.create(ctx, ref, "")
			return func(argv ...string) error { return b.cold.exec(ctx, id, argv...) }, func() error { return b.cold.terminate(ctx, id) }, err
		}}
	}
	erofs, err := newRaw(ctx, b, ref, "files-erofs")
	if err != nil {
		return nil, nil, err
	}
	memory, err := newRaw(ctx, b, ref, "files-memory")
	if err != nil {
		return nil, nil, err
	}
	memory.annotate("overlay", "memory")
	if err := memory.write(); err != nil {
		return nil, nil, err
	}
	layers = []site{siteOf("runsc, EROFS + overlay in a file", erofs, scratch), sandlot(scratch), siteOf("runsc, EROFS + overlay in memory", memory, scratch)}
	for _, v := range []struct{ name, overlay string }{{"directory + overlay in a file", "self"}, {"directory + overlay in memory", "memory"}, {"directory, written to directly", ""}} {
		r, err := newRaw(ctx, b, ref, "files-dir-"+v.overlay)
		if err != nil {
			return nil, nil, err
		}
		if err := r.unpack(ctx, layer, v.overlay); err != nil {
			return nil, nil, err
		}
		layers = append(layers, siteOf("runsc, "+v.name, r, scratch))
	}
	return layers, []site{siteOf("runsc", erofs, volume), sandlot(volume)}, nil
}

func siteOf(name string, r *raw, dir string) site {
	n := 0
	return site{name: name, dir: dir, open: func(ctx context.Context) (func(...string) error, func() error, error) {
		n++
		id := fmt.Sprintf("files-%d", n)
		// It has the same volume each time, and a directory that it writes to itself.
		if err := r.clean(); err != nil {
			return nil, nil, err
		}
		return func(argv ...string) error { return r.exec(ctx, id, argv...) }, func() error { return r.remove(ctx, id) }, r.run(ctx, id)
	}}
}

// unpack makes the layer a directory, and that the root. No overlay means that it is written to.
func (r *raw) unpack(ctx context.Context, layer, overlay string) error {
	root := filepath.Join(r.bundle, "root")
	if out, err := exec.CommandContext(ctx, "tar", "-xf", layer, "-C", root).CombinedOutput(); err != nil {
		return fmt.Errorf("unpacking the image: %w: %s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(root, "var", "tmp"), 0o777); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "chown", "-hR", fmt.Sprintf("%d:%d", r.base, r.base), root).CombinedOutput(); err != nil {
		return fmt.Errorf("giving the root to the sandbox: %w: %s", err, out)
	}
	if overlay == "" {
		r.config["annotations"] = map[string]any{}
		r.flags = []string{"--overlay2=none"} // gVisor's own default is one
		return r.write()
	}
	r.annotate("source", root)
	r.annotate("type", "bind")
	r.annotate("overlay", overlay)
	return r.write()
}

// clean removes what earlier work has left where it stays.
func (r *raw) clean() error {
	places := []string{filepath.Join(r.bundle, "root", "var", "tmp", "work*")}
	for _, m := range r.config["mounts"].([]any) {
		if m := m.(map[string]any); m["destination"] == "/workspace" {
			places = append(places, filepath.Join(m["source"].(string), "work*"))
		}
	}
	var errs []error
	for _, pattern := range places {
		found, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, path := range found {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}
