-- Nobody looks for devices by when they were last seen. Without this index the column, which changes most, is updated in place.
DROP INDEX devices_last_seen;
