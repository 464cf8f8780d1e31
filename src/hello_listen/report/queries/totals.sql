SELECT count(DISTINCT identity) AS clients, coalesce(sum(connections), 0) AS connections FROM visit
