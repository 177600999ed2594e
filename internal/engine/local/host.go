package local

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/image"
)

// hostDirs are this machine's directories of programs. Where one is a symbolic link (/bin → usr/bin), so it is inside.
var hostDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// hostEtc are the files and directories of /etc that programs need to run and that tell nothing of this machine's users,
// secrets or network. Directories are taken over whole.
var hostEtc = []string{
	"alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl/certs", "ssl/openssl.cnf", "ca-certificates.conf", "pki/tls/certs",
	"os-release", "debian_version", "redhat-release", "alpine-release", "localtime", "timezone", "locale.alias", "locale.conf",
	"mime.types", "services", "protocols", "profile", "bash.bashrc", "inputrc", "terminfo", "magic", "fonts", "java-17-openjdk",
	"python3", "python3.11", "python3.12", "python3.13", "perl", "vim", "nanorc", "less", "login.defs", "ucf.conf", "debconf.conf",
}

// ownEtc are the files of /etc that are the same in every sandbox, whatever this machine's say.
var ownEtc = map[string]string{
	"passwd": "root:x:0:0:root:/root:/bin/bash\n" +
		"agent:x:1000:1000:agent:/workspace/.sandlot/home:/bin/bash\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"group":         "root:x:0:\ntty:x:5:\nagent:x:1000:\nnogroup:x:65534:\n",
	"hosts":         "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost\n",
	"hostname":      "sandbox\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
	"resolv.conf":   "",
	"shells":        "/bin/sh\n/bin/bash\n",
}

// ownDirs are directories that a root file system has.
var ownDirs = map[string]fs.FileMode{
	"root": 0o700, "home": 0o755, "opt": 0o755, "srv": 0o755, "mnt": 0o755, "media": 0o755, "run": 0o755, "etc": 0o755,
	"proc": 0o555, "sys": 0o555, "dev": 0o755, "tmp": 0o777 | fs.ModeSticky,
	"var": 0o755, "var/lib": 0o755, "var/log": 0o755, "var/cache": 0o755, "var/tmp": 0o777 | fs.ModeSticky, "var/spool": 0o755,
}

// hostLabel marks images that are made of this machine's own programs: those are mounted over them.
const hostLabel = "dev.sandlot.host"

// prepareHostImage makes the image "host": what programs need of /etc, and places for this machine's directories of programs, which are
// mounted when a sandbox starts. It is made once per start, so an update of the host's packages reaches new sandboxes then; where nothing
// has changed it is the same image. It returns the image's digest and the mounts that complete it.
func (e *Engine) prepareHostImage(ctx context.Context) (digest string, mounts []Mount, err error) {
	dir, err := os.MkdirTemp(e.cfg.Dir, "host-")
	if err != nil {
		return "", nil, err
	}
	defer os.RemoveAll(dir)
	for _, name := range hostEtc {
		if err := copyTree(filepath.Join("/etc", name), filepath.Join(dir, "etc", name)); err != nil {
			return "", nil, fmt.Errorf("copying /etc/%s: %w", name, err)
		}
	}
	for name, mode := range ownDirs {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, mode)); err != nil {
			return "", nil, err
		}
	}
	for name, text := range ownEtc {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			return "", nil, err
		}
	}
	if mounts, err = linkPrograms(dir); err != nil {
		return "", nil, err
	}
	layer, w := io.Pipe()
	go func() { w.CloseWithError(tarTree(dir, w)) }()
	defer layer.Close() // ends the writer
	img, err := e.images.Append(ctx, "", layer, func(s *image.Settings) { s.Labels = map[string]string{hostLabel: "1"} }, "this machine's own programs")
	return img.ID, mounts, err
}

// linkPrograms puts this machine's directories of programs into root: links as they are, directories as places to mount them.
func linkPrograms(root string) ([]Mount, error) {
	var mounts []Mount
	for _, dir := range hostDirs {
		fi, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		path := filepath.Join(root, dir)
		if fi.Mode()&fs.ModeSymlink == 0 {
			mounts = append(mounts, Mount{Source: dir, Target: dir})
			if err := os.Mkdir(path, 0o755); err != nil {
				return nil, err
			}
			continue
		}
		target, err := os.Readlink(dir)
		if err != nil {
			return nil, err
		}
		if err := os.Symlink(target, path); err != nil {
			return nil, err
		}
	}
	return mounts, nil
}

// tarTree writes a directory as a layer that depends on nothing but names, modes and contents. All of it is root's.
func tarTree(dir string, w io.Writer) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: strings.TrimPrefix(path, dir+"/"), Mode: int64(fi.Mode().Perm()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if fi.Mode()&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		var content []byte
		switch {
		case d.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		case fi.Mode()&fs.ModeSymlink != 0:
			h.Typeflag = tar.TypeSymlink
			if h.Linkname, err = os.Readlink(path); err != nil {
				return err
			}
		default:
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
			h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		_, err = out.Write(content)
		return err
	})
	return errors.Join(err, out.Close())
}

// copyTree copies what anybody may read: links as links, files of up to 4 MiB, directories whole. What isn't there or isn't
// for everybody's eyes is left out.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(path, from))
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		switch {
		case d.IsDir():
			if fi.Mode().Perm()&0o005 != 0o005 {
				return fs.SkipDir
			}
			return os.MkdirAll(dst, 0o755)
		case fi.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, dst)
		case fi.Mode().IsRegular() && fi.Mode().Perm()&0o004 != 0 && fi.Size() <= 4<<20:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if err := os.WriteFile(dst, data, 0o644); err != nil {
				return err
			}
			return os.Chmod(dst, fi.Mode().Perm()&0o755)
		default:
			return nil
		}
	})
}
