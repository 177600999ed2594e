package lifecycle_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestUpdate changes one thing after the other. What is refused, or not named, stays as it was.
func TestUpdate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(t, nil)
	sb := r.running(t)
	ptr := func(s string) *string { return &s }
	long, name := 1000*time.Hour, "renamed"
	for _, tt := range []struct {
		what  string
		do    lifecycle.Change
		field string // of the refusal; "" for none
		mode  sandbox.NetworkMode
		allow []string
	}{
		{"nothing", lifecycle.Change{}, "", sb.Spec.Network.Mode, sb.Spec.Network.Allow},
		{"the name", lifecycle.Change{Name: ptr(name)}, "", sb.Spec.Network.Mode, sb.Spec.Network.Allow},
		{"closed", lifecycle.Change{Network: &sandbox.Network{Mode: sandbox.NetworkNone}}, "", sandbox.NetworkNone, nil},
		{"no mode", lifecycle.Change{Network: &sandbox.Network{}}, "network.mode", sandbox.NetworkNone, nil},
		{"a list without a mode", lifecycle.Change{Network: &sandbox.Network{Allow: []string{"a.example"}}}, "network.mode", sandbox.NetworkNone, nil},
		{"too long", lifecycle.Change{Timeout: &long}, "timeout_s", sandbox.NetworkNone, nil},
		{"some", lifecycle.Change{Network: &sandbox.Network{Mode: sandbox.NetworkEgress, Allow: []string{"a.example"}}}, "", sandbox.NetworkEgress, []string{"a.example"}},
	} {
		_, err := r.m.Update(within(t), r.account, sb.ID, tt.do)
		var p *sandbox.Problem
		if tt.field != "" && (!errors.As(err, &p) || p.Field != tt.field) || tt.field == "" && err != nil {
			t.Errorf("%s: %v, want a refusal of %q", tt.what, err, tt.field)
		}
		now, err := r.m.Sandbox(within(t), r.account, sb.ID)
		if err != nil || now.Spec.Network.Mode != tt.mode || !slices.Equal(now.Spec.Network.Allow, tt.allow) {
			t.Errorf("%s: the network is %+v, %v; want %s %v", tt.what, now.Spec.Network, err, tt.mode, tt.allow)
		}
		if tt.what != "nothing" && now.Name != name {
			t.Errorf("%s: the name is %q", tt.what, now.Name)
		}
	}
}
