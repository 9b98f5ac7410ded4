-- The instances that share a store, and what each of them does for all. The embedded store has one and keeps these empty.
CREATE TABLE instances (
    server_id   TEXT PRIMARY KEY,
    started_at  INTEGER NOT NULL,
    -- When it was heard of last, by the database's clock; 0: it has left.
    beat        INTEGER NOT NULL,
    version     TEXT NOT NULL,
    draining    INTEGER NOT NULL DEFAULT 0,
    connections INTEGER NOT NULL DEFAULT 0
) STRICT;
-- When the instance that had the device was found to be gone.
ALTER TABLE devices ADD COLUMN owner_ended_at INTEGER;
-- When the device counts as offline if nothing more comes; latest value.
ALTER TABLE devices ADD COLUMN offline_at INTEGER;
-- Which instance delivers to a webhook endpoint.
CREATE TABLE event_leases (
    endpoint    TEXT PRIMARY KEY,
    owner       TEXT NOT NULL,
    lease_until INTEGER NOT NULL
) STRICT;
