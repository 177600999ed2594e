package lifecycle

import (
	"fmt"
	"math"
	"strconv"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Bounds on the limits of a sandbox. Below the lowest its own helper would not work.
const (
	minCPU, maxCPU             = 0.01, 1024
	minMemoryMiB               = 64
	minPIDs, maxPIDs           = 16, 1 << 16
	minOpenFiles, maxOpenFiles = 64, 1 << 20
	maxOutputKiBS              = 1 << 20
	maxGPUs                    = 8
)

// checkLimits refuses limits that make no sense, that nothing would keep, or that this machine can't give at all.
func checkLimits(spec sandbox.Spec, caps engine.Capabilities) error {
	switch {
	case math.IsNaN(spec.CPU) || spec.CPU != 0 && spec.CPU < minCPU || spec.CPU > maxCPU:
		return sandbox.Invalid("cpu", "The number of cores must be 0 (not limited), or between %v and %d.", minCPU, maxCPU)
	case spec.MemoryMiB != 0 && spec.MemoryMiB < minMemoryMiB || spec.MemoryMiB > maxMiB:
		return sandbox.Invalid("memory_mib", "The memory must be 0 (not limited), or between %d and %d MiB.", minMemoryMiB, maxMiB)
	case spec.DiskMiB < minDiskMiB || spec.DiskMiB > maxMiB:
		return sandbox.Invalid("disk_mib", "The disk must be between %d and %d MiB.", minDiskMiB, maxMiB)
	case spec.PIDs < minPIDs || spec.PIDs > maxPIDs:
		return sandbox.Invalid("pids", "The number of processes must be between %d and %d.", minPIDs, maxPIDs)
	case spec.OpenFiles < minOpenFiles || spec.OpenFiles > maxOpenFiles:
		return sandbox.Invalid("open_files", "The number of open files must be between %d and %d.", minOpenFiles, maxOpenFiles)
	case spec.OutputKiBS < 0 || spec.OutputKiBS > maxOutputKiBS:
		return sandbox.Invalid("output_kib_s", "The rate of output must be between 0 (not limited) and %d KiB per second.", maxOutputKiBS)
	}
	for _, l := range []struct {
		field, by string
		asked     bool
	}{
		{"cpu", caps.Limits.CPU, spec.CPU > 0},
		{"memory_mib", caps.Limits.Memory, spec.MemoryMiB > 0},
		{"pids", caps.Limits.PIDs, spec.PIDs != sandbox.DefaultPIDs},
		{"open_files", caps.Limits.OpenFiles, spec.OpenFiles != sandbox.DefaultOpenFiles},
		{"output_kib_s", caps.Limits.Output, spec.OutputKiBS > 0},
	} {
		if l.asked && l.by == "" {
			return unsupported(l.field, "The engine %s can't keep this limit on this machine, so it would mean nothing. Leave %s out.", caps.Name, l.field)
		}
	}
	switch {
	case caps.CPUs > 0 && spec.CPU > float64(caps.CPUs):
		return overCapacity("cpu", "The machine has %d cores; %v are asked for.", caps.CPUs, spec.CPU)
	case caps.MemoryMiB > 0 && spec.MemoryMiB > caps.MemoryMiB:
		return overCapacity("memory_mib", "The machine has %d MiB of memory; %d are asked for.", caps.MemoryMiB, spec.MemoryMiB)
	}
	return nil
}

// overCapacity is a Problem with a request for more than there is.
func overCapacity(field, format string, args ...any) error {
	p := sandbox.Invalid(field, format+" Ask for less.", args...)
	p.Code = "over_capacity"
	return p
}

func checkGPU(gpu string, caps engine.Capabilities) error {
	n, err := strconv.Atoi(gpu)
	switch {
	case gpu == "":
		return nil
	case gpu != "all" && (err != nil || n < 1 || n > maxGPUs || strconv.Itoa(n) != gpu):
		return sandbox.Invalid("gpu", "It must be \"all\", or a number of GPUs from 1 to %d.", maxGPUs)
	case caps.GPUs == 0:
		why := caps.NoGPU
		if why == "" {
			why = fmt.Sprintf("the engine %s has none", caps.Name)
		}
		p := sandbox.Invalid("gpu", "No GPU can be given: %s.", why)
		p.Code = "no_gpu"
		return p
	case n > caps.GPUs:
		return overCapacity("gpu", "The machine has %d GPUs; %d are asked for.", caps.GPUs, n)
	}
	return nil
}

// guestLimits is what the guest of a sandbox keeps its processes within.
func guestLimits(spec sandbox.Spec) guest.Limits {
	return guest.Limits{
		Memory: spec.MemoryMiB << 20, PIDs: spec.PIDs, OpenFiles: spec.OpenFiles, Output: spec.OutputKiBS << 10,
	}
}

// usedUp says of a run or a sandbox that it had no memory left.
func usedUp(spec sandbox.Spec) string {
	return fmt.Sprintf("Out of memory: the sandbox used more than its %d MiB.", spec.MemoryMiB)
}
