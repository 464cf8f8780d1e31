"""Two network namespaces with a cable between them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from processes import run, tool

NEAR = """
ip link add near type veth peer name far netns {far}
ip link set lo up
ip link set near up
ip address add 192.0.2.1/24 dev near
ip address add 2001:db8::1/64 dev near nodad
ip address add fe80::1/64 dev near nodad
ip route add 2001:db8::/32 dev near
"""
FAR = """
ip link set far addrgenmode none
ip link set far up
for address in 192.0.2.66/24 192.0.2.67/24; do ip address add $address dev far; done
for address in 2001:db8:0:6::66 fe80::66; do ip address add $address/64 dev far nodad; done
for address in 2001:db8:0:6::67 2001:db8:0:7::66
do ip address add $address/64 dev far nodad preferred_lft 0; done
ip route add 2001:db8::/32 dev far
"""
LINK_LOCAL = "fe80::66"

CLOSED = 52, 56
"""curl's statuses if the server closes the connection: no answer, or a reset."""


@dataclass
class Machines:
    """Two network namespaces with a cable between them: what a command in each begins with."""

    near: list[str]
    far: list[str]

    def touch(self, source: str, port: int) -> list[str]:
        """Return a command that connects from an address of the far machine to the near one."""
        local = source == LINK_LOCAL  # Which curl cannot bind; the system chooses it.
        host = "[fe80::1%25far]" if local else "[2001:db8::1]" if ":" in source else "192.0.2.1"
        bound = [] if local else ["--interface", source]
        curl = [tool("curl"), "-q", "--silent", "--noproxy", "*", *bound]
        return [*self.far, *curl, f"http://{host}:{port}/"]

    def nft(self, *arguments: object) -> str:
        """Run nft on the near machine, and return its output."""
        done = run(*self.near, tool("nft"), *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def banned(self) -> set[str]:
        """Return the addresses that nft bans."""
        return set(re.findall(r"(\S+) expires", self.nft("list", "ruleset")))
