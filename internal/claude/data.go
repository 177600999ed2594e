package claude

import (
	"encoding/json"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// The data of the events of ours.

// promptData is the data of a prompt event.
type promptData struct {
	Type           string `json:"type"` // "prompt"
	Text           string `json:"text"`
	Run            string `json:"run"`
	Turn           string `json:"turn"`
	Author         string `json:"author,omitempty"`
	Model          string `json:"model,omitempty"`
	PermissionMode string `json:"permission_mode"`
}

// endData is the data of an end event. State, exit code and signal are the process's if it has ended; if it goes on, the state is
// "exited" and the exit code null.
type endData struct {
	Type     string            `json:"type"` // "end"
	Turn     string            `json:"turn"`
	Outcome  sandbox.TurnState `json:"outcome"`
	Run      string            `json:"run"`
	State    sandbox.RunState  `json:"state"`
	ExitCode *int              `json:"exit_code"`
	Signal   string            `json:"signal,omitempty"`
	Reason   string            `json:"reason,omitempty"`
}

// askData is the data of an ask event, and with the rest of an answer event.
type askData struct {
	Type        string           `json:"type"` // "ask" or "answer"
	Prompt      string           `json:"prompt"`
	Turn        string           `json:"turn,omitempty"`
	Kind        sandbox.AskKind  `json:"kind"`
	Tool        string           `json:"tool"`
	ToolUse     string           `json:"tool_use_id"`
	Agent       string           `json:"agent_id,omitempty"`
	Title       string           `json:"title,omitempty"`
	Description string           `json:"description,omitempty"`
	Reason      string           `json:"reason,omitempty"`
	Input       json.RawMessage  `json:"input,omitempty"`
	Suggestions json.RawMessage  `json:"suggestions,omitempty"`
	State       sandbox.AskState `json:"state"`
	ExpiresAt   time.Time        `json:"expires_at,omitzero"`
	Answer      json.RawMessage  `json:"answer,omitempty"`
	AnsweredBy  string           `json:"answered_by,omitempty"`
}

func askEvent(a sandbox.Ask) sandbox.SessionEvent {
	d := askData{Type: "ask", Prompt: a.ID, Turn: a.Turn, Kind: a.Kind, Tool: a.Tool, ToolUse: a.ToolUse, Agent: a.Agent, Title: a.Title,
		Description: a.Description, Reason: a.Reason, Input: a.Input, Suggestions: a.Suggestions, State: a.State, ExpiresAt: a.ExpiresAt}
	return sandbox.SessionEvent{Run: a.Run, Turn: a.Turn, Kind: sandbox.SessionAsk, Data: encode(d)}
}

func answerEvent(a sandbox.Ask) sandbox.SessionEvent {
	d := askData{Type: "answer", Prompt: a.ID, Turn: a.Turn, Kind: a.Kind, Tool: a.Tool, ToolUse: a.ToolUse, Agent: a.Agent, State: a.State,
		Answer: a.Answer, AnsweredBy: a.AnsweredBy}
	return sandbox.SessionEvent{Run: a.Run, Turn: a.Turn, Kind: sandbox.SessionAnswer, Data: encode(d)}
}

// queueData is the data of a queue event.
type queueData struct {
	Type   string `json:"type"`   // "queue"
	Change string `json:"change"` // "added", "edited", "cancelled"
	Turn   string `json:"turn"`
	By     string `json:"by,omitempty"`
}

// Changes of the queue.
const (
	changeAdded     = "added"
	changeEdited    = "edited"
	changeCancelled = "cancelled"
)

func queueEvent(change string, t sandbox.Turn, by string) sandbox.SessionEvent {
	return sandbox.SessionEvent{Turn: t.ID, Kind: sandbox.SessionQueue, Data: encode(queueData{"queue", change, t.ID, by})}
}

// notice is something of ours that a person should know, beside what Claude says.
type notice struct {
	Type    string `json:"type"` // "sandlot"
	Subtype string `json:"subtype"`
	Text    string `json:"text"`

	Sandbox  sandbox.ID `json:"sandbox,omitempty"`
	Previous sandbox.ID `json:"previous_sandbox,omitempty"`
	Restored *restored  `json:"restored,omitempty"`
	Tools    []string   `json:"tools,omitempty"` // IDs of uses of tools

	Seconds int    `json:"seconds,omitempty"`
	Process string `json:"process,omitempty"` // busy, idle, unknown

	Title          string `json:"title,omitempty"`
	Model          string `json:"model,omitempty"`
	PermissionMode string `json:"permission_mode,omitempty"`
	By             string `json:"by,omitempty"`
}

// restored says honestly what a new process has of the old one.
type restored struct {
	Conversation bool `json:"conversation"`
	Processes    bool `json:"background_processes"` // never, as what follows
	Shell        bool `json:"shell_state"`
	Approvals    bool `json:"session_approvals"`
}

func noticeEvent(run, turn string, n notice) sandbox.SessionEvent {
	n.Type = "sandlot"
	return sandbox.SessionEvent{Run: run, Turn: turn, Kind: sandbox.SessionNotice, Data: encode(n)}
}

// encode is for values of ours that always encode.
func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // a bug: these types hold nothing that can't be encoded
	}
	return data
}
