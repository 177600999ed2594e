package local_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/engine/local"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// TestNetworkUpdates cuts a device and connects it again while a connection is open, also by a later server.
func TestNetworkUpdates(t *testing.T) {
	w := inWorld(t)
	cfg := config(t, workDir(t))
	e := open(t, cfg)
	defer func() { _ = e.Close() }() // the one that is open then
	ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	if _, err := e.Create(t.Context(), ref, openSpec()); err != nil {
		t.Fatal(err)
	}
	defer func() { destroy(t, e, ref) }()
	update := func(mode sandbox.NetworkMode) {
		t.Helper()
		if err := e.UpdateNetwork(t.Context(), ref, sandbox.Network{Mode: mode}); err != nil {
			t.Fatal(err)
		}
	}

	rx, tx, err := e.NetworkUsage(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if out, code := sh(t, e, ref, guest.UserAgent, "timeout 20 bash -c 'exec 3<>/dev/tcp/"+public4+"/80 && echo >&3 && cat <&3 | wc -c'"); code != 0 || len(strings.TrimSpace(out)) != 7 {
		t.Fatalf("%d %q", code, out)
	}
	rx2, tx2, err := e.NetworkUsage(t.Context(), ref)
	if err != nil || rx2-rx < 1<<20 || rx2-rx > 2<<20 || tx2 <= tx || tx2-tx > 1<<19 {
		t.Errorf("1 MiB counts as %d received, %d sent, %v", rx2-rx, tx2-tx, err)
	}

	if out, code := sh(t, e, ref, guest.UserAgent, `nohup bash -c 'exec 3<>/dev/tcp/`+public4+`/7777; while read -r line <&3; do echo "back $line" >&3; done' >/dev/null 2>&1 &`); code != 0 {
		t.Fatal(out)
	}
	live := <-w.conns
	defer live.Close()
	say := func(text string) {
		t.Helper()
		if _, err := fmt.Fprintln(live, text); err != nil {
			t.Fatal(err)
		}
	}
	if say("one"); reads(live, 10*time.Second) != "back one\n" {
		t.Fatal("the connection doesn't work")
	}
	for _, mode := range []sandbox.NetworkMode{sandbox.NetworkNone, sandbox.NetworkEgress} {
		update(mode)
		rx, _, err := e.NetworkUsage(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if say("two" + strings.Repeat(".", 1000)); reads(live, time.Second) != "" {
			t.Errorf("an open connection goes on with mode %s", mode)
		}
		if after, _, err := e.NetworkUsage(t.Context(), ref); err != nil || after-rx > 900 { // the host itself may say something
			t.Errorf("%d bytes arrive with mode %s, %v", after-rx, mode, err)
		}
		if out, code := sh(t, e, ref, guest.UserRoot, "bash -c 'echo secret > /dev/udp/"+public4+"/53'"); code != 0 {
			t.Error(out)
		}
		if out, code := sh(t, e, ref, guest.UserRoot, strings.ReplaceAll(get(public4), "timeout 10", "timeout 1")); code == 0 {
			t.Errorf("a new connection with mode %s: %q", mode, out)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, cfg)
	if out, code := sh(t, e, ref, guest.UserRoot, strings.ReplaceAll(get(public4), "timeout 10", "timeout 1")); code == 0 {
		t.Errorf("a later server connected it: %q", out)
	}
	update(sandbox.NetworkOpen)
	if got := reads(live, time.Minute); !strings.HasPrefix(got, "back two.") {
		t.Errorf("connected again, the connection says %q", got)
	}
	if out, code := sh(t, e, ref, guest.UserAgent, get(public4)); code != 0 {
		t.Errorf("connected again: %d %q", code, out)
	}
	for _, n := range w.settled(t, lastPacket(t, e, ref)) {
		if n.to.Port() == 53 {
			t.Errorf("while it was cut off it reached %s", n.to)
		}
	}

	plain := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	if _, err := e.Create(t.Context(), plain, spec()); err != nil {
		t.Fatal(err)
	}
	defer func() { destroy(t, e, plain) }()
	if out, code := sh(t, e, plain, guest.UserRoot, get(public4)); code == 0 {
		t.Errorf("a sandbox without a device reached %q", out)
	}
	err = e.UpdateNetwork(t.Context(), plain, sandbox.Network{Mode: sandbox.NetworkOpen})
	if p, ok := errors.AsType[*sandbox.Problem](err); !ok || p.Code != "network_needs_restart" || !errors.Is(err, sandbox.ErrUnsupported) {
		t.Errorf("a device for a sandbox without: %v", err)
	}
	if err := e.UpdateNetwork(t.Context(), plain, sandbox.Network{Mode: sandbox.NetworkEgress}); err != nil {
		t.Error(err)
	}
	if rx, tx, err := e.NetworkUsage(t.Context(), plain); rx != 0 || tx != 0 || err != nil {
		t.Errorf("without a device: %d, %d, %v", rx, tx, err)
	}
	unknown := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
	if err := e.UpdateNetwork(t.Context(), unknown, sandbox.Network{Mode: sandbox.NetworkNone}); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("nobody's network: %v", err)
	}
}

// TestNetworkLeavesNothing makes and destroys sandboxes, some of which have died before.
func TestNetworkLeavesNothing(t *testing.T) {
	inWorld(t)
	e, cfg := openEngine(t)
	before := remains(t)
	for i := range 20 {
		ref := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}
		if _, err := e.Create(t.Context(), ref, openSpec()); err != nil {
			t.Fatal(err)
		}
		if remains(t) == before {
			t.Fatal("nothing of it is to be seen")
		}
		if i%4 == 0 {
			killRuntime(t, cfg.Dir, ref, "runsc-sandbox")
		}
		if i%8 == 0 { // nobody destroys it, but somebody looks
			awaitGone(t, e, ref)
			if after := remains(t); after != before {
				t.Errorf("a dead sandbox leaves\n%s", changes(before, after))
			}
		}
		destroy(t, e, ref)
		if after := remains(t); after != before {
			t.Fatalf("sandbox %d left\n%s", i, changes(before, after))
		}
	}
}

// awaitGone looks until the run is dead and its device, which goes with its namespace, is gone.
func awaitGone(t *testing.T, e *local.Engine, ref engine.Ref) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		for _, err := range e.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
		}
		links, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		tables, err := exec.CommandContext(t.Context(), "nft", "list", "tables").Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(tables) == 0 && !slices.ContainsFunc(links, func(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Alias, string(ref.ID)) }) {
			return
		}
	}
	t.Fatalf("%s is still there", ref.ID)
}

// TestNetworkKilledServer kills a server that makes sandboxes with devices, at many moments.
func TestNetworkKilledServer(t *testing.T) {
	inWorld(t)
	if os.Getenv(creatorEnv) != "" {
		createForEver(t, openSpec())
		return
	}
	cfg := config(t, workDir(t))
	before := remains(t)
	for i := range 10 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestNetworkKilledServer$")
		cmd.Args[0] = "creator" // by the other name it would be gVisor
		cmd.Env = append(os.Environ(), creatorEnv+"="+cfg.Dir, guestEnv+"="+cfg.Guest, runtimeEnv+"="+cfg.Runtime)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it is about to begin
			t.Fatal(err)
		}
		<-time.After(time.Duration(i) * 30 * time.Millisecond) // the moment is the point of this test
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		e := open(t, cfg)
		for l, err := range e.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Destroy(t.Context(), l.Ref); err != nil {
				t.Errorf("killed after %d ms: %v", i*30, err)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if after := remains(t); after != before {
			t.Fatalf("a server killed after %d ms left\n%s", i*30, changes(before, after))
		}
	}
}

// TestNetworkOfTwoServers lets two servers on one host use the same addresses, and somebody delete all tables.
func TestNetworkOfTwoServers(t *testing.T) {
	w := inWorld(t)
	first, cfg := openEngine(t)
	second, _ := openEngine(t, cfg)
	before := remains(t)
	one, two := create(t, first, openSpec()), create(t, second, openSpec())
	a, _, _ := addressesOf(t, one)
	b, _, _ := addressesOf(t, two)
	if a == b {
		t.Fatalf("both have %s", a)
	}
	works := func(e engine.Engine, ref engine.Ref) {
		t.Helper()
		if out, code := sh(t, e, ref, guest.UserAgent, get(public4)); code != 0 || !strings.Contains(out, "served to "+hostPublic4) {
			t.Errorf("%d %q", code, out)
		}
	}
	works(first, one)
	works(second, two)
	// What the device counts is not proof: the host's own neighbour discovery is in it.
	datagrams := func() string {
		t.Helper()
		out, code := sh(t, second, two, guest.UserRoot, "grep ^Udp: /proc/net/snmp")
		if code != 0 || !strings.Contains(out, "NoPorts") {
			t.Fatalf("%d %q", code, out)
		}
		return out
	}
	received := datagrams()
	w.settled(t, lastPacket(t, first, one))
	attack := fmt.Sprintf("for a in %s %s %s 10.9.9.9; do bash -c \"echo attack > /dev/udp/$a/5000\"; done 2>/dev/null; true", b, hostPrivate4, hostPublic4)
	sh(t, first, one, guest.UserRoot, attack)
	if got := w.settled(t, lastPacket(t, first, one)); len(got) > 0 {
		t.Errorf("reached: %v", got)
	}
	if after := datagrams(); after != received {
		t.Errorf("the other server's sandbox received something:\n%s\n%s", received, after)
	}

	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		tables, err := c.ListTables()
		if err != nil {
			t.Fatal(err)
		}
		if len(tables) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("only %d tables came back", len(tables))
		}
	}
	works(first, one)
	works(second, two)
	sh(t, first, one, guest.UserRoot, attack)
	if got := w.settled(t, lastPacket(t, first, one)); slices.ContainsFunc(got, func(n note) bool { return n.to.Port() == 5000 }) {
		t.Errorf("reached after all tables were deleted: %v", got)
	}

	destroy(t, first, one)
	works(second, two)
	destroy(t, second, two)
	if after := remains(t); after != before {
		t.Errorf("left\n%s", changes(before, after))
	}
}

// TestNetworkNeedsForwarding refuses what can't work, and says what to do.
func TestNetworkNeedsForwarding(t *testing.T) {
	inWorld(t)
	const forward, forward6 = "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"
	defer func() {
		if err := errors.Join(write(forward, "1"), write(forward6, "1")); err != nil {
			t.Error(err)
		}
	}()
	found := func() (local.Level, string) {
		for _, f := range local.Examine(t.TempDir()) {
			if f.What == "network open" {
				return f.Level, f.Found
			}
		}
		return local.Fault, "nothing"
	}
	if level, text := found(); level != local.Fine || !strings.Contains(text, "IPv6 too") {
		t.Errorf("doctor says %v %q", level, text)
	}
	if out, err := exec.CommandContext(t.Context(), "nft", "add table ip fw; add chain ip fw FORWARD { type filter hook forward priority 0; policy drop; }").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if level, text := found(); level != local.Notable || !strings.Contains(text, "fw FORWARD") {
		t.Errorf("with a firewall doctor says %v %q", level, text)
	}
	if out, err := exec.CommandContext(t.Context(), "nft", "delete table ip fw").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}

	// Without IPv6 on the host there is none inside.
	if err := write(forward6, "0"); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, workDir(t))
	e := open(t, cfg)
	ref := create(t, e, openSpec())
	if out, code := sh(t, e, ref, guest.UserRoot, get(public4)+" && ! "+get(public6)+" && ! grep -v ' lo$' /proc/net/if_inet6"); code != 0 {
		t.Errorf("IPv4 only: %d %q", code, out)
	}
	destroy(t, e, ref)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	if err := write(forward, "0"); err != nil {
		t.Fatal(err)
	}
	if level, text := found(); level != local.Notable || !strings.Contains(text, "sysctl -w net.ipv4.ip_forward=1") {
		t.Errorf("doctor says %v %q", level, text)
	}
	e = open(t, cfg)
	defer func() { _ = e.Close() }() // nothing runs
	if slices.Contains(e.Capabilities().Networks, sandbox.NetworkOpen) {
		t.Error("mode open is offered")
	}
	_, err := e.Create(t.Context(), engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "1"}, openSpec())
	if p, ok := errors.AsType[*sandbox.Problem](err); !ok || p.Field != "network.mode" || !strings.Contains(p.Detail, "sysctl -w net.ipv4.ip_forward=1") {
		t.Errorf("refused with %v", err)
	}
}
