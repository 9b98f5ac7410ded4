-- Named commands and device parameters.

-- How often a command may be tried; what the device answered, as JSON; which request asked for it.
ALTER TABLE outbound_queue ADD COLUMN attempts_max INTEGER NOT NULL DEFAULT 1;
ALTER TABLE outbound_queue ADD COLUMN result TEXT;
ALTER TABLE outbound_queue ADD COLUMN request_id TEXT;
CREATE INDEX outbound_device ON outbound_queue (device_id, id DESC);

CREATE TABLE device_params (
    device_id   TEXT NOT NULL REFERENCES devices (device_id),
    -- BKV/GN; 0: the device as a whole.
    socket      INTEGER NOT NULL,
    name        TEXT NOT NULL,
    -- JSON values; NULL: not known.
    desired     TEXT,
    reported    TEXT,
    -- The device acknowledged a command that set `desired`: what it reports next is its last word.
    set_at      INTEGER,
    -- Why the device does not take `desired`; NULL while it may.
    refused     TEXT,
    desired_at  INTEGER,
    reported_at INTEGER,
    PRIMARY KEY (device_id, socket, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_params_pending ON device_params (device_id)
    WHERE desired IS NOT NULL AND refused IS NULL AND desired IS NOT reported;
