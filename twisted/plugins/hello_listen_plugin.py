"""Tells twistd and twist about hello-listen; hello_listen.tap is imported only when it is used."""

import signal
import sys
from typing import Any

from twisted.application.service import ServiceMaker

SIGNALS = "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2"


class HelloServiceMaker(ServiceMaker):
    """A service maker that lets signals wait until the service can handle them."""

    @property
    def options(self) -> Any:
        """
        The command line's options, from here on with signals blocked.

        Importing them takes half of the start, and a signal would end the process meanwhile,
        though clients may be waiting at an inherited socket. PluginService unblocks the signals.
        """
        if sys.platform == "win32":  # No socket's descriptor can be duplicated there.
            sys.exit("hello-listen: needs Linux or another POSIX system; this is Windows")
        signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in SIGNALS})
        return super().options


helloListen = HelloServiceMaker(
    "hello-listen",
    "hello_listen.tap",
    "Log each connection to an endpoint, and drop it.",
    "hello-listen",
)
