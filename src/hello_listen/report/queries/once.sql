-- Lines are the same if run, kind and number are: keep the one with the earliest time.
CREATE TABLE once AS
SELECT * FROM record WHERE id IS NULL OR kind IS NULL OR rowid IN (
    SELECT arg_min(rowid, coalesce(since, 'infinity')) FROM record
    WHERE id IS NOT NULL AND kind IS NOT NULL GROUP BY id, kind, coalesce(sequence, low, total)
);
DROP TABLE record;
ALTER TABLE once RENAME TO record;
