package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

// prepareHostImage copies what image "host" needs of /etc into dir/etc, once per start: an update of the host's packages
// reaches new sandboxes with the next start of the server.
func prepareHostImage(dir string) error {
	fresh, err := os.MkdirTemp(filepath.Dir(dir), "host-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	etc := filepath.Join(fresh, "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		return err
	}
	for _, name := range hostEtc {
		if err := copyTree(filepath.Join("/etc", name), filepath.Join(etc, name)); err != nil {
			return fmt.Errorf("copying /etc/%s: %w", name, err)
		}
	}
	for name, text := range ownEtc {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	// Sandboxes of before hold hard links to the old files, so removing those is safe.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
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

// makeRoot builds the root directory of a sandbox with image "host" and returns the bind mounts that complete it. The writable
// layer lies over it, so hard links to the prepared files are safe: nothing inside can write to them.
func makeRoot(image, root string) ([]Mount, error) {
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	for name, mode := range ownDirs {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return nil, err
		}
		if err := os.Chmod(path, mode); err != nil {
			return nil, err
		}
	}
	if err := linkTree(filepath.Join(image, "etc"), filepath.Join(root, "etc")); err != nil {
		return nil, err
	}
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

// linkTree repeats the tree from at to: directories and links made anew, files as hard links.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case d.IsDir():
			return os.MkdirAll(dst, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, dst)
		default:
			return os.Link(path, dst)
		}
	})
}

// chownDirs gives the directories of a sandbox's root to the root user inside. Files are shared with other sandboxes and stay
// the server's: readable, and never written to.
func chownDirs(root string, id int) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Lchown(path, id, id)
	})
}
