"""Log each connection to a Twisted endpoint, and drop it."""

from hello_listen.connection import Connection
from hello_listen.endpoint import ListenError
from hello_listen.listening import HelloService
from hello_listen.protocol import HelloFactory, HelloProtocol

__all__ = [
    "Connection",
    "HelloFactory",
    "HelloProtocol",
    "HelloService",
    "ListenError",
]
