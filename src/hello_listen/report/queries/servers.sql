SELECT port, server, sum(connections) AS connections, count(DISTINCT identity) AS clients,
    min(first) AS first, max(last) AS last
FROM visit GROUP BY port, server ORDER BY connections DESC, port, server
