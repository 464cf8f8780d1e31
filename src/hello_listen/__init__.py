"""Log each connection to a Twisted endpoint, and drop it."""

from hello_listen._version import __version__
from hello_listen.connection import Connection, Summary
from hello_listen.connection_log import ConnectionLog
from hello_listen.endpoint import HelloEndpoint, ListenError
from hello_listen.notifications import Notifications, SendError
from hello_listen.protocol import HelloFactory, HelloProtocol, logConnection
from hello_listen.service import HelloService
from hello_listen.summaries import Summaries

__all__ = [
    "Connection",
    "ConnectionLog",
    "HelloEndpoint",
    "HelloFactory",
    "HelloProtocol",
    "HelloService",
    "ListenError",
    "Notifications",
    "SendError",
    "Summaries",
    "Summary",
    "__version__",
    "logConnection",
]
