package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The size of a terminal when none is asked for.
const (
	defaultRows = 24
	defaultCols = 80
)

// stdio is both ends of a process's streams.
type stdio struct {
	child  [3]int   // the process's own ends: descriptors 0, 1, 2
	open   []int    // those of child that are still to be closed, each once
	in     *os.File // stdin's other end
	outs   []*output
	master *os.File // of the terminal; also in or an output
	pty    bool     // a terminal for all three
}

// openStdio makes the streams of kind. A terminal will belong to uid and gid.
func openStdio(kind Stdio, size Size, uid, gid int) (_ *stdio, err error) {
	s := new(stdio)
	defer func() {
		if err != nil {
			s.closeChild()
			s.close()
		}
	}()
	var tty int
	if kind != StdioPipes {
		if s.master, tty, err = openTerminal(kind == StdioPTYStdout, size, uid, gid); err != nil {
			return s, err
		}
		s.open = append(s.open, tty)
	}
	if kind == StdioPTY {
		s.pty, s.in = true, s.master
		s.child = [3]int{tty, tty, tty}
		s.outs = []*output{newOutput(Stdout, s.master)}
		return s, nil
	}
	var r int
	if r, s.in, err = pipe(true); err != nil {
		return s, err
	}
	s.open = append(s.open, r)
	s.child[0] = r
	if kind == StdioPTYStdout {
		s.child[1] = tty
		s.outs = append(s.outs, newOutput(Stdout, s.master))
	} else if err = s.pipeOut(1, Stdout); err != nil {
		return s, err
	}
	return s, s.pipeOut(2, Stderr)
}

// pipeOut makes descriptor fd of the process a pipe to us.
func (s *stdio) pipeOut(fd int, kind Kind) error {
	w, f, err := pipe(false)
	if err != nil {
		return err
	}
	s.open = append(s.open, w)
	s.child[fd] = w
	s.outs = append(s.outs, newOutput(kind, f))
	return nil
}

// closeChild closes the process's ends, which it has by now.
func (s *stdio) closeChild() {
	for _, fd := range s.open {
		_ = syscall.Close(fd) // nothing was written through it here
	}
	s.open = nil
}

// close closes our ends.
func (s *stdio) close() {
	if s.in != nil {
		_ = s.in.Close() // may have been closed before
	}
	if s.master != nil {
		_ = s.master.Close()
	}
	for _, o := range s.outs {
		_ = o.file.Close()
	}
}

// pipe makes a pipe whose child's end blocks, as programs expect, and whose other end is watched by the runtime.
func pipe(childReads bool) (child int, ours *os.File, err error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return 0, nil, fmt.Errorf("make a pipe: %w", err)
	}
	theirs, mine := p[1], p[0]
	if childReads {
		theirs, mine = p[0], p[1]
	}
	if err := syscall.SetNonblock(mine, true); err != nil {
		_, _ = syscall.Close(mine), syscall.Close(theirs) // never used
		return 0, nil, fmt.Errorf("make a pipe: %w", err)
	}
	return theirs, os.NewFile(uintptr(mine), "pipe"), nil
}

// openTerminal makes a pseudo-terminal and returns both ends. In raw mode it changes no byte and echoes none.
func openTerminal(raw bool, size Size, uid, gid int) (*os.File, int, error) {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open a terminal: %w", err)
	}
	master := os.NewFile(uintptr(m), "/dev/ptmx")
	tty, err := openSlave(m, raw, size, uid, gid)
	if err != nil {
		_ = master.Close() // never used
		return nil, 0, fmt.Errorf("open a terminal: %w", err)
	}
	return master, tty, nil
}

func openSlave(master int, raw bool, size Size, uid, gid int) (int, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return 0, err
	}
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		return 0, err
	}
	tty, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	// Only for programs that open the terminal by name, and not possible everywhere.
	_, _ = unix.Fchown(tty, uid, gid), unix.Fchmod(tty, 0o620)
	if raw {
		err = setRaw(tty)
	}
	if err == nil {
		err = setSize(tty, size)
	}
	if err != nil {
		_ = unix.Close(tty) // never used
		return 0, err
	}
	return tty, nil
}

func setRaw(tty int) error {
	t, err := unix.IoctlGetTermios(tty, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(tty, unix.TCSETS, t)
}

func setSize(fd int, size Size) error {
	if size.Rows == 0 || size.Cols == 0 {
		size = Size{Rows: defaultRows, Cols: defaultCols}
	}
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
}

// control calls f with a file's descriptor, without making the file blocking.
func control(file *os.File, f func(fd int) error) error {
	c, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := c.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// output is one stream out of a process.
type output struct {
	kind Kind
	file *os.File
	done chan struct{} // closed when nothing more goes into the journal
	cut  chan struct{} // closed when nobody waits for more
}

func newOutput(kind Kind, file *os.File) *output {
	return &output{kind: kind, file: file, done: make(chan struct{}), cut: make(chan struct{})}
}

// pump journals all that comes, and tells active of it without waiting. Once its read deadline has passed it goes on reading
// into nothing, so that what still holds the stream open neither blocks nor dies of SIGPIPE. It returns at the stream's end,
// but never before gone is closed, the end of the process: closing our end of a terminal would hang up on one that has just closed
// its own, as many do on their way out.
func (o *output) pump(j *journal, active chan<- struct{}, gone <-chan struct{}, speed *throttle) {
	buf := make([]byte, leastRead)
	left := pipeSize // of what the process wrote before its end, which comes as fast as it can
	var err error
	for last := false; err == nil; {
		var n int
		n, err = o.file.Read(buf[:speed.portion(len(buf))])
		if n > 0 {
			j.append(o.kind, buf[:n])
			if n == len(buf) && n < mostRead && !speed.limited() {
				left = max(left, o.widen())
				buf = make([]byte, min(4*len(buf), mostRead))
			}
			select {
			case active <- struct{}{}:
			default:
			}
			select {
			case <-gone:
				if left -= n; left < 0 {
					speed.wait(n, nil, o.cut)
				} else {
					speed.pay(n)
				}
			default:
				speed.wait(n, gone, o.cut)
			}
		}
		if errors.Is(err, syscall.EIO) && !last { // nobody has the terminal open, but somebody may open it again
			err = nil
			select {
			case <-gone:
				last = true
			case <-time.After(reopenPause):
			}
		}
	}
	close(o.done)
	if errors.Is(err, os.ErrDeadlineExceeded) && o.file.SetReadDeadline(time.Time{}) == nil {
		_, _ = io.CopyBuffer(io.Discard, onlyReader{o.file}, buf) // EIO, EOF, closed: all mean that it is over
	}
	<-gone
	_ = o.file.Close() // only read from
}

// pipeSize is how much a pipe holds.
const pipeSize = 64 << 10

// How much is read at a time: little, until a process writes more than that at once. Then its pipe is made wider too, for each time that one
// of the two waits for the other costs more than the bytes do.
const (
	leastRead = 32 << 10
	mostRead  = 256 << 10
	widePipe  = 1 << 20
)

// widen makes the pipe hold more, and returns how much it holds then.
func (o *output) widen() (size int) {
	_ = control(o.file, func(fd int) (err error) { // a terminal has no size, and a pipe that stays as it is does too
		size, err = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, widePipe)
		return err
	})
	return size
}

// reopenPause is how often a terminal that nobody has open is looked at.
const reopenPause = 20 * time.Millisecond

// onlyReader hides a file's other methods, so that a copy uses the buffer it is given.
type onlyReader struct{ io.Reader }

// waiting reports whether there is output that has not been read yet.
func (o *output) waiting() bool {
	var n int
	err := control(o.file, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return err == nil && n > 0
}

// stdin is the writing end of a process's input. Writes come one after the other.
type stdin struct {
	turn   chan struct{} // of size 1; holding it = writing
	file   *os.File
	pty    bool
	taken  atomic.Int64 // bytes that were taken, those that are just being written included
	placed chan placement
	closed bool
	line   bool // the terminal is in the middle of a line
}

// placement is a write that has its place in the input.
type placement struct {
	at   int64
	data []byte
	last bool
	done chan error // of size 1
}

// newStdin returns the input with its first turn taken: what a command brings along, begin, comes before what is written later.
func newStdin(s *stdio, begin []byte) *stdin {
	in := &stdin{turn: make(chan struct{}, 1), file: s.in, pty: s.pty, placed: make(chan placement)}
	in.turn <- struct{}{}
	in.taken.Store(int64(len(begin)))
	return in
}

// errStdinClosed says that the input has been closed, by us or by the process.
var errStdinClosed = errors.New("stdin is closed")

// write writes b, and closes the input if last. It returns when all is written, which may be as late as ctx's end when the
// process doesn't read.
func (s *stdin) write(ctx context.Context, b []byte, last bool) error {
	select {
	case s.turn <- struct{}{}:
		s.taken.Add(int64(len(b)))
		return s.writeTaken(ctx, b, last)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// writeTaken is write for who holds the turn, which it gives back, and has counted b as taken. What is not written after all is not
// counted any more.
func (s *stdin) writeTaken(ctx context.Context, b []byte, last bool) error {
	n, err := s.writeNow(ctx, b, last)
	s.taken.Add(int64(n - len(b)))
	<-s.turn
	return err
}

// writeNow returns how much of b was written.
func (s *stdin) writeNow(ctx context.Context, b []byte, last bool) (n int, err error) {
	if s.closed {
		if len(b) == 0 && last {
			return 0, nil
		}
		return 0, errStdinClosed
	}
	if len(b) > 0 {
		if n, err = s.writeAll(ctx, b); err != nil {
			return n, err
		}
		s.line = b[len(b)-1] != '\n'
	}
	if !last {
		return n, nil
	}
	s.closed = true
	if !s.pty {
		return n, s.file.Close()
	}
	eof := []byte{4} // what a terminal takes for the end of input, at the beginning of a line
	if s.line {
		eof = []byte{4, 4}
	}
	_, err = s.writeAll(ctx, eof)
	return n, err
}

// place is writeTaken for a write with a place. What lies before the place that the input has come to was taken already, by an earlier
// try of the same write, and is not taken again.
func (s *stdin) place(ctx context.Context, p placement) error {
	done, end := s.taken.Load(), p.at+int64(len(p.data))
	var err error
	switch {
	case p.at > done:
		err = &Error{Status: 409, Code: "stdin_gap", Field: "at", Detail: fmt.Sprintf("%d bytes of input were taken, and this begins at %d", done, p.at)}
	case p.last && end < done:
		err = &Error{Status: 409, Code: "stdin_past", Field: "at", Detail: fmt.Sprintf("the input can't end at %d: %d bytes of it were taken", end, done)}
	case end <= done && (!p.last || ctx.Err() != nil):
	case ctx.Err() != nil:
		err = errStdinClosed
	default:
		b := p.data[done-p.at:]
		s.taken.Add(int64(len(b)))
		return s.writeTaken(ctx, b, p.last)
	}
	<-s.turn
	return err
}

// serve writes what has a place, until ctx, the run's, is done. The writing doesn't end with who asked for it, so that it is done whole.
func (s *stdin) serve(ctx context.Context) {
	for {
		select {
		case p := <-s.placed:
			select {
			case s.turn <- struct{}{}:
				p.done <- s.place(ctx, p)
			case <-ctx.Done():
				p.done <- ctx.Err()
			}
		case <-ctx.Done():
			return
		}
	}
}

// writeAt is write for a write with a place, which may be repeated: after an error of ctx, the caller's, it may have been taken. life is
// done when the run has ended, or from the beginning when nothing comes after what the input began with.
func (s *stdin) writeAt(ctx, life context.Context, p placement) error {
	p.done = make(chan error, 1)
	select {
	case s.placed <- p:
		select {
		case err := <-p.done:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	case <-life.Done(): // nothing is written any more, but it may have been
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case s.turn <- struct{}{}:
		return s.place(life, p)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// writeAll writes b and returns how much of it was written.
func (s *stdin) writeAll(ctx context.Context, b []byte) (int, error) {
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.file.SetWriteDeadline(time.Unix(1, 0)) // fails when it is closed, and then nobody waits
		close(over)
	})
	n, err := s.file.Write(b)
	if !stop() {
		<-over
		_ = s.file.SetWriteDeadline(time.Time{}) // as above
	}
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, fmt.Errorf("the process doesn't read: %w", ctx.Err())
	case errors.Is(err, syscall.EPIPE), errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EIO):
		s.closed = true
		return n, errStdinClosed
	default:
		return n, fmt.Errorf("write to stdin: %w", err)
	}
}
