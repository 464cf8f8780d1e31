"""Tells twistd and twist about hello-listen; hello_listen.tap is imported only when it is used."""

from twisted.application.service import ServiceMaker

helloListen = ServiceMaker(
    "hello-listen",
    "hello_listen.tap",
    "Log each connection to an endpoint, and drop it.",
    "hello-listen",
)
