package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/sandlot-dev/sandlot/api"
)

// filePath is the address of a file. Names are bytes: each part is escaped as it is.
func filePath(id, name string) string {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	route := segments("sandbox", id, "files") + "/"
	if clean == "" {
		return route
	}
	return route + strings.TrimPrefix(segments(strings.Split(clean, "/")...), "/")
}

// ReadFile opens a file of a sandbox. The caller closes it. A read that ends in io.EOF has seen all of it. A directory is an api.FileList as
// JSON: use ReadDir.
func (c *Client) ReadFile(ctx context.Context, id, name string) (io.ReadCloser, error) {
	res, err := c.send(ctx, request{method: http.MethodGet, path: filePath(id, name)})
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// ReadRange opens length bytes of a file from offset on (a negative length: all from there), fewer where the file ends. If etag is not empty and the
// file is another version by now, the problem's code is "changed".
func (c *Client) ReadRange(ctx context.Context, id, name string, offset, length int64, etag string) (io.ReadCloser, error) {
	want := fmt.Sprintf("bytes=%d-", offset)
	if length >= 0 {
		want += strconv.FormatInt(offset+length-1, 10)
	}
	h := http.Header{"Range": {want}}
	if etag != "" {
		h.Set("If-Match", etag)
	}
	res, err := c.send(ctx, request{method: http.MethodGet, path: filePath(id, name), header: h})
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusPartialContent {
		_ = res.Body.Close() // not what was asked for
		return nil, fmt.Errorf("GET %s: %s instead of a part", filePath(id, name), res.Status)
	}
	return res.Body, nil
}

// Stat returns what is at a path of a sandbox. It doesn't follow a link there.
func (c *Client) Stat(ctx context.Context, id, name string) (api.File, error) {
	return call[api.File](ctx, c, http.MethodGet, filePath(id, name), url.Values{"stat": {"true"}}, nil)
}

// ReadDir lists a directory of a sandbox, all of it.
func (c *Client) ReadDir(ctx context.Context, id, name string) (api.FileList, error) {
	all, err := c.ReadDirPage(ctx, id, name, "", 0)
	for next := all.NextCursor; err == nil && next != ""; {
		var page api.FileList
		page, err = c.ReadDirPage(ctx, id, name, next, 0)
		all.Entries, next = append(all.Entries, page.Entries...), page.NextCursor
	}
	all.NextCursor = ""
	return all, err
}

// ReadDirPage lists a directory after a cursor ("" = from the first entry) and at most limit entries of it (0 = as many as fit).
func (c *Client) ReadDirPage(ctx context.Context, id, name, cursor string, limit int) (api.FileList, error) {
	q := url.Values{}
	if cursor != "" {
		q.Set("cursor", cursor)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return call[api.FileList](ctx, c, http.MethodGet, filePath(id, name), q, nil)
}

// WriteOptions say how a file is written. The zero value is a good one.
type WriteOptions struct {
	Mode        string // octal permission bits; "": as before, or 0644
	Owner       string // agent, root, or a user of the sandbox; "": as before, or the agent
	IfMatch     string // the ETag that the file must have; * = it must be there. Otherwise the problem's code is "changed"
	IfNoneMatch string // * = nothing may be there. Otherwise the problem's code is "exists"
}

// WriteFile writes a file of a sandbox whole or not at all; directories above it are made.
func (c *Client) WriteFile(ctx context.Context, id, name string, r io.Reader) (api.File, error) {
	return c.PutFile(ctx, id, name, r, WriteOptions{})
}

// PutFile is WriteFile with options.
func (c *Client) PutFile(ctx context.Context, id, name string, r io.Reader, how WriteOptions) (api.File, error) {
	q, h := url.Values{}, http.Header{}
	for param, v := range map[string]string{"mode": how.Mode, "owner": how.Owner} {
		if v != "" {
			q.Set(param, v)
		}
	}
	for field, v := range map[string]string{"If-Match": how.IfMatch, "If-None-Match": how.IfNoneMatch} {
		if v != "" {
			h.Set(field, v)
		}
	}
	return put[api.File](ctx, c, filePath(id, name), q, h, r)
}

func put[T any](ctx context.Context, c *Client, path string, q url.Values, h http.Header, r io.Reader) (T, error) {
	var zero T
	res, err := c.send(ctx, request{
		method: http.MethodPut, path: path, query: q, header: h, body: r, ctype: "application/octet-stream", accept: "application/json",
	})
	if err != nil {
		return zero, err
	}
	defer func() { _ = res.Body.Close() }() // all that matters was read
	return decode[T](res.Body)
}

// MakeDir makes a directory of a sandbox and those above it. The problem's code is "exists" if something is there.
func (c *Client) MakeDir(ctx context.Context, id, name string) (api.File, error) {
	return c.fileOp(ctx, id, name, api.FileOp{Op: api.FileMkdir})
}

// Move moves a file or directory of a sandbox. Without overwrite nothing is replaced: the problem's code is "exists".
func (c *Client) Move(ctx context.Context, id, name, to string, overwrite bool) (api.File, error) {
	return c.fileOp(ctx, id, name, transfer(api.FileMove, to, overwrite))
}

// Copy copies a file or directory of a sandbox, else as Move.
func (c *Client) Copy(ctx context.Context, id, name, to string, overwrite bool) (api.File, error) {
	return c.fileOp(ctx, id, name, transfer(api.FileCopy, to, overwrite))
}

// transfer names the other path as bytes, which is right for every name.
func transfer(op, to string, overwrite bool) api.FileOp {
	return api.FileOp{Op: op, ToEscaped: "/" + strings.TrimPrefix(segments(strings.Split(strings.TrimPrefix(path.Clean("/"+to), "/"), "/")...), "/"), Overwrite: overwrite}
}

// Chmod changes the permission bits of a file, octal.
func (c *Client) Chmod(ctx context.Context, id, name, mode string) (api.File, error) {
	return c.fileOp(ctx, id, name, api.FileOp{Op: api.FileChmod, Mode: mode})
}

func (c *Client) fileOp(ctx context.Context, id, name string, op api.FileOp) (api.File, error) {
	return call[api.File](ctx, c, http.MethodPost, filePath(id, name), nil, op)
}

// Remove deletes a file or a directory with all that is in it.
func (c *Client) Remove(ctx context.Context, id, name string) error {
	return c.call(ctx, http.MethodDelete, filePath(id, name), nil, nil, nil)
}

// Download opens a directory of a sandbox as an archive: tar, tar.gz or zip. Only a read that ends in io.EOF has seen all of it.
func (c *Client) Download(ctx context.Context, id, name, format string) (io.ReadCloser, error) {
	res, err := c.send(ctx, request{method: http.MethodGet, path: filePath(id, name), query: url.Values{"format": {format}}})
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Upload unpacks an archive into a directory of a sandbox. owner "" is the agent. What was refused of it is in the answer.
func (c *Client) Upload(ctx context.Context, id, name, format, owner string, r io.Reader) (api.Unpacked, error) {
	q := url.Values{"format": {format}}
	if owner != "" {
		q.Set("owner", owner)
	}
	return put[api.Unpacked](ctx, c, filePath(id, name), q, nil, r)
}

// FileEvent is an event of a watch.
type FileEvent struct {
	Name string // api.FileCreated and the like
	api.FileChange
}

// Watch yields what changes in a directory of a sandbox, with recursive in those below it too, until it goes or ctx ends. After a connection that
// broke it begins again by itself and yields api.FileResync, for what happened meanwhile is not known.
func (c *Client) Watch(ctx context.Context, id, name string, recursive bool) iter.Seq2[FileEvent, error] {
	return func(yield func(FileEvent, error) bool) {
		q := url.Values{"watch": {"true"}, "recursive": {strconv.FormatBool(recursive)}}
		for e, err := range c.follow(ctx, filePath(id, name), q, "") {
			out := FileEvent{Name: e.Name}
			if err == nil {
				if err = json.Unmarshal([]byte(e.Data), &out.FileChange); err != nil {
					err = fmt.Errorf("watch %s: %w", name, err)
				}
			}
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}
