package local

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Uids of the host that sandboxes' files and processes have. As root, each volume gets a range of its own out of a block that
// belongs to no user of the host, and so do the sandboxes on it.
const (
	rangeSize  = 1 << 16
	rangeFirst = 1 << 30
	rangeCount = 1 << 14

	agentID = 1000 // the ordinary user inside
)

// idRange says whose uids sandboxes have.
type idRange struct {
	perVolume bool // real root: a range per volume
	single    bool // only one uid: everything inside runs as 0, which stands for the caller
}

func (r idRange) String() string {
	switch {
	case r.perVolume:
		return "a user namespace and uid range per volume"
	case r.single:
		return "rootless with one uid"
	default:
		return "rootless with a range of uids"
	}
}

// agent is the uid and gid that user processes have inside.
func (r idRange) agent() int {
	if r.single {
		return 0
	}
	return agentID
}

// currentRange finds out which uids this process may give to sandboxes.
func currentRange() (idRange, error) {
	if os.Geteuid() != 0 {
		return idRange{}, fmt.Errorf("%w: an ordinary user must enter a user namespace first", sandbox.ErrUnsupported)
	}
	f, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return idRange{}, fmt.Errorf("reading the uid map (is /proc mounted?): %w", err)
	}
	defer f.Close()
	return parseRange(f)
}

// parseRange reads a uid_map.
func parseRange(r io.Reader) (idRange, error) {
	var total, highest uint64
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var inside, outside, size uint64
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &size); err != nil {
			return idRange{}, fmt.Errorf("reading the uid map: line %q: %w", strings.TrimSpace(lines.Text()), err)
		}
		total += size
		highest = max(highest, inside+size)
	}
	switch {
	case highest >= rangeFirst+rangeCount*rangeSize:
		return idRange{perVolume: true}, nil
	case total > agentID:
		return idRange{}, nil
	default:
		return idRange{single: true}, nil
	}
}
