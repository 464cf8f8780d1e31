-- Count distinct numbers as bits, 32 in each block: count(DISTINCT) takes far longer.
WITH block AS (
    SELECT id, sequence >> 5 AS block, bit_or(1 << (sequence & 31)) AS bits,
        count(sequence) AS records, count(*) FILTER (kind = 'connection') AS recorded,
        sum(came) FILTER (kind = 'connection') AS came, count(came) AS inside,
        min(since) AS first, max(coalesce(until, since)) AS last, min(sequence) AS lowest, max(sequence) AS highest
    FROM record WHERE id IS NOT NULL GROUP BY id, block
),
numbered AS (
    SELECT id, sum(bit_count(bits)) AS numbers, sum(records) AS records, sum(recorded) AS recorded,
        sum(came) AS came, sum(inside) AS inside, min(first) AS first, max(last) AS last,
        min(lowest) AS lowest, max(highest) AS highest
    FROM block GROUP BY id
),
-- The numbers that a gap record covers and no gap record before it does.
loss AS (
    SELECT id, high - greatest(low - 1, least(high, coalesce(max(high) OVER (
        PARTITION BY id ORDER BY low, high ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ), 0))) AS numbers
    FROM record WHERE kind = 'loss' AND low IS NOT NULL
),
told AS (SELECT id, sum(numbers) AS numbers FROM loss GROUP BY id),
other AS (
    SELECT id, max(host) AS host, max(pid) AS pid, max(boot) AS boot, max(namespace) AS namespace,
        max(ticks) AS ticks, bool_or(kind = 'opened') AS opened, bool_or(kind = 'closed') AS closed,
        max(connections) FILTER (kind = 'closed') AS connections,
        max(recorded) AS recorded, max(summarized) AS summarized, max(lost) AS lost,
        sum("count") FILTER (kind = 'summary') AS inSummaries, sum(came) AS cameSummarized,
        sum(connections) FILTER (kind = 'loss') AS inLosses,
        sum(connections) FILTER (kind = 'loss' AND came IS NOT NULL) AS cameLost,
        sum(packets) FILTER (kind = 'full' AND came IS NOT NULL) AS dropped,
        min(low) AS lowest, max(high) FILTER (kind = 'loss') AS highest,
        max(high) FILTER (kind = 'closed') AS final,
        count(*) FILTER (kind = 'loss') > count(DISTINCT low) FILTER (kind = 'loss')
            OR count(*) FILTER (kind = 'full') > count(DISTINCT total) FILTER (kind = 'full')
            OR count(*) FILTER (kind = 'opened') > 1
            OR count(*) FILTER (kind = 'closed') > 1 AS repeated
    FROM record WHERE kind <> 'connection' GROUP BY id
)
SELECT id, host, pid, boot, namespace, ticks, first, last, coalesce(opened, false) AS opened,
    coalesce(closed, false) AS closed, connections, other.recorded, summarized, lost,
    numbered.recorded AS records, inSummaries, inLosses,
    numbered.came AS cameRecorded, cameSummarized, cameLost, dropped,
    least(numbered.lowest, other.lowest) AS lowest,
    greatest(numbered.highest, other.highest) AS highest,
    final, coalesce(numbered.numbers, 0) AS numbers, coalesce(told.numbers, 0) AS told,
    numbered.records > numbered.numbers OR coalesce(repeated, false) AS repeated
FROM numbered LEFT JOIN other USING (id) LEFT JOIN told USING (id)
WHERE inside > 0 ORDER BY first, id
