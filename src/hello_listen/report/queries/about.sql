SELECT min(since) FILTER (came > 0) AS first, max(since) FILTER (came > 0) AS last,
    count(*) FILTER (came > 0 AND id IS NULL) AS unnumbered,
    count(*) FILTER (kind IS NULL) AS torn, count(*) AS lines
FROM record
