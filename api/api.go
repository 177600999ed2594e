// Package api is the wire of Sandlot: requests, responses, events and errors as they stand in JSON. It imports the standard
// library only. Times are RFC 3339 in UTC, names are snake_case; a field that is not known yet is null or left out, never 0.
package api

import "time"

// CreateSandbox is the body of POST /sandbox. Every field is optional; unknown fields are refused by name.
type CreateSandbox struct {
	Name      string            `json:"name,omitempty" maxLength:"100" doc:"For people; need not be unique. Default: two words of ours."`
	Engine    string            `json:"engine,omitempty" doc:"Which engine runs it. Default: the server's first." example:"local"`
	Labels    map[string]string `json:"labels,omitempty" doc:"Your own names for it; up to 32."`
	Image     *Image            `json:"image,omitempty" doc:"The root file system. Default: the server machine's own programs, read-only."`
	Volume    string            `json:"volume,omitempty" maxLength:"64" doc:"Name of the account's volume to mount at workdir; made on first use, kept when the sandbox ends. Default: a fresh one."`
	Workdir   string            `json:"workdir,omitempty" doc:"Absolute path at which the volume is mounted and processes start. Default: /workspace."`
	Env       map[string]string `json:"env,omitempty" doc:"Environment of every process."`
	CPU       float64           `json:"cpu,omitempty" minimum:"0" doc:"Cores, fractions allowed. Default: not limited."`
	MemoryMiB int64             `json:"memory_mib,omitempty" minimum:"0" doc:"Memory of the sandbox's programs together. Default: not limited."`
	DiskMiB   int64             `json:"disk_mib,omitempty" minimum:"0" doc:"Size of the writable layer over the image. Default: 10240."`
	TimeoutS  int64             `json:"timeout_s,omitempty" minimum:"0" doc:"Seconds until the sandbox ends, whatever it does. Default: 3600."`
	Network   *Network          `json:"network,omitempty" doc:"What it may reach beside the model."`

	GPU        string `json:"gpu,omitempty" maxLength:"3" doc:"GPUs of the machine that nobody else gets meanwhile: a number from 1 to 8, or \"all\". Default: none." example:"1"`
	PIDs       int64  `json:"pids,omitempty" minimum:"0" doc:"Processes and threads of one user in the sandbox. Default: 4096."`
	OpenFiles  int64  `json:"open_files,omitempty" minimum:"0" doc:"Open files of one process. Default: 65536."`
	OutputKiBS int64  `json:"output_kib_s,omitempty" minimum:"0" doc:"KiB per second that all runs together may write; who writes faster waits. Default: not limited."`
}

// Network is what a sandbox may reach.
type Network struct {
	Mode  string   `json:"mode,omitempty" enum:"none,egress,open" doc:"none: only the model, through the server's gateway. egress: beside it the hosts of allow, through the server's proxy. open: every public address, through a network device. Default: egress."`
	Allow []string `json:"allow,omitempty" doc:"For egress: hosts that may be reached. Default: every public one. Private, loopback and metadata addresses never are." example:"[\"*.example.com\"]"`
}

// Sandbox is an isolated computer.
type Sandbox struct {
	ID        string            `json:"id" example:"sbx_01JD8M4Q2ZK3T5V7W9X1Y3Z5A7"`
	Name      string            `json:"name"`
	State     string            `json:"state" enum:"creating,running,suspending,suspended,resuming,stopping,terminated,error"`
	Reason    string            `json:"reason,omitempty" doc:"Why it is in this state, for people."`
	Engine    string            `json:"engine"`
	Image     ImageInfo         `json:"image"`
	Volume    string            `json:"volume" doc:"Name of its volume."`
	VolumeID  string            `json:"volume_id"`
	Workdir   string            `json:"workdir"`
	Labels    map[string]string `json:"labels"`
	Network   Network           `json:"network"`
	CPU       float64           `json:"cpu,omitempty"`
	MemoryMiB int64             `json:"memory_mib,omitempty"`
	DiskMiB   int64             `json:"disk_mib"`
	GPU       string            `json:"gpu,omitempty"`
	Limits    Limits            `json:"limits" doc:"Every limit, and what keeps it on this machine."`
	TimeoutS  int64             `json:"timeout_s"`
	CreatedAt time.Time         `json:"created_at"`
	StartedAt *time.Time        `json:"started_at" doc:"Null until it first ran."`
	EndedAt   *time.Time        `json:"ended_at"`
	ExpiresAt time.Time         `json:"expires_at" doc:"When it ends, whatever it does. Moves on by the time in which it was suspended, once it is resumed."`

	SuspendedAt    *time.Time `json:"suspended_at,omitempty" doc:"Since when it is suspended, or about to be."`
	SuspendedUntil *time.Time `json:"suspended_until,omitempty" doc:"When it ends if it is still suspended then."`
}

// Limits are the limits of a sandbox.
type Limits struct {
	CPU       Limit `json:"cpu" doc:"Cores."`
	Memory    Limit `json:"memory" doc:"MiB."`
	PIDs      Limit `json:"pids" doc:"Processes and threads of one user in the sandbox."`
	Disk      Limit `json:"disk" doc:"MiB of the writable layer; the volume is not limited."`
	OpenFiles Limit `json:"open_files" doc:"Of one process."`
	Output    Limit `json:"output" doc:"KiB per second, of all runs together; who writes faster waits."`
}

// Limit is one limit of a sandbox.
type Limit struct {
	Value *float64 `json:"value" doc:"Null: not limited."`
	By    string   `json:"by" enum:"cgroup v1,cgroup v2,gvisor,rlimit,guest,watchdog,affinity,none" doc:"What keeps it. watchdog: the server looks ten times a second, so a burst may go over it for a moment. affinity: whole cores, rounded up; a fraction of one is a lower priority."`
}

// SandboxList is a page of sandboxes, newest first.
type SandboxList struct {
	Sandboxes  []Sandbox `json:"sandboxes"`
	NextCursor string    `json:"next_cursor,omitempty" doc:"Give it as cursor to get the next page; absent on the last."`
}

// Exec is the body of POST /sandbox/{id}/exec.
type Exec struct {
	Argv     []string          `json:"argv" minItems:"1" doc:"The program and its arguments; no shell in between."`
	Env      map[string]string `json:"env,omitempty" doc:"Added to the sandbox's environment."`
	Dir      string            `json:"dir,omitempty" doc:"Working directory. Default: the sandbox's workdir if it was asked for, else the image's, else /workspace."`
	User     string            `json:"user,omitempty" maxLength:"200" doc:"\"agent\" (the image's own user, if it names one), \"root\", or a name or number of the sandbox's /etc/passwd, perhaps with :group. Default: agent."`
	Stdin    string            `json:"stdin,omitempty" doc:"Given to the process, then its input is closed unless stdin_open."`
	TimeoutS float64           `json:"timeout_s,omitempty" minimum:"0" doc:"The process and all it started are killed after this many seconds. Default: only the sandbox's own end."`

	StdinOpen bool  `json:"stdin_open,omitempty" doc:"Keep the input open after stdin, for POST …/stdin."`
	PTY       bool  `json:"pty,omitempty" doc:"Give it a terminal; all of its output is stdout then."`
	Size      *Size `json:"size,omitempty" doc:"Of that terminal. Default: 24 rows, 80 columns."`
	Detach    *bool `json:"detach,omitempty" doc:"Whether it goes on when the caller leaves. With false it gets SIGTERM then, and a little later SIGKILL; that the server restarts is no leaving. Default: true."`
}

// Size is the size of a terminal, in characters.
type Size struct {
	Rows uint16 `json:"rows" minimum:"1"`
	Cols uint16 `json:"cols" minimum:"1"`
}

// Run is one process in a sandbox and what is known of it.
type Run struct {
	ID        string     `json:"id"`
	Sandbox   string     `json:"sandbox"`
	Kind      string     `json:"kind" enum:"exec,terminal,claude,entrypoint"`
	Session   string     `json:"session,omitempty"`
	Argv      []string   `json:"argv"`
	State     string     `json:"state" enum:"running,exited,signaled,timeout,oom,lost" doc:"oom: killed because the sandbox's memory was used up. lost: its end was not seen."`
	ExitCode  *int       `json:"exit_code" doc:"Null unless it was observed."`
	Signal    string     `json:"signal,omitempty" example:"SIGKILL"`
	Reason    string     `json:"reason,omitempty"`
	Stdout    string     `json:"stdout" doc:"With wait=true: the output, invalid UTF-8 replaced. Read the events for the exact bytes."`
	Stderr    string     `json:"stderr"`
	Truncated bool       `json:"truncated" doc:"Whether stdout or stderr is only the beginning of what was written."`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at"`

	OutputFirst int64 `json:"output_first" doc:"Output before this offset is not kept any more. Offsets count the bytes of both streams."`
	OutputNext  int64 `json:"output_next" doc:"The offset after the output that is known of: all of it, once the run has ended."`
}

// RunList is a page of the runs of a sandbox, the newest first.
type RunList struct {
	Runs       []Run  `json:"runs"`
	NextCursor string `json:"next_cursor,omitempty" doc:"Give it as cursor to get the next page; absent on the last."`
}

// RunEvent is one event of a run's stream, as GET /sandbox/{id}/run/{run}/events lists it. On a stream, id is the event's id, event its name
// and data its data.
type RunEvent struct {
	ID    int64  `json:"id,omitempty" doc:"Of output and gap: the offset after it."`
	Event string `json:"event" enum:"output,gap,exit"`
	Data  any    `json:"data"`
}

// RunEventList is what there is of a run's output now.
type RunEventList struct {
	Run    Run        `json:"run"`
	Events []RunEvent `json:"events"`
	More   bool       `json:"more" doc:"Whether there is more, or may be: ask again with after = the last id."`
}

// StdinTaken is the answer of POST /sandbox/{id}/run/{run}/stdin.
type StdinTaken struct {
	Taken int64 `json:"taken" doc:"Bytes of input that the run has taken in all, those of exec's stdin included: the at of what comes next."`
}

// Signal is the body of POST /sandbox/{id}/run/{run}/signal.
type Signal struct {
	Signal string `json:"signal" minLength:"1" maxLength:"20" doc:"Sent to the process and all it started." example:"SIGINT"`
}

// Output is the data of an "output" event of a run's stream; the event's id is the offset after it.
type Output struct {
	Stream   string `json:"stream" enum:"stdout,stderr"`
	Data     string `json:"data"`
	Encoding string `json:"encoding,omitempty" enum:"base64" doc:"\"base64\" when the bytes are not valid UTF-8."`
}

// Gap is the data of a "gap" event: output that was trimmed before it was read.
type Gap struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Event is something that happened to a sandbox.
type Event struct {
	Seq     int64     `json:"seq"`
	Sandbox string    `json:"sandbox"`
	Kind    string    `json:"kind" doc:"accepted, image, build, volume, starting, guest, running, network, snapshot, suspending, suspended, resuming, refused, stopping, terminated, error; more may come."`
	Text    string    `json:"text"`
	At      time.Time `json:"at"`
}

// EventList is a page of events, oldest first.
type EventList struct {
	Events []Event `json:"events"`
	More   bool    `json:"more" doc:"Whether there are more: ask again with after = the last seq."`
}

// Port is a TCP port on which something in a sandbox listens.
type Port struct {
	Port    int    `json:"port"`
	PID     int    `json:"pid,omitempty" doc:"Of a process in the sandbox that holds it."`
	Process string `json:"process,omitempty" doc:"That process's name, as it calls itself." example:"node"`
}

// PortList holds the ports of a sandbox that a preview can reach, in order.
type PortList struct {
	Ports []Port `json:"ports"`
}

// CreatePreview is the body of POST /sandbox/{id}/preview.
type CreatePreview struct {
	Port     int    `json:"port" minimum:"1" maximum:"65535" doc:"TCP port in the sandbox. Nothing need listen there yet." example:"3000"`
	ExpiresS int64  `json:"expires_s,omitempty" minimum:"1" maximum:"604800" doc:"Seconds for which the URL is good, but never longer than the sandbox lives. Default: 3600."`
	Path     string `json:"path,omitempty" maxLength:"2048" doc:"Where the URL leads to; may have a query. Default: /." example:"/docs?page=1"`
}

// Preview is a way to a port of a sandbox for whoever has it.
type Preview struct {
	URL       string    `json:"url" doc:"For a browser: it sets a cookie, and sends on to the same address without the token." example:"http://3000-sbx-01jd8m4q2zk3t5v7w9x1y3z5a7.localhost:8080/?sandlot_preview=…"`
	Port      int       `json:"port"`
	Token     string    `json:"token" doc:"For programs: send it as the header Sandlot-Preview-Token, with any path of the URL's host."`
	ExpiresAt time.Time `json:"expires_at"`
}

// SignIn is the body of POST /signin.
type SignIn struct {
	Key string `json:"key" maxLength:"200" doc:"An API key; the answer sets a cookie in its stead." example:"slk_…"`
}

// Health is the answer of GET /healthz.
type Health struct {
	Status    string `json:"status" enum:"ok,starting,failing"`
	Version   string `json:"version"`
	Model     string `json:"model" enum:"demo,anthropic" doc:"\"demo\": answers come from a script, not from Claude."`
	Claude    string `json:"claude" doc:"Version of the Claude Code CLI."`
	Engine    string `json:"engine"`
	Isolation string `json:"isolation"`
	Problem   string `json:"problem,omitempty" doc:"What keeps the server from working and what to do."`
}

// Me is the answer of GET /me: who the request comes from.
type Me struct {
	Account     string `json:"account"`
	AccountName string `json:"account_name"`
	Key         string `json:"key,omitempty" doc:"ID of the API key, if one was used."`
}
