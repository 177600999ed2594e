// Package guest is the helper inside every sandbox and the protocol to it, both ends. Host and guest speak yamux over one
// byte stream, and plain HTTP over yamux in both directions: the host calls the guest's API, and a loopback port of the
// sandbox leads through the same stream to the host's gateway. The package imports nothing else of ours, so that the
// helper stays small.
package guest

import (
	"fmt"
	"time"
)

// Where things are inside a sandbox. Engines mount and start by these names.
const (
	Program    = "/run/sandlot/bin/sandlot-guest" // the helper, read-only
	Shell      = "/run/sandlot/shell/bash"        // leads to the image's sh where an image has no bash: Claude Code asks for one by name
	SocketDir  = "/run/sandlot/socket"            // shared with the host; the guest listens in it
	SocketName = "guest.sock"
	StateDir   = "/var/lib/sandlot" // journals; of the guest's user only
	Gateway    = "127.0.0.1:39100"  // the loopback port that leads to the host's gateway
)

// GatewayPort is the port of Gateway. No host gets a connection to it.
const GatewayPort = 39100

// Command is what to run.
type Command struct {
	ID      string            `json:"id"` // ours; starting the same ID twice gives the first one's run
	Argv    []string          `json:"argv"`
	Shell   bool              `json:"shell,omitempty"`    // without Argv: the user's shell, or bash, or sh
	Env     map[string]string `json:"env,omitempty"`      // added to the sandbox's
	Dir     string            `json:"dir,omitempty"`      // default: the sandbox's workdir
	MakeDir bool              `json:"make_dir,omitempty"` // make Dir, root's, if it isn't there
	User    string            `json:"user,omitempty"`     // UserAgent (default), UserRoot, or a name or number of the sandbox, perhaps with :group
	Groups  []uint32          `json:"groups,omitempty"`   // beside the user's own; default: those that /etc/group says
	Stdio   Stdio             `json:"stdio,omitempty"`
	Size    Size              `json:"size,omitzero"`
	Stdin   []byte            `json:"stdin,omitempty"`      // written first
	Open    bool              `json:"stdin_open,omitempty"` // keep stdin open after Stdin, for WriteStdin
	Timeout time.Duration     `json:"timeout,omitempty"`    // then the tree is killed; 0 = none
	Within  time.Duration     `json:"within,omitempty"`     // Start answers when the run has ended, or after this long: see Run.Output
}

// The users that a command may run as.
const (
	UserAgent = "agent"
	UserRoot  = "root"
)

// Stdio says what a process's three streams are.
type Stdio string

// The kinds of stdio.
const (
	StdioPipes     Stdio = ""           // three pipes
	StdioPTY       Stdio = "pty"        // a terminal for all three; output is stdout
	StdioPTYStdout Stdio = "pty-stdout" // stdout is a terminal in raw mode, byte for byte; stdin and stderr are pipes
)

// Size of a terminal, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// State says how far a run is, and how it ended.
type State string

// The states of a run.
const (
	StateRunning  State = "running"
	StateExited   State = "exited"
	StateSignaled State = "signaled"
	StateTimeout  State = "timeout" // Code and Signal tell what the kill led to
	StateOOM      State = "oom"     // killed by the guest because the sandbox's memory was used up
)

// Run is one process and what the guest knows of it.
type Run struct {
	ID        string    `json:"id"`
	Argv      []string  `json:"argv"`
	PID       int       `json:"pid"`
	State     State     `json:"state"`
	Code      *int      `json:"code"` // for StateExited
	Signal    string    `json:"signal,omitempty"`
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	First     int64     `json:"first"` // offset of the oldest output that is still there
	Next      int64     `json:"next"`  // offset after the newest
	Stdin     int64     `json:"stdin"` // bytes of input that were taken, those of Command.Stdin included: see WriteStdinAt

	// Output is in the answer to a Start of a Command with Within, if the run has ended and all it wrote is short: see Frames.
	Output []byte `json:"output,omitempty"`
}

// Kind says what a frame holds.
type Kind uint8

// The kinds of frame.
const (
	Stdout Kind = 1
	Stderr Kind = 2
	Gap    Kind = 3 // output before Offset was trimmed: 8 bytes, big endian, the offset at which the trimmed part began
	End    Kind = 4 // the run has ended: a Run as JSON, without argv if that is long; always the last frame
)

// Frame is a piece of a run's journal. Offset counts the bytes of output (both streams) before it, headers and
// frames of kind Gap and End aside; reading may begin at any offset, also in the middle of what was one frame.
// On the wire and on disk: kind (1 byte), length (4 bytes, big endian, at most MaxFrame), offset (8 bytes), data.
type Frame struct {
	Kind   Kind
	Offset int64
	Data   []byte
}

// MaxFrame is the most data that a frame holds; a decoder refuses more.
const MaxFrame = 64 << 10

// Setup is what the host tells a guest that has come up: everything that must not stand in an engine's files.
type Setup struct {
	Dir      string            `json:"dir,omitempty"` // where processes start; made if it isn't there. Default: the workdir
	Env      map[string]string `json:"env"`           // of every process
	Deadline time.Time         `json:"deadline"`      // the guest ends itself then, though the host is gone
	Limits   Limits            `json:"limits,omitzero"`
}

// Limits are what the guest keeps the processes within that it starts. 0 = not limited, or as the engine started the guest.
type Limits struct {
	Memory    int64 `json:"memory,omitempty"`     // bytes of the whole sandbox; when nine tenths are used, the largest run is killed
	PIDs      int64 `json:"pids,omitempty"`       // processes and threads of one user
	OpenFiles int64 `json:"open_files,omitempty"` // of one process
	Output    int64 `json:"output,omitempty"`     // bytes per second of all runs together; who writes faster waits
}

// Info is what a guest says of itself.
type Info struct {
	Version   string    `json:"version"`
	StartedAt time.Time `json:"started_at"`
	Deadline  time.Time `json:"deadline,omitzero"`
	Workdir   string    `json:"workdir"`
	AgentUID  int       `json:"agent_uid"`
	Ready     bool      `json:"ready"` // Setup has been received
}

// File is an entry of the sandbox's file system.
type File struct {
	Name    string    `json:"name"`
	Path    string    `json:"path"`
	Type    string    `json:"type"` // file, directory, symlink, other
	Size    int64     `json:"size"`
	Mode    uint32    `json:"mode"` // permission bits, set-uid and the like included
	UID     int       `json:"uid"`
	GID     int       `json:"gid"`
	ModTime time.Time `json:"mod_time"`
	Target  string    `json:"target,omitempty"` // of a symlink
	ETag    string    `json:"etag,omitempty"`   // of a regular file: another one after any change, as HTTP writes it
}

// Port is a TCP port of the sandbox's loopback on which something listens.
type Port struct {
	Port    uint16 `json:"port"`
	PID     int    `json:"pid,omitempty"`     // of a process that holds it; 0 = not known
	Process string `json:"process,omitempty"` // that process's name, as it calls itself
}

// Error is an answer of the guest that says no. Status is an HTTP status: 400 for a bad request, 404 for what isn't
// there, 409 for a conflict, 507 for a full disk, 500 for the rest.
type Error struct {
	Status int    `json:"status"`
	Code   string `json:"code"` // stable: "no_such_run", "no_such_program", "bad_dir", "no_such_file", "port_closed", …
	Field  string `json:"field,omitempty"`
	Detail string `json:"detail"`
}

func (e *Error) Error() string { return fmt.Sprintf("guest: %s (%s)", e.Detail, e.Code) }
