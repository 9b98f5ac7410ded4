-- Orders of a port are found among those of its device and time: one index less to be written with every order.
DROP INDEX orders_port_created;
DROP INDEX orders_device_created;
CREATE INDEX orders_device_created ON orders (device_id, created_at DESC, port_no);
-- The log is pruned by its numbers, which follow time.
DROP INDEX cmd_log_at;
