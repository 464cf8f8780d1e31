DELETE FROM record WHERE rowid > $last
