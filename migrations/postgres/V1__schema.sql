-- The whole schema. Tables and columns are those of the embedded store, so that one set of statements serves both.
--
-- Times are Unix milliseconds UTC (BIGINT), money integer cents, energy integer Wh. Status numbers are those of the API.
-- Bytes a device supplied are BYTEA: they need not be text. JSON is TEXT: it is stored and given back, never searched.
--
-- Locks: the row of `devices` is the lock of everything that belongs to a device; whoever changes any of it takes that row
-- first. That is why most tables have no foreign key to `devices` or `orders`: on the hot path it would cost a look-up per row to
-- prove what the statement before has just read under that lock. Kept are those that refuse what no statement has looked for.
--
-- Fill factors leave room on the page for updates that change no indexed column (counters, progress, port snapshots), which
-- then touch no index. Small thresholds make autovacuum follow tables whose rows change more often than they come.

CREATE TABLE devices (
    device_id       TEXT PRIMARY KEY,
    protocol        TEXT NOT NULL CHECK (protocol IN ('ap3000', 'bkv', 'gn')),
    -- Raised by every bind; a claim names the epoch it was made for.
    session_epoch   BIGINT NOT NULL DEFAULT 0,
    -- Last message id handed out: durable, so that no id is used twice after a restart.
    msg_counter     BIGINT NOT NULL DEFAULT 0,
    -- Last sequence number of the device's own events.
    event_counter   BIGINT NOT NULL DEFAULT 0,
    last_seen_at    BIGINT,
    connected_at    BIGINT,
    created_at      BIGINT NOT NULL,
    -- The instance whose bind raised the epoch last.
    owner           TEXT,
    printed_no      BIGINT,
    networked       BOOLEAN NOT NULL DEFAULT FALSE,
    signal          SMALLINT,
    firmware        TEXT,
    iccid           TEXT,
    -- As the device says in its registration or its host heartbeat; NULL: it never did.
    device_type     SMALLINT,
    -- Settings of the operator.
    name            TEXT,
    -- Says what a gateway speaks, whatever listener it comes in on.
    protocol_set    TEXT CHECK (protocol_set IN ('bkv', 'gn')),
    extensions      BOOLEAN NOT NULL DEFAULT FALSE,
    fsk_frequency   INTEGER,
    -- What a device tells of itself; latest values.
    imei            TEXT,
    module_version  TEXT,
    host_type       SMALLINT,
    host            TEXT,
    -- The network list of a gateway: what it shall be, socket by socket, and how far the gateway has taken it.
    network_channel SMALLINT,
    -- 0: nothing to do for the list as a whole; 1: it is to be sent; 2: it was, and the gateway did not take it.
    network_refresh SMALLINT NOT NULL DEFAULT 0,
    -- The one network command under way, a row of outbound_queue.
    network_command BIGINT
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX devices_last_seen ON devices (last_seen_at DESC);
CREATE INDEX devices_printed_no ON devices (printed_no) WHERE printed_no IS NOT NULL;
-- What a dead instance leaves behind.
CREATE INDEX devices_owner ON devices (owner) WHERE owner IS NOT NULL;

CREATE TABLE gateway_sockets (
    device_id    TEXT NOT NULL REFERENCES devices (device_id),
    socket       SMALLINT NOT NULL CHECK (socket BETWEEN 1 AND 250),
    serial       BYTEA,
    uid          TEXT,
    state        TEXT NOT NULL DEFAULT 'desired' CHECK (state IN ('desired', 'confirmed', 'removing')),
    -- Why the gateway did not take the last command for this socket; it is sent again at the next bind.
    refused      TEXT,
    confirmed_at BIGINT,
    updated_at   BIGINT NOT NULL,
    PRIMARY KEY (device_id, socket)
);

CREATE TABLE ports (
    device_id       TEXT NOT NULL,
    port_no         INTEGER NOT NULL CHECK (port_no > 0),
    socket          SMALLINT,
    hole            SMALLINT,
    status          SMALLINT NOT NULL,
    raw_status      SMALLINT NOT NULL,
    power_dw        INTEGER NOT NULL,
    current_ma      INTEGER NOT NULL,
    voltage_dv      INTEGER NOT NULL,
    energy_wh       BIGINT NOT NULL,
    charged_seconds BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    PRIMARY KEY (device_id, port_no)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE TABLE orders (
    order_no           TEXT PRIMARY KEY,
    -- A record of a device that has no row must not become an order: it goes to quarantine.
    device_id          TEXT NOT NULL REFERENCES devices (device_id),
    port_no            INTEGER NOT NULL CHECK (port_no > 0),
    status             SMALLINT NOT NULL CHECK (status BETWEEN 0 AND 10),
    spec               TEXT NOT NULL,
    -- Longest time the charge may last, ms.
    duration_max_ms    BIGINT NOT NULL,
    origin             TEXT NOT NULL CHECK (origin IN ('api', 'device')),
    device_ref         BYTEA,
    business_no        INTEGER,
    start_time         BIGINT,
    end_time           BIGINT,
    duration_seconds   BIGINT,
    energy_wh          BIGINT,
    amount_cent        BIGINT,
    end_reason         TEXT,
    end_reason_raw     SMALLINT,
    failure_reason     TEXT,
    start_written_at   BIGINT,
    stop_acked         BOOLEAN NOT NULL DEFAULT FALSE,
    settled_at         BIGINT,
    settlement_match   TEXT,
    device_end_pending BOOLEAN NOT NULL DEFAULT FALSE,
    sequence_no        BIGINT NOT NULL,
    request_id         TEXT,
    created_at         BIGINT NOT NULL,
    status_at          BIGINT NOT NULL,
    updated_at         BIGINT NOT NULL,
    card_no            TEXT,
    -- As agreed when it was ordered: JSON. NULL: no price.
    tariff             TEXT,
    -- NULL: no card, or one whose account is not kept here.
    hold_cent          BIGINT CHECK (hold_cent >= 0),
    hold_open          BOOLEAN NOT NULL DEFAULT FALSE,
    price_cent         BIGINT,
    charged_cent       BIGINT
) WITH (fillfactor = 80);
-- One order holds a port; this index alone decides which.
CREATE UNIQUE INDEX orders_port_active ON orders (device_id, port_no) WHERE status IN (0, 1, 2, 8, 9, 10);
CREATE INDEX orders_port_end_pending ON orders (device_id, port_no) WHERE device_end_pending = TRUE;
CREATE INDEX orders_device_created ON orders (device_id, created_at DESC);
CREATE INDEX orders_port_created ON orders (device_id, port_no, created_at DESC);
CREATE INDEX orders_active_since ON orders (status, status_at, device_id) WHERE status IN (0, 1, 2, 8, 9, 10);
CREATE INDEX orders_card ON orders (card_no, created_at DESC) WHERE card_no IS NOT NULL;
CREATE INDEX orders_hold_open ON orders (end_time) WHERE hold_open = TRUE;

-- Every settlement frame that was applied. Without order_no it is an orphan: money nobody asked for, raised as an alarm.
-- No foreign key to its order: it is inserted behind the row it names, and orders are never deleted.
CREATE TABLE settlements (
    id               BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    -- AP3000: identity of the record in the device. NULL for BKV/GN, whose numbers repeat.
    key              BYTEA,
    device_id        TEXT NOT NULL,
    port_no          INTEGER NOT NULL,
    order_no         TEXT,
    business_no      INTEGER,
    duration_seconds BIGINT NOT NULL,
    energy_wh        BIGINT NOT NULL,
    amount_cent      BIGINT,
    raw              BYTEA NOT NULL,
    at               BIGINT NOT NULL
);
CREATE UNIQUE INDEX settlements_key ON settlements (key) WHERE key IS NOT NULL;
CREATE INDEX settlements_orphan ON settlements (device_id, port_no, at) WHERE order_no IS NULL;

-- Settlement frames that could not be applied, whole; looked after by hand.
CREATE TABLE settlement_quarantine (
    id        BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    device_id TEXT NOT NULL,
    port_no   INTEGER NOT NULL,
    raw       BYTEA NOT NULL,
    error     TEXT NOT NULL,
    at        BIGINT NOT NULL
);
CREATE UNIQUE INDEX settlement_quarantine_raw ON settlement_quarantine (device_id, raw);

-- No foreign keys: the message id of a row was taken from the device's row by the statement before, and the order of a start or
-- stop was written in the same transaction.
CREATE TABLE outbound_queue (
    -- An id names one command for good: identities are not reused, also behind pruning.
    id            BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    device_id     TEXT NOT NULL,
    order_no      TEXT,
    kind          TEXT NOT NULL,
    body          TEXT NOT NULL,
    priority      SMALLINT NOT NULL,
    state         TEXT NOT NULL CHECK
        (state IN ('queued', 'claimed', 'written', 'acked', 'refused', 'expired', 'withdrawn', 'dead')),
    -- Epoch of the last claim; NULL: never claimed, so never written.
    epoch         BIGINT,
    msg_id        BIGINT NOT NULL,
    maybe_written BOOLEAN NOT NULL DEFAULT FALSE,
    -- How often it was and may be tried; what the device answered, as JSON; which request asked for it.
    attempts      SMALLINT NOT NULL DEFAULT 0,
    attempts_max  SMALLINT NOT NULL DEFAULT 1,
    reason        TEXT,
    result        TEXT,
    request_id    TEXT,
    not_before    BIGINT NOT NULL,
    not_after     BIGINT NOT NULL,
    created_at    BIGINT NOT NULL,
    written_at    BIGINT,
    updated_at    BIGINT NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX outbound_state ON outbound_queue (state, not_before);
CREATE INDEX outbound_unfinished ON outbound_queue (device_id) WHERE state IN ('queued', 'claimed', 'written');
CREATE INDEX outbound_order ON outbound_queue (order_no) WHERE order_no IS NOT NULL;
CREATE INDEX outbound_device ON outbound_queue (device_id, id DESC);

-- Inserted with the change they tell. `id` is taken while the transaction holds the lock of the event's key, so ids of one key
-- rise in the order of its commits; between keys they may commit in any order.
CREATE TABLE events (
    id          BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    event_id    TEXT NOT NULL,
    event_type  TEXT NOT NULL,
    key         TEXT NOT NULL,
    device_id   TEXT,
    order_no    TEXT,
    sequence_no BIGINT NOT NULL,
    at          BIGINT NOT NULL,
    data        TEXT NOT NULL
);
CREATE UNIQUE INDEX events_key_sequence ON events (key, sequence_no) WHERE sequence_no > 0;

-- The log third parties read: committed events in the order one sequencer saw them. A position is given once and for good.
CREATE TABLE event_log (
    pos BIGINT PRIMARY KEY,
    id  BIGINT NOT NULL UNIQUE
);

-- Events as queries name them: those that have a position in the log, and all of them, 0 where there is none yet.
CREATE VIEW logged_events AS
    SELECT l.pos, e.event_id, e.event_type, e.key, e.device_id, e.order_no, e.sequence_no, e.at, e.data
    FROM event_log l JOIN events e ON e.id = l.id;
CREATE VIEW all_events AS
    SELECT coalesce(l.pos, 0) AS pos, e.event_id, e.event_type, e.key, e.device_id, e.order_no, e.sequence_no, e.at, e.data
    FROM events e LEFT JOIN event_log l ON l.id = e.id;

-- One row: what the sequencer's next leader starts from. Every event with an id up to `watermark` has its position or was
-- never committed; `pos` is the last one given, also behind pruning.
CREATE TABLE event_sequencer (
    single    BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (single),
    watermark BIGINT NOT NULL,
    pos       BIGINT NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000);
INSERT INTO event_sequencer (watermark, pos) VALUES (0, 0);

CREATE TABLE event_cursors (
    endpoint    TEXT PRIMARY KEY,
    pos         BIGINT NOT NULL,
    -- The instance that delivers to the endpoint, and until when (database clock) unless it renews.
    owner       TEXT,
    lease_until BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Deliveries behind their endpoint's cursor that are not done: tried again later, or given up.
CREATE TABLE event_delivery (
    endpoint TEXT NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('parked', 'dead')),
    pos      BIGINT NOT NULL,
    key      TEXT NOT NULL,
    attempts SMALLINT NOT NULL,
    next_at  BIGINT NOT NULL,
    reason   TEXT NOT NULL,
    PRIMARY KEY (endpoint, pos)
);
CREATE INDEX event_delivery_state ON event_delivery (endpoint, state, pos);

CREATE TABLE idempotency_keys (
    api_key    TEXT NOT NULL,
    route      TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  BYTEA NOT NULL,
    status     INTEGER,
    response   BYTEA,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (api_key, route, key)
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);

-- Accounts of cards. `balance_cent` is the sum of the balance changes in card_balance_logs, `held_cent` that of the held changes
-- and of all open holds of orders. The checks hold in every statement: no account is ever below zero.
CREATE TABLE cards (
    card_no      TEXT PRIMARY KEY,
    -- Account state of AP3000; 0 may charge.
    state        SMALLINT NOT NULL CHECK (state BETWEEN 0 AND 18),
    -- Name in the configuration; NULL: the default tariff.
    tariff       TEXT,
    -- A monthly card, and when its plan ends.
    expires_at   BIGINT,
    balance_cent BIGINT NOT NULL DEFAULT 0 CHECK (balance_cent BETWEEN 0 AND 4294967295),
    held_cent    BIGINT NOT NULL DEFAULT 0 CHECK (held_cent BETWEEN 0 AND balance_cent),
    -- Counter of the card's events.
    sequence_no  BIGINT NOT NULL DEFAULT 0,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX cards_state ON cards (state);

CREATE TABLE card_transactions (
    id           BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    card_no      TEXT NOT NULL REFERENCES cards (card_no),
    kind         TEXT NOT NULL CHECK (kind IN ('recharge', 'charge')),
    order_no     TEXT,
    amount_cent  BIGINT NOT NULL,
    price_cent   BIGINT NOT NULL,
    unpaid_cent  BIGINT NOT NULL,
    balance_cent BIGINT NOT NULL,
    reference    TEXT,
    request_id   TEXT,
    at           BIGINT NOT NULL
);
CREATE INDEX card_transactions_card ON card_transactions (card_no, id DESC);
-- An order is paid for once.
CREATE UNIQUE INDEX card_transactions_order ON card_transactions (order_no) WHERE order_no IS NOT NULL;

-- Every change of an account, with what it left.
CREATE TABLE card_balance_logs (
    id             BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    card_no        TEXT NOT NULL REFERENCES cards (card_no),
    kind           TEXT NOT NULL CHECK (kind IN ('recharge', 'hold', 'release', 'charge')),
    order_no       TEXT,
    transaction_id BIGINT REFERENCES card_transactions (id),
    balance_change BIGINT NOT NULL,
    held_change    BIGINT NOT NULL,
    balance_cent   BIGINT NOT NULL,
    held_cent      BIGINT NOT NULL,
    at             BIGINT NOT NULL
);
CREATE INDEX card_balance_logs_card ON card_balance_logs (card_no, id DESC);

CREATE TABLE device_params (
    device_id   TEXT NOT NULL REFERENCES devices (device_id),
    -- BKV/GN; 0: the device as a whole.
    socket      SMALLINT NOT NULL,
    name        TEXT NOT NULL,
    -- JSON values; NULL: not known.
    desired     TEXT,
    reported    TEXT,
    -- The device acknowledged a command that set `desired`: what it reports next is its last word.
    set_at      BIGINT,
    -- Why the device does not take `desired`; NULL while it may.
    refused     TEXT,
    desired_at  BIGINT,
    reported_at BIGINT,
    PRIMARY KEY (device_id, socket, name)
);
CREATE INDEX device_params_pending ON device_params (device_id)
    WHERE desired IS NOT NULL AND refused IS NULL AND desired IS DISTINCT FROM reported;

-- Images; the bytes are in a file named by the hash, in the firmware directory.
CREATE TABLE firmware (
    firmware_id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    sha256      BYTEA NOT NULL UNIQUE CHECK (length(sha256) = 32),
    size        BIGINT NOT NULL,
    name        TEXT NOT NULL,
    -- Hundredths.
    version     INTEGER,
    device_type SMALLINT,
    created_at  BIGINT NOT NULL
);

CREATE TABLE ota_tasks (
    task_id         BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    device_id       TEXT NOT NULL REFERENCES devices (device_id),
    method          TEXT NOT NULL CHECK (method IN ('e0', 'e1', 'e2', 'f8', 'f9', 'fa', 'ftp', 'self_update')),
    -- NULL: the device fetches it by itself.
    firmware_id     BIGINT REFERENCES firmware (firmware_id),
    ftp_host        TEXT,
    ftp_port        INTEGER,
    ftp_file        TEXT,
    verification    BOOLEAN NOT NULL,
    force           BOOLEAN NOT NULL,
    state           SMALLINT NOT NULL CHECK (state BETWEEN 0 AND 4),
    reason          TEXT,
    packets_total   INTEGER NOT NULL,
    -- The update goes on behind these.
    packets_acked   INTEGER NOT NULL DEFAULT 0,
    -- The furthest it ever came, and how often it went on since without coming further.
    packets_best    INTEGER NOT NULL DEFAULT 0,
    stalls          INTEGER NOT NULL DEFAULT 0,
    firmware_before TEXT,
    sent_at         BIGINT,
    ended_at        BIGINT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL
) WITH (fillfactor = 80);
-- A device has one open task; this index alone decides which.
CREATE UNIQUE INDEX ota_tasks_open ON ota_tasks (device_id) WHERE state IN (0, 1, 2);
CREATE INDEX ota_tasks_device ON ota_tasks (device_id, task_id DESC);

-- What each lane of each instance committed last: where a connection is lost during a COMMIT, this row says what became of it.
-- The transaction's own number would not: one that was lost in a crash of the server is given to somebody else.
CREATE TABLE store_lanes (
    lane  TEXT PRIMARY KEY,
    batch BIGINT NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000);

-- The running processes. `beat` is the database's clock: what it says of an instance needs no other clock.
CREATE TABLE instances (
    server_id  TEXT PRIMARY KEY,
    started_at BIGINT NOT NULL,
    beat       BIGINT NOT NULL,
    version    TEXT NOT NULL,
    draining   BOOLEAN NOT NULL DEFAULT FALSE
) WITH (fillfactor = 50);

-- One row per command frame, either way. Written without waiting for the disk: a crash may lose its last seconds.
CREATE TABLE cmd_log (
    id        BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    at        BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    direction TEXT NOT NULL CHECK (direction IN ('up', 'down')),
    command   INTEGER NOT NULL,
    msg_id    BIGINT NOT NULL,
    raw       BYTEA NOT NULL
);
CREATE INDEX cmd_log_device_at ON cmd_log (device_id, at);
CREATE INDEX cmd_log_at ON cmd_log (at);
