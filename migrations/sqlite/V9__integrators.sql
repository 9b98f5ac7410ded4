-- What third parties' developers and operators see and manage: keys, endpoints, deliveries, and what led to an order.

-- Keys and endpoints made by the admin API, beside those of the configuration. Lists are JSON.
CREATE TABLE api_keys (
    name         TEXT PRIMARY KEY,
    -- The key itself is known to its holder alone.
    key_sha256   BLOB NOT NULL UNIQUE CHECK (length(key_sha256) = 32),
    scopes       TEXT NOT NULL,
    require_hmac INTEGER NOT NULL,
    -- In the clear: a signature is checked with the secret itself.
    hmac_secret  TEXT,
    ip_allow     TEXT NOT NULL,
    rate_per_s   INTEGER NOT NULL CHECK (rate_per_s >= 0),
    burst        INTEGER NOT NULL CHECK (burst >= 0),
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL
) STRICT;
CREATE TABLE webhook_endpoints (
    name            TEXT PRIMARY KEY,
    url             TEXT NOT NULL,
    secret          TEXT NOT NULL,
    -- Signs too, until the receiver knows the new one.
    secret_previous TEXT,
    api_key         TEXT,
    -- Empty: all types but those that come only on request.
    events          TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL
) STRICT;
-- One row: raised with every change of the two tables, so that every instance sees that there was one.
CREATE TABLE managed_revision (
    single   INTEGER PRIMARY KEY DEFAULT 1 CHECK (single = 1),
    revision INTEGER NOT NULL
) STRICT;
INSERT INTO managed_revision (revision) VALUES (0);

-- Nothing is sent to an endpoint from `disabled_at` on, until it is enabled again; its cursor stays.
ALTER TABLE event_cursors ADD COLUMN disabled_at INTEGER;
ALTER TABLE event_cursors ADD COLUMN disabled_reason TEXT;
-- Raised when somebody else than who delivers changed what is to be delivered: it looks again.
ALTER TABLE event_cursors ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;

-- The log of deliveries is in the file of the command log.

-- Requests that created, stopped or cancelled an order, written with what they did.
CREATE TABLE order_requests (
    id              INTEGER PRIMARY KEY,
    order_no        TEXT NOT NULL,
    wish            TEXT NOT NULL CHECK (wish IN ('create', 'stop', 'cancel')),
    request_id      TEXT NOT NULL,
    -- Name of the API key.
    api_key         TEXT,
    idempotency_key TEXT,
    client_ip       TEXT,
    instance        TEXT,
    at              INTEGER NOT NULL
) STRICT;
CREATE INDEX order_requests_order ON order_requests (order_no);

-- Lists of orders of all devices, newest first, and of a time.
CREATE INDEX orders_created ON orders (created_at DESC, order_no DESC);

-- Settlements of an order; those of AP3000 are found by their key.
CREATE INDEX settlements_order ON settlements (order_no) WHERE key IS NULL AND order_no IS NOT NULL;
-- What became of the events of an order; hardly any delivery is ever parked.
CREATE INDEX event_delivery_pos ON event_delivery (pos);

-- Written with every flush of latest values, asked for once at a start: without it, such an update touches no index.
DROP INDEX devices_last_seen;
