TRUNCATE record
