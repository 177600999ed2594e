package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Store is the images below one directory. Safe for concurrent use.
type Store struct {
	cfg       Config
	platform  v1.Platform
	transport http.RoundTripper
	lock      *os.File

	ctx    context.Context // ends with Close; of work that several callers wait for
	cancel context.CancelCauseFunc
	work   sync.WaitGroup

	flights flights
	keys    keyLocks // "blob:HEX", "root:HEX": who makes it

	mu     sync.Mutex
	closed bool
	images map[string]*record    // by ID
	layers map[string]*layerInfo // by digest; each has its blob
	pins   map[string]int        // digests of blobs, chains of roots: in use by work under way
}

// record is an image as images/HEX.json has it.
type record struct {
	ID        string    `json:"id"`
	Layers    []Layer   `json:"layers"`
	Platform  string    `json:"platform"`
	CreatedAt time.Time `json:"created_at"`
	Names     []string  `json:"names,omitempty"`
	Sources   []source  `json:"sources,omitempty"`

	settings Settings
	chain    string
	usedAt   time.Time // the file's modification time
	gotten   int       // how many have got it by Pull or Import and not given it back; those of earlier processes count as one
}

// source is where an image came from: whoever gets that manifest from that repository may have the image.
type source struct {
	Repo     string `json:"repo"`
	Digest   string `json:"digest"`   // of what was asked for: a list of platforms, perhaps
	Manifest string `json:"manifest"` // of the manifest for our platform
}

// layerInfo is what layers/HEX.json tells of a blob.
type layerInfo struct {
	Layer
	Hosts []string `json:"hosts,omitempty"` // registries that have sent it to us
}

// Open opens the store and removes what a dead process left half done. It fails if another process has it open.
func Open(cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("image: the store's directory %q is not absolute", cfg.Dir)
	}
	s := &Store{cfg: cfg, platform: hostPlatform(), transport: cfg.Transport,
		images: map[string]*record{}, layers: map[string]*layerInfo{}, pins: map[string]int{}}
	s.defaults()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("image: make the store: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("image: %s is in use by another process: %w", cfg.Dir, err), lock.Close())
	}
	s.lock = lock
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("image: open the store: %w", err), lock.Close())
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

func (s *Store) defaults() {
	c := &s.cfg
	if c.Platform != nil {
		s.platform = *c.Platform
	}
	if c.MaxBytes <= 0 {
		c.MaxBytes = 64 << 30
	}
	if c.Stall <= 0 {
		c.Stall = time.Minute
	}
	if c.Backoff <= 0 {
		c.Backoff = 500 * time.Millisecond
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if s.transport == nil {
		s.transport = http.DefaultTransport
	}
}

// Close ends work under way and waits for it. Blobs that are complete stay, for the next pull to go on with.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel(errClosed)
	s.work.Wait()
	return s.lock.Close()
}

// begin counts a caller's work. Its context ends with the caller's, or with the store.
func (s *Store) begin(ctx context.Context) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, fmt.Errorf("image: %w", errClosed)
	}
	s.work.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(errClosed) })
	return ctx, func() { stop(); cancel(nil); s.work.Done() }, nil
}

func (s *Store) path(kind, name string) string { return filepath.Join(s.cfg.Dir, kind, name) }

func (s *Store) blobPath(digest string) string {
	return filepath.Join(s.cfg.Dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

func (s *Store) rootPath(chain string) string { return s.path("roots", chain+".erofs") }

func (s *Store) imagePath(id string) string {
	return s.path("images", strings.TrimPrefix(id, "sha256:")+".json")
}

func (s *Store) layerPath(digest string) string {
	return s.path("layers", strings.TrimPrefix(digest, "sha256:")+".json")
}

// load reads what is there. The lock is held, so whatever is half done is nobody's.
func (s *Store) load() error {
	if err := os.RemoveAll(s.path("tmp", "")); err != nil {
		return err
	}
	for _, dir := range []string{"tmp", "blobs", "blobs/sha256", "layers", "images", "roots"} {
		if err := os.MkdirAll(s.path(dir, ""), 0o700); err != nil {
			return err
		}
	}
	err := s.eachFile("layers", ".json", func(name string, _ fs.FileInfo) error {
		var l layerInfo
		err := readJSON(s.path("layers", name), &l)
		if fi, serr := os.Stat(s.blobPath(l.Digest)); err != nil || !isDigest(l.Digest) || serr != nil || fi.Size() != l.Size {
			return os.Remove(s.path("layers", name)) // it was written before its blob
		}
		s.layers[l.Digest] = &l
		return nil
	})
	if err != nil {
		return err
	}
	err = s.eachFile("images", ".json", func(name string, fi fs.FileInfo) error {
		var r record
		if err := readJSON(s.path("images", name), &r); err != nil || s.imagePath(r.ID) != s.path("images", name) {
			s.cfg.Log.Error("an image's record can't be read and is removed", "file", name, "error", err)
			return os.Remove(s.path("images", name))
		}
		cf, err := s.readConfig(r.ID)
		if err != nil {
			s.cfg.Log.Error("an image's configuration can't be read, so it is removed", "image", r.ID, "error", err)
			return os.Remove(s.path("images", name))
		}
		r.settings, r.chain, r.usedAt, r.gotten = settingsOf(cf), chainOf(r.Layers), fi.ModTime(), 1
		s.images[r.ID] = &r
		return nil
	})
	if err != nil {
		return err
	}
	_, err = s.sweep(time.Time{}, "roots") // blobs may be of a pull that goes on
	return err
}

// eachFile calls f for each file of a directory with that ending; any other is removed.
func (s *Store) eachFile(dir, suffix string, f func(name string, fi fs.FileInfo) error) error {
	list, err := os.ReadDir(s.path(dir, ""))
	if err != nil {
		return err
	}
	for _, e := range list {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && (!strings.HasSuffix(e.Name(), suffix) || !fi.Mode().IsRegular()) {
			err = os.RemoveAll(s.path(dir, e.Name()))
		} else if err == nil {
			err = f(e.Name(), fi)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Get returns an image with its root, which is written anew if it was dropped.
func (s *Store) Get(ctx context.Context, id string) (Image, error) {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return Image{}, err
	}
	defer done()
	r, unpin, err := s.hold(id)
	if err != nil {
		return Image{}, err
	}
	defer unpin()
	if err := s.ensureRoot(ctx, r.Layers, nil); err != nil {
		return Image{}, err
	}
	s.touch(id)
	return s.Inspect(ctx, id)
}

// Link makes name a hard link of an image's root, which no removal of the image touches. It must be on the store's file system.
func (s *Store) Link(ctx context.Context, id, name string) (Image, error) {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return Image{}, err
	}
	defer done()
	r, unpin, err := s.hold(id)
	if err != nil {
		return Image{}, err
	}
	defer unpin()
	if err := s.ensureRoot(ctx, r.Layers, nil); err != nil {
		return Image{}, err
	}
	if err := os.Link(s.rootPath(r.chain), name); err != nil {
		return Image{}, fmt.Errorf("image: link the root: %w", err)
	}
	s.touch(id)
	return s.Inspect(ctx, id)
}

// Inspect returns an image as it lies there.
func (s *Store) Inspect(_ context.Context, id string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.images[id]
	if !ok {
		return Image{}, unknownImage(id)
	}
	return s.image(r), nil
}

// List returns all images as they lie there, newest first.
func (s *Store) List(context.Context) ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Image, 0, len(s.images))
	for _, r := range s.images {
		list = append(list, s.image(r))
	}
	slices.SortFunc(list, func(a, b Image) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// image is what others see of a record; s.mu is held.
func (s *Store) image(r *record) Image {
	img := Image{ID: r.ID, Config: r.settings.clone(), Layers: slices.Clone(r.Layers), Platform: r.Platform,
		CreatedAt: r.CreatedAt, UsedAt: r.usedAt, Names: slices.Clone(r.Names)}
	for _, l := range r.Layers {
		img.Size += l.Size
	}
	if fi, err := os.Stat(s.rootPath(r.chain)); err == nil {
		img.Root, img.RootSize = s.rootPath(r.chain), fi.Size()
	}
	return img
}

// hold finds an image and pins what it is made of until unpin.
func (s *Store) hold(id string) (r record, unpin func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok := s.images[id]
	if !ok {
		return record{}, nil, unknownImage(id)
	}
	r = *found
	return r, s.pinLocked(r.needs()...), nil
}

// needs names the blobs and the root of an image.
func (r *record) needs() []string {
	keys := []string{r.ID, r.chain}
	for _, l := range r.Layers {
		keys = append(keys, l.Digest)
	}
	return keys
}

// pin keeps blobs and roots from being removed until unpin.
func (s *Store) pin(keys ...string) (unpin func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pinLocked(keys...)
}

func (s *Store) pinLocked(keys ...string) func() {
	for _, k := range keys {
		s.pins[k]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range keys {
			if s.pins[k]--; s.pins[k] == 0 {
				delete(s.pins, k)
			}
		}
	}
}

// touch notes that an image was used.
func (s *Store) touch(id string) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.images[id]; ok {
		r.usedAt = now
		if err := os.Chtimes(s.imagePath(id), now, now); err != nil {
			s.cfg.Log.Warn("an image's last use can't be noted", "image", id, "error", err)
		}
	}
}

// got notes that somebody goes on with an image, which must be pinned until then.
func (s *Store) got(id string) {
	s.touch(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.images[id]; ok {
		r.gotten++
	}
}

// GiveBack says that whoever has got an image by Pull or Import has no use for it. If nobody else has got it, it is deleted.
func (s *Store) GiveBack(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.images[id]
	if s.closed || !ok {
		return nil
	}
	if r.gotten--; r.gotten > 0 || s.pins[id] > 0 {
		return nil
	}
	_, err := s.deleteLocked(id)
	return err
}

// keep records an image, or adds names and sources to the one that is there. All that it needs is there and pinned.
func (s *Store) keep(r record, cf *v1.ConfigFile) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	r.settings, r.chain, r.usedAt = settingsOf(cf), chainOf(r.Layers), now
	if r.CreatedAt.IsZero() {
		r.CreatedAt = now.UTC()
	}
	if old, ok := s.images[r.ID]; ok {
		merged := *old
		merged.Names, merged.Sources = union(old.Names, r.Names), union(old.Sources, r.Sources)
		merged.usedAt = now
		r = merged
	}
	if err := s.writeJSON(s.imagePath(r.ID), r); err != nil {
		return fmt.Errorf("recording the image: %w", err)
	}
	s.images[r.ID] = &r
	return nil
}

// maxNames bounds the names and sources of one image.
const maxNames = 256

func union[T comparable](a, b []T) []T {
	out := slices.Clone(a)
	for _, v := range b {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out[max(0, len(out)-maxNames):]
}

// Delete removes an image, and what no other image needs of it. Sandboxes that run from it don't notice.
func (s *Store) Delete(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("image: %w", errClosed)
	}
	_, err := s.deleteLocked(id)
	return err
}

func (s *Store) deleteLocked(id string) (freed int64, err error) {
	r, ok := s.images[id]
	if !ok {
		return 0, unknownImage(id)
	}
	if err := os.Remove(s.imagePath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("image: delete %s: %w", id, err)
	}
	delete(s.images, id)
	return s.dropLocked(r.needs())
}

func (s Settings) clone() Settings {
	s.Env, s.Entrypoint, s.Cmd, s.Shell = slices.Clone(s.Env), slices.Clone(s.Entrypoint), slices.Clone(s.Cmd), slices.Clone(s.Shell)
	s.Labels, s.Ports, s.Volumes = maps.Clone(s.Labels), slices.Clone(s.Ports), slices.Clone(s.Volumes)
	return s
}

func isDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && sha256Hex.MatchString(hex)
}

func readJSON(name string, v any) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
