"""Serve two endpoints and log to a file and to Twisted's log, for twistd -ny hello.tac."""

from twisted.application.service import Application

from hello_listen import ConnectionLog, HelloFactory, HelloService, logConnection

application = Application("hello")
factory = HelloFactory(ConnectionLog("connections.jsonl"), logConnection)
service = HelloService(factory, ["tcp:7878:interface=127.0.0.1", "unix:hello.sock"])
service.setServiceParent(application)
