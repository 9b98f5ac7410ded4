-- Firmware and its way to devices.

-- As the device says in its registration or its host heartbeat; NULL: it never did.
ALTER TABLE devices ADD COLUMN device_type INTEGER;

-- Images; the bytes are in a file named by the hash, in the firmware directory.
CREATE TABLE firmware (
    firmware_id INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256      BLOB NOT NULL UNIQUE CHECK (length(sha256) = 32),
    size        INTEGER NOT NULL,
    name        TEXT NOT NULL,
    -- Hundredths.
    version     INTEGER,
    device_type INTEGER,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE ota_tasks (
    task_id         INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id       TEXT NOT NULL REFERENCES devices (device_id),
    method          TEXT NOT NULL CHECK (method IN ('e0', 'e1', 'e2', 'f8', 'f9', 'fa', 'ftp', 'self_update')),
    -- NULL: the device fetches it by itself.
    firmware_id     INTEGER REFERENCES firmware (firmware_id),
    ftp_host        TEXT,
    ftp_port        INTEGER,
    ftp_file        TEXT,
    verification    INTEGER NOT NULL,
    force           INTEGER NOT NULL,
    state           INTEGER NOT NULL CHECK (state BETWEEN 0 AND 4),
    reason          TEXT,
    packets_total   INTEGER NOT NULL,
    -- The update goes on behind these.
    packets_acked   INTEGER NOT NULL DEFAULT 0,
    -- The furthest it ever came, and how often it went on since without coming further.
    packets_best    INTEGER NOT NULL DEFAULT 0,
    stalls          INTEGER NOT NULL DEFAULT 0,
    firmware_before TEXT,
    sent_at         INTEGER,
    ended_at        INTEGER,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL
) STRICT;
-- A device has one open task; this index alone decides which.
CREATE UNIQUE INDEX ota_tasks_open ON ota_tasks (device_id) WHERE state IN (0, 1, 2);
CREATE INDEX ota_tasks_device ON ota_tasks (device_id, task_id DESC);
