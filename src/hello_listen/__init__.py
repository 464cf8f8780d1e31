"""Log each connection to a Twisted endpoint, and drop it."""

from hello_listen.connection import Connection
from hello_listen.connection_log import ConnectionLog
from hello_listen.endpoint import ListenError
from hello_listen.listening import HelloService
from hello_listen.protocol import HelloFactory, HelloProtocol

__all__ = [
    "Connection",
    "ConnectionLog",
    "HelloFactory",
    "HelloProtocol",
    "HelloService",
    "ListenError",
]
