"""A machine that systemd runs, made of this one's own files."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from secrets import token_hex

from machines import Machines
from processes import DEPLOY, Start, run, tool, until

CGROUPS = [Path("/sys/fs/cgroup", name) for name in ("", "systemd", "unified")]

HANDBOOK = (DEPLOY / "README.md").read_text()

BOOT = """
for root in $3; do
    mkdir $root
    echo $$ > $root/cgroup.procs
done
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
    section = (
        HANDBOOK.partition(f"\n### {heading}\n")[2] or HANDBOOK.partition(f"\n## {heading}\n")[2]
    )
    assert section, heading
    text = re.split(r"^##", section, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


class BootedMachine:
    """The near one of two machines, with systemd as process 1 and the programs of this machine."""

    def __init__(self, start: Start, machines: Machines, folder: Path) -> None:
        """Boot it, as far as basic.target."""
        (folder / "layer").mkdir()
        name = f"hello-{token_hex(4)}"
        # Without systemd around it, nobody gives it a cgroup of its own, or knows of it.
        isAlone = not Path("/run/systemd/system").exists()
        self._cgroups = [
            root / name for root in CGROUPS if isAlone and (root / "cgroup.procs").exists()
        ]
        self._nspawn = start(
            *[*machines.near, tool("unshare"), "--pid", "--mount-proc", "--fork", "--kill-child"],
            *["sh", "-euc", BOOT, "sh", sys.prefix, sys.base_prefix],
            " ".join(map(str, self._cgroups)),
            *["env", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network"],
            *[tool("systemd-nspawn"), "--directory=root", f"--machine={name}"],
            *["--register=no", "--keep-unit"] * isAlone,
            *["--network-namespace-path=/proc/self/ns/net", "--capability=CAP_NET_ADMIN"],
            *["--link-journal=no", "--console=pipe", "--boot", "systemd.unit=basic.target"],
            patience=180,
        )
        self._within: list[object] = []
        until(self._isBooted)
        # One that nspawn makes, which a unit with a /proc of its own does not see.
        self.run("umount /proc/sys/kernel/random/boot_id")

    def end(self) -> None:
        """Switch it off."""
        self._nspawn.end()
        for root in self._cgroups:
            for folder, _, _ in os.walk(root, topdown=False):
                until(lambda folder=folder: not Path(folder, "cgroup.procs").read_text())
                os.rmdir(folder)

    def _isBooted(self) -> bool:
        """Say whether systemd, which nspawn started, has reached its target."""
        for nspawn in _children(self._nspawn.pid):
            for systemd in _children(nspawn):
                self._within = [tool("nsenter"), f"--target={systemd}", "--all", *ENVIRONMENT]
                return self.tell("systemctl is-active basic.target") == "active\n"
        return False

    def tell(self, command: str) -> str:
        """Run a shell command, and return its output."""
        return run(*self._within, "sh", "-ec", command).stdout

    def run(self, command: str) -> str:
        """Run shell commands, which must succeed, and return their output."""
        done = run(*self._within, "timeout", "50", "sh", "-ec", command)
        if done.returncode != 0:
            known = self.tell("systemctl list-jobs; ps axo pid,wchan:20,args; journalctl -n 50")
            raise AssertionError("\n".join([command, done.stdout, done.stderr, known]))
        return done.stdout


def _children(process: int) -> list[int]:
    """Return the children of a process."""
    try:
        return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    except FileNotFoundError:
        return []
