package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"
)

// Config says how a Server works. The zero value of a field means what its comment says.
type Config struct {
	SocketPath   string    // where Main listens; told to nobody else
	StateDir     string    // journals; made if need be
	Workdir      string    // where processes start; absolute
	AgentUID     int       // of the user processes
	AgentGID     int       //
	Root         string    // where users are looked up; "" = "/"
	Deadline     time.Time // when the guest ends itself; zero: when Setup says, or never
	JournalLimit int64     // bytes of output kept per run; 0 = 64 MiB
	GatewayAddr  string    // loopback address that leads to the host's gateway; "" = none
	Version      string
	Log          *slog.Logger // nil = silence

	// Confine says that this process is the guest and nothing else: it takes in orphans, can't be looked into, and starts
	// processes from a thread that has given up dangerous capabilities. A guest inside another program leaves it false.
	Confine bool
	Dirs    []string      // Main makes those that are missing
	Furnish bool          // Main adds what an image lacks; only where the file system is the sandbox's own
	Grace   time.Duration // between TERM and KILL; 0 = 5 s
	// MemoryUsed tells how many bytes of the sandbox's memory are used; nil = by /proc/meminfo, if Confine.
	MemoryUsed func() (int64, error)
	// GatewayWait is how long a connection to GatewayAddr waits for a host that is away, restarting perhaps; 0 = 60 s.
	GatewayWait time.Duration
	// QuietLimit is how long the guest waits, out of reach, for a checkpoint that doesn't come; 0 = 15 s.
	QuietLimit time.Duration
	NoInotify  bool // find changes of watched directories by looking every other second, as where the kernel tells of none
}

// Server is the guest's end: it starts processes, keeps their output and answers the host. It serves any number of hosts,
// one after the other or at once; what it runs depends on none of them.
type Server struct {
	cfg         Config
	log         *slog.Logger
	started     time.Time
	nursery     *nursery
	runs        registry
	tunnel      *tunnel
	noSetGroups bool
	handler     http.Handler
	quiet       suspension
	peers       peers
	files       filing

	mu       sync.Mutex
	env      map[string]string
	dir      string // where processes start, if the host said so
	ready    bool
	deadline time.Time
	limits   Limits
	stopped  bool // no connection is taken any more

	output  throttle
	limited chan struct{}      // the limit of memory may have changed
	moved   chan struct{}      // the deadline has changed
	ctx     context.Context    // done when the server is to stop serving
	cancel  context.CancelFunc //
	closing chan struct{}      // closed when Shutdown begins
	once    sync.Once
	done    chan struct{}  // closed when Shutdown has ended
	wg      sync.WaitGroup // connections and the deadline's watch
}

// NewServer prepares a guest and begins its duties: reaping, the deadline, the port to the gateway. Shutdown ends them. Runs of an
// earlier guest in the same StateDir are forgotten, for nobody has seen their ends.
func NewServer(cfg Config) (*Server, error) {
	if !filepath.IsAbs(cfg.StateDir) || !filepath.IsAbs(cfg.Workdir) {
		return nil, errors.New("guest: StateDir and Workdir must be absolute paths")
	}
	cfg.Root = cmp.Or(cfg.Root, "/")
	cfg.JournalLimit = cmp.Or(cfg.JournalLimit, 64<<20)
	cfg.Grace = cmp.Or(cfg.Grace, 5*time.Second)
	cfg.GatewayWait = cmp.Or(cfg.GatewayWait, time.Minute)
	cfg.QuietLimit = cmp.Or(cfg.QuietLimit, quietLimit)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg:         cfg,
		log:         cfg.Log,
		started:     time.Now().UTC(),
		deadline:    cfg.Deadline,
		noSetGroups: setGroupsDenied(),
		limited:     make(chan struct{}, 1),
		moved:       make(chan struct{}, 1),
		closing:     make(chan struct{}),
		done:        make(chan struct{}),
	}
	s.quiet.epoch = s.started
	runs := filepath.Join(cfg.StateDir, "runs")
	if err := os.RemoveAll(runs); err != nil {
		return nil, fmt.Errorf("guest: state: %w", err)
	}
	if err := os.MkdirAll(runs, 0o700); err != nil {
		return nil, fmt.Errorf("guest: state: %w", err)
	}
	s.handler = s.routes()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if cfg.GatewayAddr != "" {
		t, err := listenTunnel(s.ctx, cfg.GatewayAddr, cfg.GatewayWait)
		if err != nil {
			s.cancel()
			return nil, fmt.Errorf("guest: gateway: %w", err)
		}
		s.tunnel = t
	}
	if cfg.Confine {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			s.log.Warn("others may look into the guest", "err", err)
		}
	}
	s.nursery = newNursery(cfg.Confine, s.log)
	s.wg.Go(s.watchDeadline)
	s.wg.Go(s.watchMemory)
	return s, nil
}

// GatewayAddr returns the address that leads to the host's gateway, or nil.
func (s *Server) GatewayAddr() net.Addr {
	if s.tunnel == nil {
		return nil
	}
	return s.tunnel.ln.Addr()
}

// Done is closed once Shutdown, or the deadline, has ended the guest.
func (s *Server) Done() <-chan struct{} { return s.done }

func (s *Server) journalDir(id string) string { return filepath.Join(s.cfg.StateDir, "runs", id) }

// Serve answers hosts that connect to ln, until ctx is done, the guest ends or is suspended, and closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })() // makes Accept fail, which is how it is told
	defer ln.Close()                                          // nothing was written through it
	defer s.peers.listening(func() { _ = ln.Close() })()      // as above
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if s.Suspended() != nil {
				return nil // the host that asked for it is still to be answered
			}
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				cancel()
				return nil
			}
			if isShortage(err) { // which must not cost the sandbox its life
				pause(ctx)
				continue
			}
			cancel()
			return fmt.Errorf("guest: accept: %w", err)
		}
		wg.Go(func() {
			if err := s.ServeConn(ctx, conn); err != nil {
				s.log.Info("host connection ended", "err", err)
			}
		})
	}
}

// isShortage reports whether err is one that passes when somebody else lets go of something.
func isShortage(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// ServeConn answers one host until it goes, ctx is done or the guest ends. It owns conn.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	if !s.enter() {
		_ = conn.Close() // nothing was said
		return nil
	}
	defer s.wg.Done()
	mux := muxConfig()
	mux.StreamCloseTimeout = time.Hour // a program may end its own direction and then read for long; the host ends what is left over
	session, err := yamux.Server(conn, mux)
	if err != nil {
		_ = conn.Close() // the error says more
		return fmt.Errorf("guest: %w", err)
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx)) // of the requests: the last ones may still be finished
	me := &peer{gone: make(chan struct{})}
	work = context.WithValue(work, peerKey{}, me)
	var handlers requests
	srv := &http.Server{
		Handler:           handlers.count(s.handler),
		BaseContext:       func(net.Listener) context.Context { return work },
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          silent(),
	}
	if s.tunnel != nil {
		s.tunnel.add(session)
		defer s.tunnel.remove(session)
	}
	var end sync.Once
	hangUp := func() {
		end.Do(func() {
			if s.ctx.Err() != nil { // every run has ended: let those who follow one read its end
				last, stop := context.WithTimeout(work, lastWords)
				_ = srv.Shutdown(last) // late is late: they are cut off next
				stop()
			}
			cancel()
			_ = srv.Close()     // the connections are closed with the session
			_ = session.Close() // always nil
		})
	}
	me.hangUp = hangUp
	defer s.peers.add(me)()
	if s.Suspended() != nil { // which came between enter and here, and knew nothing of this one
		hangUp()
	}
	stopped := context.AfterFunc(ctx, hangUp)
	ended := context.AfterFunc(s.ctx, hangUp)
	err = srv.Serve(newStreams(session))
	stopped()
	ended()
	hangUp() // or wait until it has been done
	handlers.wait()
	if s.ctx.Err() != nil || ctx.Err() != nil || errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("guest: %w", err)
}

// lastWords is how long answers under way may take when the guest ends.
const lastWords = 2 * time.Second

// enter counts the caller among those that Shutdown waits for, unless it has come that far already.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || s.Suspended() != nil {
		return false
	}
	s.wg.Add(1)
	return true
}

// Shutdown ends everything: no new runs, TERM to all, after the grace KILL, then the connections and the duties. ctx bounds the
// waiting, not the killing. Every call returns when it is done.
func (s *Server) Shutdown(ctx context.Context) {
	s.once.Do(func() {
		go s.shutdown(ctx)
	})
	<-s.done
}

func (s *Server) shutdown(ctx context.Context) {
	defer close(s.done)
	close(s.closing)
	all := s.runs.close()
	var live []*run
	for _, r := range all {
		if r.alive() {
			live = append(live, r)
		}
	}
	s.log.Info("ending", "runs", len(live))
	s.endRuns(ctx, live)
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	if s.tunnel != nil {
		s.tunnel.wait()
	}
	for _, r := range all {
		if !r.alive() {
			r.abandon()
		}
	}
	s.nursery.close()
}

// endRuns sends TERM to everything and KILL to what is left after the grace.
func (s *Server) endRuns(ctx context.Context, live []*run) {
	alone := s.cfg.Confine && os.Getpid() == 1
	known := make([]map[int]process, len(live))
	for i, r := range live {
		known[i] = r.terminate()
	}
	if alone {
		_ = unix.Kill(-1, unix.SIGTERM) // also what no run knows any more; ESRCH: there is nobody
	}
	grace, cancel := context.WithTimeout(ctx, s.cfg.Grace)
	defer cancel()
	for _, r := range live {
		select {
		case <-r.child.done:
		case <-grace.Done():
		}
	}
	for i, r := range live {
		killFamily(r.child.pid, known[i])
	}
	if alone {
		_ = unix.Kill(-1, unix.SIGKILL) // as above
	}
	const most = 10 * time.Second
	late := time.After(most)
	for _, r := range live {
		select {
		case <-r.ended:
		case <-late: // it hangs in the kernel; the sandbox's end is its end
			s.log.Error("a process doesn't die", "run", r.view().ID)
			return
		}
	}
}

// watchDeadline ends the guest at its deadline. It looks again each minute, for a computer that sleeps or whose clock is set.
func (s *Server) watchDeadline() {
	for {
		s.mu.Lock()
		deadline := s.deadline
		s.mu.Unlock()
		var due <-chan time.Time
		if !deadline.IsZero() && s.Suspended() == nil { // when it is over, the deadline is another
			left := time.Until(deadline)
			if left <= 0 {
				s.log.Warn("the deadline has passed", "deadline", deadline)
				go s.Shutdown(context.Background()) // which waits for this goroutine
				return
			}
			due = time.After(min(left, time.Minute))
		}
		select {
		case <-due:
		case <-s.moved:
		case <-s.closing:
			return
		}
	}
}

// setup takes what the host wants every process to have.
func (s *Server) setup(in Setup) error {
	if err := checkEnv(in.Env); err != nil {
		return err
	}
	if l := in.Limits; l.Memory < 0 || l.PIDs < 0 || l.OpenFiles < 0 || l.Output < 0 {
		return refuse("bad_limits", "limits", "a limit can't be negative")
	}
	if err := s.nursery.limit(in.Limits); err != nil {
		return err
	}
	if in.Dir != "" {
		if !filepath.IsAbs(in.Dir) {
			return refuse("bad_dir", "dir", "%q is not absolute", in.Dir)
		}
		if err := os.MkdirAll(in.Dir, 0o755); err != nil {
			s.log.Warn("processes start in a directory that can't be made", "err", err) // each of them will say so
		}
	}
	s.output.set(in.Limits.Output)
	s.mu.Lock()
	s.env, s.dir, s.ready, s.limits = in.Env, in.Dir, true, in.Limits
	if !in.Deadline.IsZero() {
		s.deadline = in.Deadline
	}
	s.mu.Unlock()
	for _, tell := range []chan struct{}{s.moved, s.limited} {
		select {
		case tell <- struct{}{}:
		default:
		}
	}
	return nil
}

// touchDeadline makes watchDeadline look again.
func (s *Server) touchDeadline() {
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

func (s *Server) info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Info{
		Version: s.cfg.Version, StartedAt: s.started, Deadline: s.deadline,
		Workdir: s.cfg.Workdir, AgentUID: s.cfg.AgentUID, Ready: s.ready,
	}
}
