package guest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// encoded is a frame in the form of the wire, with any header.
func encoded(kind byte, length uint32, offset uint64, data string) []byte {
	b := []byte{kind}
	b = binary.BigEndian.AppendUint32(b, length)
	b = binary.BigEndian.AppendUint64(b, offset)
	return append(b, data...)
}

func TestDecoderRefuses(t *testing.T) {
	t.Parallel()
	eight := func(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }
	for name, tc := range map[string]struct {
		in   []byte
		want error
	}{
		"nothing":              {nil, io.EOF},
		"half a header":        {encoded(1, 3, 0, "")[:7], io.ErrUnexpectedEOF},
		"no data":              {encoded(1, 3, 0, ""), io.ErrUnexpectedEOF},
		"half the data":        {encoded(1, 3, 0, "ab"), io.ErrUnexpectedEOF},
		"kind zero":            {encoded(0, 1, 0, "a"), guest.ErrFrame},
		"an unknown kind":      {encoded(5, 1, 0, "a"), guest.ErrFrame},
		"a length too long":    {encoded(1, guest.MaxFrame+1, 0, ""), guest.ErrFrame},
		"the longest length":   {encoded(1, 1<<32-1, 0, ""), guest.ErrFrame},
		"empty output":         {encoded(2, 0, 0, ""), guest.ErrFrame},
		"a negative offset":    {encoded(1, 1, 1<<63, "a"), guest.ErrFrame},
		"a huge offset":        {encoded(1, 1, 1<<62+1, "a"), guest.ErrFrame},
		"a gap of seven bytes": {encoded(3, 7, 9, "1234567"), guest.ErrFrame},
		"a gap backwards":      {encoded(3, 8, 9, eight(10)), guest.ErrFrame},
		"a gap from nowhere":   {encoded(3, 8, 9, eight(1<<64-1)), guest.ErrFrame},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if f, err := guest.NewDecoder(bytes.NewReader(tc.in)).Next(); !errors.Is(err, tc.want) {
				t.Errorf("%+v, %v; want %v", f, err, tc.want)
			}
		})
	}
}

func TestEndFrameHoldsARun(t *testing.T) {
	t.Parallel()
	if _, err := (guest.Frame{Kind: guest.Stdout}).Run(); !errors.Is(err, guest.ErrFrame) {
		t.Errorf("output as a run: %v", err)
	}
	if _, err := (guest.Frame{Kind: guest.End, Data: []byte("{")}).Run(); !errors.Is(err, guest.ErrFrame) {
		t.Errorf("half a run: %v", err)
	}
	if b := (guest.Frame{Kind: guest.Stdout, Offset: 7}).GapBegin(); b != 7 {
		t.Errorf("what is no gap begins at %d", b)
	}
	defer func() {
		if recover() == nil {
			t.Error("a frame that is too long was encoded")
		}
	}()
	guest.AppendFrame(nil, guest.Frame{Kind: guest.Stdout, Data: make([]byte, guest.MaxFrame+1)})
}

// FuzzDecoder feeds the decoder anything: it must end, hold no more than it may, and what it accepts must encode to the same bytes.
func FuzzDecoder(f *testing.F) {
	f.Add(guest.AppendFrame(nil, guest.Frame{Kind: guest.Stdout, Data: []byte("hello")}))
	f.Add(guest.AppendFrame(nil, guest.GapFrame(3, 9)))
	f.Add(guest.AppendFrame(nil, guest.Frame{Kind: guest.End, Offset: 9, Data: []byte(`{"id":"x"}`)}))
	f.Add(encoded(1, 1<<31, 1, "abc"))
	f.Fuzz(func(t *testing.T, in []byte) {
		dec := guest.NewDecoder(bytes.NewReader(in))
		var out []byte
		for {
			fr, err := dec.Next()
			if err != nil {
				break
			}
			if len(fr.Data) > guest.MaxFrame || fr.Offset < 0 || fr.GapBegin() < 0 || fr.GapBegin() > fr.Offset {
				t.Fatalf("accepted %+v", fr)
			}
			_, _ = fr.Run() // must not panic
			out = guest.AppendFrame(out, fr)
		}
		if !bytes.HasPrefix(in, out) {
			t.Fatal("what was decoded is not what was there")
		}
	})
}

// FuzzFrames encodes a frame and decodes it again.
func FuzzFrames(f *testing.F) {
	f.Add(uint8(0), int64(0), []byte("x"), []byte("y"))
	f.Add(uint8(1), int64(1)<<61, []byte{0, 255, '\n'}, []byte("more"))
	f.Fuzz(func(t *testing.T, kind uint8, offset int64, a, b []byte) {
		if offset < 0 || offset > 1<<61 || len(a) == 0 || len(b) == 0 || len(a) > guest.MaxFrame || len(b) > guest.MaxFrame {
			t.Skip()
		}
		in := []guest.Frame{
			{Kind: guest.Stdout + guest.Kind(kind%2), Offset: offset, Data: a},
			guest.GapFrame(offset, offset+int64(len(a))),
			{Kind: guest.End, Offset: offset, Data: b},
		}
		var wire []byte
		for _, fr := range in {
			wire = guest.AppendFrame(wire, fr)
		}
		dec := guest.NewDecoder(bytes.NewReader(wire))
		for _, want := range in {
			got, err := dec.Next()
			if err != nil || got.Kind != want.Kind || got.Offset != want.Offset || !bytes.Equal(got.Data, want.Data) {
				t.Fatalf("%+v, %v; want %+v", got, err, want)
			}
		}
		if _, err := dec.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the last frame: %v", err)
		}
	})
}
