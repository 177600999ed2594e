package local

import (
	"errors"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestParseRange(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]idRange{
		"         0          0 4294967295\n": {perVolume: true},
		"0 1000 1\n":                         {single: true},
		"0 1000 1\n1 100000 65536\n":         {},
		"0 100000 65536\n":                   {},
	} {
		if got, err := parseRange(strings.NewReader(in)); err != nil || got != want {
			t.Errorf("%q gives %+v, %v", in, got, err)
		}
	}
	if _, err := parseRange(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was accepted")
	}
}

func TestParseSubID(t *testing.T) {
	t.Parallel()
	const file = "# a comment\nroot:100000:65536\nmira:165536:65536\nsmall:1:10\n1002:300000:65536\nbroken:x:y\n"
	for name, want := range map[string]uint64{"mira": 165536, "1002": 300000, "root": 100000, "small": 0, "broken": 0, "nobody": 0} {
		got, ok := parseSubID(strings.NewReader(file), []string{name})
		if got != want || ok != (want > 0) {
			t.Errorf("%s has %d, %v", name, got, ok)
		}
	}
}

func TestParseMounts(t *testing.T) {
	t.Parallel()
	v1, v2 := parseMounts(strings.NewReader(`proc /proc proc rw 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
short
`))
	if v1["memory"] != "/sys/fs/cgroup/memory" || v1["cpu"] != "/sys/fs/cgroup/cpu,cpuacct" || v2 != "/sys/fs/cgroup/unified" || len(v1) != 2 {
		t.Errorf("%v, %q", v1, v2)
	}
}

func TestParseCmdline(t *testing.T) {
	t.Parallel()
	const root = "/data/local/runsc"
	for name, c := range map[string]struct {
		argv []string
		want process
	}{
		"sentry":       {[]string{"runsc-sandbox", "--root=" + root, "boot", "sbx_1-1"}, process{id: "sbx_1-1", key: "sbx_1-1", role: roleSentry}},
		"gofer":        {[]string{"runsc-gofer", "--root=" + root, "gofer", "--bundle", "/data/local/sandboxes/sbx_1-1/bundle", "--x"}, process{id: "sbx_1-1", key: "sbx_1-1", role: roleGofer}},
		"another root": {[]string{"runsc-sandbox", "--root=/elsewhere", "boot", "sbx_1-1"}, process{}},
		"no bundle":    {[]string{"runsc-gofer", "--root=" + root, "gofer", "--bundle"}, process{}},
		"not gVisor":   {[]string{"vim", "--root=" + root, "sbx_1-1"}, process{}},
		"a zombie":     {[]string{""}, process{}},
	} {
		got, ok := parseCmdline([]byte(strings.Join(c.argv, "\x00")+"\x00"), root)
		if got != c.want || ok != (c.want.key != "") {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
}

// Keys become paths and names of processes, so nothing but our own IDs may become one.
func TestKeys(t *testing.T) {
	t.Parallel()
	good := engine.Ref{ID: sandbox.ID(sandbox.NewID(sandbox.PrefixSandbox)), Run: "01ABC"}
	k, err := key(good)
	if err != nil {
		t.Fatal(err)
	}
	if back, ok := parseKey(k); !ok || back.ID != good.ID || back.Run != good.Run {
		t.Errorf("%q gives %+v, %v", k, back, ok)
	}
	for _, bad := range []engine.Ref{{}, {ID: good.ID}, {ID: "../../etc", Run: "1"}, {ID: good.ID, Run: "../1"}, {ID: good.ID, Run: "a-b"}, {ID: "vol_" + good.ID[4:], Run: "1"}} {
		if k, err := key(bad); err == nil {
			t.Errorf("%+v became %q", bad, k)
		}
	}
	for _, bad := range []string{"", "-", "x", k + "-more", "sbx_-1"} {
		if ref, ok := parseKey(bad); ok {
			t.Errorf("%q became %+v", bad, ref)
		}
	}
}

// What a host lacks is said with what to do.
func TestHostProblemsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"fork/exec: operation not permitted":   "privileged",
		"mkdir: no space left on device":       "disk",
		"pidfd_open: function not implemented": "Linux 5.6",
	} {
		p, ok := errors.AsType[*sandbox.Problem](explain(errors.New(text)))
		if !ok || !strings.Contains(p.Detail, want) || !errors.Is(p, sandbox.ErrUnavailable) {
			t.Errorf("%s: %v", text, p)
		}
	}
	if err := errors.New("other"); !errors.Is(explain(err), err) {
		t.Error("another error was changed")
	}
	p, ok := errors.AsType[*sandbox.Problem](namespaceError(errors.New("operation not permitted")))
	if !ok || !strings.Contains(p.Detail, "root") || !errors.Is(p, sandbox.ErrUnsupported) {
		t.Errorf("no user namespace: %v", p)
	}
}

func TestExamine(t *testing.T) {
	t.Parallel()
	found := map[string]Level{}
	for _, f := range Examine(t.TempDir()) {
		if f.Found == "" {
			t.Errorf("%s says nothing", f.What)
		}
		found[f.What] = f.Level
	}
	for _, what := range []string{"users", "limits", "disk", "GPU"} {
		if level, ok := found[what]; !ok || level == Fault {
			t.Errorf("%s: %v, %v", what, level, ok)
		}
	}
}
