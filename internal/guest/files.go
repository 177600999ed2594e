package guest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// The host reaches every file of the sandbox, with the guest's rights: who may call the API owns the sandbox, and nothing outside of it
// can be named from in here. What the host writes belongs to the agent unless it says otherwise, so that the agent can go on with it.

const (
	fileHeader = "Sandlot-File"  // a File as JSON, in base64, beside the bytes of its content
	codeHeader = "Sandlot-Error" // the code of an Error, for those who get no body
)

// filing is what the file API keeps.
type filing struct {
	mu      sync.Mutex   // held between looking at a file's version and putting another in its place
	watches atomic.Int32 // under way
}

func (s *Server) fileRoutes(handle func(string, func(http.ResponseWriter, *http.Request) (any, error))) {
	handle("GET /v1/files", s.getFile)
	handle("GET /v1/files/stat", s.statFile)
	handle("GET /v1/files/list", s.listFiles)
	handle("GET /v1/files/tree", s.getTree)
	handle("GET /v1/files/watch", s.watchFiles)
	handle("PUT /v1/files", s.putFile)
	handle("PUT /v1/files/tree", s.putTree)
	handle("POST /v1/files/mkdir", s.makeDir)
	handle("POST /v1/files/move", s.moveFile)
	handle("POST /v1/files/copy", s.copyFile)
	handle("POST /v1/files/chmod", s.chmodFile)
	handle("DELETE /v1/files", s.deleteFile)
}

// cleanPath checks the path that a request has as a parameter.
func cleanPath(r *http.Request, param string) (string, error) {
	path := r.URL.Query().Get(param)
	if !filepath.IsAbs(path) || hasNUL(path) {
		return "", refuse("bad_path", param, "a path must be absolute and can't hold a NUL byte")
	}
	return filepath.Clean(path), nil
}

// describe returns what is known of the entry at path.
func describe(path string, fi fs.FileInfo) File {
	f := File{
		Name: fi.Name(), Path: path, Type: "other", Size: fi.Size(),
		Mode: modeBits(fi.Mode()), ModTime: fi.ModTime().UTC(),
	}
	if path == "/" {
		f.Name = "/"
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if ok {
		f.UID, f.GID = int(st.Uid), int(st.Gid)
	}
	switch {
	case fi.Mode().IsRegular():
		f.Type = "file"
		if ok {
			f.ETag = etag(st)
		}
	case fi.IsDir():
		f.Type = "directory"
	case fi.Mode()&fs.ModeSymlink != 0:
		f.Type = "symlink"
		f.Target, _ = os.Readlink(path) // it may have gone in between
	}
	return f
}

// etag tells versions of a file apart. The change time is in it because programs set the other one, and the inode because a file that is
// replaced whole may have both from before.
func etag(st *syscall.Stat_t) string {
	return fmt.Sprintf(`"%x-%x-%x-%x"`, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
}

// modeBits are permission bits as the kernel has them.
func modeBits(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	for bit, special := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&special != 0 {
			bits |= bit
		}
	}
	return bits
}

// File's names are bytes, and JSON has only text: where it would change them, they go along as bytes too.
type rawNames struct {
	Name   []byte `json:"name,omitempty"`
	Path   []byte `json:"path,omitempty"`
	Target []byte `json:"target,omitempty"`
}

type plainFile File

type wireFile struct {
	plainFile
	Raw *rawNames `json:"raw,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (f File) MarshalJSON() ([]byte, error) {
	w := wireFile{plainFile: plainFile(f)}
	if !utf8.ValidString(f.Name) || !utf8.ValidString(f.Path) || !utf8.ValidString(f.Target) {
		w.Raw = &rawNames{[]byte(f.Name), []byte(f.Path), []byte(f.Target)}
	}
	return json.Marshal(w)
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *File) UnmarshalJSON(b []byte) error {
	var w wireFile
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*f = File(w.plainFile)
	if w.Raw != nil {
		f.Name, f.Path, f.Target = string(w.Raw.Name), string(w.Raw.Path), string(w.Raw.Target)
	}
	return nil
}

func (s *Server) statFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fileError(err, path)
	}
	return describe(path, fi), nil
}

// openFile opens a regular file to be read.
func openFile(path string) (*os.File, fs.FileInfo, error) {
	// Without O_NONBLOCK the opening of a FIFO would wait for its other end.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if errors.Is(err, syscall.ENXIO) { // a socket, or a device without a driver
		return nil, nil, refuse("not_a_file", "path", "%s is not a regular file", path)
	}
	if err != nil {
		return nil, nil, fileError(err, path)
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
		err = fileError(err, path)
	case fi.IsDir():
		err = refuse("is_directory", "path", "%s is a directory", path)
	case !fi.Mode().IsRegular():
		err = refuse("not_a_file", "path", "%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close() // only read from
		return nil, nil, err
	}
	return f, fi, nil
}

// maxRanges is how many parts of a file one request may ask for.
const maxRanges = 64

// getFile answers with a file's bytes, or with parts of them, as HTTP has it: Range, If-Range, If-Match, If-None-Match and the like. An
// answer that tells its length and brings less is cut off, so the host never takes it for the whole.
func (s *Server) getFile(w http.ResponseWriter, r *http.Request) (any, error) {
	path, err := cleanPath(r, "path")
	if err != nil {
		return nil, err
	}
	f, fi, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	if strings.Count(r.Header.Get("Range"), ",") >= maxRanges {
		return nil, &Error{Status: 416, Code: "too_many_ranges", Field: "Range", Detail: fmt.Sprintf("at most %d ranges at a time", maxRanges)}
	}
	whole := describe(path, fi)
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if unsized(f, fi) {
		whole.ETag = "" // what is in it changes without a trace
		if err := setFile(h, whole); err != nil {
			return nil, err
		}
		return nil, sendUnsized(w, r, f)
	}
	if err := setFile(h, whole); err != nil {
		return nil, err
	}
	h.Set("ETag", whole.ETag)
	http.ServeContent(wide{w}, r, "", fi.ModTime(), io.NewSectionReader(f, 0, fi.Size())) // no more than there was: it may be growing
	return nil, nil
}

func setFile(h http.Header, f File) error {
	info, err := json.Marshal(f)
	if err != nil {
		return err
	}
	h.Set(fileHeader, base64.StdEncoding.EncodeToString(info)) // a header holds no bytes as names may have
	return nil
}

// unsized reports whether a file's size says nothing of what can be read from it: the kernel makes that up when it is read.
func unsized(f *os.File, fi fs.FileInfo) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err == nil {
		switch int64(st.Type) { //nolint:unconvert // its type differs by architecture
		case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC:
			return true
		}
	}
	if fi.Size() > 0 {
		return false
	}
	n, err := f.ReadAt(make([]byte, 1), 0)
	return n > 0 || err != nil && !errors.Is(err, io.EOF)
}

// sendUnsized sends all that can be read, without a length. The end of the chunks is the proof that this was all.
func sendUnsized(w http.ResponseWriter, r *http.Request, f io.Reader) error {
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := io.Copy(w, f); err != nil {
		panic(http.ErrAbortHandler) // the host must not take this for the whole file
	}
	return nil
}

// wide is a ResponseWriter that is given more at a time: each piece costs two system calls of a sandbox and a message of the connection.
type wide struct{ http.ResponseWriter }

const wideBuffer = 256 << 10

var wideBuffers = sync.Pool{New: func() any { return new([wideBuffer]byte) }}

// ReadFrom implements io.ReaderFrom.
func (w wide) ReadFrom(src io.Reader) (int64, error) {
	buf := wideBuffers.Get().(*[wideBuffer]byte)
	defer wideBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w.ResponseWriter}, struct{ io.Reader }{src}, buf[:])
}
