-- Settings of the operator.
ALTER TABLE devices ADD COLUMN name TEXT;
-- Says what a gateway speaks, whatever listener it comes in on.
ALTER TABLE devices ADD COLUMN protocol_set TEXT CHECK (protocol_set IN ('bkv', 'gn'));
ALTER TABLE devices ADD COLUMN extensions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN fsk_frequency INTEGER;
-- What a device tells of itself; latest values.
ALTER TABLE devices ADD COLUMN imei TEXT;
ALTER TABLE devices ADD COLUMN module_version TEXT;
ALTER TABLE devices ADD COLUMN host_type INTEGER;
ALTER TABLE devices ADD COLUMN host TEXT;

-- The network list of a gateway: what it shall be, socket by socket, and how far the gateway has taken it.
ALTER TABLE devices ADD COLUMN network_channel INTEGER;
-- 0: nothing to do for the list as a whole; 1: it is to be sent; 2: it was, and the gateway did not take it.
ALTER TABLE devices ADD COLUMN network_refresh INTEGER NOT NULL DEFAULT 0;
-- The one network command under way, a row of outbound_queue.
ALTER TABLE devices ADD COLUMN network_command INTEGER;
ALTER TABLE gateway_sockets ADD COLUMN uid TEXT;
ALTER TABLE gateway_sockets ADD COLUMN state TEXT NOT NULL DEFAULT 'desired'
    CHECK (state IN ('desired', 'confirmed', 'removing'));
-- Why the gateway did not take the last command for this socket; it is sent again at the next bind.
ALTER TABLE gateway_sockets ADD COLUMN refused TEXT;
ALTER TABLE gateway_sockets ADD COLUMN confirmed_at INTEGER;
