"""Databases of countries and networks, in MaxMind's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

LANGUAGES = ["de", "en"]


def country(code: str) -> dict[str, object]:
    """Return what GeoLite2 Country and DB-IP have for a network."""
    names = dict.fromkeys(LANGUAGES, f"Country {code}")
    return {"country": {"iso_code": code, "geoname_id": 1, "names": names}}


def system(number: int, organization: str) -> dict[str, object]:
    """Return what GeoLite2 ASN and DB-IP have for a network."""
    return {
        "autonomous_system_number": number,
        "autonomous_system_organization": organization,
    }


def write(
    path: Path, records: Mapping[str, Any], kind: str = "GeoLite2-Country", version: int = 6
) -> Path:
    """Write a database with a record for each network; later ones replace earlier ones."""
    writer = MMDBWriter(version, kind, languages=LANGUAGES, ipv4_compatible=version == 6)
    for network, record in records.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


def countries(folder: Path) -> Path:
    """Write a database of some countries."""
    return write(
        folder / "country.mmdb",
        {
            "198.51.100.0/24": country("DE"),
            "198.51.100.128/25": country("FR"),
            "203.0.113.0/24": country("US"),
            "2001:db8::/32": country("JP"),
            "192.0.2.0/24": {"continent": {"code": "EU"}},
        },
    )


def networks(folder: Path) -> Path:
    """Write a database of some networks."""
    return write(
        folder / "asn.mmdb",
        {
            "198.51.100.0/24": system(64500, "Example Ltd."),
            "203.0.113.0/24": system(64501, "Tel\u00e9fonica"),
            "2001:db8:7::/48": system(64502, "Six"),
        },
        "GeoLite2-ASN",
    )
