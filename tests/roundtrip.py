"""
TCP clients whose packets take their time: they are in user space, behind a TUN device.

As a program, in a network namespace of its own: make the device there, and become a server.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from time import monotonic

from logs import counted, recorded
from processes import Process, tool

PATIENCE = 30.0
SERVERS = {socket.AF_INET: "198.18.0.1", socket.AF_INET6: "2001:2::1"}
"""The server's addresses, which are set aside for tests (RFC 2544, RFC 5180)."""

CLIENTS = {socket.AF_INET: "198.18.1.", socket.AF_INET6: "2001:2::1:"}
"""Prefixes of the clients' addresses."""

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


@dataclass
class Handshake:
    """A client: its address, whether it got a SYN-ACK, and how it ended."""

    address: str
    port: int
    isAnswered: bool = False
    end: str = ""


class Clients:
    """
    Clients of one server, each of which is a handshake that takes one round trip.

    @ivar rate: how many begin in a second.
    @ivar ends: how many C{ended} cleanly, were C{reset}, and were C{refused} before they were in.
    """

    def __init__(
        self,
        device: int,
        server: tuple[str, int],
        roundTrip: float,
        data: Callable[[Handshake], bytes] = lambda client: b"",
    ) -> None:
        """
        Begin with nobody.

        @param device: the TUN device, from L{become}.
        @param server: where they connect to.
        @param roundTrip: the seconds from a packet of the server to its answer.
        @param data: what each sends when it is in.
        """
        self._device = device
        self._family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self._server = socket.inet_pton(self._family, server[0])
        self._port = server[1]
        self._roundTrip = roundTrip
        self._data = data
        self._due: list[tuple[float, bytes]] = []
        self._next = 0.0
        self.rate = 0
        self.handshakes: dict[tuple[bytes, int], Handshake] = {}
        self.ends: Counter[str] = Counter()

    def answered(self) -> list[Handshake]:
        """Return the clients that the server has accepted."""
        return [client for client in self.handshakes.values() if client.isAnswered]

    def begin(self) -> None:
        """Send the first packet of another client."""
        number = len(self.handshakes) + 1
        address = f"{CLIENTS[self._family]}{number % 250 + 1}"
        port = 1024 + number
        packed = socket.inet_pton(self._family, address)
        self.handshakes[packed, port] = Handshake(address, port)
        os.write(self._device, self._packet((packed, port), SYN, 0, 0))

    def until(self, condition: Callable[[], object]) -> None:
        """Start clients, and answer the server, until a condition is true."""
        giveUp = self._next = monotonic()
        giveUp += PATIENCE
        while not condition():
            now = monotonic()
            if now > giveUp:
                raise AssertionError(f"timeout: the condition is still false; {self.ends}")
            while self.rate and self._next <= now:
                self.begin()
                self._next += 1 / self.rate
            while self._due and self._due[0][0] <= now:
                os.write(self._device, heappop(self._due)[1])
            times = [self._next] if self.rate else []
            times += [self._due[0][0]] if self._due else [now + 0.01]
            if select.select([self._device], [], [], max(0.0, min(times) - now))[0]:
                self._receive(os.read(self._device, 2048))

    def untilAllEnded(self) -> None:
        """Start no more clients, and answer the server until all accepted clients have ended."""
        self.rate = 0
        self.until(lambda: all(client.end for client in self.answered()))

    def _receive(self, packet: bytes) -> None:
        """Handle a packet from the server to a client."""
        isIPv4 = packet[0] >> 4 == 4
        if packet[9 if isIPv4 else 6] != socket.IPPROTO_TCP:
            return
        to = packet[16:20] if isIPv4 else packet[24:40]
        segment = packet[(packet[0] & 15) * 4 if isIPv4 else 40 :]
        _, port, sequence, acknowledged, offset, flags = struct.unpack("!HHIIBB", segment[:14])
        sequence += len(segment) - (offset >> 4) * 4 + 1
        key = to, port
        client = self.handshakes[key]
        if flags & RST and not client.end:
            client.end = "reset" if client.isAnswered else "refused"
        elif flags & SYN and not client.isAnswered:
            client.isAnswered = True
            data = self._data(client)
            answer = self._packet(key, ACK | (PSH if data else 0), 1, sequence, data)
            heappush(self._due, (monotonic() + self._roundTrip, answer))
            return
        elif flags & FIN and not client.end:
            client.end = "ended"
            os.write(self._device, self._packet(key, FIN | ACK, acknowledged, sequence))
        else:
            return
        self.ends[client.end] += 1

    def _packet(
        self,
        key: tuple[bytes, int],
        flags: int,
        sequence: int,
        acknowledged: int,
        data: bytes = b"",
    ) -> bytes:
        """Return a packet of a client."""
        address, port = key
        ends = address + self._server
        segment = struct.pack(
            "!HHIIBBHHH", port, self._port, sequence, acknowledged & 0xFFFFFFFF, 0x50, flags,
            0xFFFF, 0, 0,
        ) + data  # fmt: skip
        check = checksum(ends + struct.pack("!II", len(segment), socket.IPPROTO_TCP) + segment)
        segment = segment[:16] + check + segment[18:]
        if self._family == socket.AF_INET6:
            return struct.pack("!IHBB", 6 << 28, len(segment), 6, 64) + ends + segment
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0) + ends
        return header[:10] + checksum(header) + header[12:] + segment


class Far:
    """A server in a network namespace of its own, and the device that its clients are behind."""

    def __init__(self, server: Process, device: int) -> None:
        """Keep the server and the device."""
        self.server = server
        self.device = device

    def clients(self, endpoint: str, roundTrip: float) -> Clients:
        """Return clients of the endpoint, which send a PROXY header if it expects one."""
        family = socket.AF_INET6 if "tcp6" in endpoint else socket.AF_INET
        address = SERVERS[family], self.server.port()
        if "haproxy" in endpoint:
            return Clients(self.device, address, roundTrip, header)
        return Clients(self.device, address, roundTrip)

    @property
    def inside(self) -> list[str]:
        """What a command in the server's network namespace begins with, for root."""
        return [tool("nsenter"), f"--net=/proc/{self.server.pid}/ns/net"]

    def overflows(self) -> int:
        """Return how many packets full accept queues in the server's namespace have dropped."""
        names, values = Path(f"/proc/{self.server.pid}/net/netstat").read_text().splitlines()[:2]
        return int(dict(zip(names.split(), values.split(), strict=True))["ListenOverflows"])

    def unrecorded(self, clients: Clients) -> set[tuple[str, int]]:
        """Wait for the server's end, and return accepted clients without a record."""
        self.server.wait()
        records = recorded(self.server.folder / "log")
        names = {(record["client.address"], record["client.port"]) for record in records}
        assert counted("\n".join(self.server.lines)) == (len(records), len(records), 0)
        return {(client.address, client.port) for client in clients.answered()} - names


def header(client: Handshake) -> bytes:
    """Return a PROXY header that names the client itself."""
    return f"PROXY TCP4 {client.address} 198.18.0.1 {client.port} 443\r\n".encode()


def checksum(data: bytes) -> bytes:
    """Return the Internet's checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def become(channel: int, ip: str, command: list[str]) -> None:
    """
    Make the device and its addresses in this network namespace, and become another program.

    @param channel: the descriptor of a UNIX socket, through which the device is passed on.
    @param ip: the path of ip(8).
    @param command: the program and its arguments.
    """
    device = os.open("/dev/net/tun", os.O_RDWR)
    # TUNSETIFF; IFF_TUN | IFF_NO_PI.
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"far", 0x1001))
    for setting in (
        "link set lo up",
        "link set far up",
        "address add 198.18.0.1/15 dev far",
        "address add 2001:2::1/48 dev far nodad",
    ):
        subprocess.run([ip, *setting.split()], check=True)
    # Whoever holds the namespace keeps it when the server has ended.
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    with socket.socket(fileno=channel) as passing:
        socket.send_fds(passing, [b"device"], [device, namespace])
    os.execv(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
