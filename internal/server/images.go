package server

import (
	"context"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/engine"
	"github.com/sandlot-dev/sandlot/internal/lifecycle"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Images is what the server needs of lifecycle.Manager for images.
type Images interface {
	MakeImage(ctx context.Context, req lifecycle.ImageRequest, report func(engine.ImageProgress)) (i sandbox.StoredImage, notices []string, err error)
	Image(ctx context.Context, account, id string) (sandbox.StoredImage, error)
	Images(ctx context.Context, account string) ([]sandbox.StoredImage, error)
	DeleteImage(ctx context.Context, account, id string) error
	ImportImages(ctx context.Context, account, engine, name string, archive io.Reader) ([]sandbox.StoredImage, error)
	ExportImage(ctx context.Context, account, id string, format engine.ArchiveFormat, w io.Writer) error
	Snapshot(ctx context.Context, account string, id sandbox.ID, name string) (sandbox.StoredImage, error)
}

func (s *Server) imageRoutes(h huma.API) {
	tags := []string{"Images"}
	tar := map[string]*huma.MediaType{"application/x-tar": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}
	add(s, h, strict(huma.Operation{
		OperationID: "make-image", Method: http.MethodPost, Path: "/image", Tags: tags, Summary: "Pull or build an image",
		Description: "Sandboxes do this by themselves; ahead of them it makes them start at once. Answers when the image lies ready, or streams how it goes.",
		Responses:   answers(h, api.StoredImage{}, "Events `progress`, then `image` (the image) or `error` (a problem); then `data: [DONE]`."),
	}), s.makeImage)
	add(s, h, strict(huma.Operation{
		OperationID: "list-images", Method: http.MethodGet, Path: "/image", Tags: tags, Summary: "List images, those used last first",
	}), s.listImages)
	add(s, h, strict(huma.Operation{
		OperationID: "get-image", Method: http.MethodGet, Path: "/image/{image}", Tags: tags, Summary: "Look at an image",
	}), s.getImage)
	add(s, h, strict(huma.Operation{
		OperationID: "delete-image", Method: http.MethodDelete, Path: "/image/{image}", Tags: tags, Summary: "Forget an image",
		Description: "Sandboxes that were made of it go on. Its files are removed when nothing needs them any more.",
	}), s.deleteImage)
	add(s, h, strict(huma.Operation{
		OperationID: "import-images", Method: http.MethodPost, Path: "/image/import", Tags: tags, Summary: "Import images",
		Description: "The body is a tar of an OCI layout, or what `docker save` writes, compressed or not.",
		RequestBody: &huma.RequestBody{Required: true, Content: tar},
	}), s.importImages)
	add(s, h, strict(huma.Operation{
		OperationID: "export-image", Method: http.MethodGet, Path: "/image/{image}/export", Tags: tags, Summary: "Export an image",
		Responses: map[string]*huma.Response{"200": {Description: "A tar.", Content: tar}},
	}), s.exportImage)
	add(s, h, strict(huma.Operation{
		OperationID: "snapshot-sandbox", Method: http.MethodPost, Path: "/sandbox/{id}/snapshot", Tags: tags, Summary: "Make an image of a sandbox's file system",
		Description: "Without its volume. The sandbox goes on; a new one starts from the image with `image.snapshot`.",
	}), s.snapshotSandbox)
}

type makeImageInput struct {
	Body api.MakeImage
}

func (s *Server) makeImage(ctx context.Context, c *call, in *makeImageInput) (*huma.StreamResponse, error) {
	req := lifecycle.ImageRequest{Account: c.account, Engine: in.Body.Engine, Network: toNetwork(in.Body.Network), Fresh: in.Body.Fresh}
	var err error
	if req.Image, err = toImage(&in.Body.Image); err != nil {
		return nil, err
	}
	if wantsEvents(c.r) {
		return s.streaming(c, func(ctx context.Context, out *stream) error {
			i, notices, err := s.cfg.Manager.MakeImage(ctx, req, func(p engine.ImageProgress) {
				_ = out.json("", api.EventProgress, fromProgress(p)) // told by the next write too
			})
			if err != nil {
				return err
			}
			made := fromImage(i)
			made.Notices = notices
			return out.json("", api.EventImage, made)
		}), nil
	}
	ctx, cancel := c.long(ctx)
	defer cancel()
	i, notices, err := s.cfg.Manager.MakeImage(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	made := fromImage(i)
	made.Notices = notices
	return answer(c, made), nil
}

func (s *Server) listImages(ctx context.Context, c *call, _ *struct{}) (*body[api.StoredImageList], error) {
	all, err := s.cfg.Manager.Images(ctx, c.account)
	if err != nil {
		return nil, err
	}
	return &body[api.StoredImageList]{api.StoredImageList{Images: each(all, fromImage)}}, nil
}

// ImageInput names an image.
type ImageInput struct {
	Image string `path:"image" doc:"The image." example:"img_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
}

func (s *Server) getImage(ctx context.Context, c *call, in *ImageInput) (*body[api.StoredImage], error) {
	i, err := s.cfg.Manager.Image(ctx, c.account, in.Image)
	if err != nil {
		return nil, err
	}
	return &body[api.StoredImage]{fromImage(i)}, nil
}

func (s *Server) deleteImage(ctx context.Context, c *call, in *ImageInput) (*struct{}, error) {
	return nil, s.cfg.Manager.DeleteImage(ctx, c.account, in.Image)
}

type importInput struct {
	Name   string `query:"name" maxLength:"200" doc:"What to call the image. Default: what the archive calls it."`
	Engine string `query:"engine" doc:"Default: the server's first."`
}

func (s *Server) importImages(ctx context.Context, c *call, in *importInput) (*body[api.StoredImageList], error) {
	ctx, cancel := c.long(ctx)
	defer cancel()
	from := &patientReader{c: c, timeout: s.cfg.ReadTimeout}
	all, err := s.cfg.Manager.ImportImages(ctx, c.account, in.Engine, in.Name, from)
	_ = c.w.control.SetReadDeadline(time.Time{}) // not supported = none was set
	if err != nil {
		if cause := from.err.Load(); cause != nil {
			err = refuse(http.StatusBadRequest, "incomplete_body", "The archive did not arrive whole.").because(*cause)
		}
		return nil, err
	}
	return &body[api.StoredImageList]{api.StoredImageList{Images: each(all, fromImage)}}, nil
}

type exportInput struct {
	ImageInput
	Format string `query:"format" enum:"oci,docker" default:"oci" doc:"An OCI layout, or what docker load takes."`
}

func (s *Server) exportImage(ctx context.Context, c *call, in *exportInput) (*huma.StreamResponse, error) {
	i, err := s.cfg.Manager.Image(ctx, c.account, in.Image)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		ctx, cancel := c.long(hctx.Context())
		defer cancel()
		h := c.w.Header()
		h.Set("Content-Type", "application/x-tar")
		if d := mime.FormatMediaType("attachment", map[string]string{"filename": i.ID + ".tar"}); d != "" {
			h.Set("Content-Disposition", d)
		}
		if c.r.Method == http.MethodHead {
			return
		}
		if err := s.cfg.Manager.ExportImage(ctx, c.account, in.Image, engine.ArchiveFormat(in.Format), c.w); err != nil {
			p := problemOf(err)
			if c.w.status == 0 {
				h.Del("Content-Disposition")
				writeProblem(c.w, c.r, p)
				return
			}
			c.fail(p)
			panic(http.ErrAbortHandler) // half an archive must not look like a whole one
		}
	}}, nil
}

type snapshotInput struct {
	SandboxInput
	Body *api.Snapshot
}

func (s *Server) snapshotSandbox(ctx context.Context, c *call, in *snapshotInput) (*body[api.StoredImage], error) {
	ctx, cancel := c.long(ctx)
	defer cancel()
	var want api.Snapshot
	if in.Body != nil {
		want = *in.Body
	}
	i, err := s.cfg.Manager.Snapshot(ctx, c.account, sandbox.ID(in.ID), want.Name)
	if err != nil {
		return nil, err
	}
	return &body[api.StoredImage]{fromImage(i)}, nil
}

// toImage converts what was asked of an image; nil is the default.
func toImage(in *api.Image) (sandbox.Image, error) {
	if in == nil {
		return sandbox.Image{}, nil
	}
	if in.Registry != "" && in.Snapshot != "" {
		return sandbox.Image{}, sandbox.Invalid("image.snapshot", "Give either registry or snapshot, not both.")
	}
	if in.Snapshot != "" && !sandbox.IsID(in.Snapshot, sandbox.PrefixImage) {
		return sandbox.Image{}, sandbox.Invalid("image.snapshot", "%.64q is no image's ID; it begins with %s.", in.Snapshot, sandbox.PrefixImage)
	}
	if strings.HasPrefix(in.Registry, sandbox.PrefixImage) {
		return sandbox.Image{}, sandbox.Invalid("image.registry", "The ID of an image goes into image.snapshot.")
	}
	source := in.Registry
	if source == "" {
		source = in.Snapshot
	}
	if source == "" {
		source = sandbox.HostImage
	}
	return sandbox.Image{Source: source, Commands: in.DockerfileCommands, Secret: in.RegistrySecret, BuildSecrets: in.Secrets}, nil
}

func fromImageSpec(i sandbox.Image) api.ImageInfo {
	out := api.ImageInfo{
		Image:  api.Image{DockerfileCommands: i.Commands, RegistrySecret: i.Secret, Secrets: i.BuildSecrets},
		Digest: i.Digest, User: i.Settings.User, Workdir: i.Settings.Workdir, Entrypoint: i.Settings.Entrypoint, Cmd: i.Settings.Cmd,
	}
	if sandbox.IsID(i.Source, sandbox.PrefixImage) {
		out.Snapshot = i.Source
	} else {
		out.Registry = i.Source
	}
	return out
}

func fromImage(i sandbox.StoredImage) api.StoredImage {
	return api.StoredImage{
		ID: i.ID, Name: i.Name, Kind: string(i.Kind), Digest: i.Digest, Reference: i.Reference, Engine: i.Engine, Platform: i.Platform, Size: i.Size,
		Sandbox: string(i.Origin), Env: mapOr(i.Settings.Env), User: i.Settings.User, Workdir: i.Settings.Workdir,
		Entrypoint: i.Settings.Entrypoint, Cmd: i.Settings.Cmd, CreatedAt: i.CreatedAt.UTC(), UsedAt: i.UsedAt.UTC(),
	}
}

func fromProgress(p engine.ImageProgress) api.ImageProgress {
	return api.ImageProgress{Phase: p.Phase, Layer: p.Layer, Done: p.Done, Total: p.Total, Text: p.Text, Output: p.Output}
}

func toNetwork(in *api.Network) sandbox.Network {
	if in == nil {
		return sandbox.Network{}
	}
	return sandbox.Network{Mode: sandbox.NetworkMode(in.Mode), Allow: in.Allow}
}
