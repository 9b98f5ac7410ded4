-- Events as queries name them, here and where positions are given apart from the rows: those that have a position in the log, and
-- all of them, 0 where there is none yet. Here a row's number is its position.
CREATE VIEW logged_events AS
    SELECT pos, event_id, event_type, key, device_id, order_no, sequence_no, at, data FROM events;
CREATE VIEW all_events AS
    SELECT pos, event_id, event_type, key, device_id, order_no, sequence_no, at, data FROM events;
