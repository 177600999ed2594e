package guest

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// filesPath is where what is asked for about a file; more are names and values of parameters, empty ones left out.
func filesPath(what, path string, more ...string) string {
	q := url.Values{"path": {path}}
	for i := 0; i+1 < len(more); i += 2 {
		if more[i+1] != "" {
			q.Set(more[i], more[i+1])
		}
	}
	return "/v1/files" + what + "?" + q.Encode()
}

func flag01(on bool) string {
	if on {
		return "1"
	}
	return ""
}

// ReadFile returns the content of a regular file, and what the file was when it was opened. A read that ends in io.EOF has seen
// all of it; one that is cut ends in an error that wraps ErrLost.
func (c *Client) ReadFile(ctx context.Context, path string) (io.ReadCloser, File, error) {
	r, err := c.OpenFile(ctx, path, false, nil)
	if err != nil {
		return nil, File{}, err
	}
	return r, r.File, nil
}

// Content is a file, or what was asked for of it.
type Content struct {
	io.ReadCloser
	File   File   // as it was when it was opened
	Status int    // 200, or 206, 304 or 416
	Range  string // for 206: which part this is, as Content-Range; empty if there are several, see Type
	Type   string // for 206: the media type of several parts
	Length int64  // of what is to be read; -1 = not known
}

// conditions are the headers that say which part of which version is wanted.
var conditions = []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"}

// OpenFile is ReadFile for what a request's headers say: Range, If-Range, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since. A
// condition that doesn't hold is an *Error of status 412. With head there is nothing to be read.
func (c *Client) OpenFile(ctx context.Context, path string, head bool, h http.Header) (*Content, error) {
	method := http.MethodGet
	if head {
		method = http.MethodHead
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+filesPath("", path), nil)
	if err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	req.Header.Set("Accept-Encoding", "identity") // the transport would ask for gzip
	for _, name := range conditions {
		if v := h.Values(name); len(v) > 0 {
			req.Header[name] = v
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.lost(ctx, method+" "+path, err)
	}
	r := &Content{Status: resp.StatusCode, Length: resp.ContentLength}
	err = r.read(resp)
	if err != nil {
		_ = resp.Body.Close()                                        // only read from
		if code := resp.Header.Get(codeHeader); head && code != "" { // an answer to HEAD has no body that says more
			err = &Error{Status: resp.StatusCode, Code: code, Field: "path", Detail: path + " can't be read"}
		}
		return nil, err
	}
	r.ReadCloser = &content{ReadCloser: resp.Body, c: c, ctx: ctx, path: path}
	return r, nil
}

// read takes what the answer's header says, and believes nothing that could do harm further on.
func (r *Content) read(resp *http.Response) error {
	info := resp.Header.Get(fileHeader)
	if info == "" {
		return refusal(resp)
	}
	if resp.StatusCode == http.StatusPreconditionFailed {
		return &Error{Status: resp.StatusCode, Code: "changed", Field: "path", Detail: "the file is not as the request's conditions want it"}
	}
	b, err := base64.StdEncoding.DecodeString(info)
	if err == nil {
		err = json.Unmarshal(b, &r.File)
	}
	if err != nil {
		return fmt.Errorf("guest: an answer that makes no sense: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNotModified, http.StatusRequestedRangeNotSatisfiable:
	case http.StatusPartialContent:
		r.Range = resp.Header.Get("Content-Range")
		if r.Range == "" {
			r.Type = resp.Header.Get("Content-Type")
		}
	default:
		return fmt.Errorf("guest: an answer that makes no sense: %s", resp.Status)
	}
	return nil
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

// Write says how a file is written. The zero Write is a good one.
type Write struct {
	Mode        fs.FileMode // permission bits; 0: as the file that is replaced, else 0644
	Owner       string      // of what is made anew, as a Command's User; "": the agent, and a file that is replaced stays whose it is
	IfMatch     string      // ETags, one of which the file must have; * = it must be there. Otherwise the error is an *Error of status 412, code "changed"
	IfNoneMatch string      // * = nothing may be there: status 412, code "exists"
}

// PutFile puts what r holds at path: whole or not at all, in directories made as needed.
func (c *Client) PutFile(ctx context.Context, path string, r io.Reader, how Write) (File, error) {
	h := http.Header{}
	for name, v := range map[string]string{"If-Match": how.IfMatch, "If-None-Match": how.IfNoneMatch} {
		if v != "" {
			h.Set(name, v)
		}
	}
	return send[File](ctx, c, filesPath("", path, "mode", octal(how.Mode), "owner", how.Owner), r, h)
}

// WriteFile puts what r holds at path: whole or not at all, as the agent's file, in directories made as needed. A file that is
// replaced keeps its owner, and with mode 0 its permission bits; otherwise 0 means 0644.
func (c *Client) WriteFile(ctx context.Context, path string, r io.Reader, mode fs.FileMode) (File, error) {
	return c.PutFile(ctx, path, r, Write{Mode: mode})
}

// CreateFile is WriteFile where nothing is at path yet; if something is, it stays, and the error is an *Error with code "exists".
func (c *Client) CreateFile(ctx context.Context, path string, r io.Reader, mode fs.FileMode) (File, error) {
	return send[File](ctx, c, filesPath("", path, "mode", octal(mode), "new", "1"), r, nil)
}

func octal(m fs.FileMode) string {
	if m == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(modeBits(m)), 8)
}

// send puts what r holds and returns the answer.
func send[T any](ctx context.Context, c *Client, path string, r io.Reader, h http.Header) (T, error) {
	var zero T
	in := &source{r: r}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://guest"+path, io.NopCloser(in))
	if err != nil {
		return zero, fmt.Errorf("guest: %w", err)
	}
	for name, v := range h {
		req.Header[name] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if in.err != nil {
			return zero, fmt.Errorf("guest: content for %s: %w", path, in.err)
		}
		return zero, c.lost(ctx, "PUT "+path, err)
	}
	defer resp.Body.Close() // only read from
	return decode[T](c, resp)
}

// Stat returns what is at path. It doesn't follow a link there.
func (c *Client) Stat(ctx context.Context, path string) (File, error) {
	return call[File](ctx, c, "GET", filesPath("/stat", path), nil)
}

// ReadDir lists a directory by name. One of more than 20,000 entries is refused: see ReadDirPage.
func (c *Client) ReadDir(ctx context.Context, path string) ([]File, error) {
	page, err := c.ReadDirPage(ctx, path, "", "", 0)
	if err == nil && page.More {
		err = refuse("too_many_entries", "path", "%s holds more than fits one answer", path)
	}
	if err != nil {
		return nil, err
	}
	return page.Entries, nil
}

// ReadDirPage lists the entries of a directory after a name ("" = from the first), those whose names hold a text (letters of either case; "" = all)
// and at most limit of them (0 = as many as fit, up to 20,000).
func (c *Client) ReadDirPage(ctx context.Context, path, after, contains string, limit int) (Page, error) {
	n := ""
	if limit > 0 {
		n = strconv.Itoa(limit)
	}
	page, err := call[Page](ctx, c, "GET", filesPath("/list", path, "after", after, "contains", contains, "limit", n), nil)
	for i := range page.Entries {
		page.Entries[i].Path = strings.TrimSuffix(path, "/") + "/" + page.Entries[i].Name
	}
	return page, err
}

// MakeDir makes a directory and those above it; mode 0 means 0755. The error is an *Error with code "exists" if something is there.
func (c *Client) MakeDir(ctx context.Context, path string, mode fs.FileMode, owner string) (File, error) {
	return call[File](ctx, c, "POST", filesPath("/mkdir", path, "mode", octal(mode), "owner", owner), nil)
}

// Chmod changes permission bits.
func (c *Client) Chmod(ctx context.Context, path string, mode fs.FileMode) (File, error) {
	return call[File](ctx, c, "POST", filesPath("/chmod", path, "mode", strconv.FormatUint(uint64(modeBits(mode)), 8)), nil)
}

// Move moves a file or a directory. Without overwrite nothing is replaced: the error is an *Error with code "exists".
func (c *Client) Move(ctx context.Context, from, to string, overwrite bool) (File, error) {
	return call[File](ctx, c, "POST", filesPath("/move", from, "to", to, "overwrite", flag01(overwrite)), nil)
}

// Copy copies a file or a directory with all that is in it, else as Move.
func (c *Client) Copy(ctx context.Context, from, to string, overwrite bool) (File, error) {
	return call[File](ctx, c, "POST", filesPath("/copy", from, "to", to, "overwrite", flag01(overwrite)), nil)
}

// Remove removes a file, a link or an empty directory.
func (c *Client) Remove(ctx context.Context, path string) error {
	_, err := call[struct{}](ctx, c, "DELETE", filesPath("", path), nil)
	return err
}

// RemoveAll removes what is at path with all that is in it.
func (c *Client) RemoveAll(ctx context.Context, path string) error {
	_, err := call[struct{}](ctx, c, "DELETE", filesPath("", path, "recursive", "1"), nil)
	return err
}

// ReadTree returns a directory as an archive of the format. As with ReadFile, only io.EOF says that it is whole.
func (c *Client) ReadTree(ctx context.Context, path, format string) (io.ReadCloser, error) {
	resp, err := c.do(ctx, "GET", filesPath("/tree", path, "format", format), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close() // only read from
		return nil, refusal(resp)
	}
	return &content{ReadCloser: resp.Body, c: c, ctx: ctx, path: path}, nil
}

// WriteTree unpacks an archive into a directory, which is made if it isn't there.
func (c *Client) WriteTree(ctx context.Context, path, format, owner string, r io.Reader) (Unpacked, error) {
	return send[Unpacked](ctx, c, filesPath("/tree", path, "format", format, "owner", owner), r, nil)
}

// maxChange is how long a line of a watch may be.
const maxChange = 256 << 10

// Watch yields what happens in a directory, with recursive in those below it too. The first change is ChangeReady. It ends after ChangeEnd, or with
// an error. Nothing is kept for who isn't there: after another Watch has said that it is ready, read anew what must be known.
func (c *Client) Watch(ctx context.Context, path string, recursive bool) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		resp, err := c.do(ctx, "GET", filesPath("/watch", path, "recursive", flag01(recursive)), nil)
		if err != nil {
			yield(Change{}, err)
			return
		}
		defer resp.Body.Close() // only read from
		if resp.StatusCode != http.StatusOK {
			yield(Change{}, refusal(resp))
			return
		}
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, maxChange)
		for lines.Scan() {
			var ch Change
			if err := json.Unmarshal(lines.Bytes(), &ch); err != nil {
				yield(Change{}, fmt.Errorf("guest: a change that makes no sense: %w", err))
				return
			}
			if !yield(ch, nil) || ch.Kind == ChangeEnd {
				return
			}
		}
		err = lines.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		yield(Change{}, c.lost(ctx, "watch "+path, err))
	}
}
