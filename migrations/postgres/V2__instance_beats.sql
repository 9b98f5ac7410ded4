-- What an instance does for all, and when one was found to be gone.
ALTER TABLE instances ADD COLUMN connections BIGINT NOT NULL DEFAULT 0;
-- When the instance that had the device was found to be gone, by the database's clock.
ALTER TABLE devices ADD COLUMN owner_ended_at BIGINT;
-- When the device counts as offline if nothing more comes; latest value.
ALTER TABLE devices ADD COLUMN offline_at BIGINT;
-- Which instance delivers to a webhook endpoint.
CREATE TABLE event_leases (
    endpoint    TEXT PRIMARY KEY,
    owner       TEXT NOT NULL,
    lease_until BIGINT NOT NULL
) WITH (fillfactor = 50);
