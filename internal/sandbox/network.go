package sandbox

import "encoding/json"

// NetworkMode is what a sandbox may reach.
type NetworkMode string

// The modes. In all of them the gateway to the model is reachable.
const (
	NetworkNone   NetworkMode = "none"   // nothing else
	NetworkEgress NetworkMode = "egress" // hosts of the allow-list, through the gateway's proxy; the sandbox has no network device
	NetworkOpen   NetworkMode = "open"   // every public address, through a network device of the sandbox's own
)

// Network is a sandbox's network policy.
type Network struct {
	Mode  NetworkMode `json:"mode"`
	Allow []string    `json:"allow,omitempty"` // for NetworkEgress: "example.com", "*.example.com", "*"; perhaps with ":port"
}

// UnmarshalJSON also takes the form of specs that were recorded when a policy was only a mode.
func (n *Network) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		return json.Unmarshal(data, &n.Mode)
	}
	type plain Network
	return json.Unmarshal(data, (*plain)(n))
}
