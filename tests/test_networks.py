"""Networks, and the addresses in them, in any notation."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hello_listen._networks import Networks


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("192.0.2.7", ["192.0.2.7", "::ffff:192.0.2.7", "::ffff:c000:207"], ["192.0.2.8", "::1"]),
        ("10.0.0.0/8", ["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"], ["11.0.0.0", "::a00:1"]),
        ("10.0.0.0/255.0.0.0", ["10.1.2.3"], ["11.0.0.0"]),
        ("::ffff:10.0.0.0/104", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.0", "::a00:1"]),
        ("::ffff:0:0/96", ["192.0.2.7", "::ffff:192.0.2.7"], ["::1"]),
        ("::/0", ["::1", "fe80::1%eth0"], ["192.0.2.7", "::ffff:192.0.2.7"]),
        ("2001:DB8::/32", ["2001:db8::1", "2001:0db8:0::1"], ["2001:db9::1", "192.0.2.7"]),
        ("fe80::/10", ["fe80::1", "fe80::1%eth0", "fe80::1%eth1"], ["fec0::1"]),
        ("fe80::%eth0/64", ["fe80::1%eth0"], ["fe80::1%eth1", "fe80::1", "fe80:0:0:1::1%eth0"]),
        ("fe80::1%eth0", ["fe80::1%eth0"], ["fe80::2%eth0", "fe80::1%eth1", "fe80::1"]),
        ("0.0.0.0/0", ["192.0.2.7"], ["garbage", "", "::1", "1.2.3.4 "]),
    ],
)
def test_networks(network: str, inside: list[str], outside: list[str]) -> None:
    """An address is in a network or not; mapped IPv4 is IPv4, and a named interface counts."""
    networks = Networks([network])
    assert all(host in networks for host in inside)
    assert not any(host in networks for host in outside)


def test_several() -> None:
    """An address is in a set of networks if it is in one of them."""
    networks = Networks(["192.0.2.7", "2001:db8::/32"])
    assert "192.0.2.7" in networks
    assert "2001:db8::9" in networks
    assert "192.0.2.9" not in networks
    assert "192.0.2.7" not in Networks([])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", ""),
        ("localhost", ""),
        ("192.0.2.7/33", ""),
        ("192.0.2.7\n", ""),
        ("192.0.2.7/24", "; did you mean '192.0.2.0/24'?"),
        ("2001:db8::1/64", "; did you mean '2001:db8::/64'?"),
        ("fe80::1%", ""),
        ("fe80::1%eth0/64", ""),
        ("192.0.2.7%eth0", ""),
        ("::ffff:192.0.2.7%eth0", ""),
    ],
)
def test_what_is_not_a_network(text: str, hint: str) -> None:
    """A text that is no network is an error that quotes it, with a suggestion."""
    with pytest.raises(ValueError, match="not a network") as raised:
        Networks([text])
    assert str(raised.value) == f"not a network: {text!r}{hint}"


addresses = st.ip_addresses().filter(lambda host: not getattr(host, "ipv4_mapped", None))


@given(addresses, addresses, st.integers(0, 128))
def test_any_address(host: object, other: object, bits: int) -> None:
    """Except for mapped addresses, the answer is that of Python's ipaddress."""
    network = ip_network(f"{other}/{min(bits, ip_address(str(other)).max_prefixlen)}", strict=False)
    if getattr(network.network_address, "ipv4_mapped", None) is None:
        assert (str(host) in Networks([str(network)])) == (ip_address(str(host)) in network)
