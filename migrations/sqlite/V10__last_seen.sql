-- Nobody looks for devices by when they were last seen; every write of it wrote this index twice.
DROP INDEX devices_last_seen;
