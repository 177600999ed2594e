package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

// maxUserFile bounds /etc/passwd and /etc/group.
const maxUserFile = 4 << 20

// runUser is whom a RUN runs as: what USER says, looked up in the image.
func (s *state) runUser(ctx context.Context) (User, error) {
	files, err := s.req.Images.Files(ctx, s.id)
	if err != nil {
		return User{}, fmt.Errorf("opening the image: %w", err)
	}
	defer files.Close()
	return execUser(files, s.settings.User)
}

func execUser(files Files, spec string) (User, error) {
	passwd, err := readUserFile(files, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	group, err := readUserFile(files, "/etc/group")
	if err != nil {
		return User{}, err
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	switch {
	case errors.Is(err, user.ErrNoPasswdEntries):
		return User{}, reasonf("USER is %s, and the image's /etc/passwd has no such user; add it with a RUN, or use its number", quote(spec))
	case errors.Is(err, user.ErrNoGroupEntries):
		return User{}, reasonf("USER is %s, and the image's /etc/group has no such group; add it with a RUN, or use its number", quote(spec))
	case err != nil:
		return User{}, reasonf("USER is %s: %s", quote(spec), parseText(err))
	}
	out := User{UID: uint32(u.Uid), GID: uint32(u.Gid), Home: u.Home}
	for _, g := range u.Sgids {
		out.Groups = append(out.Groups, uint32(g))
	}
	if out.UID == 0 && out.Home == "/" {
		out.Home = "/root"
	}
	return out, nil
}

// owner is who a file belongs to.
type owner struct{ uid, gid uint32 }

// fileOwner reads --chown. As with Docker a number without a group is both, and a name brings its own group.
func fileOwner(files Files, spec string) (owner, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	var o owner
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		o = owner{uint32(n), uint32(n)}
	} else if name != "" {
		data, err := readUserFile(files, "/etc/passwd")
		if err != nil {
			return o, err
		}
		found, err := user.ParsePasswdFilter(bytes.NewReader(data), func(u user.User) bool { return u.Name == name })
		if err != nil || len(found) == 0 {
			return o, reasonf("the image's /etc/passwd has no user %s", quote(name))
		}
		o = owner{uint32(found[0].Uid), uint32(found[0].Gid)}
	}
	if !hasGroup || group == "" {
		return o, nil
	}
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		o.gid = uint32(n)
		return o, nil
	}
	data, err := readUserFile(files, "/etc/group")
	if err != nil {
		return o, err
	}
	found, err := user.ParseGroupFilter(bytes.NewReader(data), func(g user.Group) bool { return g.Name == group })
	if err != nil || len(found) == 0 {
		return o, reasonf("the image's /etc/group has no group %s", quote(group))
	}
	o.gid = uint32(found[0].Gid)
	return o, nil
}

// readUserFile reads a file of the image; one that is missing is empty.
func readUserFile(files Files, name string) ([]byte, error) {
	real, err := resolve(name, lookIn(files))
	if err != nil {
		return nil, err
	}
	if there, err := lookIn(files)(real); err != nil || there == nil {
		return nil, err
	}
	info, err := files.Lstat(fsName(real))
	if err != nil {
		return nil, fmt.Errorf("reading the image's %s: %w", name, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxUserFile {
		return nil, reasonf("the image's %s is no file of a sensible size", name)
	}
	f, err := files.Open(fsName(real))
	if err != nil {
		return nil, fmt.Errorf("reading the image's %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxUserFile))
	if err != nil {
		return nil, fmt.Errorf("reading the image's %s: %w", name, err)
	}
	return data, nil
}
