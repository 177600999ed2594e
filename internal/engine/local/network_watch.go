package local

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableWatch puts the table back when somebody deletes it: restarting the host's firewall often begins with deleting all tables, and
// without ours sandboxes would reach the host.
type tableWatch struct {
	conn  *mdlayher.Conn
	ended chan struct{}
}

// openWatch calls deleted whenever a table of that name was, or may have been, deleted.
func openWatch(table string, deleted func()) (*tableWatch, error) {
	conn, err := mdlayher.Dial(unix.NETLINK_NETFILTER, &mdlayher.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, fmt.Errorf("listening for changes of nftables: %w", err)
	}
	w := &tableWatch{conn: conn, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for {
			messages, err := conn.Receive()
			if err != nil {
				// Either there were more events than fit, ours perhaps among them, or this is the end.
				deleted()
				if !errors.Is(err, unix.ENOBUFS) {
					return
				}
			}
			for _, m := range messages {
				if deletes(m, table) {
					deleted()
				}
			}
		}
	}()
	return w, nil
}

func (w *tableWatch) close() error {
	err := w.conn.Close()
	<-w.ended
	return err
}

// deletes reports whether the message tells the deletion of a table of that name.
func deletes(m mdlayher.Message, table string) bool {
	const header = 4 // of netfilter's messages
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE || len(m.Data) < header {
		return false
	}
	attrs, err := mdlayher.UnmarshalAttributes(m.Data[header:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Type == unix.NFTA_TABLE_NAME && string(bytes.TrimRight(a.Data, "\x00")) == table {
			return true
		}
	}
	return false
}

// heal says the rules anew if the table is missing.
func (n *networks) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.devices) == 0 {
		return
	}
	c, err := nftables.New()
	if err == nil {
		var there bool
		if there, err = n.rules.exists(c); there {
			return
		}
	}
	if err == nil {
		err = n.rules.apply(n.all(), true)
	}
	if err != nil {
		n.log.Error("putting back the rules of sandboxes' network devices, which somebody deleted", "table", n.rules.table, "err", err)
		return
	}
	n.log.Warn("put back the rules of sandboxes' network devices, which somebody deleted", "table", n.rules.table)
}
