package client_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/sandlot-dev/sandlot/client"
)

func read(r io.Reader) (events []client.Event, err error) {
	for e, err := range client.ReadEvents(r) {
		if err != nil {
			return events, err
		}
		events = append(events, e)
	}
	return events, nil
}

func TestReadEvents(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in string
		want     []client.Event
	}{
		{"nothing", "", nil},
		{"one", "data: a\n\n", []client.Event{{Name: "message", Data: "a"}}},
		{"all fields", "id: 7\nevent: x\ndata: a\nretry: 5\n\n", []client.Event{{ID: "7", Name: "x", Data: "a"}}},
		{"several lines", "data: a\ndata\ndata:b\ndata:  c\n\n", []client.Event{{Name: "message", Data: "a\n\nb\n c"}}},
		{"empty data", "data\n\n", []client.Event{{Name: "message"}}},
		{"no data", "event: x\n\ndata: a\n\n", []client.Event{{Name: "message", Data: "a"}}},
		{"the id stays", "id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", []client.Event{{ID: "1", Name: "message", Data: "a"}, {ID: "1", Name: "message", Data: "b"}, {Name: "message", Data: "c"}}},
		{"an id with NUL is none", "id: a\x00b\ndata: a\n\n", []client.Event{{Name: "message", Data: "a"}}},
		{"comments", ":\n\n: x\ndata: a\n:\n\n", []client.Event{{Name: "message", Data: "a"}}},
		{"CR", "data: a\rdata: b\r\rdata: c\r\r", []client.Event{{Name: "message", Data: "a\nb"}, {Name: "message", Data: "c"}}},
		{"CRLF", "data: a\r\ndata: b\r\n\r\n", []client.Event{{Name: "message", Data: "a\nb"}}},
		{"byte order mark", "\uFEFFdata: a\n\n", []client.Event{{Name: "message", Data: "a"}}},
		{"cut off", "data: a\n\ndata: b\n", []client.Event{{Name: "message", Data: "a"}}},
		{"unknown field", "date: a\ndata: b\n\n", []client.Event{{Name: "message", Data: "b"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for name, r := range map[string]io.Reader{"whole": strings.NewReader(tt.in), "bytes": iotest.OneByteReader(strings.NewReader(tt.in))} {
				got, err := read(r)
				if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("%s: got %q, %v; want %q", name, got, err, tt.want)
				}
			}
		})
	}
}

func TestReadEventsTellsErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	got, err := read(io.MultiReader(strings.NewReader("data: a\n\ndata: b\n"), iotest.ErrReader(broken)))
	if len(got) != 1 || !errors.Is(err, broken) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := read(io.MultiReader(strings.NewReader("data: "), endless{})); !errors.Is(err, client.ErrEventTooLong) {
		t.Errorf("an event without an end: %v", err)
	}
}

// endless is a line that never ends.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

func FuzzReadEvents(f *testing.F) {
	for _, seed := range []string{"data: a\n\n", "id: 1\r\nevent: x\r\ndata: a\r\ndata: b\r\n\r\n", ":\n\n", "\uFEFFdata\r\r", "data: [DONE]\n\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, err := read(strings.NewReader(string(in)))
		if err != nil {
			t.Fatal(err)
		}
		bytewise, err := read(iotest.OneByteReader(strings.NewReader(string(in))))
		if err != nil || fmt.Sprint(whole) != fmt.Sprint(bytewise) {
			t.Fatalf("what comes in pieces reads otherwise: %q, %q, %v", whole, bytewise, err)
		}
		// What was read and is written again reads the same.
		var again strings.Builder
		for _, e := range whole {
			if strings.ContainsAny(e.ID+e.Name, "\r\n") || strings.Contains(e.Data, "\r") {
				t.Fatalf("line ends within: %q", e)
			}
			fmt.Fprintf(&again, "id: %s\nevent: %s\ndata: %s\n\n", e.ID, e.Name, strings.ReplaceAll(e.Data, "\n", "\ndata: "))
		}
		second, err := read(strings.NewReader(again.String()))
		if err != nil || fmt.Sprint(second) != fmt.Sprint(whole) {
			t.Fatalf("%q became %q, %v", whole, second, err)
		}
	})
}
