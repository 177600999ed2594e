package sandbox

import (
	"encoding/json"
	"time"
)

// HostImage is the image made of this machine's own programs.
const HostImage = "host"

// Image is a sandbox's root file system: what was asked for and, once it lies ready, what that is.
type Image struct {
	Source       string   `json:"source"`             // HostImage, a registry reference, or the ID of an image of the account
	Commands     []string `json:"commands,omitempty"` // Dockerfile commands that are run on top of it
	Secret       string   `json:"secret,omitempty"`   // name of the account's secret for the registry
	BuildSecrets []string `json:"build_secrets,omitempty"`

	Base     string        `json:"base,omitempty"`   // the engine's name for what Source stands for, where it is known; else "" until a pull
	Digest   string        `json:"digest,omitempty"` // the engine's name for what lies ready; "" until then, and for HostImage
	Settings ImageSettings `json:"settings,omitzero"`
}

// ImageSettings is what an image says of the processes in it.
type ImageSettings struct {
	Env        map[string]string `json:"env,omitempty"`
	User       string            `json:"user,omitempty"`    // as the image says it: a name or a number, perhaps with a group; "" = none
	Agent      string            `json:"agent,omitempty"`   // that user as "uid:gid", as the engine found it
	Workdir    string            `json:"workdir,omitempty"` // "" = none
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
}

// IsHost reports whether the image is made of this machine's own programs, unchanged.
func (i Image) IsHost() bool { return i.Source == HostImage && len(i.Commands) == 0 }

// UnmarshalJSON also takes the form of specs that were recorded when an image was only a name.
func (i *Image) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		return json.Unmarshal(data, &i.Source)
	}
	type plain Image
	return json.Unmarshal(data, (*plain)(i))
}

// StoredImage is an image that an account has: pulled, built, imported, or a snapshot.
type StoredImage struct {
	ID        string // "img_" and a ULID
	Account   string
	Name      string // the reference as it was asked for; for a snapshot or an import, a name for people
	Recipe    string // tells images of one name apart: a digest of the commands run on top, "" if there are none
	Kind      ImageKind
	Digest    string // the engine's name for it; several accounts may share one
	Engine    string
	Settings  ImageSettings
	Size      int64  // bytes on disk, shared layers included
	Origin    ID     // of a snapshot: the sandbox
	Reference string // of what came from a registry: the reference with the manifest's digest
	Platform  string // "linux/amd64"
	CreatedAt time.Time
	UsedAt    time.Time
}

// ImageKind says where an image comes from.
type ImageKind string

// The kinds of image.
const (
	ImagePulled   ImageKind = "registry"
	ImageBuilt    ImageKind = "build"
	ImageImported ImageKind = "import"
	ImageSnapshot ImageKind = "snapshot"
)
