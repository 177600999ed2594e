package rootfs

import (
	"archive/tar"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// FromUpper rewrites gVisor's tar of a sandbox's writable layer as the layer of an image: whiteouts and opaque directories become
// .wh. files, attributes are freed of gVisor's own encoding. It leaves out every path for which drop is true, and all below it;
// paths are absolute and clean, as the sandbox sees them, and a whiteout's is what it hides. The root is never asked for. The same content
// gives the same bytes: entries are sorted, hard links belong to the first of their names, and no header has a time but the
// file's own.
//
// What can't be told in a layer is an error: a name that begins with .wh. would hide another file. gVisor itself leaves out sockets, and
// attributes whose value is not UTF-8.
//
// Contents are not held in memory: where r can seek, they are read from there again, or else from a temporary file.
func FromUpper(r io.Reader, w io.Writer, drop func(path string) bool) (err error) {
	rs, done, err := seekable(r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	u := upper{byName: map[string]*upperFile{}}
	if err := u.read(rs); err != nil {
		return err
	}
	return u.write(rs, w, drop)
}

// seekable is r, or a copy of it.
func seekable(r io.Reader) (io.ReadSeeker, func() error, error) {
	if s, ok := r.(io.ReadSeeker); ok {
		if _, err := s.Seek(0, io.SeekCurrent); err == nil { // a pipe is an *os.File too
			return s, func() error { return nil }, nil
		}
	}
	f, err := os.CreateTemp("", "sandlot-upper-*")
	if err != nil {
		return nil, nil, fmt.Errorf("copying the writable layer: %w", err)
	}
	fail := func(err error) (io.ReadSeeker, func() error, error) {
		return nil, nil, fmt.Errorf("copying the writable layer: %w", errors.Join(err, f.Close()))
	}
	if err := os.Remove(f.Name()); err != nil { // a crash leaves nothing
		return fail(err)
	}
	if _, err := io.Copy(f, r); err != nil {
		return fail(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fail(err)
	}
	return f, f.Close, nil
}

// upper is a writable layer.
type upper struct {
	names  []upperName
	byName map[string]*upperFile
}

// upperName is a path, and what it names: hard links name one thing.
type upperName struct {
	path string // below the root, "" is the root
	file *upperFile
}

type upperFile struct {
	typ          byte
	mode         int64
	uid, gid     int
	mtime        time.Time
	target       string
	major, minor int64
	xattrs       map[string]string
	opaque       bool
	offset, size int64
	written      string // the name under which it has been written
}

func (f *upperFile) whiteout() bool { return f.typ == tar.TypeChar && f.major == 0 && f.minor == 0 }

func (u *upper) read(rs io.ReadSeeker) error {
	tr := tar.NewReader(rs)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the writable layer: %w", err)
		}
		name, err := clean(h.Name)
		if err != nil {
			return fmt.Errorf("reading the writable layer: %q: %w", h.Name, err)
		}
		f, err := u.file(h)
		if err != nil {
			return fmt.Errorf("reading the writable layer: %q: %w", h.Name, err)
		}
		// The reader has read the header and nothing more.
		if f.typ == tar.TypeReg && f.offset == 0 {
			if f.offset, err = rs.Seek(0, io.SeekCurrent); err != nil {
				return fmt.Errorf("reading the writable layer: %w", err)
			}
		}
		u.names = append(u.names, upperName{name, f})
		u.byName[name] = f
	}
}

// file is what an entry names.
func (u *upper) file(h *tar.Header) (*upperFile, error) {
	f := &upperFile{
		typ: h.Typeflag, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, mtime: h.ModTime, target: h.Linkname,
		major: h.Devmajor, minor: h.Devminor, size: h.Size,
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	case tar.TypeLink:
		name, err := clean(h.Linkname)
		if err != nil {
			return nil, err
		}
		f := u.byName[name]
		if f == nil || f.typ == tar.TypeDir {
			return nil, fmt.Errorf("it is a hard link to %q, which is not there", h.Linkname)
		}
		return f, nil
	default:
		return nil, fmt.Errorf("its type %q is unknown", h.Typeflag)
	}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok {
			if strings.HasPrefix(k, "GNU.sparse.") { // its contents are not as they stand in the tar
				return nil, errors.New("it is sparse, which gVisor doesn't write")
			}
			continue
		}
		switch {
		case name == "trusted.overlay.opaque" || name == "user.overlay.opaque":
			f.opaque = v == "y"
			continue
		case strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay."):
			return nil, fmt.Errorf("its attribute %s belongs to a file system that layers can't tell of", name)
		case name == "system.posix_acl_access" || name == "system.posix_acl_default":
			acl, err := base64.RawStdEncoding.DecodeString(v) // gVisor's own way
			if err != nil {
				return nil, fmt.Errorf("its attribute %s: %w", name, err)
			}
			v = string(acl)
		}
		if f.xattrs == nil {
			f.xattrs = map[string]string{}
		}
		f.xattrs[k] = v
	}
	return f, nil
}

func (u *upper) write(rs io.ReadSeeker, w io.Writer, drop func(string) bool) error {
	// A directory comes right before what is in it.
	slices.SortFunc(u.names, func(a, b upperName) int { return comparePaths(a.path, b.path) })
	tw := tar.NewWriter(w)
	dropped := ""
	for _, n := range u.names {
		if dropped != "" && strings.HasPrefix(n.path, dropped+"/") {
			continue
		}
		if n.path != "" && drop != nil && drop("/"+n.path) {
			dropped = n.path
			continue
		}
		if err := n.write(rs, tw); err != nil {
			return fmt.Errorf("writing %q as a layer: %w", "/"+n.path, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("writing a layer: %w", err)
	}
	return nil
}

// comparePaths compares by names, not by bytes: "a/b" comes before "a-b".
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		switch x, y := a[i], b[i]; {
		case x == y:
		case x == '/':
			return -1
		case y == '/':
			return 1
		default:
			return cmp.Compare(x, y)
		}
	}
	return cmp.Compare(len(a), len(b))
}

func (n upperName) write(rs io.ReadSeeker, tw *tar.Writer) error {
	f := n.file
	dir, base := path.Split(n.path)
	if strings.HasPrefix(base, whiteout) {
		return &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "unsupported_name",
			Detail: fmt.Sprintf("images can't hold %q: names that begin with %s hide other files; rename or remove it", "/"+n.path, whiteout)}
	}
	marker := func(name string) error {
		return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX})
	}
	if f.whiteout() {
		return marker(dir + whiteout + base)
	}
	h := &tar.Header{
		Typeflag: f.typ, Name: n.path, Linkname: f.target, Mode: f.mode, Uid: f.uid, Gid: f.gid, ModTime: f.mtime,
		Devmajor: f.major, Devminor: f.minor, PAXRecords: maps.Clone(f.xattrs), Format: tar.FormatPAX,
	}
	switch {
	case f.typ == tar.TypeDir:
		h.Name = path.Join(".", n.path) + "/"
	case f.written != "":
		h.Typeflag, h.Linkname, h.PAXRecords = tar.TypeLink, f.written, nil
	case f.typ == tar.TypeReg:
		h.Size = f.size
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Size > 0 {
		if _, err := rs.Seek(f.offset, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(tw, rs, h.Size); err != nil {
			return err
		}
	}
	if f.typ != tar.TypeDir {
		f.written = n.path
	}
	if f.opaque && f.typ == tar.TypeDir {
		return marker(path.Join(n.path, opaque))
	}
	return nil
}
