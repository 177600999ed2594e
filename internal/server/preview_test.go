package server_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/server/servertest"
)

// app is a program "in" a sandbox: the fake engine has this machine's loopback. It returns its port.
func app(t *testing.T, h http.Handler) int {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().(*net.TCPAddr).Port
}

// preview is a way into a sandbox, as a test uses it.
type preview struct {
	api.Preview
	s    *servertest.Server
	host string // for the Host header
}

func open(t *testing.T, s *servertest.Server, sandbox string, port int) preview {
	t.Helper()
	p, err := s.Preview(t.Context(), sandbox, api.CreatePreview{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	return preview{p, s, u.Host}
}

// got is an answer that has been read.
type got struct {
	*http.Response
	body string
}

// ask sends a request to the preview's host. header holds names and values in turn; "" as a value leaves the header out.
func (p preview) ask(t *testing.T, method, path, body string, header ...string) got {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = p.host
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	c := *p.s.HTTP
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() // only read from
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return got{res, string(b)}
}

// token is the header that opens the preview.
func (p preview) token() []string { return []string{api.HeaderPreviewToken, p.Token} }

// code is the code of the problem that an answer is.
func (g got) code(t *testing.T) string {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal([]byte(g.body), &p); err != nil || p.Status != g.StatusCode {
		t.Fatalf("not a problem: %s %q", g.Status, g.body)
	}
	return p.Code
}

// TestPreviewInABrowser follows a preview's address as a browser does.
func TestPreviewInABrowser(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	port := app(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-App", "yes")
		w.WriteHeader(http.StatusAccepted)
		_, _ = fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.RequestURI, b)
	}))
	before := time.Now()
	p, err := s.Preview(t.Context(), sb.ID, api.CreatePreview{Port: port, Path: "/a%2Fb?x=1&y=%zz;z#frag", ExpiresS: 60})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(p.URL)
	host := fmt.Sprintf("%d-%s.%s", port, strings.ToLower(strings.ReplaceAll(sb.ID, "_", "-")), servertest.PreviewHost)
	if err != nil || u.Scheme != "http" || u.Host != host || u.Fragment != "frag" || p.Port != port ||
		p.ExpiresAt.Before(before.Add(58*time.Second)) || p.ExpiresAt.After(time.Now().Add(time.Minute)) {
		t.Fatalf("%+v, %v", p, err)
	}
	v := preview{p, s, u.Host}
	res := v.ask(t, "GET", u.RequestURI(), "")
	if res.StatusCode != http.StatusFound || res.Header.Get("Location") != "/a%2Fb?x=1&y=%zz;z" || res.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	if len(res.Cookies()) != 1 {
		t.Fatalf("cookies: %v", res.Header)
	}
	c := res.Cookies()[0]
	if !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode || c.Secure || c.MaxAge < 50 || c.MaxAge > 60 || !c.Expires.Equal(p.ExpiresAt) {
		t.Errorf("cookie %+v", c)
	}
	cookie := []string{"Cookie", c.Name + "=" + c.Value}
	res = v.ask(t, "GET", "/a%2Fb?x=1&y=%zz;z", "", cookie...)
	if res.StatusCode != http.StatusAccepted || res.body != "GET "+host+" /a%2Fb?x=1&y=%zz;z " || res.Header.Get("X-App") != "yes" {
		t.Errorf("%s %q %v", res.Status, res.body, res.Header)
	}
	for _, name := range []string{"Content-Security-Policy", "X-Content-Type-Options", "Cross-Origin-Resource-Policy", "Referrer-Policy", api.HeaderRequestID} {
		if res.Header.Get(name) != "" {
			t.Errorf("%s is ours, not the program's", name)
		}
	}
	if res = v.ask(t, "POST", "/form", strings.Repeat("x", 100_000), cookie...); res.body != "POST "+host+" /form "+strings.Repeat("x", 100_000) {
		t.Errorf("%s, %d bytes", res.Status, len(res.body))
	}
	// Whoever keeps no cookies sends the token with each request, and isn't sent elsewhere.
	if res = v.ask(t, "PUT", "/x?sandlot_preview="+p.Token+"&a=b", "y"); res.body != "PUT "+host+" /x?a=b y" {
		t.Errorf("%s %q", res.Status, res.body)
	}
	if res = v.ask(t, "GET", "/x?q&sandlot_preview=nonsense", "", v.token()...); res.body != "GET "+host+" /x?q " {
		t.Errorf("%s %q", res.Status, res.body)
	}
	if res = v.ask(t, "HEAD", "/", "", v.token()...); res.StatusCode != http.StatusAccepted || res.body != "" {
		t.Errorf("%s %q", res.Status, res.body)
	}
	// An address leads to no other host, whatever its path.
	for _, path := range []string{"//evil.example/x", "/\\evil.example", "///evil.example", "/.//evil.example"} {
		res = v.ask(t, "GET", path+"?sandlot_preview="+p.Token, "")
		to, err := (&url.URL{Scheme: "http", Host: host, Path: path}).Parse(res.Header.Get("Location"))
		if err != nil || res.StatusCode != http.StatusFound || to.Host != host {
			t.Errorf("%s leads to %v", path, to)
		}
	}
	// By TLS, as a proxy before us says, the cookie stays there and works in a frame.
	res = v.ask(t, "GET", "/?sandlot_preview="+p.Token, "", "X-Forwarded-Proto", "https")
	if c := res.Cookies()[0]; !c.Secure || c.SameSite != http.SameSiteNoneMode {
		t.Errorf("cookie %+v", c)
	}
	s.Stop()
	if log := s.Log.String(); strings.Contains(log, p.Token) {
		t.Error("a token is in the log")
	}
}

func TestCreatePreviewRefuses(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb, err := s.Create(t.Context(), api.CreateSandbox{TimeoutS: 120})
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		in       api.CreatePreview
		location string
	}{
		"no port":          {api.CreatePreview{}, "body.port"},
		"no such port":     {api.CreatePreview{Port: 65536}, "body.port"},
		"Sandlot's port":   {api.CreatePreview{Port: 39100}, "body.port"},
		"too long":         {api.CreatePreview{Port: 80, ExpiresS: 7*24*3600 + 1}, "body.expires_s"},
		"negative":         {api.CreatePreview{Port: 80, ExpiresS: -1}, "body.expires_s"},
		"another host":     {api.CreatePreview{Port: 80, Path: "//evil.example/"}, "body.path"},
		"a whole URL":      {api.CreatePreview{Port: 80, Path: "http://evil.example/"}, "body.path"},
		"relative":         {api.CreatePreview{Port: 80, Path: "x"}, "body.path"},
		"only a query":     {api.CreatePreview{Port: 80, Path: "?x"}, "body.path"},
		"no path of a URL": {api.CreatePreview{Port: 80, Path: "/%zz"}, "body.path"},
		"a line break":     {api.CreatePreview{Port: 80, Path: "/a\r\nb"}, "body.path"},
	} {
		_, err := s.Preview(t.Context(), sb.ID, tt.in)
		p := problem(t, err)
		if p.Status != http.StatusBadRequest || len(p.Errors) == 0 || p.Errors[0].Location != tt.location {
			t.Errorf("%s: %+v", name, p)
		}
	}
	p, err := s.Preview(t.Context(), sb.ID, api.CreatePreview{Port: 80, ExpiresS: 3600})
	if err != nil || p.ExpiresAt.After(sb.ExpiresAt) {
		t.Errorf("it outlives the sandbox: %+v, %v", p, err)
	}

	_, key := servertest.AddAccount(t, s.Store, "second")
	other := s.As(t, key)
	_, err = other.Preview(t.Context(), sb.ID, api.CreatePreview{Port: 80})
	if problem(t, err).Status != http.StatusNotFound {
		t.Errorf("another account: %v", err)
	}
	if _, err = other.Ports(t.Context(), sb.ID); problem(t, err).Status != http.StatusNotFound {
		t.Errorf("another account: %v", err)
	}
	if _, err := s.Terminate(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Preview(t.Context(), sb.ID, api.CreatePreview{Port: 80}); client.Code(err) != "sandbox_not_running" {
		t.Errorf("an ended sandbox: %v", err)
	}

	off := servertest.New(t, servertest.Config{Change: func(c *server.Config) { c.PreviewHost = "" }})
	sb = create(t, off)
	if _, err := off.Preview(t.Context(), sb.ID, api.CreatePreview{Port: 80}); client.Code(err) != "previews_off" {
		t.Errorf("no host: %v", err)
	}
}

func TestListPorts(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	port := app(t, http.NotFoundHandler())
	list, err := s.Ports(t.Context(), sb.ID)
	if err != nil || !slices.ContainsFunc(list.Ports, func(p api.Port) bool { return p.Port == port && p.Process != "" && p.PID > 0 }) {
		t.Errorf("port %d is not in %+v, %v", port, list, err)
	}
}

func TestPreviewTokens(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	one, two := create(t, s), create(t, s)
	var hits atomic.Int32
	port := app(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	v, elsewhere, otherPort := open(t, s, one.ID, port), open(t, s, two.ID, port), open(t, s, one.ID, port+1)
	version, rest, _ := strings.Cut(v.Token, ".")
	when, mac, _ := strings.Cut(rest, ".")
	later := strconv.FormatInt(v.ExpiresAt.Add(time.Hour).Unix(), 36)
	for name, tt := range map[string]struct {
		token, code string
		status      int
	}{
		"none":              {"", "preview_token_missing", 401},
		"of another port":   {otherPort.Token, "preview_forbidden", 403},
		"of another one":    {elsewhere.Token, "preview_forbidden", 403},
		"prolonged":         {version + "." + later + "." + mac, "preview_forbidden", 403},
		"of another time":   {version + ".." + mac, "preview_forbidden", 403},
		"cut":               {v.Token[:len(v.Token)-1], "preview_forbidden", 403},
		"longer":            {v.Token + "A", "preview_forbidden", 403},
		"without a MAC":     {version + "." + when + ".", "preview_forbidden", 403},
		"another version":   {"2." + when + "." + mac, "preview_forbidden", 403},
		"an API key":        {s.Key, "preview_forbidden", 403},
		"nonsense":          {"%00", "preview_forbidden", 403},
		"another case":      {strings.ToUpper(v.Token), "preview_forbidden", 403},
		"a negative expiry": {version + ".-1." + mac, "preview_forbidden", 403},
	} {
		ways := map[string]got{
			"cookie": v.ask(t, "GET", "/", "", "Cookie", "sandlot_preview="+tt.token),
			"query":  v.ask(t, "GET", "/?sandlot_preview="+url.QueryEscape(tt.token), ""),
			"POST":   v.ask(t, "POST", "/?sandlot_preview="+url.QueryEscape(tt.token), ""),
		}
		if tt.token != "" {
			ways["header"] = v.ask(t, "GET", "/", "", append([]string{"Cookie", "sandlot_preview=" + v.Token}, api.HeaderPreviewToken, tt.token)...)
		}
		for way, res := range ways {
			if res.StatusCode != tt.status || res.code(t) != tt.code || len(res.Cookies()) > 0 {
				t.Errorf("%s, as %s: %s %s", name, way, res.Status, res.body)
			}
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("%d requests reached the program", n)
	}
	// What Sandlot knows you by opens no preview.
	if res := v.ask(t, "GET", "/", "", "Authorization", "Bearer "+s.Key, "X-API-Key", s.Key); res.StatusCode != 401 {
		t.Errorf("an API key: %s", res.Status)
	}
	// A page may have put other cookies beside ours.
	if res := v.ask(t, "GET", "/", "", "Cookie", "sandlot_preview=bad; sandlot_preview="+v.Token); res.StatusCode != 200 || hits.Load() != 1 {
		t.Errorf("beside a bad cookie: %s", res.Status)
	}
	if res := v.ask(t, "GET", "/x?sandlot_preview=bad", "", "Cookie", "sandlot_preview="+v.Token); res.StatusCode != 302 || len(res.Cookies()) != 0 || res.Header.Get("Location") != "/x" {
		t.Errorf("an old address with a good cookie: %s %v", res.Status, res.Header)
	}
	page := v.ask(t, "GET", "/", "", "Accept", "text/html")
	if page.StatusCode != 401 || !strings.HasPrefix(page.Header.Get("Content-Type"), "text/html") || !strings.Contains(page.body, "Open the preview from Sandlot again") ||
		strings.Contains(page.body, "refresh") || page.Header.Get("Cache-Control") != "no-store" || !strings.Contains(page.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%s %v %s", page.Status, page.Header, page.body)
	}

	short, err := s.Preview(t.Context(), one.ID, api.CreatePreview{Port: port, ExpiresS: 1})
	if err != nil {
		t.Fatal(err)
	}
	v.Preview = short
	for {
		res := v.ask(t, "GET", "/", "", v.token()...)
		if res.StatusCode == 200 {
			continue
		}
		if res.StatusCode != 401 || res.code(t) != "preview_expired" {
			t.Errorf("%s %s", res.Status, res.body)
		}
		break
	}
	if res := v.ask(t, "GET", "/", "", "Cookie", "sandlot_preview="+v.Token); res.StatusCode != 401 || res.code(t) != "preview_expired" {
		t.Errorf("%s %s", res.Status, res.body)
	}
}

// TestPreviewKeepsOursOut looks at what passes between browser and program.
func TestPreviewKeepsOursOut(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	sb := create(t, s)
	var seen http.Header
	port := app(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Clone()
		h := w.Header()
		for _, c := range []string{
			"a=1", "b=2; Domain=preview.test; Path=/x; HttpOnly", "c=3; domain = .test; Secure", "sandlot=evil", "sandlot_preview=evil; Path=/", " Sandlot_Preview =evil",
			"=sandlot=evil", "nameless", "__Host-d=4; Path=/; Secure", "e=domain=x; SameSite=Lax", "",
		} {
			h.Add("Set-Cookie", c)
		}
		h.Set("Strict-Transport-Security", "max-age=1; includeSubDomains")
		h.Set("Clear-Site-Data", `"*"`)
		h.Set("Alt-Svc", `h3=":1"`)
		h.Set("Content-Security-Policy", "default-src 'self'")
		h.Set("Access-Control-Allow-Origin", "*")
	}))
	v := open(t, s, sb.ID, port)
	res := v.ask(t, "GET", "/", "", "Cookie", `x=1; sandlot=secret;y="a b"; sandlot_preview=`+v.Token, "Cookie", "SANDLOT=z; z", "Authorization", "Bearer "+s.Key, "X-API-Key", s.Key,
		"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "http", "X-Forwarded-Prefix", "/x", "Forwarded", "for=6.6.6.6", "X-Real-IP", "6.6.6.6",
		"X_Forwarded_For", "6.6.6.6", "Referer", "http://"+v.host+"/?sandlot_preview="+v.Token, "Origin", "http://"+v.host, "X-Mine", "yes")
	if res.StatusCode != 200 {
		t.Fatalf("%s %s", res.Status, res.body)
	}
	want := map[string]string{
		"Cookie": `x=1; y="a b"; z`, "Authorization": "", "X-Api-Key": "", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": v.host, "X-Forwarded-Proto": "http",
		"X-Forwarded-Prefix": "", "Forwarded": "", "X-Real-Ip": "", "Referer": "", "Origin": "http://" + v.host, "X-Mine": "yes", api.HeaderPreviewToken: "",
	}
	for name, value := range want {
		if got := strings.Join(seen[http.CanonicalHeaderKey(name)], "|"); got != value {
			t.Errorf("the program sees %s: %q, want %q", name, got, value)
		}
	}
	if all := fmt.Sprint(seen); strings.Contains(all, v.Token) || strings.Contains(all, s.Key) || strings.Contains(all, "6.6.6.6") || strings.Contains(all, "secret") {
		t.Errorf("the program sees %v", seen)
	}
	set := []string{"a=1", "b=2; Path=/x; HttpOnly", "c=3; Secure", "__Host-d=4; Path=/; Secure", "e=domain=x; SameSite=Lax"}
	if got := res.Header["Set-Cookie"]; !slices.Equal(got, set) {
		t.Errorf("the browser sees %q", got)
	}
	for name, value := range map[string]string{"Strict-Transport-Security": "", "Clear-Site-Data": "", "Alt-Svc": "", "Content-Security-Policy": "default-src 'self'", "Access-Control-Allow-Origin": "*"} {
		if got := res.Header.Get(name); got != value {
			t.Errorf("the browser sees %s: %q", name, got)
		}
	}

	// A key of ours is known by its looks or by its hash; what the program's own users log in with passes.
	for given, passes := range map[string]bool{
		"Bearer " + s.Key: false, "bearer  " + s.Key: false, "Bearer slk_of-another-server": false, s.Key: false, "Bearer of-the-app": true, "Basic dXNlcjpwYXNz": true, "Digest a=b": true,
		"Basic OnNsa19zZWNyZXQ=": false, // ":slk_secret"
	} {
		if v.ask(t, "GET", "/", "", append(v.token(), "Authorization", given)...); (seen.Get("Authorization") != "") != passes {
			t.Errorf("Authorization %q passes: %v", given, !passes)
		}
	}
	if v.ask(t, "GET", "/", "", append(v.token(), "X-API-Key", "of-the-app")...); seen.Get("X-Api-Key") != "of-the-app" {
		t.Errorf("%v", seen)
	}
}

// Pages of other sandboxes are on the same site for a browser, which sends them the cookie.
func TestPreviewsDontTrustOneAnother(t *testing.T) {
	t.Parallel()
	s := servertest.New(t, servertest.Config{})
	one, two := create(t, s), create(t, s)
	port := app(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	v, evil, friend := open(t, s, one.ID, port), open(t, s, two.ID, port), open(t, s, one.ID, port+1)
	for name, tt := range map[string]struct {
		method string
		header []string
		status int
	}{
		"the page itself":             {"POST", []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://" + v.host}, 200},
		"the address bar":             {"GET", []string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate"}, 200},
		"a program":                   {"POST", nil, 200},
		"another port":                {"POST", []string{"Sec-Fetch-Site", "same-site", "Origin", "http://" + friend.host}, 200},
		"a link in another preview":   {"GET", []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate"}, 200},
		"another preview":             {"POST", []string{"Sec-Fetch-Site", "same-site", "Origin", "http://" + evil.host}, 403},
		"a form in another preview":   {"POST", []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate", "Origin", "http://" + evil.host}, 403},
		"a picture elsewhere":         {"GET", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, 403},
		"a WebSocket of another one":  {"GET", []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "websocket", "Origin", "http://" + evil.host}, 403},
		"an old browser, another one": {"POST", []string{"Origin", "http://" + evil.host}, 403},
		"an old browser, elsewhere":   {"POST", []string{"Origin", "null"}, 403},
		"an old browser, the page":    {"POST", []string{"Origin", "http://" + v.host}, 200},
	} {
		res := v.ask(t, tt.method, "/", "", append(tt.header, "Cookie", "sandlot_preview="+v.Token)...)
		if res.StatusCode != tt.status {
			t.Errorf("%s: %s %s", name, res.Status, res.body)
		}
	}
}

// TestPreviewOfWhatIsntThere has programs that don't answer as they should.
func TestPreviewOfWhatIsntThere(t *testing.T) {
	t.Parallel()
	patient := servertest.New(t, servertest.Config{})
	hasty := servertest.New(t, servertest.Config{Change: func(c *server.Config) { c.PreviewTimeout = 300 * time.Millisecond }})
	sb, other := create(t, patient), create(t, hasty)
	raw := func(answer string) int {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				if answer == "" {
					_, _ = io.Copy(io.Discard, conn) // until the other side has had enough
				}
				_, _ = io.WriteString(conn, answer)
				_ = conn.Close()
			}
		}()
		return ln.Addr().(*net.TCPAddr).Port
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := closed.Addr().(*net.TCPAddr).Port
	_ = closed.Close()
	for name, tt := range map[string]struct {
		port   int
		status int
		code   string
		retry  bool
	}{
		"nothing listens":  {free, 502, "port_closed", true},
		"garbage":          {raw("SSH-2.0-x\r\n"), 502, "bad_answer", false},
		"huge headers":     {raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"), 502, "bad_answer", false},
		"endless 1xx":      {raw(strings.Repeat("HTTP/1.1 103 Early\r\nX: "+strings.Repeat("x", 1000)+"\r\n\r\n", 1000)), 502, "bad_answer", false},
		"hangs up":         {raw("HTTP/1.1 200"), 502, "bad_answer", false},
		"a bad length":     {raw("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), 502, "bad_answer", false},
		"a switch unasked": {raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), 502, "bad_answer", false},
		"never":            {raw(""), 504, "port_timeout", false},
	} {
		v := open(t, patient, sb.ID, tt.port)
		if tt.code == "port_timeout" {
			v = open(t, hasty, other.ID, tt.port)
		}
		res := v.ask(t, "GET", "/", "", v.token()...)
		if res.StatusCode != tt.status || res.code(t) != tt.code || (res.Header.Get("Retry-After") != "") != tt.retry {
			t.Errorf("%s: %s %s %v", name, res.Status, res.body, res.Header)
		}
		page := v.ask(t, "GET", "/", "", append(v.token(), "Accept", "text/html,*/*")...)
		if page.StatusCode != tt.status || !strings.Contains(page.body, fmt.Sprintf("ort %d", tt.port)) || strings.Contains(page.body, `http-equiv="refresh"`) != tt.retry {
			t.Errorf("%s: %s %s", name, page.Status, page.body)
		}
	}
	s := patient
	// Half an answer doesn't look like a whole one.
	v := open(t, s, sb.ID, raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"))
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = v.host
	req.Header.Set(api.HeaderPreviewToken, v.Token)
	res, err := s.HTTP.Do(req)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
	}
	if err == nil {
		t.Error("half an answer was taken for a whole one")
	}

	alive := app(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	v = open(t, s, sb.ID, alive)
	if res := v.ask(t, "GET", "/", "", v.token()...); res.StatusCode != 200 {
		t.Errorf("%s", res.Status)
	}
	if _, err := s.Terminate(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if res := v.ask(t, "GET", "/", "", v.token()...); res.StatusCode != 410 || res.code(t) != "sandbox_ended" {
		t.Errorf("after its end: %s %s", res.Status, res.body)
	}
	if res := v.ask(t, "GET", "/", "", append(v.token(), "Accept", "text/html")...); res.StatusCode != 410 || !strings.Contains(res.body, "The sandbox has ended") {
		t.Errorf("after its end: %s %s", res.Status, res.body)
	}
}
