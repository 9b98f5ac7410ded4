-- Times are Unix milliseconds UTC, money integer cents, energy integer Wh. Status numbers are those of the API.
-- Bytes a device supplied are BLOBs: they need not be text.

CREATE TABLE devices (
    device_id     TEXT PRIMARY KEY,
    protocol      TEXT NOT NULL CHECK (protocol IN ('ap3000', 'bkv', 'gn')),
    printed_no    INTEGER,
    networked     INTEGER NOT NULL DEFAULT 0,
    -- Raised by every bind; a claim names the epoch it was made for.
    session_epoch INTEGER NOT NULL DEFAULT 0,
    -- Last message id handed out: durable, so that no id is used twice after a restart.
    msg_counter   INTEGER NOT NULL DEFAULT 0,
    -- Last sequence number of the device's own events.
    event_counter INTEGER NOT NULL DEFAULT 0,
    last_seen_at  INTEGER,
    connected_at  INTEGER,
    signal        INTEGER,
    firmware      TEXT,
    iccid         TEXT,
    created_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX devices_last_seen ON devices (last_seen_at DESC);
CREATE INDEX devices_printed_no ON devices (printed_no) WHERE printed_no IS NOT NULL;

CREATE TABLE gateway_sockets (
    device_id  TEXT NOT NULL REFERENCES devices (device_id),
    socket     INTEGER NOT NULL CHECK (socket BETWEEN 1 AND 250),
    serial     BLOB,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (device_id, socket)
) STRICT, WITHOUT ROWID;

CREATE TABLE ports (
    device_id       TEXT NOT NULL REFERENCES devices (device_id),
    port_no         INTEGER NOT NULL CHECK (port_no > 0),
    socket          INTEGER,
    hole            INTEGER,
    status          INTEGER NOT NULL,
    raw_status      INTEGER NOT NULL,
    power_dw        INTEGER NOT NULL,
    current_ma      INTEGER NOT NULL,
    voltage_dv      INTEGER NOT NULL,
    energy_wh       INTEGER NOT NULL,
    charged_seconds INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    PRIMARY KEY (device_id, port_no)
) STRICT, WITHOUT ROWID;

CREATE TABLE orders (
    order_no           TEXT PRIMARY KEY,
    device_id          TEXT NOT NULL REFERENCES devices (device_id),
    port_no            INTEGER NOT NULL CHECK (port_no > 0),
    status             INTEGER NOT NULL CHECK (status BETWEEN 0 AND 10),
    spec               TEXT NOT NULL,
    -- Longest time the charge may last, ms.
    duration_max_ms    INTEGER NOT NULL,
    origin             TEXT NOT NULL CHECK (origin IN ('api', 'device')),
    device_ref         BLOB,
    business_no        INTEGER,
    start_time         INTEGER,
    end_time           INTEGER,
    duration_seconds   INTEGER,
    energy_wh          INTEGER,
    amount_cent        INTEGER,
    end_reason         TEXT,
    end_reason_raw     INTEGER,
    failure_reason     TEXT,
    start_written_at   INTEGER,
    stop_acked         INTEGER NOT NULL DEFAULT 0,
    settled_at         INTEGER,
    settlement_match   TEXT,
    device_end_pending INTEGER NOT NULL DEFAULT 0,
    sequence_no        INTEGER NOT NULL,
    request_id         TEXT,
    created_at         INTEGER NOT NULL,
    status_at          INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL
) STRICT;
-- One order holds a port; this index alone decides which.
CREATE UNIQUE INDEX orders_port_active ON orders (device_id, port_no) WHERE status IN (0, 1, 2, 8, 9, 10);
CREATE INDEX orders_port_end_pending ON orders (device_id, port_no) WHERE device_end_pending = 1;
CREATE INDEX orders_device_created ON orders (device_id, created_at DESC);
CREATE INDEX orders_port_created ON orders (device_id, port_no, created_at DESC);
CREATE INDEX orders_active_since ON orders (status, status_at, device_id) WHERE status IN (0, 1, 2, 8, 9, 10);

-- Every settlement frame that was applied. Without order_no it is an orphan: money nobody asked for, raised as an alarm.
CREATE TABLE settlements (
    id               INTEGER PRIMARY KEY,
    -- AP3000: identity of the record in the device. NULL for BKV/GN, whose numbers repeat.
    key              BLOB,
    device_id        TEXT NOT NULL,
    port_no          INTEGER NOT NULL,
    order_no         TEXT REFERENCES orders (order_no),
    business_no      INTEGER,
    duration_seconds INTEGER NOT NULL,
    energy_wh        INTEGER NOT NULL,
    amount_cent      INTEGER,
    raw              BLOB NOT NULL,
    at               INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX settlements_key ON settlements (key) WHERE key IS NOT NULL;
CREATE INDEX settlements_orphan ON settlements (device_id, port_no, at) WHERE order_no IS NULL;

-- Settlement frames that could not be applied, whole; looked after by hand.
CREATE TABLE settlement_quarantine (
    id        INTEGER PRIMARY KEY,
    device_id TEXT NOT NULL,
    port_no   INTEGER NOT NULL,
    raw       BLOB NOT NULL,
    error     TEXT NOT NULL,
    at        INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX settlement_quarantine_raw ON settlement_quarantine (device_id, raw);

CREATE TABLE outbound_queue (
    -- AUTOINCREMENT: an id names one command for good, also behind pruning.
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id     TEXT NOT NULL REFERENCES devices (device_id),
    order_no      TEXT REFERENCES orders (order_no),
    kind          TEXT NOT NULL,
    body          TEXT NOT NULL,
    priority      INTEGER NOT NULL,
    state         TEXT NOT NULL CHECK
        (state IN ('queued', 'claimed', 'written', 'acked', 'refused', 'expired', 'withdrawn', 'dead')),
    -- Epoch of the last claim; NULL: never claimed, so never written.
    epoch         INTEGER,
    msg_id        INTEGER NOT NULL,
    maybe_written INTEGER NOT NULL DEFAULT 0,
    attempts      INTEGER NOT NULL DEFAULT 0,
    reason        TEXT,
    not_before    INTEGER NOT NULL,
    not_after     INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    written_at    INTEGER,
    updated_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX outbound_state ON outbound_queue (state, not_before);
CREATE INDEX outbound_waiting ON outbound_queue (device_id) WHERE state IN ('queued', 'claimed');
CREATE INDEX outbound_order ON outbound_queue (order_no) WHERE order_no IS NOT NULL;

CREATE TABLE events (
    -- With a single writer the order of insertion is the order of commit: the row number is the position in the log.
    -- The newest row is never pruned, so that positions never repeat.
    pos         INTEGER PRIMARY KEY,
    event_id    TEXT NOT NULL,
    event_type  TEXT NOT NULL,
    key         TEXT NOT NULL,
    device_id   TEXT,
    order_no    TEXT,
    sequence_no INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    data        TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_key_sequence ON events (key, sequence_no) WHERE sequence_no > 0;
CREATE VIEW event_log AS SELECT pos, event_id, key FROM events;

CREATE TABLE event_cursors (
    endpoint TEXT PRIMARY KEY,
    pos      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Deliveries behind their endpoint's cursor that are not done: tried again later, or given up.
CREATE TABLE event_delivery (
    endpoint TEXT NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('parked', 'dead')),
    pos      INTEGER NOT NULL,
    key      TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    next_at  INTEGER NOT NULL,
    reason   TEXT NOT NULL,
    PRIMARY KEY (endpoint, pos)
) STRICT, WITHOUT ROWID;
CREATE INDEX event_delivery_state ON event_delivery (endpoint, state, pos);

CREATE TABLE idempotency_keys (
    api_key    TEXT NOT NULL,
    route      TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  BLOB NOT NULL,
    status     INTEGER,
    response   BLOB,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (api_key, route, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);
