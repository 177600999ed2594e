package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rootWith makes a root directory with files in it.
func rootWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestUsersAreLookedUpInTheSandbox(t *testing.T) {
	root := rootWith(t, map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n\nbroken\nnode:x:1000:1001:Node:/home/node:/bin/sh\nbig:x:4294967295:0::/:\nlast:x:7:7::/:",
		"etc/group":  "root:x:0:\nnodes:x:1001:\naudio:x:29:pulse,node\nvideo:x:44:node\n",
	})
	for user, want := range map[string]identity{
		"node":         {name: "node", uid: 1000, gid: 1001, groups: []uint32{29, 44}},
		"1000":         {name: "node", uid: 1000, gid: 1001, groups: []uint32{29, 44}},
		"node:video":   {name: "node", uid: 1000, gid: 44},
		"1000:5":       {name: "node", uid: 1000, gid: 5},
		"4242":         {name: "4242", uid: 4242},
		"4242:audio":   {name: "4242", uid: 4242, gid: 29},
		"last":         {name: "last", uid: 7, gid: 7},
		"0":            {name: "root"},
		"nobody":       {},
		"node:nothing": {},
		"big":          {}, // its number means "unchanged" to the kernel
		":5":           {},
		"node:":        {},
		"4294967295":   {},
		"-1":           {},
	} {
		got, err := lookupUser(root, user)
		if want.name == "" {
			var no *Error
			if !errors.As(err, &no) || no.Field != "user" || no.Status != 400 {
				t.Errorf("%q: %+v, %v; want a refusal", user, got, err)
			}
			continue
		}
		if err != nil || got.name != want.name || got.uid != want.uid || got.gid != want.gid || len(got.groups) != len(want.groups) {
			t.Errorf("%q: %+v, %v; want %+v", user, got, err, want)
		}
	}
}

func TestTheAgentHasTheImagesName(t *testing.T) {
	root := rootWith(t, map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001:Node:/home/node:/bin/sh\n"})
	for uid, want := range map[int]string{0: UserRoot, 1000: "node", 4242: UserAgent} {
		s := &Server{cfg: Config{Root: root, AgentUID: uid, AgentGID: 7}}
		for _, user := range []string{"", UserAgent} {
			if got, err := s.who(user); err != nil || got.name != want || got.uid != uint32(uid) || got.gid != 7 {
				t.Errorf("%q with uid %d is %+v, %v; want %s", user, uid, got, err, want)
			}
		}
	}
}

func TestAnImageIsFurnished(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		uid   int
		want  map[string]string // file → what it must hold
	}{
		"nothing at all": {nil, 1000, map[string]string{
			"etc/passwd": "agent:x:1000:1000:agent:/work/home:/bin/sh\n", "etc/group": "agent:x:1000:\n", "etc/hosts": "127.0.0.1", "etc/hostname": "sandbox",
		}},
		"places for a runtime": {map[string]string{"etc/hosts": "", "etc/hostname": ""}, 1000, map[string]string{"etc/hosts": "127.0.0.1"}},
		"a last line without an end": {map[string]string{"etc/passwd": "root:x:0:0::/:"}, 1000, map[string]string{
			"etc/passwd": "root:x:0:0::/:\nagent:x:1000:"}},
		"the user is there": {map[string]string{"etc/passwd": "node:x:1000:1000::/home/node:/bin/sh\n"}, 1000, map[string]string{"etc/passwd": "node:x:1000:1000::/home/node:/bin/sh\n"}},
		"only root":         {map[string]string{"etc/passwd": "root:x:0:0::/:\n"}, 0, map[string]string{"etc/passwd": "root:x:0:0::/:\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := rootWith(t, tc.files)
			for range 2 { // a second time changes nothing
				if err := furnish(root, tc.uid, tc.uid, "/work/home"); err != nil {
					t.Fatal(err)
				}
			}
			for file, text := range tc.want {
				b, err := os.ReadFile(filepath.Join(root, file))
				if err != nil || strings.Count(string(b), text) != 1 {
					t.Errorf("%s: %q, %v; want %q once", file, b, err, text)
				}
			}
			if fi, err := os.Stat(filepath.Join(root, "tmp")); err != nil || fi.Mode() != os.ModeDir|os.ModeSticky|0o777 {
				t.Errorf("/tmp: %v, %v", fi, err)
			}
		})
	}
	for have, want := range map[string]error{"bin/sh": nil, "bin/bash": os.ErrNotExist, "usr/local/bin/zsh": os.ErrNotExist} {
		root := rootWith(t, map[string]string{have: ""})
		if err := furnish(root, 1000, 1000, "/h"); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(filepath.Join(root, Shell))
		if !errors.Is(err, want) || err == nil && fi.Mode().Perm() != 0o755 {
			t.Errorf("an image with %s has %v, %v", have, fi, err)
		}
	}
	root := rootWith(t, map[string]string{"etc/passwd": "root:x:0:0::/:\nagent:x:500:500::/:\n"})
	if err := furnish(root, 1000, 1000, "/h"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "etc/passwd")); err != nil || strings.Contains(string(b), "1000") {
		t.Errorf("a name that the image has was taken: %q, %v", b, err)
	}
}
