"""The country and the network of a client."""

from __future__ import annotations

from dataclasses import dataclass

from hello_listen.connection import withoutNone


@dataclass(frozen=True)
class Place:
    """
    Where a client is.

    @ivar country: its country's code of two letters (ISO 3166-1), or L{None} if unknown.
    @ivar number: the number of its autonomous system (AS), or L{None} if unknown.
    @ivar organization: the name of that system's organization, or L{None} if unknown.
    @ivar isPrivate: whether its address is in no database, and private, loopback or link-local.
    """

    country: str | None = None
    number: int | None = None
    organization: str | None = None
    isPrivate: bool = False

    @property
    def network(self) -> str | None:
        """The AS number and the name as one text, or L{None} if both are unknown."""
        number = None if self.number is None else f"AS{self.number}"
        return " ".join(filter(None, (number, self.organization))) or None

    def fields(self) -> dict[str, str | int]:
        """
        Return what is known.

        C{geo.country.iso_code} is OpenTelemetry's name, C{as} the Elastic Common Schema's.
        """
        return withoutNone(self.attributes())

    def attributes(self) -> dict[str, str | int | None]:
        """Return all fields; the value of an unknown one is L{None}."""
        return {
            "client.geo.country.iso_code": self.country,
            "client.as.number": self.number,
            "client.as.organization.name": self.organization,
        }


NOWHERE = Place()
"""The place of a client of which nothing is known."""


class GeoError(ValueError):
    """A file is no database of countries or networks, or is damaged; the message quotes it."""
