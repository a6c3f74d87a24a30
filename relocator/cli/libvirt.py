"""`relocator libvirt-hook`: what libvirt's qemu hook does for guests whose disks are relocated.

libvirt calls its hooks at fixed moments and waits for them. Of a guest, those disks are ours whose
NBD port on this host is the LISTEN of an /etc/relocator/NAME.conf. The moments that matter:

    migrate begin   at the destination, before QEMU is started: the proxy of each disk is started
                    and must be in standby, or the migration ends here
    prepare begin   a guest starts. One that does not arrive is refused if a disk is in standby
                    (then it may run at the source) or has moved on: it would write where it mustn't

libvirt has no hook between the guest's pause and its first instruction at the destination, so the
proxies run with `activate-on-write=yes`: the first write seals the source, and none passes before.
A mark in /run/relocator, made in `migrate begin` and taken away in `prepare begin`, says that the
guest arrives.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from relocator.cli.common import Commands
from relocator.cli.units import this_command
from relocator.client import Client
from relocator.errors import RelocatorError

CONFIGURATION = Path("/etc/relocator")
RUN = Path("/run/relocator")
HOOK = Path("/etc/libvirt/hooks/qemu.d/relocator")
NBD_PORT = 10809
_PATIENCE_S = 10.0
_START_S = 120.0
#: the disk is here, and a guest may start
_HERE = ("activating", "active", "complete")


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "libvirt-hook",
        help="libvirt's hook for guests whose disks are relocated",
        description="Called by libvirt as /etc/libvirt/hooks/qemu.d/relocator; --install puts it "
        "there. It starts the proxies of a guest that arrives, and refuses to start a guest "
        "whose disks are at another site.",
    )
    parser.add_argument("--install", action="store_true", help=f"write {HOOK}")
    parser.add_argument("words", metavar="WORD", nargs="*", help="GUEST OPERATION SUBOPERATION ...")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.install:
        HOOK.parent.mkdir(parents=True, exist_ok=True)
        HOOK.write_text(f'#!/bin/sh\nexec {this_command()} libvirt-hook "$@"\n')
        HOOK.chmod(0o755)
        print(f"{HOOK}; restart libvirtd to make it known")
        return 0
    guest, *moment = [*options.words, "", ""][:3]
    if moment == ["migrate", "begin"]:
        _arrives(guest, sys.stdin.read())
    elif moment == ["prepare", "begin"]:
        _starts(guest, sys.stdin.read())
    return 0


def _arrives(guest: str, domain: str) -> None:
    """The guest is about to come: its disks must be in standby here."""
    for name in disks_of(domain, configurations()):
        unit = f"relocator-proxy@{name}.service"
        done = subprocess.run(
            ["systemctl", "start", unit],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=False,
        )
        if done.returncode:
            raise RelocatorError(f"{unit} can't be started; see journalctl --unit {unit}")
        state = _status(name)["state"]
        if state != "standby":
            raise RelocatorError(
                f"disk {name} of {guest} is {state} here and not in standby: a guest that comes "
                "from another site would find other content; see `relocator status`"
            )
    RUN.mkdir(exist_ok=True)
    _mark(guest).touch()


def _starts(guest: str, domain: str) -> None:
    """The guest starts here; unless it arrives its disks must be here."""
    if _mark(guest).exists():
        _mark(guest).unlink()
        return
    for name in disks_of(domain, configurations()):
        state = _status(name)["state"]
        if state == "standby":
            raise RelocatorError(
                f"disk {name} of {guest} is in standby here, so {guest} may run at its source; if "
                f"it does not: relocator activate {RUN / name}.sock"
            )
        if state == "outdated":
            raise RelocatorError(
                f"disk {name} of {guest} is outdated: its source goes on with another version of "
                "it; see `relocator status`"
            )
        if state not in _HERE:
            raise RelocatorError(f"disk {name} of {guest} is {state}: it has moved on; start there")


def _mark(guest: str) -> Path:
    return RUN / f"arriving-{guest.replace('/', '_')}"


def _status(name: str) -> dict[str, Any]:
    return Client(RUN / f"{name}.sock").call("status", _PATIENCE_S)


def configurations(directory: Path = CONFIGURATION) -> dict[int, str]:
    """The name of the disk that is served at each port of this host."""
    found = {}
    for path in sorted(directory.glob("*.conf")):
        lines = (line.partition("=") for line in path.read_text().splitlines())
        listen = next((value for key, _, value in lines if key.strip() == "LISTEN"), "")
        port = listen.strip().strip("\"'").rpartition(":")[2]
        if port.isdecimal():
            found[int(port)] = path.stem
    return found


def disks_of(domain: str, served: Mapping[int, str]) -> Iterator[str]:
    """The names of those disks of a domain, given as libvirt's XML, that are ours.

    Raises:
        RelocatorError: it is no domain.
    """
    try:
        root = ElementTree.fromstring(domain)
    except ElementTree.ParseError as error:
        raise RelocatorError(f"libvirt's description of the guest: {error}") from error
    for host in root.findall("./devices/disk/source[@protocol='nbd']/host"):
        local = host.get("name") in ("127.0.0.1", "localhost", "::1")
        port = int(host.get("port") or NBD_PORT)
        if local and port in served:
            yield served[port]
