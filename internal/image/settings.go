package image

import (
	"encoding/json"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// parseConfig reads an image's configuration and checks what the store relies on.
func parseConfig(data []byte) (*v1.ConfigFile, error) {
	var cf v1.ConfigFile
	if err := json.Unmarshal(data, &cf); err != nil {
		return nil, badImage(err, "The configuration of the image can't be read.")
	}
	if cf.RootFS.Type != "layers" && (cf.RootFS.Type != "" || len(cf.RootFS.DiffIDs) > 0) {
		return nil, badImage(nil, "This is not an image of files: its configuration names no layers.")
	}
	if len(cf.RootFS.DiffIDs) > maxLayers {
		return nil, badImage(nil, "The image has more than %d layers.", maxLayers)
	}
	for _, d := range cf.RootFS.DiffIDs {
		if !isDigest(d.String()) {
			return nil, badImage(nil, "The configuration of the image names its layers by something else than sha256.")
		}
	}
	return &cf, nil
}

// checkPlatform refuses an image that can't run here. One that says nothing is taken at its word.
func (s *Store) checkPlatform(cf *v1.ConfigFile) error {
	if cf.OS == "" && cf.Architecture == "" {
		return nil
	}
	if cf.OS != s.platform.OS || cf.Architecture != s.platform.Architecture || s.platform.Variant != "" && cf.Variant != "" && cf.Variant != s.platform.Variant {
		return wrongPlatform(s.platform.String(), []string{platformOf(cf)})
	}
	return nil
}

func platformOf(cf *v1.ConfigFile) string {
	return v1.Platform{OS: cf.OS, Architecture: cf.Architecture, Variant: cf.Variant}.String()
}

func settingsOf(cf *v1.ConfigFile) Settings {
	c := cf.Config
	return Settings{Env: c.Env, User: c.User, Workdir: c.WorkingDir, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Shell: c.Shell, Labels: c.Labels,
		Ports: sortedKeys(c.ExposedPorts), Volumes: sortedKeys(c.Volumes), StopSignal: c.StopSignal}
}

func (s Settings) apply(c *v1.Config) {
	c.Env, c.User, c.WorkingDir, c.Entrypoint, c.Cmd, c.Shell, c.Labels = s.Env, s.User, s.Workdir, s.Entrypoint, s.Cmd, s.Shell, s.Labels
	c.ExposedPorts, c.Volumes, c.StopSignal = set(s.Ports), set(s.Volumes), s.StopSignal
}

func sortedKeys(m map[string]struct{}) []string { return slices.Sorted(maps.Keys(m)) }

func set(list []string) map[string]struct{} {
	if len(list) == 0 {
		return nil
	}
	m := make(map[string]struct{}, len(list))
	for _, v := range list {
		m[v] = struct{}{}
	}
	return m
}
