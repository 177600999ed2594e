package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/image/imagetest"
)

// fill puts text into a field, in the stead of what is there.
func (b *browser) fill(field, text string) {
	b.t.Helper()
	b.until("there is a field "+field, fmt.Sprintf("document.querySelector(%q)", field))
	b.do("fill in "+field, script(fmt.Sprintf("const e = document.querySelector(%q); e.focus(); e.select()", field)), insert(text))
	b.until(field+" holds it", fmt.Sprintf("document.querySelector(%q).value === %q", field, text))
}

// tick chooses a radio button or ticks a box by the words beside it.
func (b *browser) tick(words string) {
	b.t.Helper()
	find := fmt.Sprintf(`[...document.querySelectorAll("label")].find((e) => e.innerText.trim().startsWith(%q))?.querySelector("input")`, words)
	b.until("there is a choice "+words, find)
	b.do("choose "+words, script(find+".click()"))
}

// unfold opens a part of the form.
func (b *browser) unfold(name string) {
	b.t.Helper()
	find := fmt.Sprintf(`[...document.querySelectorAll(".sheet .fold .fh")].find((e) => e.innerText.startsWith(%q))`, name)
	b.until("there is a part "+name, find)
	b.do("open the part "+name, script(fmt.Sprintf(`const e = %s; if (e.ariaExpanded !== "true") e.click()`, find)))
}

// submit sends the form of a sheet.
func (b *browser) submit() {
	b.t.Helper()
	b.do("send the form", script(`document.querySelector(".sheet button[type=submit]").click()`))
}

// inState waits until the page shows a sandbox in a state, and returns its ID.
func (b *browser) inState(state string) string {
	b.t.Helper()
	b.until("a sandbox is shown as "+state, fmt.Sprintf(`location.pathname.startsWith("/sandbox/") && document.querySelector("[data-state=%s]")`, state))
	return strings.TrimPrefix(ask[string](b, "location.pathname"), "/sandbox/")
}

// TestBrowserImages makes sandboxes from a registry's image: a build that fails and says where, the same mended, and a snapshot of
// what came of it.
func TestBrowserImages(t *testing.T) {
	t.Parallel()
	reg := imagetest.NewRegistry(t)
	base := reg.Push(t, "base:1", imagetest.Image(t, nil, imagetest.Busybox(t)))
	s := start(t, options{args: []string{"--demo-model", "--private-registries=" + reg.Host}})
	b := open(t, s)
	b.until("the page listens to keys", `document.querySelector(".hello h1")`)
	b.do("leave the field and press c", script(`document.activeElement.blur()`), chromedp.KeyEvent("c"))
	b.until("the sheet is open", `document.querySelector(".sheet[open] #opt-name")`)

	b.tick("Registry")
	b.submit()
	b.until("the missing reference is told at its field", `document.querySelector("#opt-registry")?.ariaInvalid === "true" && document.querySelector("#opt-registry-hint").innerText.includes("Which image?")`)
	b.fill("#opt-registry", "NOT/a:good:reference")
	b.submit()
	b.until("what the server refuses is told at its field", `document.querySelector("#opt-registry")?.ariaInvalid === "true" && document.querySelector(".sheet .notice.bad")?.innerText.includes("could not be created")`)

	b.fill("#opt-registry", base)
	b.fill("#opt-name", "mended")
	b.unfold("Limits")
	b.fill("#opt-memory", "256 MiB")
	b.unfold("Advanced")
	b.fill("#opt-commands", "RUN echo made > /opt.txt && echo first line\nRUN echo about to fail; echo the reason >&2; exit 3")
	b.submit()
	b.inState("error")
	has(t, "the failure", b.text(".notice.bad"), "The image could not be built.", "Line 2, RUN echo about to fail", "ended with exit code 3", "the reason")
	b.until("the log tells all", `document.querySelector(".logbox")?.innerText.includes("first line") && document.querySelector(".ln.t-bad")`)
	has(t, "the marked lines", ask[string](b, `[...document.querySelectorAll(".ln.t-bad")].map((e) => e.innerText).join("\n")`), "Step 2 of 2: RUN echo about to fail", "Line 2 ended with exit code 3.")
	has(t, "the steps", ask[string](b, `document.querySelector(".step.bad").innerText`), "Build commands", "Step 2 of 2")

	b.press("Edit commands")
	b.until("the form has everything, and says what is wrong", fmt.Sprintf(`document.querySelector("#opt-registry")?.value === %q && document.querySelector("#opt-commands-hint")?.innerText === "Line 2 ended with exit code 3."`, base))
	b.fill("#opt-commands", "RUN echo made > /opt.txt && echo first line")
	b.submit()
	id := b.inState("running")
	sb, err := s.Sandbox(within(t), id)
	if err != nil || sb.Image.Registry != base || sb.MemoryMiB != 256 || sb.Name != "mended" || len(sb.Image.DockerfileCommands) != 1 {
		t.Errorf("the sandbox is %+v, %v", sb, err)
	}
	has(t, "the facts", b.text(".facts"), base, "1 build line", "sha256:")
	has(t, "the limits", b.text("main"), "256 MiB", "not limited")
	if run, err := s.ExecWait(within(t), id, api.Exec{Argv: []string{"sh", "-c", "cat /opt.txt; echo later > /later.txt"}, User: "root"}); err != nil || run.Stdout != "made\n" {
		t.Errorf("in it: %+v, %v", run, err)
	}

	b.press("More about this sandbox")
	b.press("Make a snapshot")
	b.fill("#snap-name", "after the work")
	b.press("Make snapshot")
	b.press("New sandbox from it")
	b.until("the sheet begins with the snapshot", `document.querySelector("#opt-saved")?.selectedOptions[0]?.innerText.startsWith("after the work")`)
	b.fill("#opt-name", "the second")
	b.submit()
	b.until("another sandbox is shown", fmt.Sprintf(`location.pathname.startsWith("/sandbox/") && location.pathname !== "/sandbox/%s"`, id))
	second := b.inState("running")
	if run, err := s.ExecWait(within(t), second, api.Exec{Argv: []string{"cat", "/opt.txt", "/later.txt"}}); err != nil || run.Stdout != "made\nlater\n" {
		t.Errorf("in the second: %+v, %v", run, err)
	}

	b.do("open the images", chromedp.Navigate(s.url+"/image"), chromedp.WaitVisible(".table"))
	has(t, "the images", b.text(".table"), "after the work", "Snapshot", base, "Built", "used by 1 sandbox")
	b.press("More about after the work")
	b.press("Delete")
	b.press("Delete image")
	b.until("it is gone", `!document.querySelector("dialog[open]") && !document.querySelector(".table").innerText.includes("after the work")`)
	b.press("Pull or build")
	b.fill("#opt-registry", base)
	b.submit()
	b.until("it is pulled", `document.querySelector(".notice")?.innerText.includes("is ready.") && document.querySelector(".table").innerText.includes("Pulled")`)
	b.press("Dismiss")
	b.do("export it, and drop the archive on the page", script(`
		const list = (await (await fetch("/image", {headers: {Accept: "application/json"}})).json()).images;
		const archive = await (await fetch("/image/" + list.find((i) => i.kind === "registry").id + "/export?format=docker")).blob();
		const files = new DataTransfer();
		files.items.add(new File([archive], "saved.tar"));
		document.querySelector(".page").dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));`))
	b.until("it is imported", `document.querySelector(".notice")?.innerText.includes("saved.tar is ready.") && document.querySelector(".table").innerText.includes("Imported")`)
	b.press("Dismiss")
	b.do("drop what is no archive", script(`
		const files = new DataTransfer();
		files.items.add(new File(["no archive at all"], "notes.txt"));
		document.querySelector(".page").dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));`))
	b.until("it is refused", `document.querySelector(".notice.bad")?.innerText.includes("notes.txt could not be imported.")`)
	b.wantNoFaults()
}

// TestBrowserLive changes a sandbox that runs: its name, time and network, a preview of a port, and its sleep.
func TestBrowserLive(t *testing.T) {
	t.Parallel()
	reg := imagetest.NewRegistry(t)
	image := reg.Push(t, "base:1", imagetest.Image(t, nil, imagetest.Busybox(t)))
	s := start(t, options{args: []string{"--demo-model", "--private-registries=" + reg.Host}})
	sb := create(t, s, api.CreateSandbox{Name: "old name", Image: &api.Image{Registry: image}})
	const serve = `mkdir /tmp/site; echo "<p>hello from the sandbox</p>" >/tmp/site/index.html; exec busybox httpd -f -p 3000 -h /tmp/site`
	next, stop := pull(s, sb.ID, api.Exec{Argv: []string{"sh", "-c", serve}})
	defer stop()
	if err := next(); err != nil {
		t.Fatal(err)
	}
	b := open(t, s)
	b.do("open the sandbox", chromedp.Navigate(s.url+"/sandbox/"+sb.ID))
	b.inState("running")
	is := func(what string, want func(api.Sandbox) bool) {
		t.Helper()
		if got, err := s.Sandbox(within(t), sb.ID); err != nil || !want(got) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}

	b.press("More about this sandbox")
	b.press("Rename")
	b.fill("#new-name", "new name")
	b.do("send with Enter", enter())
	b.until("the name is shown", `document.querySelector(".top h1").innerText === "new name"`)
	is("renamed", func(sb api.Sandbox) bool { return sb.Name == "new name" })

	b.do("extend", script(`[...document.querySelectorAll(".score button")].find((e) => e.innerText === "Extend").click()`))
	b.fill("#more-time", "soon")
	b.press("Set time")
	b.until("it isn't a time", `document.querySelector("#more-time-hint").innerText.startsWith("A time, as")`)
	b.fill("#more-time", "4 h")
	b.press("Set time")
	b.until("the time is shown", `/Stops in\s*(3 h 5\d m|4 h 00 m)/.test(document.querySelector(".score").innerText)`)
	is("extended", func(sb api.Sandbox) bool { return time.Until(sb.ExpiresAt) > 3*time.Hour })

	b.press("More about this sandbox")
	b.press("Change network")
	b.tick("Only these")
	b.fill("#live-net-host", "https://pypi.org/simple *.example.com,10.0.0.1")
	b.press("Change network")
	b.until("what the server refuses is told", `document.querySelector("#live-net-host-hint").innerText.includes("10.0.0.1")`)
	b.press("Remove 10.0.0.1")
	b.press("Change network")
	b.until("the network is shown", `!document.querySelector("dialog[open]") && document.querySelector(".facts").innerText.includes("*.example.com")`)
	is("its network", func(sb api.Sandbox) bool {
		return sb.Network.Mode == "egress" && slices.Equal(sb.Network.Allow, []string{"pypi.org", "*.example.com"})
	})

	b.until("the port is found", `document.querySelector(".ports")?.innerText.includes(":3000")`)
	tab := chromedp.WaitNewTarget(b.ctx, func(i *target.Info) bool { return i.Type == "page" && strings.Contains(i.URL, "3000-sbx-") })
	b.do("open the preview", script(`document.querySelector(".ports .btn").click()`))
	b.preview(tab)
	has(t, "the port", b.text(".ports"), "3000-sbx-", "Copy link", "good for")

	b.press("Suspend")
	b.inState("suspended")
	has(t, "the suspended sandbox", b.text("main"), "This sandbox is suspended.", "Kept for")
	b.do("open the list", chromedp.Navigate(s.url+"/sandboxes"), chromedp.WaitVisible(".table"))
	has(t, "the list", b.text(".table"), "new name", "Suspended")
	b.do("resume from the list", script(`[...document.querySelectorAll(".table .btn")].find((e) => e.innerText.startsWith("Resume")).click()`))
	b.until("it runs", `document.querySelector(".table").innerText.includes("Idle")`)
	is("resumed", func(sb api.Sandbox) bool { return sb.State == "running" })
	b.wantNoFaults()
}

// preview checks what the new tab shows.
func (b *browser) preview(tab <-chan target.ID) {
	b.t.Helper()
	select {
	case id := <-tab:
		ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithTargetID(id))
		defer cancel()
		ctx, end := context.WithTimeout(ctx, patience)
		defer end()
		got, err := chromedp.Run(ctx, chromedp.Poll[string](`document.body.innerText.includes("hello from the sandbox") && location.href + " " + document.cookie + (window.opener ? " opener" : "")`, chromedp.WithPollingTimeout(0)))
		if err != nil {
			b.t.Fatalf("the preview: %v", err)
		}
		if !strings.Contains(got, "3000-sbx-") || strings.Contains(got, "sandlot_preview=") || strings.Contains(got, "opener") {
			b.t.Errorf("the preview is at %s", got)
		}
	case <-time.After(patience):
		b.t.Fatal("no tab was opened")
	}
}

// pull starts a run and returns what waits for its beginning, and what stops listening to it.
func pull(s *server, sandbox string, in api.Exec) (next func() error, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	began := make(chan error, 1)
	go func() {
		for _, err := range s.Exec(ctx, sandbox, in) {
			select {
			case began <- err:
			default:
			}
		}
	}()
	return func() error { return <-began }, cancel
}

// TestBrowserSecrets keeps a secret, which nothing shows again, and deletes it.
func TestBrowserSecrets(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	b := open(t, s)
	b.do("open the secrets", chromedp.Navigate(s.url+"/secret"), chromedp.WaitVisible(".empty"))
	b.press("Add secret")
	b.press("Save secret")
	b.until("it needs a name", `document.querySelector("#secret-name-hint")?.innerText === "It needs a name."`)
	b.fill("#secret-name", "Not Good")
	b.fill("#secret-user", "mira")
	b.fill("#secret-pass", "the-password-of-this-test")
	b.press("Save secret")
	b.until("the server's reason is shown", `document.querySelector(".inner .notice.bad")?.innerText.includes("The secret was not kept.")`)
	b.fill("#secret-name", "ghcr")
	b.do("send with Enter", enter())
	b.until("it is listed", `document.querySelector(".table")?.innerText.includes("ghcr")`)
	has(t, "the list", b.text(".table"), "For a registry", "PASSWORD, USERNAME")
	if ask[bool](b, `document.documentElement.outerHTML.includes("the-password-of-this-test") || JSON.stringify({...localStorage, ...sessionStorage}).includes("the-password-of-this-test")`) {
		t.Error("the password is still in the page or in the browser's storage")
	}

	b.do("open the sheet", chromedp.Navigate(s.url+"/sandboxes?new"), chromedp.WaitVisible(".sheet"))
	b.tick("Registry")
	b.until("it is offered for a registry", `[...document.querySelectorAll("#opt-secret option")].some((o) => o.value === "ghcr")`)
	b.do("go back to the secrets", chromedp.Navigate(s.url+"/secrets"), chromedp.WaitVisible(".table"))
	b.do("delete it", script(`document.querySelector(".table .btn.danger").click()`))
	b.press("Delete secret")
	b.until("it is gone", `document.querySelector(".empty")`)
	b.wantNoFaults()
}
