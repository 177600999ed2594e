package guest

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	portUpgrade  = "sandlot-port"   // what the stream of a connection to a port is switched to
	portPatience = 10 * time.Second // for a listener to take a connection
	portStall    = 10 * time.Minute // for which a program may take nothing of what is sent to it
	maxPorts     = 1000             // that are listed
)

// postConnect connects to a port of the sandbox's loopback and turns the request's stream into that connection.
func (s *Server) postConnect(w http.ResponseWriter, r *http.Request) (any, error) {
	port, err := strconv.ParseUint(r.PathValue("port"), 10, 16)
	if err != nil || port == 0 {
		return nil, refuse("bad_port", "port", "%q is not a port; ports are 1 to 65535", r.PathValue("port"))
	}
	if s.isGateway(uint16(port)) {
		return nil, &Error{Status: 409, Code: "port_reserved", Field: "port", Detail: fmt.Sprintf("port %d is Sandlot's own", port)}
	}
	conn, err := dialLoopback(r.Context(), uint16(port))
	if err != nil {
		return nil, err
	}
	stream, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = conn.Close() // nothing was said
		return nil, fmt.Errorf("taking over the stream: %w", err)
	}
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + portUpgrade + "\r\n\r\n")
	if err := rw.Flush(); err != nil {
		_, _ = conn.Close(), stream.Close() // nothing was said
		return nil, nil
	}
	joinPort(r.Context(), stream, rw.Reader, conn)
	return nil, nil
}

func (s *Server) isGateway(port uint16) bool {
	if s.tunnel == nil {
		return false
	}
	addr, ok := s.tunnel.ln.Addr().(*net.TCPAddr)
	return ok && addr.Port == int(port)
}

// dialLoopback connects to whoever listens on port, be it for IPv4 or for IPv6 only.
func dialLoopback(ctx context.Context, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, portPatience)
	defer cancel()
	var d net.Dialer
	var errs []error
	for _, ip := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(int(port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	switch err := errors.Join(errs...); {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &Error{Status: 409, Code: "port_busy", Field: "port", Detail: fmt.Sprintf("what listens on port %d takes no connection", port)}
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return nil, &Error{Status: 404, Code: "port_closed", Field: "port", Detail: fmt.Sprintf("nothing listens on port %d", port)}
	default:
		return nil, fmt.Errorf("connecting to port %d: %w", port, err)
	}
}

// joinPort joins a stream of segments to a connection until the host hangs up. That is the last thing to happen: it does so when it has
// read the end.
func joinPort(ctx context.Context, stream net.Conn, buffered *bufio.Reader, conn *net.TCPConn) {
	hangUp := func() {
		_ = conn.Close()
		_ = stream.Close()
		_ = stream.SetDeadline(time.Unix(1, 0))
	}
	abort := func() {
		_ = conn.SetLinger(0) // the program should see a reset, not an early end
		hangUp()
	}
	defer context.AfterFunc(ctx, abort)()
	back := make(chan struct{})
	go func() {
		defer close(back)
		out := &segmentWriter{w: stream}
		if _, err := io.Copy(out, onlyReader{conn}); err != nil || out.end() != nil {
			abort() // and the host sees no end
		}
	}()
	in := &segmentReader{r: buffered}
	if _, err := io.Copy(&patientWriter{conn: conn}, in); err == nil {
		_ = conn.CloseWrite()      // fails when conn is gone, and then the other direction finds out
		_, _ = buffered.ReadByte() // nothing comes but the end
	}
	if st, ok := stream.(*yamux.Stream); ok && st.Session().IsClosed() {
		abort() // it isn't the host that wanted this
	} else {
		hangUp()
	}
	<-back
}

// patientWriter writes to a program. When the program doesn't want more, what comes is thrown away: it may have answered, and the
// answer is still to be read.
type patientWriter struct {
	conn *net.TCPConn
	deaf bool
}

// Write never fails.
func (p *patientWriter) Write(b []byte) (int, error) {
	if !p.deaf {
		_ = p.conn.SetWriteDeadline(time.Now().Add(portStall)) // on a closed one writing fails too
		if _, err := p.conn.Write(b); err != nil {
			p.deaf = true
		}
	}
	return len(b), nil
}

// ports lists the ports that dialLoopback may reach, but for the gateway's.
func (s *Server) ports() []Port {
	inodes := make(map[uint16][]string)
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(name)
		if err != nil {
			continue // no IPv6, say
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if port, inode, ok := parseListener(lines.Text()); ok && !s.isGateway(port) {
				inodes[port] = append(inodes[port], inode)
			}
		}
		_ = f.Close() // only read from
	}
	list := make([]Port, 0, len(inodes))
	wanted := make(map[string]bool)
	for port, sockets := range inodes {
		list = append(list, Port{Port: port})
		for _, inode := range sockets {
			wanted[inode] = true
		}
	}
	slices.SortFunc(list, func(a, b Port) int { return int(a.Port) - int(b.Port) })
	list = list[:min(len(list), maxPorts)]
	owners := socketOwners(wanted)
	for i, p := range list {
		for _, inode := range inodes[p.Port] {
			if pid, ok := owners[inode]; ok {
				list[i].PID, list[i].Process = pid, processName(pid)
				break
			}
		}
	}
	return list
}

// parseListener reads a line of /proc/net/tcp or tcp6. ok says that it is a listener on loopback, or on every address.
func parseListener(line string) (port uint16, inode string, ok bool) {
	const listening = "0A"
	f := strings.Fields(line)
	if len(f) < 10 || f[3] != listening {
		return 0, "", false
	}
	address, number, found := strings.Cut(f[1], ":")
	n, err := strconv.ParseUint(number, 16, 16)
	raw, errHex := hex.DecodeString(address)
	if !found || err != nil || errHex != nil || len(raw)%4 != 0 {
		return 0, "", false
	}
	for i := 0; i < len(raw); i += 4 { // each word is in the order of little-endian machines, which all of ours are
		slices.Reverse(raw[i : i+4])
	}
	ip, valid := netip.AddrFromSlice(raw)
	ip = ip.Unmap()
	if !valid || !ip.IsUnspecified() && ip != netip.AddrFrom4([4]byte{127, 0, 0, 1}) && ip != netip.IPv6Loopback() {
		return 0, "", false
	}
	return uint16(n), f[9], n != 0
}

// socketOwners finds a process for each socket, by its inode. The guest may look at all processes.
func socketOwners(wanted map[string]bool) map[string]int {
	owners := make(map[string]int)
	dirs, _ := filepath.Glob("/proc/[0-9]*/fd") // the pattern is good
	for _, dir := range dirs {
		if len(owners) == len(wanted) {
			break
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err != nil {
			continue
		}
		for _, e := range entries {
			target, err := os.Readlink(filepath.Join(dir, e.Name()))
			if err != nil {
				continue
			}
			inode := strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")
			if wanted[inode] && owners[inode] == 0 {
				owners[inode] = pid
			}
		}
	}
	return owners
}

// processName is what a process calls itself; "" if it has ended.
func processName(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
