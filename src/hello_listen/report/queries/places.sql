-- IPv4 clients in ascending order, as consecutive ones are in one network of a database.
WITH client AS (
    SELECT identity, sum(connections)::BIGINT AS connections, min(first) AS first, max(last) AS last,
        CASE WHEN regexp_full_match(identity, '[0-9]{1,3}(\.[0-9]{1,3}){3}')
            THEN string_split(identity, '.')::SMALLINT[] END AS bytes
    FROM visit GROUP BY identity
)
SELECT identity, connections, epoch_us(first), epoch_us(last)
FROM client ORDER BY bytes, identity
