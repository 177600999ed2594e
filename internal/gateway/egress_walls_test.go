package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/gateway"
)

// Each attempt to climb over the proxy is refused, and connects to nothing at all. The policy allows every host and port.
func TestProxyWalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "", nil)
	// The server's own port, on every address that this machine has.
	own := listen(t, func(conn *net.TCPConn) { t.Errorf("%s reached a port of the server", conn.RemoteAddr()) })
	_, port, err := net.SplitHostPort(own)
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]string{
		"loopback":                         "127.0.0.1:" + port,
		"loopback of another number":       "127.1.2.3:" + port,
		"loopback by name":                 "localhost:" + port,
		"loopback by name with a dot":      "LOCALHOST.:" + port,
		"loopback in IPv6":                 "[::1]:" + port,
		"loopback in IPv6 by name":         "six.example:" + port,
		"loopback mapped into IPv6":        "[::ffff:127.0.0.1]:" + port,
		"loopback compatible in IPv6":      "[::127.0.0.1]:" + port,
		"loopback through NAT64":           "[64:ff9b::7f00:1]:" + port,
		"loopback through 6to4":            "[2002:7f00:1::]:" + port,
		"loopback as one decimal number":   "2130706433:" + port,
		"loopback as a hexadecimal number": "0x7f000001:" + port,
		"loopback in two parts":            "127.1:" + port,
		"loopback in hexadecimal parts":    "0x7f.0x0.0x0.0x1:" + port,
		"loopback in octal parts":          "0177.0.0.1:" + port,
		"loopback in wide digits":          "１２７.０.０.１:" + port,
		"loopback with ideographic stops":  "127。0。0。1:" + port,
		"this host":                        "0.0.0.0:" + port,
		"this host in IPv6":                "[::]:" + port,
		"this host as zero":                "0:" + port,
		"the gateway itself":               "127.0.0.1:39100",
		"the gateway by name":              "localhost:39100",
		"a private name":                   "private.example:80",
		"a private address":                "10.0.0.1:80",
		"a private address in IPv6":        "[fd00::1]:80",
		"the neighbour's address":          "[fe80::1]:80",
		"an address with a zone":           "[fe80::1%25eth0]:80",
		"an address with a bare zone":      "[fe80::1%eth0]:80",
		"metadata":                         "169.254.169.254:80",
		"metadata as a number":             "2852039166:80",
		"metadata by name":                 "metadata.google.internal:80",
		"metadata of ECS":                  "169.254.170.2:80",
		"metadata of Alibaba":              "100.100.100.200:80",
		"metadata of Azure":                "168.63.129.16:80",
		"metadata of AWS in IPv6":          "[fd00:ec2::254]:80",
		"multicast":                        "224.0.0.1:80",
		"broadcast":                        "255.255.255.255:80",
		"port 0":                           "good.example:0",
		"a port over the top":              "good.example:65536",
		"a port that wraps around":         "good.example:65616",
		"a negative port":                  "good.example:-80",
		"a port by name":                   "good.example:http",
		"an escaped zero byte":             "good.example%00.internal:80",
		"a name and password":              "good.example:80@127.0.0.1:" + port,
		"an empty host":                    ":80",
		"two dots":                         "good..example:80",
		"a very long name":                 strings.Repeat("a.", 130) + "example:80",
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok {
				targets["the server's address "+ip.String()] = net.JoinHostPort(ip.Unmap().String(), port)
			}
		}
	}
	for attack, target := range targets {
		for _, request := range []string{"CONNECT %s HTTP/1.1\r\nHost: good.example\r\n\r\n", "GET http://%s/ HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n"} {
			if target == "127.0.0.1:39100" && strings.HasPrefix(request, "GET") {
				continue // is answered by the model's API, without the proxy
			}
			status, body, h := w.raw(t, fmt.Sprintf(request, target))
			if reason := h.Get("X-Sandlot-Reason"); status != http.StatusForbidden && status != http.StatusBadRequest || status == http.StatusForbidden && reason != gateway.ReasonAddress {
				t.Errorf("%s: %s: %d %s %q", attack, request[:7], status, reason, body)
			}
		}
	}
	for attack, request := range map[string]string{
		"CONNECT with a path":            "CONNECT /v1/messages HTTP/1.1\r\nHost: good.example:80\r\n\r\n",
		"CONNECT with a URL":             "CONNECT http://good.example:80/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT with a path behind":     "CONNECT good.example:80/path HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT with a query":           "CONNECT good.example:80?x HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT with a user":            "CONNECT user@good.example:80 HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT without a port":         "CONNECT good.example HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT with a body":            "CONNECT good.example:80 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
		"CONNECT with chunks":            "CONNECT good.example:80 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"https without CONNECT":          "GET https://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"ftp":                            "GET ftp://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"file":                           "GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"a URL without an authority":     "GET http:good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"a user in the URL":              "GET http://user:pass@good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"two different lengths":          "POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		"an unknown coding":              "POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: xchunked\r\n\r\n",
		"a space before the colon":       "POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\nContent-Length : 5\r\n\r\nhello",
		"a length with a sign":           "POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\nContent-Length: +5\r\n\r\nhello",
		"two Hosts":                      "GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\nHost: other.example\r\n\r\n",
		"no Host":                        "GET http://good.example/ HTTP/1.1\r\n\r\n",
		"a header with a zero byte":      "GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\nX: a\x00b\r\n\r\n",
		"a fold in the first header":     "GET http://good.example/ HTTP/1.1\r\n X: y\r\nHost: good.example\r\n\r\n",
		"a model request for the server": "GET http://" + own + "/v1/models HTTP/1.1\r\nHost: 127.0.0.1:39100\r\n\r\n",
	} {
		status, body, h := w.raw(t, request)
		if status < 400 || status == http.StatusBadGateway {
			t.Errorf("%s: %d %q %v", attack, status, body, h)
		}
	}
	if got := w.connections(); got != "" {
		t.Errorf("connected to %s", got)
	}
}

// A name that leads to the world when it is checked and home when it is dialed is asked for once only.
func TestDNSRebinding(t *testing.T) {
	t.Parallel()
	w := newWorld(t, listen(t, func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "the world") }), nil)
	_, r := w.connectTo(t, "rebind.example:80")
	if b, err := io.ReadAll(r); err != nil || string(b) != "the world" {
		t.Errorf("%q, %v", b, err)
	}
	if status, _, h := w.raw(t, "CONNECT rebind.example:80 HTTP/1.1\r\nHost: x\r\n\r\n"); status != http.StatusForbidden || h.Get("X-Sandlot-Reason") != gateway.ReasonAddress {
		t.Errorf("%d %v", status, h)
	}
	if got := w.connections(); got != publicIP+":80" {
		t.Error(got)
	}
}

// What could be read in two ways reaches the server in one, with nothing hidden behind it.
func TestRequestSmuggling(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 10)
	upstream := listen(t, func(conn *net.TCPConn) {
		r := bufio.NewReader(conn)
		req, err := http.ReadRequest(r)
		if err != nil {
			seen <- err.Error()
			return
		}
		body, err := io.ReadAll(req.Body)
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
		_ = conn.CloseWrite()
		rest, _ := io.ReadAll(r) // another request, if one was smuggled in
		seen <- fmt.Sprintf("%s %s %q %v %q", req.Host, req.RequestURI, body, err, rest)
	})
	w := newWorld(t, upstream, nil)
	const hidden = "GET /admin HTTP/1.1\r\nHost: other.example\r\n\r\n"
	for attack, c := range map[string]struct{ request, want string }{
		"chunks and a length": {"POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + hidden,
			`good.example / "hello" <nil> ""`},
		"a length that hides a request": {fmt.Sprintf("POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(hidden), hidden),
			fmt.Sprintf(`good.example / %q <nil> ""`, hidden)},
		"a length that Connection takes away": {"POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nConnection: Content-Length, close\r\n\r\nhello",
			`good.example / "hello" <nil> ""`},
		"a Host that isn't the URL's": {"GET http://good.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", `good.example / "" <nil> ""`},
		"a folded header":             {"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\nX: a\r\n b: c\r\nConnection: close\r\n\r\n", `good.example / "" <nil> ""`},
		"a chunk with an extension":   {"POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5;x=\"\r\nhello\r\n0\r\n\r\n", `good.example / "hello" <nil> ""`},
		"an escaped line in the path": {"GET http://good.example/%0d%0aX:y HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n", `good.example /%0d%0aX:y "" <nil> ""`},
	} {
		if status, body, _ := w.raw(t, c.request); status != http.StatusOK {
			t.Errorf("%s: %d %s", attack, status, body)
			continue
		}
		if got := <-seen; got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", attack, got, c.want)
		}
	}
}

// A server's answer must not fill our memory.
func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	upstream := listen(t, func(conn *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
		for {
			if _, err := io.WriteString(conn, "X: "+strings.Repeat("a", 1000)+"\r\n"); err != nil {
				return
			}
		}
	})
	w := newWorld(t, upstream, nil)
	status, body, _ := w.raw(t, "GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n")
	if status != http.StatusBadGateway || strings.Contains(body, "aaa") {
		t.Errorf("%d %q", status, body)
	}
}
