package gateway

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// reply is what the demo model says next: text, or text and the use of one tool, or an error of the API.
type reply struct {
	text  string
	tool  string
	input map[string]any

	refusal    string // an error 400 with this text instead
	overloaded bool   // an error 529 the first time
	fast, slow bool   // how the text is streamed
}

// pieceSize is how many bytes one piece of the stream holds. A slow stream has a hundred pieces, however long the text is.
func (r reply) pieceSize() int {
	switch {
	case r.slow:
		return max(1, len(r.text)/100)
	case r.fast:
		return 96
	}
	return 24
}

// scripts says which words in the prompt choose which script; the first that matches counts.
var scripts = []struct {
	words string
	play  func(turn) reply
}{
	{"api error", func(turn) reply {
		return reply{refusal: "This is the API error that the demo model was asked for."}
	}},
	{"overloaded", func(t turn) reply {
		return reply{overloaded: true, text: intro(t) + "The API was overloaded at first; the CLI tried again, and this is the answer."}
	}},
	{"tool error", toolError},
	{"ask permission", askPermission},
	{"ask me a question", askQuestion},
	{"make a plan", makePlan},
	{"long command", longCommand},
	{"slow stream", func(t turn) reply { return reply{slow: true, text: intro(t) + slowText()} }},
	{"long answer", func(t turn) reply { return reply{fast: true, text: intro(t) + longText()} }},
	{"code blocks", func(t turn) reply { return reply{text: intro(t) + codeText()} }},
	{"remember", remember},
}

var (
	runCommand = regexp.MustCompile(`(?is)\brun:\s*(\S.*)$`)
	writeFile  = regexp.MustCompile(`(?is)\bwrite\s+([A-Za-z0-9._/-]+):\s*(\S.*)$`)
)

// script chooses the next reply by the last prompt and what was done since. "run: CMD" runs exactly CMD, "write FILE: TEXT"
// writes that file, some words choose a script of their own, and everything else is the main job.
func script(t turn) reply {
	if len(t.tools) == 0 {
		return reply{text: aside(t)}
	}
	if m := runCommand.FindStringSubmatch(t.prompt()); m != nil {
		return runJob(t, m[1])
	}
	if m := writeFile.FindStringSubmatch(t.prompt()); m != nil {
		return mainJob(t, job{file: m[1], content: m[2] + "\n", command: "cat " + quote(m[1])})
	}
	prompt := strings.ToLower(t.prompt())
	for _, s := range scripts {
		if strings.Contains(prompt, s.words) {
			return s.play(t)
		}
	}
	return mainJob(t, job{file: "hello.sh", content: helloScript, command: "sh hello.sh"})
}

// intro says who speaks, once per prompt.
func intro(t turn) string {
	if len(t.calls) > 0 {
		return ""
	}
	return "I'm Sandlot's demo model: a script, not Claude. I can't think, but the tools I use are real and run in your sandbox.\n\n"
}

// aside answers the CLI's own small questions (a title for the session, say), which come without tools.
func aside(t turn) string {
	const title = "Sandlot demo"
	if t.format == nil || len(t.format.Schema.Required) == 0 {
		return title
	}
	out := map[string]any{}
	for _, name := range t.format.Schema.Required {
		switch t.format.Schema.Properties[name].Type {
		case "boolean":
			out[name] = false
		case "number", "integer":
			out[name] = 0
		case "array":
			out[name] = []any{}
		case "object":
			out[name] = map[string]any{}
		default:
			out[name] = title
		}
	}
	data, err := json.Marshal(out)
	if err != nil {
		return title
	}
	return string(data)
}

// use asks for a tool, if the request offers it.
func (t turn) use(text, tool string, input map[string]any) reply {
	if !t.tools[tool] {
		return reply{text: text + "My script goes on with the tool " + tool + ", but this session doesn't offer it. So I stop here."}
	}
	return reply{text: text, tool: tool, input: input}
}

// job is one round of: write a file, use it, read it back, report.
type job struct{ file, content, command string }

const helloScript = `#!/bin/sh
# Written by Sandlot's demo model.
echo "Hello from a sandbox!"
echo "kernel: $(uname -sr)"
echo "user:   $(id -u)"
echo "place:  $(pwd)"
for i in 1 2 3 4 5; do
	echo "$i squared is $((i * i))"
done
`

// mainJob plays the main job. Where it stands shows in the tools used so far. The CLI refuses to overwrite a file that it
// has not read in this session; then the job reads it first.
func mainJob(t turn, j job) reply {
	file := path.Join(t.dir, j.file)
	write := func(text string) reply {
		return t.use(text, "Write", map[string]any{"file_path": file, "content": j.content})
	}
	read := func(text string) reply { return t.use(text, "Read", map[string]any{"file_path": file}) }
	last := t.last()
	var before call
	if len(t.calls) > 1 {
		before = t.calls[len(t.calls)-2]
	}
	switch {
	case last.name == "":
		return write(intro(t) + fmt.Sprintf("First I write `%s`.", j.file))
	case last.name == "Write" && last.isError && count(t, "Write") == 1:
		return read("That didn't work. The file may be there already, so I read it first.")
	case last.name == "Read" && !last.isError && before.name == "Write" && before.isError:
		return write("Now I write it again.")
	case last.name == "Write" && !last.isError:
		return t.use("The file is written. Now I run it.", "Bash",
			map[string]any{"command": j.command, "description": "Run " + j.command})
	case last.name == "Bash":
		return read("And I read the file back.")
	}
	return reply{text: report(t, j)}
}

func count(t turn, tool string) int {
	n := 0
	for _, c := range t.calls {
		if c.name == tool {
			n++
		}
	}
	return n
}

// report is the last answer of the main job. The output in it is what the tools really gave.
func report(t turn, j job) string {
	var output call
	for _, c := range t.calls {
		if c.name == "Bash" {
			output = c
		}
	}
	last := t.last()
	if output.name == "" {
		return fmt.Sprintf("## Stopped\n\nThe tool `%s` was refused or failed:\n\n%s\nNothing was written by me.\n", last.name, fence("", last.result))
	}
	var b strings.Builder
	b.WriteString("## Done\n\nThis is what I did, with real tools:\n\n")
	fmt.Fprintf(&b, "1. **Wrote** `%s` (%d bytes)\n", j.file, len(j.content))
	fmt.Fprintf(&b, "2. **Ran** `%s`%s\n", j.command, map[bool]string{true: ", which failed"}[output.isError])
	fmt.Fprintf(&b, "3. **Read** it back: %d lines\n", strings.Count(strings.TrimSuffix(j.content, "\n"), "\n")+1)
	if last.isError {
		b.WriteString("   (reading failed: " + last.result + ")\n")
	}
	b.WriteString("\nThe output was:\n\n" + fence("text", output.result))
	b.WriteString("\nTo get real answers, start the server with `ANTHROPIC_API_KEY` set.\n")
	return b.String()
}

func runJob(t turn, command string) reply {
	last := t.last()
	if last.name == "" {
		return t.use(intro(t)+"I run exactly what you typed.", "Bash", map[string]any{"command": command, "description": "Run the user's command"})
	}
	state := "It ended well."
	if last.isError {
		state = "It **failed**."
	}
	return reply{text: state + " The output was:\n\n" + fence("text", last.result)}
}

func toolError(t turn) reply {
	last := t.last()
	if last.name == "" {
		return t.use(intro(t)+"I run a command that fails.", "Bash",
			map[string]any{"command": "echo 'about to fail' >&2; exit 1", "description": "Fail with exit code 1"})
	}
	return reply{text: "The command failed, as it should. The tool said:\n\n" + fence("text", last.result) +
		"\nThe session goes on all the same.\n"}
}

// remember shows that a resumed session still knows what was said.
func remember(t turn) reply {
	var b strings.Builder
	b.WriteString(intro(t))
	fmt.Fprintf(&b, "This conversation has %d of your prompts:\n\n", len(t.prompts))
	for i, p := range t.prompts {
		first, _, _ := strings.Cut(p, "\n")
		fmt.Fprintf(&b, "%d. %s\n", i+1, first)
	}
	return reply{text: b.String()}
}

// fence makes a code block that text can't end.
func fence(language, text string) string {
	mark := "```"
	for strings.Contains(text, mark) {
		mark += "`"
	}
	return mark + language + "\n" + strings.TrimRight(text, "\n") + "\n" + mark + "\n"
}

// quote makes s one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
