package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestHostileLayers refuses what can't be made harmless, and leaves nothing behind.
func TestHostileLayers(t *testing.T) {
	deep, target := strings.Repeat("d/", 1800)+"d", strings.Repeat("t", 4000)
	tests := map[string]struct {
		ents   []ent
		limits rootfs.Limits
		says   string
	}{
		"PathOut":           {ents: []ent{file("../../etc/passwd", "x")}, says: `layer 1, entry "../../etc/passwd": it leads out`},
		"PathOutInside":     {ents: []ent{file("a/../../b", "x")}, says: "leads out"},
		"DotDot":            {ents: []ent{dir("..")}, says: "leads out"},
		"HardLinkOut":       {ents: []ent{hardlink("a", "../../etc/passwd")}, says: "leads out"},
		"HardLinkMissing":   {ents: []ent{hardlink("a", "/etc/passwd")}, says: "does not exist"},
		"HardLinkToSelf":    {ents: []ent{file("a", "x"), hardlink("a", "a")}, says: "does not exist"},
		"HardLinkBelowSelf": {ents: []ent{file("a/b", "x"), hardlink("a", "a/b")}, says: "does not exist"},
		"HardLinkToDir":     {ents: []ent{dir("a"), hardlink("b", "a")}, says: "is a directory"},
		"HardLinkToRoot":    {ents: []ent{hardlink("b", "/")}, says: "does not exist"},
		"HardLinkLoop":      {ents: []ent{symlink("a", "b"), symlink("b", "a"), hardlink("c", "a/x")}, says: "symbolic links"},
		"RootIsFile":        {ents: []ent{file(".", "x")}, says: "root directory"},
		"RootIsLink":        {ents: []ent{symlink("/", "x")}, says: "root directory"},
		"RootIsHardLink":    {ents: []ent{file("a", ""), hardlink("/", "a")}, says: "root directory"},
		"LinkLoop":          {ents: []ent{symlink("a", "b"), symlink("b", "a"), file("a/c", "x")}, says: "symbolic links"},
		"LinkToSelf":        {ents: []ent{symlink("a", "a/a"), file("a/c", "x")}, says: "symbolic links"},
		"FileAsDirectory":   {ents: []ent{file("a", "x"), file("a/b", "x")}, says: "file of the same layer"},
		"LongName":          {ents: []ent{file(strings.Repeat("n", 256), "x")}, says: "longer than 255"},
		"LongNameInLink":    {ents: []ent{symlink("a", strings.Repeat("n", 256)), file("a/b", "x")}, says: "longer than 255"},
		"LongPath":          {ents: []ent{file(strings.Repeat("n/", 2048)+"n", "x")}, says: "longer than 4095"},
		"DeepByLinks":       {ents: []ent{dir(deep), symlink("l", deep), file("l/"+deep+"/f", "x")}, says: "directories deep"},
		"LongTarget":        {ents: []ent{symlink("a", strings.Repeat("t", 4096))}, says: "link target"},
		"WhiteoutOfNoName":  {ents: []ent{file("d/.wh.", "")}, says: "hides no name"},
		"WhiteoutOfParent":  {ents: []ent{file("d/.wh...", "")}, says: "hides no name"},
		"WhiteoutOfItself":  {ents: []ent{file("d/.wh..", "")}, says: "hides no name"},
		"Owner":             {ents: []ent{file("a", "").with(func(h *tar.Header) { h.Uid, h.Format = math.MaxUint32, tar.FormatGNU })}, says: "owner"},
		"OwnerNegative":     {ents: []ent{file("a", "").with(func(h *tar.Header) { h.Gid, h.Format = -1, tar.FormatGNU })}, says: "owner"},
		"Device":            {ents: []ent{{tar.Header{Typeflag: tar.TypeChar, Name: "a", Devmajor: 4096}, ""}}, says: "device number"},
		"Type":              {ents: []ent{{tar.Header{Typeflag: 'V', Name: "volume"}, ""}}, says: "type 'V'"},
		"AttributeTooLarge": {ents: []ent{file("a", "").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 64<<10+1)}
		})}, says: "attribute"},
		"AttributeNameTooLong": {ents: []ent{file("a", "").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr." + strings.Repeat("n", 256): "x"}
		})}, says: "attribute"},
		"TooManyBytes":     {ents: []ent{file("a", "12345"), file("a", "678901")}, limits: rootfs.Limits{Bytes: 10}, says: "limit Bytes"},
		"TooManyEntries":   {ents: []ent{file("a", ""), file("a", ""), file("a", "")}, limits: rootfs.Limits{Entries: 2}, says: "limit Entries"},
		"TooManyImplied":   {ents: []ent{file("a/b/c/d/e/f", "")}, limits: rootfs.Limits{Entries: 5}, says: "limit Entries"},
		"TooManyWhiteouts": {ents: []ent{file(".wh.a", ""), file(".wh.a", "")}, limits: rootfs.Limits{Entries: 1}, says: "limit Entries"},
		"TooManySteps":     {ents: []ent{dir(deep), symlink("l", deep)}, limits: rootfs.Limits{Entries: 1900}, says: "too deep in all"},
		"TooMuchMetadata":  {ents: []ent{symlink("a", target), symlink("a", target)}, limits: rootfs.Limits{Metadata: 5000}, says: "limit Metadata"},
	}
	steps := tests["TooManySteps"]
	for range 90 {
		steps.ents = append(steps.ents, file("l/f", ""))
	}
	tests["TooManySteps"] = steps
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, _, err := write(t, tt.limits, archive(t, tt.ents...))
			badLayer(t, err, tt.says)
			if left := dirNames(t, filepath.Dir(f)); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// TestBrokenArchives cuts and bends archives.
func TestBrokenArchives(t *testing.T) {
	good := archive(t, file("a", strings.Repeat("x", 2000)), file("b", "y"))
	negative := bytes.Clone(good)
	copy(negative[124:136], "-0000000001\x00")
	negativeBinary := bytes.Clone(good)
	copy(negativeBinary[124:136], bytes.Repeat([]byte{0xff}, 12))
	for name, b := range map[string][]byte{
		"CutInHeader": good[:100], "CutInBody": good[:1000], "CutInPadding": good[:2600], "CutInNextHeader": good[:2700],
		"NegativeSize": negative, "NegativeBinarySize": negativeBinary, "NoTar": bytes.Repeat([]byte("sandlot "), 200),
	} {
		t.Run(name, func(t *testing.T) {
			f, _, err := write(t, rootfs.Limits{}, archive(t, file("z", "")), b)
			badLayer(t, err, "layer 2")
			if left := dirNames(t, filepath.Dir(f)); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// TestEndlessHeaders has a layer that never comes to an entry, and one that goes on after its end.
func TestEndlessHeaders(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	about := map[string]string{"comment": strings.Repeat("x", 1000)}
	if err := w.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, PAXRecords: about}); err != nil {
		t.Fatal(err)
	}
	extended := b.Bytes()[:len(b.Bytes())-512] // without the file that it is about
	for name, part := range map[string][]byte{"Headers": extended, "Padding": make([]byte, 1<<16)} {
		var open rootfs.Layer = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(&repeat{part: part}), nil }
		limits := rootfs.Limits{Bytes: 1000, Entries: 10, Metadata: 1000}
		_, err := rootfs.Write(t.Context(), filepath.Join(t.TempDir(), "f"), []rootfs.Layer{open}, limits)
		t.Run(name, func(t *testing.T) { badLayer(t, err, "longer than the limits") })
	}
}

// repeat reads the same bytes for ever.
type repeat struct {
	part []byte
	at   int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.part[r.at:])
	r.at = (r.at + n) % len(r.part)
	return n, nil
}

// TestSource tells the faults of a layer's source from the layer's own, and closes it.
func TestSource(t *testing.T) {
	errNet := errors.New("connection lost")
	src := &failing{Reader: io.MultiReader(bytes.NewReader(archive(t, file("a", strings.Repeat("x", 10000)))[:5000]), iotestErr{errNet})}
	f := filepath.Join(t.TempDir(), "f")
	_, err := rootfs.Write(t.Context(), f, []rootfs.Layer{func(context.Context) (io.ReadCloser, error) { return src, nil }}, rootfs.Limits{})
	if !errors.Is(err, errNet) || errors.Is(err, sandbox.ErrInvalid) || !strings.Contains(err.Error(), `layer 1, entry "a"`) {
		t.Errorf("error %v, want %v of layer 1", err, errNet)
	}
	if !src.closed {
		t.Error("the layer was not closed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = rootfs.Write(ctx, f, []rootfs.Layer{layer(archive(t, file("a", "x")))}, rootfs.Limits{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	_, err = rootfs.Write(t.Context(), f, []rootfs.Layer{func(context.Context) (io.ReadCloser, error) { return nil, errNet }}, rootfs.Limits{})
	if !errors.Is(err, errNet) {
		t.Errorf("error %v, want %v", err, errNet)
	}
	if left := dirNames(t, filepath.Dir(f)); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

type failing struct {
	io.Reader
	closed bool
}

func (f *failing) Close() error {
	f.closed = true
	return nil
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

func FuzzWrite(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add(archive(f, dir("d"), file("d/a", "1"), symlink("l", "d"), hardlink("d/b", "d/a")),
		archive(f, file("d/.wh.a", ""), file("l/x", strings.Repeat("y", 5000)), file(".wh..wh..opq", ""), file("../x", "")))
	f.Add(archive(f, symlink("a", "../../b"), file("a/c", "x").with(func(h *tar.Header) {
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1"}
	})), sparse(f, "1.0", "s", 1<<16))
	f.Add(sparse(f, "0.1", "s", 1<<20), sparse(f, "gnu", "s", 10000))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		name, stats, err := write(t, rootfs.Limits{Bytes: 256 << 10, Entries: 1000, Metadata: 1 << 20}, one, two)
		left := dirNames(t, filepath.Dir(name))
		if err != nil {
			if len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			badLayer(t, err, "layer")
			return
		}
		if len(left) != 1 {
			t.Errorf("made %q", left)
		}
		img, err := rootfs.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		if n := int64(len(list(t, img))) + 1; n != stats.Entries {
			t.Errorf("%d paths, want %d", n, stats.Entries)
		}
	})
}
