package rootfs

import (
	"path"
	"strings"
)

// What a path may be, as for Linux, so that everything in an image can be named inside a sandbox.
const (
	maxName   = 255
	maxPath   = 4095
	maxTarget = 4095
	maxDepth  = 2048 // of a directory: links can lead a path deeper than its own length
	maxLinks  = 40   // followed in one path
)

// Types of files, as in a mode.
const (
	typeMask    = 0o170000
	typeSocket  = 0o140000
	typeSymlink = 0o120000
	typeRegular = 0o100000
	typeBlock   = 0o060000
	typeDir     = 0o040000
	typeChar    = 0o020000
	typeFIFO    = 0o010000
)

// node is a name in the tree. There may be a million: keep it small.
type node struct {
	name   string
	parent *node // of the root: itself
	ino    *inode
	dir    *directory // nil if it is none
	layer  int32      // the last one that named this path or one below it
	depth  int32
}

// directory is what a node has that is one.
type directory struct {
	children map[string]*node
	sorted   []*node // instead of children, once the tree is complete
	opaque   int32   // the last layer that hid what lower ones have below
}

// inode is what hard links share.
type inode struct {
	extra *extra // nil for most
	mtime int64
	size  int64
	nsec  uint32
	uid   uint32
	gid   uint32
	rdev  uint32
	nlink uint32
	block uint32 // where the contents begin
	nid   uint32
	mode  uint16
}

// extra is what few inodes have.
type extra struct {
	target string // of a symbolic link
	xattrs []byte // as in the table of attributes
}

func (i *inode) target() string {
	if i.extra == nil {
		return ""
	}
	return i.extra.target
}

func (i *inode) xattrs() []byte {
	if i.extra == nil {
		return nil
	}
	return i.extra.xattrs
}

func (i *inode) is(typ uint16) bool { return i.mode&typeMask == typ }

func (n *node) isDir() bool { return n.dir != nil }

// child is the node of a name in a directory, or nil.
func (n *node) child(name string) *node { return n.dir.children[name] }

// sorted is what is in n, which may be no directory, in order.
func (n *node) sorted() []*node {
	if n.dir == nil {
		return nil
	}
	return n.dir.sorted
}

func newDirectory() *directory { return &directory{children: map[string]*node{}, opaque: -1} }

// tree is the merged image.
type tree struct {
	root  *node
	layer int32 // the one being applied
	added int64 // implied directories, too, and ones that are gone again
	meta  int64 // bytes of names, targets and attributes, likewise
	steps int64 // from directory to directory
	limit Limits
	freed func(*inode) // called when nothing names an inode any more
}

func newTree(l Limits, freed func(*inode)) *tree {
	r := &node{ino: &inode{mode: typeDir | 0o755, nlink: 1}, dir: newDirectory(), layer: -1}
	r.parent = r
	return &tree{root: r, limit: l, freed: freed}
}

// count charges one entry and its bytes in memory.
func (t *tree) count(bytes int) error {
	t.added++
	t.meta += int64(bytes)
	switch {
	case t.added > t.limit.Entries:
		return bad("the image has more than %d entries (limit Entries); use a smaller image, or raise the limit", t.limit.Entries)
	case t.meta > t.limit.Metadata:
		return bad("the image has more than %d bytes of names, links and attributes (limit Metadata); use a smaller image, or raise the limit",
			t.limit.Metadata)
	}
	return nil
}

// touch notes that the current layer named n, and so its parents: its whiteouts don't concern them.
func (t *tree) touch(n *node) {
	for n.layer != t.layer {
		n.layer = t.layer
		n = n.parent
	}
}

// add puts ino below parent, where name must be free.
func (t *tree) add(parent *node, name string, ino *inode) (*node, error) {
	if len(name) > maxName {
		return nil, bad("a name is longer than %d bytes", maxName)
	}
	if parent.depth >= maxDepth {
		return nil, bad("it is more than %d directories deep", maxDepth)
	}
	name = strings.Clone(name) // not a part of some long path that would be kept
	n := &node{name: name, parent: parent, ino: ino, layer: t.layer, depth: parent.depth + 1}
	if ino.is(typeDir) {
		n.dir = newDirectory()
	}
	parent.dir.children[name] = n
	ino.nlink++
	t.touch(parent)
	return n, nil
}

// remove takes n and all below it out of the tree.
func (t *tree) remove(n *node) {
	delete(n.parent.dir.children, n.name)
	t.drop(n)
}

func (t *tree) drop(n *node) {
	if n.isDir() {
		for _, c := range n.dir.children {
			t.drop(c)
		}
	}
	if n.ino.nlink--; n.ino.nlink == 0 {
		t.freed(n.ino)
	}
}

// hide is a whiteout of n: what lower layers put there is gone, what this layer put there stays, whatever the order.
func (t *tree) hide(n *node) {
	if n.layer != t.layer {
		t.remove(n)
		return
	}
	t.hideBelow(n)
}

// hideBelow is what an opaque directory asks for. Asked again, there is nothing left to do: a layer of such markers costs no more.
func (t *tree) hideBelow(n *node) {
	if !n.isDir() || n.dir.opaque == t.layer {
		return
	}
	n.dir.opaque = t.layer
	for _, c := range n.dir.children {
		t.hide(c)
	}
}

// stepsPerEntry is far more than real images need; without a bound, links to deep directories make every entry cost milliseconds.
const stepsPerEntry = 64

// walk finds the directory that p leads to, following links as the kernel does with / at the image's root: .. stops there. It is
// nil if there is none, unless imply is given: then missing directories are made, as old as imply.
func (t *tree) walk(p string, imply *inode) (*node, error) {
	cur, links := t.root, 0
	for rest := p; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if t.steps++; t.steps/stepsPerEntry > t.limit.Entries {
			return nil, bad("its paths are too deep in all (limit Entries times %d); use a smaller image, or raise the limit", stepsPerEntry)
		}
		switch name {
		case "", ".":
			continue
		case "..":
			cur = cur.parent
			continue
		}
		next := cur.child(name)
		switch {
		case next != nil && next.isDir():
			cur = next
		case next != nil && next.ino.is(typeSymlink):
			if links++; links > maxLinks {
				return nil, bad("its directory leads through more than %d symbolic links", maxLinks)
			}
			if path.IsAbs(next.ino.target()) {
				cur = t.root
			}
			rest = next.ino.target() + "/" + rest
		case imply == nil:
			return nil, nil
		default:
			if next != nil {
				if next.layer == t.layer {
					return nil, bad("its directory %q is a file of the same layer", name)
				}
				t.remove(next) // as if the layer had said that it is a directory
			}
			if err := t.count(len(name)); err != nil {
				return nil, err
			}
			dir := &inode{mode: typeDir | 0o755, mtime: imply.mtime, nsec: imply.nsec}
			made, err := t.add(cur, name, dir)
			if err != nil {
				return nil, err
			}
			cur = made
		}
	}
	return cur, nil
}

// lookup finds the node of p itself, if there is one: links lead to its directory, but it may be a link.
func (t *tree) lookup(p string) (*node, error) {
	dir, base := path.Split(p)
	parent, err := t.walk(dir, nil)
	if parent == nil || err != nil {
		return nil, err
	}
	return parent.child(base), nil
}

// put makes the path that is base in parent be ino, whatever was there. A directory stays one, with what is in it.
func (t *tree) put(parent *node, base string, ino *inode) error {
	if old := parent.child(base); old != nil {
		if old.isDir() && ino.is(typeDir) {
			ino.nlink = old.ino.nlink
			old.ino = ino
			t.touch(old)
			return nil
		}
		t.remove(old)
	}
	_, err := t.add(parent, base, ino)
	return err
}
