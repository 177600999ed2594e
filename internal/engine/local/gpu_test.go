package local

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/pkg/sentry/devices/nvproxy"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// knownDriver is a version that gVisor knows.
func knownDriver() string {
	nvproxy.Init()
	return nvproxy.LatestDriver().String()
}

// gpuHost makes a root directory as of a host with an NVIDIA driver. leave names what isn't there.
func gpuHost(t *testing.T, version string, gpus int, leave ...string) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"dev/nvidiactl": "", "dev/nvidia-uvm": "", "dev/nvidia-modeset": "", "dev/null": "", "sys/module/nvidia/version": version + "\n",
		"usr/bin/nvidia-smi":                                    "smi",
		"usr/lib64/libcuda.so." + version:                       "cuda",
		"usr/lib64/libcuda.so.1.2.3":                            "of another driver",
		"usr/local/nvidia/lib64/libnvidia-ml.so." + version:     "ml",
		"usr/local/nvidia/lib64/libnvidia-glcore.so." + version: "of graphics",
	}
	for i := range gpus {
		files["dev/nvidia"+string(rune('0'+i))] = ""
	}
	for name, text := range files {
		if slices.Contains(leave, name) {
			continue
		}
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestNoGPU(t *testing.T) {
	t.Parallel()
	version := knownDriver()
	for name, c := range map[string]struct{ root, says string }{
		"an ordinary host":     {gpuHost(t, version, 0, "dev/nvidiactl", "dev/nvidia-uvm"), "/dev/nvidiactl doesn't exist"},
		"no memory module":     {gpuHost(t, version, 1, "dev/nvidia-uvm"), "nvidia-modprobe"},
		"no device":            {gpuHost(t, version, 0), "no GPU"},
		"no version":           {gpuHost(t, version, 1, "sys/module/nvidia/version"), "version"},
		"an odd version":       {gpuHost(t, "new", 1), "new"},
		"an unknown version":   {gpuHost(t, "1.22.33", 1), "none that gVisor knows"},
		"no user-space driver": {gpuHost(t, version, 1, "usr/lib64/libcuda.so."+version), "libcuda.so"},
	} {
		if g, err := findGPUs(c.root); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}

// The specification has what gVisor's nvproxy needs, and nothing more of the host.
func TestGPUSpecification(t *testing.T) {
	t.Parallel()
	version := knownDriver()
	e := &Engine{cfg: Config{Dir: t.TempDir(), Host: gpuHost(t, version, 3), Guest: "/opt/guest/sandlot-guest"}, stage: &stage{dir: "/stage", mounts: map[string]string{"/opt/guest": "/stage/0"}}}
	e.networks = &networks{reason: "not asked for"}
	e.openGPUs()
	if caps := e.Capabilities(); caps.GPUs != 3 || caps.NoGPU != "" {
		t.Fatalf("there are %d: %s", caps.GPUs, caps.NoGPU)
	}
	sp := sandbox.Spec{GPU: "2", DiskMiB: 100, Workdir: "/workspace", Volume: sandbox.Volume{ID: "vol_1"}}
	if err := os.MkdirAll(filepath.Join(e.cfg.Dir, "sandboxes", "box"), 0o755); err != nil {
		t.Fatal(err)
	}
	granted, err := e.keepRecord("box", sp)
	if err != nil {
		t.Fatal(err)
	}
	s, conf := e.ociSpec("box", sp, 0, additions{}, time.Now()), &config.Config{}
	e.gpus.grant(s, conf, "/stage/nvidia", granted)

	var nodes []string
	for _, d := range s.Linux.Devices {
		if d.Type != "c" || d.FileMode == nil || d.FileMode.Perm() != 0o666 || d.Path != "/dev/nvidia-uvm" && d.Major != 195 {
			t.Errorf("device %+v", d)
		}
		nodes = append(nodes, d.Path)
	}
	if want := []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1"}; !slices.Equal(nodes, want) {
		t.Errorf("the devices are %q", nodes)
	}
	if !conf.NVProxy || conf.NVProxyDriverVersion != version || conf.NVProxyAllowedDriverCapabilities != "compute,utility" {
		t.Errorf("gVisor is told %v, %q, %q", conf.NVProxy, conf.NVProxyDriverVersion, conf.NVProxyAllowedDriverCapabilities)
	}
	// gVisor's own reading of it.
	if !specutils.NVProxyEnabled(s, conf) || !specutils.GPUFunctionalityRequested(s, conf) || specutils.GPUFunctionalityRequestedViaHook(s, conf) {
		t.Error("gVisor doesn't take it for a sandbox with GPUs of its own")
	}
	if caps, err := specutils.NVProxyDriverCapsFromEnv(s, conf); err != nil || caps.String() == "" {
		t.Errorf("the capabilities are %v, %v", caps, err)
	}
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == gpuDir })
	if i < 0 || s.Mounts[i].Source != "/stage/nvidia" || !slices.Contains(s.Mounts[i].Options, "ro") {
		t.Errorf("the mounts are %+v", s.Mounts)
	}

	// What it is mounted from.
	files := filepath.Join(e.cfg.Dir, gpuFiles)
	for name, want := range map[string]string{"lib64/libcuda.so.1": "cuda", "lib64/libcuda.so": "cuda", "lib64/libnvidia-ml.so.1": "ml", "bin/nvidia-smi": "smi"} {
		if got, err := os.ReadFile(filepath.Join(files, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"lib64/libcuda.so.1.2.3", "lib64/libnvidia-glcore.so." + version} {
		if _, err := os.Lstat(filepath.Join(files, name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}

	// Without one, nothing of all that.
	plain, conf := e.ociSpec("box", sandbox.Spec{DiskMiB: 100, Workdir: "/workspace"}, 0, additions{}, time.Now()), &config.Config{}
	e.gpus.grant(plain, conf, "/stage/nvidia", nil)
	if data, err := json.Marshal(plain); err != nil || strings.Contains(string(data), "nvidia") || conf.NVProxy {
		t.Errorf("without a GPU: %s, %v", data, err)
	}
}

// A GPU has one sandbox at a time, also after a restart.
func TestGPUsAreExclusive(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), Host: gpuHost(t, knownDriver(), 3)}
	open := func() *Engine {
		e := &Engine{cfg: cfg}
		e.openGPUs()
		return e
	}
	take := func(e *Engine, k, gpu string) ([]int, error) {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, "sandboxes", k), 0o755); err != nil {
			t.Fatal(err)
		}
		return e.keepRecord(k, sandbox.Spec{GPU: gpu})
	}
	e := open()
	if got, err := take(e, "one", "1"); err != nil || !slices.Equal(got, []int{0}) {
		t.Errorf("the first has %v, %v", got, err)
	}
	e = open()
	if got, err := take(e, "two", "1"); err != nil || !slices.Equal(got, []int{1}) {
		t.Errorf("the second has %v, %v", got, err)
	}
	for _, gpu := range []string{"all", "2"} {
		got, err := take(e, "three", gpu)
		if p, ok := errors.AsType[*sandbox.Problem](err); !ok || p.Code != "gpu_busy" || p.Field != "gpu" || !errors.Is(err, sandbox.ErrUnavailable) {
			t.Errorf("%s of one: %v, %v", gpu, got, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "sandboxes", "one")); err != nil { // as destroy does at last
		t.Fatal(err)
	}
	if got, err := take(e, "three", "2"); err != nil || !slices.Equal(got, []int{0, 2}) {
		t.Errorf("the third has %v, %v", got, err)
	}
	if got, err := take(e, "four", ""); err != nil || len(got) > 0 {
		t.Errorf("one that asked for none has %v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "sandboxes", "two", recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := take(e, "five", "1"); err == nil {
		t.Errorf("on doubt one is given: %v", got)
	}
}
