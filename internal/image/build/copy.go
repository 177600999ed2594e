package build

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// source is what COPY and ADD take: files of an image, URLs, and text that stands in the command.
type source struct {
	from     string
	paths    []string
	urls     []string
	checksum string
	inline   []instructions.SourceContent
}

// target is where they put it, and how.
type target struct {
	path, chown, chmod string
	link               bool
}

// copy carries out a COPY or ADD.
func (s *state) copy(ctx context.Context, ins *instruction, src source, to target) error {
	dest := s.absolute(to.path)
	dir := isDirName(to.path) || to.path == ""
	k := newKey("copy", s.req.Scope, s.id, dest, strconv.FormatBool(dir), to.chown, to.chmod, strconv.FormatBool(to.link)).list(src.paths)
	for _, f := range src.inline {
		k.add(f.Path, f.Data)
	}
	from := ""
	if len(src.paths) > 0 {
		id, err := s.pull(ctx, src.from)
		if err != nil {
			return stepError(ins, err)
		}
		from = id
	}
	fetches, err := s.open(ctx, ins, src)
	release := func() {
		for _, f := range fetches {
			f.close()
		}
	}
	if err != nil {
		release()
		return stepError(ins, err)
	}
	for _, f := range fetches {
		k.list(f.identity)
	}
	base := s.id
	return s.step(ctx, ins, k.add(from).sum(), release, func(ctx context.Context, log *output) (string, error) {
		for _, f := range fetches {
			if err := f.download(ctx); err != nil {
				return "", err
			}
		}
		c := copying{images: s.req.Images, base: base, from: from, src: src, to: to, dest: dest, dir: dir, fetches: fetches, log: log}
		return c.run(ctx, func(r io.Reader) (string, error) { return s.append(ctx, base, r, ins.text) })
	})
}

// pull makes the image that COPY --from names present.
func (s *state) pull(ctx context.Context, ref string) (string, error) {
	if id, ok := s.pulled[ref]; ok {
		return id, nil
	}
	id, err := s.req.Images.Pull(ctx, ref, func(text string) { s.report(Event{Kind: KindLog, Data: s.mask.line(text)}) })
	if err != nil {
		return "", err
	}
	s.pulled[ref] = id
	return id, nil
}

// copying is a COPY or ADD at work.
type copying struct {
	images     Images
	base, from string
	src        source
	to         target
	dest       string
	dir        bool
	fetches    []*fetch
	log        *output
}

func (c *copying) run(ctx context.Context, store func(io.Reader) (string, error)) (string, error) {
	base, err := c.images.Files(ctx, c.base)
	if err != nil {
		return "", fmt.Errorf("opening the image: %w", err)
	}
	defer base.Close()
	l := newLayer(lookIn(base))
	if c.to.link {
		l.look = func(string) (*node, error) { return nil, nil }
	}
	if c.to.chown != "" {
		o, err := fileOwner(base, c.to.chown)
		if err != nil {
			return "", err
		}
		l.owner = &o
	}
	if c.to.chmod != "" {
		if l.chmod, err = parseMode(c.to.chmod); err != nil {
			return "", reasonf("--chmod=%s: %s", c.to.chmod, parseText(err))
		}
		_, err := strconv.ParseUint(c.to.chmod, 8, 32)
		l.fixed = err == nil
	}
	if c.from != "" {
		from, err := c.images.Files(ctx, c.from)
		if err != nil {
			return "", fmt.Errorf("opening the image %s: %w", c.src.from, err)
		}
		defer from.Close()
		if err := c.planFiles(ctx, l, from); err != nil {
			return "", err
		}
	}
	if err := c.planRest(l); err != nil {
		return "", err
	}
	if len(l.entries) == 0 {
		return c.base, nil
	}
	return storeLayer(ctx, l, store)
}

// planFiles plans what comes from another image.
func (c *copying) planFiles(ctx context.Context, l *layer, from Files) error {
	var all []string
	for _, p := range c.src.paths {
		found, err := glob(from, p)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			c.log.notice(fmt.Sprintf("%s matches nothing in %s", quote(p), c.src.from))
		}
		all = append(all, found...)
	}
	if len(all) > 1 && !c.dir {
		real, err := resolve(c.dest, l.at)
		if err != nil {
			return err
		}
		if there, err := l.at(real); err != nil || there == nil || !there.mode.IsDir() {
			return reasonf("the sources are %d, so the destination must be a directory: end it with a slash", len(all))
		}
	}
	skipped := 0
	for _, p := range all {
		if err := l.copy(ctx, from, p, c.dest, c.dir, func(string) { skipped++ }); err != nil {
			return err
		}
	}
	if skipped > 0 {
		c.log.notice(fmt.Sprintf("%d devices, pipes or sockets of %s were left out", skipped, c.src.from))
	}
	return nil
}

// planRest plans what was fetched and what stands in the command.
func (c *copying) planRest(l *layer) error {
	for _, f := range c.fetches {
		to, err := l.destination(c.dest, c.dir, f.name(), false)
		if err != nil {
			return err
		}
		e := &entry{kind: tar.TypeReg, perm: 0o600, mtime: f.mtime, size: f.size, open: f.reader}
		if err := l.put(to, e); err != nil {
			return err
		}
	}
	for _, f := range c.src.inline {
		to, err := l.destination(c.dest, c.dir, f.Path, false)
		if err != nil {
			return err
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(f.Data)), nil }
		if err := l.put(to, &entry{kind: tar.TypeReg, perm: 0o644, mtime: epoch, size: int64(len(f.Data)), open: open}); err != nil {
			return err
		}
	}
	return nil
}

// storeLayer streams a layer to where it is kept.
func storeLayer(ctx context.Context, l *layer, store func(io.Reader) (string, error)) (string, error) {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := l.write(ctx, w)
		w.CloseWithError(err) // nil is the end
		written <- err
	}()
	id, err := store(r)
	r.CloseWithError(io.ErrClosedPipe) // whoever stopped reading early must not leave the writer waiting
	if werr := <-written; err == nil && werr != nil {
		err = werr
	}
	return id, err
}

// workdir carries out a WORKDIR: the directory is there from then on, and belongs to the current user.
func (s *state) workdir(ctx context.Context, ins *instruction, p string) error {
	p = s.absolute(p)
	s.settings.Workdir, s.changed = p, true
	s.history = append(s.history, "WORKDIR "+p)
	if p == "/" {
		return nil
	}
	base, user := s.id, s.settings.User
	return s.step(ctx, ins, newKey("workdir", s.req.Scope, base, user, p).sum(), nil, func(ctx context.Context, _ *output) (string, error) {
		files, err := s.req.Images.Files(ctx, base)
		if err != nil {
			return "", fmt.Errorf("opening the image: %w", err)
		}
		defer files.Close()
		l := newLayer(lookIn(files))
		real, err := resolve(p, l.at)
		if err != nil {
			return "", err
		}
		if there, err := l.at(real); err != nil || there != nil && there.mode.IsDir() {
			return base, err
		}
		if user != "" {
			u, err := execUser(files, user)
			if err != nil {
				return "", err
			}
			l.owner = &owner{u.UID, u.GID}
		}
		if err := l.mkdirAll(real); err != nil {
			return "", err
		}
		var tarred bytes.Buffer // a few directories
		if err := l.write(ctx, &tarred); err != nil {
			return "", err
		}
		return s.append(ctx, base, &tarred, ins.text)
	})
}
