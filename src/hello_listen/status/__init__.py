"""The status as a page, as JSON and as metrics. Needs prometheus-client."""

from hello_listen.status.resource import StatusResource
from hello_listen.status.site import StatusSite
from hello_listen.status.snapshot import LogCounts, Snapshot
from hello_listen.status.tally import Client, Facts, Tally

__all__ = ["Client", "Facts", "LogCounts", "Snapshot", "StatusResource", "StatusSite", "Tally"]
