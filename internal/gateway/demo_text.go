package gateway

import (
	"fmt"
	"strings"
)

// slowText is a text to watch arriving.
func slowText() string {
	var b strings.Builder
	b.WriteString("This answer comes slowly, so that there is time to leave, to come back and to stop it.\n\n")
	for i := range 20 {
		fmt.Fprintf(&b, "%d. One more line, and then another pause before the next.\n", i+1)
	}
	b.WriteString("\nThat was the slow stream.\n")
	return b.String()
}

// longText is several thousand words with many code blocks.
func longText() string {
	var b strings.Builder
	b.WriteString("# A long answer\n\nIt has sixty parts, to see how a page holds up.\n\n")
	for i := range 60 {
		n := i + 1
		fmt.Fprintf(&b, "## Part %d\n\n", n)
		fmt.Fprintf(&b, "This is part %d of the long answer. A script wrote it, so don't look for sense in it: it is here for its length. "+
			"A page that shows it should scroll smoothly, keep its place when the reader has scrolled up, and not slow down towards the "+
			"end. Words with `inline code`, **bold words** and *words with stress* are mixed in, as a real answer would have them.\n\n", n)
		fmt.Fprintf(&b, "- The square of %d is %d\n- Its cube is %d\n\n", n, n*n, n*n*n)
		switch i % 3 {
		case 0:
			b.WriteString(fence("go", fmt.Sprintf("// Part%d returns its own number.\nfunc Part%d() int {\n\treturn %d\n}", n, n, n)))
		case 1:
			b.WriteString(fence("python", fmt.Sprintf("def part_%d():\n    \"\"\"Return its own number.\"\"\"\n    return %d", n, n)))
		case 2:
			b.WriteString(fence("sh", fmt.Sprintf("for i in $(seq 1 %d); do\n  echo \"line $i\"\ndone", n)))
		}
		b.WriteString("\n")
	}
	b.WriteString("## The end\n\nThat was the long answer.\n")
	return b.String()
}

// codeText holds what a page must format, and what it must not let through.
func codeText() string {
	parts := []string{
		"# Code blocks\n\nSeveral languages, a table, a quote, and HTML that a page must not run.\n",
		fence("go", "package main\n\nimport \"fmt\"\n\nfunc main() {\n\tfmt.Println(\"a < b && c > d\")\n}"),
		fence("python", "def greet(name: str) -> str:\n    # a comment\n    return f\"Hello, {name}!\""),
		fence("js", "const add = (a, b) => a + b; // \"</script>\" in a comment\nconsole.log(add(1, 2));"),
		fence("html", "<!doctype html>\n<p onclick=\"alert(1)\">only text here</p>\n<script>alert('only text')</script>"),
		fence("json", "{\"name\": \"sandlot\", \"list\": [1, 2, 3], \"ok\": true}"),
		fence("diff", "--- a/hello.txt\n+++ b/hello.txt\n@@ -1 +1 @@\n-old line\n+new line"),
		fence("sql", "SELECT id, name FROM sandbox WHERE state = 'running' ORDER BY id;"),
		fence("", "no language, and a line that is much longer than the page is wide: "+strings.Repeat("0123456789", 30)),
		"A block that holds a fence:\n\n" + fence("markdown", "```sh\necho nested\n```"),
		"| left | right |\n|:-----|------:|\n| one  | 1 |\n| `two` | 2 |\n",
		"> A quote, with **bold** in it.\n",
		"- a list\n  - inside a list\n    - and one more\n- [x] done\n- [ ] to do\n",
		"Inline HTML that must do nothing: <script>window.__pwned = 1</script> <img src=x onerror=\"window.__pwned = 2\"> " +
			"<a href=\"javascript:window.__pwned=3\">a link</a> <iframe src=\"data:text/html,hello\"></iframe> <b>bold by tag</b>\n",
		"[A link that must not run](javascript:window.__pwned=4) and [one that may be followed](https://example.com/).\n",
		"![a picture from elsewhere](https://example.com/tracker.png)\n",
		"That was the last block.\n",
	}
	return strings.Join(parts, "\n")
}
