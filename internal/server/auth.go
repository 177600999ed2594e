package server

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// hashOf is how keys and one-time tokens are kept: they are long and random, so a plain hash can't be guessed from, and
// looking it up tells nothing by its time.
func hashOf(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// authenticate finds who asks, or says why nobody may. An API key goes before a cookie.
func (s *Server) authenticate(c *call) *problem {
	if secret, ok := shownKey(c.r); ok {
		key, err := s.cfg.Store.KeyByHash(c.r.Context(), hashOf(secret))
		switch {
		case errors.Is(err, sandbox.ErrNotFound):
			return unauthorized(c, "invalid_key", "The API key is not valid (any more).")
		case err != nil:
			return problemOf(err)
		}
		c.account, c.key = key.Account, key.ID
		return nil
	}
	account, err := s.signedIn(c.r)
	if err != nil {
		return problemOf(err)
	}
	if account == "" {
		return unauthorized(c, "unauthenticated", "Show an API key as \"Authorization: Bearer slk_…\" or \"X-API-Key: slk_…\", or sign in.")
	}
	// A cookie comes along whoever wrote the page that asks, so the page must be ours.
	if p := s.sameOrigin(c.r); p != nil {
		return p
	}
	c.account = account
	return nil
}

// shownKey returns the API key in the request's headers. Something that is there but isn't a key counts as one that is
// wrong.
func shownKey(r *http.Request) (string, bool) {
	if v := r.Header.Get("X-API-Key"); v != "" {
		return v, true
	}
	v := r.Header.Get("Authorization")
	if v == "" {
		return "", false
	}
	scheme, secret, _ := strings.Cut(v, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", true
	}
	return strings.TrimSpace(secret), true
}

// unauthorized makes the 401 problem.
func unauthorized(c *call, code, detail string) *problem {
	c.w.Header().Set("WWW-Authenticate", `Bearer realm="sandlot"`)
	return refuse(http.StatusUnauthorized, code, "%s", detail)
}

// sameOrigin refuses what another site's page makes a browser send.
func (s *Server) sameOrigin(r *http.Request) *problem {
	if err := s.csrf.Check(r); err != nil {
		return refuse(http.StatusForbidden, "cross_origin", "A page of another origin may not do this in your name.").because(err)
	}
	return nil
}
