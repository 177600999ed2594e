-- How much output a run has written, and from where on it is still kept.
-- +goose Up
ALTER TABLE runs ADD COLUMN output_first BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN output_next BIGINT NOT NULL DEFAULT 0;
