package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
)

func filesPath(path string, more ...string) string {
	q := url.Values{"path": {path}}
	for i := 0; i+1 < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	return "/v1/files?" + q.Encode()
}

// ReadFile returns the content of a regular file, and what the file was when it was opened. A read that ends in io.EOF has seen
// all of it; one that is cut ends in an error that wraps ErrLost.
func (c *Client) ReadFile(ctx context.Context, path string) (io.ReadCloser, File, error) {
	resp, err := c.do(ctx, "GET", filesPath(path), nil)
	if err != nil {
		return nil, File{}, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close() // only read from
		return nil, File{}, refusal(resp)
	}
	var f File
	if err := json.Unmarshal([]byte(resp.Header.Get(fileHeader)), &f); err != nil {
		_ = resp.Body.Close() // only read from
		return nil, File{}, fmt.Errorf("guest: an answer that makes no sense: %w", err)
	}
	return &content{ReadCloser: resp.Body, c: c, ctx: ctx, path: path}, f, nil
}

// content is a file's bytes on their way.
type content struct {
	io.ReadCloser
	c    *Client
	ctx  context.Context // of the ReadFile that it belongs to, only to tell why a read failed
	path string
}

func (r *content) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.c.lost(r.ctx, "read "+r.path, err)
	}
	return n, err
}

// WriteFile puts what r holds at path: whole or not at all, as the agent's file, in directories made as needed. A file that is
// replaced keeps its owner, and with mode 0 its permission bits; otherwise 0 means 0644.
func (c *Client) WriteFile(ctx context.Context, path string, r io.Reader, mode fs.FileMode) (File, error) {
	return c.putFile(ctx, path, r, mode)
}

// CreateFile is WriteFile where nothing is at path yet; if something is, it stays, and the error is an *Error with code "exists".
func (c *Client) CreateFile(ctx context.Context, path string, r io.Reader, mode fs.FileMode) (File, error) {
	return c.putFile(ctx, path, r, mode, "new", "1")
}

func (c *Client) putFile(ctx context.Context, path string, r io.Reader, mode fs.FileMode, more ...string) (File, error) {
	if mode != 0 {
		more = append(more, "mode", strconv.FormatUint(uint64(mode.Perm()), 8))
	}
	in := &source{r: r}
	resp, err := c.do(ctx, "PUT", filesPath(path, more...), io.NopCloser(in))
	if err != nil {
		if in.err != nil {
			return File{}, fmt.Errorf("guest: content of %s: %w", path, in.err)
		}
		return File{}, err
	}
	defer resp.Body.Close() // only read from
	return decode[File](c, resp)
}

// Stat returns what is at path. It doesn't follow a link there.
func (c *Client) Stat(ctx context.Context, path string) (File, error) {
	return call[File](ctx, c, "GET", filesPath(path, "stat", "1"), nil)
}

// ReadDir lists a directory by name.
func (c *Client) ReadDir(ctx context.Context, path string) ([]File, error) {
	return call[[]File](ctx, c, "GET", filesPath(path, "list", "1"), nil)
}

// Remove removes a file, a link or an empty directory.
func (c *Client) Remove(ctx context.Context, path string) error {
	_, err := call[struct{}](ctx, c, "DELETE", filesPath(path), nil)
	return err
}

// RemoveAll removes what is at path with all that is in it.
func (c *Client) RemoveAll(ctx context.Context, path string) error {
	_, err := call[struct{}](ctx, c, "DELETE", filesPath(path, "recursive", "1"), nil)
	return err
}
