package build_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestCheckAccepts(t *testing.T) {
	for name, commands := range map[string][]string{
		"nothing":          nil,
		"only comments":    {"# nothing", "", "  # here"},
		"all kinds":        {"ARG A=1", "ENV B=$A", "LABEL c=d", "WORKDIR /w", "USER agent", "EXPOSE 80 90-92/udp", "VOLUME /v", "STOPSIGNAL SIGTERM", "SHELL [\"/bin/bash\", \"-c\"]", "ENTRYPOINT [\"x\"]", "CMD y", "RUN true", "MAINTAINER me", "HEALTHCHECK CMD true"},
		"lower case":       {"run true", "env A=b"},
		"many in one":      {"RUN a\nENV B=c\n\nRUN d\n"},
		"continued":        {"RUN a && \\", "  # a comment", "  b"},
		"CRLF":             {"RUN a && \\\r\n  b\r\nENV A=b\r\n"},
		"other escape":     {"# escape=`", "RUN a && `", "  b"},
		"syntax directive": {"# syntax=docker/dockerfile:1", "RUN a"},
		"RUN heredoc":      {"RUN <<EOF", "a", "b", "EOF"},
		"RUN heredoc sh":   {"RUN cat <<'A' <<-B > /x\n1\nA\n\t2\n\tB"},
		"COPY heredoc":     {"COPY <<EOF /etc/motd", "hello $NAME", "EOF"},
		"COPY from":        {"COPY --from=docker.io/library/busybox:1.36 --chown=1:2 --chmod=u=rwX,go=rX /bin/* /busybox/"},
		"COPY link":        {"COPY --link --from=x /a /b"},
		"ADD":              {"ADD --checksum=sha256:" + strings.Repeat("a", 64) + " --chmod=755 https://example.com/x /usr/bin/x"},
		"ADD variables":    {"ARG V=1", "ADD https://example.com/x-${V}.tgz /x"},
		"secret mount":     {"RUN --mount=type=secret,id=npm,env=NPM_TOKEN true"},
		"default network":  {"RUN --network=default true"},
		"signals":          {"STOPSIGNAL 9", "STOPSIGNAL term", "STOPSIGNAL SIGRTMIN+3", "STOPSIGNAL RTMAX", "STOPSIGNAL $X"},
		"json with spaces": {`COPY --from=x ["/a b", "/c d/"]`},
	} {
		t.Run(name, func(t *testing.T) {
			if err := build.Check(commands); err != nil {
				t.Errorf("Check(%q): %v", commands, err)
			}
		})
	}
}

func TestCheckRefuses(t *testing.T) {
	const unsupported, invalid, request = "dockerfile_unsupported", "dockerfile_invalid", "invalid_request"
	for name, tc := range map[string]struct {
		commands []string
		code     string
		texts    []string
	}{
		"FROM":               {[]string{"RUN a", "FROM debian"}, unsupported, []string{"line 2", "FROM debian", "COPY --from=IMAGE"}},
		"FROM AS":            {[]string{"from debian as x"}, unsupported, []string{"line 1"}},
		"ONBUILD":            {[]string{"", "", "ONBUILD RUN x"}, unsupported, []string{"line 3", "ONBUILD"}},
		"unknown":            {[]string{"RUN a", "RUNN b"}, invalid, []string{"line 2", "unknown instruction: RUNN"}},
		"COPY context":       {[]string{"COPY . /app"}, unsupported, []string{"line 1", "build context", "files API"}},
		"COPY mixed":         {[]string{"COPY <<A b /c/", "x", "A"}, unsupported, []string{"line 1", `"b"`}},
		"COPY stage":         {[]string{"COPY --from=0 /a /b"}, unsupported, []string{"stage"}},
		"COPY from var":      {[]string{"ARG I=x", "COPY --from=$I /a /b"}, unsupported, []string{"line 2", "variables"}},
		"COPY parents":       {[]string{"COPY --parents --from=x /a /b/"}, unsupported, []string{"--parents"}},
		"COPY exclude":       {[]string{"COPY --exclude=*.go --from=x /a /b/"}, unsupported, []string{"--exclude"}},
		"COPY URL":           {[]string{"COPY --from=x https://example.com/a /b"}, invalid, []string{"use ADD"}},
		"COPY one":           {[]string{"COPY --from=x /a"}, invalid, []string{"line 1", "at least two arguments"}},
		"COPY to file":       {[]string{"COPY --from=x /a /b /c"}, invalid, []string{"slash"}},
		"COPY chmod":         {[]string{"COPY --chmod=9 --from=x /a /b"}, invalid, []string{"--chmod=9"}},
		"COPY chmod 5":       {[]string{"COPY --chmod=17777 --from=x /a /b"}, invalid, []string{"7777"}},
		"COPY chown":         {[]string{"COPY --chown=a:b:c --from=x /a /b"}, invalid, []string{"USER:GROUP"}},
		"COPY flag":          {[]string{"COPY --frm=x /a /b"}, invalid, []string{"line 1", "--frm"}},
		"ADD context":        {[]string{"ADD x.tar /"}, unsupported, []string{"build context", `"x.tar"`}},
		"ADD git":            {[]string{"ADD https://github.com/a/b.git /b"}, unsupported, []string{"Git"}},
		"ADD git ssh":        {[]string{"ADD git@github.com:a/b.git /b"}, unsupported, []string{"Git"}},
		"ADD unpack":         {[]string{"ADD --unpack=true https://example.com/a.tgz /b"}, unsupported, []string{"--unpack"}},
		"ADD from":           {[]string{"ADD --from=x /a /b"}, invalid, []string{"--from"}},
		"ADD bad URL":        {[]string{"ADD http:///x /b"}, invalid, []string{"URL"}},
		"ADD checksum":       {[]string{"ADD --checksum=md5:00 https://example.com/a /b"}, invalid, []string{"sha256:HEX"}},
		"ADD checksum short": {[]string{"ADD --checksum=sha256:00 https://example.com/a /b"}, invalid, []string{"sha256:HEX"}},
		"ADD checksum two":   {[]string{"ADD --checksum=sha256:00 https://example.com/a https://example.com/b /b/"}, invalid, []string{"one URL"}},
		"RUN network":        {[]string{"RUN --network=host x"}, unsupported, []string{"--network", "policy"}},
		"RUN security":       {[]string{"RUN --security=insecure x"}, unsupported, []string{"--security"}},
		"RUN cache":          {[]string{"RUN true", "RUN --mount=type=cache,target=/c x"}, unsupported, []string{"line 2", "type=cache"}},
		"RUN bind":           {[]string{"RUN --mount=target=/c x"}, unsupported, []string{"type=bind"}},
		"RUN ssh":            {[]string{"RUN --mount=type=ssh x"}, unsupported, []string{"type=ssh"}},
		"RUN secret file":    {[]string{"RUN --mount=type=secret,id=a,target=/x x"}, unsupported, []string{"file"}},
		"RUN secret both":    {[]string{"RUN --mount=type=secret,id=a,env=A,target=/x x"}, unsupported, []string{"target"}},
		"RUN nothing":        {[]string{"RUN"}, invalid, []string{"needs a command"}},
		"RUN empty list":     {[]string{"RUN []"}, invalid, []string{"needs a command"}},
		"RUN numbers":        {[]string{"RUN [1]"}, invalid, []string{"line 1", "strings only"}},
		"CMD nothing":        {[]string{"CMD"}, invalid, []string{"needs a command"}},
		"SHELL string":       {[]string{"SHELL /bin/bash -c"}, invalid, []string{"JSON"}},
		"ENV":                {[]string{"ENV A"}, invalid, []string{"line 1"}},
		"ENV blank":          {[]string{"ENV =x"}, invalid, []string{"blank"}},
		"ENV variable":       {[]string{"RUN a", "ENV A=${B"}, invalid, []string{"line 2", "ENV A=${B"}},
		"ENV modifier":       {[]string{"ENV A=${B:=c}"}, invalid, []string{"unsupported modifier"}},
		"ARG variable":       {[]string{"ARG A=${}"}, invalid, []string{"bad substitution"}},
		"heredoc variable":   {[]string{"COPY <<EOF /x", "${", "EOF"}, invalid, []string{"line 1"}},
		"heredoc name":       {[]string{"COPY <<../../x /x/", "a", "../../x"}, invalid, []string{"name of a file"}},
		"heredoc open":       {[]string{"RUN a", "RUN <<EOF", "b"}, invalid, []string{"line 2", "unterminated heredoc"}},
		"USER":               {[]string{"USER a:b:c"}, invalid, []string{"USER:GROUP"}},
		"STOPSIGNAL":         {[]string{"STOPSIGNAL SIGNOPE"}, invalid, []string{"SIGNOPE"}},
		"STOPSIGNAL 65":      {[]string{"STOPSIGNAL 65"}, invalid, []string{"not a signal"}},
		"STOPSIGNAL RT":      {[]string{"STOPSIGNAL SIGRTMIN+31"}, invalid, []string{"not a signal"}},
		"EXPOSE":             {[]string{"EXPOSE 70000"}, invalid, []string{"65535"}},
		"EXPOSE protocol":    {[]string{"EXPOSE 80/icmp"}, invalid, []string{"tcp, udp or sctp"}},
		"EXPOSE all":         {[]string{"EXPOSE 1-65535"}, invalid, []string{"1000 ports"}},
		"HEALTHCHECK":        {[]string{"HEALTHCHECK x"}, invalid, []string{"line 1"}},
		"escape":             {[]string{"# escape=x", "RUN a"}, invalid, []string{"line 1", "escape"}},
		"two directives":     {[]string{"# escape=`", "# escape=`", "RUN a"}, invalid, []string{"escape"}},
		"NUL":                {[]string{"RUN a", "RUN b\x00c"}, request, []string{"line 2", "NUL"}},
		"not UTF-8":          {[]string{"RUN a\nRUN \xff"}, request, []string{"line 2", "UTF-8"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := build.Check(tc.commands)
			if err == nil {
				t.Fatalf("Check(%q) found nothing", tc.commands)
			}
			problem(t, err, tc.code, tc.texts...)
			r := newRig(t, image.Settings{})
			if _, _, err := r.build(r.request(tc.commands...)); err == nil {
				t.Error("Build took what Check refuses")
			}
			if len(r.runner.steps) > 0 {
				t.Errorf("%d commands ran before the refusal", len(r.runner.steps))
			}
		})
	}
}

// TestCheckHostile feeds what is made to cost time or memory. Each is refused, or parsed within the time that a test has.
func TestCheckHostile(t *testing.T) {
	for name, tc := range map[string]struct {
		commands []string
		ok       bool
	}{
		"10 MB":                {[]string{"RUN " + strings.Repeat("a", 10<<20)}, false},
		"10 MB in pieces":      {slicesOf("RUN a", 2<<20), false},
		"long line":            {[]string{"RUN " + strings.Repeat("a", 100<<10)}, false},
		"many lines":           {[]string{"RUN <<EOF\n" + strings.Repeat("a\n", 100<<10) + "EOF"}, false},
		"many instructions":    {[]string{strings.Repeat("RUN a\n", 501)}, false},
		"deep continuation":    {[]string{"RUN a " + strings.Repeat("\\\n b", 9000)}, true},
		"continuation only":    {[]string{strings.Repeat("\\\n", 9000)}, false},
		"open continuation":    {[]string{`RUN a \`}, true},
		"nested variables":     {[]string{"ENV A=" + strings.Repeat("${a:-", 10_000) + strings.Repeat("}", 10_000)}, false},
		"nested over lines":    {[]string{"ENV A=" + strings.Repeat("${a:-\\\n", 5_000) + strings.Repeat("}", 5_000)}, false},
		"nested and escaped":   {[]string{"ENV A=" + strings.Repeat(`${a:-\}`, 5_000)}, false},
		"nested in heredoc":    {[]string{"RUN <<A " + strings.Repeat("${a:-", 9_000) + "\nA"}, false},
		"nested ONBUILD":       {[]string{strings.Repeat("ONBUILD ", 8_000) + "RUN a"}, false},
		"nested JSON":          {[]string{"RUN " + strings.Repeat("[", 60_000)}, true},
		"long RUN":             {[]string{"RUN <<EOF\n" + strings.Repeat(strings.Repeat("a", 1000)+"\n", 200) + "EOF"}, false},
		"many heredocs":        {[]string{"RUN " + strings.Repeat("<<A ", 10_000) + "\n" + strings.Repeat("A\n", 9_000)}, false},
		"controls in mistakes": {[]string{"RUNN \x1b[31mred\x07"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := build.Check(tc.commands)
			if (err == nil) != tc.ok {
				t.Fatalf("Check: %v, want success %v", err, tc.ok)
			}
			if err != nil && (len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\x1b\x07\x00")) {
				t.Errorf("the error has %d bytes: %.300q", len(err.Error()), err)
			}
		})
	}
}

func slicesOf(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func FuzzCheck(f *testing.F) {
	for _, s := range []string{"RUN a", "ENV A=${B:-c} D='e f'", "RUN <<EOF\nx\nEOF", "COPY <<-\"A\" /x\n\ty\n\tA", "# escape=`\nRUN a `\n b",
		"ADD --checksum=sha256:00 http://x/y /z", "COPY --from=a [\"b\", \"c/\"]", "EXPOSE 80/tcp 1-3", "ONBUILD RUN <<A\nA", "ENV A=${A//a/b}${A#x*}",
		"RUN --mount=type=secret,id=x,env=Y z", "HEALTHCHECK --interval=1s CMD a", "\uFEFFRUN a", "STOPSIGNAL RTMIN+1", "LABEL a", "ARG a=$b c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		err := build.Check([]string{s})
		if err == nil {
			return
		}
		var p *sandbox.Problem
		if !errors.As(err, &p) || !errors.Is(err, sandbox.ErrInvalid) || p.Field == "" || p.Detail == "" {
			t.Errorf("Check(%q) = %v, no Problem of the request", s, err)
		}
	})
}
