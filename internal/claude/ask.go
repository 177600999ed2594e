package claude

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Decision is what a person says to an ask.
type Decision struct {
	Allow       bool
	Message     string          // why not, for Claude
	Interrupt   bool            // and stop the turn
	Input       json.RawMessage // what the tool gets instead
	Permissions json.RawMessage // rules to add, as the CLI takes them
	Session     bool            // allow the like for the rest of the session
	Answers     map[string]string
	By          string
}

const (
	behaviorAllow = "allow"
	behaviorDeny  = "deny"
	maxMessage    = 20_000
)

// approval and denial are what the CLI is told.
type approval struct {
	Behavior    string          `json:"behavior"`
	Input       json.RawMessage `json:"updatedInput"`
	Permissions json.RawMessage `json:"updatedPermissions,omitempty"`
}

type denial struct {
	Behavior  string `json:"behavior"`
	Message   string `json:"message"`
	Interrupt bool   `json:"interrupt,omitempty"`
}

// Asks lists a session's asks, those that are pending first.
func (s *Sessions) Asks(ctx context.Context, account, session string, pendingOnly bool) ([]sandbox.Ask, error) {
	if _, err := s.store.Session(ctx, account, session); err != nil {
		return nil, err
	}
	return s.store.Asks(ctx, session, pendingOnly, maxAsks)
}

// maxAsks is how many asks a list holds.
const maxAsks = 200

// Ask returns one ask of a session.
func (s *Sessions) Ask(ctx context.Context, account, session, id string) (sandbox.Ask, error) {
	if _, err := s.store.Session(ctx, account, session); err != nil {
		return sandbox.Ask{}, err
	}
	return s.store.Ask(ctx, session, id)
}

// Answer decides an ask. The first decision counts; who comes later is told whose it was. It returns when the decision is recorded; the
// CLI gets it exactly once, also if the server dies right now.
func (s *Sessions) Answer(ctx context.Context, account, session, id string, d Decision) (sandbox.Ask, error) {
	c, err := s.open(ctx, account, session)
	if err != nil {
		return sandbox.Ask{}, err
	}
	defer s.release(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.pending(func(a sandbox.Ask) bool { return a.ID == id })
	if i < 0 {
		a, err := s.store.Ask(ctx, session, id)
		if err != nil {
			return a, err
		}
		return a, answered(a)
	}
	a := c.asks[i]
	if !a.ExpiresAt.After(time.Now()) {
		c.poke()
		return a, answered(sandbox.Ask{State: sandbox.AskExpired, AnsweredAt: a.ExpiresAt})
	}
	if a.Answer, err = d.answer(a); err != nil {
		return a, err
	}
	a.State, a.AnsweredBy, a.AnsweredAt = sandbox.AskDenied, d.By, time.Now()
	if d.Allow {
		a.State = sandbox.AskAllowed
	}
	w := sandbox.SessionWrite{}
	stops := d.Interrupt && !d.Allow && c.turn != nil && c.turn.ID == a.Turn
	if stops {
		row := c.turn.Turn
		row.Interrupted = true
		w.Turns = append(w.Turns, row)
	}
	if err := c.answer(ctx, i, a, w); err != nil {
		return a, err
	}
	if stops {
		c.turn.Interrupted = true
	}
	return a, nil
}

// answer settles the pending ask at place i as a says, and has the CLI told a's answer. The caller holds mu.
func (c *conv) answer(ctx context.Context, i int, a sandbox.Ask, w sandbox.SessionWrite) error {
	w.Settled = append(w.Settled, a)
	w.Events = append(w.Events, answerEvent(a))
	p := c.proc
	if p == nil || p.Run != a.Run { // it can't be: its end settles its asks
		return fmt.Errorf("claude: the process of ask %s is gone", a.ID)
	}
	if err := c.give(ctx, p, w, answerLine(a.Request, a.Answer), false); err != nil {
		return err
	}
	c.asks = slices.Delete(c.asks, i, i+1)
	if c.turn != nil {
		c.turn.quietAt = time.Now().Add(c.s.quiet)
	}
	return nil
}

// answered tells who comes too late.
func answered(a sandbox.Ask) error {
	how := string(a.State)
	if a.AnsweredBy != "" {
		how += " by " + a.AnsweredBy
	}
	if !a.AnsweredAt.IsZero() {
		how += " at " + a.AnsweredAt.UTC().Format(time.RFC3339)
	}
	return &sandbox.Problem{Class: sandbox.ErrConflict, Code: "already_answered", Detail: "This is decided already: " + how + "."}
}

// answer is the decision as the CLI takes it.
func (d Decision) answer(a sandbox.Ask) (json.RawMessage, error) {
	if len(d.Message) > maxMessage {
		return nil, sandbox.Invalid("message", "The message has %d bytes; at most %d are taken.", len(d.Message), maxMessage)
	}
	if !d.Allow {
		if len(d.Answers) > 0 || d.Input != nil || d.Permissions != nil {
			return nil, sandbox.Invalid("behavior", "Answers, an input and permissions go with \"allow\".")
		}
		message := d.Message
		if strings.TrimSpace(message) == "" {
			message = "The user doesn't want this."
		}
		return encode(denial{behaviorDeny, message, d.Interrupt}), nil
	}
	if d.Interrupt {
		return nil, sandbox.Invalid("interrupt", "Only what is denied can stop the turn.")
	}
	input := a.Input
	if d.Input != nil {
		if !isObject(d.Input) {
			return nil, sandbox.Invalid("updated_input", "It must be an object, as the tool's input is.")
		}
		input = d.Input
	}
	if len(d.Answers) > 0 || a.Kind == sandbox.AskQuestion {
		var err error
		if input, err = withAnswers(a, input, d.Answers); err != nil {
			return nil, err
		}
	}
	permissions := d.Permissions
	if permissions != nil && !isArray(permissions) {
		return nil, sandbox.Invalid("updated_permissions", "It must be a list of rules, as the suggestions are.")
	}
	if d.Session && permissions == nil {
		permissions = forSession(a)
	}
	return encode(approval{behaviorAllow, input, permissions}), nil
}

func isObject(data json.RawMessage) bool {
	var v map[string]json.RawMessage
	return json.Unmarshal(data, &v) == nil && v != nil
}

func isArray(data json.RawMessage) bool {
	var v []json.RawMessage
	return json.Unmarshal(data, &v) == nil && v != nil
}

// withAnswers puts answers to where the CLI looks for them: into the input of its question tool, by question.
func withAnswers(a sandbox.Ask, input json.RawMessage, answers map[string]string) (json.RawMessage, error) {
	if a.Kind != sandbox.AskQuestion {
		return nil, sandbox.Invalid("answers", "This is no question.")
	}
	var in map[string]json.RawMessage
	if err := json.Unmarshal(input, &in); err != nil || in == nil {
		return nil, sandbox.Invalid("updated_input", "It must be an object, as the tool's input is.")
	}
	if len(answers) == 0 {
		if _, ok := in["answers"]; ok {
			return input, nil
		}
		return nil, sandbox.Invalid("answers", "Say what the answers are: by question, the label of an option or words of your own. Or deny.")
	}
	var asked struct {
		Questions []struct {
			Question string `json:"question"`
		} `json:"questions"`
	}
	if err := json.Unmarshal(input, &asked); err == nil {
		for q := range answers {
			if !slices.ContainsFunc(asked.Questions, func(known struct {
				Question string `json:"question"`
			}) bool {
				return known.Question == q
			}) {
				return nil, sandbox.Invalid("answers", "%q is not one of the questions.", q)
			}
		}
	}
	in["answers"] = encode(answers)
	return encode(in), nil
}

// forSession makes of what the CLI suggests, or of the tool as a whole, what holds until its process ends.
func forSession(a sandbox.Ask) json.RawMessage {
	var rules []map[string]any
	if json.Unmarshal(a.Suggestions, &rules) != nil || len(rules) == 0 {
		return encode([]any{map[string]any{"type": "addRules", "rules": []any{map[string]string{"toolName": a.Tool}},
			"behavior": behaviorAllow, "destination": "session"}})
	}
	for _, rule := range rules {
		rule["destination"] = "session"
	}
	return encode(rules)
}
