package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/sandlot-dev/sandlot/api"
)

// watchPolicy tells violations of the content security policy through the console, where the test hears them.
const watchPolicy = `addEventListener("securitypolicyviolation", (e) => console.log("policy violated: " + e.violatedDirective + " " + e.sourceFile + " " + e.sample));`

// browser is a tab, signed in, with everything noted that must not happen in it.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	faults []string // guarded by mu
}

// chromium finds a browser. Where everything must run, not having one is a failure.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("SANDLOT_TEST_BROWSER"), "chromium", "chromium-browser", "google-chrome", "headless-shell"} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			return path
		}
	}
	if must := os.Getenv("SANDLOT_MUST_RUN"); must != "" {
		t.Fatal("no browser is installed, but SANDLOT_MUST_RUN is set")
	}
	t.Skip("no browser is installed; SANDLOT_TEST_BROWSER names one")
	return ""
}

// open starts a browser and follows the link that the server printed.
func open(t *testing.T, s *server) *browser {
	t.Helper()
	flags := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(chromium(t)), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1440, 900), chromedp.WSURLReadTimeout(patience),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true))
	alloc, endAlloc := chromedp.NewExecAllocator(context.Background(), flags...)
	ctx, end := chromedp.NewContext(alloc)
	b := &browser{t: t, ctx: ctx}
	t.Cleanup(func() {
		if t.Failed() {
			b.picture()
		}
		_ = chromedp.Cancel(ctx) // waits until the browser has ended; how it did doesn't matter
		end()
		endAlloc()
	})
	// This starts the browser, which lives as long as ctx.
	if err := chromedp.Listen(ctx, func(ev any) { b.hear(s, ev) }); err != nil {
		t.Fatalf("start the browser: %v", err)
	}
	b.do("watch the page", command(network.Enable, network.EnableParams{}), command(runtime.Enable, cdp.Empty{}),
		command(page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watchPolicy}))
	b.do("follow the link", chromedp.Navigate(s.signin), chromedp.WaitVisible("main h1"))
	return b
}

// hear notes what a page must not do: fail, break its own policy, or turn to another server.
func (b *browser) hear(s *server, ev any) {
	fault := ""
	switch e := ev.(type) {
	case *runtime.EventExceptionThrown:
		fault = "exception: " + e.ExceptionDetails.Text
		if o := e.ExceptionDetails.Exception; o != nil {
			fault += " " + o.Description
		}
	case *runtime.EventConsoleAPICalled:
		for _, a := range e.Args {
			fault += "console: " + string(a.Value)
		}
	case *network.EventRequestWillBeSent:
		if url := e.Request.URL; !strings.HasPrefix(url, s.url+"/") && !strings.HasPrefix(url, "data:") && !strings.HasPrefix(url, "blob:") {
			fault = "request to another server: " + url
		}
	}
	if fault != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.faults = append(b.faults, fault)
	}
}

// wantNoFaults checks that nothing was heard.
func (b *browser) wantNoFaults() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		b.t.Errorf("the page did what it must not: %s", f)
	}
}

// command makes a command of the browser's protocol into an action.
func command[P, R any](cmd cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, cmd, params)
		return err
	})
}

// insert types text where the focus is, in one go.
func insert(text string) chromedp.Action[chromedp.Void] {
	return command(input.InsertText, input.InsertTextParams{Text: text})
}

// enter presses the key. The library's own way sends the character apart from the key, so a page can't keep it away.
func enter() chromedp.Action[chromedp.Void] {
	key := input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyDown, Key: "Enter", Code: "Enter", WindowsVirtualKeyCode: 13, Text: "\r"}
	up := key
	up.Type, up.Text = input.DispatchKeyEventTypeKeyUp, ""
	return chromedp.Steps(command(input.DispatchKeyEvent, key), command(input.DispatchKeyEvent, up))
}

// script evaluates JavaScript, whatever it returns.
func script(code string) chromedp.Action[chromedp.Void] {
	return chromedp.Evaluate[chromedp.Void]("(async () => { "+code+" })().then(() => ({}))", chromedp.EvalAwaitPromise)
}

// do runs actions as one step, for which there is patience.
func (b *browser) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

// until waits until a JavaScript expression is true.
func (b *browser) until(what, expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	poll := chromedp.Poll[bool]("Boolean("+expression+")", chromedp.WithPollingTimeout(0), chromedp.WithPollingInterval(50*time.Millisecond))
	if _, err := chromedp.Run(ctx, poll); err != nil {
		b.t.Fatalf("wait until %s: %v\nthe page shows:\n%s", what, err, b.text("body"))
	}
}

// ask evaluates a JavaScript expression.
func ask[T any](b *browser, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("evaluate %s: %v", expression, err)
	}
	return v
}

// press clicks the visible button, or link, with exactly these words.
func (b *browser) press(words string) {
	b.t.Helper()
	find := fmt.Sprintf(`[...document.querySelectorAll("button, a")].find((e) => e.checkVisibility() && (e.innerText.trim() === %[1]q || e.ariaLabel === %[1]q))`, words)
	b.until("there is a button "+words, find)
	b.do("press "+words, script(find+".click()"))
}

// write types into the composer and sends with Enter.
func (b *browser) write(text string) {
	b.t.Helper()
	b.do("write "+text, chromedp.WaitVisible("textarea"), chromedp.Focus("textarea"), insert(text), enter())
}

// text is what the page shows of an element.
func (b *browser) text(selector string) string {
	b.t.Helper()
	return ask[string](b, fmt.Sprintf(`document.querySelector(%q)?.innerText ?? ""`, selector))
}

// turn is the innerText of turn n, from 1.
const turnText = `(document.querySelectorAll(".turn")[%d - 1]?.innerText ?? "")`

// finished waits for the end of turn n and returns what it shows.
func (b *browser) finished(n int) string {
	b.t.Helper()
	b.until(fmt.Sprintf("turn %d has ended", n), fmt.Sprintf(`document.querySelectorAll(".turn").length >= %[1]d && document.querySelectorAll(".turn")[%[1]d - 1].querySelector(".fin, .notice.bad")`, n))
	return ask[string](b, fmt.Sprintf(turnText, n))
}

// picture keeps what was to be seen when a test failed, where SANDLOT_TEST_PICTURES says.
func (b *browser) picture() {
	dir := os.Getenv("SANDLOT_TEST_PICTURES")
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Logf("no picture: %v", err)
		return
	}
	name := dir + "/" + strings.ReplaceAll(b.t.Name(), "/", "_") + ".png"
	if err := os.WriteFile(name, png, 0o644); err != nil {
		b.t.Logf("no picture: %v", err)
	}
}

// has checks that a text holds all of some words.
func has(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s doesn't show %q:\n%s", what, w, text)
		}
	}
}

var took = regexp.MustCompile(`\n[0-9.]+ m?s\n`)

// TestBrowserMainJob is the main job as a person does it: follow the link, press "New sandbox", type, watch, and find it
// all again after a reload.
func TestBrowserMainJob(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	b := open(t, s)
	has(t, "the first page", b.text("body"), "What should Claude do?", "Demo model: answers come from a script, not from Claude.")

	b.press("New sandbox")
	b.until("its progress or the sandbox is shown", `document.querySelector(".steps") || document.querySelector("[data-state=running]")`)
	b.until("the sandbox runs", `document.querySelector("[data-state=running]")`)
	has(t, "the running sandbox", b.text("main"), "Accepted", "Volume", "Claude ready")

	b.write("Write a small script and run it.")
	b.until("the session is shown", `location.pathname.startsWith("/session/ses_")`)
	first := b.finished(1)
	has(t, "the answer", first, "Write a small script and run it.", "Wrote", "hello.sh", "Ran", "Read", "Hello from a sandbox!", "3 calls")
	if n := ask[int](b, `document.querySelectorAll(".turn .call .head").length`); n != 3 {
		t.Errorf("%d tool calls are shown", n)
	}
	b.do("open the command's output", script(`[...document.querySelectorAll(".call .head")].find((e) => e.innerText.startsWith("Ran")).click()`))
	has(t, "the command's output", b.text(".call .out"), "Hello from a sandbox!", "gvisor")

	session := strings.TrimPrefix(ask[string](b, "location.pathname"), "/session/")
	list, err := s.SessionEvents(within(t), session, 0)
	if err != nil || len(list.Events) == 0 {
		t.Errorf("the server's log of the session: %v, %d events", err, len(list.Events))
	}

	b.do("reload", chromedp.Reload())
	// Times may differ a little: the browser's clock while it watched, the server's afterwards.
	if again := b.finished(1); took.ReplaceAllString(again, "TIME") != took.ReplaceAllString(first, "TIME") {
		t.Errorf("after a reload the turn shows\n%s\ninstead of\n%s", again, first)
	}
	if title := ask[string](b, "document.title"); !strings.Contains(title, "Write a small script") {
		t.Errorf("the page's title is %q", title)
	}
	b.wantNoFaults()
}

// TestBrowserTurns is what happens in a conversation: a queue, Escape, code, errors, and text that must do nothing.
func TestBrowserTurns(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	b := open(t, s)
	b.do("open the sandbox", chromedp.Navigate(s.url+"/sandbox/"+sb.ID))

	b.write("slow stream")
	b.until("the answer streams", `document.querySelector(".prose.live")`)
	b.do("reload in the middle", chromedp.Reload())
	b.until("the answer goes on streaming", `document.querySelector(".prose.live")?.innerText.includes("demo model")`)
	b.write("Show me code blocks.")
	b.until("the second message waits", `document.querySelector(".queued")?.innerText.includes("next, when Claude is done")`)
	b.do("press Escape", chromedp.KeyEvent(kb.Escape))
	has(t, "the stopped turn", b.finished(1), "Stopped by you")

	has(t, "the answer with code", b.finished(2), "That was the last block.", "<script>window.__pwned = 1</script>")
	if ask[bool](b, `"__pwned" in window || document.images.length > 0`) {
		t.Error("what the model wrote did something, or loaded a picture")
	}
	if got := ask[string](b, `document.querySelector(".codeblock pre").textContent`); got != "package main\n\nimport \"fmt\"\n\nfunc main() {\n\tfmt.Println(\"a < b && c > d\")\n}" {
		t.Errorf("a code block would be copied as %q", got)
	}
	b.do("show the first code block", script(`document.querySelector(".codeblock").scrollIntoView()`))
	b.until("it is coloured", `document.querySelector(".codeblock .hljs-keyword")`)

	b.write("Make a tool error.")
	b.finished(3)
	if !ask[bool](b, `[...document.querySelectorAll(".turn")][2].querySelector(".call .head[aria-expanded=true]") !== null`) {
		t.Error("a call that failed is not open")
	}
	b.write("api error")
	has(t, "the failed turn", b.finished(4), "Claude could not finish this turn.", "API error that the demo model was asked for", "Send it again")

	b.do("type and reload", chromedp.Focus("textarea"), insert("not sent yet"), chromedp.Reload())
	b.until("the draft is there again", `document.querySelector("textarea")?.value === "not sent yet"`)
	b.wantNoFaults()
}

// TestBrowserAsks is what Claude wants of people: it is shown in every browser, outlasts a reload, and is answered once.
func TestBrowserAsks(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	b := open(t, s)
	choose := func(mode string) {
		b.do("choose "+mode, script(fmt.Sprintf(`const s = document.querySelector(".composer select"); s.value = %q; s.dispatchEvent(new Event("change", {bubbles: true}))`, mode)))
	}
	b.do("open the sandbox", chromedp.Navigate(s.url+"/sandbox/"+sb.ID), chromedp.WaitVisible(".composer select"))
	choose("default")
	b.write("ask permission for something")
	const ready = `document.querySelector(".ask-card:not(.fresh)")`
	b.until("Claude asks", ready)
	has(t, "the card", b.text(".ask-card"), "Run this command?", "Allow once", "For this session", "Deny", "denied in")
	b.until("the list and the title say so", `document.querySelector(".sess.need") && document.title.startsWith("◆ 1")`)
	b.do("type what to do instead, and reload", chromedp.Focus(".ask-card input"), insert("not like this"), chromedp.Reload())
	b.until("it still asks, and what was typed is there", ready+` && document.querySelector(".ask-card input").value === "not like this"`)

	// Somebody else, at a browser of their own, is quicker.
	c := open(t, s)
	c.do("sign in elsewhere", script(fmt.Sprintf(`await fetch("/signin", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({key: %q})})`, adminKey)))
	c.do("open the session elsewhere", chromedp.Navigate(ask[string](b, "location.href")))
	c.until("it asks there too", ready)
	c.do("allow it", script(`document.querySelector('.ask-card [data-key="1"]').click()`))
	b.until("the answer is told here", `document.querySelector(".told")?.innerText.includes("Allowed") && !document.querySelector(".ask-card")`)
	b.finished(1)

	b.write("ask permission again")
	b.until("Claude asks again", ready)
	b.do("say what to do instead", chromedp.Focus(".ask-card input"), insert("not like this"), chromedp.KeyEvent(kb.Enter))
	has(t, "the turn that was denied something", b.finished(2), "denied", "not like this")

	b.write("ask me a question")
	b.until("Claude has a question", ready+` && document.querySelector(".opt input")`)
	b.do("choose the first", script(`document.querySelector(".opt input").click()`))
	b.press("Next")
	b.until("there is another", `document.querySelector(".opt input[type=checkbox]")`)
	b.do("choose the first", script(`document.querySelector(".opt input").click()`))
	b.press("Answer")
	has(t, "the turn with a question", b.finished(3), "Answered")

	choose("plan")
	b.write("make a plan")
	b.until("there is a plan", ready+` && document.querySelector(".ask-what.doc")`)
	b.press("Start, accept edits")
	b.until("the plan's command is asked for", `document.querySelector(".ask-card:not(.fresh) pre.ask-what")`)
	b.do("allow it", script(`document.querySelector('.ask-card [data-key="1"]').click()`))
	has(t, "the turn with a plan", b.finished(4), "Plan approved")
	b.wantNoFaults()
	c.wantNoFaults()
}

// TestBrowserPlace checks that the page doesn't move under a reader while an answer streams.
func TestBrowserPlace(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	b := open(t, s)
	b.do("open the sandbox", chromedp.Navigate(s.url+"/sandbox/"+sb.ID))
	b.write("long answer")
	b.finished(1)
	b.write("slow stream")
	b.until("the second answer streams", `document.querySelectorAll(".turn").length === 2 && document.querySelector(".prose.live")`)
	end := ask[float64](b, `document.querySelector(".log").scrollTop`)
	b.do("scroll up", chromedp.MouseEvent(input.DispatchMouseEventTypeMouseWheel, 800, 400, func(p *input.DispatchMouseEventParams) { p.DeltaX, p.DeltaY = 1, -1200 }))
	b.until("the way back is offered", fmt.Sprintf(`document.querySelector(".latest") && document.querySelector(".log").scrollTop <= %v - 1100`, end))
	before := ask[float64](b, `document.querySelector(".log").scrollTop`)
	b.finished(2)
	if after := ask[float64](b, `document.querySelector(".log").scrollTop`); after != before {
		t.Errorf("the page moved under the reader: from %v to %v", before, after)
	}
	b.do("go to the end", script(`document.querySelector(".latest").click()`))
	b.until("the end is in view", `(() => { const l = document.querySelector(".log"); return l.scrollHeight - l.clientHeight - l.scrollTop < 2; })()`)
	b.wantNoFaults()
}

// TestBrowserEnd is how a session goes on when its sandbox has ended.
func TestBrowserEnd(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{Name: "short-lived", Volume: "kept"})
	prompt(t, s, sb.ID, api.Prompt{Prompt: "Write note.txt: keep me"})
	b := open(t, s)
	b.finished(1)
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Fatal(err)
	}
	b.until("the end is told", `[...document.querySelectorAll(".notice")].some((n) => n.innerText.includes("sandbox has stopped"))`)
	has(t, "the notice", b.text(".log"), "volume kept", "Continue here", "New sandbox")

	b.press("Continue here")
	b.write("run: cat note.txt")
	has(t, "the answer in the new sandbox", b.finished(2), "keep me")

	// The page may know at once that it is signed out, and cover its field.
	b.do("sign out and send", chromedp.Focus("textarea"), insert("still here?"), script(`await fetch("/signout", {method: "POST"});
		document.querySelector("textarea").dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true}))`))
	b.until("signing in is asked for", `document.querySelector(".again")?.innerText.includes("Your session ended.")`)
	b.do("sign in again", chromedp.Focus("#key"), insert(adminKey), enter())
	has(t, "the answer after signing in again", b.finished(3), "still here?")
	b.wantNoFaults()
}

// TestBrowserPhone checks that no page is wider than a small phone, and that signing in needs a good key.
func TestBrowserPhone(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	u := prompt(t, s, sb.ID, api.Prompt{Prompt: "Show me code blocks."})
	b := open(t, s)
	b.do("be a phone", chromedp.EmulateViewport(320, 640, chromedp.EmulateMobile, chromedp.EmulateTouch))
	for path, ready := range map[string]string{
		"/session/" + u.session: ".fin", "/sandbox/" + sb.ID: ".facts", "/sandboxes": ".table", "/sessions": ".session-page .sess a", "/new?options": "#opt-name",
		"/sandboxes?new": ".sheet #opt-name", "/images": ".empty", "/secrets": ".empty", "/nowhere": ".hello h1",
	} {
		b.do("open "+path, chromedp.Navigate(s.url+path), chromedp.WaitVisible(ready))
		if wide := ask[[]string](b, `[document.documentElement, ...document.querySelectorAll(".main, .page, .log, .sheet .sb")].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.className || e.localName)`); len(wide) > 0 {
			t.Errorf("%s is wider than 320 px: %v", path, wide)
		}
	}
	b.do("leave", script(`await fetch("/signout", {method: "POST"})`), chromedp.Navigate(s.url+"/sandboxes"), chromedp.WaitVisible("#key"))
	b.do("try a bad key", chromedp.Focus("#key"), insert("slk_wrong"), enter(), chromedp.WaitVisible(".notice.bad"))
	has(t, "the sign-in page", b.text("main"), "This key is not known here.", "invalid_key")
	b.do("use the good key", script(`document.querySelector("#key").value = ""`), chromedp.Focus("#key"), insert(adminKey), enter(), chromedp.WaitVisible(".table"))
	if path := ask[string](b, "location.pathname"); path != "/sandboxes" {
		t.Errorf("after signing in the page is %s", path)
	}
	b.wantNoFaults()
}
