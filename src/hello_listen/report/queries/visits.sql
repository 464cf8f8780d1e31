-- The connections by client, server and error. Python adds the identities that are still NULL.
CREATE TABLE visit AS
SELECT *, CASE WHEN transport IN ('unix', 'pipe') THEN transport || ':' || coalesce(client, '')
    WHEN contains(client, ':') THEN network(client) ELSE nullif(client, '') END AS identity
FROM (
    SELECT client, transport, port, server, error,
        sum(came) AS connections, min(since) AS first, max(coalesce(until, since)) AS last
    FROM record WHERE came > 0 GROUP BY ALL
)
