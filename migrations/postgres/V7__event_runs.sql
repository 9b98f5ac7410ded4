-- The log as runs: events whose ids and positions both follow one another share a row, so that a position costs no row and no
-- index entry of its own. What one look of the sequencer finds is nearly always one run.
--
-- Runs overlap neither in positions nor in ids, and their positions have no gaps: only the oldest events are ever deleted. The
-- newest run stays, whatever is deleted.
CREATE TABLE event_runs (
    -- Of its first event.
    pos   BIGINT PRIMARY KEY,
    id    BIGINT NOT NULL UNIQUE,
    count BIGINT NOT NULL CHECK (count > 0)
);
INSERT INTO event_runs (pos, id, count)
    SELECT min(pos), min(id), count(*) FROM (
        SELECT pos, id, count(*) FILTER (WHERE begins) OVER (ORDER BY pos) AS run FROM (
            SELECT pos, id, pos - lag(pos) OVER (ORDER BY pos) IS DISTINCT FROM 1
                OR id - lag(id) OVER (ORDER BY pos) IS DISTINCT FROM 1 AS begins FROM event_log
        ) AS each_event
    ) AS numbered GROUP BY run ORDER BY 1;

DROP VIEW logged_events;
DROP VIEW all_events;
DROP TABLE event_log;

-- Events from one position to another, both included, each with its position. Inlined where it is called: all that is read of
-- the log is read by it, for a view could not be searched by a position that is reckoned.
CREATE FUNCTION logged_between(first BIGINT, last BIGINT) RETURNS TABLE (pos BIGINT, id BIGINT, event_id TEXT, event_type TEXT,
    key TEXT, device_id TEXT, order_no TEXT, sequence_no BIGINT, at BIGINT, data TEXT)
LANGUAGE sql STABLE AS $$
    SELECT r.pos + e.id - r.id, e.id, e.event_id, e.event_type, e.key, e.device_id, e.order_no, e.sequence_no, e.at, e.data
    FROM event_runs r
    JOIN events e ON e.id >= r.id + greatest(first - r.pos, 0) AND e.id <= r.id + least(last - r.pos, r.count - 1)
    WHERE r.pos >= coalesce((SELECT max(before.pos) FROM event_runs before WHERE before.pos <= first), first) AND r.pos <= last
$$;

-- First and last position; NULL: the log is empty.
CREATE VIEW log_bounds AS
    SELECT (SELECT min(r.pos) FROM event_runs r) AS first,
        (SELECT r.pos + r.count - 1 FROM event_runs r ORDER BY r.pos DESC LIMIT 1) AS last;

-- Positions by ids; events that have one; and all events, 0 where there is none yet.
CREATE VIEW event_log AS
    SELECT r.pos + e.id - r.id AS pos, e.id FROM events e CROSS JOIN LATERAL (
        SELECT nearest.pos, nearest.id FROM (
            SELECT run.pos, run.id, run.count FROM event_runs run WHERE run.id <= e.id ORDER BY run.id DESC LIMIT 1
        ) AS nearest WHERE e.id < nearest.id + nearest.count
    ) AS r;
CREATE VIEW logged_events AS
    SELECT l.pos, e.event_id, e.event_type, e.key, e.device_id, e.order_no, e.sequence_no, e.at, e.data
    FROM event_log l JOIN events e ON e.id = l.id;
CREATE VIEW all_events AS
    SELECT coalesce(l.pos, 0) AS pos, e.event_id, e.event_type, e.key, e.device_id, e.order_no, e.sequence_no, e.at, e.data
    FROM events e LEFT JOIN event_log l ON l.id = e.id;
