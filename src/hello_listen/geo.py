"""Looks up the country and the network of addresses in MaxMind databases. Needs maxminddb."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from itertools import islice
from shutil import copyfileobj
from socket import AF_INET, AF_INET6, inet_pton
from tempfile import NamedTemporaryFile
from typing import Any

from maxminddb import InvalidDatabaseError, open_database

from hello_listen._networks import Networks
from hello_listen._place import NOWHERE, GeoError, Place

MAX_SAMPLES = 1000
"""Upper bound of the records that are read to find out what a database holds."""

_PRIVATE = Networks(
    [
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # RFC 6598
        "127.0.0.0/8",
        "169.254.0.0/16",  # RFC 3927
        "::1",
        "fc00::/7",  # RFC 4193
        "fe80::/10",
    ]
)

_DAMAGE = InvalidDatabaseError, UnicodeDecodeError
"""What maxminddb raises for a damaged file."""

_Found = tuple[int, int, int, Place]
"""A network: the bits of its addresses, the first address, the last, and its place."""

_NONE: _Found = (0, 0, -1, NOWHERE)

_PRIVATE_PLACE = Place(isPrivate=True)


class GeoDatabases:
    """
    Databases in MaxMind's format, such as GeoLite2, DB-IP and IPinfo, of countries or networks.

    No look-up leaves the machine. Of several databases, the first that knows a fact is believed.

    >>> from hello_listen.geo import GeoDatabases
    >>> GeoDatabases(["country.mmdb"]).find("203.0.113.7").country
    'US'

    @ivar hasCountries: whether a database holds countries.
    @ivar hasNetworks: whether a database holds networks.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        """
        Open databases.

        @param paths: the path of each.

        @raise OSError: a file cannot be read.
        @raise GeoError: a file is not a database of countries or networks; the message quotes it.
        """
        # A process in the background changes its folder.
        self._paths = [os.path.abspath(path) for path in paths]
        self.reload()

    def reload(self) -> None:
        """
        Open the files that are at the same paths now, or keep the open ones.

        @raise OSError: a file cannot be read.
        @raise GeoError: a file is not a database of countries or networks; the message quotes it.
        """
        databases = [_Database(path) for path in self._paths]
        self.hasCountries = any(database.hasCountries for database in databases)
        self.hasNetworks = any(database.hasNetworks for database in databases)
        self._databases = databases
        self._last = _NONE

    def find(self, client: str | None) -> Place:
        """
        Return the place of a client.

        It is fastest for ascending addresses: the last network of each database is cached.

        @param client: its identity (L{hello_listen._addresses.clientIdentity}) or its address.

        @raise GeoError: a database is damaged; the message quotes it.
        """
        text = (client or "").partition("/")[0].partition("%")[0]
        family = AF_INET6 if ":" in text else AF_INET
        try:
            address = int.from_bytes(inet_pton(family, text), "big")
        except (OSError, ValueError):  # ValueError: NUL in the name of a socket.
            return NOWHERE
        bits = 128 if family is AF_INET6 else 32
        lastBits, first, last, place = self._last
        if bits != lastBits or not first <= address <= last:
            place = self._find(text, address, bits)
        return _PRIVATE_PLACE if place is NOWHERE and text in _PRIVATE else place

    def _find(self, text: str, address: int, bits: int) -> Place:
        """Look an address up in each database, and cache the network that all agree on."""
        first, last, found = 0, (1 << bits) - 1, NOWHERE
        for database in self._databases:
            _, start, end, place = database.find(text, address, bits)
            first, last = max(first, start), min(last, end)
            if place is not NOWHERE:
                found = place if found is NOWHERE else _merged(found, place)
        self._last = bits, first, last, found
        return found


class _Database:
    """An open database, and the network that was found last."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader = _open(path)
        self.hasCountries = self.hasNetworks = False
        try:
            for _, record in islice(self._reader, MAX_SAMPLES):
                place = _place(record)
                self.hasCountries = self.hasCountries or place.country is not None
                self.hasNetworks = self.hasNetworks or place.network is not None
        except _DAMAGE as error:
            raise self._damaged() from error
        if not (self.hasCountries or self.hasNetworks):
            kind = self._reader.metadata().database_type
            raise GeoError(f"a database without countries and networks ({kind}): {path!r}")
        self._hasIPv6 = self._reader.metadata().ip_version == 6
        self._last = _NONE

    def find(self, text: str, address: int, bits: int) -> _Found:
        """Return the network of an address, given also as a number of 32 or 128 bits."""
        lastBits, first, last, _ = self._last
        if bits == lastBits and first <= address <= last:
            return self._last
        if bits == 128 and not self._hasIPv6:
            return bits, 0, (1 << bits) - 1, NOWHERE
        try:
            record, length = self._reader.get_with_prefix_len(text)
        except _DAMAGE as error:
            raise self._damaged() from error
        size = 1 << (bits - length)
        first = address & -size
        self._last = bits, first, first + size - 1, _place(record)
        return self._last

    def _damaged(self) -> GeoError:
        """Return the error of a damaged database."""
        return GeoError(f"the database is damaged: {self._path!r}")


def _open(path: str) -> Any:
    """
    Open a copy of a database, which stays whole when the file is overwritten.

    @raise OSError: the file cannot be read.
    @raise GeoError: it is not a database.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise GeoError(f"not a file: {path!r}")
    with open(path, "rb") as file, NamedTemporaryFile(prefix="hello-listen-") as copy:
        copyfileobj(file, copy)
        copy.flush()
        try:
            return open_database(copy.name)
        except _DAMAGE as error:
            raise GeoError(f"not a MaxMind database: {path!r}") from error


def _place(record: Any) -> Place:
    """Return the place in a record of any database."""
    if not isinstance(record, dict):
        return NOWHERE
    country = _country(record.get("country")) or _country(record.get("country_code"))
    # IPinfo has "asn": "AS64500"; MaxMind and DB-IP have a number.
    number = record.get("autonomous_system_number", record.get("asn"))
    match = re.fullmatch(r"(?:AS)?([0-9]+)", str(number))
    organization = record.get("autonomous_system_organization", record.get("as_name"))
    place = Place(
        country,
        int(match[1]) if match else None,
        organization if isinstance(organization, str) and organization else None,
    )
    return NOWHERE if place == NOWHERE else place


def _country(value: Any) -> str | None:
    """Return the code of a country in a record, or L{None}."""
    code = value.get("iso_code") if isinstance(value, dict) else value
    return code if isinstance(code, str) and re.fullmatch("[A-Z]{2}", code) else None


def _merged(first: Place, second: Place) -> Place:
    """Return the facts of two places; those of the first are preferred."""
    number, organization = first.number, first.organization
    if first.network is None:
        number, organization = second.number, second.organization
    return Place(first.country or second.country, number, organization)
