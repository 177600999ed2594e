package api

import "time"

// Image says which root file system a sandbox gets, or which is to be prepared.
type Image struct {
	Registry           string   `json:"registry,omitempty" maxLength:"1024" doc:"A reference to any registry's image, by tag or digest. \"host\": the server machine's own /usr and a few harmless files of /etc, read-only." example:"docker.io/library/python:3.12-slim"`
	Snapshot           string   `json:"snapshot,omitempty" maxLength:"64" doc:"Instead of registry: the ID of an image that the account has, a snapshot for example." example:"img_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
	DockerfileCommands []string `json:"dockerfile_commands,omitempty" maxItems:"1000" doc:"Run on top of it, each step cached: RUN, ENV, ARG, WORKDIR, USER, COPY and ADD from images and URLs, and so on." example:"[\"RUN pip install requests\"]"`
	RegistrySecret     string   `json:"registry_secret,omitempty" maxLength:"64" doc:"Name of the account's secret that opens the registry: USERNAME and PASSWORD; DOCKER_CONFIG_JSON; REGISTRY_TOKEN; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; or SERVICE_ACCOUNT_JSON."`
	Secrets            []string `json:"secrets,omitempty" maxItems:"32" doc:"Names of secrets whose values RUN commands get as environment. They are not kept in the image; a changed value alone does not run a command again."`
}

// ImageInfo is what is known of a sandbox's image.
type ImageInfo struct {
	Image
	Digest     string   `json:"digest,omitempty" doc:"Of its content; absent until it lies ready, and for \"host\"."`
	User       string   `json:"user,omitempty" doc:"Whom the image runs processes as."`
	Workdir    string   `json:"workdir,omitempty" doc:"Where the image starts processes."`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
}

// MakeImage is the body of POST /image.
type MakeImage struct {
	Image   Image    `json:"image"`
	Engine  string   `json:"engine,omitempty" doc:"Which engine it is for. Default: the server's first."`
	Network *Network `json:"network,omitempty" doc:"What RUN commands may reach. Default: every public host."`
	Fresh   bool     `json:"fresh,omitempty" doc:"Ask the registry whether the tag has moved, though the account has an image of that name."`
}

// StoredImage is an image that the account has.
type StoredImage struct {
	ID         string            `json:"id" example:"img_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
	Name       string            `json:"name" doc:"The reference as it was asked for; of a snapshot or an import, a name for people."`
	Kind       string            `json:"kind" enum:"registry,build,import,snapshot"`
	Digest     string            `json:"digest" doc:"Of its content: the same for everybody who has it."`
	Reference  string            `json:"reference,omitempty" doc:"What the reference stood for when it was pulled, with the manifest's digest."`
	Engine     string            `json:"engine"`
	Platform   string            `json:"platform,omitempty" example:"linux/amd64"`
	Size       int64             `json:"size" doc:"Bytes on disk, what it shares with other images included."`
	Sandbox    string            `json:"sandbox,omitempty" doc:"Of a snapshot: where it was made."`
	Env        map[string]string `json:"env"`
	User       string            `json:"user,omitempty"`
	Workdir    string            `json:"workdir,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Notices    []string          `json:"notices,omitempty" doc:"What was ignored while it was made; only in the answer to that."`
	CreatedAt  time.Time         `json:"created_at"`
	UsedAt     time.Time         `json:"used_at"`
}

// StoredImageList holds the account's images, those used last first.
type StoredImageList struct {
	Images []StoredImage `json:"images"`
}

// ImageProgress is the data of a "progress" event while an image is prepared.
type ImageProgress struct {
	Phase  string `json:"phase" enum:"resolve,pull,unpack,build,done"`
	Layer  string `json:"layer,omitempty"`
	Done   int64  `json:"done,omitempty" doc:"Bytes of a pull, steps of a build."`
	Total  int64  `json:"total,omitempty"`
	Text   string `json:"text,omitempty" doc:"One line for people; in build, an instruction or a line of output."`
	Output bool   `json:"output,omitempty" doc:"Text was written by a command."`
}

// Snapshot is the body of POST /sandbox/{id}/snapshot.
type Snapshot struct {
	Name string `json:"name,omitempty" maxLength:"100" doc:"For people. Default: the sandbox's."`
}

// UpdateSandbox is the body of PATCH /sandbox/{id}. What is left out stays.
type UpdateSandbox struct {
	Name     *string  `json:"name,omitempty" maxLength:"100"`
	Network  *Network `json:"network,omitempty" doc:"Holds for every connection from now on."`
	TimeoutS *int64   `json:"timeout_s,omitempty" minimum:"1" doc:"Seconds from now until it ends."`
}

// PutSecret is the body of PUT /secret/{name}.
type PutSecret struct {
	Values map[string]string `json:"values" doc:"Kept encrypted, and never shown again." example:"{\"USERNAME\":\"me\",\"PASSWORD\":\"…\"}"`
}

// Secret is a named set of values. The values themselves are never told.
type Secret struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Keys      []string  `json:"keys" doc:"The names of its values."`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// SecretList holds the account's secrets, by name.
type SecretList struct {
	Secrets []Secret `json:"secrets"`
}
