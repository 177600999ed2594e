package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// This file keeps what a suspended sandbox needs to be brought back by a later process: which gVisor wrote its image, and where on
// the host its mounts come from.

// manifest stands in an image, beside gVisor's files.
type manifest struct {
	GVisor      string    `json:"gvisor"` // another one can't read the image, and gVisor itself doesn't check
	SuspendedAt time.Time `json:"suspended_at"`
}

const manifestFile = "sandlot.json"

// gvisorVersion is the version of the gVisor in this program.
func gvisorVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path == "gvisor.dev/gvisor" {
			return m.Version
		}
	}
	return "unknown"
}

func writeManifest(dir string) error {
	data, err := json.Marshal(manifest{GVisor: gvisorVersion(), SuspendedAt: time.Now().UTC()})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), data, 0o600)
}

func checkManifest(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return fmt.Errorf("reading what it was suspended by: %w", err)
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("reading what it was suspended by: %w", err)
	}
	if v := gvisorVersion(); m.GVisor != v {
		return &sandbox.Problem{Class: sandbox.ErrState, Code: "other_version",
			Detail: fmt.Sprintf("The sandbox was suspended by a Sandlot with gVisor %s; this one has %s and can't read its memory. "+
				"It stays suspended: resume it with that Sandlot, or terminate it; its volume is kept.", m.GVisor, v)}
	}
	return nil
}

// persist makes a directory of files durable and closed to others.
func persist(dir string) error {
	return syncDir(dir, func() error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			f, err := os.OpenFile(filepath.Join(dir, entry.Name()), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			if err := errors.Join(f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
				return fmt.Errorf("keeping %s: %w", entry.Name(), err)
			}
		}
		return nil
	})
}

// syncDir changes a directory and makes the change durable.
func syncDir(dir string, change func() error) error {
	if err := change(); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// sources says where the paths of a bundle's config.json lead. They are places of the process that wrote it (see stage), and mean
// nothing to the next.
type sources struct {
	Data   []string          `json:"data"`   // places of the engine's own directory
	Mounts map[string]string `json:"mounts"` // place → directory of the host
}

const sourcesFile = "sources.json"

// noteSources adds what paths mean to this process. It is written before they are used.
func (e *Engine) noteSources(bundleDir string) error {
	s, err := readSources(bundleDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if s.Mounts == nil {
		s.Mounts = map[string]string{}
	}
	if !slices.Contains(s.Data, e.stage.dir) {
		s.Data = append(s.Data, e.stage.dir)
	}
	maps.Copy(s.Mounts, e.stage.places())
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(bundleDir, sourcesFile), data)
}

func readSources(bundleDir string) (s sources, err error) {
	data, err := os.ReadFile(filepath.Join(bundleDir, sourcesFile))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// renewBundle brings a bundle that an earlier process made up to date with where things are now.
func (e *Engine) renewBundle(k string) (bundle, error) {
	b := bundle{dir: filepath.Join(e.sandboxDir(k), "bundle"), spec: &specs.Spec{}}
	from, err := readSources(b.dir)
	if err != nil {
		return b, fmt.Errorf("reading where its files are: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(b.dir, "config.json"))
	if err != nil {
		return b, fmt.Errorf("reading its bundle: %w", err)
	}
	if err := json.Unmarshal(data, b.spec); err != nil {
		return b, fmt.Errorf("reading its bundle: %w", err)
	}
	if b.spec.Root.Path, err = e.moved(from, b.spec.Root.Path); err != nil {
		return b, err
	}
	for i, m := range b.spec.Mounts {
		if m.Type != "bind" {
			continue
		}
		if b.spec.Mounts[i].Source, err = e.moved(from, m.Source); err != nil {
			return b, err
		}
	}
	for name, value := range b.spec.Annotations {
		if b.spec.Annotations[name], err = e.moved(from, value); err != nil {
			return b, err
		}
	}
	if err := e.noteSources(b.dir); err != nil {
		return b, err
	}
	if data, err = json.Marshal(b.spec); err != nil {
		return b, err
	}
	return b, replaceFile(filepath.Join(b.dir, "config.json"), data)
}

// moved translates a path that a bundle holds; what is no such path stays as it is.
func (e *Engine) moved(from sources, path string) (string, error) {
	for _, place := range from.Data {
		if rest, ok := below(path, place); ok {
			return filepath.Join(e.stage.dir, rest), nil
		}
	}
	for place, source := range from.Mounts {
		if rest, ok := below(path, place); ok {
			now, err := e.stage.place(source)
			if err != nil {
				return "", &sandbox.Problem{Class: sandbox.ErrState, Code: "cannot_resume", Err: err,
					Detail: fmt.Sprintf("The sandbox can't be resumed: it uses %s of the server's machine, which can't be found any more. It stays suspended.", source)}
			}
			return filepath.Join(now, rest), nil
		}
	}
	return path, nil
}

// below returns what of path comes after dir.
func below(path, dir string) (rest string, ok bool) {
	if path == dir {
		return "", true
	}
	return strings.CutPrefix(path, dir+"/")
}

// places returns what is reachable through which place, Config.Dir aside.
func (s *stage) places() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]string{}
	for source, place := range s.mounts {
		if place != s.dir {
			all[place] = source
		}
	}
	return all
}

// place returns where gVisor's processes find a directory of the host, which an earlier process may have had among its sources.
func (s *stage) place(source string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if place, ok := s.mounts[source]; ok {
		return place, nil
	}
	if _, err := os.Stat(source); err != nil {
		return "", err
	}
	place := source
	if len(s.bound) > 0 { // they can't walk there
		var err error
		if place, err = s.bind(source, filepath.Join(s.bound[0], fmt.Sprintf("old%d", len(s.bound)))); err != nil {
			return "", err
		}
	}
	s.mounts[source] = place
	return place, nil
}
