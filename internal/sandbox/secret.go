package sandbox

import "time"

// Secret is a named set of values of an account, encrypted. Only package vault can open it.
type Secret struct {
	ID        string
	Account   string
	Name      string   // unique in the account
	Keys      []string // the names of its values
	Sealed    []byte
	CreatedAt time.Time
	UpdatedAt time.Time
}
