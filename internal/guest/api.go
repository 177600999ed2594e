package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The most that a request may hold. Stdin is sent in pieces of at most maxStdin; a Command may hold more.
const (
	maxBody  = 32 << 20
	maxStdin = 256 << 10
)

// routes is the guest's API. Answers are JSON, refusals an Error.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			switch answer, err := h(w, r); {
			case err != nil:
				writeError(w, r, err)
			case answer != nil:
				writeJSON(w, http.StatusOK, answer)
			}
		})
	}
	handle("GET /v1/info", func(http.ResponseWriter, *http.Request) (any, error) { return s.info(), nil })
	handle("POST /v1/setup", func(w http.ResponseWriter, r *http.Request) (any, error) {
		in, err := readJSON[Setup](w, r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, s.setup(in)
	})
	handle("POST /v1/suspend", s.postSuspend)
	handle("GET /v1/runs", func(http.ResponseWriter, *http.Request) (any, error) {
		all := []Run{}
		for _, r := range s.runs.list() {
			all = append(all, r.view().brief())
		}
		return all, nil
	})
	handle("POST /v1/runs", s.postRun)
	handle("GET /v1/runs/{id}", s.onRun(func(_ *http.Request, r *run) (any, error) { return r.view(), nil }))
	handle("GET /v1/runs/{id}/wait", s.onRun(func(req *http.Request, r *run) (any, error) {
		select {
		case <-r.ended:
			return r.view(), nil
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}))
	handle("GET /v1/runs/{id}/cpu", s.onRun(func(_ *http.Request, r *run) (any, error) { return r.cpu(), nil }))
	handle("POST /v1/runs/{id}/signal", s.postSignal)
	handle("POST /v1/runs/{id}/resize", s.postResize)
	handle("POST /v1/runs/{id}/stdin", s.postStdin)
	handle("GET /v1/runs/{id}/output", s.getOutput)
	handle("GET /v1/ports", func(http.ResponseWriter, *http.Request) (any, error) { return s.ports(), nil })
	handle("POST /v1/ports/{port}/connect", s.postConnect)
	s.fileRoutes(handle)
	return mux
}

// onRun finds the run that a path names.
func (s *Server) onRun(h func(*http.Request, *run) (any, error)) func(http.ResponseWriter, *http.Request) (any, error) {
	return func(_ http.ResponseWriter, req *http.Request) (any, error) {
		r, err := s.runs.get(req.PathValue("id"))
		if err != nil {
			return nil, err
		}
		return h(req, r)
	}
}

func (s *Server) postRun(w http.ResponseWriter, r *http.Request) (any, error) {
	cmd, err := readJSON[Command](w, r)
	if err != nil {
		return nil, err
	}
	started, fresh, err := s.runs.start(cmd.ID, func() (*run, error) {
		p, err := s.plan(cmd)
		if err != nil {
			return nil, err
		}
		return s.spawn(p)
	})
	if err != nil {
		return nil, err
	}
	if fresh {
		for _, old := range s.runs.prune(keepRuns, keepJournals*s.cfg.JournalLimit) {
			if err := old.journal.remove(); err != nil {
				s.log.Warn("old output can't be removed", "err", err)
			}
		}
	}
	if cmd.Within <= 0 {
		return started.view(), nil
	}
	late := time.NewTimer(cmd.Within)
	defer late.Stop()
	select {
	case <-started.ended:
	case <-late.C:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return started.whole(r.Context()), nil
}

func (s *Server) postSignal(w http.ResponseWriter, req *http.Request) (any, error) {
	r, err := s.runs.get(req.PathValue("id"))
	if err != nil {
		return nil, err
	}
	in, err := readJSON[struct {
		Signal string `json:"signal"`
	}](w, req)
	if err != nil {
		return nil, err
	}
	name := strings.ToUpper(in.Signal)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	sig := unix.SignalNum(name)
	if sig == 0 {
		return nil, refuse("bad_signal", "signal", "unknown signal %q", in.Signal)
	}
	if !r.signal(sig) {
		return nil, runEnded(r.state.ID)
	}
	return struct{}{}, nil
}

func (s *Server) postResize(w http.ResponseWriter, req *http.Request) (any, error) {
	r, err := s.runs.get(req.PathValue("id"))
	if err != nil {
		return nil, err
	}
	size, err := readJSON[Size](w, req)
	if err != nil {
		return nil, err
	}
	if size.Rows == 0 || size.Cols == 0 {
		return nil, refuse("bad_size", "size", "a terminal has at least one row and one column")
	}
	return struct{}{}, r.resize(size)
}

func (s *Server) postStdin(w http.ResponseWriter, req *http.Request) (any, error) {
	r, err := s.runs.get(req.PathValue("id"))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxStdin))
	if err != nil {
		return nil, refuse("too_large", "", "at most %d bytes of input at a time: %v", maxStdin, err)
	}
	last := req.FormValue("close") == "1"
	write := func() error { return r.write(req.Context(), b, last) }
	if v := req.URL.Query().Get("at"); v != "" {
		at, err := strconv.ParseInt(v, 10, 64)
		if err != nil || at < 0 {
			return nil, refuse("bad_offset", "at", "%q is not an offset", v)
		}
		write = func() error { return r.writeAt(req.Context(), placement{at: at, data: b, last: last}) }
	}
	switch err := write(); {
	case err == nil, len(b) == 0 && last && !r.alive(): // what has ended has no input open
		return struct{}{}, nil
	case !r.alive():
		return nil, runEnded(r.state.ID)
	case errors.Is(err, errStdinClosed):
		return nil, &Error{Status: 409, Code: "stdin_closed", Detail: "the run's stdin is closed"}
	default:
		return nil, err
	}
}

func (s *Server) getOutput(w http.ResponseWriter, req *http.Request) (any, error) {
	r, err := s.runs.get(req.PathValue("id"))
	if err != nil {
		return nil, err
	}
	var offset int64
	if v := req.FormValue("offset"); v != "" {
		if offset, err = strconv.ParseInt(v, 10, 64); err != nil {
			return nil, refuse("bad_offset", "offset", "%q is not an offset", v)
		}
	}
	if _, next := r.journal.bounds(); offset < 0 || offset > next {
		return nil, refuse("bad_offset", "offset", "offset %d is not within the output, which has %d bytes", offset, next)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	rd := r.journal.newReader(offset)
	defer rd.close()
	out := bufio.NewWriterSize(w, 16<<10)
	rc := http.NewResponseController(w)
	flush := func() error {
		if err := out.Flush(); err != nil {
			return err
		}
		return rc.Flush()
	}
	if rd.copyTo(req.Context(), out, flush, req.FormValue("follow") == "1") != nil {
		panic(http.ErrAbortHandler) // the reader is gone, or must not take this for the end
	}
	return nil, nil
}

// readJSON reads a request's body and refuses what it doesn't know.
func readJSON[T any](w http.ResponseWriter, r *http.Request) (T, error) {
	var v T
	if r.ContentLength > maxBody {
		return v, tooLarge(maxBody)
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(&v)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is something after the JSON value")
		}
	}
	if err != nil {
		if big, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return v, tooLarge(big.Limit)
		}
		return v, refuse("bad_request", "", "the request is not what was expected: %v", err)
	}
	return v, nil
}

func tooLarge(limit int64) *Error {
	return refuse("too_large", "", "a request may hold %d bytes", limit)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = 500, []byte(`{"status":500,"code":"internal","detail":"the answer can't be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the host has gone, and learns it by itself
}

// writeError answers with err as an Error. Then it reads the rest of the request: a host that is still sending would see
// a broken stream instead of the answer. The host hangs up once it has the answer, however much there is left.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Status: 500, Code: "internal", Detail: err.Error()}
	}
	w.Header().Set(codeHeader, e.Code)
	rc := http.NewResponseController(w)
	if rc.EnableFullDuplex() == nil {
		writeJSON(w, e.Status, e)
		_ = rc.Flush() // the host has gone, and learns it by itself
		_, _ = io.Copy(io.Discard, r.Body)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body) // only to be polite
	writeJSON(w, e.Status, e)
}

// fileError translates what the file system said of path.
func fileError(err error, path string) *Error {
	e := &Error{Status: 400, Field: "path", Detail: err.Error()}
	is := func(targets ...syscall.Errno) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case is(syscall.ENOENT):
		e.Status, e.Code, e.Detail = 404, "no_such_file", fmt.Sprintf("%s doesn't exist", path)
	case is(syscall.ENOTDIR):
		e.Code = "not_a_directory"
	case is(syscall.EISDIR):
		e.Code = "is_directory"
	case is(syscall.ENAMETOOLONG, syscall.ELOOP, syscall.EINVAL):
		e.Code = "bad_path"
	case is(syscall.EACCES, syscall.EPERM):
		e.Code = "permission_denied"
	case is(syscall.EROFS):
		e.Code = "read_only"
	case is(syscall.ENOTEMPTY):
		e.Status, e.Code = 409, "not_empty"
	case is(syscall.EEXIST):
		e.Status, e.Code, e.Detail = 409, "exists", path+" is there already"
	case is(syscall.EBUSY, syscall.ETXTBSY):
		e.Status, e.Code = 409, "busy"
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		e.Status, e.Code, e.Detail = 507, "disk_full", "the sandbox's disk is full"
	default:
		e.Status, e.Code = 500, "io_error"
	}
	return e
}
