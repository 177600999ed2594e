package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Change is what may change of a sandbox while it lives. What is nil stays.
type Change struct {
	Name    *string
	Network *sandbox.Network
	Timeout *time.Duration // from now on
}

// Update changes a sandbox. A network policy holds for every connection from then on, and for those of a network device that are
// open already.
func (m *Manager) Update(ctx context.Context, account string, id sandbox.ID, c Change) (sandbox.Sandbox, error) {
	sb, err := m.cfg.Store.Sandbox(ctx, account, id)
	if err != nil {
		return sb, err
	}
	if sb.State.Terminal() || sb.State == sandbox.Stopping {
		return sb, notRunning(sb)
	}
	e, ok := m.engines[sb.Engine]
	if !ok {
		return sb, m.unkept(sb)
	}
	if c.Name != nil {
		if err := checkName(*c.Name); err != nil {
			return sb, err
		}
	}
	if c.Timeout != nil {
		if err := m.checkTimeout(*c.Timeout, e.Capabilities()); err != nil {
			return sb, err
		}
	}
	if c.Network != nil {
		if err := m.changeNetwork(ctx, sb, e, c.Network); err != nil {
			return sb, err
		}
	}
	sb, err = m.cfg.Store.Amend(ctx, id, sb.Run, func(s *sandbox.Sandbox) {
		if c.Name != nil {
			s.Name = *c.Name
		}
		if c.Network != nil {
			s.Spec.Network = *c.Network
		}
		if c.Timeout != nil {
			s.ExpiresAt = time.Now().Add(*c.Timeout).UTC().Truncate(time.Microsecond)
			s.Spec.Timeout = s.ExpiresAt.Sub(s.CreatedAt).Round(time.Second)
		}
	})
	if err != nil {
		return sb, err
	}
	if c.Network != nil {
		if m.cfg.Gateway != nil {
			m.cfg.Gateway.PolicyChanged(ctx, id)
		}
		m.tell(ctx, sb, "network", "%s", policyText(sb.Spec.Network))
	}
	if c.Timeout != nil {
		m.tell(ctx, sb, "timeout", "It ends %s from now.", span(*c.Timeout))
		return sb, m.tellDeadline(ctx, sb)
	}
	return sb, nil
}

// changeNetwork fills in the defaults of n, checks it, and has the engine apply it where a network device is concerned.
func (m *Manager) changeNetwork(ctx context.Context, sb sandbox.Sandbox, e engine.Engine, n *sandbox.Network) error {
	if n.Mode == "" { // the default of a new sandbox would open what was closed
		return sandbox.Invalid("network.mode", "Say which mode the network is to have.")
	}
	policy, err := m.policy(*n, e.Capabilities())
	if err != nil {
		return err
	}
	*n = policy
	if sb.Spec.Network.Mode != sandbox.NetworkOpen && n.Mode != sandbox.NetworkOpen {
		return nil // the gateway asks for the policy at each connection
	}
	if sb.State != sandbox.Running {
		return notRunning(sb)
	}
	power, ok := engine.As[engine.NetworkUpdater](e)
	if !ok {
		return unsupported("network.mode", "The engine %s can't change the network of a running sandbox.", sb.Engine)
	}
	return power.UpdateNetwork(ctx, refOf(sb), *n)
}

func policyText(n sandbox.Network) string {
	switch {
	case n.Mode == sandbox.NetworkEgress && slices.Contains(n.Allow, "*"):
		return "From now on it may reach every public host."
	case n.Mode == sandbox.NetworkEgress && len(n.Allow) > 0:
		return fmt.Sprintf("From now on it may reach %s.", strings.Join(n.Allow, ", "))
	case n.Mode == sandbox.NetworkOpen:
		return "From now on it may reach every public address."
	default:
		return "From now on it may reach the model only."
	}
}

// tellDeadline tells the guest of a running sandbox when to end itself: it would end too early by what it was told before.
func (m *Manager) tellDeadline(ctx context.Context, sb sandbox.Sandbox) error {
	if sb.State != sandbox.Running {
		return nil // it is told when it is reached
	}
	k, c, err := m.live(ctx, sb.Account, sb.ID)
	if err != nil {
		return err
	}
	return refused(k.setup(ctx, c, sb))
}
