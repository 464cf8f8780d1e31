-- The connections by client, server and error. Python adds the identities that are still NULL.
CREATE TABLE visit AS
SELECT *, CASE WHEN transport IN ('unix', 'pipe') THEN transport || ':' || coalesce(client, '')
    WHEN contains(client, ':') THEN network(client) ELSE nullif(client, '') END AS identity
FROM (
    SELECT client, transport, port, server, error,
        sum(came) AS connections, min(since) AS first, max(coalesce(until, since)) AS last
    FROM (
        SELECT client, transport, port, server, error, came, since, until
        FROM record WHERE came > 0 AND ports IS NULL
        UNION ALL
        SELECT client, transport, TRY_CAST(part.key AS BIGINT), server, error, part.value, since, until
        FROM (SELECT *, unnest(map_entries(ports)) AS part FROM record WHERE came > 0)
        UNION ALL
        SELECT client, transport, port, server, error, came - list_sum(map_values(ports)), since, until
        FROM record WHERE came > list_sum(map_values(ports))
    ) GROUP BY ALL
)
