package build

import (
	"encoding/hex"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	mode "github.com/tonistiigi/dchapes-mode"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// refuseNode refuses whole instructions, before their arguments are looked at.
func refuseNode(ins *instruction, node *parser.Node) *sandbox.Problem {
	switch strings.ToUpper(node.Value) {
	case "FROM":
		return ins.refuse("the commands continue the image that image.registry names, and there are no stages; leave FROM out, " +
			"and copy from other images with COPY --from=IMAGE")
	case "ONBUILD":
		return ins.refuse("nothing is built from this image, so it would never run; write the command itself")
	}
	return nil
}

// refuseCommand refuses what BuildKit can parse and this package doesn't do, and what can't be right whatever its variables are.
func refuseCommand(ins *instruction) *sandbox.Problem {
	switch c := ins.cmd.(type) {
	case *instructions.RunCommand:
		return refuseRun(ins, c)
	case *instructions.CopyCommand:
		return refuseCopy(ins, c)
	case *instructions.AddCommand:
		return refuseAdd(ins, c)
	case *instructions.CmdCommand:
		if c.PrependShell && len(c.CmdLine) == 0 {
			return ins.problem("needs a command")
		}
	case *instructions.EntrypointCommand:
		if c.PrependShell && len(c.CmdLine) == 0 {
			return ins.problem("needs a command")
		}
	}
	return nil
}

func refuseRun(ins *instruction, c *instructions.RunCommand) *sandbox.Problem {
	for _, flag := range c.FlagsUsed {
		if name, _, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "="); name != "mount" && name != "network" {
			return ins.refuse("--%s is not supported", name)
		}
	}
	if instructions.GetNetwork(c) != instructions.NetworkDefault {
		return ins.refuse("--network is not supported: the network policy of the build holds for every RUN")
	}
	if len(c.CmdLine) == 0 || len(c.Files) == 0 && strings.TrimSpace(strings.Join(c.CmdLine, "")) == "" {
		return ins.problem("needs a command")
	}
	total := 0
	for _, f := range c.Files {
		total += len(f.Data) + len(f.Name) + 1
	}
	for _, a := range c.CmdLine {
		if len(a)+total >= maxWord {
			return ins.problem("is longer than %d KiB, the most that Linux takes; put the script into a file", maxWord>>10)
		}
	}
	return nil
}

// refuseMount refuses all mounts but a secret that becomes a variable. It is asked after expansion, which mounts need to be read.
func refuseMount(ins *instruction, m *instructions.Mount) *sandbox.Problem {
	switch {
	case m.Type != instructions.MountTypeSecret:
		return ins.refuse("--mount=type=%s is not supported; only type=secret with env=NAME is", m.Type)
	case m.Env == nil:
		return ins.refuse("a secret can't be mounted as a file; use --mount=type=secret,id=NAME,env=NAME. " +
			"All secrets of the build are variables of every RUN, so no mount may be needed")
	case m.Target != "" || m.Mode != nil || m.UID != nil || m.GID != nil:
		return ins.refuse("a secret can't be mounted as a file; leave target, mode, uid and gid out")
	}
	return nil
}

func refuseCopy(ins *instruction, c *instructions.CopyCommand) *sandbox.Problem {
	switch {
	case c.Parents:
		return ins.refuse("--parents is not supported; name the directory in the destination")
	case len(c.ExcludePatterns) > 0:
		return ins.refuse("--exclude is not supported; remove files with a RUN")
	case len(c.SourcePaths) > 0 && c.From == "":
		return ins.refuse("there is no build context to copy %s from; use COPY --from=IMAGE, ADD from a URL or COPY <<EOF, "+
			"or put files into the sandbox with the files API", quote(c.SourcePaths[0]))
	case strings.Contains(c.From, "$"):
		return ins.refuse("--from takes no variables, as with Docker; write the image's name")
	case isStage(c.From):
		return ins.refuse("--from=%s names a stage, and there are no stages here; name an image", c.From)
	}
	for _, src := range c.SourcePaths {
		if isURL(src) {
			return ins.problem("COPY takes no URL; use ADD")
		}
	}
	return refuseOwner(ins, c.SourcesAndDest, c.Chown, c.Chmod)
}

func refuseAdd(ins *instruction, c *instructions.AddCommand) *sandbox.Problem {
	switch {
	case len(c.ExcludePatterns) > 0:
		return ins.refuse("--exclude is not supported")
	case c.Unpack != nil && *c.Unpack:
		return ins.refuse("--unpack is not supported; ADD the archive and unpack it with a RUN")
	case c.KeepGitDir != nil:
		return ins.refuse("--keep-git-dir is not supported: Git repositories can't be added; clone with a RUN")
	case len(c.SourcePaths) > maxURLs:
		return ins.problem("more than %d URLs in one ADD", maxURLs)
	case c.Checksum != "" && (len(c.SourcePaths) != 1 || len(c.SourceContents) > 0):
		return ins.problem("--checksum needs exactly one URL")
	}
	for _, src := range c.SourcePaths {
		if !strings.Contains(src, "$") {
			if p := refuseSource(ins, src); p != nil {
				return p
			}
		}
	}
	if c.Checksum != "" && !strings.Contains(c.Checksum, "$") {
		if _, _, p := checksum(ins, c.Checksum); p != nil {
			return p
		}
	}
	return refuseOwner(ins, c.SourcesAndDest, c.Chown, c.Chmod)
}

// refuseSource refuses what ADD can't fetch.
func refuseSource(ins *instruction, src string) *sandbox.Problem {
	if isGit(src) {
		return ins.refuse("Git repositories can't be added; clone %s with a RUN", quote(src))
	}
	if !isURL(src) {
		return ins.refuse("there is no build context to add %s from; use ADD from an http or https URL, COPY --from=IMAGE or COPY <<EOF, "+
			"or put files into the sandbox with the files API", quote(src))
	}
	u, err := url.Parse(src)
	if err != nil || u.Host == "" {
		return ins.problem("%s is not a valid URL", quote(src))
	}
	return nil
}

// maxURLs bounds what one ADD fetches.
const maxURLs = 16

func refuseOwner(ins *instruction, sd instructions.SourcesAndDest, chown, chmod string) *sandbox.Problem {
	if len(sd.SourcePaths)+len(sd.SourceContents) > 1 && !strings.Contains(sd.DestPath, "$") && !isDirName(sd.DestPath) {
		return ins.problem("with more than one source the destination must be a directory: end it with a slash")
	}
	for _, f := range sd.SourceContents {
		if f.Path == "." || f.Path == ".." || strings.Contains(f.Path, "/") {
			return ins.problem("%s can't be the name of a file; name the heredoc after the file, or give the whole path as the destination", quote(f.Path))
		}
	}
	if chmod != "" && !strings.Contains(chmod, "$") {
		if _, err := parseMode(chmod); err != nil {
			return ins.problem("--chmod=%s is neither an octal number up to 7777 nor of the form u=rwX,go=rX", chmod)
		}
	}
	if strings.Count(chown, ":") > 1 {
		return ins.problem("--chown=%s is not of the form USER or USER:GROUP", chown)
	}
	return nil
}

// parseMode reads --chmod and returns what it makes of a file's mode.
func parseMode(s string) (func(perm uint32, dir bool) uint32, error) {
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		if n > 0o7777 {
			return nil, strconv.ErrRange
		}
		return func(uint32, bool) uint32 { return uint32(n) }, nil
	}
	set, err := mode.ParseWithUmask(s, 0)
	if err != nil {
		return nil, err
	}
	return func(perm uint32, dir bool) uint32 { return tarMode(set.Apply(fileMode(perm, dir))) }, nil
}

// checksum reads --checksum: the name of a hash and the sum.
func checksum(ins *instruction, s string) (algorithm string, sum []byte, p *sandbox.Problem) {
	algorithm, digits, _ := strings.Cut(s, ":")
	sum, err := hex.DecodeString(digits)
	if h := newHash(algorithm); h == nil || err != nil || len(sum) != h.Size() {
		return "", nil, ins.problem("--checksum=%s is not of the form sha256:HEX (or sha384, sha512)", s)
	}
	return algorithm, sum, nil
}

// isDirName reports whether a destination can only be a directory.
func isDirName(dest string) bool {
	base := path.Base(dest)
	return strings.HasSuffix(dest, "/") || base == "." || base == ".."
}

func isURL(s string) bool {
	s = strings.ToLower(s)
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// isGit reports whether ADD would clone src: an address of another scheme, or one whose path ends in .git.
func isGit(src string) bool {
	if strings.HasPrefix(src, "git@") || strings.HasPrefix(src, "git://") || strings.HasPrefix(src, "ssh://") {
		return true
	}
	u, err := url.Parse(src)
	return err == nil && isURL(src) && strings.HasSuffix(u.Path, ".git")
}

// isStage reports whether --from can only mean a stage: BuildKit takes a number for one.
func isStage(from string) bool {
	_, err := strconv.Atoi(from)
	return err == nil || from == "scratch" || from == "context"
}

// quote shows a piece of the commands in a sentence.
func quote(s string) string {
	if len(s) > 100 {
		s = strings.ToValidUTF8(s[:100], "") + "…"
	}
	return strconv.Quote(s)
}
