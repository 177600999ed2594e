// Package build makes images by Dockerfile commands: a base image and a list of commands become another image, each command that
// changes files one cached layer of it.
//
// The commands are parsed and expanded by BuildKit's own parser, so they mean what they mean to Docker. What can't work here is
// refused by name and line before anything runs (Check). A RUN executes wherever the caller's Runner puts it; COPY and ADD write
// their layer as a tar stream, and nothing is ever unpacked on the host.
//
// A step is cached by what determines it: the image it works on, the instruction after expansion, the variables a RUN sees and the
// names of the secrets. Builds that need the same step at the same time do it once and all see its output. The values of secrets
// reach the Runner and nothing else.
package build

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/sandlot-dev/sandlot/internal/image"
)

// Images is what a build needs of the store of images.
type Images interface {
	// Pull makes the image that ref names present and returns its ID, which follows from its content. report, never nil, is told of progress.
	Pull(ctx context.Context, ref string, report func(text string)) (id string, err error)
	// Settings returns what the image says of processes.
	Settings(ctx context.Context, id string) (image.Settings, error)
	// Append makes an image of base and one layer more: an uncompressed tar as OCI has it, or nil where only settings change.
	// change edits the settings that it has from base; history is one line or more for people. layer is read to its end or till an error.
	Append(ctx context.Context, base string, layer io.Reader, change func(*image.Settings), history string) (id string, err error)
	// Files opens the files of an image for reading.
	Files(ctx context.Context, id string) (Files, error)
	// Cached returns the image that Remember was told for key, if it is still there.
	Cached(key string) (id string, ok bool)
	// Remember keeps id for key. It may forget.
	Remember(key, id string) error
}

// Files are the files of one image, unchanging, by io/fs's names. Lstat and ReadLink don't follow a link in the last place; this package
// resolves every link itself and never passes a name that has one before its last part.
type Files interface {
	fs.ReadLinkFS
	io.Closer
	// Attr tells of a FileInfo that Lstat gave what io/fs doesn't know.
	Attr(info fs.FileInfo) Attr
}

// Attr is what a file has besides an fs.FileInfo.
type Attr struct {
	UID, GID uint32
	Xattrs   map[string]string
}

// Runner executes the command of one RUN in a sandbox that is thrown away.
type Runner interface {
	// Run returns what the command changed as an uncompressed layer tar, which the caller closes; nil when it changed nothing.
	// A command that ran and failed is an *ExitError. Any other error is the Runner's own.
	Run(ctx context.Context, step Step) (diff io.ReadCloser, err error)
}

// Step is the command of one RUN.
type Step struct {
	Base           string // the image to run on
	Argv           []string
	Env            map[string]string // all of it: the image's, ARGs, PATH and HOME
	SecretEnv      map[string]string // to be added to Env; must never be written down
	User           User
	Workdir        string // absolute; to be made where it doesn't exist
	Files          []File // to be in place before the command starts, and no part of the diff
	Stdout, Stderr io.Writer
}

// File is a small file that a Step needs.
type File struct {
	Path string // below /dev, which no image holds
	Mode fs.FileMode
	Data []byte
}

// User is whom a process runs as, resolved in the image.
type User struct {
	UID, GID uint32
	Groups   []uint32
	Home     string
}

// ExitError tells that a command ran and failed.
type ExitError struct {
	Code   int    // when Signal is ""
	Signal string // "SIGKILL", …
}

func (e *ExitError) Error() string {
	if e.Signal != "" {
		return "was ended by " + e.Signal
	}
	return fmt.Sprintf("ended with exit code %d", e.Code)
}

// Kind says what an Event is.
type Kind string

// The kinds of events.
const (
	KindStep   Kind = "step"   // a step begins
	KindCached Kind = "cached" // its result was there already
	KindLog    Kind = "log"    // Data is one line of output, or of progress
	KindNotice Kind = "notice" // Data is a sentence that the user should read
	KindDone   Kind = "done"   // the build is finished; Data is the ID of its image
)

// Event is something that happened in a build.
type Event struct {
	Kind        Kind
	Step, Steps int    // the n-th instruction of m; 0 where it belongs to none
	Line        int    // where that instruction begins in the whole text, from 1
	Text        string // the instruction, on one line, shortened
	Data        string
}

// Request is one build.
type Request struct {
	// Images and Runner act for whoever asked: with their registry credentials, limits and network policy.
	Images Images
	Runner Runner
	// Scope is who may share cached steps: an account. What differs between Runners and changes results belongs in it too.
	Scope    string
	Base     string   // ID of the image to begin with
	Commands []string // joined by newlines: one instruction may span several, one element may hold several
	Args     map[string]string
	// Secrets are environment variables of every RUN. Their names are part of what a RUN is cached by, their values are in
	// nothing that is kept, reported or returned.
	Secrets map[string]string
	Report  func(Event) // may be nil; called by one goroutine at a time
}

// Config configures a Builder.
type Config struct {
	Transport http.RoundTripper // for ADD from URLs; decides what may be reached
	Dir       string            // for downloads, which are unlinked as soon as they are open
	MaxAdd    int64             // bytes of one ADD from a URL; 0 means 2 GiB
	Stall     time.Duration     // the longest an ADD waits for the next byte; 0 means a minute
}

// Builder builds images. Safe for concurrent use.
type Builder struct {
	cfg     Config
	flights flights
}

// New returns a Builder.
func New(cfg Config) *Builder {
	if cfg.MaxAdd == 0 {
		cfg.MaxAdd = 2 << 30
	}
	if cfg.Stall == 0 {
		cfg.Stall = time.Minute
	}
	return &Builder{cfg: cfg, flights: flights{m: map[string]*flight{}}}
}

// Build carries out the commands of req and returns the ID of the resulting image, req.Base if nothing changed, and what the user should read.
// A command that failed or can't work is a *sandbox.Problem that names its line.
func (b *Builder) Build(ctx context.Context, req Request) (id string, notices []string, err error) {
	mask := newMask(req.Secrets)
	defer func() { err = mask.hide(err) }()
	if err := Check(req.Commands); err != nil { // all of it, before the first command runs
		return "", nil, err
	}
	script, err := parse(req.Commands) // again: to expand is to change
	if err != nil {
		return "", nil, err
	}
	s, err := newState(ctx, b, req, script, mask)
	if err != nil {
		return "", nil, err
	}
	for _, w := range script.warnings {
		s.notice("%s", w)
	}
	for _, ins := range script.list {
		if err := ctx.Err(); err != nil {
			return "", nil, fmt.Errorf("building an image: %w", context.Cause(ctx))
		}
		s.begin(ins)
		if err := s.apply(ctx, ins); err != nil {
			return "", nil, err
		}
	}
	s.begin(nil)
	s.unusedArgs()
	id, err = s.finish(ctx)
	if err != nil {
		return "", nil, err
	}
	s.report(Event{Kind: KindDone, Data: id})
	return id, s.notices, nil
}

// state is a build under way: the image so far, and what the instructions so far have set.
type state struct {
	b      *Builder
	req    Request
	script *script
	mask   *mask

	id       string         // the image so far; its settings are still the base's
	settings image.Settings // what the result will say
	vars     map[string]string
	args     map[string]bool // declared by ARG
	cmdSet   bool            // by one of these commands: then ENTRYPOINT leaves it alone
	changed  bool            // settings differ from the base's
	history  []string        // instructions that only changed settings

	pulled map[string]string // image by reference: one build sees one version of each

	mu      sync.Mutex
	at      *instruction // nil before the first and after the last
	notices []string
}

func newState(ctx context.Context, b *Builder, req Request, script *script, mask *mask) (*state, error) {
	settings, err := req.Images.Settings(ctx, req.Base)
	if err != nil {
		return nil, fmt.Errorf("reading the base image's settings: %w", err)
	}
	s := &state{b: b, req: req, script: script, mask: mask, id: req.Base, settings: cloneSettings(settings), args: map[string]bool{},
		pulled: map[string]string{}}
	for _, ins := range script.list {
		ins.text = mask.clean(ins.text) // it is only shown, and may be cut
	}
	s.vars = envMap(settings.Env)
	if _, ok := s.vars["PATH"]; !ok {
		s.vars["PATH"] = defaultPath
	}
	return s, nil
}

// defaultPath is what Docker gives to images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (s *state) begin(ins *instruction) {
	s.mu.Lock()
	s.at = ins
	s.mu.Unlock()
	if ins != nil {
		s.report(Event{Kind: KindStep})
	}
}

func (s *state) report(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.req.Report == nil {
		return
	}
	e.Steps = len(s.script.list)
	if s.at != nil {
		e.Step, e.Line, e.Text = s.at.step, s.at.line, s.at.short()
	}
	s.req.Report(e)
}

func (s *state) notice(format string, args ...any) {
	text := s.mask.clean(fmt.Sprintf(format, args...))
	if s.at != nil {
		text = fmt.Sprintf("line %d: %s", s.at.line, text)
	}
	s.notices = append(s.notices, text)
	s.report(Event{Kind: KindNotice, Data: text})
}

// finish gives the image its settings, if any changed.
func (s *state) finish(ctx context.Context) (string, error) {
	if !s.changed {
		return s.id, nil
	}
	key := newKey("settings", s.req.Scope, s.id).settings(s.settings).sum()
	if id, ok := s.req.Images.Cached(key); ok {
		return id, nil
	}
	change := func(to *image.Settings) { *to = cloneSettings(s.settings) }
	id, err := s.req.Images.Append(ctx, s.id, nil, change, s.historyText(s.history...))
	if err != nil {
		return "", fmt.Errorf("setting the image's environment and commands: %w", err)
	}
	if err := s.req.Images.Remember(key, id); err != nil {
		return "", fmt.Errorf("remembering a step: %w", err)
	}
	return id, nil
}

// unusedArgs tells of values that were given and that no ARG asked for, as Docker does.
func (s *state) unusedArgs() {
	for _, name := range sortedKeys(s.req.Args) {
		if !s.args[name] && !isProxy(name) {
			s.notice("the build argument %s was given, but no ARG declares it", name)
		}
	}
}

func envMap(env []string) map[string]string {
	m := make(map[string]string, len(env))
	for _, kv := range env {
		k, v := cutEnv(kv)
		m[k] = v
	}
	return m
}

func cloneSettings(s image.Settings) image.Settings {
	s.Env = append([]string(nil), s.Env...)
	s.Entrypoint = append([]string(nil), s.Entrypoint...)
	s.Cmd = append([]string(nil), s.Cmd...)
	s.Shell = append([]string(nil), s.Shell...)
	s.Labels = maps.Clone(s.Labels)
	s.Ports = append([]string(nil), s.Ports...)
	s.Volumes = append([]string(nil), s.Volumes...)
	return s
}
