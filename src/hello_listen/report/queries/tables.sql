-- Python supports no other years; only forged records have them.
CREATE MACRO sane(t) AS CASE WHEN year(t::TIMESTAMP) BETWEEN 1 AND 9999 THEN t END;

-- The /64 of an IPv6 address whose first four groups are spelled out, as inet_ntop(3) writes it.
-- Python finds the identity of other addresses, which takes ten times as long.
CREATE MACRO network(address) AS CASE
    WHEN regexp_full_match(address, '[23][0-9a-f]{3}(:(0|[1-9a-f][0-9a-f]{0,3})){3}'
        || '((:[0-9a-f]{1,4}){4}|(:[0-9a-f]{1,4}){0,3}::([0-9a-f]{1,4}(:[0-9a-f]{1,4})*)?)')
        AND length(address) - length(replace(address, ':', '')) <= 7
    THEN regexp_replace(regexp_extract(address, '^([^:]*:){3}[^:]*'), '(:0)+$', '') || '::/64' END;

CREATE TYPE KIND AS ENUM ('connection', 'summary', 'loss', 'full', 'opened', 'closed');

-- A row is a line, or NULLs for a line that is no record.
CREATE TABLE record (
    kind KIND,
    id VARCHAR, host VARCHAR, pid BIGINT, boot VARCHAR, namespace BIGINT, ticks BIGINT,
    sequence BIGINT, low BIGINT, high BIGINT,
    "count" BIGINT, connections BIGINT, recorded BIGINT, summarized BIGINT, lost BIGINT,
    packets BIGINT, total BIGINT,
    client VARCHAR, transport VARCHAR, port BIGINT,
    ports MAP(VARCHAR, BIGINT),  -- The connections of a summary by server port, if there are several.
    server VARCHAR, error VARCHAR,
    since TIMESTAMP,
    until TIMESTAMP,  -- Of a summary only.
    came BIGINT       -- Its connections if it is in the period, else NULL.
);
