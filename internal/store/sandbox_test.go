package store_test

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

func TestEnsureVolume(t *testing.T) {
	t.Parallel()
	s := open(t)
	a, b := account(t, s, "a"), account(t, s, "b")
	first := must[sandbox.Volume](t)(s.EnsureVolume(t.Context(), a, "data"))
	again := must[sandbox.Volume](t)(s.EnsureVolume(t.Context(), a, "data"))
	other := must[sandbox.Volume](t)(s.EnsureVolume(t.Context(), b, "data"))
	if first != again || !sandbox.IsID(first.ID, sandbox.PrefixVolume) || first.Name != "data" {
		t.Errorf("%v, then %v", first, again)
	}
	if other.ID == first.ID {
		t.Error("two accounts share a volume")
	}
	_, err := s.EnsureVolume(t.Context(), "nobody", "data")
	wantClass(t, err, sandbox.ErrNotFound)
}

func TestAdmitRoundTrip(t *testing.T) {
	t.Parallel()
	s := open(t)
	acc := account(t, s, "a")
	want := admit(t, s, acc, func(sb *sandbox.Sandbox) {
		sb.CreatedAt = time.Now().UTC().Truncate(time.Microsecond)
		sb.Spec.Env = map[string]string{"A": "b"}
		sb.Spec.Labels = map[string]string{"team": "x", "env": "prod"}
		sb.Spec.CPU, sb.Spec.MemoryMiB, sb.Spec.DiskMiB = 1.5, 512, 1024
		sb.Spec.Volume = sandbox.Volume{ID: "vol_1", Name: "data"}
	})
	want.Version = 1
	got, err := s.Sandbox(t.Context(), acc, want.ID)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v\n%v", got, want, err)
	}
	_, err = s.Sandbox(t.Context(), account(t, s, "b"), want.ID)
	wantClass(t, err, sandbox.ErrNotFound)
	if _, err := s.Sandbox(t.Context(), "", want.ID); err != nil {
		t.Error(err)
	}
	wantClass(t, s.Admit(t.Context(), want), sandbox.ErrConflict)
	want.State = sandbox.Running
	wantClass(t, s.Admit(t.Context(), want), sandbox.ErrState)
	evs := must[[]sandbox.Event](t)(s.Events(t.Context(), acc, want.ID, 0, 0))
	if len(evs) != 1 || evs[0].Kind != "accepted" || evs[0].Account != acc || evs[0].At.IsZero() {
		t.Errorf("events are %+v", evs)
	}
}

// reach moves a fresh sandbox to state by allowed moves.
func reach(t *testing.T, s *store.Store, acc string, state sandbox.State) sandbox.Sandbox {
	t.Helper()
	paths := map[sandbox.State][]sandbox.State{
		sandbox.Creating:   {},
		sandbox.Running:    {sandbox.Running},
		sandbox.Suspending: {sandbox.Running, sandbox.Suspending},
		sandbox.Suspended:  {sandbox.Running, sandbox.Suspending, sandbox.Suspended},
		sandbox.Resuming:   {sandbox.Running, sandbox.Suspending, sandbox.Suspended, sandbox.Resuming},
		sandbox.Stopping:   {sandbox.Stopping},
		sandbox.Terminated: {sandbox.Running, sandbox.Stopping, sandbox.Terminated},
		sandbox.Error:      {sandbox.Stopping, sandbox.Error},
	}
	sb := admit(t, s, acc, nil)
	for _, next := range paths[state] {
		if _, err := s.Transition(t.Context(), sb.ID, sb.Run, next, nil); err != nil {
			t.Fatal(err)
		}
	}
	return must[sandbox.Sandbox](t)(s.Sandbox(t.Context(), acc, sb.ID))
}

func TestTransitionTable(t *testing.T) {
	t.Parallel()
	s := open(t)
	acc := account(t, s, "a")
	states := sandbox.States()
	suspended := time.Now().UTC().Truncate(time.Microsecond)
	for _, from := range states {
		for _, to := range states {
			before := reach(t, s, acc, from)
			events := len(must[[]sandbox.Event](t)(s.Events(t.Context(), acc, before.ID, 0, 0)))
			got, err := s.Transition(t.Context(), before.ID, before.Run, to, func(sb *sandbox.Sandbox) {
				sb.Reason, sb.Fault, sb.Handle = "because", true, []byte{1, 0, 2}
				sb.SuspendedAt, sb.SuspendedUntil = suspended, suspended.Add(time.Hour)
				sb.ID, sb.Account, sb.Run, sb.State = "sbx_other", "other", "9", "nonsense" // can't be changed
			})
			stored := must[sandbox.Sandbox](t)(s.Sandbox(t.Context(), acc, before.ID))
			if !reflect.DeepEqual(got, stored) {
				t.Errorf("%s to %s: returned %+v\nstored %+v", from, to, got, stored)
			}
			evs := must[[]sandbox.Event](t)(s.Events(t.Context(), acc, before.ID, 0, 0))
			if from.To(to) != nil {
				wantClass(t, err, sandbox.ErrState)
				if !reflect.DeepEqual(stored, before) || len(evs) != events {
					t.Errorf("%s to %s was refused, but something changed", from, to)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s to %s: %v", from, to, err)
			}
			if stored.State != to || stored.Version != before.Version+1 || stored.Reason != "because" || !stored.Fault || string(stored.Handle) != "\x01\x00\x02" ||
				!stored.SuspendedAt.Equal(suspended) || !stored.SuspendedUntil.Equal(suspended.Add(time.Hour)) {
				t.Errorf("%s to %s: %+v", from, to, stored)
			}
			if last := evs[len(evs)-1]; len(evs) != events+1 || last.Kind != string(to) || last.Text != "because" {
				t.Errorf("%s to %s: the events are %+v", from, to, evs)
			}
			if to.Terminal() == stored.EndedAt.IsZero() || (to == sandbox.Running && stored.StartedAt.IsZero()) {
				t.Errorf("%s to %s: started %v, ended %v", from, to, stored.StartedAt, stored.EndedAt)
			}
		}
	}
}

func TestTransitionTellsWithoutReason(t *testing.T) {
	t.Parallel()
	s := open(t)
	acc := account(t, s, "a")
	for _, to := range []sandbox.State{sandbox.Terminated, sandbox.Error} {
		sb := reach(t, s, acc, to)
		for _, ev := range must[[]sandbox.Event](t)(s.Events(t.Context(), acc, sb.ID, 0, 0)) {
			if ev.Text == "" {
				t.Errorf("event %s says nothing", ev.Kind)
			}
		}
	}
}

func TestTransitionOfAnotherRun(t *testing.T) {
	t.Parallel()
	s := open(t)
	sb := admit(t, s, account(t, s, "a"), nil)
	_, err := s.Transition(t.Context(), sb.ID, "2", sandbox.Running, nil)
	wantClass(t, err, sandbox.ErrConflict)
	_, err = s.Transition(t.Context(), "sbx_none", "1", sandbox.Running, nil)
	wantClass(t, err, sandbox.ErrNotFound)
}

func TestAmend(t *testing.T) {
	t.Parallel()
	s := open(t)
	acc := account(t, s, "a")
	sb := reach(t, s, acc, sandbox.Stopping)
	got, err := s.Amend(t.Context(), sb.ID, sb.Run, func(sb *sandbox.Sandbox) { sb.Reason, sb.State = "stuck", sandbox.Running })
	if err != nil || got.Reason != "stuck" || got.State != sandbox.Stopping || got.Version != sb.Version+1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// Of many callers that make the same move exactly one succeeds, while readers see whole rows.
func TestTransitionConcurrent(t *testing.T) {
	t.Parallel()
	s := open(t)
	acc := account(t, s, "a")
	sb := admit(t, s, acc, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var readers, movers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				got, err := s.Sandbox(t.Context(), acc, sb.ID)
				if err != nil || (got.State == sandbox.Running) != (got.Reason == "won") {
					t.Errorf("read %+v, %v", got, err)
					return
				}
			}
		})
	}
	var won atomic.Int32
	for range 16 {
		movers.Go(func() {
			if _, err := s.Transition(t.Context(), sb.ID, sb.Run, sandbox.Running, func(sb *sandbox.Sandbox) { sb.Reason = "won" }); err == nil {
				won.Add(1)
			}
		})
	}
	movers.Wait()
	cancel()
	readers.Wait()
	if won.Load() != 1 {
		t.Errorf("%d callers won", won.Load())
	}
}

func TestSandboxesFilterAndPage(t *testing.T) {
	t.Parallel()
	s := open(t)
	a, b := account(t, s, "a"), account(t, s, "b")
	var ids []sandbox.ID
	for i := range 7 {
		sb := admit(t, s, a, func(sb *sandbox.Sandbox) {
			sb.Spec.Labels = map[string]string{"n": fmt.Sprint(i % 2), "all": "yes"}
		})
		ids = append(ids, sb.ID)
		if i < 3 {
			must[sandbox.Sandbox](t)(s.Transition(t.Context(), sb.ID, sb.Run, sandbox.Running, nil))
		}
	}
	slices.Reverse(ids) // newest first
	other := admit(t, s, b, nil)
	for name, c := range map[string]struct {
		filter store.Filter
		want   []sandbox.ID
	}{
		"account":        {store.Filter{Account: a}, ids},
		"other account":  {store.Filter{Account: b}, []sandbox.ID{other.ID}},
		"everything":     {store.Filter{}, append([]sandbox.ID{other.ID}, ids...)},
		"state":          {store.Filter{Account: a, States: []sandbox.State{sandbox.Running}}, ids[4:]},
		"states":         {store.Filter{Account: a, States: []sandbox.State{sandbox.Running, sandbox.Creating}}, ids},
		"label":          {store.Filter{Account: a, Labels: map[string]string{"n": "1"}}, []sandbox.ID{ids[1], ids[3], ids[5]}},
		"labels":         {store.Filter{Account: a, Labels: map[string]string{"n": "1", "all": "yes"}}, []sandbox.ID{ids[1], ids[3], ids[5]}},
		"label not set":  {store.Filter{Account: a, Labels: map[string]string{"n": "1", "all": "no"}}, nil},
		"not SQL":        {store.Filter{Account: a, Labels: map[string]string{"' OR 1=1 --": "'"}}, nil},
		"foreign cursor": {store.Filter{Account: b, Cursor: string(ids[0])}, nil},
	} {
		for _, limit := range []int{0, 1, 2, 7, 100000} {
			var got []sandbox.ID
			f := c.filter
			f.Limit = limit
			for {
				page, next, err := s.Sandboxes(t.Context(), f)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if limit > 0 && len(page) > limit {
					t.Errorf("%s: %d on a page of %d", name, len(page), limit)
				}
				for _, sb := range page {
					got = append(got, sb.ID)
				}
				if next == "" {
					break
				}
				f.Cursor = next
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s by %d: got %v, want %v", name, limit, got, c.want)
			}
		}
	}
	_, _, err := s.Sandboxes(t.Context(), store.Filter{Cursor: "rubbish"})
	wantClass(t, err, sandbox.ErrInvalid)
}

func TestDue(t *testing.T) {
	t.Parallel()
	s := open(t)
	acc := account(t, s, "a")
	now := time.Now()
	expiring := func(in time.Duration, path ...sandbox.State) sandbox.ID {
		sb := admit(t, s, acc, func(sb *sandbox.Sandbox) { sb.ExpiresAt = now.Add(in) })
		for _, next := range path {
			must[sandbox.Sandbox](t)(s.Transition(t.Context(), sb.ID, sb.Run, next, nil))
		}
		return sb.ID
	}
	stopping := expiring(time.Hour, sandbox.Stopping)
	expired := expiring(-time.Minute, sandbox.Running)
	stuck := expiring(-time.Hour)
	expiring(time.Hour)
	expiring(time.Hour, sandbox.Running)
	expiring(-time.Hour, sandbox.Stopping, sandbox.Terminated)
	suspended := func(until time.Duration, path ...sandbox.State) sandbox.ID {
		id := expiring(-2*time.Minute, append([]sandbox.State{sandbox.Running, sandbox.Suspending}, path...)...)
		must[sandbox.Sandbox](t)(s.Amend(t.Context(), id, "1", func(sb *sandbox.Sandbox) { sb.SuspendedUntil = now.Add(until) }))
		return id
	}
	suspended(time.Minute, sandbox.Suspended) // its deadline doesn't count meanwhile
	suspended(-time.Minute)
	suspended(-time.Minute, sandbox.Suspended, sandbox.Resuming)
	forgotten := suspended(-time.Minute, sandbox.Suspended)
	for limit, want := range map[int][]sandbox.ID{0: {stuck, forgotten, expired, stopping}, 2: {stuck, forgotten}} {
		var got []sandbox.ID
		for _, sb := range must[[]sandbox.Sandbox](t)(s.Due(t.Context(), now, limit)) {
			got = append(got, sb.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("due are %v, want %v", got, want)
		}
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	s := open(t)
	a, b := account(t, s, "a"), account(t, s, "b")
	one, two, foreign := admit(t, s, a, nil), admit(t, s, a, nil), admit(t, s, b, nil)
	seq := must[int64](t)(s.AppendEvent(t.Context(), sandbox.Event{Account: a, Sandbox: one.ID, Kind: "guest", Text: "The helper answers."}))
	kinds := func(account string, sb sandbox.ID, after int64, limit int) (got []string) {
		last := after
		for _, ev := range must[[]sandbox.Event](t)(s.Events(t.Context(), account, sb, after, limit)) {
			if ev.Seq <= last {
				t.Errorf("number %d comes after %d", ev.Seq, last)
			}
			last = ev.Seq
			got = append(got, ev.Kind)
		}
		return got
	}
	for name, c := range map[string]struct{ got, want []string }{
		"account":       {kinds(a, "", 0, 0), []string{"accepted", "accepted", "guest"}},
		"limit":         {kinds(a, "", 0, 1), []string{"accepted"}},
		"one":           {kinds(a, one.ID, 0, 0), []string{"accepted", "guest"}},
		"two":           {kinds(a, two.ID, 0, 0), []string{"accepted"}},
		"after":         {kinds(a, "", seq-1, 0), []string{"guest"}},
		"after all":     {kinds(a, "", seq, 0), nil},
		"not ours":      {kinds(a, foreign.ID, 0, 0), nil},
		"every account": {kinds("", "", 0, 0), []string{"accepted", "accepted", "accepted", "guest"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	_, err := s.AppendEvent(t.Context(), sandbox.Event{Account: a, Sandbox: "sbx_none", Kind: "x"})
	wantClass(t, err, sandbox.ErrNotFound)
}
