package client

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/sandlot-dev/sandlot/api"
)

// FuzzPlainOutput holds the fast way against the general one.
func FuzzPlainOutput(f *testing.F) {
	for _, s := range []string{
		`{"stream":"stdout","data":"a\nb\"\\c\t\r"}`, `{"stream":"stderr","data":""}`, `{"stream":"stdout","data":"/w==","encoding":"base64"}`,
		`{"stream":"stdout","data":"\u0001"}`, `{"stream":"stdout","data":"a"b"}`, `{"stream":"stdout","data":"\"}`, `{"stream":"x","data":"a"}`, `{}`,
		`{"stream":"stdout","data":"ä€😀"}`, `{"stream":"stdout","data":"a","data":"b"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		stream, data, ok := plainOutput(s)
		if !ok || !json.Valid([]byte(s)) || !utf8.ValidString(s) {
			return
		}
		var want api.Output
		if err := json.Unmarshal([]byte(s), &want); err != nil || want.Encoding != "" || want.Stream != stream || want.Data != string(data) {
			t.Errorf("%q: %q, %q; want %+v, %v", s, stream, data, want, err)
		}
	})
}
