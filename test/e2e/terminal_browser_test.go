package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// rows is what the terminal on the page shows.
const rows = `([...document.querySelectorAll(".xterm-rows > div")].map((e) => e.innerText.replace(/\u00a0/g, " ").trimEnd()).join("\n"))`

// shown waits until the terminal on the page shows text.
func (b *browser) shown(text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("the terminal shows %q", text), fmt.Sprintf("%s.includes(%q)", rows, text))
}

// TestBrowserTerminal sits at a terminal as a person does in a browser: type, reload, watch, take over, end, and the phone's keys.
func TestBrowserTerminal(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{Name: "otter"})
	b := open(t, s)
	b.do("open the sandbox's terminal", chromedp.Navigate(s.url+"/sandbox/"+sb.ID+"/terminal"))
	b.shown("$")
	b.do("focus it", chromedp.Focus(".xterm-helper-textarea"))
	b.do("type a command", insert("echo $((40+2)); printf '\\033[31mred\\033[0m\\n'"), enter())
	b.shown("\n42\nred")
	if color := ask[string](b, `getComputedStyle([...document.querySelectorAll(".xterm-rows span")].find((e) => e.innerText === "red")).color`); color == ask[string](b, `getComputedStyle(document.querySelector(".xterm-rows")).color`) {
		t.Errorf("red text is %s, like all other", color)
	}
	run := ask[string](b, `new URLSearchParams(location.search).get("term")`)
	if !strings.HasPrefix(run, "run_") {
		t.Errorf("the terminal in the address is %q", run)
	}
	b.do("set a variable", insert("KEEP=kept"), enter())
	b.do("reload", chromedp.Reload())
	b.shown("\n42\nred")
	b.do("focus it", chromedp.Focus(".xterm-helper-textarea"))
	b.do("use the variable", insert("echo I am $KEEP"), enter())
	b.shown("\nI am kept")
	if strings.Contains(b.text(".term-one"), "Read-only") {
		t.Error("after a reload who wrote only watches")
	}

	// Somebody else takes over, and gives back.
	other, err := s.Terminal(t.Context(), sb.ID, client.TerminalOptions{Run: run, Take: true, Cols: 60, Rows: 15})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan bool, 100)
	done := make(chan error, 1)
	go func() {
		for e, err := range other.Events() {
			if err != nil {
				done <- err
				return
			}
			told <- e.Writer
		}
		done <- nil
	}()
	b.until("it is read-only", `document.querySelector(".term-one").innerText.includes("Read-only")`)
	if _, err := other.Write([]byte("echo from $((1+1))nd\r")); err != nil {
		t.Error(err)
	}
	b.shown("\nfrom 2nd")
	b.press("Take over")
	for is := range told {
		if !is {
			break
		}
	}
	b.until("it is not read-only any more", `!document.querySelector(".term-one").innerText.includes("Read-only")`)
	if err := other.Close(); err != nil {
		t.Error(err)
	}

	b.do("focus it", chromedp.Focus(".xterm-helper-textarea"))
	b.do("leave it", command(input.DispatchKeyEvent, input.DispatchKeyEventParams{
		Type: input.DispatchKeyEventTypeRawKeyDown, Key: ">", Code: "Period", WindowsVirtualKeyCode: 190, Modifiers: 2 | 8, // Ctrl and Shift
	}))
	b.until("the focus is on the tab", `document.activeElement?.getAttribute("role") === "tab"`)
	b.do("exit", chromedp.Focus(".xterm-helper-textarea"), insert("exit 7"), enter())
	b.until("the end is told", `document.querySelector(".term-one").innerText.includes("exited 7")`)
	b.press("Restart")
	b.until("there is a fresh one", fmt.Sprintf(`new URLSearchParams(location.search).get("term")?.startsWith("run_") && new URLSearchParams(location.search).get("term") !== %q`, run))
	b.shown("$")

	// A phone: keys that it lacks, and no page that scrolls sideways.
	b.do("be a phone", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 390, Height: 844, DeviceScaleFactor: 1, Mobile: true}))
	b.until("the keys are there", `document.querySelector(".keybar").checkVisibility()`)
	key := func(name string) chromedp.Action[chromedp.Void] {
		return script(fmt.Sprintf(`[...document.querySelectorAll(".keybar button")].find((e) => e.innerText === %q).click()`, name))
	}
	b.do("run something", chromedp.Focus(".xterm-helper-textarea"), insert("echo ready; cat -v"), enter())
	b.shown("\nready")
	b.do("press Ctrl, then a; Alt, then x; Esc and an arrow", key("Ctrl"), insert("a"), key("Alt"), insert("x"), key("Esc"), key("↑"), enter())
	b.shown("^A^[x^[^[[A")
	b.do("interrupt", key("⌃C"), insert("echo over $((3+4))"), enter())
	b.shown("over 7")
	if ask[bool](b, `document.documentElement.scrollWidth > innerWidth`) {
		t.Error("the page scrolls sideways")
	}
	b.wantNoFaults()
}
