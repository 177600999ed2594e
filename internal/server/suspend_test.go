package server_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	ctx := t.Context()
	sb := create(t, s)
	suspended, err := s.Suspend(ctx, sb.ID)
	if err != nil || suspended.State != "suspended" || suspended.SuspendedAt == nil || suspended.SuspendedUntil == nil {
		t.Fatalf("%+v, %v", suspended, err)
	}
	if again, err := s.Suspend(ctx, sb.ID); err != nil || again.State != "suspended" {
		t.Errorf("suspend again: %+v, %v", again, err)
	}
	for name, try := range map[string]func() error{
		"exec":  func() error { _, err := s.ExecWait(ctx, sb.ID, api.Exec{Argv: []string{"true"}}); return err },
		"read":  func() error { _, err := s.ReadFile(ctx, sb.ID, "/etc/hostname"); return err },
		"write": func() error { _, err := s.WriteFile(ctx, sb.ID, "/tmp/x", strings.NewReader("")); return err },
		"prompt": func() (end error) {
			for _, err := range s.Prompt(ctx, sb.ID, api.Prompt{Prompt: "Hi"}) {
				end = err
			}
			return end
		},
	} {
		if p := problem(t, try()); p.Status != http.StatusConflict || p.Code != "sandbox_suspended" || !strings.Contains(p.Detail, "Resume it first") {
			t.Errorf("%s: %+v", name, p)
		}
	}
	for state, want := range map[string]int{"suspended": 1, "running": 0, "suspending": 0, "resuming": 0} {
		if list, err := s.Sandboxes(ctx, client.Filter{States: []string{state}}); err != nil || len(list.Sandboxes) != want {
			t.Errorf("%s are %+v, %v", state, list, err)
		}
	}
	back, err := s.Resume(ctx, sb.ID)
	if err != nil || back.State != "running" || back.SuspendedAt != nil || back.SuspendedUntil != nil || !back.ExpiresAt.After(sb.ExpiresAt) {
		t.Fatalf("%+v, %v", back, err)
	}
	if run, err := s.ExecWait(ctx, sb.ID, api.Exec{Argv: []string{"echo", "back"}}); err != nil || run.Stdout != "back\n" {
		t.Errorf("%+v, %v", run, err)
	}
	if _, err := s.Terminate(ctx, sb.ID); err != nil {
		t.Error(err)
	}
	for _, err := range []error{second(s.Suspend(ctx, sb.ID)), second(s.Resume(ctx, sb.ID))} {
		if client.Code(err) != "sandbox_not_running" {
			t.Errorf("after the end: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
