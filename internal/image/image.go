// Package image is the local engine's store of images. It pulls them from registries, takes and gives archives, and keeps of each one
// its layers as they came (blobs), its configuration, and one EROFS file that sandboxes use as their root.
//
// Everything is named by its content and lies below one directory, which one process owns at a time:
//
//	blobs/sha256/HEX   configurations and layers as they came: complete and verified, or absent
//	layers/HEX.json    what a layer unpacks to, and which registries have shown that they hold it
//	images/HEX.json    an image: its layers, and where it came from; written last, so what it names is there
//	roots/HEX.erofs    a root, named by its layers: images that differ in settings only share it
//	tmp/               work under way; what a dead process left there is removed by Open
//
// An image's ID is the digest of its configuration, as Docker's is. It is no secret and no permission: who may use which image is for
// the caller to know. The store itself gives content that it holds to nobody who couldn't have had it from their own registry; see Pull.
package image

import (
	"log/slog"
	"net/http"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Config says where a store is and what bounds it.
type Config struct {
	Dir string // absolute; made when needed

	// Transport leads to registries, their token servers and their storage; redirects pass through it too, so a guard against private
	// addresses belongs there. A *sandbox.Problem that it returns is handed on as it is. nil = Go's own, without any guard.
	Transport http.RoundTripper

	Platform   *v1.Platform  // which of an image's platforms to take; nil = linux on this machine's architecture
	MaxBytes   int64         // of one image, unpacked; 0 = 64 GiB
	MaxEntries int64         // files and directories of one image; 0 = what package rootfs takes
	Stall      time.Duration // a registry that sends no byte for so long has failed; 0 = 60 s
	Backoff    time.Duration // before the first retry, doubled for each one after it; 0 = 500 ms
	Log        *slog.Logger  // nil = none
}

// Image is one root file system and how to run it.
type Image struct {
	ID        string // "sha256:…", of its configuration
	Root      string // path of the EROFS file; "" from List and Inspect while there is none
	Config    Settings
	Layers    []Layer
	Size      int64 // of its layers, as they are stored
	RootSize  int64
	Platform  string // "linux/amd64"
	CreatedAt time.Time
	UsedAt    time.Time
	Names     []string // the references under which it came, oldest first; they may mean another image by now
}

// Layer is one layer of an image.
type Layer struct {
	Digest    string `json:"digest"`  // of the bytes as they are stored
	DiffID    string `json:"diff_id"` // of the tar in them
	MediaType string `json:"media_type"`
	Size      int64  `json:"size"`     // stored
	Unpacked  int64  `json:"unpacked"` // of the tar
}

// Settings are an image's own wishes about how it is run.
type Settings struct {
	Env        []string
	User       string
	Workdir    string
	Entrypoint []string
	Cmd        []string
	Shell      []string
	Labels     map[string]string
	Ports      []string // "8080/tcp"; sorted
	Volumes    []string // sorted
	StopSignal string
}

// Resolved is what a reference meant when it was looked up.
type Resolved struct {
	Reference string // canonical: "docker.io/library/python:3.12"
	Digest    string // of what the reference names, which may be a list of platforms
	Manifest  string // digest of the manifest for our platform
}

// Progress is a step of a pull or an import. Of one phase and layer, Done only grows; what comes too fast is left out.
type Progress struct {
	Phase string // "resolve", "pull", "unpack" (the root is written), "done"
	Layer string // digest; "" when it is about the whole image
	Done  int64
	Total int64
	Text  string // one sentence
}

// The phases of Progress.
const (
	PhaseResolve = "resolve"
	PhasePull    = "pull"
	PhaseUnpack  = "unpack"
	PhaseDone    = "done"
)

// Format is the form of an exported archive.
type Format string

// The formats of Export.
const (
	OCI    Format = "oci"    // a tar of an OCI image layout
	Docker Format = "docker" // what `docker save` writes
)

// The bounds on what others send us as JSON. Real manifests have a few KB; the specification asks registries to take 4 MiB.
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	maxLayers   = 512
	maxListed   = 1024 // manifests of one index
)
