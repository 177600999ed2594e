package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Secrets is what the server needs of vault.Vault. Nothing of it gives a value back.
type Secrets interface {
	Put(ctx context.Context, account, name string, values map[string]string) (sandbox.Secret, error)
	List(ctx context.Context, account string) ([]sandbox.Secret, error)
	Delete(ctx context.Context, account, name string) error
}

func (s *Server) secretRoutes(h huma.API) {
	tags := []string{"Secrets"}
	add(s, h, strict(huma.Operation{
		OperationID: "put-secret", Method: http.MethodPut, Path: "/secret/{name}", Tags: tags, Summary: "Keep a secret",
		Description: "In the stead of what was there under that name. Its values are encrypted and never shown again.",
	}), s.putSecret)
	add(s, h, strict(huma.Operation{
		OperationID: "list-secrets", Method: http.MethodGet, Path: "/secret", Tags: tags, Summary: "List secrets, without their values",
	}), s.listSecrets)
	add(s, h, strict(huma.Operation{
		OperationID: "delete-secret", Method: http.MethodDelete, Path: "/secret/{name}", Tags: tags, Summary: "Delete a secret",
	}), s.deleteSecret)
}

// SecretInput names a secret.
type SecretInput struct {
	Name string `path:"name" maxLength:"64" example:"ghcr"`
}

type putSecretInput struct {
	SecretInput
	Body api.PutSecret
}

func (s *Server) putSecret(ctx context.Context, c *call, in *putSecretInput) (*body[api.Secret], error) {
	secret, err := s.cfg.Secrets.Put(ctx, c.account, in.Name, in.Body.Values)
	if err != nil {
		return nil, err
	}
	return &body[api.Secret]{fromSecret(secret)}, nil
}

func (s *Server) listSecrets(ctx context.Context, c *call, _ *struct{}) (*body[api.SecretList], error) {
	all, err := s.cfg.Secrets.List(ctx, c.account)
	if err != nil {
		return nil, err
	}
	return &body[api.SecretList]{api.SecretList{Secrets: each(all, fromSecret)}}, nil
}

func (s *Server) deleteSecret(ctx context.Context, c *call, in *SecretInput) (*struct{}, error) {
	return nil, s.cfg.Secrets.Delete(ctx, c.account, in.Name)
}

func fromSecret(s sandbox.Secret) api.Secret {
	return api.Secret{ID: s.ID, Name: s.Name, Keys: each(s.Keys, func(k string) string { return k }), CreatedAt: s.CreatedAt.UTC(), UpdatedAt: s.UpdatedAt.UTC()}
}
