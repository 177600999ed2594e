package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// reads measures how fast a file of a sandbox comes out through the API, against a program of the sandbox that reads it to nowhere.
func (b *bench) reads(ctx context.Context) (_ []*measure, err error) {
	const (
		size    = 1 << 30
		piece   = 64 << 10
		readers = 8
		path    = "/workspace/big"
	)
	progress("reads: preparing")
	id, err := b.cold.create(ctx, "", "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.cold.terminate(ctx, id)) }()
	if err := b.cold.exec(ctx, id, "/bin/sh", "-ec", fmt.Sprintf("head -c %d /dev/urandom > %s", size, path)); err != nil {
		return nil, err
	}
	whole := newMeasure("1 GiB, whole", "cat in the sandbox", "GET …/files")
	pieces := newMeasure("1 GiB in pieces of 64 KiB", "dd in the sandbox", "GET …/files, one after the other", fmt.Sprintf("GET …/files, %d at a time", readers))
	read := func(offset, length int64) error {
		var r io.ReadCloser
		var err error
		if length < 0 {
			r, err = b.cold.ReadFile(ctx, id, path)
			length = size
		} else {
			r, err = b.cold.ReadRange(ctx, id, path, offset, length, "")
		}
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, r)
		if err = errors.Join(err, r.Close()); err == nil && n != length {
			err = fmt.Errorf("%d bytes came instead of %d", n, length)
		}
		return err
	}
	inPieces := func(readers int) func() error {
		return func() error {
			errs := make([]error, readers)
			var wg sync.WaitGroup
			for i := range readers {
				wg.Go(func() {
					for at := int64(i) * piece; at < size && errs[i] == nil; at += int64(readers) * piece {
						errs[i] = read(at, piece)
					}
				})
			}
			wg.Wait()
			return errors.Join(errs...)
		}
	}
	for round := range max(1, b.rounds/3) {
		progress("reads, round %d", round+1)
		for _, one := range []struct {
			m    *measure
			side int
			do   func() error
		}{
			{whole, 0, func() error { return b.cold.exec(ctx, id, "/bin/sh", "-ec", "cat "+path+" >/dev/null") }},
			{whole, 1, func() error { return read(0, -1) }},
			{pieces, 0, func() error { return b.cold.exec(ctx, id, "dd", "if="+path, "of=/dev/null", "bs=64k", "status=none") }},
			{pieces, 1, inPieces(1)},
			{pieces, 2, inPieces(readers)},
		} {
			took, err := timed(one.do)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", one.m.what, one.m.sides[one.side].name, err)
			}
			one.m.add(one.m.sides[one.side].name, took)
		}
	}
	return []*measure{whole, pieces}, nil
}
