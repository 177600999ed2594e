package rootfs_test

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// box is a sandbox, run with gVisor's own command line, which our program is too.
type box struct {
	t    *testing.T
	id   string
	dir  string
	args []string
}

var boxes atomic.Int64

// start runs a sandbox that sleeps, with an image as its root. The image must have busybox.
func start(t *testing.T, image string) *box {
	t.Helper()
	bin := os.Getenv("SANDLOT_TEST_BIN")
	if bin == "" {
		skip(t, "SANDLOT_TEST_BIN is not set")
	}
	dir := t.TempDir()
	b := &box{t: t, dir: dir, id: fmt.Sprintf("rootfs-%d-%d", os.Getpid(), boxes.Add(1))}
	b.args = []string{"--root=" + filepath.Join(dir, "state"), "--platform=systrap", "--network=none", "--ignore-cgroups"}
	root := filepath.Join(dir, "bundle", "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(bin, filepath.Join(dir, "runsc")); err != nil {
		t.Fatal(err)
	}
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SYS_ADMIN"}
	spec := specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{
			Args: []string{"/bin/busybox", "sleep", "3600"}, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
		}},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source": image, "dev.gvisor.spec.rootfs.type": "erofs", "dev.gvisor.spec.rootfs.overlay": "memory",
		},
	}
	config, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bundle", "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.call("delete", "-force", b.id)
		// gVisor pins a network namespace by a mount in its directory.
		_ = syscall.Unmount(filepath.Join(dir, "state", "null-netns"), 0) // it may not be there
	})
	b.call("run", "-detach", "-bundle="+filepath.Join(dir, "bundle"), b.id)
	return b
}

// call calls gVisor and returns what it wrote to its standard output.
func (b *box) call(args ...string) string {
	b.t.Helper()
	var out [2]*os.File // not pipes: the sandbox keeps them open
	for i := range out {
		f, err := os.CreateTemp(b.dir, "out-*")
		if err != nil {
			b.t.Fatal(err)
		}
		defer f.Close()
		out[i] = f
	}
	// Not with the test's context: the clean-up calls it, too.
	cmd := exec.Command(filepath.Join(b.dir, "runsc"), append(slices.Clone(b.args), args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = out[0], out[1]
	runErr := cmd.Run()
	read := func(f *os.File) string {
		data, err := os.ReadFile(f.Name())
		if err != nil {
			b.t.Error(err)
		}
		return string(data)
	}
	if runErr != nil {
		b.t.Fatalf("runsc %v: %v: %s", args, runErr, read(out[1]))
	}
	return read(out[0])
}

// sh runs a script of busybox inside.
func (b *box) sh(script string) string {
	b.t.Helper()
	return b.call("exec", b.id, "/bin/busybox", "sh", "-ec", script)
}

// mounted says whether gVisor mounts there, or changes it to do so.
func mounted(p string) bool {
	switch p {
	case "/", "/dev", "/proc", "/sys", "/tmp":
		return true
	}
	return false
}

// list lists everything inside.
func (b *box) list() map[string]what {
	b.t.Helper()
	out := b.sh("find / -xdev ! -path '/dev/*' ! -path '/proc/*' ! -path '/sys/*' -exec stat -c '%n|%f|%u|%g|%s|%Y|%N' {} + && " +
		"find / -xdev -type f -exec sha256sum {} +")
	all := fromSandbox(b.t, out)
	for p := range all {
		if mounted(p) {
			delete(all, p)
		}
	}
	return all
}

func fromSandbox(t *testing.T, out string) map[string]what {
	all := map[string]what{}
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		if sum, name, ok := strings.Cut(line, "  "); ok && len(sum) == 64 {
			w := all[name]
			w.hash = sum
			all[name] = w
			continue
		}
		f := strings.Split(line, "|")
		if len(f) != 7 {
			t.Fatalf("line %q", line)
		}
		n := func(i, base int) int64 {
			n, err := strconv.ParseInt(f[i], base, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		mode := n(1, 16)
		w := what{mode: goMode(uint32(mode)).String(), uid: uint32(n(2, 10)), gid: uint32(n(3, 10)), mtime: time.Unix(n(5, 10), 0)}
		switch mode & unix.S_IFMT {
		case unix.S_IFREG:
			w.size = n(4, 10)
		case unix.S_IFLNK:
			_, link, _ := strings.Cut(f[6], " -> ")
			w.link = strings.Trim(link, "'")
		}
		all[f[0]] = w
	}
	return all
}

func goMode(mode uint32) fs.FileMode {
	h := tar.Header{Mode: int64(mode & 0o7777), Typeflag: map[uint32]byte{
		unix.S_IFREG: tar.TypeReg, unix.S_IFDIR: tar.TypeDir, unix.S_IFLNK: tar.TypeSymlink, unix.S_IFIFO: tar.TypeFifo,
		unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock,
	}[mode&unix.S_IFMT]}
	return h.FileInfo().Mode()
}
