"""A gateway between clients and server, which may hide the clients as a container's does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from processes import SCRIPTS, Start, tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may connect network namespaces"),
]

CLIENTS = 120

# The gateway is in the middle of three network namespaces, which nobody else sees.
NETWORK = """
set -e
mount -t tmpfs tmpfs /run
ip netns attach gateway $$  # Or it would end as soon as no process is in it.
for name in server client; do
    ip netns add $name
    ip link add $name type veth peer name eth0 netns $name
    ip link set $name up
    ip -n $name link set lo up
    ip -n $name link set eth0 up
done
ip address add 192.0.2.1/24 dev client
ip address add 2001:db8::1/64 dev client nodad
ip -n client address add 192.0.2.7/24 dev eth0
ip -n client address add 2001:db8::7/64 dev eth0 nodad
ip address add 10.88.0.1/24 dev server
ip address add fd88::1/64 dev server nodad
ip -n server address add 10.88.0.2/24 dev eth0
ip -n server address add fd88::2/64 dev eth0 nodad
ip -n server route add default via 10.88.0.1
ip -n server route add default via fd88::1
echo 1 | tee /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding >/dev/null
nft -f - <<NFT
table inet nat {
    chain in {
        type nat hook prerouting priority dstnat
        meta nfproto ipv4 tcp dport 7878 dnat ip to 10.88.0.2
        meta nfproto ipv6 tcp dport 7878 dnat ip6 to fd88::2
    }
    chain out {
        type nat hook postrouting priority srcnat
        oifname server $1
    }
}
NFT
ip netns exec client "$2" "$3" &
shift 3
exec ip netns exec server "$@"
"""

CONNECT = f"""
import socket, time
for host in ("192.0.2.1", "2001:db8::1"):
    for _ in range({CLIENTS}):
        while True:
            try:
                client = socket.create_connection((host, 7878), 10)
            except ConnectionRefusedError:
                time.sleep(0.01)  # The server starts.
                continue
            client.recv(1)
            client.close()
            break
print("All have connected.")
"""


@pytest.mark.parametrize(
    ("translation", "hidden"), [("masquerade", True), ("counter", False)], ids=["NAT", "no NAT"]
)
@pytest.mark.parametrize("options", [(), ("--per-client", "0")], ids=["recorded", "summarized"])
def test_hidden_clients(
    start: Start, tmp_path: Path, translation: str, hidden: bool, options: tuple[str, ...]
) -> None:
    """Only where the gateway hides the clients, its server says so, once, and what to do."""
    for each in ("ip", "nft"):
        tool(each)
    (tmp_path / "connect.py").write_text(CONNECT)
    server = start(
        tool("unshare"), "--mount", "--net", tool("bash"), "-c", NETWORK, "bash",
        translation, sys.executable, tmp_path / "connect.py",
        SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen", "-e", "tcp6:7878", *options,
    )  # fmt: skip
    server.expect("All have connected")
    output = server.stop()
    warning = "The first 100 connections came from the gateway 10.88.0.1: "
    assert output.count("came from the gateway") == output.count(warning) == int(hidden)
    clients = ("10.88.0.1", "[fd88::1]") if hidden else ("192.0.2.7", "[2001:db8::7]")
    for client in clients:
        assert options or output.count(f"established! {client}:") == CLIENTS
