"""Countries and networks of addresses, by databases that the tests write."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("maxminddb")

from geodata import countries, country, networks, system, write
from hello_listen._place import GeoError, Place
from hello_listen.geo import GeoDatabases


@pytest.fixture
def both(tmp_path: Path) -> GeoDatabases:
    """Return databases of countries and of networks."""
    return GeoDatabases([str(countries(tmp_path)), str(networks(tmp_path))])


@pytest.mark.parametrize(
    ("client", "place"),
    [
        ("198.51.100.7", Place("DE", 64500, "Example Ltd.")),
        ("198.51.100.200", Place("FR", 64500, "Example Ltd.")),
        ("203.0.113.9", Place("US", 64501, "Tel\u00e9fonica")),
        ("2001:db8:7:1::/64", Place("JP", 64502, "Six")),
        ("2001:db8:8::1", Place("JP")),
        ("2001:db9::/64", Place()),
        ("192.0.2.7", Place()),
        ("8.8.8.8", Place()),
        ("10.1.2.3", Place(isPrivate=True)),
        ("100.64.0.1", Place(isPrivate=True)),
        ("127.0.0.1", Place(isPrivate=True)),
        ("::1", Place(isPrivate=True)),
        ("fd00::/64", Place(isPrivate=True)),
        ("fe80::1%eth0", Place(isPrivate=True)),
        ("unix:/run/hello", Place()),
        ("198.51.100.7\0", Place()),
        ("\udcff", Place()),
        ("", Place()),
        (None, Place()),
    ],
)
def test_find(both: GeoDatabases, client: str | None, place: Place) -> None:
    """The facts of all databases are merged; unknown and private addresses are told apart."""
    for _ in range(2):
        assert both.find(client) == place


def test_many(tmp_path: Path) -> None:
    """Each address is found in whatever order, as the networks that were written contain it."""
    random = Random(1)
    written: list[dict[Any, str]] = []
    paths = []
    for number in range(2):
        known: dict[Any, str] = {}
        for _ in range(200):
            v4 = random.random() < 0.7
            bits, low = (32, 20) if v4 else (128, 40)
            first = (198 << 24 if v4 else 0x2001 << 112) | random.getrandbits(bits - 12)
            length = random.randrange(low, 33 if v4 else 65)
            network = ip_network((first & -(1 << (bits - length)), length))
            if not any(network.overlaps(each) for each in known if each.version == network.version):
                known[network] = random.choice(["AA", "BB", "CC"])
        records = {str(network): country(code) for network, code in known.items()}
        if number:
            records = {str(network): system(ord(code[0]), code) for network, code in known.items()}
        paths.append(str(write(tmp_path / f"{number}.mmdb", records)))
        written.append(known)
    databases = GeoDatabases(paths)
    addresses = [
        each[random.choice([0, -1, random.randrange(each.num_addresses)])]
        + random.choice([0, 0, 1])
        for known in written
        for each in known
    ]
    for order in (addresses, sorted(addresses, key=lambda a: (a.version, int(a)))):
        for address in order:
            code, organization = (
                next((known[each] for each in known if address in each), None) for known in written
            )
            place = databases.find(str(address))
            assert (place.country, place.organization) == (code, organization), address
    assert ip_address("198.0.0.0") not in addresses


def test_first_database_that_knows(tmp_path: Path) -> None:
    """If several databases have a fact, the first one's counts."""
    first = write(tmp_path / "1", {"192.0.2.0/24": country("DE")})
    second = write(tmp_path / "2", {"192.0.2.0/24": country("FR") | system(1, "One")})
    third = write(tmp_path / "3", {"192.0.2.0/24": system(2, "Two")})
    databases = GeoDatabases(map(str, (first, second, third)))
    assert databases.find("192.0.2.7") == Place("DE", 1, "One")


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"country": "DE", "asn": "AS64500", "as_name": "IPinfo"}, Place("DE", 64500, "IPinfo")),
        ({"country_code": "DE", "country": "Germany"}, Place("DE")),
        ({"country": {"iso_code": "DE"}, "asn": "AS"}, Place("DE")),
        ({"country": {"iso_code": 7}, "autonomous_system_number": 7}, Place(None, 7)),
        ({"autonomous_system_organization": "Alone"}, Place(None, None, "Alone")),
    ],
)
def test_kinds(tmp_path: Path, record: Any, place: Place) -> None:
    """Databases of other providers are understood."""
    path = write(tmp_path / "x.mmdb", {"192.0.2.0/24": record})
    assert GeoDatabases([str(path)]).find("192.0.2.7") == place


def test_what_is_there(tmp_path: Path) -> None:
    """The databases tell whether they hold countries, networks or both."""
    first, second = str(countries(tmp_path)), str(networks(tmp_path))
    for paths, hold in (
        ([first], (True, False)),
        ([second], (False, True)),
        ([second, first], (True, True)),
    ):
        databases = GeoDatabases(paths)
        assert (databases.hasCountries, databases.hasNetworks) == hold


def test_ipv4_only(tmp_path: Path) -> None:
    """A database of IPv4 finds no IPv6 address."""
    path = write(tmp_path / "x.mmdb", {"192.0.2.0/24": country("DE")}, version=4)
    databases = GeoDatabases([str(path)])
    for _ in range(2):
        assert databases.find("2001:db8::1") == Place()
        assert databases.find("192.0.2.1") == Place("DE")


def test_errors(tmp_path: Path) -> None:
    """A database that is missing, broken or of another kind is named."""
    good = countries(tmp_path)
    data = good.read_bytes()
    for name, content in (
        ("empty", b""),
        ("text", b"hello\n" * 99),
        ("cut", data[: len(data) // 2]),
        ("zeros", bytes(4096)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GeoError, match=f"^not a MaxMind database: '{tmp_path}/{name}'$"):
            GeoDatabases([str(good), str(tmp_path / name)])
    write(tmp_path / "domain", {"192.0.2.0/24": {"domain": "example.org"}}, "GeoIP2-Domain")
    with pytest.raises(GeoError, match=r"without countries and networks \(GeoIP2-Domain\): "):
        GeoDatabases([str(tmp_path / "domain")])
    write(tmp_path / "word", {"192.0.2.0/24": "a word"}, "Words")
    with pytest.raises(GeoError, match=r"\(Words\)"):
        GeoDatabases([str(tmp_path / "word")])
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(GeoError, match="not a file"):
            GeoDatabases([str(tmp_path / name)])
    with pytest.raises(FileNotFoundError):
        GeoDatabases([str(tmp_path / "none")])


def test_damage(tmp_path: Path) -> None:
    """Damage in the first records is found at the start, other damage by its look-up."""
    for name, number in (("early", 7), ("late", 1199)):
        records = {f"10.{n >> 8}.{n & 255}.0/24": system(n, f"Name {n:04}") for n in range(1200)}
        path = write(tmp_path / name, records)
        data = path.read_bytes()
        at = data.index(b"Name %04d" % number)
        for wrong in (b"\xff\xff", b"Na\xff"):  # An impossible type, and text that is not UTF-8.
            start = at - 1 if wrong[:1] == b"\xff" else at
            path.write_bytes(data[:start] + wrong + data[start + len(wrong) :])
            with pytest.raises(GeoError, match=f"^the database is damaged: '{path}'$"):
                GeoDatabases([str(path)]).find(f"10.{number >> 8}.{number & 255}.1")


def test_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload takes a new file; a wrong one leaves the old one in use."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.mmdb", {"192.0.2.0/24": country("DE")})
    databases = GeoDatabases(["x.mmdb"])
    monkeypatch.chdir("/")
    # Overwritten in place, as by cp, and not replaced.
    path.write_bytes(b"")
    assert databases.find("192.0.2.7") == Place("DE")
    with pytest.raises(GeoError):
        databases.reload()
    assert databases.find("192.0.2.7") == Place("DE")
    write(path, {"192.0.2.0/24": country("FR")})
    assert databases.find("192.0.2.9") == Place("DE")
    databases.reload()
    assert databases.find("192.0.2.7") == Place("FR")
