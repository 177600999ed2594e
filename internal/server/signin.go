package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
	"github.com/sandlot-dev/sandlot/internal/store"
)

const (
	cookieName     = "sandlot"
	cookieLifetime = 30 * 24 * time.Hour
	signinLifetime = 15 * time.Minute
	keyPrefix      = "slk_"
)

// SigninStore keeps one-time sign-in tokens.
type SigninStore interface {
	AddSignin(ctx context.Context, hash []byte, account string, expires time.Time) error
}

// IssueSignin makes a one-time token that signs a browser in to account: GET /signin/TOKEN. It is good for a quarter of
// an hour.
func IssueSignin(ctx context.Context, st SigninStore, account string) (token string, err error) {
	token = rand.Text()
	if err := st.AddSignin(ctx, hashOf(token), account, time.Now().Add(signinLifetime)); err != nil {
		return "", fmt.Errorf("issue a sign-in token: %w", err)
	}
	return token, nil
}

// NewKey makes an API key. The secret is shown once and never kept; the caller adds the key's account and name.
func NewKey() (secret string, key store.Key) {
	secret = keyPrefix + rand.Text()
	return secret, KeyOf(secret)
}

// KeyOf returns the record of a secret that somebody else has chosen. The caller adds the key's account and name.
func KeyOf(secret string) store.Key {
	return store.Key{ID: sandbox.NewID(sandbox.PrefixKey), Hash: hashOf(secret), Last4: secret[max(0, len(secret)-4):]}
}

// newSessions keeps browsers' sessions in st. (scs.New would also start a store in memory, which nothing stops.)
func newSessions(st scs.Store) *scs.SessionManager {
	return &scs.SessionManager{Store: st, Lifetime: cookieLifetime, Codec: scs.GobCodec{}}
}

// signedIn returns the account of the request's cookie, "" if it has none that is good.
func (s *Server) signedIn(r *http.Request) (string, error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil || cookie.Value == "" {
		return "", nil //nolint:nilerr // no cookie is no fault
	}
	ctx, err := s.web.Load(r.Context(), cookie.Value)
	if err != nil {
		return "", fmt.Errorf("read the browser's session: %w", err)
	}
	return s.web.GetString(ctx, "account"), nil
}

// signIn begins a browser's session and sets its cookie.
func (s *Server) signIn(c *call, account string) error {
	ctx, err := s.web.Load(c.r.Context(), "") // always a new one: nobody can plant a token that he knows
	if err != nil {
		return fmt.Errorf("begin a browser's session: %w", err)
	}
	s.web.Put(ctx, "account", account)
	token, expiry, err := s.web.Commit(ctx)
	if err != nil {
		return fmt.Errorf("begin a browser's session: %w", err)
	}
	c.account = account
	setCookie(c, token, time.Until(expiry))
	return nil
}

// setCookie sets the session's cookie, or deletes it.
func setCookie(c *call, token string, lifetime time.Duration) {
	cookie := &http.Cookie{
		Name: cookieName, Value: token, Path: "/", MaxAge: int(lifetime / time.Second),
		HttpOnly: true, SameSite: http.SameSiteLaxMode,
		Secure: c.r.TLS != nil || c.r.Header.Get("X-Forwarded-Proto") == "https",
	}
	if token == "" {
		cookie.MaxAge = -1
	}
	http.SetCookie(c.w, cookie)
}

// signinLink answers GET /signin/{token}: the one-time link that sandlot prints.
func (s *Server) signinLink(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return // somebody looks at the link, nobody follows it
	}
	account, err := s.cfg.Store.TakeSignin(r.Context(), hashOf(r.PathValue("token")), time.Now())
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		http.Redirect(w, r, "/signin?error=expired", http.StatusSeeOther)
		return
	case err == nil:
		err = s.signIn(c, account)
	}
	if err != nil {
		writeProblem(w, r, problemOf(err))
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

type signInInput struct {
	Body api.SignIn
}

// signInWithKey answers POST /signin.
func (s *Server) signInWithKey(ctx context.Context, c *call, in *signInInput) (*struct{}, error) {
	if p := s.sameOrigin(c.r); p != nil {
		return nil, p
	}
	key, err := s.cfg.Store.KeyByHash(ctx, hashOf(in.Body.Key))
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil, refuse(http.StatusUnauthorized, "invalid_key", "The API key is not valid (any more).").at("key", "is not valid (any more)")
	}
	if err != nil {
		return nil, err
	}
	return nil, s.signIn(c, key.Account)
}

// signOut answers POST /signout. Whoever isn't signed in is signed out already.
func (s *Server) signOut(ctx context.Context, c *call, _ *struct{}) (*struct{}, error) {
	if p := s.sameOrigin(c.r); p != nil {
		return nil, p
	}
	if cookie, err := c.r.Cookie(cookieName); err == nil && cookie.Value != "" {
		loaded, err := s.web.Load(ctx, cookie.Value)
		if err == nil {
			err = s.web.Destroy(loaded)
		}
		if err != nil {
			return nil, fmt.Errorf("end the browser's session: %w", err)
		}
	}
	setCookie(c, "", 0)
	return nil, nil
}
