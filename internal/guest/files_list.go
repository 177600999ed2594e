package guest

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A page of a directory holds at most maxEntries, and ends early rather than get longer than maxPage bytes: names may be long, and the host
// takes no longer answer.
const (
	maxEntries = 20_000
	maxPage    = 8 << 20
)

// Page is a part of a directory, by name. Entries have no path.
type Page struct {
	Entries []File `json:"entries"`
	More    bool   `json:"more,omitempty"` // go on after the last one's name
}

// listFiles answers with the entries whose names come after "after", as the bytes of names are ordered. So an entry that is there all the time
// comes exactly once, whatever else comes and goes between two pages.
func (s *Server) listFiles(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	limit := maxEntries
	if v := q.Get("limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil || limit < 1 || limit > maxEntries {
			return nil, refuse("bad_limit", "limit", "a limit is from 1 to %d", maxEntries)
		}
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(err, path)
	}
	defer dir.Close() // only read from
	names, more, err := firstNames(dir, q.Get("after"), strings.ToLower(q.Get("contains")), limit)
	if err != nil {
		return nil, fileError(err, path)
	}
	page := Page{Entries: make([]File, 0, len(names)), More: more}
	size := 0
	for _, name := range names {
		f, err := entryOf(dir, path, name)
		if err != nil {
			continue // it has gone in between
		}
		b, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		if size += len(b) + 1; size > maxPage && len(page.Entries) > 0 {
			page.More = true
			break
		}
		page.Entries = append(page.Entries, f)
	}
	return page, nil
}

// entryOf describes name in dir, which is at path.
func entryOf(dir *os.File, path, name string) (File, error) {
	full := strings.TrimSuffix(path, "/") + "/" + name
	fi, err := os.Lstat(full)
	if err != nil && errors.Is(err, syscall.ENAMETOOLONG) { // a short way leads there
		full = "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
		fi, err = os.Lstat(full)
	}
	if err != nil {
		return File{}, err
	}
	f := describe(full, fi)
	f.Path = ""
	return f, nil
}

// firstNames returns the first of the names after a name, and whether there are more. It holds no more than it returns, however large the
// directory is.
func firstNames(dir *os.File, after, contains string, limit int) ([]string, bool, error) {
	first := make(nameHeap, 0, min(limit, 1024)+1)
	more := false
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			name := e.Name()
			if name <= after || contains != "" && !strings.Contains(strings.ToLower(name), contains) {
				continue
			}
			if len(first) < limit {
				heap.Push(&first, name)
				continue
			}
			more = true
			if name < first[0] {
				first[0] = name
				heap.Fix(&first, 0)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) { // it is being removed
				break
			}
			return nil, false, err
		}
	}
	slices.SortFunc(first, cmp.Compare[string])
	return first, more, nil
}

// nameHeap has the last name on top.
type nameHeap []string

func (h nameHeap) Len() int           { return len(h) }
func (h nameHeap) Less(i, j int) bool { return h[i] > h[j] }
func (h nameHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *nameHeap) Push(x any) { *h = append(*h, x.(string)) }

// Pop implements heap.Interface.
func (h *nameHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
