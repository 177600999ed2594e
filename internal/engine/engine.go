// Package engine says what Sandlot asks of whatever runs sandboxes. The implementations are its sub-packages; the promises
// are tests in engine/enginetest, and a promise that is not tested there is not a promise.
package engine

import (
	"context"
	"io"
	"iter"
	"net"
	"net/http"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Engine runs sandboxes. All methods are safe for concurrent use, also for the same Ref. Errors wrap a class of package
// sandbox where one applies: ErrUnavailable means that trying again may help, any other that it will not. A cancelled
// ctx gives an error that wraps ctx.Err().
//
// The life of a sandbox, as its caller drives it:
//
//	h, err := e.Create(ctx, ref, spec)   // row first: ref was recorded before this call
//	ref.Handle = h                       // recorded too, but Destroy works without it
//	conn, err := e.Dial(ctx, ref)        // any number of times, also by a later process
//	err = e.Destroy(ctx, ref)            // until it returns nil
type Engine interface {
	// Capabilities reports facts about this engine on this machine. They don't change while it is open.
	Capabilities() Capabilities

	// Create starts the run that ref names and returns when its guest answers on Dial. Called again with the same
	// ref.ID and ref.Run it returns the same run's handle, also after a restart of this process, and also while the
	// first call is still under way. A bad spec is ErrInvalid or ErrUnsupported, and nothing is left behind. After any
	// other error, also after a cancelled ctx, Destroy must be called; what remains until then is labelled with ref
	// and shown by List.
	Create(ctx context.Context, ref Ref, spec sandbox.Spec) (handle []byte, err error)

	// Inspect reports what the run is doing. A run that the engine doesn't know is PhaseGone, not an error.
	Inspect(ctx context.Context, ref Ref) (Status, error)

	// Dial opens a byte stream to the run's guest. ctx bounds the opening only. A run that is gone is ErrNotFound;
	// one that doesn't answer (yet) is ErrUnavailable. Destroy of the run closes what Dial returned.
	Dial(ctx context.Context, ref Ref) (net.Conn, error)

	// Destroy kills the run and frees all that it holds, but not its volume. It succeeds on a run that is gone, half
	// made, being made, or was never made, with or without a handle; a Create under way for the same ref fails.
	// Nil means that nothing is left. After an error it may be called again.
	Destroy(ctx context.Context, ref Ref) error

	// List yields every run of this installation that the engine holds, known to the caller or not, half made or not.
	List(ctx context.Context) iter.Seq2[Listed, error]

	// Close frees what this process holds. Sandboxes go on running; a new Engine on the same installation finds them.
	Close() error
}

// Ref names one run of one sandbox. ID and Run are ours and recorded before Create; Handle is what Create returned, opaque,
// and may be empty.
type Ref struct {
	ID     sandbox.ID
	Run    string
	Handle []byte
}

// Capabilities are facts about an engine, not behaviour.
type Capabilities struct {
	Name        string        // "local"
	MaxLifetime time.Duration // 0 = not bounded by the engine
	Images      []string      // kinds of image: "host"
	Networks    []sandbox.NetworkMode
	NoOpen      string            // why sandbox.NetworkOpen is not among them, and what to do; "" = no reason is known
	Limits      sandbox.LimitedBy // how each limit of a Spec is kept; "" = not at all

	CPUs      int    // cores that a sandbox may ask for; 0 = not known
	MemoryMiB int64  // memory that a sandbox may ask for; 0 = not known
	GPUs      int    // that there are
	NoGPU     string // for people: why there are none
	// GPUPaths are the directories that the search paths of a sandbox with GPUs need, by the name of the variable.
	GPUPaths map[string]string

	// AgentIsRoot says that everything in a sandbox runs as uid 0, which stands for an ordinary user of the host.
	AgentIsRoot bool
	Isolation   string // for people: "gVisor (systrap), user namespace per sandbox"
}

// Phase is how far a run is.
type Phase string

// The phases.
const (
	PhaseStarting Phase = "starting" // made or half made; the guest doesn't answer yet
	PhaseRunning  Phase = "running"
	// PhaseSuspended is a run of a Suspender that lies on disk, whole, and holds neither CPU nor memory.
	PhaseSuspended Phase = "suspended"
	PhaseGone      Phase = "gone" // ended, destroyed, or never made; List may still show what is to be destroyed
)

// Status is what Inspect saw.
type Status struct {
	Phase  Phase
	Reason string // for people, when it ended by itself
	OOM    bool   // it ended because it used more memory than it has; never a guess
}

// Listed is a run that an engine holds.
type Listed struct {
	Ref     Ref
	Since   time.Time // when it was made; zero if not known
	Phase   Phase
	Problem string // what is odd about it, for people; "" = nothing
}

// VolumeDirs is an optional power: the engine's volumes are directories of this host.
type VolumeDirs interface {
	// VolumeDir returns the volume's directory, made on first use. It may hold what a hostile sandbox wrote: don't
	// follow links in it.
	VolumeDir(ctx context.Context, v sandbox.Volume) (string, error)
	// DeleteVolume removes the directory and all that is in it. Removing what isn't there succeeds.
	DeleteVolume(ctx context.Context, v sandbox.Volume) error
}

// Journals is an optional power: a guest's state lies in a directory of this host, so that what runs write can be read there, without
// asking the guest, and for a moment after it has died.
type Journals interface {
	// GuestState returns the run's directory of guest.StateDir. It need not be there any more. Root of the sandbox may write to it: don't
	// follow links in it, and believe nothing.
	GuestState(ref Ref) (string, error)
}

// Images is an optional power: the engine makes root file systems of images itself. An image is named by its digest, which is
// the same whoever asked for it; who may use which is the caller's business. All methods are safe for concurrent use.
type Images interface {
	// CheckImage says, as a Problem, what can be seen to be wrong with an image's source and commands before anything is done.
	CheckImage(img sandbox.Image) error
	// PrepareImage makes what req names lie ready for Create, and returns it with Digest and Settings filled in. The same work
	// asked for twice at once is done once. report is told how it goes, from one goroutine at a time. A reference that isn't
	// there, that the credentials don't open, or a command that fails is a Problem, and nothing is left behind.
	PrepareImage(ctx context.Context, req ImageRequest, report func(ImageProgress)) (Prepared, error)
	// Image looks at one that lies ready. ErrNotFound if none does.
	Image(ctx context.Context, digest string) (Prepared, error)
	// ImportImages takes the images of an archive: an OCI layout as a tar, or what `docker save` writes.
	ImportImages(ctx context.Context, archive io.Reader, report func(ImageProgress)) ([]Prepared, error)
	// ExportImage writes an archive of one image, called name in it.
	ExportImage(ctx context.Context, digest string, format ArchiveFormat, name string, w io.Writer) error
	// CollectImages frees what no image needs for which keep is true, nor a sandbox. What was made lately stays.
	CollectImages(ctx context.Context, keep func(digest string) bool) (freed int64, err error)
}

// ImageRequest says which image to prepare. Secrets are used and never kept.
type ImageRequest struct {
	Image    sandbox.Image     // Base, if set, is what to start from instead of Source
	Registry map[string]string // the registry secret's values; nil = anonymous
	Secrets  map[string]string // environment of RUN commands, beside the image's
	Network  sandbox.Network   // of RUN commands
	Account  string            // who may share the cached steps of a build
	// Gateway answers the requests that come out of the sandbox of a RUN command; nil = none does.
	Gateway http.Handler
	Env     map[string]string // of RUN commands: the way to Gateway
}

// Prepared is an image that lies ready.
type Prepared struct {
	Image     sandbox.Image
	Names     []string // that an archive gave it
	Reference string   // of what came from a registry: the reference with the manifest's digest
	Size      int64    // bytes on disk, what it shares with others included
	Platform  string   // "linux/amd64"
	CreatedAt time.Time
	Notices   []string // what was ignored
}

// ImageProgress is how far the preparation of an image is.
type ImageProgress struct {
	Phase       string // "resolve", "pull", "unpack", "build", "done"
	Layer       string // digest of the layer meant, if one is
	Done, Total int64  // bytes of a pull, steps of a build; 0 = not known
	Text        string // one line for people; in "build", the instruction or a line of output
	Output      bool   // Text is output of a command
}

// ArchiveFormat is a form of image archive.
type ArchiveFormat string

// The forms of image archive, both a tar.
const (
	ArchiveOCI    ArchiveFormat = "oci"    // an OCI layout
	ArchiveDocker ArchiveFormat = "docker" // as `docker save` writes
)

// Snapshotter is an optional power: an image can be made of a sandbox's file system while it runs.
type Snapshotter interface {
	// Snapshot makes an image of the run's root file system: its image and what was changed over it, without the volume and
	// whatever else is mounted.
	Snapshot(ctx context.Context, ref Ref, spec sandbox.Spec) (Prepared, error)
}

// NetworkUpdater is an optional power: the network policy of a run can change while it runs.
type NetworkUpdater interface {
	// UpdateNetwork makes what the engine does of the policy true for the run: its network device works with NetworkOpen only, and
	// is cut off with every other mode, connections that are open included. ErrUnsupported with code network_needs_restart if
	// the run has no device and is to be open. What else a policy says is the gateway's business.
	UpdateNetwork(ctx context.Context, ref Ref, policy sandbox.Network) error
}

// NetworkMeter is an optional power: the traffic of a run's network device is counted.
type NetworkMeter interface {
	// NetworkUsage returns the bytes that the run has received and sent through its device so far; 0 if it has none.
	NetworkUsage(ctx context.Context, ref Ref) (rx, tx int64, err error)
}

// Suspender is an optional power: a run can be put on disk, with the memory of its processes, and be brought back later as if
// nothing had happened. Inspect says PhaseSuspended meanwhile, List shows it, Dial and Create are ErrState, Destroy works as ever.
type Suspender interface {
	// Suspend stops a run and frees its CPU and memory. Connections to its guest are closed. What can't be put on disk is a
	// Problem of class ErrState or ErrUnavailable, and the run goes on unharmed: its guest can be dialed again. A run that is
	// suspended already, or whose suspension an earlier process has begun, ends up suspended. After any other error, also
	// after a cancelled ctx, Inspect tells what became of it.
	Suspend(ctx context.Context, ref Ref) error

	// Resume brings a suspended run back and returns when its guest answers. Clocks inside jump over the time it lay
	// still. A refusal is a Problem of class ErrState or ErrUnavailable, and the run stays suspended. A run that is running
	// already, or whose resumption an earlier process has begun, ends up running. What was suspended is brought back at most once:
	// if it ended while that went on, it is PhaseGone.
	Resume(ctx context.Context, ref Ref, spec sandbox.Spec) error
}

// As finds an optional power of e, looking through wrappers that have an Unwrap method.
func As[T any](e Engine) (T, bool) {
	for e != nil {
		if t, ok := e.(T); ok {
			return t, true
		}
		u, ok := e.(interface{ Unwrap() Engine })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	var zero T
	return zero, false
}
