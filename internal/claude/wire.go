package claude

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// head is what is looked at of a line of the CLI.
type head struct {
	Type      string `json:"type"`
	Subtype   string `json:"subtype"`
	SessionID string `json:"session_id"`
	UUID      string `json:"uuid"`
	IsReplay  bool   `json:"isReplay"`

	// Of system lines.
	Model          string `json:"model"`
	PermissionMode string `json:"permissionMode"`

	// Of results.
	IsError  bool            `json:"is_error"`
	NumTurns int             `json:"num_turns"`
	Result   json.RawMessage `json:"result"`

	// Of what is asked of us, and answered to us.
	RequestID string  `json:"request_id"`
	Request   request `json:"request"`
	Response  struct {
		Subtype   string          `json:"subtype"`
		RequestID string          `json:"request_id"`
		Error     string          `json:"error"`
		Response  json.RawMessage `json:"response"`
	} `json:"response"`
}

// request is what the CLI wants from us.
type request struct {
	Subtype     string          `json:"subtype"`
	Tool        string          `json:"tool_name"`
	DisplayName string          `json:"display_name"`
	Input       json.RawMessage `json:"input"`
	ToolUse     string          `json:"tool_use_id"`
	Agent       string          `json:"agent_id"`
	Title       string          `json:"title"`
	Description string          `json:"description"`
	Reason      string          `json:"decision_reason"`
	Blocked     string          `json:"blocked_path"`
	Suggestions json.RawMessage `json:"permission_suggestions"`
}

// news are the types of line that tell more than what Claude says, as the CLI begins them.
var news = []string{"system", "result", "control_request", "control_cancel_request", "control_response"}

// readHead reads a line, if it is of a kind that matters to us; the others may be long, and are passed on unread. uuid is the name of a
// message of ours that the CLI may tell to have taken up.
func readHead(line []byte, uuid string) (h head, ok bool) {
	typ := prefixType(line)
	switch typ {
	case "":
		if len(line) > 64<<10 || len(line) == 0 || line[0] != '{' {
			return h, false
		}
	case "user":
		if uuid == "" || !bytes.Contains(line, []byte(uuid)) {
			return h, false
		}
	default:
		known := false
		for _, n := range news {
			known = known || n == typ
		}
		if !known {
			return h, false
		}
	}
	if json.Unmarshal(line, &h) != nil { // of our type, but in another form: passed on
		return head{}, false
	}
	return h, true
}

// prefixType returns the type of a line that begins with it, as the CLI's do; "" = it doesn't.
func prefixType(line []byte) string {
	rest, ok := bytes.CutPrefix(line, []byte(`{"type":"`))
	if !ok {
		return ""
	}
	typ, _, ok := bytes.Cut(rest[:min(len(rest), 40)], []byte(`"`))
	if !ok {
		return ""
	}
	return string(typ)
}

// userLine is a prompt as the CLI reads it.
func userLine(t sandbox.Turn, session string) []byte {
	type block struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	type message struct {
		Role    string  `json:"role"`
		Content []block `json:"content"`
	}
	return append(encode(struct {
		Type    string  `json:"type"`
		Message message `json:"message"`
		Parent  *string `json:"parent_tool_use_id"`
		Session string  `json:"session_id"`
		UUID    string  `json:"uuid,omitempty"`
	}{"user", message{"user", []block{{"text", t.Text}}}, nil, session, t.UUID}), '\n')
}

// controlLine is something that we ask of the CLI.
func controlLine(id string, what map[string]any) []byte {
	return append(encode(struct {
		Type    string         `json:"type"`
		ID      string         `json:"request_id"`
		Request map[string]any `json:"request"`
	}{"control_request", id, what}), '\n')
}

// reply is an answer of ours. With its type first, for the CLI repeats it, and then it is to be known at once.
type reply struct {
	Type     string    `json:"type"`
	Response replyBody `json:"response"`
}

type replyBody struct {
	Subtype  string          `json:"subtype"`
	ID       string          `json:"request_id"`
	Response json.RawMessage `json:"response,omitempty"`
	Error    string          `json:"error,omitempty"`
}

// answerLine answers what the CLI asked.
func answerLine(id string, response json.RawMessage) []byte {
	return append(encode(reply{"control_response", replyBody{Subtype: "success", ID: id, Response: response}}), '\n')
}

// refusalLine answers what we don't know.
func refusalLine(id, why string) []byte {
	return append(encode(reply{"control_response", replyBody{Subtype: "error", ID: id, Error: refusal + why}}), '\n')
}

// refusal is how our refusals begin.
const refusal = "Sandlot doesn't know this request: "

// isEcho reports whether a line is an answer of ours that the CLI repeats, as it does with all that it is told.
func (h head) isEcho() bool {
	var told struct {
		Behavior string `json:"behavior"`
	}
	return strings.HasPrefix(h.Response.Error, refusal) || json.Unmarshal(h.Response.Response, &told) == nil && told.Behavior != ""
}

// Bounds of what the CLI may ask: it runs in a sandbox, and may be anything.
const (
	maxPending = 50    // asks at once
	maxName    = 200   // bytes of an ID
	maxWords   = 4_000 // bytes of a title or description
)

// cut is s, cut to most bytes.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// askOf makes a row of what the CLI asks.
func askOf(h head) sandbox.Ask {
	r := h.Request
	for _, s := range []*string{&r.Tool, &r.DisplayName, &r.ToolUse, &r.Agent} {
		*s = cut(*s, maxName)
	}
	for _, s := range []*string{&r.Title, &r.Description, &r.Reason, &r.Blocked} {
		*s = cut(*s, maxWords)
	}
	a := sandbox.Ask{ID: sandbox.NewID(sandbox.PrefixAsk), Request: h.RequestID, Kind: sandbox.AskTool, Tool: r.Tool, ToolUse: r.ToolUse,
		Agent: r.Agent, Title: r.Title, Description: r.Description, Reason: r.Reason, Input: r.Input, Suggestions: r.Suggestions, State: sandbox.AskPending}
	switch r.Tool {
	case "AskUserQuestion":
		a.Kind = sandbox.AskQuestion
	case "ExitPlanMode":
		a.Kind = sandbox.AskPlan
	}
	if a.Title == "" {
		if a.Title = r.DisplayName; a.Title == "" {
			a.Title = r.Tool
		}
	}
	if a.Reason == "" && r.Blocked != "" {
		a.Reason = "It would reach " + r.Blocked + "."
	}
	if len(bytes.TrimSpace(a.Input)) == 0 {
		a.Input = json.RawMessage("{}")
	}
	return a
}

// resultText is the text of a result, cut to what a reason may hold.
func (h head) resultText() string {
	var s string
	if json.Unmarshal(h.Result, &s) != nil {
		return ""
	}
	return cut(strings.TrimSpace(s), 1000)
}
