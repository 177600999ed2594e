package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

// site is a program for node: a page, what it sees of a request, and a WebSocket, without any package.
const site = `
const http = require("http"), crypto = require("crypto");
const server = http.createServer((req, res) => {
	res.setHeader("Set-Cookie", ["theirs=1", "sandlot=evil; Path=/", "wide=1; Domain=localhost"]);
	if (req.url === "/seen") return res.end(JSON.stringify(req.headers));
	if (req.url === "/events") {
		res.setHeader("Content-Type", "text/event-stream");
		let n = 0;
		const timer = setInterval(() => res.write("data: " + n++ + "\n\n"), 20);
		return req.on("close", () => clearInterval(timer));
	}
	res.setHeader("Content-Type", "text/html");
	res.end("<!doctype html><title>The app</title><h1 id=app>Hello from " + require("os").hostname() + "</h1><p>" + req.url + "</p>");
});
server.on("upgrade", (req, socket) => {
	const key = crypto.createHash("sha1").update(req.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
	socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + key + "\r\n\r\n");
	socket.on("data", (b) => { // one short masked message
		const n = b[1] & 127, text = Buffer.from(b.subarray(6, 6 + n).map((c, i) => c ^ b[2 + i % 4])).toString();
		const answer = Buffer.from("echo " + text);
		socket.write(Buffer.concat([Buffer.from([0x81, answer.length]), answer]));
	});
	socket.on("error", () => {});
});
server.listen(3000, () => console.log("listening"));
`

// serveIn starts a program in a sandbox and returns when it has said that it listens.
func serveIn(t *testing.T, s *server, sandbox string, in api.Exec) {
	t.Helper()
	for e, err := range s.Exec(within(t), sandbox, in) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Exit != nil {
			t.Fatalf("%v has ended: %+v", in.Argv, e.Exit)
		}
		if strings.Contains(strings.ToLower(string(e.Data)), "listening") {
			return // it goes on without us
		}
	}
	t.Fatalf("%v didn't listen", in.Argv)
}

// TestPreview opens a program in a real sandbox in a real browser, beside Sandlot's own pages.
func TestPreview(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	b := open(t, s)

	p, err := s.Preview(within(t), sb.ID, api.CreatePreview{Port: 3000, Path: "/hello?x=1"})
	if err != nil {
		t.Fatal(err)
	}
	b.do("open the preview too early", chromedp.Navigate(p.URL))
	b.until("the page waits", `document.body.innerText.includes("Nothing listens on port 3000 yet")`)
	serveIn(t, s, sb.ID, api.Exec{Argv: []string{"node", "-e", site}})
	b.do("wait until the page has come by itself", chromedp.WaitVisible("#app"))
	has(t, "the page", b.text("body"), "Hello from", "/hello?x=1")

	if at := ask[string](b, "location.href"); strings.Contains(at, "sandlot_preview") || !strings.HasSuffix(at, "/hello?x=1") {
		t.Errorf("the address is %s", at)
	}
	if cookies := ask[string](b, "document.cookie"); cookies != "theirs=1" && cookies != "theirs=1; wide=1" && cookies != "wide=1; theirs=1" {
		t.Errorf("the page's script sees the cookies %q", cookies)
	}
	b.do("ask what the program sees", script(`window.seen = await (await fetch("/seen")).json()`))
	if seen := ask[string](b, "JSON.stringify(window.seen)"); strings.Contains(seen, "sandlot") || !strings.Contains(seen, `theirs=1`) ||
		!strings.Contains(seen, `"x-forwarded-for":"127.0.0.1"`) {
		t.Errorf("the program sees %s", seen)
	}
	b.do("talk over a WebSocket", script(`
		const ws = new WebSocket("ws://" + location.host + "/ws");
		await new Promise((ok, no) => { ws.onopen = ok; ws.onerror = no; });
		window.said = await new Promise((ok) => { ws.onmessage = (e) => ok(e.data); ws.send("hello"); });
		ws.close();`))
	if said := ask[string](b, "window.said"); said != "echo hello" {
		t.Errorf("the WebSocket said %q", said)
	}
	b.do("read events", script(`
		const events = new EventSource("/events");
		window.got = [];
		await new Promise((ok, no) => { events.onmessage = (e) => { window.got.push(e.data); if (window.got.length === 5) ok(); }; events.onerror = no; });
		events.close();`))
	if n := ask[int](b, "window.got.length"); n < 5 {
		t.Errorf("%d events", n)
	}
	// From there nobody gets at Sandlot in its user's name, though he is signed in.
	b.do("try Sandlot", script(fmt.Sprintf(`
		window.tried = await fetch(%q, {credentials: "include"}).then((r) => "status " + r.status, () => "refused");
		window.sent = await fetch(%q, {credentials: "include", method: "POST", mode: "no-cors"}).then(() => "sent", () => "refused");`, s.url+"/me", s.url+"/sandbox")))
	if tried := ask[string](b, "window.tried"); tried != "refused" {
		t.Errorf("the page read Sandlot's API: %s", tried)
	}
	list, err := s.Sandboxes(within(t), client.Filter{})
	if err != nil || len(list.Sandboxes) != 1 {
		t.Errorf("the page made a sandbox: %+v, %v", list, err)
	}
	// And signed in he still is, on the same browser.
	b.do("go back to Sandlot", chromedp.Navigate(s.url+"/sandboxes"), chromedp.WaitVisible(".table"))
	if cookies := ask[string](b, "document.cookie"); strings.Contains(cookies, "theirs") || strings.Contains(cookies, "wide") {
		t.Errorf("the program's cookies are at Sandlot: %q", cookies)
	}
	if _, err := s.Terminate(within(t), sb.ID); err != nil {
		t.Fatal(err)
	}
	b.do("open the preview too late", chromedp.Navigate(p.URL))
	b.until("its end is told", `document.body.innerText.includes("The sandbox has ended")`)
}

// TestPreviewPorts looks at the ports of a real sandbox, by IPv4 and by IPv6, and gets a large file through one.
func TestPreviewPorts(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	sb := create(t, s, api.CreateSandbox{})
	if list, err := s.Ports(within(t), sb.ID); err != nil || len(list.Ports) != 0 {
		t.Errorf("in a fresh sandbox: %+v, %v", list, err)
	}
	for i, host := range []string{"127.0.0.1", "::1", "0.0.0.0", "::"} {
		serveIn(t, s, sb.ID, api.Exec{Argv: []string{"node", "-e", fmt.Sprintf(
			`require("http").createServer((q, r) => r.end("I am %[1]s")).listen(%[2]d, %[1]q, () => console.log("listening"))`, host, 4000+i)}})
	}
	list, err := s.Ports(within(t), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	var ports []int
	for _, p := range list.Ports {
		ports = append(ports, p.Port)
		if p.Process != "node" || p.PID == 0 {
			t.Errorf("%+v", p)
		}
	}
	if !slices.Equal(ports, []int{4000, 4001, 4002, 4003}) {
		t.Errorf("ports %v", ports)
	}
	for i, host := range []string{"127.0.0.1", "::1", "0.0.0.0", "::"} {
		if got := fetch(t, s, sb.ID, 4000+i, "/"); got != "I am "+host {
			t.Errorf("port %d: %q", 4000+i, got)
		}
	}

	const size = 50 << 20
	if _, err := s.WriteFile(within(t), sb.ID, "/workspace/big", io.LimitReader(endless{}, size)); err != nil {
		t.Fatal(err)
	}
	serveIn(t, s, sb.ID, api.Exec{Argv: []string{"node", "-e",
		`require("http").createServer((q, r) => require("fs").createReadStream("big").pipe(r)).listen(8000, () => console.log("listening"))`}})
	begin := time.Now()
	if got := fetch(t, s, sb.ID, 8000, "/big"); len(got) != size {
		t.Errorf("%d bytes", len(got))
	}
	t.Logf("50 MiB took %s", time.Since(begin))
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// fetch gets something through a preview. Names below localhost are for browsers; the resolver may not know them.
func fetch(t *testing.T, s *server, sandbox string, port int, path string) string {
	t.Helper()
	p, err := s.Preview(within(t), sandbox, api.CreatePreview{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, wanted, err := net.SplitHostPort(u.Host); err != nil || !strings.HasSuffix(s.url, ":"+wanted) || !strings.HasSuffix(u.Hostname(), ".localhost") {
		t.Errorf("the preview is at %s, the server at %s", u.Host, s.url)
	}
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = u.Host
	req.Header.Set(api.HeaderPreviewToken, p.Token)
	res, err := s.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Errorf("%s: %s", u.Host, res.Status)
	}
	return readAll(t, res.Body, nil)
}
