package local

import (
	"cmp"
	"fmt"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// tmpMiB is the size of /dev/shm, which is in memory; at most half of that.
const tmpMiB = 1024

// oomScore makes the host's kernel take a sandbox before it takes the server or anything else.
var oomScore = 500

// guestCapabilities are what the guest holds inside the sandbox, in gVisor's kernel: none of them counts on the host. It keeps
// the ones that container runtimes usually give, plus those to mount and to look after processes; what it starts gets fewer.
var guestCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_SETFCAP",
	"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE",
}

// ociSpec describes a sandbox to gVisor, with all paths as gVisor's processes find them. add completes the image. It holds no
// secret: gVisor keeps it on disk.
func (e *Engine) ociSpec(k string, spec sandbox.Spec, base uint32, add additions, now time.Time) *specs.Spec {
	dir := filepath.Join(e.stage.dir, "sandboxes", k)
	bundle := filepath.Join(dir, "bundle")
	deadline := now.Add(spec.Timeout + deadlineGrace)
	uid, gid := e.agent(spec)
	pids, files := uint64(cmp.Or(spec.PIDs, sandbox.DefaultPIDs)), uint64(cmp.Or(spec.OpenFiles, sandbox.DefaultOpenFiles))
	resources, scheduler := e.resources(spec)
	s := &specs.Spec{
		Version:  "1.0.2",
		Root:     &specs.Root{Path: filepath.Join(bundle, "root")},
		Hostname: "sandbox",
		Process: &specs.Process{
			Args: []string{
				guest.Program,
				"--workdir=" + spec.Workdir,
				fmt.Sprintf("--agent=%d:%d", uid, gid),
				"--furnish",
				"--deadline=" + deadline.UTC().Format(time.RFC3339),
			},
			Cwd: "/",
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Capabilities: &specs.LinuxCapabilities{
				Bounding: guestCapabilities, Effective: guestCapabilities, Permitted: guestCapabilities,
			},
			Rlimits: []specs.POSIXRlimit{
				// Of what the guest starts: it gives itself more.
				{Type: "RLIMIT_NPROC", Soft: pids, Hard: pids},
				{Type: "RLIMIT_NOFILE", Soft: files, Hard: files},
			},
			OOMScoreAdj:     &oomScore,
			Scheduler:       scheduler,
			NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", fmt.Sprintf("size=%dm", sharedMiB(spec))}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
		},
		Linux: &specs.Linux{
			Resources: resources,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace},
			},
		},
		// The writable layer is a file in root, so it costs disk and not memory, and is full before the host's disk is.
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source":  filepath.Join(bundle, rootFile),
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "self",
			"dev.gvisor.spec.rootfs.options": fmt.Sprintf("size=%dM", spec.DiskMiB),
		},
	}
	for _, dir := range add.dirs {
		s.Process.Args = append(s.Process.Args, "--dir="+dir)
	}
	if e.ids.perVolume {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: base, Size: rangeSize}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = mapping, mapping
	}
	for _, m := range add.mounts {
		s.Mounts = append(s.Mounts, bind(m.Source, m.Target, "ro"))
	}
	for _, m := range e.cfg.Mounts {
		s.Mounts = append(s.Mounts, bind(e.stage.mounts[m.Source], m.Target, "ro"))
	}
	s.Mounts = append(s.Mounts,
		bind(e.stage.mounts[filepath.Dir(e.cfg.Guest)], filepath.Dir(guest.Program), "ro"),
		bind(filepath.Join(dir, "socket"), guest.SocketDir, "rw"),
		// Not on the writable layer: a full disk inside must not cost a run its output.
		bind(filepath.Join(dir, "state"), guest.StateDir, "rw"),
	)
	switch spec.Volume.ID {
	case "": // a build has none
	case slotVolume:
		s.Mounts = append(s.Mounts, bind(filepath.Join(dir, slotVolumeDir), spec.Workdir, "rw"))
	default:
		s.Mounts = append(s.Mounts, bind(filepath.Join(e.stage.dir, "volumes", spec.Volume.ID), spec.Workdir, "rw"))
	}
	return s
}

// sharedMiB is the size of /dev/shm.
func sharedMiB(spec sandbox.Spec) int64 {
	if spec.MemoryMiB > 0 {
		return min(tmpMiB, spec.MemoryMiB/2)
	}
	return tmpMiB
}

func bind(source, target, mode string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", mode, "nosuid", "nodev"}}
}
