package gateway

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
)

// The scripts of this file lead to what a person must answer, or has the time to stop.

// askPermission uses a tool for which the CLI asks in the permission mode "default".
func askPermission(t turn) reply {
	last := t.last()
	switch {
	case last.name == "":
		return t.use(intro(t)+"I want to write a file by a command, for which you are asked in the mode `default`.", "Bash",
			map[string]any{"command": "echo 'allowed by you' > permission.txt && cat permission.txt", "description": "Write permission.txt"})
	case last.isError:
		return reply{text: "I may not. The tool said:\n\n" + fence("text", last.result)}
	}
	return reply{text: "I may. The output was:\n\n" + fence("text", last.result)}
}

// askQuestion asks two questions, one of which takes several answers.
func askQuestion(t turn) reply {
	last := t.last()
	option := func(label, description string) map[string]any {
		return map[string]any{"label": label, "description": description}
	}
	switch {
	case last.name == "":
		return t.use(intro(t)+"I have two questions.", "AskUserQuestion", map[string]any{"questions": []any{
			map[string]any{"question": "Which colour should it have?", "header": "Colour", "multiSelect": false,
				"options": []any{option("Red", "The colour of fire"), option("Green", "The colour of grass"), option("Blue", "The colour of the sea")}},
			map[string]any{"question": "What should it be able to do?", "header": "Skills", "multiSelect": true,
				"options": []any{option("Swim", "In water"), option("Fly", "In the air"), option("Run", "On land")}},
		}})
	case last.isError:
		return reply{text: "So there is no answer. The tool said:\n\n" + fence("text", last.result)}
	}
	return reply{text: "Thank you. What I was told is:\n\n" + fence("text", last.result)}
}

const planText = `# A plan of Sandlot's demo model

1. Write a script that greets.
2. Run it.
3. Read it back.
`

// makePlan writes a plan, has it approved, and then does the main job.
func makePlan(t turn) reply {
	last := t.last()
	if t.plan == "" && count(t, "ExitPlanMode") == 0 {
		return reply{text: intro(t) + "A plan needs the permission mode `plan`; choose it and ask again."}
	}
	switch {
	case last.name == "":
		return t.use(intro(t)+"I write the plan down.", "Write", map[string]any{"file_path": t.plan, "content": planText})
	case last.name == "Write" && last.isError:
		return reply{text: "The plan can't be written. The tool said:\n\n" + fence("text", last.result)}
	case last.name == "Write" && count(t, "ExitPlanMode") == 0:
		return t.use("Now I ask whether it is good.", "ExitPlanMode", map[string]any{})
	case last.name == "ExitPlanMode" && last.isError:
		return reply{text: "The plan was not approved. The tool said:\n\n" + fence("text", last.result)}
	case last.name == "ExitPlanMode":
		return t.use("It was approved, so I begin.", "Write", map[string]any{"file_path": path.Join(t.dir, "planned.sh"), "content": helloScript})
	case last.name == "Write":
		return t.use("Written; now it runs.", "Bash", map[string]any{"command": "sh planned.sh", "description": "Run planned.sh"})
	}
	return reply{text: "The plan is carried out. The output was:\n\n" + fence("text", last.result)}
}

var longSeconds = regexp.MustCompile(`(?i)long command\D{0,20}(\d{1,3})`)

// longCommand runs a command that counts the seconds: 60, or as many as the prompt says.
func longCommand(t turn) reply {
	last := t.last()
	if last.name == "" {
		seconds := 60
		if m := longSeconds.FindStringSubmatch(t.prompt()); m != nil {
			seconds, _ = strconv.Atoi(m[1]) // three digits at most
		}
		return t.use(intro(t)+fmt.Sprintf("I run a command that takes %d seconds.", seconds), "Bash", map[string]any{
			"command":     fmt.Sprintf("echo began > long.txt; i=0; while [ $i -lt %d ]; do sleep 1; i=$((i+1)); echo $i; done", seconds),
			"description": "Count seconds", "timeout": 600_000})
	}
	if last.isError {
		return reply{text: "It did not come to its end. The tool said:\n\n" + fence("text", last.result)}
	}
	return reply{text: "It has ended. The output was:\n\n" + fence("text", last.result)}
}
