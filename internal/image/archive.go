package image

import (
	"archive/tar"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"strings"
)

// maxMembers bounds the files of an archive. The largest real ones have three for each layer.
const maxMembers = 4096

// member is a file of an archive, on our disk under a name of ours.
type member struct {
	name      string // in the archive
	path      string
	digest    string
	size      int64
	mediaType string
}

// spool writes the files of an archive into a directory of our own. Their order in it is free, and they refer to each other, so they
// must all be there before any means something.
func (im *importer) spool(r io.Reader) (map[string]*member, error) {
	var err error
	if im.dir, err = os.MkdirTemp(im.s.path("tmp", ""), "import-*"); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	im.buf = make([]byte, 128<<10)
	in := &counted{ctx: im.ctx, r: r}
	z, err := decompress(in)
	if err != nil {
		return nil, im.unreadable(in, err)
	}
	defer z.Close()
	var (
		files = map[string]*member{}
		links = map[string]string{}
		tr    = tar.NewReader(z)
		total int64
		step  = &pace{}
	)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, im.unreadable(in, err)
		}
		if n >= maxMembers {
			return nil, badImage(nil, "The archive has more than %d entries.", maxMembers)
		}
		name, err := memberName(h.Name)
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		if _, linked := links[name]; linked || files[name] != nil {
			return nil, badImage(nil, "%.200q is twice in the archive.", h.Name)
		}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return nil, badImage(nil, "%.200q in the archive is a sparse file, which no part of an image is.", h.Name)
			}
		}
		switch h.Typeflag {
		case tar.TypeReg:
			m, err := im.member(tr, name, in, im.s.cfg.MaxBytes-total)
			if err != nil {
				return nil, err
			}
			total += m.size
			files[name] = m
			if step.due(false) {
				im.report(Progress{Phase: PhasePull, Done: total, Text: "Reading the archive: " + size(total) + "."})
			}
		case tar.TypeSymlink:
			links[name] = h.Linkname
		default:
			return nil, badImage(nil, "%.200q in the archive is no file: an archive of images holds no devices, pipes or hard links.", h.Name)
		}
	}
	return files, follow(files, links)
}

// unreadable tells an archive that is bad from one whose sender failed.
func (im *importer) unreadable(in *counted, err error) error {
	if im.ctx.Err() != nil || in.err != nil {
		return fmt.Errorf("image: read the archive: %w", cmp.Or(in.err, err))
	}
	return badImage(err, "The archive can't be read: %v.", err)
}

// memberName refuses names that lead out of the archive. They would harm nobody here, but whoever writes them means to.
func memberName(raw string) (string, error) {
	name := path.Clean(raw)
	if path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") || strings.ContainsRune(name, 0) || len(name) > 1024 {
		return "", badImage(nil, "%.200q is no name for a file of an archive.", raw)
	}
	return name, nil
}

func (im *importer) member(tr io.Reader, name string, in *counted, limit int64) (*member, error) {
	f, err := os.CreateTemp(im.dir, "member-*")
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	out := &noted{w: f}
	n, err := io.CopyBuffer(io.MultiWriter(out, sum), io.LimitReader(tr, limit+1), im.buf)
	switch {
	case out.err != nil:
		return nil, out.err
	case err != nil:
		return nil, im.unreadable(in, err)
	case n > limit:
		return nil, tooBig(im.s.cfg.MaxBytes)
	}
	return &member{name: name, path: f.Name(), digest: digestOf(sum), size: n}, nil
}

// follow resolves symbolic links among the files of an archive: older versions of docker save write a layer that two images share as one.
func follow(files map[string]*member, links map[string]string) error {
	found := map[string]*member{}
	for name, target := range links {
		m := files[path.Join(path.Dir(name), target)]
		if path.IsAbs(target) || m == nil {
			return badImage(nil, "%.200q in the archive is a link to no file in it.", name)
		}
		found[name] = m
	}
	maps.Copy(files, found)
	return nil
}
