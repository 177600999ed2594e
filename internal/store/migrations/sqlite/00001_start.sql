-- The same numbers and names stand in every dialect's directory. Times are microseconds since 1970, 0 = not set; JSON is TEXT.
-- +goose Up
CREATE TABLE accounts (
	id         TEXT PRIMARY KEY,
	name       TEXT NOT NULL UNIQUE,
	created_at BIGINT NOT NULL
);

CREATE TABLE keys (
	id         TEXT PRIMARY KEY,
	account    TEXT NOT NULL REFERENCES accounts (id),
	name       TEXT NOT NULL,
	hash       BLOB NOT NULL UNIQUE,
	last4      TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	UNIQUE (account, name)
);

CREATE TABLE signins (
	hash       BLOB PRIMARY KEY,
	account    TEXT NOT NULL REFERENCES accounts (id),
	expires_at BIGINT NOT NULL
);

CREATE TABLE web_sessions (
	hash       BLOB PRIMARY KEY,
	data       BLOB NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX web_sessions_by_expiry ON web_sessions (expires_at);

CREATE TABLE settings (
	key   TEXT PRIMARY KEY,
	value BLOB NOT NULL
);

CREATE TABLE volumes (
	id         TEXT PRIMARY KEY,
	account    TEXT NOT NULL REFERENCES accounts (id),
	name       TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	UNIQUE (account, name)
);

CREATE TABLE sandboxes (
	id         TEXT PRIMARY KEY,
	account    TEXT NOT NULL REFERENCES accounts (id),
	name       TEXT NOT NULL,
	state      TEXT NOT NULL,
	reason     TEXT NOT NULL,
	fault      BIGINT NOT NULL, -- 0 or 1
	spec       TEXT NOT NULL,
	engine     TEXT NOT NULL,
	run        TEXT NOT NULL,
	handle     BLOB,
	version    BIGINT NOT NULL,
	created_at BIGINT NOT NULL,
	started_at BIGINT NOT NULL,
	ended_at   BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX sandboxes_by_account ON sandboxes (account, id);
CREATE INDEX sandboxes_live ON sandboxes (expires_at) WHERE state IN ('creating', 'running', 'stopping');

CREATE TABLE sandbox_labels (
	sandbox TEXT NOT NULL REFERENCES sandboxes (id),
	key     TEXT NOT NULL,
	value   TEXT NOT NULL,
	PRIMARY KEY (sandbox, key)
);

CREATE TABLE events (
	seq     INTEGER PRIMARY KEY AUTOINCREMENT,
	account TEXT NOT NULL REFERENCES accounts (id),
	sandbox TEXT NOT NULL REFERENCES sandboxes (id),
	kind    TEXT NOT NULL,
	text    TEXT NOT NULL,
	at      BIGINT NOT NULL
);
CREATE INDEX events_by_account ON events (account, seq);
CREATE INDEX events_by_sandbox ON events (sandbox, seq);

CREATE TABLE runs (
	id         TEXT PRIMARY KEY,
	account    TEXT NOT NULL REFERENCES accounts (id),
	sandbox    TEXT NOT NULL REFERENCES sandboxes (id),
	kind       TEXT NOT NULL,
	session    TEXT NOT NULL,
	argv       TEXT NOT NULL,
	state      TEXT NOT NULL,
	exit_code  BIGINT,
	signal     TEXT NOT NULL,
	reason     TEXT NOT NULL,
	mirrored   BIGINT NOT NULL,
	started_at BIGINT NOT NULL,
	ended_at   BIGINT NOT NULL
);
CREATE INDEX runs_by_sandbox ON runs (sandbox, id);
CREATE INDEX runs_running ON runs (id) WHERE state = 'running';
-- What makes two prompts to one session at the same moment impossible.
CREATE UNIQUE INDEX runs_one_per_session ON runs (session) WHERE state = 'running' AND session <> '';

CREATE TABLE sessions (
	id         TEXT PRIMARY KEY,
	account    TEXT NOT NULL REFERENCES accounts (id),
	sandbox    TEXT NOT NULL,
	volume     TEXT NOT NULL,
	title      TEXT NOT NULL,
	uuid       TEXT NOT NULL UNIQUE,
	turns      BIGINT NOT NULL,
	last_seq   BIGINT NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL
);
CREATE INDEX sessions_by_account ON sessions (account, updated_at);

CREATE TABLE session_events (
	session TEXT NOT NULL REFERENCES sessions (id),
	seq     BIGINT NOT NULL,
	run     TEXT NOT NULL,
	kind    TEXT NOT NULL,
	data    BLOB NOT NULL,
	at      BIGINT NOT NULL,
	PRIMARY KEY (session, seq)
);
