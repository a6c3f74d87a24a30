"""`relocator libvirt-hook`: what libvirt's qemu hook does for guests whose disks are relocated.

libvirt calls its hooks at fixed moments and waits for them. Of a guest, those disks are ours whose
NBD port on this host is the LISTEN of an /etc/relocator/NAME.conf. The moments that matter:

    migrate begin   at the destination, before QEMU is started: the proxy of each disk is started
                    and must be in standby, or the migration ends here
    prepare begin   a guest starts. One that does not arrive is refused if a disk is in standby
                    (then it may run at the source) or has moved on: it would write where it mustn't

libvirt has no hook between the guest's pause and its first instruction at the destination, so the
proxies run with `activate-on-write=yes`: the first write seals the source, and none passes before.
A mark in /run/relocator, made at the end of `migrate begin` and taken away in `prepare begin`, says
that the guest arrives. libvirt tells nobody if it fails between the two, which are one step of a
migration, on this host alone: so a mark of more than a minute is none.

A configuration that can't be read is a warning in the journal; only a guest that has a disk here
which nobody knows is refused then, for the disk may be that one's.
"""

import argparse
import os
import subprocess
import sys
import syslog
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from relocator.cli.common import Commands
from relocator.cli.host import arrival_ports_fact
from relocator.cli.units import this_command
from relocator.client import Client
from relocator.errors import RelocatorError

CONFIGURATION = Path("/etc/relocator")
RUN = Path("/run/relocator")
HOOK = Path("/etc/libvirt/hooks/qemu.d/relocator")
NBD_PORT = 10809
_PATIENCE_S = 10.0
_START_S = 120.0
#: how long the mark of an arrival holds; libvirt waits for other jobs of the guest for 30 s
_ARRIVAL_S = 60.0
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
        HOOK.write_text(hook_text(this_command()))
        HOOK.chmod(0o755)
        print(f"{HOOK}; restart libvirtd to make it known")
        if not (ports := arrival_ports_fact()).ok:
            print(f"warning: {ports.name}, {ports.detail}: {ports.remedy}", file=sys.stderr)
        return 0
    guest, *moment = [*options.words, "", ""][:3]
    if moment == ["migrate", "begin"]:
        _arrives(guest, sys.stdin.read())
    elif moment == ["prepare", "begin"]:
        _starts(guest, sys.stdin.read())
    return 0


def hook_text(command: os.PathLike[str] | str) -> str:
    """The hook that calls `command`; the Debian package takes its own away by that (postrm)."""
    return f'#!/bin/sh\nexec {command} libvirt-hook "$@"\n'


def _arrives(guest: str, domain: str) -> None:
    """The guest is about to come: its disks must be in standby here."""
    for name in disks_of(domain, *configurations(CONFIGURATION)):
        _start_proxy(name)
        state = _status(name)["state"]
        if state != "standby":
            raise RelocatorError(
                f"disk {name} of {guest} is {state} here and not in standby: a guest that comes "
                "from another site would find other content; see `relocator status`"
            )
    RUN.mkdir(exist_ok=True)
    _mark(guest).write_text(f"{_now()}\n")  # last: what came before may have taken minutes


def _starts(guest: str, domain: str) -> None:
    """The guest starts here; unless it arrives its disks must be here."""
    announced_s = _announced(guest)
    if announced_s is not None and 0 <= announced_s <= _ARRIVAL_S:
        return
    for name in disks_of(domain, *configurations(CONFIGURATION)):
        state = _status(name)["state"]
        if state == "standby":
            late = f" (it was to arrive {announced_s:.0f} s ago)" if announced_s is not None else ""
            raise RelocatorError(
                f"disk {name} of {guest} is in standby here, so {guest} may run at its source"
                f"{late}; if it does not: relocator activate {RUN / name}.sock"
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


def _now() -> float:
    """Seconds since the host was started: /run is as old, and nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _announced(guest: str) -> float | None:
    """How many seconds ago the guest's arrival was announced, if it was; asked once."""
    mark = _mark(guest)
    try:
        since_s = float(mark.read_text())
    except FileNotFoundError:
        return None
    except ValueError:  # an older version's
        since_s = 0.0
    mark.unlink(missing_ok=True)
    return _now() - since_s


def _start_proxy(name: str) -> None:
    """Start a disk's proxy, which ends its target; that is back if the proxy can't be started.

    Such as where the disk has moved on from here, and its new site still reads it from that target.
    If it has just been killed, systemd was about to start it, and would not any more.
    """
    target = f"relocator-target@{name}.service"
    served = _is_up(target)
    try:
        _start(f"relocator-proxy@{name}.service")
    except RelocatorError as error:
        if served and (why := _systemctl("start", target)) is not None:
            raise RelocatorError(f"{error}; and {target}, which it ended, {why}") from error
        raise


def _start(unit: str) -> None:
    if (why := _systemctl("start", unit)) is not None:
        raise RelocatorError(f"{unit} {why}; see journalctl --unit {unit}")


def _systemctl(*words: str) -> str | None:
    """Why that failed, or None."""
    try:
        done = _said(*words)
    except subprocess.TimeoutExpired:
        return f"has not started in {_START_S:.0f} s"
    return None if done.returncode == 0 else "can't be started"


def _is_up(unit: str) -> bool:
    """Whether it is active, or systemd is about to make it so."""
    try:
        return _said("is-active", unit).stdout.strip() in ("active", "activating")
    except subprocess.TimeoutExpired:
        return False


def _said(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemctl", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_START_S,
        check=False,
    )


def _status(name: str) -> dict[str, Any]:
    return Client(RUN / f"{name}.sock").call("status", _PATIENCE_S)


def configurations(directory: Path) -> tuple[dict[int, str], list[str]]:
    """The name of the disk that is served at each port of this host; and what can't be read.

    The latter is a sentence for each such file, which is a warning in the journal, too.
    """
    found, unread = {}, []
    for path in sorted(directory.glob("*.conf")):
        try:
            text = path.read_text(errors="replace")  # what is no UTF-8 is a comment, or a path
        except OSError as error:
            unread.append(f"{path} can't be read: {error.strerror}")
            continue
        lines = (line.partition("=") for line in text.splitlines())
        settings = {key.strip(): value for key, _, value in lines}  # the last counts
        listen = settings.get("LISTEN", "")
        port = listen.strip().strip("\"'").rpartition(":")[2]
        if port.isdecimal():
            found[int(port)] = path.stem
    if unread:  # libvirt keeps what a hook says only if it fails
        syslog.openlog("relocator", syslog.LOG_PERROR)
        for why in unread:
            syslog.syslog(syslog.LOG_WARNING, f"libvirt-hook: warning: {why}")
    return found, unread


def disks_of(domain: str, served: Mapping[int, str], unread: Sequence[str] = ()) -> Iterator[str]:
    """The names of those disks of a domain, given as libvirt's XML, that are ours.

    `served` and `unread` are as `configurations` returns them.

    Raises:
        RelocatorError: it is no domain; or it has a disk here that is none of `served`, and may be
            that of a configuration which can't be read.
    """
    try:
        root = ElementTree.fromstring(domain)
    except ElementTree.ParseError as error:
        raise RelocatorError(f"libvirt's description of the guest: {error}") from error
    for host in root.findall("./devices/disk/source[@protocol='nbd']/host"):
        port = int(host.get("port") or NBD_PORT)
        if host.get("name") not in ("127.0.0.1", "localhost", "::1"):
            continue
        if port in served:
            yield served[port]
        elif unread:
            raise RelocatorError(f"the guest's disk, at port {port}, may be ours: {unread[0]}")
