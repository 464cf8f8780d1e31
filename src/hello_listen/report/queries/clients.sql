WITH address AS (
    SELECT identity, client, min(transport) AS transport, sum(connections) AS connections,
        min(first) AS first, max(last) AS last,
        client = identity AND suffix(client, '/64') AS summarized
    FROM visit GROUP BY identity, client
),
client AS (
    SELECT identity, CASE WHEN count(*) = 1 THEN min(client) ELSE identity END AS address,
        count(client) - count(*) FILTER (summarized) AS addresses, min(transport) AS transport,
        sum(connections) AS connections, min(first) AS first, max(last) AS last,
        CASE $sort WHEN 'first' THEN min(first) WHEN 'last' THEN max(last) END AS moment
    FROM address GROUP BY identity
),
chosen AS (
    FROM client ORDER BY moment DESC NULLS LAST, connections DESC, identity LIMIT $top
)
SELECT address, chosen.transport, addresses, chosen.connections, chosen.first, chosen.last,
    coalesce(list_sort(list(DISTINCT port) FILTER (port IS NOT NULL)), []) AS ports,
    coalesce(list_sort(list(DISTINCT server) FILTER (server IS NOT NULL)), []) AS servers
FROM chosen JOIN visit ON chosen.identity IS NOT DISTINCT FROM visit.identity
GROUP BY chosen.identity, address, chosen.transport, addresses, chosen.connections, chosen.first,
    chosen.last, moment
ORDER BY moment DESC NULLS LAST, chosen.connections DESC, chosen.identity
