package sandbox

import (
	"fmt"
	"slices"
)

// State is where a sandbox is in its life.
type State string

// The states. Creating is admitted and counted, not yet confirmed by the engine. Stopping is a Destroy in flight or to
// be retried. Terminated and Error are terminal: the engine confirmed that nothing is left. Error is Terminated with a
// reason that is a fault. Suspended lies on disk, with its processes; Suspending and Resuming lead there and back, and where the engine
// refuses, to where they came from. There is no shortcut from Creating to Error: only a confirmed Destroy proves that nothing is left.
const (
	Creating   State = "creating"
	Running    State = "running"
	Suspending State = "suspending"
	Suspended  State = "suspended"
	Resuming   State = "resuming"
	Stopping   State = "stopping"
	Terminated State = "terminated"
	Error      State = "error"
)

// transitions is the one table of allowed changes.
var transitions = map[State][]State{
	Creating:   {Running, Stopping},
	Running:    {Suspending, Stopping},
	Suspending: {Suspended, Running, Stopping},
	Suspended:  {Resuming, Stopping},
	Resuming:   {Running, Suspended, Stopping},
	Stopping:   {Terminated, Error},
}

// States returns all states, in the order of a life.
func States() []State {
	return []State{Creating, Running, Suspending, Suspended, Resuming, Stopping, Terminated, Error}
}

// LiveStates returns those for which Live is true.
func LiveStates() []State {
	return slices.DeleteFunc(States(), State.Terminal)
}

// To reports whether a sandbox may go from s to next; if not, the error wraps ErrState and names both.
func (s State) To(next State) error {
	for _, allowed := range transitions[s] {
		if allowed == next {
			return nil
		}
	}
	return fmt.Errorf("%w: a sandbox that is %s can't become %s", ErrState, s, next)
}

// Terminal reports whether nothing follows s.
func (s State) Terminal() bool { return s == Terminated || s == Error }

// Live reports whether a sandbox in s holds, or may hold, resources.
func (s State) Live() bool { return !s.Terminal() }
