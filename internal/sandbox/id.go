package sandbox

import (
	"crypto/rand"
	"strings"
	"sync"

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

// NewID returns a fresh ID with prefix, one of the Prefix constants. What this process makes later sorts later, though the clock is set back.
func NewID(prefix string) string {
	lastID.Lock()
	defer lastID.Unlock()
	lastID.ms = max(lastID.ms, ulid.Now())
	return prefix + ulid.MustNew(lastID.ms, lastID.entropy).String()
}

// lastID is when the last ID was made, and the entropy that grows within a millisecond.
var lastID = struct {
	sync.Mutex
	ms      uint64
	entropy *ulid.MonotonicEntropy
}{entropy: ulid.Monotonic(rand.Reader, 0)}

// IsID reports whether s has the form of an ID with prefix. It says nothing of whether such a thing exists.
func IsID(s, prefix string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return false
	}
	_, err := ulid.ParseStrict(rest)
	return err == nil
}
