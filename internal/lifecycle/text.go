package lifecycle

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/sandlot-dev/sandlot/internal/guest"
	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

var (
	manners = strings.Fields("brave bright calm cheerful clever cosy curious eager fair fearless gentle glad happy honest jolly keen kind lively lucky mellow " +
		"merry mild neat nimble patient plucky polite proud quick quiet sunny swift tidy warm witty")
	animals = strings.Fields("badger beaver bison crane dolphin falcon ferret finch fox gecko hare hedgehog heron ibex jackdaw koala lark lemur lynx marmot " +
		"marten newt otter owl panda penguin puffin raven robin seal sparrow stork swan tapir wombat")
)

// friendlyName is a name for people, of two words. It need not be unique.
func friendlyName() string {
	return manners[rand.IntN(len(manners))] + "-" + animals[rand.IntN(len(animals))]
}

// span says d as people do: "1 h 30 min". Below a minute it keeps the seconds only.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	var parts []string
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}} {
		if n := d / unit.size; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, unit.name))
			d %= unit.size
		}
	}
	if parts == nil {
		return "0 s"
	}
	return strings.Join(parts, " ")
}

// plain says what went wrong for people: the sentence made for them, if there is one.
func plain(err error) string {
	if p := (*sandbox.Problem)(nil); errors.As(err, &p) {
		return p.Detail
	}
	if e := (*guest.Error)(nil); errors.As(err, &e) {
		return e.Detail
	}
	return err.Error()
}

// refused makes a Problem of the guest's no; other errors stay as they are.
func refused(err error) error {
	e := (*guest.Error)(nil)
	if !errors.As(err, &e) {
		return err
	}
	class := sandbox.ErrUnavailable
	switch e.Status {
	case 400:
		class = sandbox.ErrInvalid
	case 404:
		class = sandbox.ErrNotFound
	case 409:
		class = sandbox.ErrState
	}
	return &sandbox.Problem{Class: class, Code: e.Code, Field: e.Field, Detail: e.Detail, Err: err}
}
