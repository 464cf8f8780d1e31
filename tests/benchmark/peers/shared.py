"""
Run a command several times on one listening socket, passed on as systemd does (sd_listen_fds(3)).

Arguments: the port, how many processes, a core for each of them (0,1) or - for any, the command.
"""

import os
import socket
import sys

port, processes, cores, *command = sys.argv[1:]
listener = socket.create_server(("127.0.0.1", int(port)), backlog=4096)
number = next((child for child in range(1, int(processes)) if os.fork() == 0), 0)
if cores != "-":
    os.sched_setaffinity(0, {int(cores.split(",")[number])})
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="hello")
os.execv(command[0], command)
