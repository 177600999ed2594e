package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// stall is how long a program that has ended its own direction may leave what comes back unread: it may be gone.
const stall = time.Minute

// tunnel answers CONNECT: bytes both ways, until both have ended.
func (v *visit) tunnel(w http.ResponseWriter, r *http.Request) {
	up, err := v.e.dialer.DialContext(r.Context(), "tcp", hostPort(v.name, v.addr, v.port))
	if err != nil {
		v.fail(w, r, err)
		return
	}
	defer up.Close()
	down, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		v.fail(w, r, err)
		return
	}
	defer down.Close()
	// From here on nobody but us watches the connection.
	abort := func() {
		_ = up.Close()
		_ = down.Close()
		_ = down.SetDeadline(time.Unix(1, 0)) // a stream's reader isn't woken by Close
	}
	stop := context.AfterFunc(r.Context(), abort)
	defer stop()
	if _, err := io.WriteString(down, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		v.conn.Reason = ReasonCut
		return
	}
	// What was read ahead comes first. Reading on through the server's buffer would end the request's context with the stream.
	early, err := buffered.Peek(buffered.Reader.Buffered())
	if err != nil {
		v.conn.Reason = ReasonCut
		return
	}
	var ended atomic.Bool // the program has said all that it will
	var wg sync.WaitGroup
	wg.Go(func() {
		err := pump(up, io.MultiReader(bytes.NewReader(early), down), v.sent, nil)
		ended.Store(true)
		_ = down.SetWriteDeadline(time.Now().Add(stall)) // fails when it is closed
		if err == nil {
			err = closeWrite(up)
		}
		if err != nil {
			abort()
		}
	})
	err = pump(down, up, v.received, func() {
		if ended.Load() {
			_ = down.SetWriteDeadline(time.Now().Add(stall)) // as above
		}
	})
	if err == nil {
		err = closeWrite(down)
	}
	if err != nil {
		abort()
	}
	wg.Wait()
	if r.Context().Err() != nil {
		v.conn.Reason = ReasonCut
	}
}

// unblock makes writing to a program fail once ctx is done: a program that has gone reads nothing any more.
func unblock(ctx context.Context, rc *http.ResponseController) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = rc.SetWriteDeadline(time.Unix(1, 0)) }) // an unsupported one does without
}

// pump copies from src to dst, telling count of every piece and before of every write.
func pump(dst io.Writer, src io.Reader, count func(int64), before func()) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if before != nil {
				before()
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
			count(int64(n))
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// closeWrite ends our direction of a connection.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// forward answers a request for an http:// URL. The request is written anew, so what a sandbox tried to smuggle in doesn't get through.
func (v *visit) forward(w http.ResponseWriter, r *http.Request, token string) {
	// Some servers answer before they have read everything.
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // an unsupported one does without
	defer unblock(r.Context(), rc)()
	proxy := httputil.ReverseProxy{
		Transport:     v.e.transport,
		FlushInterval: -1,
		Rewrite:       func(p *httputil.ProxyRequest) { v.rewrite(p, token) },
		ModifyResponse: func(res *http.Response) error {
			v.received(headSize(res.Header))
			res.Body = v.counted(res.Body)
			return nil
		},
		ErrorHandler: v.fail,
		ErrorLog:     log.New(io.Discard, "", 0), // a sandbox would write it
	}
	whole := false
	defer func() {
		if !whole {
			v.conn.Reason = ReasonCut
		}
	}()
	proxy.ServeHTTP(w, r) // it panics when an answer breaks off, so that nobody takes half of it for the whole
	whole = true
}

// rewrite makes the request that goes out; hop-by-hop headers were removed by ReverseProxy.
func (v *visit) rewrite(p *httputil.ProxyRequest, token string) {
	host := hostPort(v.name, v.addr, v.port)
	if v.port == 80 {
		host = strings.TrimSuffix(host, ":80")
	}
	p.Out.URL.Host, p.Out.Host = host, host
	p.Out.URL.RawQuery = p.In.URL.RawQuery // as it came, well formed or not
	p.Out.Trailer = p.In.Trailer           // filled in when the body has been read
	for name, values := range p.Out.Header {
		for _, value := range values {
			if strings.Contains(value, token) { // it is worth nothing elsewhere, but isn't anybody's business
				p.Out.Header.Del(name)
			}
		}
	}
	v.sent(int64(len(p.Out.Method)+len(p.Out.URL.Path)+len(p.Out.URL.RawQuery)) + headSize(p.Out.Header))
	if p.Out.Body != nil && p.Out.Body != http.NoBody {
		p.Out.Body = &countedBody{ReadCloser: p.Out.Body, count: v.sent}
	}
}

func headSize(h http.Header) int64 {
	n := 0
	for name, values := range h {
		for _, value := range values {
			n += len(name) + len(value) + len(": \r\n")
		}
	}
	return int64(n)
}

type countedBody struct {
	io.ReadCloser
	count func(int64)
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.count(int64(n))
	return n, err
}

// counted wraps the body of an answer. That of a 101 is a connection, and stays one.
func (v *visit) counted(body io.ReadCloser) io.ReadCloser {
	read := &countedBody{ReadCloser: body, count: v.received}
	if w, ok := body.(io.Writer); ok {
		return &upgraded{countedBody: read, w: w, count: v.sent}
	}
	return read
}

type upgraded struct {
	*countedBody
	w     io.Writer
	count func(int64)
}

func (u *upgraded) Write(p []byte) (int, error) {
	n, err := u.w.Write(p)
	u.count(int64(n))
	return n, err
}

// CloseWrite ends the direction to the server, if the connection can.
func (u *upgraded) CloseWrite() error {
	if half, ok := u.w.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
