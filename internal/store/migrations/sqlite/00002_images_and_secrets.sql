-- Images of accounts, and their secrets. A secret's values are sealed before they come here.
-- +goose Up
CREATE TABLE secrets (
	id         TEXT PRIMARY KEY,
	account    TEXT NOT NULL REFERENCES accounts (id),
	name       TEXT NOT NULL,
	keys       TEXT NOT NULL, -- JSON: the names of the values, for people
	sealed     BLOB NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL,
	UNIQUE (account, name)
);

CREATE TABLE images (
	id         TEXT PRIMARY KEY,
	account    TEXT NOT NULL REFERENCES accounts (id),
	name       TEXT NOT NULL,
	recipe     TEXT NOT NULL, -- what tells images of one name apart: a digest of the commands run on top; of a snapshot, its own ID
	kind       TEXT NOT NULL,
	digest     TEXT NOT NULL,
	engine     TEXT NOT NULL,
	settings   TEXT NOT NULL,
	size       BIGINT NOT NULL,
	origin     TEXT NOT NULL,
	reference  TEXT NOT NULL,
	platform   TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	used_at    BIGINT NOT NULL,
	UNIQUE (account, engine, name, recipe)
);
CREATE INDEX images_by_digest ON images (engine, digest);
