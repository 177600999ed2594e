// Package sandbox is the vocabulary of Sandlot: what a sandbox, a run, a session and an event are, the table of
// allowed state changes, and the classes of errors. Every other package speaks these words; this one imports none of ours.
package sandbox

import (
	"cmp"
	"path"
	"time"
)

// Sandbox is one isolated computer of an account: one row of truth.
type Sandbox struct {
	ID      ID
	Account string // UUID
	Name    string // for people; not unique
	State   State
	Reason  string // why it is in State, for people; "" while all is well
	Fault   bool   // Reason is a fault: Stopping leads to Error, not to Terminated
	Spec    Spec
	Engine  string
	Run     string // names one incarnation; work decided on an old incarnation can't land on a new one
	Handle  []byte // the engine's own name for it; opaque; may be empty
	Version int64  // grows with each change: the compare-and-swap token

	CreatedAt time.Time
	StartedAt time.Time // zero until it first ran
	EndedAt   time.Time // zero until terminal
	ExpiresAt time.Time // the hard deadline; moves on by the time in which it was suspended

	SuspendedAt    time.Time // when it was asked to be suspended; zero unless it is, or is about to be
	SuspendedUntil time.Time // when it ends if it still is
}

// DefaultWorkdir is where the volume is mounted if its maker doesn't say.
const DefaultWorkdir = "/workspace"

// Spec is what was asked of a sandbox, with every default filled in. It holds no secret: engines write it to disk.
type Spec struct {
	Image     Image             `json:"image"`
	Volume    Volume            `json:"volume"`
	Workdir   string            `json:"workdir"`       // absolute; where the volume is mounted
	Dir       string            `json:"dir,omitempty"` // where processes start, if its maker said so; see StartDir
	Env       map[string]string `json:"env,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	CPU       float64           `json:"cpu,omitempty"`        // cores; 0 = not limited
	MemoryMiB int64             `json:"memory_mib,omitempty"` // 0 = not limited
	DiskMiB   int64             `json:"disk_mib"`             // of the writable layer; always limited
	Timeout   time.Duration     `json:"timeout"`
	GPU       string            `json:"gpu,omitempty"` // "" = none; "all", or a number of them
	Network   Network           `json:"network"`

	PIDs       int64     `json:"pids,omitempty"`         // processes and threads; always limited
	OpenFiles  int64     `json:"open_files,omitempty"`   // per process; always limited
	OutputKiBS int64     `json:"output_kib_s,omitempty"` // of all runs together; 0 = not limited
	LimitedBy  LimitedBy `json:"limited_by,omitzero"`    // as the engine said when the sandbox was admitted
}

// StartDir is where processes start: where the sandbox's maker wants it, else where the image does, else at the volume.
func (s Spec) StartDir() string {
	if dir := s.Image.Settings.Workdir; s.Dir == "" && path.IsAbs(dir) && dir != "/" {
		return dir
	}
	return cmp.Or(s.Dir, s.Workdir)
}

// Volume is a persistent directory of an account.
type Volume struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Filter says which sandboxes to list. Its zero value means all of every account.
type Filter struct {
	Account string
	States  []State           // any of these; none means all
	Labels  map[string]string // all of these
	Limit   int               // the most to list; 0, or more than the store gives at once, means as many as that
	Cursor  string            // what the page before gave as next
}

// Event is something that happened to a sandbox, for people and for streams.
type Event struct {
	Seq     int64 // grows over the whole installation; the SSE id
	Account string
	Sandbox ID
	Kind    string // "accepted", "starting", "ready", "running", "stopping", "terminated", "error", …
	Text    string // one sentence for people
	At      time.Time
}

// RunKind says what a run is.
type RunKind string

// The kinds of run.
const (
	RunExec     RunKind = "exec"
	RunTerminal RunKind = "terminal"
	RunClaude   RunKind = "claude"

	RunEntrypoint RunKind = "entrypoint" // what the image wants to be started with every sandbox
)

// RunState says how far a run is, and how it ended. Only an observed end is told as one.
type RunState string

// The states of a run; all but RunRunning are terminal.
const (
	RunRunning  RunState = "running"
	RunExited   RunState = "exited"   // ExitCode is set
	RunSignaled RunState = "signaled" // Signal is set
	RunTimeout  RunState = "timeout"  // we killed it at its time limit
	RunOOM      RunState = "oom"      // killed because the sandbox's memory was used up
	RunLost     RunState = "lost"     // its end was not seen
)

// Run is one process in a sandbox. It belongs to the server, never to a connection.
type Run struct {
	ID       string
	Account  string
	Sandbox  ID
	Kind     RunKind
	Session  string // for RunClaude
	Argv     []string
	State    RunState
	ExitCode *int   // nil unless observed
	Signal   string // "SIGKILL", …; "" unless observed
	Reason   string // why it is lost, or what killed it, for people

	// Mirrored is the offset in the guest's journal up to which the run's output has been taken over into the store.
	Mirrored int64
	// Output is counted in bytes over both streams. What lies before OutputFirst is not kept any more. While the run goes on OutputNext is
	// what is known of it here.
	OutputFirst, OutputNext int64

	StartedAt time.Time
	EndedAt   time.Time
}

// RunFilter says which runs of a sandbox to list.
type RunFilter struct {
	Account string
	Sandbox ID
	States  []RunState // any of these; none = every
	Kind    RunKind    // "" = every
	Limit   int        // 0 or too many = a page
	Cursor  string     // from the page before
}

// Session is a conversation with Claude: an ordered log of events. It may span runs and sandboxes.
type Session struct {
	ID      string
	Account string
	Sandbox ID     // where its last turn ran
	Volume  string // where Claude keeps its own transcript; a session can only go on there
	Title   string // the beginning of the first prompt
	UUID    string // the CLI's name for it, chosen by us
	Turns   int    // prompts sent so far
	LastSeq int64

	Model          string // for turns that don't say; "" = the CLI's default
	PermissionMode string // for turns that don't say

	CreatedAt time.Time
	UpdatedAt time.Time
}

// SessionEventKind says what a session event is.
type SessionEventKind string

// The kinds of session event.
const (
	SessionPrompt  SessionEventKind = "prompt"  // Data: {"type":"prompt","text":…,"run":…}
	SessionLine    SessionEventKind = "line"    // Data: one line as the CLI wrote it
	SessionPartial SessionEventKind = "partial" // like SessionLine, a stream_event: superseded by a later line, not persisted
	SessionEnd     SessionEventKind = "end"     // of a turn. Data: {"type":"end","turn":…,"run":…,"state":…,"exit_code":…,"signal":…,"reason":…}
	SessionAsk     SessionEventKind = "ask"     // Claude waits for a decision. Data: the ask
	SessionAnswer  SessionEventKind = "answer"  // what became of an ask. Data: the same
	SessionQueue   SessionEventKind = "queue"   // the turns that wait have changed. Data: {"type":"queue","change":…,"turn":…}
	SessionNotice  SessionEventKind = "notice"  // something that a person should know. Data: {"type":"sandlot","subtype":…}
)

// SessionEvent is one entry of a session's log. Seq grows by one within the session; partials use up numbers too,
// so that the same line has the same number however often it is read.
type SessionEvent struct {
	Seq  int64
	Run  string
	Turn string // "" = it came between turns
	Kind SessionEventKind
	Data []byte // JSON, or a non-JSON line of the CLI
	At   time.Time
	Live bool // not persisted, as a partial
}
