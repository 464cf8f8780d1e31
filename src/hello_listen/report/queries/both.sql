-- For each run: how many sequence numbers have a record although a gap record covers them.
WITH loss AS (
    SELECT id, low, max(high) OVER (PARTITION BY id ORDER BY low) AS reach
    FROM record WHERE kind = 'loss' AND low IS NOT NULL
)
SELECT record.id, count(DISTINCT record.sequence) AS numbers
FROM record ASOF JOIN loss ON record.id = loss.id AND record.sequence >= loss.low
WHERE record.sequence <= reach GROUP BY record.id
