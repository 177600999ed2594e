package client

import (
	"context"
	"net/http"

	"github.com/sandlot-dev/sandlot/api"
)

// Ports lists the ports on which something in a sandbox listens.
func (c *Client) Ports(ctx context.Context, id string) (api.PortList, error) {
	return call[api.PortList](ctx, c, http.MethodGet, segments("sandbox", id, "port"), nil, nil)
}

// Preview makes a URL through which whoever has it reaches a port of a sandbox.
func (c *Client) Preview(ctx context.Context, id string, in api.CreatePreview) (api.Preview, error) {
	return call[api.Preview](ctx, c, http.MethodPost, segments("sandbox", id, "preview"), nil, in)
}
