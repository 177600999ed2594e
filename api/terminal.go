package api

// Types of the JSON text frames on a terminal's WebSocket. Binary frames are bytes: of output from the server, of input to it.
const (
	FrameResize = "resize" // to the server: Cols, Rows. From it: the size that the writer has given the terminal
	FrameSignal = "signal" // to the server: Signal
	FrameTake   = "take"   // to the server: be the writer from now on
	FrameEOF    = "eof"    // to the server: no more input
	FrameAck    = "ack"    // to the server: Offset, output that was used. From it: Input, input that was handed to the program
	FramePing   = "ping"   // to the server: answered with FramePong, for programs that see no pings of the protocol
	FramePong   = "pong"

	FrameStart  = "start"  // the first one: Run, Writer, Offset, Live, Input, and Cols and Rows if they are known
	FrameStream = "stream" // without a terminal: Stream, which of the two the binary frames after it are of; stdout until it is told
	FrameGap    = "gap"    // From, To: output that is no longer there
	FrameWriter = "writer" // Writer, Input: whether the viewer is the writer has changed
	FrameExit   = "exit"   // State, ExitCode, Signal, Reason; the last one
	FrameError  = "error"  // Problem: a frame was refused
)

// TerminalFrame is a JSON text frame on a terminal's WebSocket. Type says which of the other fields are of interest.
type TerminalFrame struct {
	Type string `json:"type"`

	Run    string `json:"run,omitempty"`
	Writer *bool  `json:"writer,omitempty" doc:"Whether the viewer may type."`
	Offset *int64 `json:"offset,omitempty" doc:"start: of the first byte of output that follows. ack: bytes of output up to which all was used."`
	Live   *int64 `json:"live,omitempty" doc:"Where the output ended when the viewer came: what is before it is history."`
	Input  *int64 `json:"input,omitempty" doc:"start, writer: the offset that the viewer's next byte of input gets. ack: bytes of input that the program's terminal has taken."`

	Cols   int    `json:"cols,omitempty"`
	Rows   int    `json:"rows,omitempty"`
	Stream string `json:"stream,omitempty" enum:"stdout,stderr"`
	From   *int64 `json:"from,omitempty"`
	To     *int64 `json:"to,omitempty"`

	State    string   `json:"state,omitempty"`
	ExitCode *int     `json:"exit_code,omitempty" doc:"Absent unless it was observed."`
	Signal   string   `json:"signal,omitempty" example:"SIGINT"`
	Reason   string   `json:"reason,omitempty"`
	Problem  *Problem `json:"problem,omitempty"`
}
