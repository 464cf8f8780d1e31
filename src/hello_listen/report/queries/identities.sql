UPDATE visit SET identity = found.identity
FROM read_json($files, format = 'newline_delimited', hive_partitioning = false,
    columns = {'client': 'VARCHAR', 'identity': 'VARCHAR'}) AS found
WHERE visit.identity IS NULL AND visit.client = found.client
