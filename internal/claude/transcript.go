package claude

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode/utf16"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// The CLI keeps each conversation in a file of its own, in a directory that is named after the working directory. It refuses
// to resume a session whose file holds no message yet, and it refuses to begin one whose file is there. A turn may have ended
// before either, so what to ask for is found out by looking.

// transcript returns the file of the CLI's own session that the session's next process must resume; "" = it must begin it. If the
// conversation can't go on here the error is a Problem that says why.
func (s *Sessions) transcript(ctx context.Context, files Files, sb sandbox.Sandbox, ses sandbox.Session) (string, error) {
	projects := path.Join(configDir(sb.Spec.Workdir), "projects")
	dirs, err := files.ReadDir(ctx, projects)
	if err != nil && !isNotThere(err) {
		return "", fmt.Errorf("claude: look for the session's transcript: %w", err)
	}
	elsewhere := false
	for _, dir := range dirs {
		if dir.Type != "directory" {
			continue
		}
		name := path.Join(projects, dir.Name, ses.UUID+".jsonl")
		talk, err := hasMessage(ctx, files, name)
		switch {
		case isNotThere(err):
		case err != nil:
			return "", err
		case !isProjectDir(dir.Name, sb.Spec.Workdir):
			elsewhere = elsewhere || talk
		case talk:
			return name, nil
		default: // begun and broken off before the prompt was noted: in the CLI's way, and of no use
			if err := files.Remove(ctx, name); err != nil {
				return "", fmt.Errorf("claude: remove an empty transcript: %w", err)
			}
		}
	}
	if elsewhere {
		return "", &sandbox.Problem{Class: sandbox.ErrConflict, Code: "session_elsewhere", Field: "session", Detail: fmt.Sprintf(
			"This session ran in another working directory than %s, and Claude Code resumes it only there. Use a sandbox with that workdir, or begin a new session.",
			sb.Spec.Workdir)}
	}
	answered, err := s.answered(ctx, ses)
	if err != nil {
		return "", err
	}
	if answered {
		return "", &sandbox.Problem{Class: sandbox.ErrConflict, Code: "transcript_missing", Field: "session",
			Detail: "Claude Code's own transcript of this session is no longer on the volume, so it can't go on. Begin a new session."}
	}
	return "", nil
}

// maxTranscriptHead is how far into a transcript the first message is looked for. The first prompt may be long.
const maxTranscriptHead = 2*maxPrompt + 1<<20

// hasMessage reports whether a transcript holds a message of the user.
func hasMessage(ctx context.Context, files Files, name string) (_ bool, err error) {
	r, _, err := files.ReadFile(ctx, name)
	if err != nil {
		return false, fmt.Errorf("claude: read a transcript: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	lines := bufio.NewReader(io.LimitReader(r, maxTranscriptHead))
	for {
		// Only the beginning of a line counts; of a long one the pieces that follow match nothing.
		piece, err := lines.ReadSlice('\n')
		if bytes.Contains(piece, []byte(`"type":"user"`)) {
			return true, nil
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return false, fmt.Errorf("claude: read a transcript: %w", err)
		}
	}
}

// maxProjectDir is the length from which the CLI cuts the name of a project's directory and adds a digest.
const maxProjectDir = 200

// isProjectDir reports whether name is what the CLI calls the directory of workdir's transcripts.
func isProjectDir(name, workdir string) bool {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(workdir)) {
		if u < 128 && (u >= 'a' && u <= 'z' || u >= 'A' && u <= 'Z' || u >= '0' && u <= '9') {
			b.WriteByte(byte(u))
		} else {
			b.WriteByte('-')
		}
	}
	want := b.String()
	if len(want) > maxProjectDir {
		return strings.HasPrefix(name, want[:maxProjectDir]+"-")
	}
	return name == want
}

// answered reports whether the model has ever said something in this session, under the name that the CLI has for it now.
func (s *Sessions) answered(ctx context.Context, ses sandbox.Session) (bool, error) {
	var after int64
	for {
		evs, err := s.store.SessionEvents(ctx, ses.ID, after, pageEvents)
		if err != nil {
			return false, err
		}
		for _, ev := range evs {
			if ev.Kind == sandbox.SessionLine && prefixType(ev.Data) == "assistant" && answers(ev.Data, ses.UUID) {
				return true, nil
			}
			after = ev.Seq
		}
		if len(evs) < pageEvents {
			return false, nil
		}
	}
}

// answers reports whether a line is an answer of the model in the CLI's session uuid. What the CLI says by itself is none.
func answers(line []byte, uuid string) bool {
	var l struct {
		SessionID string `json:"session_id"`
		Message   struct {
			Model string `json:"model"`
		} `json:"message"`
	}
	return json.Unmarshal(line, &l) == nil && (l.SessionID == "" || l.SessionID == uuid) && l.Message.Model != "<synthetic>"
}
