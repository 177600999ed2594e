package netguard

import "net/netip"

// SetOwn says which addresses are this host's.
func (d *Dialer) SetOwn(own func() ([]netip.Addr, error)) { d.own = own }
