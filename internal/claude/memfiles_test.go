package claude_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/sandlot-dev/sandlot/internal/guest"
)

// memFiles is a file system in memory.
type memFiles struct {
	err error

	mu    sync.Mutex
	files map[string]string
}

func newFiles() *memFiles { return &memFiles{files: map[string]string{}} }

func notThere(name string) error {
	return fmt.Errorf("guest: %w", &guest.Error{Status: 404, Code: "no_such_file", Detail: name + " doesn't exist"})
}

func (m *memFiles) ReadFile(_ context.Context, name string) (io.ReadCloser, guest.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.files[name]
	if !ok {
		return nil, guest.File{}, notThere(name)
	}
	return io.NopCloser(strings.NewReader(s)), guest.File{Path: name, Size: int64(len(s))}, nil
}

func (m *memFiles) WriteFile(_ context.Context, name string, r io.Reader, _ fs.FileMode) (guest.File, error) {
	data, err := io.ReadAll(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[name] = string(data)
	return guest.File{Path: name}, err
}

func (m *memFiles) CreateFile(ctx context.Context, name string, r io.Reader, mode fs.FileMode) (guest.File, error) {
	m.mu.Lock()
	_, ok := m.files[name]
	m.mu.Unlock()
	if ok {
		return guest.File{}, &guest.Error{Status: 409, Code: "exists", Detail: name}
	}
	return m.WriteFile(ctx, name, r, mode)
}

func (m *memFiles) ReadDir(_ context.Context, dir string) ([]guest.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[string]guest.File{}
	for name := range m.files {
		rest, ok := strings.CutPrefix(name, dir+"/")
		if !ok {
			continue
		}
		first, _, more := strings.Cut(rest, "/")
		found[first] = guest.File{Name: first, Path: path.Join(dir, first), Type: map[bool]string{true: "directory", false: "file"}[more]}
	}
	if len(found) == 0 {
		return nil, notThere(dir)
	}
	var list []guest.File
	for _, f := range found {
		list = append(list, f)
	}
	return list, nil
}

func (m *memFiles) Remove(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.files[name]; !ok {
		return notThere(name)
	}
	delete(m.files, name)
	return nil
}
