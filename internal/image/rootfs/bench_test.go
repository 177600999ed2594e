package rootfs_test

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/image/rootfs"
)

// generated is a layer of n files of size bytes in directories of a hundred, made as it is read.
func generated(n int, size int64) rootfs.Layer {
	return func(context.Context) (io.ReadCloser, error) {
		body := make([]byte, min(size, 1<<20))
		if _, err := rand.NewChaCha8([32]byte{}).Read(body); err != nil {
			return nil, err
		}
		r, w := io.Pipe()
		go func() {
			out := bufio.NewWriterSize(w, 256<<10)
			tw := tar.NewWriter(out)
			for i := range n {
				h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/lib/some/directory-%d/file-%d.txt", i/100, i), Mode: 0o644, Size: size}
				if err := tw.WriteHeader(h); err != nil {
					w.CloseWithError(err)
					return
				}
				for left := size; left > 0; left -= int64(len(body)) {
					if _, err := tw.Write(body); err != nil {
						w.CloseWithError(err)
						return
					}
				}
			}
			w.CloseWithError(errors.Join(tw.Close(), out.Flush()))
		}()
		return r, nil
	}
}

// BenchmarkWrite writes an image of 1 GiB, in files of several sizes, and of many empty files.
func BenchmarkWrite(b *testing.B) {
	for _, bb := range []struct {
		name string
		n    int
		size int64
	}{{"4KiB", 1 << 18, 4 << 10}, {"64KiB", 1 << 14, 64 << 10}, {"1GiB", 1, 1 << 30}, {"Empty", 900_000, 0}} {
		b.Run(bb.name, func(b *testing.B) {
			b.SetBytes(int64(bb.n) * bb.size)
			for b.Loop() {
				runtime.GC()
				peak := watchHeap()
				_, err := rootfs.Write(b.Context(), filepath.Join(b.TempDir(), "f"), []rootfs.Layer{generated(bb.n, bb.size)}, rootfs.Limits{})
				if err != nil {
					b.Fatal(err)
				}
				most := peak()
				b.ReportMetric(float64(most)/(1<<20), "peak-MiB")
				b.ReportMetric(float64(most)/float64(bb.n), "peak-B/file")
			}
		})
	}
}

// watchHeap looks at the heap until the returned function is called, which says how large it was.
func watchHeap() func() int64 {
	var most atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most.Store(max(most.Load(), int64(m.HeapInuse)))
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return most.Load()
	}
}
