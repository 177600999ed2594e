package sandbox

import (
	"encoding/json"
	"time"
)

// TurnState says how far a turn is, and how it ended.
type TurnState string

// The states of a turn; all but the first two are terminal.
const (
	TurnQueued      TurnState = "queued"
	TurnRunning     TurnState = "running"
	TurnDone        TurnState = "done"
	TurnFailed      TurnState = "failed"      // Claude said so, or its process ended before the answer
	TurnInterrupted TurnState = "interrupted" // on request
	TurnCancelled   TurnState = "cancelled"   // before it began
	TurnLost        TurnState = "lost"        // its process's end was not seen
)

// Ended reports whether the state is terminal.
func (s TurnState) Ended() bool { return s != TurnQueued && s != TurnRunning }

// Turn is one prompt to Claude and what is done about it.
type Turn struct {
	ID             string
	Account        string
	Session        string
	Number         int64  // grows within the session; turns run in this order
	Sandbox        ID     // where it is to run, or ran
	Run            string // the process that serves it; "" = none yet
	State          TurnState
	Text           string
	Model          string // "" = as the session has it
	PermissionMode string // "" = as the session has it
	Author         string // who asked: the ID of an API key, or "web"
	UUID           string // of the message to the CLI, which tells it when it takes the message up
	Taken          bool   // the CLI has
	Interrupted    bool   // it was asked to stop
	Reason         string // why it ended as it did, for people
	Seq            int64  // of its prompt event; 0 = none yet
	EndSeq         int64  // of its end event
	CreatedAt      time.Time
	StartedAt      time.Time
	EndedAt        time.Time
}

// AskKind says what Claude wants from a person.
type AskKind string

// The kinds of ask.
const (
	AskTool     AskKind = "tool"     // may a tool be used
	AskQuestion AskKind = "question" // questions with options
	AskPlan     AskKind = "plan"     // is a plan good
)

// AskState says whether an ask has been answered, and how.
type AskState string

// The states of an ask; all but AskPending are terminal.
const (
	AskPending   AskState = "pending"
	AskAllowed   AskState = "allowed"
	AskDenied    AskState = "denied"
	AskExpired   AskState = "expired"   // nobody answered in time, so it was denied
	AskWithdrawn AskState = "withdrawn" // Claude doesn't want to know any more
	AskLost      AskState = "lost"      // the process that asked has ended
)

// Ask is a permission prompt: something that Claude waits for a person to decide.
type Ask struct {
	ID          string
	Account     string
	Session     string
	Turn        string // "" = it came between turns
	Run         string
	Request     string // the CLI's own name for it
	Kind        AskKind
	Tool        string
	ToolUse     string // ID of the use of the tool in the conversation
	Agent       string // of a subagent; "" = the main thread
	Title       string
	Description string
	Reason      string          // why it is asked
	Input       json.RawMessage // of the tool
	Suggestions json.RawMessage // rules that would keep it from being asked again; null = none
	State       AskState
	Answer      json.RawMessage // what was told to the CLI; null = nothing
	AnsweredBy  string
	CreatedAt   time.Time
	ExpiresAt   time.Time
	AnsweredAt  time.Time
}

// Process is a living process of the CLI, which serves a session turn by turn.
type Process struct {
	Run            string
	Session        string
	Sandbox        ID
	Stdin          int64  // how many bytes of input it has been given, or will be
	Closed         bool   // its input ends there
	Model          string // that it works with now; "" = its default
	PermissionMode string // that it works in now
}

// Input is a piece of a process's input that may not have been written yet.
type Input struct {
	Run   string
	At    int64 // how many bytes come before it
	Data  []byte
	Close bool // the input ends after it
}

// SessionWrite is all that one transaction does to a session, so that what belongs together can't come apart.
type SessionWrite struct {
	Session  string
	New      *Session       // records the session first
	Update   *Session       // its title, sandbox, UUID, turns, model and permission mode
	Events   []SessionEvent // to append, with growing numbers; those of kind SessionPartial and those that are Live only use up theirs
	Run      string         // whose output the events are taken from; "" = none
	Mirrored int64          // up to where
	Begin    *Run           // records a run that serves the session
	Process  *Process       // puts its state
	Gone     string         // a run whose Process and Inputs go
	NewTurns []Turn         // to record
	Turns    []Turn         // to change: everything but Text
	Text     *Turn          // a queued turn whose Text changes
	NewAsks  []Ask          // to record
	Settled  []Ask          // asks that are no longer pending; if one isn't pending in the store, the error is ErrConflict
	Inputs   []Input        // to record
}
