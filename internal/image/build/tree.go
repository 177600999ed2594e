package build

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links one path may lead through, as with Linux.
const maxLinks = 40

// node is what stands at a path.
type node struct {
	mode fs.FileMode // its type bits; the rest may be 0
	link string      // where a symbolic link leads
}

// looker tells what stands at an absolute path whose parents are real directories; nil if nothing does.
type looker func(p string) (*node, error)

// lookIn looks at the files of an image.
func lookIn(files Files) looker {
	return func(p string) (*node, error) {
		info, err := files.Lstat(fsName(p))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // below a file there is nothing
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("looking at %s in the image: %w", p, err)
		}
		n := &node{mode: info.Mode()}
		if n.mode&fs.ModeSymlink != 0 {
			if n.link, err = files.ReadLink(fsName(p)); err != nil {
				return nil, fmt.Errorf("reading the link %s in the image: %w", p, err)
			}
		}
		return n, nil
	}
}

// resolve follows every symbolic link of p, the last included, within the root that look shows: a link can't lead out of it, since its
// target is read as a path below that root. What doesn't exist is taken as it is written.
func resolve(p string, look looker) (string, error) {
	real, rest, links := "/", strings.Split(p, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			real = path.Dir(real)
			continue
		}
		next := path.Join(real, name)
		n, err := look(next)
		if err != nil {
			return "", err
		}
		if n == nil || n.mode&fs.ModeSymlink == 0 {
			real = next
			continue
		}
		if links++; links > maxLinks {
			return "", reasonf("%s leads through too many symbolic links", p)
		}
		if path.IsAbs(n.link) {
			real = "/"
		}
		rest = append(strings.Split(n.link, "/"), rest...)
	}
	return real, nil
}

// glob returns the paths that match pattern, whose wildcards are path.Match's, in order. A pattern without any is returned as it is.
// Links are followed up to the first wildcard, as Docker does, and not below it.
func glob(files Files, pattern string) ([]string, error) {
	parts := strings.Split(strings.Trim(path.Clean("/"+pattern), "/"), "/")
	first := slices.IndexFunc(parts, hasWildcard)
	if first < 0 {
		return []string{"/" + strings.Join(parts, "/")}, nil
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, reasonf("%s is not a valid pattern", quote(pattern))
	}
	dir, err := resolve("/"+strings.Join(parts[:first], "/"), lookIn(files))
	if err != nil {
		return nil, err
	}
	found := []string{dir}
	for i, part := range parts[first:] {
		var next []string
		for _, dir := range found {
			matches, err := matching(files, dir, part, first+i < len(parts)-1)
			if err != nil {
				return nil, err
			}
			if next = append(next, matches...); len(next) > maxEntries {
				return nil, reasonf("%s matches more than %d files", quote(pattern), maxEntries)
			}
		}
		found = next
	}
	return found, nil
}

// matching returns what in dir matches one part of a pattern, only directories if more parts follow.
func matching(files Files, dir, part string, dirsOnly bool) ([]string, error) {
	entries, err := fs.ReadDir(files, fsName(dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s in the image: %w", dir, err)
	}
	var out []string
	for _, e := range entries {
		if ok, _ := path.Match(part, e.Name()); ok && (e.IsDir() || !dirsOnly) {
			out = append(out, path.Join(dir, e.Name()))
		}
	}
	slices.Sort(out)
	return out, nil
}

// hasWildcard reports whether a part of a path is a pattern.
func hasWildcard(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// fsName is the io/fs name of an absolute path.
func fsName(p string) string {
	if p == "/" {
		return "."
	}
	return strings.TrimPrefix(p, "/")
}
