package gateway

import (
	"context"
	"maps"
	"net/http"
	"sync"

	"github.com/sandlot-dev/sandlot/internal/netguard"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// builds are the policies of the builds under way. A build's sandbox is nobody's, so no record tells its policy.
type builds struct {
	mu     sync.Mutex
	policy map[sandbox.ID]Policy
}

// or returns a lookup that knows the builds, and asks next about everything else.
func (b *builds) or(next func(context.Context, sandbox.ID) (Policy, error)) func(context.Context, sandbox.ID) (Policy, error) {
	return func(ctx context.Context, id sandbox.ID) (Policy, error) {
		b.mu.Lock()
		p, ok := b.policy[id]
		b.mu.Unlock()
		if ok || next == nil {
			return p, nil
		}
		return next(ctx, id)
	}
}

// prefixBuild begins the IDs under which builds pass through the proxy.
const prefixBuild = "bld_"

// Build opens a way out for the commands of a build, by the policy n, until done is called. It is no way to the model. env are the variables
// by which programs find it.
func (g *Gateway) Build(n sandbox.Network) (h http.Handler, env map[string]string, done func()) {
	id := sandbox.ID(sandbox.NewID(prefixBuild))
	g.builds.mu.Lock()
	g.builds.policy[id] = Policy(n)
	g.builds.mu.Unlock()
	h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isProxyRequest(r) {
			writeError(w, http.StatusNotFound, "not_found_error", "a build can't reach the model")
			return
		}
		g.egress.serve(w, r, id, "")
	})
	env = g.Env(id)
	maps.DeleteFunc(env, func(name, _ string) bool { return name == "ANTHROPIC_API_KEY" || name == "ANTHROPIC_BASE_URL" })
	return h, env, func() {
		g.builds.mu.Lock()
		delete(g.builds.policy, id)
		g.builds.mu.Unlock()
		g.Forget(id)
	}
}

// CheckPolicy says what is wrong with an allow-list, as a Problem at network.allow.
func (g *Gateway) CheckPolicy(n sandbox.Network) error {
	return netguard.CheckAllow(n.Allow, g.egress.dialer.Allow...)
}
