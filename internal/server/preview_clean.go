package server

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sandlot-dev/sandlot/api"
)

// This file is what must not pass between a browser and a sandbox.

// ourCookies are never sent into a sandbox, and no sandbox sets them.
var ourCookies = []string{cookieName, previewCookie}

func isOurCookie(name string) bool {
	return slices.ContainsFunc(ourCookies, func(ours string) bool { return strings.EqualFold(strings.TrimSpace(name), ours) })
}

// cookies splits Cookie headers into name=value pairs, byte for byte: what a sandbox makes of them is its own affair.
func cookies(h http.Header) []string {
	var all []string
	for _, line := range h["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			if pair = strings.TrimSpace(pair); pair != "" {
				all = append(all, pair)
			}
		}
	}
	return all
}

// shownTokens are the tokens in cookies: several, when a page has put others beside ours.
func shownTokens(h http.Header) []string {
	var all []string
	for _, pair := range cookies(h) {
		if name, value, _ := strings.Cut(pair, "="); name == previewCookie {
			all = append(all, strings.Trim(value, `"`))
		}
	}
	return all
}

// dropOurCookies takes ours out of Cookie headers.
func dropOurCookies(h http.Header) {
	rest := slices.DeleteFunc(cookies(h), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return isOurCookie(name)
	})
	h.Del("Cookie")
	if len(rest) > 0 {
		h.Set("Cookie", strings.Join(rest, "; "))
	}
}

// cleanSetCookies binds the cookies that a sandbox sets to its own origin.
func cleanSetCookies(h http.Header) {
	var kept []string
	for _, line := range h["Set-Cookie"] {
		parts := strings.Split(line, ";")
		name, _, named := strings.Cut(parts[0], "=")
		if !named || strings.TrimSpace(name) == "" || isOurCookie(name) {
			continue // one without a name could be taken for one with any
		}
		parts = append(parts[:1:1], slices.DeleteFunc(parts[1:], func(attribute string) bool {
			key, _, _ := strings.Cut(attribute, "=")
			return strings.EqualFold(strings.TrimSpace(key), "Domain")
		})...)
		kept = append(kept, strings.Join(parts, ";"))
	}
	h.Del("Set-Cookie")
	if len(kept) > 0 {
		h["Set-Cookie"] = kept
	}
}

// splitQuery takes our token out of a query and leaves the rest as it is.
func splitQuery(raw string) (rest, token string, found bool) {
	var kept []string
	for part := range strings.SplitSeq(raw, "&") {
		key, value, _ := strings.Cut(part, "=")
		if name, err := url.QueryUnescape(key); err == nil && name == previewParam {
			token, _ = url.QueryUnescape(value) // what can't be read is no token
			found = true
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, "&"), token, found
}

// cleanRequest takes out of a request's headers what is ours or what only a proxy may say. known tells whether a secret is one of our
// API keys.
func cleanRequest(h http.Header, known func(secret string) bool) {
	dropOurCookies(h)
	h.Del(api.HeaderPreviewToken)
	for name := range h {
		plain := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-")) // many a program takes the one for the other
		if strings.HasPrefix(plain, "X-Forwarded-") || plain == "Forwarded" || plain == "X-Real-Ip" {
			delete(h, name)
		}
	}
	if strings.Contains(h.Get("Referer"), previewParam+"=") {
		h.Del("Referer")
	}
	isKey := func(secret string) bool {
		secret = strings.TrimSpace(secret)
		return strings.HasPrefix(secret, keyPrefix) || secret != "" && known(secret)
	}
	h["X-Api-Key"] = slices.DeleteFunc(h["X-Api-Key"], isKey)
	h["Authorization"] = slices.DeleteFunc(h["Authorization"], func(v string) bool {
		scheme, secret, _ := strings.Cut(strings.TrimSpace(v), " ")
		if strings.EqualFold(scheme, "Basic") {
			raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(secret))
			user, password, _ := strings.Cut(string(raw), ":")
			return err == nil && (isKey(user) || isKey(password))
		}
		return isKey(scheme) || isKey(secret)
	})
	for _, name := range []string{"X-Api-Key", "Authorization"} {
		if len(h[name]) == 0 {
			h.Del(name)
		}
	}
}

// cleanResponse takes out of an answer what would reach beyond its origin.
func cleanResponse(h http.Header) {
	cleanSetCookies(h)
	for _, name := range []string{
		"Strict-Transport-Security", "Alt-Svc", // how to reach this host is not the sandbox's to say
		"Clear-Site-Data", // clears the cookies of the whole site, which may be ours too
	} {
		h.Del(name)
	}
}
