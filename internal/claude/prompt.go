package claude

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Prompt is what Claude is told to do.
type Prompt struct {
	Sandbox        sandbox.ID
	Session        string // to go on with; "" = a new one
	Text           string
	Model          string // "" = the CLI's default
	PermissionMode string // "" = bypassPermissions: the sandbox is the wall
}

// Turn is a prompt that is being worked on.
type Turn struct {
	Session sandbox.Session
	Run     sandbox.Run
	After   int64 // the events of this turn, its prompt the first, have higher numbers
}

const (
	maxPrompt = 10 << 20 // bytes
	maxTitle  = 80       // characters

	startLimit = time.Minute // for starting the CLI, once the turn may be recorded

	defaultPermissionMode = "bypassPermissions"
)

var (
	permissionModes = []string{"default", "acceptEdits", "plan", "bypassPermissions", "dontAsk"}
	modelName       = regexp.MustCompile(`^[A-Za-z0-9._:\[\]/@][A-Za-z0-9._:\[\]/@-]{0,99}$`)
)

// check refuses what can't be run and fills in what was left open.
func (p *Prompt) check() error {
	if p.PermissionMode == "" {
		p.PermissionMode = defaultPermissionMode
	}
	switch {
	case strings.TrimSpace(p.Text) == "":
		return sandbox.Invalid("prompt", "The prompt is empty; say what Claude should do.")
	case len(p.Text) > maxPrompt:
		return sandbox.Invalid("prompt", "The prompt has %d bytes; at most %d are taken. Put long material into a file.", len(p.Text), maxPrompt)
	case p.Model != "" && !modelName.MatchString(p.Model):
		return sandbox.Invalid("model", "This is not the name of a model: use letters, digits and . _ : / @ - [ ].")
	case !slices.Contains(permissionModes, p.PermissionMode):
		return sandbox.Invalid("permission_mode", "There is no such mode; use one of %s.", strings.Join(permissionModes, ", "))
	case p.Session != "" && !sandbox.IsID(p.Session, sandbox.PrefixSession):
		return &sandbox.Problem{Class: sandbox.ErrNotFound, Code: "session_not_found", Field: "session", Detail: "There is no such session."}
	}
	return nil
}

// title is the first line of a prompt that says something, cut to what a list can show.
func title(prompt string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(prompt), "\n")
	first = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(first))
	if runes := []rune(first); len(runes) > maxTitle {
		first = string(runes[:maxTitle-1]) + "…"
	}
	return first
}

// newUUID returns a random (version 4) UUID, the form that the CLI wants for a session.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Prompt begins a turn: it records the prompt and starts the CLI. It returns when the process has been started; the turn then goes
// on by itself, whatever becomes of ctx. One session has one turn at a time.
func (s *Sessions) Prompt(ctx context.Context, account string, p Prompt) (Turn, error) {
	if err := p.check(); err != nil {
		return Turn{}, err
	}
	if err := s.waitReady(ctx); err != nil {
		return Turn{}, err
	}
	sb, err := s.runner.Sandbox(ctx, account, p.Sandbox)
	if err != nil {
		return Turn{}, err
	}
	ses, fresh, err := s.sessionFor(ctx, account, p, sb)
	if err != nil {
		return Turn{}, err
	}
	h := s.hubs.attach(ses.ID)
	run := sandbox.Run{ID: sandbox.NewID(sandbox.PrefixRun), Account: account, Sandbox: sb.ID, Kind: sandbox.RunClaude,
		Session: ses.ID, State: sandbox.RunRunning}
	if !h.begin(run.ID, ses.LastSeq) {
		s.hubs.release(h)
		return Turn{}, busy()
	}
	turn, recorded, err := s.start(ctx, h, p, sb, ses, fresh, run)
	if !recorded || !s.background(func(ctx context.Context) { s.follow(ctx, h, turn.Run, false) }) {
		h.end()
		s.hubs.release(h)
	}
	return turn, err
}

// sessionFor returns the session of p: a new one that isn't recorded yet, or the one that p names, if it can go on in sb.
func (s *Sessions) sessionFor(ctx context.Context, account string, p Prompt, sb sandbox.Sandbox) (ses sandbox.Session, fresh bool, err error) {
	if p.Session == "" {
		return sandbox.Session{ID: sandbox.NewID(sandbox.PrefixSession), Account: account, Sandbox: sb.ID, Volume: sb.Spec.Volume.ID,
			Title: title(p.Text), UUID: newUUID()}, true, nil
	}
	ses, err = s.store.Session(ctx, account, p.Session)
	if err != nil {
		return ses, false, err
	}
	if ses.Volume != sb.Spec.Volume.ID {
		return ses, false, &sandbox.Problem{Class: sandbox.ErrConflict, Code: "session_elsewhere", Field: "session", Detail: fmt.Sprintf(
			"This session's memory is on the volume %s, but the sandbox has the volume %s. Use a sandbox on the session's volume, or begin a new session.",
			ses.Volume, sb.Spec.Volume.ID)}
	}
	return ses, false, nil
}

// start records the turn and starts the CLI. recorded says whether the turn now exists; if so, it must be followed to its end,
// even if err says that the CLI could not be started.
func (s *Sessions) start(ctx context.Context, h *hub, p Prompt, sb sandbox.Sandbox, ses sandbox.Session, fresh bool, run sandbox.Run) (
	turn Turn, recorded bool, err error) {
	resume := false
	if !fresh {
		// Between the first look and begin, another turn may have come to its end.
		if ses, err = s.store.Session(ctx, ses.Account, ses.ID); err != nil {
			return Turn{}, false, err
		}
		if resume, err = s.resumable(ctx, sb, ses); err != nil {
			return Turn{}, false, err
		}
	}
	cmd := command(p, ses.UUID, resume, sb.Spec, run.ID)
	run.Argv = cmd.Argv
	ev := sandbox.SessionEvent{Seq: ses.LastSeq + 1, Run: run.ID, Kind: sandbox.SessionPrompt,
		Data: encode(promptData{Type: "prompt", Text: p.Text, Run: run.ID})}
	insert := func(ctx context.Context, r sandbox.Run) error {
		if fresh {
			if err := s.store.InsertSession(ctx, ses); err != nil {
				return err
			}
		}
		if err := s.store.BeginTurn(ctx, ses, r, ev); err != nil {
			if errors.Is(err, sandbox.ErrConflict) {
				return busy()
			}
			return err
		}
		recorded, run = true, r
		h.stored(ev.Seq)
		return nil
	}
	// A client that leaves at this very moment must not leave a turn half begun.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	started, err := s.runner.StartRun(ctx, run, cmd, insert)
	if err == nil {
		run = started
	}
	turn = Turn{Session: ses, Run: run, After: ev.Seq - 1}
	if err != nil || !recorded {
		return turn, recorded, err
	}
	if now, err := s.store.Session(ctx, ses.Account, ses.ID); err == nil {
		turn.Session = now
	}
	return turn, true, nil
}

func busy() error {
	return &sandbox.Problem{Class: sandbox.ErrConflict, Code: "session_busy", Field: "session",
		Detail: "A turn of this session is still running. Wait for its end, or interrupt it."}
}
