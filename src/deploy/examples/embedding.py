"""Print who connects in a minute."""

from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred

from hello_listen import Connection, HelloEndpoint, HelloFactory


def show(connection: Connection) -> None:
    print(connection.clientAddress, connection.clientPort)


async def main(reactor: Any) -> None:
    factory = HelloFactory(show)
    port = await HelloEndpoint(reactor, "tcp:7878:interface=127.0.0.1").listen(factory)
    await task.deferLater(reactor, 60)
    await port.stopListening()
    print(factory.connections, "connections in a minute")


if __name__ == "__main__":
    task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
