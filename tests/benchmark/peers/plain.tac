import os
from twisted.application import service, strports
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

LINE = "Connection established! {peer.host}:{peer.port} -> {host.host}:{host.port}"

class Hello(Protocol):
    log = Logger("plain")

    def connectionMade(self):
        self.log.info(LINE, peer=self.transport.getPeer(), host=self.transport.getHost())
        self.transport.loseConnection()

application = service.Application("plain")
endpoint = "tcp:" + os.environ["PORT"] + ":interface=127.0.0.1"
strports.service(endpoint, Factory.forProtocol(Hello)).setServiceParent(application)
