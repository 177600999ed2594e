package e2e

import (
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/api"
)

// TestGuestTakenOver has root of sandboxes put other things in the place of the helper's socket, and starts the server anew, which then can't
// reach it. That harms nobody else, keeps nobody waiting, and the sandbox can be ended.
func TestGuestTakenOver(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	neighbour := create(t, s, api.CreateSandbox{})
	var taken []string
	for attack, script := range map[string]string{
		"a FIFO":    "rm guest.sock && mkfifo guest.sock",
		"a link":    "rm guest.sock && ln -s /proc/self/fd/0 guest.sock",
		"directory": "rm guest.sock && mkdir guest.sock",
		"nothing":   "rm guest.sock",
	} {
		sb := create(t, s, api.CreateSandbox{Name: attack})
		run, err := s.ExecWait(within(t), sb.ID, api.Exec{User: "root", Argv: []string{"sh", "-c", "cd /run/sandlot/socket && " + script}})
		if err != nil || run.ExitCode == nil || *run.ExitCode != 0 {
			t.Fatalf("%s: %+v, %v", attack, run, err)
		}
		taken = append(taken, sb.ID)
	}
	s.kill(t)
	began := time.Now()
	s = start(t, options{data: s.data})
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the server took %v to be ready", took)
	}
	if got := say(t, s, neighbour.ID, "echo alive"); got != "alive\n" {
		t.Errorf("the neighbour says %q", got)
	}
	for _, id := range taken {
		began := time.Now()
		if ended, err := s.Terminate(within(t), id); err != nil || ended.EndedAt == nil {
			t.Errorf("ending it: %+v, %v", ended, err)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("ending it took %v", took)
		}
	}
	if _, err := s.Terminate(within(t), neighbour.ID); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, s.data)
}
