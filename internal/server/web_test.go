package server_test

import (
	"encoding/json"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
	"github.com/sandlot-dev/sandlot/internal/server"
)

func TestSignInByLink(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	token, err := server.IssueSignin(t.Context(), r.Store, r.Account)
	if err != nil {
		t.Fatal(err)
	}
	no := []string{"Authorization", ""}
	if res, _ := r.ask(t, "HEAD", "/signin/"+token, "", no...); res.StatusCode != 200 || len(res.Cookies) != 0 {
		t.Errorf("looking at the link used it: %d", res.StatusCode)
	}
	res, _ := r.ask(t, "GET", "/signin/"+token, "", no...)
	if res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/" || len(res.Cookies) != 1 {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	c := res.Cookies[0]
	if c.Name != "sandlot" || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Secure || c.Path != "/" || c.MaxAge < 29*86400 {
		t.Errorf("cookie %+v", c)
	}
	cookie := []string{"Authorization", "", "Cookie", c.Name + "=" + c.Value}
	if res, body := r.ask(t, "GET", "/me", "", cookie...); res.StatusCode != 200 || !strings.Contains(body, r.Account) || strings.Contains(body, "key_") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	for _, path := range []string{"/signin/" + token, "/signin/nonsense"} {
		res, _ := r.ask(t, "GET", path, "", no...)
		if res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/signin?error=expired" || len(res.Cookies) != 0 {
			t.Errorf("%s: %d %v", path, res.StatusCode, res.Header)
		}
	}

	if res, _ := r.ask(t, "POST", "/signout", "", append(cookie, "Sec-Fetch-Site", "cross-site")...); res.StatusCode != 403 {
		t.Errorf("another site signed us out: %d", res.StatusCode)
	}
	if res, _ := r.ask(t, "POST", "/signout", "", append(cookie, "Sec-Fetch-Site", "same-origin")...); res.StatusCode != 204 || res.Cookies[0].MaxAge >= 0 {
		t.Errorf("sign out: %d", res.StatusCode)
	}
	if res, _ := r.ask(t, "GET", "/me", "", cookie...); res.StatusCode != 401 {
		t.Errorf("the cookie outlived the sign-out: %d", res.StatusCode)
	}
	r.Stop()
	if log := r.Log.String(); strings.Contains(log, token) || strings.Contains(log, c.Value) || strings.Contains(log, r.Key) {
		t.Error("a secret is in the log")
	}
}

func TestExpiredLink(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	st := agedStore{r}
	token, err := server.IssueSignin(t.Context(), st, r.Account)
	if err != nil {
		t.Fatal(err)
	}
	if res, _ := r.ask(t, "GET", "/signin/"+token, ""); res.Header.Get("Location") != "/signin?error=expired" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}

func TestSignInByKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := client.New(r.URL, "")
	browser.HTTP.Jar = jar
	t.Cleanup(browser.HTTP.CloseIdleConnections)
	if _, err := browser.Me(t.Context()); client.Code(err) != "unauthenticated" {
		t.Errorf("before: %v", err)
	}
	if err := browser.SignIn(t.Context(), r.Key); err != nil {
		t.Fatal(err)
	}
	me, err := browser.Me(t.Context())
	if err != nil || me.Account != r.Account || me.AccountName != "first" {
		t.Errorf("%+v, %v", me, err)
	}
	if err := browser.SignOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := browser.Me(t.Context()); client.Code(err) != "unauthenticated" {
		t.Errorf("after: %v", err)
	}
	if res, _ := r.ask(t, "POST", "/signin", `{"key":"`+r.Key+`"}`, "Sec-Fetch-Site", "cross-site"); res.StatusCode != 403 {
		t.Errorf("another site signed us in: %d", res.StatusCode)
	}
	res, _ := r.ask(t, "POST", "/signin", `{"key":"`+r.Key+`"}`, "X-Forwarded-Proto", "https")
	if !res.Cookies[0].Secure {
		t.Error("a cookie given over TLS may leave it")
	}
}

func TestOtherSitesCantUseTheCookie(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	*r.Manager = *strictManager(r.Account)
	res, _ := r.ask(t, "POST", "/signin", `{"key":"`+r.Key+`"}`)
	cookie := "sandlot=" + res.Cookies[0].Value
	for _, tt := range []struct {
		header []string
		status int
	}{
		{[]string{"Authorization", "", "Cookie", cookie, "Sec-Fetch-Site", "same-origin"}, 200},
		{[]string{"Authorization", "", "Cookie", cookie, "Sec-Fetch-Site", "cross-site"}, 403},
		{[]string{"Authorization", "", "Cookie", cookie, "Sec-Fetch-Site", "same-site"}, 403},
		{[]string{"Authorization", "", "Cookie", cookie, "Origin", "https://evil.example"}, 403},
		{[]string{"Authorization", "", "Cookie", cookie, "Origin", r.URL}, 200},
		{[]string{"Origin", "https://elsewhere.example"}, 200}, // a key is not sent by browsers on their own
	} {
		if res, body := r.ask(t, "POST", "/sandbox", "{}", tt.header...); res.StatusCode != tt.status {
			t.Errorf("%v: %d %s", tt.header[2:], res.StatusCode, body)
		}
	}
}

func TestUI(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *server.Config) {
		c.UI = fstest.MapFS{
			"index.html": {Data: []byte("<title>UI</title>")}, "app.js": {Data: []byte(strings.Repeat("let x;\n", 500))}, "x.bin": {Data: []byte{1}},
		}
	})
	*r.Manager = *strictManager(r.Account)
	page := []string{"Authorization", "", "Accept", "text/html,application/xhtml+xml"}
	for _, path := range []string{"/", "/new", "/sandboxes", "/sandbox/" + live, "/session/ses_1/files", "/signin", "/signin?error=expired", "/sandbox/x/y",
		"/images", "/image", "/image/img_1", "/secret", "/secrets"} {
		res, body := r.ask(t, "GET", path, "", page...)
		if res.StatusCode != 200 || body != "<title>UI</title>" || res.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
	}
	if res, body := r.ask(t, "GET", "/sandbox/"+live, ""); res.StatusCode != 200 || !strings.HasPrefix(body, "{") || res.Header.Get("Vary") != "Accept" {
		t.Errorf("the API at a page's address: %d %s %v", res.StatusCode, body, res.Header)
	}
	res, body := r.ask(t, "GET", "/app.js", "", "Accept-Encoding", "identity")
	if res.Header.Get("Content-Type") != "text/javascript; charset=utf-8" || len(body) != 3500 {
		t.Errorf("%v", res.Header)
	}
	etag := res.Header.Get("ETag")
	if res, body := r.ask(t, "GET", "/app.js", "", "Accept-Encoding", "identity", "If-None-Match", etag); res.StatusCode != 304 || body != "" {
		t.Errorf("%d for what we have", res.StatusCode)
	}
	if res, body := r.ask(t, "GET", "/app.js", "", "Accept-Encoding", "gzip"); res.Header.Get("Content-Encoding") != "gzip" || len(body) > 1000 || res.Header.Get("ETag") == etag {
		t.Errorf("%d bytes, %v", len(body), res.Header)
	}
	if res, body := r.ask(t, "HEAD", "/app.js", "", "Accept-Encoding", "identity"); res.ContentLength != 3500 || body != "" {
		t.Errorf("HEAD: %d %q", res.ContentLength, body)
	}
	if res, _ := r.ask(t, "GET", "/x.bin", ""); res.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("%v", res.Header)
	}
	const csp = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
	if got := res.Header.Get("Content-Security-Policy"); got != csp {
		t.Errorf("policy %s", got)
	}
	if res.Header.Get("Referrer-Policy") != "no-referrer" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%v", res.Header)
	}
}

func TestWithoutUI(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*server.Config){nil, func(c *server.Config) { c.UI = fstest.MapFS{} }} {
		r := newRig(t, change)
		if res, body := r.ask(t, "GET", "/", ""); res.StatusCode != 200 || !strings.Contains(body, "without its web UI") {
			t.Errorf("%d %s", res.StatusCode, body)
		}
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	health := api.Health{Status: "ok", Model: "demo"}
	r := newRig(t, func(c *server.Config) { c.Health = func() api.Health { return health } })
	anybody := client.New(r.URL, "")
	t.Cleanup(anybody.HTTP.CloseIdleConnections)
	if err := anybody.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	health.Status = "failing"
	if err := anybody.Ready(t.Context()); err == nil {
		t.Error("ready though it is failing")
	}
	if got, err := anybody.Health(t.Context()); err != nil || got.Model != "demo" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTheAPIIsDescribed(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	_, body := r.ask(t, "GET", "/openapi.json", "", "Authorization", "")
	var spec struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			OperationID string
			Summary     string
			Tags        []string
			Responses   map[string]struct {
				Content map[string]struct{ Schema map[string]any }
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &spec); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(spec.OpenAPI, "3.1") {
		t.Errorf("OpenAPI %s", spec.OpenAPI)
	}
	n := 0
	for path, item := range spec.Paths {
		if strings.Contains(path, "...") {
			t.Errorf("%s is no path of OpenAPI", path)
		}
		for method, op := range item {
			n++
			if op.OperationID == "" || op.Summary == "" || len(op.Tags) != 1 {
				t.Errorf("%s %s is not described", method, path)
			}
			problem := op.Responses["default"].Content[api.ContentTypeProblem].Schema["$ref"]
			if problem != "#/components/schemas/Problem" {
				t.Errorf("%s %s: its errors are %v", method, path, problem)
			}
		}
	}
	if n < 34 { // or the description lost some
		t.Errorf("%d operations", n)
	}
	res, body := r.ask(t, "GET", "/docs", "", "Authorization", "")
	if res.StatusCode != 200 || strings.Contains(body, "//") || strings.Contains(body, "<script>") || strings.Contains(body, "style=") {
		t.Errorf("%d: the page must live with our policy: %s", res.StatusCode, body)
	}
	for _, path := range []string{"/docs/docs.js", "/docs/docs.css"} {
		if res, _ := r.ask(t, "GET", path, "", "Authorization", ""); res.StatusCode != 200 {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	secret, key := server.NewKey()
	other, _ := server.NewKey()
	if !strings.HasPrefix(secret, "slk_") || len(secret) < 26 || secret == other {
		t.Errorf("secret %q", secret)
	}
	if !strings.HasSuffix(secret, key.Last4) || len(key.Hash) != 32 || !strings.HasPrefix(key.ID, "key_") {
		t.Errorf("key %+v", key)
	}
	if k := server.KeyOf("abc"); k.Last4 != "abc" {
		t.Errorf("key %+v", k)
	}
}

func TestConfigMustBeWhole(t *testing.T) {
	t.Parallel()
	if _, err := server.New(server.Config{}); err == nil {
		t.Error("a server of nothing")
	}
}
