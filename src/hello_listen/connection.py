"""The records of connections, as fields, as JSON and as text, and the texts of their messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from json import dumps
from math import ceil
from time import time
from typing import Any, ClassVar

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress

from hello_listen._addresses import (
    IPV4_CHARACTERS,
    addressIdentity,
    addressText,
    asciiText,
    clientIdentity,
    hostAndPort,
    transportAndType,
)

TOP_PORTS = 10
"""Upper bound of the server ports that the record of a L{Summary} names."""

CONNECTION_MESSAGE = "Connection established!"
SUMMARY_MESSAGE = "Connections summarized"
GAP_MESSAGE = "Connections not recorded"
QUEUE_FULL_MESSAGE = "Accept queue was full"
LOG_OPENED_MESSAGE = "Connection log opened"
LOG_CLOSED_MESSAGE = "Connection log closed"

_second = 0.0, "1970-01-01T00:00:00"
"""The cache of L{timestamp}, the last whole second and its text: one pair, as threads share it."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """
    The extensions (TLVs) of a PROXY header, version 2; L{None} for each that it lacks.

    Each has at most 255 characters, and is then escaped to be printable.

    >>> from hello_listen.connection import Extensions
    >>> Extensions(authority="example.com").fields()
    {'tls.client.server_name': 'example.com'}

    @ivar authority: the host name that the client asked for, such as the SNI of its TLS.
    @ivar uniqueId: the proxy's own ID of the connection.
    @ivar awsEndpointId: the ID of the AWS VPC endpoint that the client used (C{vpce-...}).
    @ivar azureLinkId: the LINKID of the Azure private endpoint that the client used.
    @ivar gcpConnectionId: the ID of a connection of Google's Private Service Connect.
    """

    authority: str | None = None
    uniqueId: str | None = None
    awsEndpointId: str | None = None
    azureLinkId: str | None = None
    gcpConnectionId: str | None = None

    def fields(self) -> dict[str, str | int]:
        """
        Return the extensions that the header has, under their names in a record.

        C{tls.client.server_name} is the Elastic Common Schema's name. OpenTelemetry has replaced it
        by C{server.address}, which is here the address that the client reached. Neither has names
        for the others.
        """
        return withoutNone(
            {
                "tls.client.server_name": self.authority,
                "proxy_protocol.unique_id": self.uniqueId,
                "proxy_protocol.aws.vpc_endpoint_id": self.awsEndpointId,
                "proxy_protocol.azure.link_id": self.azureLinkId,
                "proxy_protocol.gcp.psc_connection_id": self.gcpConnectionId,
            }
        )


NO_EXTENSIONS = Extensions()


@dataclass(slots=True)
class Connection:
    """
    One connection, as observers get it. Its text is its line in Twisted's log.

    >>> from twisted.internet.address import IPv4Address
    >>> from hello_listen import Connection
    >>> client = IPv4Address("TCP", "203.0.113.7", 51974)
    >>> connection = Connection(1795348800.0, client, IPv4Address("TCP", "192.0.2.1", 7878))
    >>> print(connection)
    Connection established! 203.0.113.7:51974 -> 192.0.2.1:7878
    >>> connection.fields()["timestamp"]
    '2026-11-22T12:00:00.000000Z'

    @ivar time: when it was accepted, in seconds since the epoch.
    @ivar client: the client's L{twisted.internet.address.IPv4Address}, C{IPv6Address} or
        C{UNIXAddress}, or a L{twisted.internet.stdio.PipeAddress}.
        Behind a proxy, the address in the PROXY header; with an C{error},
        the socket's own peer, unless serving failed after a valid header.
    @ivar server: the address that the client reached.
    @ivar proxy: the proxy that sent a valid PROXY header, or L{None}. For the proxy's own health
        checks, C{client} is the proxy.
    @ivar error: the kind of error (OpenTelemetry's C{error.type}), or L{None}.
    @ivar extensions: the extensions of the PROXY header.
    @ivar silent: whether a PROXY header was expected and not one byte was received.
    @cvar count: the number of connections, 1; a L{Summary} has more.
    """

    time: float
    client: IAddress
    server: IAddress
    proxy: IAddress | None = None
    error: str | None = None
    extensions: Extensions = NO_EXTENSIONS
    silent: bool = False
    count: ClassVar[int] = 1

    @property
    def clientAddress(self) -> str | None:
        """The client's IP address or the name of its UNIX socket; L{None} where it has none."""
        return hostAndPort(self.client)[0]

    @property
    def clientPort(self) -> int | None:
        """The client's TCP or UDP port; L{None} where it has none."""
        return hostAndPort(self.client)[1]

    @property
    def serverAddress(self) -> str | None:
        """The server's IP address or the name of its UNIX socket; L{None} where it has none."""
        return hostAndPort(self.server)[0]

    @property
    def serverPort(self) -> int | None:
        """The server's TCP or UDP port; L{None} where it has none."""
        return hostAndPort(self.server)[1]

    @property
    def proxyAddress(self) -> str | None:
        """The proxy's IP address or the name of its UNIX socket; L{None} where there is none."""
        return hostAndPort(self.proxy)[0]

    @property
    def proxyPort(self) -> int | None:
        """The proxy's TCP port; L{None} where it has none, or there is no proxy."""
        return hostAndPort(self.proxy)[1]

    @property
    def transport(self) -> str:
        """C{tcp}, C{udp}, C{unix} or C{pipe}."""
        return transportAndType(self.client)[0]

    @property
    def networkType(self) -> str | None:
        """C{ipv4} or C{ipv6}; L{None} for UNIX sockets and pipes."""
        return transportAndType(self.client)[1]

    @property
    def identity(self) -> str:
        """The client's identity, by which clients are counted: see L{clientIdentity}."""
        return addressIdentity(self.client)

    def fields(self) -> dict[str, str | int]:
        """
        Return the fields under OpenTelemetry's attribute names, without those that are unknown.

        See https://opentelemetry.io/docs/specs/semconv/registry/attributes/ for their meaning.
        """
        transport, networkType = transportAndType(self.client)
        client, server, proxy = map(hostAndPort, (self.client, self.server, self.proxy))
        fields: dict[str, str | int | None] = {
            "timestamp": timestamp(self.time),
            "message": CONNECTION_MESSAGE,
            "network.transport": transport,
            "network.type": networkType,
            "client.address": client[0],
            "client.port": client[1],
            "server.address": server[0],
            "server.port": server[1],
            "network.peer.address": proxy[0],
            "network.peer.port": proxy[1],
            "error.type": self.error,
        }
        if self.proxy is not None:
            fields |= self.extensions.fields()
        return withoutNone(fields)

    def json(self) -> str:
        """Return the fields as one line of ASCII JSON, without its end."""
        client, server = self.client, self.server
        if (
            self.proxy is None
            and self.error is None
            and type(client) is IPv4Address
            and type(server) is IPv4Address
            and not client.host.strip(IPV4_CHARACTERS)
            and type(client.port) is int
            and (end := _plainEnd(server.host, server.port))
        ):
            # Equal to json.dumps, in a seventh of the time.
            kind = "tcp" if client.type == "TCP" else "udp"
            return (
                f'{{"timestamp": "{timestamp(self.time)}", "message": "{CONNECTION_MESSAGE}", '
                f'"network.transport": "{kind}", "network.type": "ipv4", '
                f'"client.address": "{client.host}", "client.port": {client.port}, {end}'
            )
        return dumps(self.fields())

    def __str__(self) -> str:
        """Return the message and both ends, as one line of printable ASCII."""
        text = f"{CONNECTION_MESSAGE} {addressText(self.client)} -> {addressText(self.server)}"
        if self.proxy is not None:
            text += f" via {addressText(self.proxy)}"
            for name, value in self.extensions.fields().items():
                quoted = asciiText(str(value)).replace('"', '\\"')
                text += f' {name}="{quoted}"'
        return f"{text} ({self.error})" if self.error else text


@dataclass(slots=True)
class Summary:
    """
    Connections of one client, or of all that are not counted apart, in one record.

    Its text is its line in Twisted's log.

    >>> from hello_listen import Summary
    >>> print(Summary(812, 1795348740.0, 1795348800.0, "203.0.113.7", "tcp", "ipv4"))
    Connections summarized: 812 from 203.0.113.7 in 60 s

    @ivar count: the number of connections.
    @ivar first: when the first was accepted, in seconds since the epoch.
    @ivar last: when the last was.
    @ivar clientAddress: an IPv4 address, an IPv6 network such as C{2001:db8:1:2::/64} or address
        (see L{clientIdentity}), or the name of a UNIX socket; L{None} for UNIX clients without a
        name, and for all clients beyond the most that are counted apart.
    @ivar transport: C{tcp}, C{udp}, C{unix} or C{pipe}; L{None} if the connections differ.
    @ivar networkType: C{ipv4} or C{ipv6}; L{None} for others, and if the connections differ.
    @ivar error: the kind of error (C{error.type}) of each connection, or L{None}.
    @ivar ports: the connections to each server port that is counted apart; others have none.
    """

    count: int
    first: float
    last: float
    clientAddress: str | None
    transport: str | None
    networkType: str | None
    error: str | None = None
    ports: dict[int, int] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The client's L{clientIdentity}; C{""} for several clients."""
        return clientIdentity(self.transport, self.clientAddress)

    @property
    def topPorts(self) -> dict[int, int]:
        """The ports with the most connections, most first, and how many connections each has."""
        # Those of one count are in order, as a scan has thousands.
        return dict(sorted(self.ports.items(), key=lambda each: (-each[1], each[0]))[:TOP_PORTS])

    def fields(self) -> dict[str, Any]:
        """
        Return the fields under the connection log's names, without those that are unknown.

        C{server.port} is the port of all connections. If there are several ports,
        C{server.ports} has the connections of those with the most, and C{server.ports.others} is
        the number of connections to others.
        """
        fields: dict[str, Any] = {
            "timestamp": timestamp(time()),
            "message": SUMMARY_MESSAGE,
            "count": self.count,
            "timestamp.first": timestamp(self.first),
            "timestamp.last": timestamp(self.last),
            "network.transport": self.transport,
            "network.type": self.networkType,
            "client.address": self.clientAddress,
            "error.type": self.error,
        }
        ports = self.topPorts
        others = self.count - sum(ports.values())
        if len(ports) == 1 and not others:
            [fields["server.port"]] = ports
        elif ports:
            fields["server.ports"] = {str(port): count for port, count in ports.items()}
            fields["server.ports.others"] = others
        return {name: value for name, value in fields.items() if value is not None}

    def json(self) -> str:
        """Return the fields as one line of ASCII JSON, without its end."""
        return dumps(self.fields())

    def __str__(self) -> str:
        """Return the message, the count, the client and the period, as one line of ASCII."""
        text = f"{SUMMARY_MESSAGE}: {self.count}"
        if self.identity:
            text += f" from {asciiText(self.identity)}"
        if self.ports:
            text += f" to port {self._portsText()}"
        text += f" in {ceil(self.last - self.first) or 1} s"
        return f"{text} ({self.error})" if self.error else text

    def _portsText(self) -> str:
        """Return the ports, with their connections if there are several."""
        ports = self.topPorts
        others = self.count - sum(ports.values())
        if len(ports) == 1 and not others:
            return str(*ports)
        texts = [f"{port} ({count})" for port, count in ports.items()]
        return ", ".join([*texts, f"others ({others})"] if others else texts)


def withoutNone(fields: dict[str, str | int | None]) -> dict[str, str | int]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


@lru_cache(maxsize=100, typed=True)
def _plainEnd(host: str, port: int) -> str:
    """Return the end of a record if the server has an IPv4 host and a numeric port, else ''."""
    if host.strip(IPV4_CHARACTERS) or type(port) is not int:
        return ""
    return f'"server.address": "{host}", "server.port": {port}}}'


def timestamp(seconds: float) -> str:
    """
    Return a time in the format of RFC 3339: UTC, microseconds, rounded half to even.

    @param seconds: the time, in seconds since the epoch.
    """
    global _second
    whole, text = _second
    fraction = seconds - whole
    if not 0 <= fraction < 0.9999995:
        whole = seconds // 1
        if seconds - whole >= 0.9999995:
            whole += 1
        text = datetime.fromtimestamp(whole, timezone.utc).isoformat()[:19]
        _second = whole, text
        fraction = max(0.0, seconds - whole)
    # Plus zero makes -0.0 positive; an f-string takes longer.
    return "%s.%06.0fZ" % (text, fraction * 1e6 + 0.0)  # noqa: UP031
