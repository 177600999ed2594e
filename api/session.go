package api

import (
	"encoding/json"
	"time"
)

// Prompt is the body of POST /sandbox/{id}/claude.
type Prompt struct {
	Prompt         string `json:"prompt" minLength:"1" doc:"What Claude should do."`
	Session        string `json:"session,omitempty" doc:"Go on with this session. Default: a new one. While a turn of it runs, the prompt waits."`
	Model          string `json:"model,omitempty" maxLength:"100" doc:"From this turn on. Default: as the session has it; of a new one, the CLI's own."`
	PermissionMode string `json:"permission_mode,omitempty" enum:"default,acceptEdits,plan,bypassPermissions,dontAsk" doc:"From this turn on. Default: as the session has it; of a new one bypassPermissions, for the sandbox is the wall."`
}

// SessionStart is the data of the first event ("session") of a prompt's stream.
type SessionStart struct {
	Type    string `json:"type" enum:"session"`
	Session string `json:"session"`
	Run     string `json:"run" doc:"The CLI's process; empty while the turn waits."`
	Sandbox string `json:"sandbox"`
	Turn    string `json:"turn"`
	Queued  bool   `json:"queued" doc:"Whether the turn waits for those before it."`
}

// Session is a conversation with Claude and how it stands.
type Session struct {
	ID             string          `json:"id"`
	Title          string          `json:"title" doc:"The beginning of its first prompt, unless it was changed."`
	Sandbox        string          `json:"sandbox" doc:"Where its last turn ran."`
	VolumeID       string          `json:"volume_id" doc:"It can go on in any sandbox on this volume."`
	Turns          int             `json:"turns"`
	Busy           bool            `json:"busy" doc:"Whether the state is not idle."`
	State          string          `json:"state" enum:"idle,working,waiting" doc:"waiting: for a person's decision on a prompt."`
	Model          string          `json:"model" doc:"Of turns that don't name one; empty = the CLI's own."`
	PermissionMode string          `json:"permission_mode" doc:"Of turns that don't name one."`
	Process        *SessionProcess `json:"process" doc:"The CLI's process, while one lives. It ends after some time without a turn; the next prompt starts another, which goes on with the conversation."`
	Turn           *Turn           `json:"turn" doc:"That runs."`
	Queue          []Turn          `json:"queue" doc:"The turns that wait, in order."`
	Prompts        []Ask           `json:"prompts" doc:"What waits for a person's decision."`
	LastSeq        int64           `json:"last_seq"`
	CreatedAt      time.Time       `json:"created_at"`
	UpdatedAt      time.Time       `json:"updated_at"`
}

// SessionProcess is a living process of the CLI.
type SessionProcess struct {
	Run            string    `json:"run"`
	Sandbox        string    `json:"sandbox"`
	Ending         bool      `json:"ending" doc:"Whether it has been told to end."`
	Model          string    `json:"model"`
	PermissionMode string    `json:"permission_mode"`
	LastOutputAt   time.Time `json:"last_output_at" doc:"When it last said something."`
}

// SessionList holds the account's sessions, the one last used first.
type SessionList struct {
	Sessions []Session `json:"sessions"`
}

// UpdateSession is the body of PATCH /session/{id}. What isn't there stays as it is.
type UpdateSession struct {
	Title          *string `json:"title,omitempty" minLength:"1" maxLength:"200"`
	Model          *string `json:"model,omitempty" maxLength:"100" doc:"Empty = the CLI's own. A living process changes at once."`
	PermissionMode *string `json:"permission_mode,omitempty" enum:"default,acceptEdits,plan,bypassPermissions,dontAsk" doc:"A living process changes at once."`
}

// Turn is one prompt to Claude and what became of it.
type Turn struct {
	ID             string     `json:"id"`
	Session        string     `json:"session"`
	Sandbox        string     `json:"sandbox"`
	Run            string     `json:"run" doc:"The CLI's process that serves it; it may serve others too. Empty while the turn waits."`
	State          string     `json:"state" enum:"queued,running,done,failed,interrupted,cancelled,lost"`
	Text           string     `json:"text"`
	Truncated      bool       `json:"truncated" doc:"Whether text is only the beginning, as in the views of a session. GET /session/{id}/turn/{turn} has all of it."`
	Model          string     `json:"model"`
	PermissionMode string     `json:"permission_mode"`
	Author         string     `json:"author" doc:"ID of the API key that asked, or \"web\"."`
	Reason         string     `json:"reason,omitempty" doc:"Why it ended as it did."`
	Seq            int64      `json:"seq" doc:"Of its prompt event; 0 = none yet."`
	EndSeq         int64      `json:"end_seq" doc:"Of its end event; 0 = none yet."`
	CreatedAt      time.Time  `json:"created_at"`
	StartedAt      *time.Time `json:"started_at"`
	EndedAt        *time.Time `json:"ended_at"`
}

// EditTurn is the body of PATCH /session/{id}/turn/{turn}.
type EditTurn struct {
	Prompt string `json:"prompt" minLength:"1"`
}

// Ask is a prompt of Claude's: something that it waits for a person to decide.
type Ask struct {
	ID          string     `json:"id"`
	Session     string     `json:"session"`
	Turn        string     `json:"turn"`
	Run         string     `json:"run"`
	Kind        string     `json:"kind" enum:"tool,question,plan" doc:"tool: may it be used. question: input.questions has them, with options. plan: input.plan has it."`
	Tool        string     `json:"tool" example:"Bash"`
	ToolUse     string     `json:"tool_use_id" doc:"Of the use of the tool in the conversation."`
	Agent       string     `json:"agent_id,omitempty" doc:"Of the subagent that asks."`
	Title       string     `json:"title"`
	Description string     `json:"description"`
	Reason      string     `json:"reason" doc:"Why it is asked, as far as the CLI says."`
	Input       any        `json:"input" doc:"Of the tool."`
	Suggestions any        `json:"suggestions" doc:"Rules that would keep the like from being asked again, as the CLI takes them; null = none."`
	State       string     `json:"state" enum:"pending,allowed,denied,expired,withdrawn,lost" doc:"expired: denied, because nobody decided in time. withdrawn: Claude doesn't want to know any more. lost: its process has ended."`
	Answer      any        `json:"answer" doc:"What the CLI was told; null = nothing."`
	AnsweredBy  string     `json:"answered_by,omitempty" doc:"ID of an API key, or \"web\"."`
	CreatedAt   time.Time  `json:"created_at"`
	ExpiresAt   time.Time  `json:"expires_at" doc:"Then it is denied."`
	AnsweredAt  *time.Time `json:"answered_at"`
}

// AskList holds a session's prompts, those that are pending first.
type AskList struct {
	Prompts []Ask `json:"prompts"`
}

// Answer is the body of POST /session/{id}/prompt/{prompt}.
type Answer struct {
	Behavior    string            `json:"behavior" enum:"allow,deny"`
	Message     string            `json:"message,omitempty" maxLength:"20000" doc:"With deny: why, for Claude."`
	Interrupt   bool              `json:"interrupt,omitempty" doc:"With deny: stop the turn too."`
	Scope       string            `json:"scope,omitempty" enum:"once,session" doc:"With allow. session: also the like of it, as long as the CLI's process lives. Default: once."`
	Answers     map[string]string `json:"answers,omitempty" doc:"With allow, of a question: by the question's text, the label of an option (several joined by \", \") or words of one's own."`
	Input       json.RawMessage   `json:"updated_input,omitempty" doc:"With allow: what the tool gets instead of its input."`
	Permissions json.RawMessage   `json:"updated_permissions,omitempty" doc:"With allow: rules to add, as the CLI takes them."`
}

// SessionEvent is one entry of a session's log, as GET /session/{id}/events lists it. On a stream, seq is the event's id,
// kind its name and data its data.
type SessionEvent struct {
	Seq  int64     `json:"seq"`
	Run  string    `json:"run"`
	Turn string    `json:"turn,omitempty" doc:"That it belongs to; none = it came between turns."`
	Kind string    `json:"kind" enum:"prompt,line,partial,end,ask,answer,queue,notice"`
	Data any       `json:"data" doc:"For line and partial: what the CLI wrote, an object if it is JSON, else a string."`
	At   time.Time `json:"at"`
}

// SessionEventList is a page of a session's log.
type SessionEventList struct {
	Events []SessionEvent `json:"events"`
	More   bool           `json:"more" doc:"Whether there are more: ask again with after = the last seq."`
}

// Types of the messages on GET /session/{id}/ws.
const (
	SocketEvent     = "event"     // from the server: one entry of the log
	SocketState     = "state"     // from the server: how the session stands
	SocketAck       = "ack"       // from the server: what the client sent was done
	SocketError     = "error"     // from the server: it was not, or the connection ends
	SocketPrompt    = "prompt"    // from the client
	SocketAnswer    = "answer"    // from the client
	SocketInterrupt = "interrupt" // from the client
	SocketSet       = "set"       // from the client
)

// SocketOut is a message from the server on GET /session/{id}/ws.
type SocketOut struct {
	Type string `json:"type" enum:"event,state,ack,error"`
	Ref  string `json:"ref,omitempty" doc:"Of ack and error: the client's own name for what it sent."`

	*SessionEvent
	Session *Session `json:"session,omitempty" doc:"Of state."`
	Turn    *Turn    `json:"accepted,omitempty" doc:"Of the ack to a prompt: its turn."`
	Prompt  *Ask     `json:"decided,omitempty" doc:"Of the ack to an answer: the prompt."`
	Problem *Problem `json:"problem,omitempty" doc:"Of error."`
}

// SocketIn is a message to the server on GET /session/{id}/ws.
type SocketIn struct {
	Type string `json:"type" enum:"prompt,answer,interrupt,set"`
	Ref  string `json:"ref,omitempty" doc:"Comes back with the ack or error."`

	Text           string  `json:"text,omitempty" doc:"Of prompt."`
	Sandbox        string  `json:"sandbox,omitempty" doc:"Of prompt. Default: where the last turn ran."`
	Title          *string `json:"title,omitempty" doc:"Of set."`
	Model          *string `json:"model,omitempty" doc:"Of prompt and set."`
	PermissionMode *string `json:"permission_mode,omitempty" doc:"Of prompt and set."`

	Prompt      string            `json:"prompt,omitempty" doc:"Of answer: the prompt's ID. The rest is as in the body of POST /session/{id}/prompt/{prompt}."`
	Behavior    string            `json:"behavior,omitempty"`
	Message     string            `json:"message,omitempty"`
	Interrupt   bool              `json:"interrupt,omitempty"`
	Scope       string            `json:"scope,omitempty"`
	Answers     map[string]string `json:"answers,omitempty"`
	Input       json.RawMessage   `json:"updated_input,omitempty"`
	Permissions json.RawMessage   `json:"updated_permissions,omitempty"`
}
