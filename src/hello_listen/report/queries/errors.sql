SELECT error, sum(connections) AS connections, count(DISTINCT identity) AS clients,
    min(first) AS first, max(last) AS last
FROM visit WHERE error IS NOT NULL GROUP BY error ORDER BY connections DESC, error
