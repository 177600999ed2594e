package build_test

import (
	"archive/tar"
	"context"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"github.com/sandlot-dev/sandlot/internal/image"
	"github.com/sandlot-dev/sandlot/internal/image/build"
)

// added lists what an image has over the base: name, mode, owner, and content or target.
func (r *rig) added(img *memImage) map[string]string {
	got := map[string]string{}
	base := r.images.get(r.base)
	for name, f := range img.files {
		if base.files[name] == f {
			continue
		}
		h, _ := f.Sys.(*tar.Header)
		got[name] = fmt.Sprintf("%s %d:%d %s", f.Mode, h.Uid, h.Gid, f.Data)
	}
	return got
}

var toolFiles = []file{
	{name: "bin/a.sh", data: "A", mode: 0o755}, {name: "bin/b.sh", data: "B", mode: 0o4755, uid: 3, gid: 4}, {name: "bin/c", data: "C"},
	{name: "tree/", mode: 0o700, uid: 5}, {name: "tree/sub/", mode: 0o750, uid: 5}, {name: "tree/sub/deep", data: "deep", uid: 5, gid: 6},
	{name: "tree/link", link: "sub/deep"}, {name: "tree/abs", link: "/bin/a.sh"}, {name: "tree/out", link: "../../../../etc/passwd"},
	{name: "tree/dirlink", link: "sub"}, {name: "toplink", link: "/tree"}, {name: "filelink", link: "bin/c"},
	{name: "etc/passwd", data: "tool's own"}, {name: "loop", link: "/loop2"}, {name: "loop2", link: "loop"},
	{name: "climb", link: "../../../../../../bin"}, {name: "sp ace", data: "S"}, {name: "arr[0]", data: "0"},
	{name: "onlib/lib/", mode: 0o755}, {name: "onlib/lib/x", data: "x"}, {name: "onapp/app/", mode: 0o711, uid: 9}, {name: "onapp/app/y", data: "y"},
	{name: "onfile/afile/"}, {name: "ondir/opt", data: "file"}, {name: "onlink/out", data: "new"},
	{name: "wh/.wh.etc", data: ""}, {name: "dev/null", kind: tar.TypeChar}, {name: "dev/pipe", kind: tar.TypeFifo}, {name: "dev/real", data: "r"},
}

// TestCopy compares COPY --from with what Docker does.
func TestCopy(t *testing.T) {
	for name, tc := range map[string]struct {
		commands []string
		want     map[string]string
	}{
		"file to file":       {[]string{"COPY --from=tools /bin/a.sh /x"}, map[string]string{"x": "-rwxr-xr-x 0:0 A"}},
		"relative source":    {[]string{"COPY --from=tools bin/a.sh /x"}, map[string]string{"x": "-rwxr-xr-x 0:0 A"}},
		"climbing source":    {[]string{"COPY --from=tools ../../bin/a.sh /x"}, map[string]string{"x": "-rwxr-xr-x 0:0 A"}},
		"keeps owner":        {[]string{"COPY --from=tools /bin/b.sh /x"}, map[string]string{"x": "urwxr-xr-x 3:4 B"}},
		"file over file":     {[]string{"COPY --from=tools /bin/c /afile"}, map[string]string{"afile": "-rw-r--r-- 0:0 C"}},
		"file to new dir":    {[]string{"COPY --from=tools /bin/c /n/m/"}, map[string]string{"n": "drwxr-xr-x 0:0 ", "n/m": "drwxr-xr-x 0:0 ", "n/m/c": "-rw-r--r-- 0:0 C"}},
		"file to new path":   {[]string{"COPY --from=tools /bin/c /n/m"}, map[string]string{"n": "drwxr-xr-x 0:0 ", "n/m": "-rw-r--r-- 0:0 C"}},
		"file into dir":      {[]string{"COPY --from=tools /bin/c /opt/app"}, map[string]string{"opt/app/c": "-rw-r--r-- 0:0 C"}},
		"file to workdir":    {[]string{"WORKDIR /opt/app", "COPY --from=tools /bin/c ."}, map[string]string{"opt/app/c": "-rw-r--r-- 0:0 C"}},
		"relative dest":      {[]string{"WORKDIR /opt/app", "COPY --from=tools /bin/c d/e"}, map[string]string{"opt/app/d": "drwxr-xr-x 0:0 ", "opt/app/d/e": "-rw-r--r-- 0:0 C"}},
		"dest through link":  {[]string{"COPY --from=tools /bin/c /lib/c"}, map[string]string{"usr/lib/c": "-rw-r--r-- 0:0 C"}},
		"dest is a dir link": {[]string{"COPY --from=tools /bin/c /lib"}, map[string]string{"usr/lib/c": "-rw-r--r-- 0:0 C"}},
		"dest link climbs":   {[]string{"COPY --from=tools /bin/c /out/"}, map[string]string{"opt/app/c": "-rw-r--r-- 0:0 C"}},
		"dest link dangles":  {[]string{"COPY --from=tools /bin/c /dangling"}, map[string]string{"not": "drwxr-xr-x 0:0 ", "not/there": "-rw-r--r-- 0:0 C"}},
		"dest climbs":        {[]string{"COPY --from=tools /bin/c ../../../x"}, map[string]string{"x": "-rw-r--r-- 0:0 C"}},
		"link followed":      {[]string{"COPY --from=tools /filelink /x"}, map[string]string{"x": "-rw-r--r-- 0:0 C"}},
		"link's own name":    {[]string{"COPY --from=tools /filelink /opt/app/"}, map[string]string{"opt/app/filelink": "-rw-r--r-- 0:0 C"}},
		"link in the path":   {[]string{"COPY --from=tools /climb/c /x"}, map[string]string{"x": "-rw-r--r-- 0:0 C"}},
		"link out of image":  {[]string{"COPY --from=tools /tree/out /x"}, map[string]string{"x": "-rw-r--r-- 0:0 tool's own"}},
		"directory": {[]string{"COPY --from=tools /tree /t"}, map[string]string{"t": "drwxr-xr-x 0:0 ", "t/sub": "drwxr-x--- 5:0 ", "t/sub/deep": "-rw-r--r-- 5:6 deep",
			"t/link": "Lrwxrwxrwx 0:0 sub/deep", "t/abs": "Lrwxrwxrwx 0:0 /bin/a.sh", "t/out": "Lrwxrwxrwx 0:0 ../../../../etc/passwd", "t/dirlink": "Lrwxrwxrwx 0:0 sub"}},
		"directory by link":   {[]string{"COPY --from=tools /toplink/sub/ /t"}, map[string]string{"t": "drwxr-xr-x 0:0 ", "t/deep": "-rw-r--r-- 5:6 deep"}},
		"directory into dir":  {[]string{"COPY --from=tools /tree/sub /opt/app"}, map[string]string{"opt/app/deep": "-rw-r--r-- 5:6 deep"}},
		"merge below":         {[]string{"COPY --from=tools /onapp /opt"}, map[string]string{"opt/app": "drwx--x--x 9:0 ", "opt/app/y": "-rw-r--r-- 0:0 y"}},
		"replaces a link":     {[]string{"COPY --from=tools /onlink /"}, map[string]string{"out": "-rw-r--r-- 0:0 new"}},
		"wildcard":            {[]string{"COPY --from=tools /bin/*.sh /x/"}, map[string]string{"x": "drwxr-xr-x 0:0 ", "x/a.sh": "-rwxr-xr-x 0:0 A", "x/b.sh": "urwxr-xr-x 3:4 B"}},
		"wildcard in the way": {[]string{"COPY --from=tools /t*e/s?b/deep /x"}, map[string]string{"x": "-rw-r--r-- 5:6 deep"}},
		"wildcard after link": {[]string{"COPY --from=tools /climb/[ab].sh /opt/app"}, map[string]string{"opt/app/a.sh": "-rwxr-xr-x 0:0 A", "opt/app/b.sh": "urwxr-xr-x 3:4 B"}},
		"wildcard escaped":    {[]string{"COPY --from=tools /arr[[]0] /x"}, map[string]string{"x": "-rw-r--r-- 0:0 0"}},
		"wildcard of dirs":    {[]string{"COPY --from=tools /tr*/su* /x/"}, map[string]string{"x": "drwxr-xr-x 0:0 ", "x/deep": "-rw-r--r-- 5:6 deep"}},
		"several":             {[]string{"COPY --from=tools /bin/a.sh /tree/sub /x/"}, map[string]string{"x": "drwxr-xr-x 0:0 ", "x/a.sh": "-rwxr-xr-x 0:0 A", "x/deep": "-rw-r--r-- 5:6 deep"}},
		"later wins":          {[]string{"COPY --from=tools /bin/c /filelink /x/", "COPY --from=tools /bin/a.sh /x/c"}, map[string]string{"x": "drwxr-xr-x 0:0 ", "x/c": "-rwxr-xr-x 0:0 A", "x/filelink": "-rw-r--r-- 0:0 C"}},
		"spaces":              {[]string{`COPY --from=tools ["/sp ace", "/x y"]`}, map[string]string{"x y": "-rw-r--r-- 0:0 S"}},
		"variables":           {[]string{"ARG F=a M=600 O=7", "COPY --from=tools --chmod=$M --chown=$O /bin/${F}.sh /$F"}, map[string]string{"a": "-rw------- 7:7 A"}},
		"devices left out":    {[]string{"COPY --from=tools /dev /d"}, map[string]string{"d": "drwxr-xr-x 0:0 ", "d/real": "-rw-r--r-- 0:0 r"}},
		"chown number":        {[]string{"COPY --from=tools --chown=7 /bin/b.sh /n/x"}, map[string]string{"n": "drwxr-xr-x 7:7 ", "n/x": "urwxr-xr-x 7:7 B"}},
		"chown both":          {[]string{"COPY --from=tools --chown=7:8 /tree/sub /x"}, map[string]string{"x": "drwxr-xr-x 7:8 ", "x/deep": "-rw-r--r-- 7:8 deep"}},
		"chown name":          {[]string{"COPY --from=tools --chown=agent /bin/c /x"}, map[string]string{"x": "-rw-r--r-- 1000:1001 C"}},
		"chown name:group":    {[]string{"COPY --from=tools --chown=agent:wheel /bin/c /x"}, map[string]string{"x": "-rw-r--r-- 1000:10 C"}},
		"chown keeps dest":    {[]string{"COPY --from=tools --chown=7 /tree/sub /opt/app/"}, map[string]string{"opt/app/deep": "-rw-r--r-- 7:7 deep"}},
		"chmod octal":         {[]string{"COPY --from=tools --chmod=0711 /tree/sub /x"}, map[string]string{"x": "drwx--x--x 0:0 ", "x/deep": "-rwx--x--x 5:6 deep"}},
		"chmod symbolic":      {[]string{"COPY --from=tools --chmod=go-r,u+x /tree /x/"}, map[string]string{"x": "drwxr-xr-x 0:0 ", "x/sub": "drwx--x--- 5:0 ", "x/sub/deep": "-rwx------ 5:6 deep", "x/link": "Lrwxrwxrwx 0:0 sub/deep", "x/abs": "Lrwxrwxrwx 0:0 /bin/a.sh", "x/out": "Lrwxrwxrwx 0:0 ../../../../etc/passwd", "x/dirlink": "Lrwxrwxrwx 0:0 sub"}},
		"link flag":           {[]string{"COPY --link --from=tools /bin/c /lib/c"}, map[string]string{"lib": "drwxr-xr-x 0:0 ", "lib/c": "-rw-r--r-- 0:0 C"}},
		"heredoc":             {[]string{"ENV WHO=you", "COPY <<EOF /etc/motd", "hi '$WHO' \\$WHO", "EOF"}, map[string]string{"etc/motd": "-rw-r--r-- 0:0 hi 'you' $WHO\n"}},
		"heredoc quoted":      {[]string{"COPY --chown=agent <<'EOF' /x/", "$WHO", "EOF"}, map[string]string{"x": "drwxr-xr-x 1000:1001 ", "x/EOF": "-rw-r--r-- 1000:1001 $WHO\n"}},
		"heredocs":            {[]string{"COPY --from=tools <<a <<-b /bin/c /x/", "1", "a", "\t2", "\tb"}, map[string]string{"x": "drwxr-xr-x 0:0 ", "x/a": "-rw-r--r-- 0:0 1\n", "x/b": "-rw-r--r-- 0:0 2\n", "x/c": "-rw-r--r-- 0:0 C"}},
		"ADD heredoc":         {[]string{"ADD --chmod=755 <<x /bin/x", "#!", "x"}, map[string]string{"bin/x": "-rwxr-xr-x 0:0 #!\n"}},
		"WORKDIR":             {[]string{"USER agent", "WORKDIR /w/x"}, map[string]string{"w": "drwxr-xr-x 1000:1001 ", "w/x": "drwxr-xr-x 1000:1001 "}},
		"WORKDIR there":       {[]string{"WORKDIR /opt/app"}, map[string]string{}},
		"WORKDIR by link":     {[]string{"WORKDIR /lib/x"}, map[string]string{"usr/lib/x": "drwxr-xr-x 0:0 "}},
		"WORKDIR climbing":    {[]string{"WORKDIR /out/x"}, map[string]string{"opt/app/x": "drwxr-xr-x 0:0 "}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Settings{})
			r.images.add("tools", image.Settings{}, toolFiles...)
			if got := r.added(r.must(tc.commands...)); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("added\n%v, want\n%v", got, tc.want)
			}
			made := r.images.appends
			r.must(tc.commands...)
			if r.images.appends != made {
				t.Error("the second build made it again")
			}
		})
	}
}

func TestCopyRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		commands []string
		text     string
	}{
		"missing":              {[]string{"", "COPY --from=tools /nope /x"}, `line 2: COPY --from=tools /nope /x: the image has no "/nope"`},
		"missing link":         {[]string{"COPY --from=base /dangling /x"}, "has no"},
		"below a file":         {[]string{"COPY --from=tools /bin/c/d /x"}, "has no"},
		"loop":                 {[]string{"COPY --from=tools /loop /x"}, "too many symbolic links"},
		"dest loop":            {[]string{"COPY --from=tools /bin/c /loop/x"}, "too many symbolic links"},
		"dest below a file":    {[]string{"COPY --from=tools /bin/c /afile/x"}, `"/afile" is a file, not a directory`},
		"dest dir is a file":   {[]string{"COPY --from=tools /bin/c /afile/"}, `"/afile" is a file, not a directory`},
		"directory onto file":  {[]string{"COPY --from=tools /tree /afile"}, `"/afile" is a file, not a directory`},
		"below onto file":      {[]string{"COPY --from=tools /onfile /"}, `can't copy a directory onto "/afile"`},
		"below onto link":      {[]string{"COPY --from=tools /onlib /"}, `can't copy a directory onto "/lib"`},
		"file onto directory":  {[]string{"COPY --from=tools /ondir /"}, `can't replace the directory "/opt"`},
		"onto the root":        {[]string{"COPY <<EOF /", "a", "EOF", "COPY --from=tools /bin/c /EOF/c"}, `line 4`},
		"many to a file":       {[]string{"COPY --from=tools /bin/* /x"}, "the sources are 3"},
		"bad pattern":          {[]string{"COPY --from=tools /bin/[ /x"}, "not a valid pattern"},
		"whiteout":             {[]string{"COPY --from=tools /wh /"}, ".wh."},
		"whiteout by name":     {[]string{"COPY --from=tools /bin/c /.wh.etc"}, ".wh."},
		"whiteout directory":   {[]string{"WORKDIR /.wh.etc/x"}, ".wh."},
		"unknown owner":        {[]string{"COPY --from=tools --chown=nobody /bin/c /x"}, `no user "nobody"`},
		"unknown group":        {[]string{"COPY --from=tools --chown=agent:nobody /bin/c /x"}, `no group "nobody"`},
		"chmod by variable":    {[]string{"ARG M=abc", "COPY --from=tools --chmod=$M /bin/c /x"}, "--chmod=abc"},
		"WORKDIR is a file":    {[]string{"WORKDIR /afile"}, `"/afile" is a file`},
		"WORKDIR unknown user": {[]string{"USER nobody", "WORKDIR /x"}, "no such user"},
		"unknown image":        {[]string{"COPY --from=nope /x /y"}, "line 1: COPY --from=nope /x /y: there is no image nope"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Settings{})
			r.images.add("tools", image.Settings{}, toolFiles...)
			_, _, err := r.build(r.request(tc.commands...))
			code := "dockerfile_invalid"
			if name == "unknown image" {
				code = "image_not_found"
			}
			problem(t, err, code, tc.text)
		})
	}
}

func TestCopyCache(t *testing.T) {
	r := newRig(t, image.Settings{})
	r.images.add("tools", image.Settings{}, toolFiles...)
	commands := []string{"COPY --from=tools /bin/c /x", "COPY --from=tools /bin/c /y"}
	first := r.must(commands...)
	if r.images.pulls != 1 {
		t.Errorf("pulled %d times in one build", r.images.pulls)
	}
	r.images.add("tools", image.Settings{}, file{name: "bin/c", data: "new"})
	second := r.must(commands...)
	if string(first.files["x"].Data) != "C" || string(second.files["x"].Data) != "new" {
		t.Errorf("after the image changed the copy is %q", second.files["x"].Data)
	}
	if got := r.kinds(); got[1] != build.KindLog || r.events[1].Data != "pulling tools" || r.events[1].Line != 1 {
		t.Errorf("events are %+v", r.events)
	}
}

func TestCopyKeepsAttributes(t *testing.T) {
	r := newRig(t, image.Settings{})
	id := r.images.add("tools", image.Settings{}, file{name: "ping", data: "p"})
	h := r.images.get(id).files["ping"].Sys.(*tar.Header)
	h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00cap", "SCHILY.xattr.trusted.overlay.opaque": "y"}
	got := r.must("COPY --from=tools /ping /bin/ping").files["bin/ping"]
	gh := got.Sys.(*tar.Header)
	if gh.PAXRecords["SCHILY.xattr.security.capability"] != "\x01\x00cap" || gh.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"] != "" {
		t.Errorf("attributes are %q", gh.PAXRecords)
	}
	if got.ModTime.Unix() != 1_000_000 {
		t.Errorf("time is %v", got.ModTime)
	}
}

// TestCopyShortFile has an image whose file holds less than it says.
func TestCopyShortFile(t *testing.T) {
	r := newRig(t, image.Settings{})
	r.images.add("tools", image.Settings{}, file{name: "x", data: "abc"})
	req := r.request("COPY --from=tools /x /y")
	req.Images = lying{r.images}
	_, _, err := r.build(req)
	if err == nil || !strings.Contains(err.Error(), "3 of 1003 bytes") || len(r.images.cache) != 0 {
		t.Errorf("error is %v", err)
	}
}

type lying struct{ *memImages }

func (l lying) Files(ctx context.Context, id string) (build.Files, error) {
	f, err := l.memImages.Files(ctx, id)
	return lyingFiles{f}, err
}

type lyingFiles struct{ build.Files }

func (l lyingFiles) Lstat(name string) (fs.FileInfo, error) {
	info, err := l.Files.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return info, err
	}
	return lyingInfo{info}, nil
}

type lyingInfo struct{ fs.FileInfo }

func (l lyingInfo) Size() int64 { return l.FileInfo.Size() + 1000 }
