-- Several instances over one store: which of them has a device. NULL: nobody, or there is but one instance.
ALTER TABLE devices ADD COLUMN owner TEXT;

-- Claims and limits look at all commands of a device that have not come to an end.
DROP INDEX outbound_waiting;
CREATE INDEX outbound_unfinished ON outbound_queue (device_id) WHERE state IN ('queued', 'claimed', 'written');
