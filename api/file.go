package api

import "time"

// HeaderMode says which permission bits a written file gets, as octal digits.
const HeaderMode = "Sandlot-Mode"

// File is an entry of a sandbox's file system.
type File struct {
	Name    string    `json:"name"`
	Path    string    `json:"path"`
	Escaped string    `json:"escaped,omitempty" doc:"The path as it stands in an address, percent-encoded: for names that are not UTF-8, which JSON can't hold."`
	Type    string    `json:"type" enum:"file,directory,symlink,other"`
	Size    int64     `json:"size"`
	Mode    string    `json:"mode" example:"0644"`
	UID     int       `json:"uid"`
	GID     int       `json:"gid"`
	ModTime time.Time `json:"mod_time"`
	Target  string    `json:"target,omitempty" doc:"Of a symlink: where it leads."`
	ETag    string    `json:"etag,omitempty" doc:"Of a file: changes with every change. Send it as If-Match to replace just this version." example:"\"2f1-5-18a-18b\""`
}

// FileList is a directory, or a page of it, by name.
type FileList struct {
	Path       string `json:"path"`
	Entries    []File `json:"entries"`
	NextCursor string `json:"next_cursor,omitempty" doc:"Give it as cursor to get the next page; absent on the last."`
}

// The operations of FileOp.
const (
	FileMkdir = "mkdir"
	FileMove  = "move"
	FileCopy  = "copy"
	FileChmod = "chmod"
)

// FileOp is something to do with a file or directory that a request's path names.
type FileOp struct {
	Op        string `json:"op" enum:"mkdir,move,copy,chmod" doc:"mkdir: make a directory, with those above it. move, copy: to another path, a directory with all that is in it. chmod: change permission bits."`
	To        string `json:"to,omitempty" doc:"For move and copy: the new path. Directories above it are made." example:"/workspace/other.go"`
	ToEscaped string `json:"to_escaped,omitempty" doc:"The same, percent-encoded, for a name that is not UTF-8." example:"/workspace/caf%E9"`
	Overwrite bool   `json:"overwrite,omitempty" doc:"For move and copy: replace a file that is there. Default: that is refused with exists."`
	Mode      string `json:"mode,omitempty" pattern:"^[0-7]{1,5}$" doc:"For chmod and mkdir: octal permission bits." example:"0755"`
	Owner     string `json:"owner,omitempty" doc:"For mkdir: agent, root, or a user of the sandbox by name or number. Default: agent."`
}

// Unpacked tells what became of an archive.
type Unpacked struct {
	Entries int             `json:"entries" doc:"Files, directories and links that were written."`
	Bytes   int64           `json:"bytes" doc:"Of files."`
	Refused int             `json:"refused" doc:"Entries that were not written."`
	Errors  []UnpackRefusal `json:"errors,omitempty" doc:"The first hundred of those."`
}

// UnpackRefusal is an entry of an archive that was not written.
type UnpackRefusal struct {
	Name   string `json:"name"`
	Code   string `json:"code" example:"bad_name"`
	Detail string `json:"detail"`
}

// The events of a watch.
const (
	FileReady    = "ready"
	FileCreated  = "created"
	FileModified = "modified"
	FileRemoved  = "removed"
	FileMoved    = "moved"
	FileResync   = "resync"
	FilePartial  = "partial"
)

// FileChange is the data of an event of a watch.
type FileChange struct {
	File        *File  `json:"file,omitempty" doc:"What it is now; after removed only its name, path and type."`
	From        string `json:"from,omitempty" doc:"For moved: where it was."`
	FromEscaped string `json:"from_escaped,omitempty" doc:"The same, percent-encoded, for a name that is not UTF-8."`
}
