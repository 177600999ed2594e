-- +goose Up
ALTER TABLE sandboxes ADD COLUMN suspended_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN suspended_until BIGINT NOT NULL DEFAULT 0;
DROP INDEX sandboxes_live;
CREATE INDEX sandboxes_live ON sandboxes (expires_at)
	WHERE state IN ('creating', 'running', 'suspending', 'suspended', 'resuming', 'stopping');
