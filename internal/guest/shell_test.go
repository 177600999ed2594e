package guest

import (
	"os"
	"path/filepath"
	"testing"
)

func TestShellOfAUser(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		passwd   string // the shell of the agent
		programs []string
		user     string
		want     string
	}{
		"its own":               {"/usr/bin/fish", []string{"usr/bin/fish", "bin/bash"}, "", "/usr/bin/fish"},
		"its own is not there":  {"/usr/bin/fish", []string{"bin/bash"}, "", "/bin/bash"},
		"sh means no choice":    {"/bin/sh", []string{"bin/sh", "opt/tools/bash", "usr/bin/bash"}, "", "/opt/tools/bash"},
		"none, and no bash":     {"", []string{"bin/sh"}, "", "/bin/sh"},
		"relative":              {"fish", []string{"fish", "bin/sh"}, "", "/bin/sh"},
		"nobody may log in":     {"/usr/sbin/nologin", []string{"usr/sbin/nologin", "usr/bin/bash"}, "", "/usr/bin/bash"},
		"our stand-in for bash": {"/bin/sh", []string{Shell[1:]}, "", "/bin/sh"},
		"another user's":        {"/usr/bin/fish", []string{"usr/bin/fish", "bin/zsh"}, UserRoot, "/bin/zsh"},
		"no such user":          {"/usr/bin/fish", []string{"usr/bin/fish", "bin/bash"}, "nobody", "/bin/bash"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := rootWith(t, map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/zsh\nagent:x:1000:1000::/home:" + c.passwd + "\n"})
			for _, p := range c.programs {
				path := filepath.Join(root, p)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, nil, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			s := &Server{cfg: Config{Root: root, AgentUID: 1000, AgentGID: 1000}, env: map[string]string{"PATH": filepath.Dir(Shell) + ":/opt/tools"}}
			if got := s.shell(c.user); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
