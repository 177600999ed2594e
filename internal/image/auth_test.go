package image_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// web is a few hosts of https with names of their own, all on loopback. It notes which of them got which credentials.
type web struct {
	transport *http.Transport
	addrs     map[string]string

	mu   sync.Mutex
	seen map[string][]string // host: Authorization and bodies of posts
}

func newWeb(t *testing.T, hosts map[string]http.HandlerFunc) *web {
	t.Helper()
	w := &web{addrs: map[string]string{}, seen: map[string][]string{}}
	for host, h := range hosts {
		srv := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			note := r.Header.Get("Authorization")
			if r.Method == http.MethodPost {
				body, _ := io.ReadAll(r.Body)
				note += string(body)
				r.Body = io.NopCloser(strings.NewReader(string(body)))
			}
			if note != "" {
				w.mu.Lock()
				w.seen[host] = append(w.seen[host], note)
				w.mu.Unlock()
			}
			h(rw, r)
		}))
		t.Cleanup(srv.Close)
		w.addrs[host+":443"] = srv.Listener.Addr().String()
		if w.transport == nil {
			w.transport = srv.Client().Transport.(*http.Transport).Clone() // trusts the certificate of *.example.com, which all have
			w.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				to, ok := w.addrs[addr]
				if !ok {
					return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Name: addr, IsNotFound: true}}
				}
				return (&net.Dialer{}).DialContext(ctx, network, to)
			}
			t.Cleanup(w.transport.CloseIdleConnections)
		}
	}
	return w
}

func (w *web) use(c *image.Config) { c.Transport = w.transport }

func (w *web) got(host string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.seen[host], "\n")
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// private lets in only who sends want, and asks others for the scheme of challenge.
func private(next http.Handler, challenge string, want func() string, blobs func(http.ResponseWriter, *http.Request) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") != want() {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if blobs != nil && strings.Contains(req.URL.Path, "/blobs/") && blobs(w, req) {
			return
		}
		next.ServeHTTP(w, req)
	}
}

// TestCredentialsStayHome: layers come from another host by redirect, as from a CDN. Only the registry and its token server see credentials.
func TestCredentialsStayHome(t *testing.T) {
	r := newRegistry(t)
	img := newImage(t, v1.Config{}, newLayer(t, "gzip", "a", noise(1, 50<<10)), newLayer(t, "gzip", "b", "b"))
	r.push(t, "team/app:1", img)
	toCDN := func(w http.ResponseWriter, req *http.Request) bool {
		http.Redirect(w, req, "https://cdn.example.com"+req.URL.Path+"?signature=abc", http.StatusTemporaryRedirect)
		return true
	}
	token := func(w http.ResponseWriter, req *http.Request) {
		user, password, _ := req.BasicAuth()
		_ = req.ParseForm()
		if user == "joe" && password == "hunter2" || req.Form.Get("refresh_token") == "hunter2" {
			if req.Form.Get("scope") != "repository:team/app:pull" || req.Form.Get("service") != "svc" {
				w.WriteHeader(http.StatusBadRequest)
			}
			fmt.Fprint(w, `{"token":"s3cr3t-token"}`)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
	}
	bearer := `Bearer realm="https://auth.example.com/token",service="svc"`
	docker := func(entry string) image.Auth {
		a, err := image.AuthFromSecret(map[string]string{"DOCKER_CONFIG_JSON": `{"auths":{"registry.example.com":` + entry + `}}`})
		must(t, err)
		return a
	}
	for _, tc := range []struct {
		name      string
		challenge string
		want      string
		auth      image.Auth
	}{
		{"basic", `Basic realm="x"`, basic("joe", "hunter2"), image.Password("joe", "hunter2")},
		{"token server", bearer, "Bearer s3cr3t-token", image.Password("joe", "hunter2")},
		{"identity token", bearer, "Bearer s3cr3t-token", docker(`{"identitytoken":"hunter2"}`)},
		{"identity token as a password", bearer, "Bearer s3cr3t-token", docker(`{"auth":"` + base64.StdEncoding.EncodeToString([]byte("<token>:hunter2")) + `"}`)},
		{"registry token", bearer, "Bearer hunter2", docker(`{"registrytoken":"hunter2"}`)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWeb(t, map[string]http.HandlerFunc{
				"registry.example.com": private(r.Config.Handler, tc.challenge, func() string { return tc.want }, toCDN),
				"auth.example.com":     token,
				"cdn.example.com":      r.Config.Handler.ServeHTTP,
			})
			s, dir := open(t, w.use)
			img, res, err := s.Pull(t.Context(), "registry.example.com/team/app:1", tc.auth, nil)
			must(t, err)
			whole(t, dir, img)
			if res.Reference != "registry.example.com/team/app:1" || !strings.Contains(w.got("registry.example.com"), tc.want) || w.got("cdn.example.com") != "" {
				t.Errorf("%+v; the registry saw %q, the CDN %q", res, w.got("registry.example.com"), w.got("cdn.example.com"))
			}
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		w := newWeb(t, map[string]http.HandlerFunc{"registry.example.com": private(r.Config.Handler, bearer, func() string { return "x" }, nil), "auth.example.com": token})
		s, dir := open(t, w.use)
		_, _, err := s.Pull(t.Context(), "registry.example.com/team/app:1", image.Password("joe", "wrong"), nil)
		wantProblem(t, err, sandbox.ErrInvalid, "registry_denied", "image.registry_secret")
		wantNothing(t, s, dir)
	})
	t.Run("a token server that talks", func(t *testing.T) {
		w := newWeb(t, map[string]http.HandlerFunc{"registry.example.com": private(r.Config.Handler, bearer, func() string { return "x" }, nil),
			"auth.example.com": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"refresh_token":"s3cr3t-token"}`) }})
		s, _ := open(t, w.use)
		_, _, err := s.Pull(t.Context(), "registry.example.com/team/app:1", image.Password("joe", "hunter2"), nil)
		wantProblem(t, err, sandbox.ErrUnavailable, "registry_unreachable", "image.registry")
	})
	t.Run("redirects that are not followed", func(t *testing.T) {
		for where, status := range map[string]int{"https://evil.example.com/token": http.StatusTemporaryRedirect, "http://evil.example.com/token": http.StatusFound} {
			w := newWeb(t, map[string]http.HandlerFunc{"registry.example.com": private(r.Config.Handler, bearer, func() string { return "x" }, nil),
				"auth.example.com": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, where, status) },
				"evil.example.com": token})
			s, _ := open(t, w.use)
			_, _, err := s.Pull(t.Context(), "registry.example.com/team/app:1", docker(`{"identitytoken":"hunter2"}`), nil)
			wantProblem(t, err, sandbox.ErrUnavailable, "registry_unreachable", "image.registry")
			if w.got("evil.example.com") != "" {
				t.Errorf("it followed to %s, which saw %q", where, w.got("evil.example.com"))
			}
		}
	})
	t.Run("layers over plain HTTP", func(t *testing.T) {
		w := newWeb(t, map[string]http.HandlerFunc{"registry.example.com": private(r.Config.Handler, `Basic realm="x"`, func() string { return basic("joe", "hunter2") }, func(w http.ResponseWriter, req *http.Request) bool {
			http.Redirect(w, req, r.URL+req.URL.Path+"?signature=abc", http.StatusFound)
			return true
		})})
		s, dir := open(t, w.use)
		_, _, err := s.Pull(t.Context(), "registry.example.com/team/app:1", image.Password("joe", "hunter2"), nil)
		wantProblem(t, err, sandbox.ErrUnavailable, "registry_unreachable", "image.registry", "redirects")
		wantNothing(t, s, dir)
	})
	t.Run("a CDN that fails", func(t *testing.T) {
		w := newWeb(t, map[string]http.HandlerFunc{"registry.example.com": private(r.Config.Handler, `Basic realm="x"`, func() string { return basic("joe", "hunter2") }, toCDN)})
		s, dir := open(t, w.use)
		_, _, err := s.Pull(t.Context(), "registry.example.com/team/app:1", image.Password("joe", "hunter2"), nil)
		wantProblem(t, err, sandbox.ErrUnavailable, "registry_unreachable", "image.registry")
		wantNothing(t, s, dir)
	})
	t.Run("a certificate of nobody", func(t *testing.T) {
		w := newWeb(t, map[string]http.HandlerFunc{"registry.example.com": r.Config.Handler.ServeHTTP})
		w.transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		s, _ := open(t, w.use)
		_, _, err := s.Pull(t.Context(), "registry.example.com/team/app:1", image.Auth{}, nil)
		wantProblem(t, err, sandbox.ErrUnavailable, "registry_unreachable", "image.registry", "certificate")
	})
}

// TestDockerConfig: the longest entry of "auths" that fits counts.
func TestDockerConfig(t *testing.T) {
	r := newRegistry(t)
	for _, as := range []string{"app:1", "team/app:1", "team/sub/app:1", "teams/app:1"} {
		r.push(t, as, newImage(t, v1.Config{}, newLayer(t, "gzip", "a", as)))
	}
	auth := func(user string) string {
		return `{"auth":"` + base64.StdEncoding.EncodeToString([]byte(user+":hunter2")) + `"}`
	}
	a, err := image.AuthFromSecret(map[string]string{"DOCKER_CONFIG_JSON": fmt.Sprintf(
		`{"auths":{"https://%[1]s/v2/":%[2]s,"%[1]s/team":%[3]s,"%[1]s/team/sub/":{"username":"sub","password":"hunter2"},"other.example.com":%[4]s}}`,
		r.host, auth("host"), auth("team"), auth("other"))})
	must(t, err)
	s, _ := open(t)
	for as, want := range map[string]string{"app:1": "host", "team/app:1": "team", "team/sub/app:1": "sub", "teams/app:1": "host"} {
		r.on(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			private(next, `Basic realm="x"`, func() string { return basic(want, "hunter2") }, nil)(w, req)
		})
		if _, _, err := s.Pull(t.Context(), r.host+"/"+as, a, nil); err != nil {
			t.Errorf("%s as %s: %v", as, want, err)
		}
	}
	// An entry for somebody else is no credential here: it is not sent, and the error asks for one.
	only, err := image.AuthFromSecret(map[string]string{"DOCKER_CONFIG_JSON": `{"auths":{"other.example.com":` + auth("other") + `}}`})
	must(t, err)
	_, _, err = s.Pull(t.Context(), r.host+"/app:1", only, nil)
	wantProblem(t, err, sandbox.ErrInvalid, "registry_denied", "image.registry", "image.registry_secret")
}

func TestECR(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", newImage(t, v1.Config{}, newLayer(t, "gzip", "a", "a")))
	const host = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
	answer := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"authorizationData":[{"authorizationToken":%q,"expiresAt":%d}]}`, base64.StdEncoding.EncodeToString([]byte("AWS:s3cr3t-token")), time.Now().Add(time.Hour).Unix())
	}
	var api http.HandlerFunc
	var calls []*http.Request
	w := newWeb(t, map[string]http.HandlerFunc{
		"registry.example.com": private(r.Config.Handler, `Basic realm="x"`, func() string { return basic("AWS", "s3cr3t-token") }, nil),
		"ecr.example.com": func(w http.ResponseWriter, r *http.Request) {
			calls = append(calls, r)
			api(w, r)
		},
	})
	// The certificate is for example.com, so AWS' names are only led there by the transport.
	aws := func(c *image.Config) {
		c.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			r = r.Clone(r.Context())
			switch r.URL.Host {
			case host:
				r.URL.Host = "registry.example.com"
			case "api.ecr.eu-central-1.amazonaws.com":
				r.URL.Host = "ecr.example.com"
			}
			return w.transport.RoundTrip(r)
		})
	}
	secret := map[string]string{"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_SESSION_TOKEN": "session", "AWS_REGION": "us-east-1"}
	with := func(more ...string) image.Auth {
		v := map[string]string{}
		for k, s := range secret {
			v[k] = s
		}
		for i := 0; i < len(more); i += 2 {
			v[more[i]] = more[i+1]
		}
		a, err := image.AuthFromSecret(v)
		must(t, err)
		return a
	}
	s, dir := open(t, aws)
	api = answer
	img, _, err := s.Pull(t.Context(), host+"/app:1", with(), nil)
	must(t, err)
	whole(t, dir, img)
	if len(calls) != 1 {
		t.Fatalf("ECR was called %d times", len(calls))
	}
	h := calls[0].Header
	if got := h.Get("Authorization"); !strings.HasPrefix(got, "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") || !strings.Contains(got, "/eu-central-1/ecr/aws4_request") ||
		h.Get("X-Amz-Security-Token") != "session" || h.Get("X-Amz-Target") != "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken" {
		t.Errorf("the call was %v", h)
	}
	// Another endpoint, with a registry of another name.
	img, _, err = s.Pull(t.Context(), "registry.example.com/app:1", with("AWS_ENDPOINT_URL_ECR", "https://ecr.example.com", "REGISTRY", "registry.example.com"), nil)
	must(t, err)
	whole(t, dir, img)
	if !strings.Contains(calls[1].Header.Get("Authorization"), "/us-east-1/ecr/") {
		t.Errorf("the call was %v", calls[1].Header)
	}

	_, _, err = s.Pull(t.Context(), "registry.example.com/app:1", with(), nil)
	wantProblem(t, err, sandbox.ErrInvalid, "registry_denied", "image.registry_secret", "ECR", "registry.example.com")
	for _, tc := range []struct {
		status      int
		body        string
		class       error
		code, field string
		word        string
	}{
		{400, `{"__type":"com.amazon#UnrecognizedClientException","message":"s3cr3t-token"}`, sandbox.ErrInvalid, "registry_denied", "image.registry_secret", "UnrecognizedClientException"},
		{403, `s3cr3t-token`, sandbox.ErrInvalid, "registry_denied", "image.registry_secret", "403"},
		{200, `{"authorizationData":[]}`, sandbox.ErrUnavailable, "registry_failed", "image.registry_secret", "token"},
		{503, ``, sandbox.ErrUnavailable, "registry_failed", "image.registry", "503"},
	} {
		api = func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tc.status)
			fmt.Fprint(w, tc.body)
		}
		_, _, err := s.Pull(t.Context(), host+"/app:1", with(), nil)
		wantProblem(t, err, tc.class, tc.code, tc.field, tc.word)
	}
}

func TestGoogle(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "project/app:1", newImage(t, v1.Config{}, newLayer(t, "gzip", "a", "a")))
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	var api http.HandlerFunc
	w := newWeb(t, map[string]http.HandlerFunc{
		"registry.example.com": private(r.Config.Handler, `Basic realm="x"`, func() string { return basic("oauth2accesstoken", "s3cr3t-token") }, nil),
		"token.example.com":    func(w http.ResponseWriter, r *http.Request) { api(w, r) },
	})
	account := func(more map[string]string) string {
		v := map[string]string{"type": "service_account", "client_email": "joe@p.iam.gserviceaccount.com", "private_key_id": "1", "token_uri": "https://token.example.com/token",
			"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
		for k, s := range more {
			v[k] = s
		}
		data, err := json.Marshal(v)
		must(t, err)
		return string(data)
	}
	secret := func(json, registry string) image.Auth {
		a, err := image.AuthFromSecret(map[string]string{"SERVICE_ACCOUNT_JSON": json, "REGISTRY": registry})
		must(t, err)
		return a
	}
	var form url.Values
	good := func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.Form
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"s3cr3t-token","expires_in":3600,"token_type":"Bearer"}`)
	}
	api = good
	s, dir := open(t, w.use)
	const ref = "registry.example.com/project/app:1"
	img, _, err := s.Pull(t.Context(), ref, secret(account(nil), "registry.example.com"), nil)
	must(t, err)
	whole(t, dir, img)
	if form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || strings.Count(form.Get("assertion"), ".") != 2 {
		t.Errorf("the token was asked for with %v", form)
	}
	_, _, err = s.Pull(t.Context(), ref, secret(account(nil), ""), nil)
	wantProblem(t, err, sandbox.ErrInvalid, "registry_denied", "image.registry_secret", "pkg.dev", "registry.example.com")
	_, _, err = s.Pull(t.Context(), ref, secret(account(map[string]string{"private_key": "hunter2"}), "registry.example.com"), nil)
	wantProblem(t, err, sandbox.ErrInvalid, "registry_denied", "image.registry_secret", "private_key")
	for status, want := range map[int][3]string{400: {"registry_denied", "image.registry_secret", "400"}, 503: {"registry_failed", "image.registry", "503"}} {
		api = func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, `{"error":"invalid_grant","error_description":"s3cr3t-token"}`)
		}
		_, _, err = s.Pull(t.Context(), ref, secret(account(nil), "registry.example.com"), nil)
		class := map[int]error{400: sandbox.ErrInvalid, 503: sandbox.ErrUnavailable}[status]
		wantProblem(t, err, class, want[0], want[1], want[2])
	}
	api = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	_, _, err = s.Pull(t.Context(), ref, secret(account(nil), "registry.example.com"), nil)
	wantProblem(t, err, sandbox.ErrUnavailable, "registry_unreachable", "image.registry")
}

func TestBadSecrets(t *testing.T) {
	for _, tc := range []struct {
		name  string
		in    map[string]string
		words []string
	}{
		{"nothing", nil, []string{"USERNAME", "DOCKER_CONFIG_JSON", "SERVICE_ACCOUNT_JSON"}},
		{"something else", map[string]string{"PASWORD": "hunter2"}, []string{"no credentials"}},
		{"half", map[string]string{"USERNAME": "hunter2"}, []string{"USERNAME", "no PASSWORD"}},
		{"half of Modal's", map[string]string{"REGISTRY_PASSWORD": "hunter2"}, []string{"no REGISTRY_USERNAME"}},
		{"half of AWS", map[string]string{"AWS_ACCESS_KEY_ID": "hunter2"}, []string{"AWS_SECRET_ACCESS_KEY"}},
		{"two kinds", map[string]string{"USERNAME": "a", "PASSWORD": "hunter2", "REGISTRY_TOKEN": "hunter2"}, []string{"both"}},
		{"no Docker configuration", map[string]string{"DOCKER_CONFIG_JSON": "hunter2"}, []string{"config.json"}},
		{"an empty one", map[string]string{"DOCKER_CONFIG_JSON": "{}"}, []string{"auths"}},
		{"a helper", map[string]string{"DOCKER_CONFIG_JSON": `{"credsStore":"desktop"}`}, []string{"helper"}},
		{"bad base64", map[string]string{"DOCKER_CONFIG_JSON": `{"auths":{"ghcr.io":{"auth":"hunter2"}}}`}, []string{"ghcr.io", "base64"}},
		{"no service account", map[string]string{"SERVICE_ACCOUNT_JSON": `hunter2`}, []string{"JSON"}},
		{"another account", map[string]string{"SERVICE_ACCOUNT_JSON": `{"type":"external_account"}`}, []string{"service account"}},
		{"a token over plain HTTP", map[string]string{"SERVICE_ACCOUNT_JSON": `{"type":"service_account","client_email":"a","private_key":"hunter2","token_uri":"http://example.com"}`}, []string{"https"}},
		{"an endpoint over plain HTTP", map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL_ECR": "http://example.com"}, []string{"https"}},
		{"a region that leads elsewhere", map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_REGION": "x.example.com/"}, []string{"AWS_REGION"}},
		{"no registry", map[string]string{"USERNAME": "a", "PASSWORD": "hunter2", "REGISTRY": "a b"}, []string{"REGISTRY"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := image.AuthFromSecret(tc.in)
			wantProblem(t, err, sandbox.ErrInvalid, "invalid_request", "image.registry_secret", tc.words...)
		})
	}
	bound, err := image.AuthFromSecret(map[string]string{"REGISTRY_USERNAME": "a", "REGISTRY_PASSWORD": "hunter2", "REGISTRY": "docker.io"})
	must(t, err)
	r := newRegistry(t)
	s, _ := open(t)
	_, _, err = s.Pull(t.Context(), r.host+"/app", bound, nil)
	wantProblem(t, err, sandbox.ErrInvalid, "registry_denied", "image.registry_secret", "docker.io", r.host)
	if r.asked(".") > 0 {
		t.Errorf("the other registry was asked %q", r.log)
	}
}

// TestAuthHidesItself prints credentials in every way that comes to mind.
func TestAuthHidesItself(t *testing.T) {
	for _, v := range []map[string]string{
		{"USERNAME": "joe", "PASSWORD": "hunter2"}, {"REGISTRY_TOKEN": "hunter2"}, {"DOCKER_CONFIG_JSON": `{"auths":{"ghcr.io":{"username":"a","password":"hunter2"}}}`},
		{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter2"}, {"SERVICE_ACCOUNT_JSON": `{"type":"service_account","client_email":"a","private_key":"hunter2"}`},
	} {
		a, err := image.AuthFromSecret(v)
		must(t, err)
		var b strings.Builder
		hidden := struct{ a image.Auth }{a}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&b, verb+" "+verb+" "+verb+" "+verb+"\n", a, &a, hidden, []image.Auth{a})
		}
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "auth", a, "in", hidden, "list", []image.Auth{a})
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "auth", a, "in", hidden, "list", []image.Auth{a})
		data, err := json.Marshal(map[string]any{"a": a, "b": hidden})
		must(t, err)
		b.Write(data)
		if strings.Contains(b.String(), "hunter2") || strings.Contains(b.String(), fmt.Sprintf("%x", "hunter2")) || !strings.Contains(b.String(), "hidden") {
			t.Errorf("%v printed:\n%s", a, b.String())
		}
	}
}
