package local

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/devices/nvproxy"
	"gvisor.dev/gvisor/pkg/sentry/devices/nvproxy/nvconf"
	"gvisor.dev/gvisor/runsc/config"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// gVisor passes the system calls of NVIDIA's driver on to the host's, for the versions of it that it knows (nvproxy). A sandbox with GPUs
// gets their device nodes, and the part of the driver that runs in a program's own process: that must be of the very version of
// the host's kernel module, so no image has it.

const (
	// gpuCapabilities are the parts of the driver that sandboxes may use: computing and looking at the device, no displays.
	gpuCapabilities = "compute,utility"

	// gpuDir is where a sandbox with GPUs has the driver's libraries (lib64) and programs (bin). Not below /usr, which may be read-only.
	gpuDir = "/run/sandlot/nvidia"
)

// gpuLibraries are the driver's libraries for gpuCapabilities. Not every version of it has all.
var gpuLibraries = []string{
	"libcuda", "libcudadebugger", "libnvidia-ml", "libnvidia-cfg", "libnvidia-ptxjitcompiler", "libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-gpucomp",
	"libnvidia-opencl", "libnvidia-allocator", "libnvidia-pkcs11", "libnvidia-pkcs11-openssl3", "libnvidia-fatbinaryloader", "libnvidia-compiler",
}

var gpuPrograms = []string{"nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"}

// libraryDirs are where distributions keep the driver's libraries; %s is the machine's name.
var libraryDirs = []string{"usr/lib/%s-linux-gnu", "usr/lib/%s-linux-gnu/nvidia/current", "usr/lib64", "usr/lib", "lib64", "usr/local/nvidia/lib64", "opt/nvidia/lib64"}

var gpuNode = regexp.MustCompile(`^nvidia(\d+)$`)

// gpus is what a host has of NVIDIA's. The zero value has none.
type gpus struct {
	devices   []int  // the N of each /dev/nvidiaN
	version   string // of the driver, as it writes it
	libraries []string
	programs  []string
	uvmMajor  int64 // of /dev/nvidia-uvm; the kernel gives it a number at each start
}

// findGPUs looks at the host whose root directory is root. The error says why a sandbox can't have a GPU of it.
func findGPUs(root string) (gpus, error) {
	root = cmp.Or(root, "/")
	var g gpus
	for _, node := range []string{"nvidiactl", "nvidia-uvm"} {
		fi, err := os.Stat(filepath.Join(root, "dev", node))
		switch {
		case errors.Is(err, os.ErrNotExist) && node == "nvidiactl":
			return g, errors.New("this host has no NVIDIA GPU, or not its driver: /dev/nvidiactl doesn't exist")
		case errors.Is(err, os.ErrNotExist):
			return g, errors.New("the NVIDIA driver's memory module isn't loaded: /dev/nvidia-uvm doesn't exist; as root: nvidia-modprobe -u -c 0")
		case err != nil:
			return g, err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			g.uvmMajor = int64(unix.Major(st.Rdev))
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, "dev"))
	if err != nil {
		return g, err
	}
	for _, e := range entries {
		if m := gpuNode.FindStringSubmatch(e.Name()); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil && n < 255 {
				g.devices = append(g.devices, n)
			}
		}
	}
	slices.Sort(g.devices)
	if len(g.devices) == 0 {
		return g, errors.New("the NVIDIA driver is there, but no GPU: no /dev/nvidia0 or the like exists")
	}
	if g.version, err = driverVersion(root); err != nil {
		return gpus{}, err
	}
	if g.libraries = findLibraries(root, g.version); !slices.ContainsFunc(g.libraries, func(path string) bool { return strings.Contains(path, "/libcuda.so.") }) {
		return gpus{}, fmt.Errorf("the NVIDIA driver's libcuda.so.%s is not in the usual places: install the user-space part of the driver (libcuda1, nvidia-driver-cuda)", g.version)
	}
	for _, name := range gpuPrograms {
		for _, dir := range []string{"usr/bin", "usr/local/nvidia/bin", "opt/nvidia/bin"} {
			if path := filepath.Join(root, dir, name); isFile(path) {
				g.programs = append(g.programs, path)
				break
			}
		}
	}
	return g, nil
}

// driverVersion reads the version of the host's kernel module, and refuses one that gVisor doesn't know.
func driverVersion(root string) (string, error) {
	data, err := os.ReadFile(filepath.Join(root, "sys/module/nvidia/version"))
	if err != nil {
		return "", fmt.Errorf("the NVIDIA driver doesn't say its version: %w", err)
	}
	text := strings.TrimSpace(string(data))
	version, err := nvconf.DriverVersionFrom(text)
	if err != nil {
		return "", fmt.Errorf("the NVIDIA driver says its version in an unknown way: %q", text)
	}
	nvproxy.Init()
	if _, ok := nvproxy.SupportedIoctls(version); !ok {
		return "", fmt.Errorf("the NVIDIA driver %s is none that gVisor knows; the newest that it knows is %s", text, nvproxy.LatestDriver())
	}
	return text, nil
}

func findLibraries(root, version string) (paths []string) {
	machine := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[goruntime.GOARCH]
	for _, name := range gpuLibraries {
		for _, dir := range libraryDirs {
			dir = strings.ReplaceAll(dir, "%s", machine)
			if path := filepath.Join(root, dir, name+".so."+version); isFile(path) {
				paths = append(paths, path)
				break
			}
		}
	}
	return paths
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// prepare makes dir what sandboxes have as gpuDir: the driver's files, and the names by which programs ask for the libraries.
func (g gpus) prepare(dir string) error {
	fresh, err := os.MkdirTemp(filepath.Dir(dir), "nvidia-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	for sub, files := range map[string][]string{"lib64": g.libraries, "bin": g.programs} {
		if err := os.Mkdir(filepath.Join(fresh, sub), 0o755); err != nil {
			return err
		}
		for _, file := range files {
			if err := copyWhole(file, filepath.Join(fresh, sub, filepath.Base(file))); err != nil {
				return fmt.Errorf("copying %s: %w", file, err)
			}
		}
	}
	for _, file := range g.libraries {
		name := filepath.Base(file)
		base := strings.TrimSuffix(name, "."+g.version) // libcuda.so
		for _, alias := range []string{base, base + ".1"} {
			if err := os.Symlink(name, filepath.Join(fresh, "lib64", alias)); err != nil {
				return err
			}
		}
	}
	// The nvvm library's name has a 4 where others have a 1.
	if nvvm := "libnvidia-nvvm.so." + g.version; isFile(filepath.Join(fresh, "lib64", nvvm)) {
		if err := os.Symlink(nvvm, filepath.Join(fresh, "lib64", "libnvidia-nvvm.so.4")); err != nil {
			return err
		}
	}
	// Sandboxes of before have the old files open or mapped, so removing those is safe.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
}

// copyWhole copies a file that everybody may then read and run. A link would do on the same file system only.
func copyWhole(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// grant gives a sandbox the GPUs of those numbers. dir is what prepare made, as gVisor's processes find it.
func (g gpus) grant(s *specs.Spec, conf *config.Config, dir string, numbers []int) {
	if len(numbers) == 0 {
		return
	}
	const major, control = 195, 255 // fixed by the driver
	node := func(name string, major, minor int64) {
		mode := os.FileMode(0o666)
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/" + name, Type: "c", Major: major, Minor: minor, FileMode: &mode})
	}
	node("nvidiactl", major, control)
	node("nvidia-uvm", g.uvmMajor, 0)
	for _, n := range numbers {
		node("nvidia"+strconv.Itoa(n), major, int64(n))
	}
	s.Mounts = append(s.Mounts, bind(dir, gpuDir, "ro"))
	s.Process.Env = append(s.Process.Env, "NVIDIA_DRIVER_CAPABILITIES="+gpuCapabilities)
	conf.NVProxy, conf.NVProxyDriverVersion, conf.NVProxyAllowedDriverCapabilities = true, g.version, gpuCapabilities
}

// wanted is how many GPUs spec asks for.
func (g gpus) wanted(spec sandbox.Spec) (int, error) {
	switch spec.GPU {
	case "":
		return 0, nil
	case "all":
		return len(g.devices), nil
	}
	n, err := strconv.Atoi(spec.GPU)
	if err != nil || n < 1 {
		return 0, sandbox.Invalid("gpu", "%.20q is neither a number of GPUs nor \"all\"", spec.GPU)
	}
	return n, nil
}

// gpuFiles is the directory in Config.Dir that prepare makes.
const gpuFiles = "nvidia"

// openGPUs looks what GPUs sandboxes may have. A host without any, or with one that can't be used, is a good host.
func (e *Engine) openGPUs() {
	g, err := findGPUs(e.cfg.Host)
	if err == nil {
		err = g.prepare(filepath.Join(e.cfg.Dir, gpuFiles))
	}
	if err != nil {
		e.noGPU = err.Error()
		return
	}
	e.gpus = g
}

// keepRecord writes down what a later process must know of a run, and which GPUs it has: those it returns.
func (e *Engine) keepRecord(k string, spec sandbox.Spec) ([]int, error) {
	e.allocating.Lock()
	defer e.allocating.Unlock()
	granted, err := e.allocate(spec)
	if err != nil {
		return nil, err
	}
	return granted, e.writeRecord(k, record{MemoryMiB: spec.MemoryMiB, GPUs: granted})
}

// allocate chooses GPUs that no other sandbox has: the lowest numbers. What the others have is in their records, so it is known after a
// restart too. e.allocating is held until the run's own record is written.
func (e *Engine) allocate(spec sandbox.Spec) ([]int, error) {
	n, err := e.gpus.wanted(spec)
	if n == 0 || err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil {
		return nil, err
	}
	free := slices.Clone(e.gpus.devices)
	for _, d := range dirs {
		r, err := e.record(d.Name())
		if err != nil {
			return nil, err // on doubt a GPU is not given twice
		}
		free = slices.DeleteFunc(free, func(gpu int) bool { return slices.Contains(r.GPUs, gpu) })
	}
	if n > len(free) {
		return nil, &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "gpu_busy", Field: "gpu",
			Detail: fmt.Sprintf("%d of this host's %d GPUs are free, %d are asked for; try again when another sandbox has ended", len(free), len(e.gpus.devices), n)}
	}
	return free[:n], nil
}
