package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
)

// request is what the demo model reads of a request of the Messages API.
type request struct {
	Model    string                  `json:"model"`
	Stream   bool                    `json:"stream"`
	System   content                 `json:"system"`
	Messages []message               `json:"messages"`
	Tools    []struct{ Name string } `json:"tools"`

	OutputConfig struct {
		Format *format `json:"format"`
	} `json:"output_config"`
}

// format asks for an answer in JSON.
type format struct {
	Schema struct {
		Required   []string `json:"required"`
		Properties map[string]struct {
			Type any `json:"type"`
		} `json:"properties"`
	} `json:"schema"`
}

type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// content is a list of blocks; the API also takes a bare string for one block of text.
type content []block

type block struct {
	Type      string          `json:"type"`
	Text      string          `json:"text"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
	ToolUseID string          `json:"tool_use_id"`
	Content   content         `json:"content"`
	IsError   bool            `json:"is_error"`
}

// UnmarshalJSON takes both forms.
func (c *content) UnmarshalJSON(data []byte) error {
	data = bytes.TrimSpace(data)
	switch {
	case bytes.Equal(data, []byte("null")):
		*c = nil
		return nil
	case len(data) > 0 && data[0] == '"':
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		*c = content{{Type: "text", Text: s}}
		return nil
	case len(data) > 0 && data[0] == '{': // a tool result of a form that we don't look into
		*c = nil
		return nil
	}
	var blocks []block
	if err := json.Unmarshal(data, &blocks); err != nil {
		return err
	}
	*c = blocks
	return nil
}

func (c content) text() string {
	var parts []string
	for _, b := range c {
		if b.Type == "text" {
			parts = append(parts, b.Text)
		}
	}
	return strings.Join(parts, "\n")
}

// turn is where a conversation stands.
type turn struct {
	prompts []string // what the user typed, first to last
	calls   []call   // the tools used since the last prompt, with their results
	dir     string   // the CLI's working directory; "" if it isn't told
	plan    string   // the file that a plan belongs into; "" if the CLI isn't in its plan mode
	tools   map[string]bool
	format  *format
}

// call is one use of a tool.
type call struct {
	id      string
	name    string
	input   map[string]any
	result  string
	isError bool
}

func (t turn) prompt() string {
	if len(t.prompts) == 0 {
		return ""
	}
	return t.prompts[len(t.prompts)-1]
}

func (t turn) last() call {
	if len(t.calls) == 0 {
		return call{}
	}
	return t.calls[len(t.calls)-1]
}

var (
	reminder = regexp.MustCompile(`(?s)<system-reminder>.*?</system-reminder>`)
	workdir  = regexp.MustCompile(`(?m)[Ww]orking directory: *(/.*?) *$`)
	planFile = regexp.MustCompile(`[Pp]lan (?:file already exists )?at (/\S+\.md)`)
)

// turn reads a conversation. Text that the CLI adds by itself (reminders, notes of an interruption) isn't a prompt.
func (r request) turn() (turn, error) {
	t := turn{tools: map[string]bool{}, format: r.OutputConfig.Format}
	for _, tool := range r.Tools {
		t.tools[tool.Name] = true
	}
	if m := workdir.FindStringSubmatch(r.System.text()); m != nil {
		t.dir = m[1]
	}
	for _, m := range r.Messages {
		if at := planFile.FindStringSubmatch(m.Content.text()); at != nil && m.Role != "assistant" {
			t.plan = at[1]
		}
		switch m.Role {
		case "assistant":
			for _, b := range m.Content {
				if b.Type != "tool_use" {
					continue
				}
				c := call{id: b.ID, name: b.Name}
				// An input that isn't an object is one that we didn't write; its values aren't needed.
				_ = json.Unmarshal(b.Input, &c.input)
				t.calls = append(t.calls, c)
			}
		case "user":
			t.user(m.Content)
		}
	}
	if len(t.prompts) == 0 {
		return t, errors.New("messages: there is no text of the user")
	}
	return t, nil
}

// isNote reports whether the CLI wrote a text of the user's by itself.
func isNote(s string) bool {
	return strings.HasPrefix(s, "[Request interrupted") || strings.HasPrefix(s, "<local-command-") || strings.HasPrefix(s, "<command-")
}

func (t *turn) user(c content) {
	var typed []string
	for _, b := range c {
		switch b.Type {
		case "tool_result":
			for i := range t.calls {
				if t.calls[i].id == b.ToolUseID {
					t.calls[i].result, t.calls[i].isError = b.Content.text(), b.IsError
				}
			}
		case "text":
			s := strings.TrimSpace(reminder.ReplaceAllString(b.Text, ""))
			if s != "" && !isNote(s) {
				typed = append(typed, s)
			}
		}
	}
	if len(typed) > 0 {
		t.prompts = append(t.prompts, strings.Join(typed, "\n"))
		t.calls = nil
	}
}
