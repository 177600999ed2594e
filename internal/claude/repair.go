package claude

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// restore finds out what the next process of a session has to begin with: whether it resumes the CLI's session, and what is to be said of
// that in the log. What the last process left unfinished in the transcript is finished.
func (s *Sessions) restore(ctx context.Context, sb sandbox.Sandbox, ses sandbox.Session, t sandbox.Turn) (w sandbox.SessionWrite, resume bool, err error) {
	if ses.Turns == 0 {
		return w, false, nil
	}
	files, err := s.files(ctx, ses.Account, sb.ID)
	if err != nil {
		return w, false, err
	}
	name, err := s.transcript(ctx, files, sb, ses)
	if err != nil {
		return w, false, err
	}
	n := notice{Subtype: "restored", Sandbox: sb.ID, Restored: &restored{Conversation: name != ""}}
	if ses.Sandbox != sb.ID {
		n.Previous = ses.Sandbox
	}
	n.Text = "A new process of Claude Code goes on with the conversation. Background processes, the shell's state and approvals for the session are gone."
	if name == "" {
		n.Text = "A new process of Claude Code begins the conversation anew: there was nothing to resume."
	}
	w.Events = append(w.Events, noticeEvent("", t.ID, n))
	if name == "" {
		return w, false, nil
	}
	tools, err := repair(ctx, files, name, time.Now())
	if err != nil {
		return w, false, err
	}
	if len(tools) > 0 {
		w.Events = append(w.Events, noticeEvent("", t.ID, notice{Subtype: "repaired", Tools: tools,
			Text: "The last process ended before these uses of tools had finished; Claude is told so."}))
	}
	return w, true, nil
}

// maxTranscript is how much of a transcript is read for a repair.
const maxTranscript = 256 << 20

// entry is what a repair reads of a line of a transcript.
type entry struct {
	Type      string          `json:"type"`
	UUID      string          `json:"uuid"`
	Sidechain bool            `json:"isSidechain"`
	CWD       string          `json:"cwd"`
	Session   string          `json:"sessionId"`
	Version   string          `json:"version"`
	Branch    string          `json:"gitBranch"`
	UserType  string          `json:"userType"`
	Entry     string          `json:"entrypoint"`
	Message   json.RawMessage `json:"message"`
}

// use is a use of a tool that has no result yet.
type use struct {
	id   string
	from entry
}

// unfinished is what the process left that wrote a transcript.
type unfinished struct {
	uses []use
	leaf string // the last entry, to which what follows is attached
	cut  bool   // the last line has no end: the process died while it wrote
	size int64  // of the whole lines
}

const unfinishedText = "The process ended before this finished: Claude Code was stopped or died. Whether and how far it had effect is not known; look before you go on."

// brokenOffText closes the turn that was cut off, as the CLI closes one that is interrupted. Without it the CLI adds a prompt of its own:
// "Continue from where you left off."
const brokenOffText = "[Request interrupted: the process of Claude Code ended]"

// repair adds the results that are missing in a transcript. The CLI would drop uses of tools without a result when it resumes, so that
// Claude would not know what it had begun. It returns the IDs of these uses.
func repair(ctx context.Context, files Files, name string, now time.Time) ([]string, error) {
	u, data, err := readUnfinished(ctx, files, name)
	if err != nil || len(u.uses) == 0 {
		return nil, err
	}
	fresh := data[:u.size:u.size]
	var ids []string
	leaf, last := u.leaf, u.uses[len(u.uses)-1]
	for _, missing := range u.uses {
		line := missing.line(leaf, now, block{Type: "tool_result", ToolUse: missing.id, Content: unfinishedText, IsError: true})
		fresh, leaf = append(fresh, encode(line)...), line.UUID
		fresh = append(fresh, '\n')
		ids = append(ids, missing.id)
	}
	fresh = append(append(fresh, encode(last.line(leaf, now, block{Type: "text", Text: brokenOffText}))...), '\n')
	if _, err := files.WriteFile(ctx, name, bytes.NewReader(fresh), 0o600); err != nil {
		return nil, fmt.Errorf("claude: repair a transcript: %w", err)
	}
	return ids, nil
}

// readUnfinished reads a transcript whole. Its lines come out of a sandbox: what makes no sense is passed over.
func readUnfinished(ctx context.Context, files Files, name string) (u unfinished, data []byte, err error) {
	r, _, err := files.ReadFile(ctx, name)
	if err != nil {
		return u, nil, fmt.Errorf("claude: read a transcript: %w", err)
	}
	data, err = io.ReadAll(io.LimitReader(r, maxTranscript))
	if err = errors.Join(err, r.Close()); err != nil {
		return u, nil, fmt.Errorf("claude: read a transcript: %w", err)
	}
	if len(data) == maxTranscript {
		return u, nil, nil // too long to be looked at: as the CLI finds it
	}
	lines := bufio.NewReader(bytes.NewReader(data))
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			u.cut = len(line) > 0
			return u, data, nil //nolint:nilerr // the end
		}
		u.size += int64(len(line))
		u.take(line)
	}
}

// take looks at one line.
func (u *unfinished) take(line []byte) {
	var e entry
	if json.Unmarshal(line, &e) != nil || e.Sidechain || !isUUID(e.UUID) {
		return
	}
	u.leaf = e.UUID
	if e.Type != "assistant" && e.Type != "user" {
		return
	}
	var m struct {
		Content []struct {
			Type    string `json:"type"`
			ID      string `json:"id"`
			ToolUse string `json:"tool_use_id"`
		} `json:"content"`
	}
	if json.Unmarshal(e.Message, &m) != nil { // the content is text: the user typed it
		if e.Type == "user" {
			u.uses = nil
		}
		return
	}
	typed := false
	for _, b := range m.Content {
		switch {
		case e.Type == "assistant" && b.Type == "tool_use" && b.ID != "":
			u.uses = append(u.uses, use{b.ID, e})
		case e.Type == "user" && b.Type == "tool_result":
			u.uses = slices.DeleteFunc(u.uses, func(m use) bool { return m.id == b.ToolUse })
		case e.Type == "user":
			typed = true
		}
	}
	if typed { // the conversation went on without them; there is no place for a result any more
		u.uses = nil
	}
}

// block, message and line are what a repair writes.
type block struct {
	Type    string `json:"type"`
	Text    string `json:"text,omitempty"`
	ToolUse string `json:"tool_use_id,omitempty"`
	Content string `json:"content,omitempty"`
	IsError bool   `json:"is_error,omitempty"`
}

type message struct {
	Role    string  `json:"role"`
	Content []block `json:"content"`
}

type line struct {
	Parent    string  `json:"parentUuid"`
	Sidechain bool    `json:"isSidechain"`
	Type      string  `json:"type"`
	Message   message `json:"message"`
	UUID      string  `json:"uuid"`
	Timestamp string  `json:"timestamp"`
	Result    string  `json:"toolUseResult,omitempty"`
	Source    string  `json:"sourceToolAssistantUUID,omitempty"`
	UserType  string  `json:"userType,omitempty"`
	Entry     string  `json:"entrypoint,omitempty"`
	CWD       string  `json:"cwd"`
	Session   string  `json:"sessionId"`
	Version   string  `json:"version"`
	Branch    string  `json:"gitBranch,omitempty"`
}

// line is a line of the user's that belongs behind parent and says b.
func (m use) line(parent string, now time.Time, b block) line {
	e := m.from
	l := line{Parent: parent, Type: "user", Message: message{"user", []block{b}}, UUID: newUUID(), Timestamp: now.UTC().Format("2006-01-02T15:04:05.000Z"),
		UserType: e.UserType, Entry: e.Entry, CWD: e.CWD, Session: e.Session, Version: e.Version, Branch: e.Branch}
	if b.ToolUse != "" {
		l.Result, l.Source = "Error: "+b.Content, e.UUID
	}
	return l
}
