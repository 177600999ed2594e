package server

import (
	"encoding/json"
	"testing"
)

// FuzzAppendEscaped writes text as JSON and reads it again.
func FuzzAppendEscaped(f *testing.F) {
	for _, s := range []string{"", "plain", "\"\\\n\r\t\x00\x1f\x7f", "ä€😀\u2028\u2029<>&", "a\\\"b\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := text([]byte(s))
		var got string
		if err := json.Unmarshal(append(appendEscaped([]byte{'"'}, []byte(want)), '"'), &got); err != nil || got != want {
			t.Errorf("%q became %q, %v", want, got, err)
		}
	})
}
