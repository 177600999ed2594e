package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/sandlot-dev/sandlot/api"
)

// row finds the row of an entry, by its name.
func row(name string) string {
	return fmt.Sprintf(`[...document.querySelectorAll(".tree [role=treeitem]")].find((e) => e.querySelector(".cut")?.innerText === %q)`, name)
}

// openRow clicks an entry.
func (b *browser) openRow(name string) {
	b.t.Helper()
	b.until(name+" is listed", row(name))
	b.do("open "+name, script(row(name)+".click()"))
}

// content reads a file through the API.
func content(t *testing.T, s *server, sandbox, path string) string {
	t.Helper()
	r, err := s.ReadFile(within(t), sandbox, path)
	return readAll(t, r, err)
}

// TestBrowserFiles is how a person works with files beside a conversation: sees what Claude does, looks into it, changes it, is told when somebody
// else did, brings files and folders in, and tidies up, also without a mouse.
func TestBrowserFiles(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{Name: "shelf"})
	id := sb.ID
	inside(t, s, id, "mkdir -p src/deep .hidden; printf 'package main\\n\\nfunc main() {}\\n' > src/main.go; printf '\\0\\1' > src/bin; : > src/empty; printf 'a\\r\\nb\\r\\n' > src/dos.txt")
	u := prompt(t, s, id, api.Prompt{Prompt: "Write note.txt: keep me"})
	b := open(t, s)
	b.do("open the conversation", chromedp.Navigate(s.url+"/session/"+u.session), chromedp.WaitVisible(".fin"))
	b.press("Files")
	b.until("the panel is in the address", `location.pathname.endsWith("/files")`)
	b.until("the files are listed", row("note.txt"))
	if got := ask[string](b, `[...document.querySelectorAll(".tree .trow > .cut")].map((e) => e.innerText).join()`); got != ".hidden,.sandlot,src,note.txt" {
		t.Errorf("the tree shows %s", got)
	}

	// What happens in the sandbox is shown as it happens.
	inside(t, s, id, "echo 1 > live.txt")
	b.until("a new file appears", row("live.txt"))
	inside(t, s, id, "mv live.txt moved.txt")
	b.until("it is moved", row("moved.txt")+" && !"+row("live.txt"))
	inside(t, s, id, "rm moved.txt")
	b.until("it goes", "!"+row("moved.txt"))

	b.openRow("src")
	b.openRow("main.go")
	b.until("the file is shown with colours", `document.querySelector(".fview .text .hljs-keyword")?.innerText === "package"`)
	if q := ask[string](b, `new URLSearchParams(location.search).get("file")`); q != "/workspace/src/main.go" {
		t.Errorf("the address names %q", q)
	}
	b.do("reload", chromedp.Reload())
	b.until("it is open again", `document.querySelector(".fview .text")?.innerText.includes("func main")`)

	// It is changed, and saved as what it was read as.
	b.press("Edit")
	b.do("write", chromedp.WaitVisible(".fview textarea"), script(`const a = document.querySelector(".fview textarea"); a.focus(); a.setSelectionRange(0, 0)`), insert("// mine\n"))
	b.until("it is marked", `document.querySelector(".fview .chip")?.innerText === "Not saved"`)
	b.do("reload with a draft", chromedp.Reload())
	b.until("the draft is there", `document.querySelector(".fview textarea")?.value.startsWith("// mine\n")`)
	b.press("Save")
	b.until("it is saved", `document.querySelector(".fview .chip")?.innerText === "Saved"`)
	if got := content(t, s, id, "/workspace/src/main.go"); got != "// mine\npackage main\n\nfunc main() {}\n" {
		t.Errorf("saved as %q", got)
	}
	b.press("Edit")
	b.do("write more", script(`const a = document.querySelector(".fview textarea"); a.focus(); a.setSelectionRange(0, 7)`), insert("// more"))
	inside(t, s, id, "echo '// theirs' >> src/main.go")
	b.until("the change is told", `document.querySelector(".fview")?.innerText.includes("This file changed")`)
	b.press("Save")
	b.until("what to do is asked", `document.querySelector(".fview .notice")?.innerText.includes("This file has changed while you wrote.")`)
	b.press("Show differences")
	b.until("the differences are shown", `document.querySelector(".fview .diff .del")?.innerText.includes("// mine") && document.querySelector(".fview .diff .add")?.innerText.includes("// more")`)
	if got := content(t, s, id, "/workspace/src/main.go"); !strings.HasSuffix(got, "// theirs\n") {
		t.Errorf("it was overwritten unasked: %q", got)
	}
	b.press("Overwrite it")
	b.until("it is saved", `document.querySelector(".fview .chip")?.innerText === "Saved"`)
	if got := content(t, s, id, "/workspace/src/main.go"); got != "// more\npackage main\n\nfunc main() {}\n" {
		t.Errorf("saved as %q", got)
	}
	inside(t, s, id, "echo '// again' > src/main.go")
	b.until("a change of a file that nobody edits is shown", `document.querySelector(".fview .text")?.innerText === "// again\n" && document.querySelector(".fview .chip")?.innerText.startsWith("Changed")`)

	// Line ends stay what they were, and what is no text is not shown as one.
	b.openRow("dos.txt")
	b.until("it is shown", `document.querySelector(".fview .text")?.innerText.includes("b")`)
	b.press("Edit")
	b.do("write", chromedp.WaitVisible(".fview textarea"), script(`const a = document.querySelector(".fview textarea"); a.focus(); a.setSelectionRange(0, 1)`), insert("A"))
	b.do("save with the key", script(`document.querySelector(".fview textarea").dispatchEvent(new KeyboardEvent("keydown", {key: "s", ctrlKey: true, bubbles: true, cancelable: true}))`))
	b.until("it is saved", `document.querySelector(".fview .chip")?.innerText === "Saved"`)
	if got := content(t, s, id, "/workspace/src/dos.txt"); got != "A\r\nb\r\n" {
		t.Errorf("saved as %q", got)
	}
	b.openRow("bin")
	b.until("bytes are no text", `document.querySelector(".fview")?.innerText.includes("No text: 2 B")`)
	b.press("Close the file")
	b.until("it is closed", `!document.querySelector(".fview")`)

	// Files come in by dropping them, folders too; what is there is not replaced unasked.
	drop := `const d = new DataTransfer(); d.items.add(new File(["dropped"], "drop #1.txt")); d.items.add(new File(["new"], "note.txt"));
		for (const type of ["dragover", "drop"]) document.querySelector(".tree").dispatchEvent(new DragEvent(type, {dataTransfer: d, bubbles: true, cancelable: true}))`
	b.do("drop files", script(drop))
	b.until("one is there", row("drop #1.txt"))
	b.until("the other was there before", `document.querySelector(".ups li.exists")?.innerText.includes("note.txt")`)
	if got := content(t, s, id, "/workspace/note.txt"); !strings.Contains(got, "keep me") {
		t.Errorf("a file was replaced unasked: %q", got)
	}
	b.do("replace it", script(`document.querySelector(".ups li.exists .link").click()`))
	b.until("both are done", `!document.querySelector(".ups li.exists") && document.querySelectorAll(".ups li.done").length === 2`)
	if got := content(t, s, id, "/workspace/note.txt") + content(t, s, id, "/workspace/drop #1.txt"); got != "newdropped" {
		t.Errorf("uploaded: %q", got)
	}
	folder := t.TempDir() + "/project"
	for name, data := range map[string]string{"a.txt": "1", "sub/b c.txt": "2", "sub/large": string(pattern(3 << 20))} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.do("choose where to", script(row("note.txt")+".focus()"))
	b.pick(`input[data-pick=folder]`, folder)
	b.until("the folder is there", `document.querySelectorAll(".ups li.done").length === 3`)
	if got := content(t, s, id, "/workspace/project/sub/b c.txt") + content(t, s, id, "/workspace/project/sub/large"); got != "2"+string(pattern(3<<20)) {
		t.Errorf("uploaded %d bytes, or others", len(got))
	}
	b.press("Close the list of uploads")

	// Without a mouse: letters, arrows, a new name, and away.
	b.do("go to the tree", script(row("src")+".focus()"), chromedp.KeyEvent("n"))
	b.until("letters lead there", row("note.txt")+" === document.activeElement")
	b.do("go up and down", chromedp.KeyEvent(kb.Home), chromedp.KeyEvent(kb.End), chromedp.KeyEvent(kb.ArrowUp), chromedp.KeyEvent(kb.F2))
	b.until("a path is asked for", `document.querySelector("#move-entry")?.value === "/workspace/drop #1.txt" || document.querySelector("#move-entry")`)
	b.fill("#move-entry", "/workspace/new folder/r?.txt")
	b.press("Move")
	b.until("the dialog is gone", `!document.querySelector("dialog")`)
	b.openRow("new folder")
	b.until("it is there under its name", row("r?.txt"))
	b.do("delete the folder", script(row("new folder")+".focus()"), chromedp.KeyEvent(kb.Delete))
	b.until("it is asked", `document.querySelector("dialog")?.innerText.includes("with all that is in it")`)
	b.press("Delete folder")
	b.until("it is gone", "!"+row("new folder"))
	b.do("open its menu", script(row("project")+".focus()"), script(row("project")+`.querySelector("[aria-haspopup=menu]").click()`))
	if href := ask[string](b, `[...document.querySelectorAll("[role=menuitem]")].find((e) => e.innerText.includes("zip"))?.getAttribute("href")`); href != "/sandbox/"+id+"/files/workspace/project?format=zip" {
		t.Errorf("the folder is downloaded from %q", href)
	}
	b.do("close the menu", chromedp.KeyEvent(kb.Escape))
	b.press("New file")
	b.fill("#new-entry", "a/b")
	b.press("Make file")
	b.until("a bad name is told", `document.querySelector("dialog")?.innerText.includes("A name can’t hold a slash.")`)
	b.fill("#new-entry", "made.md")
	b.press("Make file")
	b.until("the new file is open", `document.querySelector(".fview")?.ariaLabel === "File made.md"`)
	b.do("be a phone", chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile, chromedp.EmulateTouch))
	for path, ready := range map[string]string{
		"/session/" + u.session + "/files": ".trow", "/session/" + u.session + "/files?file=/workspace/src/main.go": ".fview .text", "/sandbox/" + id + "?files": ".trow",
	} {
		b.do("open "+path, chromedp.Navigate(s.url+path), chromedp.WaitVisible(ready))
		if wide := ask[[]string](b, `[document.documentElement, ...document.querySelectorAll(".main, .page, .panel, .files, .tree")].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.className || e.localName)`); len(wide) > 0 {
			t.Errorf("%s is wider than a phone: %v", path, wide)
		}
	}
	b.wantNoFaults()
}

// pick chooses files, or a folder, for an input.
func (b *browser) pick(selector string, paths ...string) {
	b.t.Helper()
	b.do("choose "+strings.Join(paths, ", "), chromedp.SetUploadFiles(chromedp.CSS(selector), paths))
}
