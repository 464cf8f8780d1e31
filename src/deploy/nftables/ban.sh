# Bans who touches a canary, with ban.nft, as root: tail -n 0 -F /var/log/hello-listen/connections.jsonl | sh ban.sh
#
# `sh ban.sh proxied` also bans the clients that a proxy on this machine names. Nothing but an address reaches nft.
# Not banned: UNIX clients, link-local ones, and records with an error.type, whose client may be the proxy.

nft list table inet hello_listen_ban > /dev/null || exit

jq --unbuffered -Rr --arg proxied "${1-}" '
    fromjson? | objects
    | select(.message == "Connection established!" and ."network.transport" == "tcp" and (has("error.type") | not))
    | ."network.peer.address" as $proxy
    | select($proxy == null or $proxied == "proxied")
    | ."client.address"
    | select(. != null and . != $proxy)
    | if test("^[0-9.]+$") then "banned4 \(.)"
      elif test("^(64:ff9b)?::[0-9a-f:]*$") then "banned6 \(.)"  # NAT64: each address is another client.
      elif test("^[0-9a-f:]+$") then "banned6 \(.)/64"
      else empty end
' | while read -r set client; do
    nft add element inet hello_listen_ban "$set" "{ $client }"
done
