"""Sets of IP networks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network


class Networks:
    """
    A set of IP networks.

    An IPv4-mapped IPv6 address or network counts as IPv4. C{fe80::/10} contains the link-local
    addresses of every interface, C{fe80::%eth0/10} only those of C{eth0} (RFC 4007, 11.7).
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """
        Parse networks.

        @param texts: IP addresses or networks, such as C{192.0.2.7} and C{2001:db8::/32}.

        @raise ValueError: a text is not a network; the message quotes it.
        """
        self._networks = [_parse(text) for text in texts]

    def __contains__(self, host: str) -> bool:
        """
        Return whether an address is in one of the networks.

        @param host: an IP address, as C{host} of an C{IPv4Address} or C{IPv6Address} of Twisted.
        """
        host, _, scope = host.partition("%")
        try:
            address = ip_address(host)
        except ValueError:  # Twisted's own haproxy: accepts any text as an address.
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in each and only in ("", scope) for each, only in self._networks)


def _parse(text: str) -> tuple[IPv4Network | IPv6Network, str]:
    """Return a network, and the interface that it is limited to or C{""}."""
    host, percent, rest = text.partition("%")
    scope, slash, length = rest.partition("/")
    try:
        network = _unmapped(ip_network(f"{host}{slash}{length}"))
    except ValueError:
        raise ValueError(f"not a network: {text!r}{'' if percent else _hint(text)}") from None
    if percent and (network.version == 4 or not scope):
        raise ValueError(f"not a network: {text!r}")
    return network, scope


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return an IPv4-mapped IPv6 network as IPv4, any other unchanged."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return IPv4Network((mapped, network.prefixlen - 96))


def _hint(text: str) -> str:
    """Return a question that suggests the network of an address with host bits, or C{""}."""
    with suppress(ValueError):
        return f"; did you mean '{ip_network(text, strict=False)}'?"
    return ""
