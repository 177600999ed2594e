package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

func TestImagesAreRecords(t *testing.T) {
	s := open(t)
	account, other := account(t, s, "first"), account(t, s, "another")
	want := sandbox.StoredImage{
		Account: account, Name: "docker.io/library/python:3", Kind: sandbox.ImagePulled, Digest: "sha256:aa", Engine: "local",
		Settings: sandbox.ImageSettings{Env: map[string]string{"A": "b"}, Entrypoint: []string{"/x"}}, Size: 7, Platform: "linux/amd64",
	}
	first, err := s.PutImage(t.Context(), want)
	if err != nil || !sandbox.IsID(first.ID, sandbox.PrefixImage) || first.Settings.Env["A"] != "b" || first.CreatedAt.IsZero() {
		t.Fatalf("%+v, %v", first, err)
	}
	want.Digest = "sha256:bb" // the tag moved
	second, err := s.PutImage(t.Context(), want)
	if err != nil || second.ID != first.ID || second.Digest != "sha256:bb" {
		t.Errorf("%+v, %v", second, err)
	}
	want.Recipe, want.Kind = "r", sandbox.ImageBuilt
	built, err := s.PutImage(t.Context(), want)
	if err != nil || built.ID == first.ID {
		t.Errorf("a build is the image it is made of: %+v, %v", built, err)
	}
	want.Name, want.Recipe, want.Kind = "snap", "x", sandbox.ImageSnapshot
	snapshot, err := s.PutImage(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.FindImage(t.Context(), account, "local", "docker.io/library/python:3", ""); err != nil || got.ID != first.ID {
		t.Errorf("%+v, %v", got, err)
	}
	for name, err := range map[string]error{
		"another account's":  func() error { _, err := s.Image(t.Context(), other, first.ID); return err }(),
		"found by another":   func() error { _, err := s.FindImage(t.Context(), other, "local", first.Name, ""); return err }(),
		"deleted by another": s.DeleteImage(t.Context(), other, first.ID),
	} {
		if !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, err := s.Images(t.Context(), account); err != nil || len(all) != 3 {
		t.Errorf("%d images, %v", len(all), err)
	}
	if err := s.TouchImage(t.Context(), first.ID); err != nil {
		t.Error(err)
	}
	// What can be had again is forgotten when it is old; a snapshot never.
	if err := s.ForgetImages(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Images(t.Context(), ""); err != nil || len(all) != 1 || all[0].ID != snapshot.ID {
		t.Errorf("left: %+v, %v", all, err)
	}
	if err := s.DeleteImage(t.Context(), account, snapshot.ID); err != nil {
		t.Error(err)
	}
}
