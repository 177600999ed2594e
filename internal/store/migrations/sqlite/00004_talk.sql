-- Conversations: one process of the CLI serves many turns, and asks.
-- +goose Up
ALTER TABLE sessions ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN permission_mode TEXT NOT NULL DEFAULT 'bypassPermissions';
ALTER TABLE session_events ADD COLUMN turn TEXT NOT NULL DEFAULT '';

CREATE TABLE turns (
	id              TEXT PRIMARY KEY,
	account         TEXT NOT NULL REFERENCES accounts (id),
	session         TEXT NOT NULL REFERENCES sessions (id),
	number          BIGINT NOT NULL,
	sandbox         TEXT NOT NULL,
	run             TEXT NOT NULL,
	state           TEXT NOT NULL,
	text            TEXT NOT NULL,
	model           TEXT NOT NULL,
	permission_mode TEXT NOT NULL,
	author          TEXT NOT NULL,
	uuid            TEXT NOT NULL,
	taken           BIGINT NOT NULL, -- 0 or 1
	interrupted     BIGINT NOT NULL, -- 0 or 1
	reason          TEXT NOT NULL,
	seq             BIGINT NOT NULL,
	end_seq         BIGINT NOT NULL,
	created_at      BIGINT NOT NULL,
	started_at      BIGINT NOT NULL,
	ended_at        BIGINT NOT NULL,
	UNIQUE (session, number)
);
CREATE INDEX turns_open ON turns (session) WHERE state IN ('queued', 'running');
CREATE UNIQUE INDEX turns_one_running ON turns (session) WHERE state = 'running';

CREATE TABLE prompts (
	id          TEXT PRIMARY KEY,
	account     TEXT NOT NULL REFERENCES accounts (id),
	session     TEXT NOT NULL REFERENCES sessions (id),
	turn        TEXT NOT NULL,
	run         TEXT NOT NULL,
	request     TEXT NOT NULL,
	kind        TEXT NOT NULL,
	tool        TEXT NOT NULL,
	tool_use    TEXT NOT NULL,
	agent       TEXT NOT NULL,
	title       TEXT NOT NULL,
	description TEXT NOT NULL,
	reason      TEXT NOT NULL,
	input       TEXT NOT NULL, -- JSON, as the two below
	suggestions TEXT NOT NULL,
	answer      TEXT NOT NULL,
	state       TEXT NOT NULL,
	answered_by TEXT NOT NULL,
	created_at  BIGINT NOT NULL,
	expires_at  BIGINT NOT NULL,
	answered_at BIGINT NOT NULL
);
CREATE INDEX prompts_by_session ON prompts (session, id);
CREATE INDEX prompts_pending ON prompts (session) WHERE state = 'pending';

-- The CLI's living processes, and what is still to be written to them.
CREATE TABLE session_processes (
	run             TEXT PRIMARY KEY REFERENCES runs (id),
	session         TEXT NOT NULL UNIQUE REFERENCES sessions (id),
	sandbox         TEXT NOT NULL,
	stdin           BIGINT NOT NULL,
	closed          BIGINT NOT NULL, -- 0 or 1
	model           TEXT NOT NULL,
	permission_mode TEXT NOT NULL
);

CREATE TABLE session_inputs (
	run    TEXT NOT NULL REFERENCES runs (id),
	at     BIGINT NOT NULL,
	data   BLOB NOT NULL,
	closes BIGINT NOT NULL, -- 0 or 1
	PRIMARY KEY (run, at, closes)
);

-- Until now each turn was a run of its own, which had all of its input from the beginning.
INSERT INTO session_processes (run, session, sandbox, stdin, closed, model, permission_mode)
	SELECT r.id, r.session, r.sandbox, 0, 1, '', 'bypassPermissions' FROM runs r
	JOIN sessions s ON s.id = r.session JOIN session_events e ON e.session = s.id AND e.seq = s.last_seq AND e.run = r.id
	WHERE e.kind <> 'end';
INSERT INTO turns (id, account, session, number, sandbox, run, state, text, model, permission_mode, author, uuid, taken, interrupted,
		reason, seq, end_seq, created_at, started_at, ended_at)
	SELECT 'trn_' || substr(r.id, 5), r.account, r.session, (SELECT count(*) FROM runs o WHERE o.session = r.session AND o.id <= r.id),
		r.sandbox, r.id,
		CASE WHEN r.id IN (SELECT run FROM session_processes) THEN 'running'
			WHEN r.state = 'exited' AND r.exit_code = 0 THEN 'done' WHEN r.state = 'lost' THEN 'lost' ELSE 'failed' END,
		'', '', '', '', '', 1, 0, r.reason,
		(SELECT coalesce(min(e.seq), 0) FROM session_events e WHERE e.session = r.session AND e.run = r.id AND e.kind = 'prompt'),
		(SELECT coalesce(max(e.seq), 0) FROM session_events e WHERE e.session = r.session AND e.run = r.id AND e.kind = 'end'),
		r.started_at, r.started_at, r.ended_at
	FROM runs r JOIN sessions s ON s.id = r.session;
UPDATE session_events SET turn = 'trn_' || substr(run, 5) WHERE run <> '';
