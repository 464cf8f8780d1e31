SELECT date_trunc($unit, since)::TIMESTAMP AS start, sum(came) AS connections
FROM record WHERE came > 0 AND since IS NOT NULL GROUP BY start ORDER BY start
