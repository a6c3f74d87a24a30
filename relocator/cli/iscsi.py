"""`relocator iscsi`: serve to iSCSI initiators what an NBD server serves.

Stays in the foreground, owns what it starts and ends it on SIGTERM, SIGINT or SIGHUP (unless nohup
ignores that). A service manager that wants to know (`Type=notify`) is told when initiators may
come.
"""

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from relocator import signals
from relocator.cli.common import Commands
from relocator.cli.listening import Address, parse_address
from relocator.config import parse_seconds
from relocator.errors import ConfigError, RelocatorError
from relocator.iscsi import kernel, tgt
from relocator.iscsi.lun import PORT, Lun, check_name, check_uri, read_chap
from relocator.running.readiness import notify

_WAYS = {"tgt": tgt, "kernel": kernel}
_LOOK_EVERY_S = 0.5


class _Asked(BaseException):
    """A signal asks this process to end."""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "iscsi",
        help="serve a proxy's or target's disk to iSCSI initiators",
        description="Serve to iSCSI initiators the disk that an NBD server nearby serves.",
    )
    parser.add_argument("disk", metavar="DISK", help="NBD URI, such as that of a proxy")
    parser.add_argument(
        "--name", metavar="IQN", required=True, help="the target's name; the same at both sites"
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=f"127.0.0.1:{PORT}",
        help=f"the portal (127.0.0.1:{PORT})",
    )
    parser.add_argument(
        "--allow", metavar="ADDRESS", action="append", default=[], help="let only this initiator in"
    )
    parser.add_argument("--chap", metavar="FILE", help="a line USER:PASSWORD for initiators")
    parser.add_argument(
        "--by",
        choices=sorted(_WAYS),
        default="tgt",
        help="tgt: needs FUSE only; kernel: LIO over /dev/nbdN (tgt)",
    )
    parser.add_argument(
        "--patience",
        metavar="S",
        default="60",
        help="how long requests wait for a server that has gone (60)",
    )
    parser.set_defaults(run=_run)


def _portal(listen: str) -> Address:
    address = parse_address(listen, f"127.0.0.1:{PORT}")
    if not address.host:
        raise ConfigError(
            f"--listen={listen}: a portal has an address, such as 0.0.0.0:{address.port}"
        )
    return address


def _lun(options: argparse.Namespace, address: Address) -> Lun:
    return Lun(
        uri=check_uri(options.disk),
        name=check_name(options.name),
        host=address.host,
        port=address.port,
        allow=tuple(options.allow),
        chap=read_chap(Path(options.chap)) if options.chap else None,
        patience_s=max(1, round(parse_seconds("--patience", options.patience))),
    )


def _run(options: argparse.Namespace) -> int:
    address, way = _portal(options.listen), _WAYS[options.by]
    lun = _lun(options, address)
    missing = [command for command in way.COMMANDS if shutil.which(command) is None]
    if missing:
        raise RelocatorError(f"--by={options.by}: {', '.join(missing)} not found; see doctor")
    if way is tgt:  # the kernel's targets may share a portal, and it refuses another's itself
        address.check()
    for number in signals.ending():
        signal.signal(number, _asked)
    try:
        with way.served(lun) as check:
            print(f"relocator: {lun.address} serves {lun.uri}", file=sys.stderr, flush=True)
            notify()
            while True:
                check()
                time.sleep(_LOOK_EVERY_S)
    except _Asked:
        return 0


def _asked(_number: int, _frame: Any) -> NoReturn:
    for number in signals.ending():
        signal.signal(number, signal.SIG_IGN)  # the end is not to be interrupted
    raise _Asked
