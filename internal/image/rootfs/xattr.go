package rootfs

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strings"
)

// What Linux allows.
const (
	maxXattrName  = 255
	maxXattrValue = 64 << 10
)

// headerXattrs are the extended attributes of an entry, encoded as in the table: for each a name and a value, sorted by name, each
// with its length before it.
func headerXattrs(h *tar.Header) ([]byte, error) {
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		name, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok {
			continue
		}
		v := h.PAXRecords[k]
		if name == "" || len(name) > maxXattrName || len(v) > maxXattrValue {
			return nil, bad("its attribute %.50q is none that Linux allows: names have up to %d bytes, values %d", name, maxXattrName, maxXattrValue)
		}
		b = appendBytes(appendBytes(b, name), v)
	}
	return b, nil
}

func appendBytes(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errTable = errors.New("the table of attributes is damaged")

// cutBytes takes from b what appendBytes put there.
func cutBytes(b []byte) (s, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, errTable
	}
	b = b[size:]
	return b[:n], b[n:], nil
}

// decodeXattrs is the opposite of headerXattrs.
func decodeXattrs(b []byte) (map[string]string, error) {
	if len(b) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for len(b) > 0 {
		var name, value []byte
		var err error
		if name, b, err = cutBytes(b); err != nil {
			return nil, err
		}
		if value, b, err = cutBytes(b); err != nil {
			return nil, err
		}
		m[string(name)] = string(value)
	}
	return m, nil
}

// The table follows the file system in the same file: for every inode with attributes its number and them. The footer, at the very
// end, says where the table is.
const (
	footerMagic = "SLxattr1"
	footerSize  = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// footer is the last bytes of a file: magic, offset, length, checksum.
func footer(off, size int64, sum uint32) []byte {
	b := append(make([]byte, 0, footerSize), footerMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(off))
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = binary.LittleEndian.AppendUint32(b, sum)
	return binary.LittleEndian.AppendUint32(b, 0)
}

// readTable reads the table of a file of the given size: inode number to attributes. A file that another program wrote has none.
func readTable(r io.ReaderAt, fileSize int64) (map[uint64][]byte, error) {
	b := make([]byte, footerSize)
	if fileSize < footerSize {
		return nil, errTable
	}
	if _, err := r.ReadAt(b, fileSize-footerSize); err != nil {
		return nil, err
	}
	if string(b[:8]) != footerMagic {
		return nil, nil
	}
	off, size := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	if end := uint64(fileSize) - footerSize; off > end || size != end-off {
		return nil, errTable
	}
	table := make([]byte, size)
	if _, err := r.ReadAt(table, int64(off)); err != nil && len(table) > 0 {
		return nil, err
	}
	if crc32.Checksum(table, castagnoli) != binary.LittleEndian.Uint32(b[24:]) {
		return nil, errTable
	}
	m := map[uint64][]byte{}
	for len(table) > 0 {
		nid, n := binary.Uvarint(table)
		if n <= 0 {
			return nil, errTable
		}
		attrs, rest, err := cutBytes(table[n:])
		if err != nil {
			return nil, err
		}
		m[nid], table = attrs, rest
	}
	return m, nil
}
