-- A row that changes its status in place, on its page, costs no index anything: PostgreSQL does that where no column of any index,
-- and of no index's condition, has another value. So indexes know of a status only what changes once or twice in a row's life.

-- Statuses that hold a port.
ALTER TABLE orders ADD COLUMN is_active BOOLEAN GENERATED ALWAYS AS (status IN (0, 1, 2, 8, 9, 10)) STORED;
DROP INDEX orders_port_active;
-- One order holds a port; this index alone decides which. The backstop, which looks at all active orders, reads it as well.
CREATE UNIQUE INDEX orders_port_active ON orders (device_id, port_no) WHERE is_active = TRUE;
DROP INDEX orders_active_since;
-- The store has looked for the device's row, under its lock, before it inserts an order.
ALTER TABLE orders DROP CONSTRAINT orders_device_id_fkey;
-- Read from its end: what grows at its end goes in without a search, and leaves full pages behind.
DROP INDEX orders_created;
CREATE INDEX orders_created ON orders (created_at, order_no);
-- Room for what becomes of an order in its first seconds.
ALTER TABLE orders SET (fillfactor = 60);

ALTER TABLE outbound_queue
    ADD COLUMN is_open BOOLEAN GENERATED ALWAYS AS (state IN ('queued', 'claimed', 'written')) STORED,
    -- Ended in another way than it should.
    ADD COLUMN is_failed BOOLEAN GENERATED ALWAYS AS (state IN ('refused', 'expired', 'withdrawn', 'dead')) STORED;
DROP INDEX outbound_unfinished;
CREATE INDEX outbound_unfinished ON outbound_queue (device_id) WHERE is_open = TRUE;
DROP INDEX outbound_state;
CREATE INDEX outbound_failed ON outbound_queue (id) WHERE is_failed = TRUE;
ALTER TABLE outbound_queue SET (fillfactor = 60);
