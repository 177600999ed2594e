package claude

import (
	"context"
	"crypto/rand"
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
	Sandbox        sandbox.ID // "" = where the session's last turn ran
	Session        string     // to go on with; "" = a new one
	Text           string
	Model          string // "" = as before; of a new session the CLI's default
	PermissionMode string // "" = as before; of a new session bypassPermissions: the sandbox is the wall
	Author         string // who asks
}

// Turn is a prompt that was taken.
type Turn struct {
	Session sandbox.Session
	Turn    sandbox.Turn
	Run     sandbox.Run // zero while the turn waits
	Queued  bool        // it waits for those before it
	After   int64       // the events of this turn, its prompt the first, have higher numbers
}

const (
	maxPrompt = 10 << 20 // bytes
	maxTitle  = 80       // characters
	maxQueue  = 20       // turns that wait

	defaultPermissionMode = "bypassPermissions"
)

var (
	permissionModes = []string{"default", "acceptEdits", "plan", "bypassPermissions", "dontAsk"}
	modelName       = regexp.MustCompile(`^[A-Za-z0-9._:\[\]/@][A-Za-z0-9._:\[\]/@-]{0,99}$`)
	uuidForm        = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// check refuses what can't be run.
func (p *Prompt) check() error {
	if err := checkText(p.Text); err != nil {
		return err
	}
	if err := checkSettings(p.Model, p.PermissionMode); err != nil {
		return err
	}
	if p.Session != "" && !sandbox.IsID(p.Session, sandbox.PrefixSession) {
		return &sandbox.Problem{Class: sandbox.ErrNotFound, Code: "session_not_found", Field: "session", Detail: "There is no such session."}
	}
	return nil
}

func checkText(text string) error {
	if strings.TrimSpace(text) == "" {
		return sandbox.Invalid("prompt", "The prompt is empty; say what Claude should do.")
	}
	if len(text) > maxPrompt {
		return sandbox.Invalid("prompt", "The prompt has %d bytes; at most %d are taken. Put long material into a file.", len(text), maxPrompt)
	}
	return nil
}

func checkSettings(model, mode string) error {
	if model != "" && !modelName.MatchString(model) {
		return sandbox.Invalid("model", "This is not the name of a model: use letters, digits and . _ : / @ - [ ].")
	}
	if mode != "" && !slices.Contains(permissionModes, mode) {
		return sandbox.Invalid("permission_mode", "There is no such mode; use one of %s.", strings.Join(permissionModes, ", "))
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

// newUUID returns a random (version 4) UUID, the form that the CLI wants for names.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func isUUID(s string) bool { return uuidForm.MatchString(s) }

// Prompt takes a prompt for a session: it is recorded, and runs when those before it have ended. If none is before it, Prompt returns when
// Claude has been given it, or with the error that keeps it from that. What was taken goes on by itself, whatever becomes of ctx.
func (s *Sessions) Prompt(ctx context.Context, account string, p Prompt) (Turn, error) {
	if err := p.check(); err != nil {
		return Turn{}, err
	}
	if err := s.waitReady(ctx); err != nil {
		return Turn{}, err
	}
	ses := sandbox.Session{ID: sandbox.NewID(sandbox.PrefixSession)}
	if p.Session != "" {
		var err error
		if ses, err = s.store.Session(ctx, account, p.Session); err != nil {
			return Turn{}, err
		}
		if p.Sandbox == "" {
			p.Sandbox = ses.Sandbox
		}
	}
	sb, err := s.runner.Sandbox(ctx, account, p.Sandbox)
	if err != nil {
		return Turn{}, err
	}
	if p.Session != "" {
		if ses.Volume != sb.Spec.Volume.ID {
			return Turn{}, &sandbox.Problem{Class: sandbox.ErrConflict, Code: "session_elsewhere", Field: "session", Detail: fmt.Sprintf(
				"This session's memory is on the volume %s, but the sandbox has the volume %s. Use a sandbox on the session's volume, or begin a new session.",
				ses.Volume, sb.Spec.Volume.ID)}
		}
		if _, err := s.files(ctx, account, sb.ID); err != nil { // it must run
			return Turn{}, err
		}
	}
	t := newTurn(sandbox.Turn{ID: sandbox.NewID(sandbox.PrefixTurn), Account: account, Session: ses.ID, Sandbox: sb.ID, State: sandbox.TurnQueued,
		Text: p.Text, Model: p.Model, PermissionMode: p.PermissionMode, Author: p.Author, UUID: newUUID(), CreatedAt: time.Now()})
	var c *conv
	if p.Session != "" {
		c, err = s.conv(ctx, ses.ID)
	} else {
		ses.Account, ses.Sandbox, ses.Volume, ses.Title, ses.UUID = account, sb.ID, sb.Spec.Volume.ID, title(p.Text), newUUID()
		ses.PermissionMode, ses.CreatedAt, ses.UpdatedAt = defaultPermissionMode, t.CreatedAt, t.CreatedAt
		c = s.fresh(ses)
	}
	if err != nil {
		return Turn{}, err
	}
	defer s.release(c)
	if err := c.canMove(ctx, sb.ID); err != nil {
		return Turn{}, err
	}
	return c.enqueue(ctx, t, p.Session == "")
}

// canMove reports why the session can't go on in a sandbox: its process lives in another one, and can't be ended there now.
func (c *conv) canMove(ctx context.Context, to sandbox.ID) error {
	c.mu.Lock()
	p := c.proc
	c.mu.Unlock()
	if p == nil || p.Sandbox == to || !c.sleeps(ctx, p) {
		return nil
	}
	return &sandbox.Problem{Class: sandbox.ErrState, Code: "session_suspended", Field: "session", Detail: fmt.Sprintf(
		"Claude's process of this session is in the sandbox %s, which is suspended. Resume or terminate that one first.", p.Sandbox)}
}

// fresh returns the conv of a session that isn't recorded yet.
func (s *Sessions) fresh(ses sandbox.Session) *conv {
	c := s.attach(ses.ID)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ses, c.next, c.loaded = ses, 1, true
	c.hub.begin(0)
	return c
}

// enqueue records a turn that waits. If it is the next, it returns when it has begun.
func (c *conv) enqueue(ctx context.Context, t *turn, fresh bool) (Turn, error) {
	// A client that leaves at this very moment must not leave a turn half begun.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit+settleLimit)
	defer cancel()
	c.mu.Lock()
	if len(c.queue) >= maxQueue {
		c.mu.Unlock()
		return Turn{}, &sandbox.Problem{Class: sandbox.ErrQuota, Code: "queue_full", Field: "session", Detail: fmt.Sprintf(
			"%d prompts of this session wait already. Wait for one to begin, or cancel one.", maxQueue)}
	}
	after := c.next - 1
	t.waiting = c.turn == nil && len(c.queue) == 0
	w := sandbox.SessionWrite{NewTurns: []sandbox.Turn{t.Turn}}
	if fresh {
		ses := c.ses
		w.New = &ses
	}
	if !t.waiting {
		w.Events = []sandbox.SessionEvent{queueEvent(changeAdded, t.Turn, t.Author)}
	}
	if err := c.commit(ctx, w); err != nil {
		c.mu.Unlock()
		return Turn{}, err
	}
	c.queue = append(c.queue, t)
	c.poke()
	c.mu.Unlock()
	if !t.waiting {
		c.mu.Lock()
		defer c.mu.Unlock()
		return Turn{Session: c.session(), Turn: t.Turn, Queued: true, After: after}, nil
	}
	select {
	case <-t.begun:
	case <-c.s.done: // the next server begins it
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t.waiting = false
	out := Turn{Session: c.session(), Turn: t.Turn, After: after, Queued: t.State == sandbox.TurnQueued}
	if t.err != nil {
		return out, t.err
	}
	if t.State == sandbox.TurnCancelled {
		return out, cancelled()
	}
	if t.Run != "" {
		run, err := c.s.store.Run(ctx, "", t.Run)
		if err != nil {
			return out, err
		}
		out.Run = run
	}
	return out, nil
}

func cancelled() error {
	return &sandbox.Problem{Class: sandbox.ErrConflict, Code: "turn_cancelled", Detail: "The turn was cancelled before it began."}
}

// session is the session with the number of its last event. The caller holds mu.
func (c *conv) session() sandbox.Session {
	ses := c.ses
	ses.LastSeq = c.next - 1
	return ses
}

// EditTurn changes the text of a turn that waits.
func (s *Sessions) EditTurn(ctx context.Context, account, session, id, text, by string) (sandbox.Turn, error) {
	if err := checkText(text); err != nil {
		return sandbox.Turn{}, err
	}
	return s.changeQueue(ctx, account, session, id, func(t *sandbox.Turn, w *sandbox.SessionWrite) {
		t.Text = text
		w.Text = t
		w.Events = append(w.Events, queueEvent(changeEdited, *t, by))
	})
}

// CancelTurn takes a turn that waits out of the queue.
func (s *Sessions) CancelTurn(ctx context.Context, account, session, id, by string) (sandbox.Turn, error) {
	return s.changeQueue(ctx, account, session, id, func(t *sandbox.Turn, w *sandbox.SessionWrite) {
		t.State, t.EndedAt, t.Reason = sandbox.TurnCancelled, time.Now(), "It was cancelled before it began."
		w.Turns = append(w.Turns, *t)
		w.Events = append(w.Events, queueEvent(changeCancelled, *t, by))
	})
}

func (s *Sessions) changeQueue(ctx context.Context, account, session, id string, change func(*sandbox.Turn, *sandbox.SessionWrite)) (sandbox.Turn, error) {
	c, err := s.open(ctx, account, session)
	if err != nil {
		return sandbox.Turn{}, err
	}
	defer s.release(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.queue, func(t *turn) bool { return t.ID == id })
	if i < 0 {
		return sandbox.Turn{}, s.notQueued(ctx, session, id)
	}
	t := c.queue[i]
	row, w := t.Turn, sandbox.SessionWrite{}
	change(&row, &w)
	if err := c.commit(ctx, w); err != nil {
		return sandbox.Turn{}, err
	}
	t.Turn = row
	if row.State == sandbox.TurnCancelled {
		c.queue = slices.Delete(c.queue, i, i+1)
		close(t.begun)
		c.poke()
	}
	return row, nil
}

// Turn returns one turn of a session.
func (s *Sessions) Turn(ctx context.Context, account, session, id string) (sandbox.Turn, error) {
	if _, err := s.store.Session(ctx, account, session); err != nil {
		return sandbox.Turn{}, err
	}
	return s.store.Turn(ctx, session, id)
}

// notQueued says why a turn can't be changed.
func (s *Sessions) notQueued(ctx context.Context, session, id string) error {
	t, err := s.store.Turn(ctx, session, id)
	if err != nil {
		return err
	}
	if t.State == sandbox.TurnRunning {
		return &sandbox.Problem{Class: sandbox.ErrConflict, Code: "turn_running", Detail: "The turn runs already. Interrupt the session, or wait for its end."}
	}
	return &sandbox.Problem{Class: sandbox.ErrConflict, Code: "turn_ended", Detail: fmt.Sprintf("The turn has ended (%s).", t.State)}
}

// open returns the conv of a session of account, to be given back with release.
func (s *Sessions) open(ctx context.Context, account, session string) (*conv, error) {
	if err := s.waitReady(ctx); err != nil {
		return nil, err
	}
	if _, err := s.store.Session(ctx, account, session); err != nil {
		return nil, err
	}
	return s.conv(ctx, session)
}
