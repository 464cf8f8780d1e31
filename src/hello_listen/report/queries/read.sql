-- A line that is no JSON object becomes a row of NULLs; a value of a wrong type becomes NULL.
-- hive_partitioning would turn names of folders into columns.
INSERT INTO record SELECT
    CASE message WHEN $connection THEN 'connection'::KIND
        WHEN $summary THEN 'summary'::KIND
        WHEN $gap THEN 'loss'::KIND
        WHEN $full THEN 'full'::KIND
        WHEN $opened THEN 'opened'::KIND
        WHEN $closed THEN 'closed'::KIND END AS kind,
    "service.instance.id", "host.name", "process.pid", "host.boot.id", "process.pid_namespace",
    "process.start_ticks",
    CASE WHEN sequence > 0 AND kind IN ('connection', 'summary') THEN sequence END,
    CASE WHEN "sequence.first" BETWEEN 1 AND "sequence.last" THEN "sequence.first" END AS low,
    CASE WHEN low IS NOT NULL OR kind = 'closed' THEN "sequence.last" END,
    "count", connections, recorded, summarized, lost, greatest(packets, 0),
    CASE WHEN kind = 'full' THEN "packets.total" END, "client.address", "network.transport",
    "server.port",
    -- Forged records could otherwise name more connections than they count.
    CASE WHEN list_sum(map_values("server.ports")) <= "count"
        AND list_min(map_values("server.ports")) > 0 THEN "server.ports" END,
    CASE WHEN "server.port" IS NULL THEN "server.address" END, "error.type",
    coalesce(sane("timestamp.first"), sane("timestamp")) AS since,
    sane("timestamp.last"),
    CASE WHEN since < $since::TIMESTAMP OR since >= $until::TIMESTAMP THEN NULL
        WHEN since IS NULL AND ($since IS NOT NULL OR $until IS NOT NULL) THEN NULL
        WHEN kind = 'connection' THEN 1
        WHEN kind = 'summary' THEN greatest("count", 0) ELSE 0 END
FROM read_json($files, format = 'newline_delimited', compression = 'uncompressed',
    ignore_errors = true, hive_partitioning = false, columns = {
    'message': 'VARCHAR', 'service.instance.id': 'VARCHAR', 'host.name': 'VARCHAR',
    'process.pid': 'BIGINT', 'host.boot.id': 'VARCHAR', 'process.pid_namespace': 'BIGINT',
    'process.start_ticks': 'BIGINT', 'sequence': 'BIGINT', 'sequence.first': 'BIGINT',
    'sequence.last': 'BIGINT', 'count': 'BIGINT', 'connections': 'BIGINT',
    'recorded': 'BIGINT', 'summarized': 'BIGINT', 'lost': 'BIGINT', 'client.address': 'VARCHAR',
    'packets': 'BIGINT', 'packets.total': 'BIGINT',
    'network.transport': 'VARCHAR', 'server.port': 'BIGINT', 'server.ports': 'MAP(VARCHAR, BIGINT)', 'server.address': 'VARCHAR',
    'error.type': 'VARCHAR', 'timestamp': 'TIMESTAMP', 'timestamp.first': 'TIMESTAMP',
    'timestamp.last': 'TIMESTAMP'})
