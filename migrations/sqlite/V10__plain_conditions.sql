-- A list of more than two values behind IN is a table that SQLite makes, fills and drops with every statement that meets it: in a
-- CHECK, in the condition of an index, in a query. Comparisons are not, so conditions are columns made of them, by the names that
-- PostgreSQL has them by.

-- Statuses that hold a port: 0, 1, 2, 8, 9, 10.
ALTER TABLE orders ADD COLUMN is_active INTEGER GENERATED ALWAYS AS (status <= 2 OR status >= 8) VIRTUAL;
DROP INDEX orders_port_active;
-- One order holds a port; this index alone decides which.
CREATE UNIQUE INDEX orders_port_active ON orders (device_id, port_no) WHERE is_active = 1;
DROP INDEX orders_active_since;
CREATE INDEX orders_active_since ON orders (status, status_at, device_id) WHERE is_active = 1;
-- Orders of a port are found among those of its device and time: one index less to be written with every order, in a place of its own.
DROP INDEX orders_port_created;
DROP INDEX orders_device_created;
CREATE INDEX orders_device_created ON orders (device_id, created_at DESC, port_no);
-- Read from its end, written at its end.
DROP INDEX orders_created;
CREATE INDEX orders_created ON orders (created_at, order_no);

-- The same table with its states compared one by one.
CREATE TABLE outbound_queue_plain (
    -- AUTOINCREMENT: an id names one command for good, also behind pruning.
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id     TEXT NOT NULL REFERENCES devices (device_id),
    order_no      TEXT REFERENCES orders (order_no),
    kind          TEXT NOT NULL,
    body          TEXT NOT NULL,
    priority      INTEGER NOT NULL,
    state         TEXT NOT NULL CHECK
        (state = 'written' OR state = 'acked' OR state = 'claimed' OR state = 'queued' OR state = 'refused'
         OR state = 'expired' OR state = 'withdrawn' OR state = 'dead'),
    -- Epoch of the last claim; NULL: never claimed, so never written.
    epoch         INTEGER,
    msg_id        INTEGER NOT NULL,
    maybe_written INTEGER NOT NULL DEFAULT 0,
    -- How often it was and may be tried; what the device answered, as JSON; which request asked for it.
    attempts      INTEGER NOT NULL DEFAULT 0,
    attempts_max  INTEGER NOT NULL DEFAULT 1,
    reason        TEXT,
    result        TEXT,
    request_id    TEXT,
    not_before    INTEGER NOT NULL,
    not_after     INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    written_at    INTEGER,
    updated_at    INTEGER NOT NULL,
    is_open       INTEGER GENERATED ALWAYS AS (state = 'written' OR state = 'claimed' OR state = 'queued') VIRTUAL,
    -- Ended in another way than it should.
    is_failed     INTEGER GENERATED ALWAYS AS
        (state = 'refused' OR state = 'expired' OR state = 'withdrawn' OR state = 'dead') VIRTUAL
) STRICT;
INSERT INTO outbound_queue_plain (id, device_id, order_no, kind, body, priority, state, epoch, msg_id, maybe_written, attempts,
        attempts_max, reason, result, request_id, not_before, not_after, created_at, written_at, updated_at)
    SELECT id, device_id, order_no, kind, body, priority, state, epoch, msg_id, maybe_written, attempts,
        attempts_max, reason, result, request_id, not_before, not_after, created_at, written_at, updated_at
    FROM outbound_queue ORDER BY id;
-- The number of the newest command, also where that one is pruned.
DELETE FROM sqlite_sequence WHERE name = 'outbound_queue_plain';
INSERT INTO sqlite_sequence (name, seq) SELECT 'outbound_queue_plain', seq FROM sqlite_sequence WHERE name = 'outbound_queue';
DROP TABLE outbound_queue;
ALTER TABLE outbound_queue_plain RENAME TO outbound_queue;
-- All that is open is few; an index that leads with the state would be written with each change of one.
CREATE INDEX outbound_unfinished ON outbound_queue (device_id) WHERE is_open = 1;
CREATE INDEX outbound_order ON outbound_queue (order_no) WHERE order_no IS NOT NULL;
CREATE INDEX outbound_device ON outbound_queue (device_id, id DESC);
CREATE INDEX outbound_failed ON outbound_queue (id) WHERE is_failed = 1;
