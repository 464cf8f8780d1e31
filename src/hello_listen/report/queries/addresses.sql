SELECT DISTINCT client FROM visit WHERE contains(client, ':') AND identity IS NULL
