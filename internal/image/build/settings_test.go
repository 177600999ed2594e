package build_test

import (
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
)

// TestSettings compares what commands make of an image's settings with what Docker documents.
func TestSettings(t *testing.T) {
	base := image.Settings{Env: []string{"PATH=/base", "LANG=C"}, User: "agent", Workdir: "/srv", Cmd: []string{"basecmd"},
		Entrypoint: []string{"baseentry"}, Labels: map[string]string{"base": "yes"}, Ports: []string{"22/tcp"}, Volumes: []string{"/data"}}
	for name, tc := range map[string]struct {
		commands []string
		args     map[string]string
		change   func(*image.Settings)
	}{
		"ENV forms":             {[]string{`ENV A=1 B="two words" C='$A' D=x\ y`, "ENV E  rest of $LANG line"}, nil, env("A=1", "B=two words", "C=$A", "D=x y", "E=rest of C line")},
		"ENV replaces in place": {[]string{"ENV PATH=/new:$PATH"}, nil, func(s *image.Settings) { s.Env = []string{"PATH=/new:/base", "LANG=C"} }},
		"ENV sees what was":     {[]string{"ENV abc=hello", "ENV abc=bye def=$abc", "ENV ghi=$abc"}, nil, env("abc=bye", "def=hello", "ghi=bye")},
		"ENV modifiers": {[]string{"ENV S=set N=", "ENV A=${S:-d} B=${U:-d} C=${N:-d} D=${N-d} E=${S:+alt} F=${U:+alt} G=${N+alt} H=\\$S I=\\${S} J=a${S}b"}, nil,
			env("S=set", "N=", "A=set", "B=d", "C=d", "D=", "E=alt", "F=", "G=alt", "H=$S", "I=${S}", "J=asetb")},
		"ENV patterns": {[]string{"ENV V=foo.tar.gz", "ENV A=${V%.*} B=${V%%.*} C=${V#*.} D=${V##*.} E=${V/o/0} F=${V//o/0}"}, nil,
			env("V=foo.tar.gz", "A=foo.tar", "B=foo", "C=tar.gz", "D=gz", "E=f0o.tar.gz", "F=f00.tar.gz")},
		"ENV escape token":  {[]string{"# escape=`", "ENV A=`$LANG B=c:\\dir"}, nil, env("A=$LANG", `B=c:\dir`)},
		"ENV name expanded": {[]string{"ENV $LANG=x"}, nil, env("C=x")},
		"ARG default":       {[]string{"ARG V=1", "ENV A=$V"}, nil, env("A=1")},
		"ARG given":         {[]string{"ARG V=1", "ENV A=$V"}, map[string]string{"V": "2"}, env("A=2")},
		"ARG given nothing": {[]string{"ARG V=1", "ENV A=${V:-none}"}, map[string]string{"V": ""}, env("A=none")},
		"ARG from above":    {[]string{"ENV A=${V:-early}", "ARG V=1", "ARG W=w$V X", "ENV B=$V$W$X"}, nil, env("A=early", "B=1w1")},
		"ARG not declared":  {[]string{"ENV A=$V"}, map[string]string{"V": "2"}, env("A=")},
		"ENV over ARG":      {[]string{"ARG V=1", "ENV V=2", "ENV A=$V"}, nil, env("V=2", "A=2")},
		"ARG over ENV":      {[]string{"ENV V=2", "ARG V=1", "ENV A=$V"}, nil, env("V=2", "A=1")},
		"ARG keeps ENV":     {[]string{"ENV V=2", "ARG V", "ENV A=$V"}, nil, env("V=2", "A=2")},
		"ARG unused fault":  {[]string{"ARG V=${U:?missing}", "ENV A=$V"}, map[string]string{"V": "2"}, env("A=2")},
		"ARG platform":      {[]string{"ARG TARGETARCH TARGETOS", "ENV A=$TARGETOS/$TARGETARCH"}, nil, env("A=linux/" + runtime.GOARCH)},
		"WORKDIR relative":  {[]string{"WORKDIR a", "WORKDIR ./b/../c/"}, nil, func(s *image.Settings) { s.Workdir = "/srv/a/c" }},
		"WORKDIR absolute":  {[]string{"ENV D=/x", "WORKDIR $D/y"}, nil, func(s *image.Settings) { env("D=/x")(s); s.Workdir = "/x/y" }},
		"WORKDIR quoted":    {[]string{`WORKDIR "/a b"`}, nil, func(s *image.Settings) { s.Workdir = "/a b" }},
		"WORKDIR no escape": {[]string{"WORKDIR ../../../../x"}, nil, func(s *image.Settings) { s.Workdir = "/x" }},
		"USER":              {[]string{"ARG U=1000", "USER ${U}:10"}, nil, func(s *image.Settings) { s.User = "1000:10" }},
		"USER unknown":      {[]string{"USER nobody-here"}, nil, func(s *image.Settings) { s.User = "nobody-here" }},
		"CMD exec":          {[]string{`CMD ["a", "$LANG"]`}, nil, func(s *image.Settings) { s.Cmd = []string{"a", "$LANG"} }},
		"CMD shell":         {[]string{`CMD echo  "$LANG"`}, nil, func(s *image.Settings) { s.Cmd = []string{"/bin/sh", "-c", `echo  "$LANG"`} }},
		"CMD own shell": {[]string{`SHELL ["/bin/bash", "-ec"]`, "CMD x"}, nil, func(s *image.Settings) {
			s.Shell, s.Cmd = []string{"/bin/bash", "-ec"}, []string{"/bin/bash", "-ec", "x"}
		}},
		"ENTRYPOINT resets CMD": {[]string{`ENTRYPOINT ["e"]`}, nil, func(s *image.Settings) { s.Entrypoint, s.Cmd = []string{"e"}, nil }},
		"ENTRYPOINT keeps CMD": {[]string{"CMD [\"c\"]", `ENTRYPOINT e`}, nil, func(s *image.Settings) {
			s.Entrypoint, s.Cmd = []string{"/bin/sh", "-c", "e"}, []string{"c"}
		}},
		"ENTRYPOINT none": {[]string{"ENTRYPOINT []"}, nil, func(s *image.Settings) { s.Entrypoint, s.Cmd = nil, nil }},
		"LABEL": {[]string{`LABEL a=1 "b c"="d \"e\""`, "LABEL base=$LANG", "LABEL old form of it"}, nil, func(s *image.Settings) {
			s.Labels = map[string]string{"base": "C", "a": "1", "b c": `d "e"`, "old": "form of it"}
		}},
		"MAINTAINER": {[]string{"MAINTAINER me <me@example.com>"}, nil, func(s *image.Settings) {
			s.Labels = map[string]string{"base": "yes", "maintainer": "me <me@example.com>"}
		}},
		"EXPOSE": {[]string{"ENV P=8080", "EXPOSE $P 90-91/UDP 22"}, nil, func(s *image.Settings) {
			env("P=8080")(s)
			s.Ports = []string{"22/tcp", "8080/tcp", "90/udp", "91/udp"}
		}},
		"VOLUME":      {[]string{`VOLUME ["/v w", "/data"]`, "VOLUME /a /b"}, nil, func(s *image.Settings) { s.Volumes = []string{"/a", "/b", "/data", "/v w"} }},
		"STOPSIGNAL":  {[]string{"ENV S=KILL", "STOPSIGNAL SIG$S"}, nil, func(s *image.Settings) { env("S=KILL")(s); s.StopSignal = "SIGKILL" }},
		"HEALTHCHECK": {[]string{"HEALTHCHECK --interval=5s CMD curl localhost"}, nil, func(*image.Settings) {}},
		"continued":   {[]string{"ENV A=1 \\", "# between", "  B=2"}, nil, env("A=1", "B=2")},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, base)
			req := r.request(tc.commands...)
			req.Args = tc.args
			id, _, err := r.build(req)
			if err != nil {
				t.Fatal(err)
			}
			want := base
			tc.change(&want)
			if got := r.images.get(id).settings; !reflect.DeepEqual(plain(got), plain(want)) {
				t.Errorf("settings are\n%+v, want\n%+v", got, want)
			}
			if got := r.images.get(r.base).settings; !reflect.DeepEqual(got, base) {
				t.Errorf("the base image's settings changed to %+v", got)
			}
		})
	}
}

// plain makes empty lists nil: an image's configuration knows no difference.
func plain(s image.Settings) image.Settings {
	for _, l := range []*[]string{&s.Env, &s.Entrypoint, &s.Cmd, &s.Shell, &s.Ports, &s.Volumes} {
		if len(*l) == 0 {
			*l = nil
		}
	}
	return s
}

func env(kv ...string) func(*image.Settings) {
	return func(s *image.Settings) {
		s.Env = append([]string{"PATH=/base", "LANG=C"}, kv...)
	}
}

func TestSettingsMakeNoLayer(t *testing.T) {
	r := newRig(t, image.Settings{})
	img := r.must("ENV A=b", "LABEL c=d", "USER agent", "CMD x", "EXPOSE 1", "WORKDIR /")
	if r.images.appends != 1 || len(r.runner.steps) != 0 || len(img.files) != len(r.images.get(r.base).files) {
		t.Errorf("%d images were made and %d commands ran, want one and none", r.images.appends, len(r.runner.steps))
	}
	if h := img.history[len(img.history)-1]; !strings.Contains(h, "ENV A=b\nLABEL c=d") {
		t.Errorf("history is %q", h)
	}
	if again := r.must("ENV A=b", "LABEL c=d", "USER agent", "CMD x", "EXPOSE 1", "WORKDIR /"); again != img || r.images.appends != 1 {
		t.Error("the same settings made another image")
	}
}

func TestNothingToDo(t *testing.T) {
	r := newRig(t, image.Settings{})
	id, notices, err := r.build(r.request("# nothing"))
	if err != nil || id != r.base || len(notices) != 0 || r.images.appends != 0 {
		t.Errorf("Build = %s, %v, %v, want the base", id, notices, err)
	}
	if k := r.kinds(); len(k) != 1 || k[0] != build.KindDone || r.events[0].Data != r.base {
		t.Errorf("events are %+v", r.events)
	}
}

func TestNotices(t *testing.T) {
	r := newRig(t, image.Settings{})
	req := r.request("ENV A=1 \\", "", "  B=2", "HEALTHCHECK NONE", "COPY --from=base /nothing* /x/")
	req.Args = map[string]string{"UNUSED": "1", "HTTP_PROXY": "http://proxy"}
	_, notices, err := r.build(req)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"Empty continuation line", "line 4: HEALTHCHECK", `line 5: "/nothing*" matches nothing in base`, "UNUSED"} {
		if i >= len(notices) || !strings.Contains(notices[i], want) {
			t.Errorf("notices are %q, want %q as number %d", notices, want, i)
		}
	}
	if len(notices) != 4 {
		t.Errorf("notices are %q", notices)
	}
}

// TestExpansionBounded makes variables that double, multiply and fill the environment.
func TestExpansionBounded(t *testing.T) {
	doubling := []string{"ENV A0=0123456789"}
	for i := range 40 {
		doubling = append(doubling, "ENV A"+string(rune('a'+i%26))+"="+strings.Repeat("$A0", 2), "ENV A0=$A"+string(rune('a'+i%26)))
	}
	ten := strings.Repeat("x", 10_000)
	many := []string{"ARG V=" + ten}
	for i := range 120 {
		many = append(many, "ENV E"+strings.Repeat("e", i)+"=$V")
	}
	for name, tc := range map[string]struct {
		commands []string
		text     string
	}{
		"doubling":     {doubling, "longer than 128 KiB"},
		"many at once": {[]string{"ENV A=" + ten, "ENV B=" + strings.Repeat("$A", 200)}, "too much text"},
		"replacements": {[]string{"ENV A=" + ten, "ENV B=${A//x/" + ten + "}"}, "too much text"},
		"nested":       {[]string{"ENV A=" + ten, "ENV B=${A//x/${A//x/${A//x/yy}}}"}, "too much text"},
		"all together": {many, "all variables together"},
		"labels":       {[]string{"ENV A=" + ten, "LABEL a=$A$A$A$A$A$A$A$A$A$A$A", "LABEL " + manyLabels()}, "all labels together"},
		"required":     {[]string{"RUN true", "ENV A=${B:?tell-me-B}"}, "line 2: ENV A=${B:?tell-me-B}: "},
		"user gone":    {[]string{"USER $NOBODY"}, `line 1`},
		"workdir gone": {[]string{"WORKDIR $NOWHERE"}, "WORKDIR is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Settings{})
			_, _, err := r.build(r.request(tc.commands...))
			problem(t, err, "dockerfile_invalid", tc.text)
		})
	}
}

func manyLabels() string {
	var b strings.Builder
	for i := range 11 {
		b.WriteString("l" + strings.Repeat("l", i) + "=$A$A$A$A$A$A$A$A$A ")
	}
	return b.String()
}
