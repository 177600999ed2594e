package guest_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// tailed reads all that a tail has now; what isn't there is zeros.
func tailed(t *testing.T, tail *guest.Tail, offset int64) (out []byte, missing int64) {
	t.Helper()
	for at := offset; ; {
		f, err := tail.Next()
		switch {
		case errors.Is(err, guest.ErrNoMore):
			return out, missing
		case err != nil:
			t.Fatal(err)
		case f.Kind == guest.Gap:
			if f.GapBegin() != at {
				t.Fatalf("a gap from %d, want %d", f.GapBegin(), at)
			}
			missing += f.Offset - at
			at = f.Offset
		case f.Offset != at:
			t.Fatalf("output at %d, want %d", f.Offset, at)
		default:
			out = append(out, f.Data...)
			at += int64(len(f.Data))
		}
	}
}

// What a guest writes is read from its files as it comes, from anywhere.
func TestTail(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	c := newClient(t, func(cfg *guest.Config) { cfg.StateDir = state; cfg.JournalLimit = 1 << 20 })
	cmd := shell("head -c 700000 /dev/zero | tr '\\0' a; read x; head -c 3000000 /dev/zero | tr '\\0' b; echo end")
	cmd.Open = true
	start(t, c, cmd)
	tail, err := guest.OpenTail(state, cmd.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	var out []byte
	for len(out) < 700_000 {
		more, missing := tailed(t, tail, int64(len(out)))
		if out = append(out, more...); missing > 0 {
			t.Fatalf("%d bytes are missing", missing)
		}
	}
	if want := bytes.Repeat([]byte("a"), 700_000); !bytes.Equal(out, want) {
		t.Error("what was written is not what is read")
	}
	if err := c.WriteStdinAt(t.Context(), cmd.ID, 0, []byte("\n"), true); err != nil {
		t.Fatal(err)
	}
	end := follow(t, c, cmd.ID, 0).end
	rest, missing := tailed(t, tail, 700_000)
	if int64(len(rest))+missing != 3_000_004 || missing == 0 || !bytes.HasSuffix(rest, []byte("bbend\n")) || bytes.Contains(rest, []byte("a")) {
		t.Errorf("%d bytes came, %d are missing", len(rest), missing)
	}
	late, err := guest.OpenTail(state, cmd.ID, end.Next-7)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if out, missing := tailed(t, late, end.Next-7); string(out) != "bbbend\n" || missing != 0 {
		t.Errorf("from the end on it is %q, %d missing", out, missing)
	}
}

// Root of a sandbox may put what it likes in the place of a journal. That leads nowhere, blocks nobody, and is no output.
func TestTailThatWasTamperedWith(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, guest.AppendFrame(nil, guest.Frame{Kind: guest.Stdout, Data: []byte("of the host")}), 0o600); err != nil {
		t.Fatal(err)
	}
	good := guest.AppendFrame(nil, guest.Frame{Kind: guest.Stdout, Data: []byte("good")})
	for name, tc := range map[string]struct {
		plant func(dir string) error
		want  string
	}{
		"a link to a file of the host": {func(dir string) error { return os.Symlink(secret, filepath.Join(dir, "0")) }, ""},
		"a FIFO":                       {func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "0"), 0o600) }, ""},
		"a directory":                  {func(dir string) error { return os.Mkdir(filepath.Join(dir, "0"), 0o700) }, ""},
		"a directory that is a link": {func(dir string) error {
			return errors.Join(os.Remove(dir), os.Mkdir(dir+"-real", 0o700), os.WriteFile(dir+"-real/0", good, 0o600), os.Symlink(filepath.Dir(secret), dir))
		}, ""},
		"no frames": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "0"), bytes.Repeat([]byte("x"), 100_000), 0o600)
		}, ""},
		"half a frame": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "0"), good[:15], 0o600) }, ""},
		"a frame of 4 GB": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "0"), []byte("\x01\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"), 0o600)
		}, ""},
		"an end": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "0"), guest.AppendFrame(good, guest.Frame{Kind: guest.End, Offset: 4, Data: []byte("{}")}), 0o600)
		}, "good"},
		"other names": {func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "-5"), good, 0o600), os.WriteFile(filepath.Join(dir, "x"), good, 0o600))
		}, ""},
		"as it should be": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "0000"), good, 0o600) }, "good"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			state := t.TempDir()
			dir := filepath.Join(state, "runs", "it")
			if err := errors.Join(os.MkdirAll(dir, 0o700), tc.plant(dir)); err != nil {
				t.Fatal(err)
			}
			tail, err := guest.OpenTail(state, "it", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer tail.Close()
			for range 2 {
				out, _ := tailed(t, tail, 0)
				if string(out) != tc.want {
					t.Errorf("%.100q", out)
				}
				tc.want = ""
			}
		})
	}
	for _, run := range []string{"", ".", "..", "../x", "a/b"} {
		if _, err := guest.OpenTail(t.TempDir(), run, 0); err == nil {
			t.Errorf("%q is a run", run)
		}
	}
}
