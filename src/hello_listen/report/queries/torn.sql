SELECT count(*) AS torn FROM record WHERE kind IS NULL
