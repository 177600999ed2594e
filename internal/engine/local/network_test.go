package local_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func openSpec() sandbox.Spec {
	sp := spec()
	sp.Network.Mode = sandbox.NetworkOpen
	return sp
}

// get is a shell command that fetches a page.
func get(addr string, port int) string {
	return fmt.Sprintf(`timeout 10 bash -c 'exec 3<>/dev/tcp/%s/%d && printf "GET / HTTP/1.0\r\n\r\n" >&3 && head -n 3 <&3'`, addr, port)
}

// TestNetworkWalls climbs all walls around a sandbox with a network device, from inside as root.
func TestNetworkWalls(t *testing.T) {
	w := inWorld(t)
	e, _ := newEngine(t)
	if !strings.Contains(fmt.Sprint(e.Capabilities().Networks), "open") {
		_, err := e.Create(t.Context(), engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}, openSpec())
		skip(t, fmt.Sprint(err))
	}
	ref := create(t, e, openSpec())
	w.noted()
	for name, addr := range map[string]string{"IPv4": public4, "IPv6": public6, "a name": "some.example"} {
		out, code := sh(t, e, ref, guest.UserAgent, get(addr, 80))
		if code != 0 || !strings.Contains(out, "served to "+hostPublic4) && !strings.Contains(out, "served to ["+hostPublic6) {
			t.Errorf("the public internet by %s: %d %q", name, code, out)
		}
	}
	_ = netip.Addr{}
	_ = net.Dial
	_ = os.Getpid
	_ = exec.Command
	_ = filepath.Join
	_ = local.Name
	out, _ := sh(t, e, ref, guest.UserRoot, "cat /etc/resolv.conf; cat /proc/net/dev; cat /proc/net/route; cat /proc/net/if_inet6")
	t.Log(out, w.noted())
	t.Log(remains(t))
}
