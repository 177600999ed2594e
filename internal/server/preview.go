package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const (
	previewParam   = "sandlot_preview" // of the first request's query
	previewCookie  = "sandlot_preview" // of all later ones
	previewDefault = time.Hour
	previewVersion = "1"
)

// target is what a preview leads to.
type target struct {
	id   sandbox.ID
	port uint16
}

// label is the target as the first label of a host name, where neither capitals nor underscores are safe. An ID has no others than
// these to lose, so that parseLabel finds it again.
func (t target) label() string {
	return fmt.Sprintf("%d-%s", t.port, strings.ToLower(strings.ReplaceAll(string(t.id), "_", "-")))
}

// parseLabel is the inverse of label, and takes nothing that label doesn't make.
func parseLabel(label string) (target, bool) {
	port, id, _ := strings.Cut(label, "-")
	n, err := strconv.ParseUint(port, 10, 16)
	rest, ok := strings.CutPrefix(id, strings.ReplaceAll(sandbox.PrefixSandbox, "_", "-"))
	if err != nil || n == 0 || !ok {
		return target{}, false
	}
	t := target{id: sandbox.ID(sandbox.PrefixSandbox + strings.ToUpper(rest)), port: uint16(n)}
	return t, sandbox.IsID(string(t.id), sandbox.PrefixSandbox) && t.label() == label
}

// hostName is the name in a Host header: without the port, the last dots and capitals.
func hostName(host string) string {
	if !strings.HasPrefix(host, "[") {
		host, _, _ = strings.Cut(host, ":")
	}
	return strings.ToLower(strings.TrimRight(host, "."))
}

// previewHost is where previews are: SCHEME://LABEL.NAME:PORT.
type previewHost struct {
	scheme string // "" = as the request that asks for one came
	name   string
	port   string // "" = the scheme's own
}

// parsePreviewHost reads HOST, HOST:PORT or SCHEME://HOST:PORT.
func parsePreviewHost(s string) (previewHost, error) {
	bad := func(why string) (previewHost, error) {
		return previewHost{}, fmt.Errorf("the preview host %q %s; use a name like preview.example.com:8080 or https://preview.example.com", s, why)
	}
	h := previewHost{name: s}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		if scheme != "http" && scheme != "https" {
			return bad("is neither for http nor for https")
		}
		h.scheme, h.name = scheme, strings.TrimSuffix(rest, "/")
	}
	if name, port, err := net.SplitHostPort(h.name); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return bad("has a bad port")
		}
		h.name, h.port = name, port
	}
	h.name = strings.ToLower(strings.TrimSuffix(h.name, "."))
	if net.ParseIP(h.name) != nil {
		return bad("is an address, and addresses have no subdomains")
	}
	const longest = 253 - 64 // our label comes in front
	for label := range strings.SplitSeq(h.name, ".") {
		if label == "" || len(h.name) > longest || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return bad("is no host name")
		}
	}
	return h, nil
}

// CheckPreviewHost says what is wrong with a Config.PreviewHost.
func CheckPreviewHost(host string) error {
	_, err := parsePreviewHost(host)
	return err
}

// below returns the label of a host that is below ours. ok says that it is, whatever the label: nothing else is served there.
func (h previewHost) below(host string) (label string, ok bool) {
	return strings.CutSuffix(hostName(host), "."+h.name)
}

// url is where t's preview is.
func (h previewHost) url(t target, secure bool) url.URL {
	u := url.URL{Scheme: h.scheme, Host: t.label() + "." + h.name, Path: "/"}
	if u.Scheme == "" {
		u.Scheme = "http"
		if secure {
			u.Scheme = "https"
		}
	}
	if h.port != "" {
		u.Host += ":" + h.port
	}
	return u
}

// isSecure reports whether the caller came by TLS, to us or to a proxy before us.
func isSecure(r *http.Request) bool {
	return r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https"
}

// Why a token is refused.
var (
	errNoToken      = errors.New("there is no token")
	errForgedToken  = errors.New("the token is not for this preview")
	errExpiredToken = errors.New("the token has expired")
)

// signer makes and checks the tokens of previews. A token is worth something only for its target, and only until it expires: it holds
// the end of that in the clear, and a MAC over both.
type signer struct{ secret []byte }

func (s signer) mac(t target, expires int64) []byte {
	m := hmac.New(sha256.New, s.secret)
	_, _ = fmt.Fprintf(m, "sandlot preview %s\x00%s\x00%d\x00%d", previewVersion, t.id, t.port, expires) // never fails
	return m.Sum(nil)
}

func (s signer) sign(t target, expires time.Time) string {
	at := expires.Unix()
	return previewVersion + "." + strconv.FormatInt(at, 36) + "." + base64.RawURLEncoding.EncodeToString(s.mac(t, at))
}

// check returns when a token expires.
func (s signer) check(t target, token string, now time.Time) (time.Time, error) {
	if token == "" {
		return time.Time{}, errNoToken
	}
	version, rest, _ := strings.Cut(token, ".")
	when, sum, _ := strings.Cut(rest, ".")
	at, err := strconv.ParseInt(when, 36, 64)
	given, errSum := base64.RawURLEncoding.Strict().DecodeString(sum)
	if version != previewVersion || err != nil || errSum != nil || !hmac.Equal(given, s.mac(t, at)) {
		return time.Time{}, errForgedToken
	}
	expires := time.Unix(at, 0)
	if !now.Before(expires) {
		return time.Time{}, errExpiredToken
	}
	return expires, nil
}

func (s *Server) previewRoutes(h huma.API) {
	tags := []string{"Previews"}
	add(s, h, strict(huma.Operation{
		OperationID: "list-ports", Method: http.MethodGet, Path: "/sandbox/{id}/port", Tags: tags, Summary: "List the ports on which something listens",
		Description: "TCP ports of the sandbox's loopback and of all its addresses: what a preview can reach.",
	}), s.listPorts)
	add(s, h, strict(huma.Operation{
		OperationID: "create-preview", Method: http.MethodPost, Path: "/sandbox/{id}/preview", Tags: tags, Summary: "Make a URL to a port of a sandbox",
		Description: "Whoever has the URL reaches the port by HTTP and WebSocket, until it expires or the sandbox ends. Each port of each sandbox " +
			"has an origin of its own, where nothing of Sandlot's is sent along.",
	}), s.createPreview)
}

func (s *Server) listPorts(ctx context.Context, c *call, in *SandboxInput) (*body[api.PortList], error) {
	g, err := s.cfg.Manager.Guest(ctx, c.account, sandbox.ID(in.ID))
	if err != nil {
		return nil, err
	}
	ports, err := g.Ports(ctx)
	if err != nil {
		return nil, err
	}
	return &body[api.PortList]{api.PortList{Ports: each(ports, fromPort)}}, nil
}

type previewInput struct {
	SandboxInput
	Body api.CreatePreview
}

func (s *Server) createPreview(ctx context.Context, c *call, in *previewInput) (*body[api.Preview], error) {
	id := sandbox.ID(in.ID)
	if _, err := s.cfg.Manager.Guest(ctx, c.account, id); err != nil { // it runs, and belongs to who asks
		return nil, err
	}
	sb, err := s.cfg.Manager.Sandbox(ctx, c.account, id)
	if err != nil {
		return nil, err
	}
	if s.previews == nil {
		return nil, &sandbox.Problem{Class: sandbox.ErrUnsupported, Code: "previews_off",
			Detail: "This server has no host for previews. Start it with --preview-host and a name whose subdomains lead to it."}
	}
	if in.Body.Port == guest.GatewayPort {
		return nil, sandbox.Invalid("port", "is Sandlot's own in every sandbox")
	}
	t := target{id: sb.ID, port: uint16(in.Body.Port)}
	u := s.previews.host.url(t, isSecure(c.r))
	if in.Body.Path != "" {
		p, err := url.Parse(in.Body.Path)
		if err != nil || p.Scheme != "" || p.Host != "" || p.User != nil || !strings.HasPrefix(p.Path, "/") {
			return nil, sandbox.Invalid("body.path", "must begin with one slash and be fit for a URL")
		}
		u.Path, u.RawPath, u.RawQuery, u.Fragment, u.RawFragment = p.Path, p.RawPath, p.RawQuery, p.Fragment, p.RawFragment
	}
	life := previewDefault
	if in.Body.ExpiresS > 0 {
		life = seconds(float64(in.Body.ExpiresS))
	}
	expires := time.Now().Add(life)
	if sb.ExpiresAt.Before(expires) {
		expires = sb.ExpiresAt
	}
	expires = expires.UTC().Truncate(time.Second)
	token := s.previews.signer.sign(t, expires)
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += previewParam + "=" + token
	return &body[api.Preview]{api.Preview{URL: u.String(), Port: in.Body.Port, Token: token, ExpiresAt: expires}}, nil
}
