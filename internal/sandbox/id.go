package sandbox

import (
	"strings"

	"github.com/oklog/ulid/v2"
)

// ID names a sandbox: "sbx_" and a ULID. We choose it before anything exists.
type ID string

// Prefixes of the IDs that we make. An ID is a prefix and a ULID, so it sorts by the time it was made.
const (
	PrefixSandbox = "sbx_"
	PrefixRun     = "run_"
	PrefixSession = "ses_"
	PrefixVolume  = "vol_"
	PrefixKey     = "key_"
	PrefixImage   = "img_"
	PrefixSecret  = "sec_"
	PrefixTurn    = "trn_"
	PrefixAsk     = "prm_"
)

// NewID returns a fresh ID with prefix, one of the Prefix constants.
func NewID(prefix string) string { return prefix + ulid.Make().String() }

// IsID reports whether s has the form of an ID with prefix. It says nothing of whether such a thing exists.
func IsID(s, prefix string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return false
	}
	_, err := ulid.ParseStrict(rest)
	return err == nil
}
