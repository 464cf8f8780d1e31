# Try the fleet on one Linux machine, in the current folder: sh fleet.sh [PART [NUMBER]]
# Without arguments, every part is started: front, central, prometheus, node 1 to 3, shipper 1 to 3.
# Loopback addresses stand for the machines: 127.0.0.10 for 10.0.0.10, and so on.
set -eu
PATH=$PATH:/usr/sbin ip=127.0.0 deploy=$(cd "$(dirname "$0")/.." && pwd)

if [ $# = 0 ]; then
    nodes='' others=''
    for n in 1 2 3; do
        sh "$0" node $n & nodes="$nodes $!"
        sh "$0" shipper $n & others="$others $!"
    done
    for part in central front prometheus; do
        sh "$0" $part & others="$others $!"
    done
    # A shipper still sends what its node writes last.
    trap 'kill $nodes || :; wait $nodes || :; sleep 1; kill $others || :; wait' EXIT
    trap exit INT TERM
    wait
    exit
fi

here=$PWD/$1${2-} logs=$PWD/logs${2-}
mkdir -p "$here" "$logs"
echo "$1${2:+ $2}: process $$, writes to $1${2-}.out"
exec >>"$here.out" 2>&1
cd "$here"

# Put this machine's addresses and folders into a file, and that into the part's folder.
use() {
    sed "s|10\.0\.0\.|$ip.|g; s|/var/log/hello-listen|$logs|; s|/var/spool/rsyslog|$here|" \
        "$deploy/$1" >"${1##*/}"
}

case $1 in
    front)
        use haproxy/fleet.cfg
        exec haproxy -W -f fleet.cfg
        ;;
    central | shipper)
        [ "$1" = central ] && file=central.conf || file=node.conf
        use rsyslog/$file
        exec rsyslogd -n -f $file -i "$here/pid"
        ;;
    prometheus)
        use prometheus/prometheus.yml
        use prometheus/fleet-rules.yml
        # Debian's package may have started one on port 9090 of every address.
        exec prometheus --config.file=prometheus.yml --storage.tsdb.path=data \
            --web.listen-address=$ip.10:9091
        ;;
    node)
        exec twistd -n --pidfile= hello-listen -e haproxy:tcp:7879:interface=$ip.1$2 \
            --trusted-proxy $ip.10 --summarize $ip.10 -l "$logs/connections.jsonl" \
            --status tcp:7880:interface=$ip.1$2
        ;;
esac
