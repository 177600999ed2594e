package api

// The fixed words of the wire, for both ends.
const (
	// Done is the data of the last message of a stream that has said all there is to say. A stream that ends without
	// it was cut: read on from the last event's id.
	Done = "[DONE]"

	// HeaderSession names the session on the answer to a prompt.
	HeaderSession = "Sandlot-Session"
	// HeaderRequestID names a request, in the answer and in the server's log. A client may choose it.
	HeaderRequestID = "X-Request-ID"
	// HeaderLastEventID is where to go on in a stream: the id of the last event that was seen.
	HeaderLastEventID = "Last-Event-ID"
	// HeaderRunState, HeaderOutputNext and HeaderOutputMissing come as trailers after a run's output as bytes: how the run was then, the
	// offset after it, and how many bytes of it are not kept any more.
	HeaderRunState      = "Sandlot-Run-State"
	HeaderOutputNext    = "Sandlot-Output-Next"
	HeaderOutputMissing = "Sandlot-Output-Missing"
	// HeaderPreviewToken carries a preview's token, from programs that keep no cookies.
	HeaderPreviewToken = "Sandlot-Preview-Token"

	// ContentTypeProblem is the content type of a Problem.
	ContentTypeProblem = "application/problem+json"
	// ContentTypeEvents is the content type of a stream of events.
	ContentTypeEvents = "text/event-stream"
)

// Names of events on streams. An event of a prompt's stream that has no name is a line of the CLI.
const (
	EventMessage  = "message"  // what an event without a name is called
	EventError    = "error"    // data: Problem
	EventSession  = "session"  // data: SessionStart; the first of a prompt's stream
	EventStart    = "start"    // data: Run
	EventOutput   = "output"   // data: Output
	EventGap      = "gap"      // data: Gap
	EventExit     = "exit"     // data: Run
	EventProgress = "progress" // data: ImageProgress
	EventImage    = "image"    // data: StoredImage; of a sandbox's stream, Event of that kind
	EventSandbox  = "sandbox"  // data: Sandbox; the last of a creation's stream
	EventFailed   = "failed"   // data: Event of kind "error"; on every stream the name "error" is a Problem's
)
