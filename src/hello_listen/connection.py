"""What is known of one connection: as fields, as JSON, as text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from ipaddress import IPv6Address as IPv6
from json import dumps
from socket import AF_INET6, inet_ntop, inet_pton
from typing import ClassVar

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

MESSAGE = "Connection established!"
SUMMARIZED = "Connections summarized"

_DOTTED = "0123456789."
_NAT64 = inet_pton(AF_INET6, "64:ff9b::")[:12]

_second = 0.0, "1970-01-01T00:00:00"
"""The last second that L{timestamp} was asked for, and its text: one pair, as threads share it."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """
    What a PROXY header (version 2) tells beside the addresses; L{None} where it does not.

    Each is escaped, so that it is printable, and has at most 255 characters before that.

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
        Return what is known under the names of the record.

        C{tls.client.server_name} is the Elastic Common Schema's: OpenTelemetry has replaced it by
        C{server.address}, which is the address that the client reached. The others have no name
        in either.
        """
        return known(
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
    One connection, as observers get it. Its text is the line that Twisted's log shows.

    @ivar time: when it was established, in seconds since the epoch.
    @ivar client: who connected: an L{IPv4Address}, L{IPv6Address}, L{UNIXAddress} or a pipe's.
        Behind a proxy, who the proxy says; with an C{error}, the socket's own peer.
    @ivar server: the address that the client reached.
    @ivar proxy: the proxy that sent a valid PROXY header, or L{None}. For the proxy's own health
        checks, C{client} is the proxy.
    @ivar error: what was wrong with the connection (OpenTelemetry's C{error.type}), or L{None}.
    @ivar extensions: what the C{proxy} tells beside the addresses.
    @ivar silent: whether a PROXY header was expected and not one byte was received.
    @cvar count: how many connections this is, as a summary tells of several.
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
        return network(self.client)[0]

    @property
    def networkType(self) -> str | None:
        """C{ipv4} or C{ipv6}; L{None} for UNIX sockets and pipes."""
        return network(self.client)[1]

    @property
    def identity(self) -> str:
        """The client, as L{clientIdentity} tells it from others."""
        return clientIdentity(self.transport, self.clientAddress)

    def fields(self) -> dict[str, str | int]:
        """
        Return what is known under OpenTelemetry's attribute names; what is unknown is left out.

        See https://opentelemetry.io/docs/specs/semconv/registry/attributes/ for their meaning.
        """
        kind = network(self.client)
        client, server, proxy = map(hostAndPort, (self.client, self.server, self.proxy))
        fields: dict[str, str | int | None] = {
            "timestamp": timestamp(self.time),
            "message": MESSAGE,
            "network.transport": kind[0],
            "network.type": kind[1],
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
        return known(fields)

    def json(self) -> str:
        """Return the fields as one line of ASCII JSON, without its end."""
        client, server = self.client, self.server
        if (
            self.proxy is None
            and self.error is None
            and type(client) is IPv4Address
            and type(server) is IPv4Address
            # Twisted's own haproxy: takes any text for a host.
            and not client.host.strip(_DOTTED)
            and type(client.port) is int
            and (end := _plainEnd(server.host, server.port))
        ):
            # What json.dumps would give, in 2 instead of 14 µs.
            kind = "tcp" if client.type == "TCP" else "udp"
            return (
                f'{{"timestamp": "{timestamp(self.time)}", "message": "{MESSAGE}", '
                f'"network.transport": "{kind}", "network.type": "ipv4", '
                f'"client.address": "{client.host}", "client.port": {client.port}, {end}'
            )
        return dumps(self.fields())

    def __str__(self) -> str:
        """Return the message and both ends, as one line of printable ASCII."""
        text = f"{MESSAGE} {addressText(self.client)} -> {addressText(self.server)}"
        if self.proxy is not None:
            text += f" via {addressText(self.proxy)}"
            for name, value in self.extensions.fields().items():
                quoted = asciiText(str(value)).replace('"', '\\"')
                text += f' {name}="{quoted}"'
        return f"{text} ({self.error})" if self.error else text


def known(fields: dict[str, str | int | None]) -> dict[str, str | int]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def asciiText(text: str) -> str:
    """Escape what is not ASCII: a log in another encoding than UTF-8 would drop the whole line."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


@lru_cache(maxsize=100, typed=True)
def _plainEnd(host: str, port: int) -> str:
    """Return the end of a record whose server's host is IPv4 and whose port is a number, or ''."""
    if host.strip(_DOTTED) or type(port) is not int:
        return ""
    return f'"server.address": "{host}", "server.port": {port}}}'


def timestamp(seconds: float) -> str:
    """
    Return a time as RFC 3339 has it: in UTC, with microseconds, rounded half to even.

    @param seconds: since the epoch.
    """
    global _second
    whole = seconds // 1
    microseconds = (seconds - whole) * 1e6
    if microseconds >= 999_999.5:
        whole += 1
        microseconds = 0
    second, text = _second
    if second != whole:
        text = datetime.fromtimestamp(whole, timezone.utc).isoformat()[:19]
        _second = whole, text
    return "%s.%06.0fZ" % (text, microseconds)  # noqa: UP031 # An f-string takes longer.


def unmapped(address: IAddress) -> IAddress:
    """Return an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) as IPv4, any other as it is."""
    if isinstance(address, IPv6Address) and address.host.startswith("::ffff:"):
        mapped = IPv6(address.host).ipv4_mapped
        if mapped is not None:
            return IPv4Address(address.type, str(mapped), address.port)
    return address


def clientIdentity(transport: str | None, address: str | None) -> str:
    """
    Return the client that the C{network.transport} and C{client.address} of a record name.

    That is an IPv4 address, the /64 network of an IPv6 address, or C{unix:} or C{pipe:} and the
    name of the socket, if any. An IPv6 address is a client of its own where its /64 is not one
    network: link-local (RFC 4291, 2.5.6; with the interface), loopback, or NAT64 (RFC 6052, 2.1).

    @param transport: of a connection, or of a summary.
    @param address: of a connection; or of a summary, for IPv6 such as C{2001:db8::/64}.

    @return: C{""} where the record names no client.
    """
    address = address or ""
    if transport in ("unix", "pipe"):
        return f"{transport}:{address}"
    return _ipv6Client(address) if ":" in address else address


@lru_cache(maxsize=1000)
def _ipv6Client(address: str) -> str:
    """Return the identity of an IPv6 client."""
    try:
        packed = inet_pton(AF_INET6, address.partition("%")[0])
    except OSError:  # A summary's network, or what Twisted's own haproxy: takes for an address.
        return address
    prefix = packed[:8]
    linkLocal = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
    if linkLocal or prefix == bytes(8) or packed[:12] == _NAT64:
        return address
    return f"{inet_ntop(AF_INET6, prefix + bytes(8))}/64"


def addressText(address: IAddress) -> str:
    """Return an address as ASCII: C{host:port}, C{[host]:port}, C{unix:path} or C{pipe:}."""
    host, port = hostAndPort(address)
    if port is None:
        return asciiText(f"{network(address)[0]}:{host or ''}")
    return f"[{host}]:{port}" if isinstance(address, IPv6Address) else f"{host}:{port}"


def network(address: IAddress) -> tuple[str, str | None]:
    """Return the C{network.transport} and C{network.type} of an address."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return address.type.lower(), "ipv4" if isinstance(address, IPv4Address) else "ipv6"
    return "unix" if isinstance(address, UNIXAddress) else "pipe", None


def hostAndPort(address: IAddress | None) -> tuple[str | None, int | None]:
    """Return the C{address} and C{port} of an address, each L{None} where there is none."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return printable(address.host), address.port
    if isinstance(address, UNIXAddress) and address.name:
        name = address.name.decode("utf-8", "surrogateescape")
        # A name in Linux's abstract namespace starts with NUL, written @ by ss(8) and systemd.
        return printable("@" + name[1:] if name[0] == "\0" else name), None
    return None, None


def printable(text: str) -> str:
    """Escape backslashes and non-printable characters, so that peers cannot forge log lines."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
