package lifecycle

// For tests, the passes without their loops, and what is pure.
var (
	Every   = every
	Span    = span
	Backoff = backoff

	ReapOnce      = (*Manager).reapOnce
	ReconcileOnce = (*Manager).reconcileOnce
	Record        = (*Manager).record
	CollectOutput = (*Manager).collectOutput
)
