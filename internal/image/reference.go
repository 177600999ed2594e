package image

import (
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// The parser of names takes "a/../b" and "a//b", which would mean another path once they are in a URL. These are Docker's own rules.
var (
	repositoryName = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagName        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	sha256Hex      = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Canonical returns a reference in full, as Docker would: "python" is "docker.io/library/python:latest".
func Canonical(ref string) (string, error) {
	r, err := parse(ref)
	if err != nil {
		return "", err
	}
	return canonical(r), nil
}

// IsTag reports whether ref can be an image's name in an archive: a name, perhaps with a tag, but no digest.
func IsTag(ref string) bool {
	r, err := parse(ref)
	_, ok := r.(name.Tag)
	return err == nil && ok
}

func parse(ref string) (name.Reference, error) {
	if len(ref) > 512 {
		return nil, sandbox.Invalid(fieldRegistry, "The name of the image is too long.")
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, sandbox.Invalid(fieldRegistry, "%q is not the name of an image. Write it as in python:3.12, ghcr.io/owner/name:tag or name@sha256:….", ref)
	}
	ok := repositoryName.MatchString(r.Context().RepositoryStr())
	switch r := r.(type) {
	case name.Tag:
		ok = ok && tagName.MatchString(r.TagStr())
	case name.Digest:
		hex, found := strings.CutPrefix(r.DigestStr(), "sha256:")
		ok = ok && found && sha256Hex.MatchString(hex)
	}
	if !ok {
		return nil, sandbox.Invalid(fieldRegistry, "%q is not the name of an image: parts of the name are lower-case letters, digits and single . _ -, and a digest is sha256.", ref)
	}
	return r, nil
}

// canonical names the Hub as people do, not by the host that serves it.
func canonical(r name.Reference) string {
	if rest, ok := strings.CutPrefix(r.Name(), name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return r.Name()
}

// hostName is a registry's name for people.
func hostName(r name.Registry) string {
	if r.RegistryStr() == name.DefaultRegistry {
		return "docker.io"
	}
	return r.RegistryStr()
}

func hostPlatform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// pick chooses the manifest for our platform from a list. Of several variants the plainest is taken: it runs everywhere.
func pick(list []v1.Descriptor, want v1.Platform) (v1.Descriptor, error) {
	var (
		best  *v1.Descriptor
		have  []string
		score = func(d *v1.Descriptor) int {
			plain := map[string]string{"arm64": "v8", "amd64": "v1"}[want.Architecture]
			switch d.Platform.Variant {
			case want.Variant:
				return 0
			case "", plain:
				return 1
			}
			return 2
		}
	)
	for i := range list {
		d := &list[i]
		if !d.MediaType.IsImage() && !d.MediaType.IsIndex() && d.MediaType != "" {
			continue
		}
		if d.Platform == nil || d.Platform.OS == "unknown" { // attestations and the like
			if d.Platform == nil && len(list) == 1 {
				return *d, nil // its configuration tells
			}
			continue
		}
		have = append(have, d.Platform.String())
		if d.Platform.OS != want.OS || d.Platform.Architecture != want.Architecture || want.Variant != "" && d.Platform.Variant != want.Variant {
			continue
		}
		if best == nil || score(d) < score(best) {
			best = d
		}
	}
	if best != nil {
		return *best, nil
	}
	if len(have) == 0 {
		return v1.Descriptor{}, badImage(nil, "The list of platforms of this image is empty.")
	}
	slices.Sort(have)
	return v1.Descriptor{}, wrongPlatform(want.String(), slices.Compact(have))
}
