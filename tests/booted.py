"""A machine that systemd runs, made of this one's own files."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from machines import Machines
from processes import DEPLOY, PATIENCE, Start, children, run, tool, until

HANDBOOK = (DEPLOY / "README.md").read_text()

BOOT = """
mount -t cgroup2 none /sys/fs/cgroup
mkdir /sys/fs/cgroup/$3
echo $$ > /sys/fs/cgroup/$3/cgroup.procs
mount -t tmpfs tmpfs layer
cd layer
mkdir files root work venv venv-work
mount -t overlay -o lowerdir=/,upperdir=files,workdir=work overlay root
mkdir -p root/opt/hello-listen root/opt/python
mount --bind "$2" root/opt/python
mount -t overlay -o "lowerdir=$1,upperdir=venv,workdir=venv-work" overlay root/opt/hello-listen
sed -i '1s|^#!.*|#!/opt/hello-listen/bin/python3|' \
    root/opt/hello-listen/bin/twistd root/opt/hello-listen/bin/hello-listen-report
sed -i 's|^home = .*|home = /opt/python/bin|' root/opt/hello-listen/pyvenv.cfg
ln -sf /opt/python/bin/python3 root/opt/hello-listen/bin/python3
mkdir root/etc/systemd/system.conf.d
printf '[Manager]\\nDefaultEnvironment=LD_LIBRARY_PATH=/opt/python/lib\\n' \
    > root/etc/systemd/system.conf.d/python.conf
rm -rf root/var/log/hello-listen root/etc/systemd/system/hello-listen*
shift 3
exec "$@"
"""
"""
What the machine writes goes with its mounts. hello-listen is where the handbook installs it, and
Python, which may be in a home, is where units see it.
"""

ENVIRONMENT = [
    *["env", "-i", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    "LD_LIBRARY_PATH=/opt/python/lib",
]


def commands(heading: str) -> list[str]:
    """Return each block of commands under a heading of the handbook."""
    sections = re.split(r"^##+ (.*)\n", HANDBOOK, flags=re.MULTILINE)
    text = sections[sections.index(heading) + 1]
    return re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


class BootedMachine:
    """The near one of two machines, with systemd as process 1 and the programs of this machine."""

    def __init__(self, start: Start, machines: Machines, folder: Path) -> None:
        """Boot it, as far as basic.target."""
        (folder / "layer").mkdir()
        name = f"hello-{token_hex(4)}"
        self._nspawn = start(
            *[*machines.near, tool("unshare"), "--pid", "--mount-proc", "--fork", "--kill-child"],
            *["sh", "-euc", BOOT, "sh", sys.prefix, sys.base_prefix, name],
            *["env", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network"],
            *[tool("systemd-nspawn"), "--directory=root", f"--machine={name}"],
            *["--register=no", "--keep-unit", "--link-journal=no", "--console=pipe"],
            *["--network-namespace-path=/proc/self/ns/net", "--capability=CAP_NET_ADMIN"],
            *["--boot", "systemd.unit=basic.target"],
            patience=3 * PATIENCE,
        )
        # Newer versions of systemd know no other cgroups than these.
        [mount, *_] = re.findall(r"^\S+ (\S+) cgroup2 ", Path("/proc/mounts").read_text(), re.M)
        self._cgroup = Path(mount, name)
        self._within: list[object] = []
        until(self._isBooted)
        # One that nspawn makes, which a unit with a /proc of its own does not see.
        self.run("umount /proc/sys/kernel/random/boot_id")

    def end(self) -> None:
        """Switch it off."""
        self._nspawn.end()
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            until(lambda folder=folder: _isRemoved(folder))

    def _isBooted(self) -> bool:
        """Say whether systemd, which nspawn started, has reached its target."""
        for nspawn in children(self._nspawn.pid):
            for systemd in children(nspawn):
                # nspawn changes the root only, where it runs in a changed root itself.
                enter = [tool("nsenter"), f"--target={systemd}", "--all", "--root"]
                self._within = [*enter, *ENVIRONMENT]
                return self.tell("systemctl is-active basic.target") == "active\n"
        return False

    def tell(self, command: str) -> str:
        """Run a shell command, and return its output."""
        return run(*self._within, "sh", "-ec", command).stdout

    def run(self, command: str) -> str:
        """Run shell commands, which must succeed, and return their output."""
        done = run(*self._within, "timeout", f"{PATIENCE - 10:.0f}", "sh", "-ec", command)
        if done.returncode != 0:
            known = self.tell("systemctl list-jobs; ps axo pid,wchan:20,args; journalctl -n 50")
            raise AssertionError("\n".join([command, done.stdout, done.stderr, known]))
        return done.stdout


def _isRemoved(cgroup: str) -> bool:
    """Remove a cgroup, and say whether it is gone: it is busy until its last process is."""
    with suppress(OSError):
        os.rmdir(cgroup)
    return not os.path.exists(cgroup)
