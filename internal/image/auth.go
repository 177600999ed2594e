package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Auth are somebody's credentials for registries. The zero value has none. However it is printed, it shows no more than its kind.
type Auth struct{ c *credentials } // a pointer: fmt doesn't look behind one that is inside something else

// credentials hold their secrets in a function, where no printer finds them.
type credentials struct {
	kind     string
	registry string // the only host that may see them; "" = the one that is pulled from
	resolve  func(repo name.Repository, rt http.RoundTripper) (authn.Authenticator, error)
}

// Password returns the credentials of a user of whatever registry is pulled from.
func Password(user, password string) Auth {
	cfg := authn.AuthConfig{Username: user, Password: password}
	return Auth{&credentials{kind: "password", resolve: fixed(cfg)}}
}

func fixed(cfg authn.AuthConfig) func(name.Repository, http.RoundTripper) (authn.Authenticator, error) {
	return func(name.Repository, http.RoundTripper) (authn.Authenticator, error) {
		return authn.FromConfig(cfg), nil
	}
}

// Anonymous reports whether there are no credentials.
func (a Auth) Anonymous() bool { return a.c == nil }

// String tells the kind.
func (a Auth) String() string {
	if a.c == nil {
		return "anonymous"
	}
	return a.c.kind + " (hidden)"
}

// GoString tells the kind.
func (a Auth) GoString() string { return "image.Auth{" + a.String() + "}" }

// Format tells the kind, whatever the verb.
func (a Auth) Format(f fmt.State, _ rune) { fmt.Fprint(f, a.String()) }

// LogValue tells the kind.
func (a Auth) LogValue() slog.Value { return slog.StringValue(a.String()) }

// MarshalText tells the kind.
func (a Auth) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// authenticator resolves the credentials for a repository. Requests that this takes go through rt.
func (a Auth) authenticator(repo name.Repository, rt http.RoundTripper) (authn.Authenticator, error) {
	if a.c == nil {
		return authn.Anonymous, nil
	}
	if a.c.registry != "" && a.c.registry != repo.RegistryStr() {
		return nil, denied("The secret is for %s only, and the image is at %s.", a.c.registry, repo.RegistryStr())
	}
	return a.c.resolve(repo, rt)
}

func denied(format string, args ...any) *sandbox.Problem {
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "registry_denied", Field: fieldSecret, Detail: fmt.Sprintf(format, args...)}
}

// secretHelp says what a registry secret may hold.
const secretHelp = "A registry secret holds one of: USERNAME and PASSWORD (or REGISTRY_USERNAME and REGISTRY_PASSWORD); REGISTRY_TOKEN; DOCKER_CONFIG_JSON; " +
	"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; SERVICE_ACCOUNT_JSON."

// AuthFromSecret makes credentials of the values of an account's registry secret:
//
//   - USERNAME and PASSWORD, or REGISTRY_USERNAME and REGISTRY_PASSWORD
//   - REGISTRY_TOKEN: a bearer token for the registry itself
//   - DOCKER_CONFIG_JSON: a Docker config.json with its "auths"; the longest key that fits the image is used
//   - AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, perhaps AWS_SESSION_TOKEN: for ECR. The region is that of the host name, or AWS_REGION;
//     AWS_ENDPOINT_URL_ECR names another endpoint
//   - SERVICE_ACCOUNT_JSON: the key of a Google Cloud service account, for Artifact Registry
//
// With REGISTRY, the credentials go to that host only. Other keys are nobody's business here.
func AuthFromSecret(values map[string]string) (Auth, error) {
	kinds := []struct {
		name string
		keys []string
		make func(map[string]string) (*credentials, error)
	}{
		{"password", []string{"USERNAME", "PASSWORD"}, passwordSecret("USERNAME", "PASSWORD")},
		{"password", []string{"REGISTRY_USERNAME", "REGISTRY_PASSWORD"}, passwordSecret("REGISTRY_USERNAME", "REGISTRY_PASSWORD")},
		{"token", []string{"REGISTRY_TOKEN"}, tokenSecret},
		{"Docker configuration", []string{"DOCKER_CONFIG_JSON"}, dockerSecret},
		{"AWS keys", []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, awsSecret},
		{"Google service account", []string{"SERVICE_ACCOUNT_JSON"}, googleSecret},
	}
	chosen := -1
	for i, k := range kinds {
		var missing, present string
		for _, key := range k.keys {
			if values[key] == "" {
				missing = key
			} else {
				present = key
			}
		}
		switch {
		case present == "":
			continue
		case missing != "":
			return Auth{}, sandbox.Invalid(fieldSecret, "The secret has %s but no %s. %s", present, missing, secretHelp)
		case chosen >= 0:
			return Auth{}, sandbox.Invalid(fieldSecret, "The secret has both %s and %s, and it is not clear which counts. %s", kinds[chosen].keys[0], present, secretHelp)
		}
		chosen = i
	}
	if chosen < 0 {
		return Auth{}, sandbox.Invalid(fieldSecret, "The secret has no credentials for a registry. %s", secretHelp)
	}
	c, err := kinds[chosen].make(values)
	if err != nil {
		return Auth{}, err
	}
	c.kind = kinds[chosen].name
	if host := values["REGISTRY"]; host != "" {
		reg, err := name.NewRegistry(host)
		if err != nil {
			return Auth{}, sandbox.Invalid(fieldSecret, "REGISTRY is not the name of a registry. Write it as in ghcr.io or registry.example.com:5000.")
		}
		c.registry = reg.RegistryStr()
	}
	return Auth{c}, nil
}

func passwordSecret(user, password string) func(map[string]string) (*credentials, error) {
	return func(v map[string]string) (*credentials, error) {
		return &credentials{resolve: fixed(authn.AuthConfig{Username: v[user], Password: v[password]})}, nil
	}
}

func tokenSecret(v map[string]string) (*credentials, error) {
	return &credentials{resolve: fixed(authn.AuthConfig{RegistryToken: strings.TrimPrefix(v["REGISTRY_TOKEN"], "Bearer ")})}, nil
}

// dockerConfig is the part of Docker's config.json that can mean something away from its machine.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredHelpers map[string]string     `json:"credHelpers"`
	CredsStore  string                `json:"credsStore"`
}

type dockerAuth struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func dockerSecret(v map[string]string) (*credentials, error) {
	var cfg dockerConfig
	if err := json.Unmarshal([]byte(v["DOCKER_CONFIG_JSON"]), &cfg); err != nil { // the error quotes the text, so it goes no further
		return nil, sandbox.Invalid(fieldSecret, "DOCKER_CONFIG_JSON is not a Docker configuration. Give the whole content of config.json, with its \"auths\".")
	}
	if len(cfg.Auths) == 0 {
		if cfg.CredsStore != "" || len(cfg.CredHelpers) > 0 {
			return nil, sandbox.Invalid(fieldSecret, "DOCKER_CONFIG_JSON leaves its credentials to a helper program of your own machine. Give a configuration with \"auths\", or USERNAME and PASSWORD.")
		}
		return nil, sandbox.Invalid(fieldSecret, "DOCKER_CONFIG_JSON has no \"auths\". Give the whole content of config.json after docker login.")
	}
	auths := make(map[string]authn.AuthConfig, len(cfg.Auths))
	for key, a := range cfg.Auths {
		entry, ok := a.config()
		if !ok {
			return nil, sandbox.Invalid(fieldSecret, "In DOCKER_CONFIG_JSON, the \"auth\" of %.200q is not the base64 of user:password.", key)
		}
		auths[registryPath(key)] = entry
	}
	return &credentials{resolve: func(repo name.Repository, _ http.RoundTripper) (authn.Authenticator, error) {
		best, found := "", authn.AuthConfig{}
		path := repo.RegistryStr() + "/" + repo.RepositoryStr()
		for key, entry := range auths {
			if (path == key || strings.HasPrefix(path, key+"/")) && len(key) > len(best) {
				best, found = key, entry
			}
		}
		if best == "" || found == (authn.AuthConfig{}) {
			return authn.Anonymous, nil // as Docker does it
		}
		return authn.FromConfig(found), nil
	}}, nil
}

func (a dockerAuth) config() (authn.AuthConfig, bool) {
	out := authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			raw, err = base64.RawStdEncoding.DecodeString(a.Auth)
		}
		user, password, ok := strings.Cut(strings.TrimRight(string(raw), "\x00\n"), ":")
		if err != nil || !ok {
			return out, false
		}
		out.Username, out.Password = user, password
	}
	if out.Username == "<token>" && out.IdentityToken == "" { // Docker's way to say that the password is an identity token
		out.IdentityToken, out.Username, out.Password = out.Password, "", ""
	}
	return out, true
}

// registryPath brings a key of "auths" to the form HOST[/PATH]; Docker's own key for its Hub is a URL.
func registryPath(key string) string {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	host, path, _ := strings.Cut(strings.TrimRight(key, "/"), "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	if host == "docker.io" || host == "registry-1.docker.io" || host == "registry.hub.docker.com" {
		host = name.DefaultRegistry
	}
	if path == "" {
		return host
	}
	return host + "/" + path
}

// timed is an authenticator whose answer lasts for a while. A pull of many GB may outlast it.
type timed struct {
	fetch func(context.Context) (authn.AuthConfig, time.Time, error)

	mu      sync.Mutex
	cfg     authn.AuthConfig
	expires time.Time
}

// Authorization is the interface's form without a context; the registry client uses the other.
func (t *timed) Authorization() (*authn.AuthConfig, error) {
	return t.AuthorizationContext(context.Background())
}

// AuthorizationContext returns the credentials, fetched anew when the last ones are about to end.
func (t *timed) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Until(t.expires) < time.Minute {
		cfg, expires, err := t.fetch(ctx)
		if err != nil {
			return nil, err
		}
		t.cfg, t.expires = cfg, expires
	}
	cfg := t.cfg
	return &cfg, nil
}

// endpoint checks a URL that a secret names: credentials go there, so it is https, or this machine.
func endpoint(key, raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err == nil && u.Host != "" && u.User == nil {
		ip := net.ParseIP(u.Hostname())
		if u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
			return u, nil
		}
	}
	return nil, sandbox.Invalid(fieldSecret, "%s is not an https URL.", key)
}
