"""Print who connects, until Ctrl-C."""

from twisted.internet import task
from twisted.internet.defer import Deferred

from hello_listen import Connection, HelloEndpoint, HelloFactory


def show(connection: Connection) -> None:
    print(connection.clientAddress, connection.clientPort)


async def main(reactor: object) -> None:
    await HelloEndpoint(reactor, "tcp:7878:interface=127.0.0.1").listen(HelloFactory(show))
    await Deferred()  # Until Ctrl-C.


if __name__ == "__main__":
    task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
