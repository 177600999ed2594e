package server

import (
	"encoding/json"
	"strings"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/claude"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// shownText is how much of a turn's text is in the views of a session.
const shownText = 10_000

func toPrompt(id string, in api.Prompt, author string) claude.Prompt {
	return claude.Prompt{
		Sandbox: sandbox.ID(id), Session: in.Session, Text: in.Prompt, Model: in.Model, PermissionMode: in.PermissionMode, Author: author,
	}
}

func fromSession(s claude.State) api.Session {
	out := api.Session{
		ID: s.ID, Title: s.Title, Sandbox: string(s.Sandbox), VolumeID: s.Volume, Turns: s.Turns, Busy: s.Busy(), State: string(s.Activity),
		Model: s.Model, PermissionMode: s.PermissionMode, Queue: each(s.Queue, shownTurn), Prompts: each(s.Asks, fromAsk), LastSeq: s.LastSeq,
		CreatedAt: s.CreatedAt.UTC(), UpdatedAt: s.UpdatedAt.UTC(),
	}
	if s.Turn != nil {
		t := shownTurn(*s.Turn)
		out.Turn = &t
	}
	if p := s.Process; p != nil {
		out.Process = &api.SessionProcess{Run: p.Run, Sandbox: string(p.Sandbox), Ending: p.Closed, Model: p.Model,
			PermissionMode: p.PermissionMode, LastOutputAt: s.LastOutputAt.UTC()}
	}
	return out
}

func fromTurn(t sandbox.Turn) api.Turn {
	return api.Turn{
		ID: t.ID, Session: t.Session, Sandbox: string(t.Sandbox), Run: t.Run, State: string(t.State), Text: t.Text, Model: t.Model,
		PermissionMode: t.PermissionMode, Author: t.Author, Reason: t.Reason, Seq: t.Seq, EndSeq: t.EndSeq, CreatedAt: t.CreatedAt.UTC(),
		StartedAt: timeOrNil(t.StartedAt), EndedAt: timeOrNil(t.EndedAt),
	}
}

// shownTurn is a turn as it stands among others: a long text is cut.
func shownTurn(t sandbox.Turn) api.Turn {
	out := fromTurn(t)
	if len(out.Text) > shownText {
		out.Text, out.Truncated = strings.ToValidUTF8(out.Text[:shownText], ""), true
	}
	return out
}

func fromAsk(a sandbox.Ask) api.Ask {
	return api.Ask{
		ID: a.ID, Session: a.Session, Turn: a.Turn, Run: a.Run, Kind: string(a.Kind), Tool: a.Tool, ToolUse: a.ToolUse, Agent: a.Agent,
		Title: a.Title, Description: a.Description, Reason: a.Reason, Input: rawOrNil(a.Input), Suggestions: rawOrNil(a.Suggestions),
		State: string(a.State), Answer: rawOrNil(a.Answer), AnsweredBy: a.AnsweredBy, CreatedAt: a.CreatedAt.UTC(), ExpiresAt: a.ExpiresAt.UTC(),
		AnsweredAt: timeOrNil(a.AnsweredAt),
	}
}

// rawOrNil is JSON as a value of the wire; nil = null.
func rawOrNil(data json.RawMessage) any {
	if len(data) == 0 {
		return nil
	}
	return data
}

func toDecision(in api.Answer, author string) (claude.Decision, error) {
	d := claude.Decision{Allow: in.Behavior == "allow", Message: in.Message, Interrupt: in.Interrupt, Session: in.Scope == "session",
		Answers: in.Answers, By: author}
	if in.Behavior != "allow" && in.Behavior != "deny" {
		return d, sandbox.Invalid("behavior", "Say \"allow\" or \"deny\".")
	}
	if in.Scope != "" && in.Scope != "once" && in.Scope != "session" {
		return d, sandbox.Invalid("scope", "Say \"once\" or \"session\".")
	}
	if d.Session && !d.Allow {
		return d, sandbox.Invalid("scope", "A scope goes with \"allow\".")
	}
	d.Input, d.Permissions = in.Input, in.Permissions
	return d, nil
}

func fromSessionEvent(e sandbox.SessionEvent) api.SessionEvent {
	out := api.SessionEvent{Seq: e.Seq, Run: e.Run, Turn: e.Turn, Kind: string(e.Kind), At: e.At.UTC()}
	if json.Valid(e.Data) {
		out.Data = json.RawMessage(e.Data)
	} else {
		out.Data = text(e.Data)
	}
	return out
}

// turnEnd tells an end of a turn that isn't a good one as a problem; nil = it was. run is its process, if that has ended.
func turnEnd(t sandbox.Turn, run sandbox.Run) *problem {
	reason := t.Reason
	if reason == "" {
		reason = "Claude did not say why."
	}
	switch {
	case t.State == sandbox.TurnDone, t.State == sandbox.TurnInterrupted:
		return nil
	case run.ID != "" && run.State != sandbox.RunRunning && runEnd(run) != nil:
		return runEnd(run)
	case t.State == sandbox.TurnLost:
		return refuse(endStatus, "turn_lost", "How the turn ended was not seen: %s", reason)
	case t.State == sandbox.TurnCancelled:
		return refuse(endStatus, "turn_cancelled", "%s", reason)
	}
	return refuse(endStatus, "turn_failed", "%s", reason)
}
