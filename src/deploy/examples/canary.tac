"""A complete canary, for twistd -ny canary.tac: several ports, log, limit for each client, page."""

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString

from hello_listen import ConnectionLog, HelloFactory, HelloService, Summaries
from hello_listen.status import StatusResource, StatusSite, Tally

PORTS = ["tcp6:2323", "tcp6:1433", "tcp6:3389", "tcp6:5900"]
PAGE = "tcp:7880:interface=127.0.0.1"

application = Application("canary")
log = ConnectionLog("connections.jsonl")
tally = Tally()
factory = HelloFactory(Summaries(log, perClient=10), tally)
service = HelloService(factory, PORTS)
service.setServiceParent(application)
site = StatusSite(StatusResource(tally, service, log), reactor)
StreamServerEndpointService(serverFromString(reactor, PAGE), site).setServiceParent(application)
