-- First and last position of the log; NULL: it is empty. Asked so here and where positions are given apart from the rows.
CREATE VIEW log_bounds AS SELECT (SELECT min(pos) FROM events) AS first, (SELECT max(pos) FROM events) AS last;
