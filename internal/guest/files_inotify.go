package guest

import (
	"bytes"
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

const watchMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW | unix.IN_EXCL_UNLINK

// newInotify returns nil where there is none, or none left.
func newInotify() *inotify {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	n := &inotify{f: os.NewFile(uintptr(fd), "inotify"), touched: make(chan struct{}, 1), marks: map[mark]struct{}{}}
	n.wg.Go(n.read)
	return n
}

func (n *inotify) close() {
	_ = n.f.Close() // ends read
	n.wg.Wait()
}

// add watches a directory and returns its number, -1 if it can't be watched.
func (n *inotify) add(path string) int {
	wd := -1
	n.control(func(fd int) {
		if got, err := unix.InotifyAddWatch(fd, path, watchMask); err == nil {
			wd = got
		}
	})
	return wd
}

func (n *inotify) remove(wd int) {
	n.control(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(wd)) }) //nolint:gosec // a number of the kernel's; it has forgotten those of what is gone
}

// control lends the descriptor; File.Fd would make it block, and closing it would not end read.
func (n *inotify) control(do func(fd int)) {
	c, err := n.f.SyscallConn()
	if err != nil {
		return
	}
	_ = c.Control(func(fd uintptr) { do(int(fd)) }) // it is open as long as the watch is
}

func (n *inotify) read() {
	buf := make([]byte, 64<<10)
	for {
		got, err := n.f.Read(buf)
		if err != nil {
			return
		}
		n.note(buf[:got])
		select {
		case n.touched <- struct{}{}:
		default:
		}
	}
}

// note keeps the events of one read.
func (n *inotify) note(b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int(int32(binary.NativeEndian.Uint32(b)))
		mask := binary.NativeEndian.Uint32(b[4:])
		length := int(binary.NativeEndian.Uint32(b[12:]))
		b = b[unix.SizeofInotifyEvent:]
		if length < 0 || length > len(b) {
			n.all = true
			return
		}
		name, _, _ := bytes.Cut(b[:length], []byte{0})
		b = b[length:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0, len(n.marks) >= maxMarks:
			n.all = true
			clear(n.marks)
		case !n.all:
			n.marks[mark{wd, string(name)}] = struct{}{}
		}
	}
}

// take returns what was touched since the last time.
func (n *inotify) take() (marks map[mark]struct{}, all bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	marks, all = n.marks, n.all
	n.marks, n.all = map[mark]struct{}{}, false
	return marks, all
}
