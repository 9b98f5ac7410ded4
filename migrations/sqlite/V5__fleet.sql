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
