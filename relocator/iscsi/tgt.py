"""iSCSI by tgtd: a process like any other, which needs FUSE and no kernel module.

tgtd serves files, so the disk becomes one: nbdfuse shows what qemu-nbd serves, and that asks the
disk's own server, again and again while it is away. tgtd ignores SIGTERM, and its control socket is
in a directory of our own: so several may run, each on its own portal, and none is mistaken for the
distribution's.

Ended in this order: the target goes (initiators are disconnected, and what they have asked for is
answered), then tgtd, then the file. If the disk's server is away there may be no answer: tgtd is
killed, so that no initiator is told of an error, and is gone once the file is.
"""

import os
import re
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from relocator.errors import RelocatorError
from relocator.iscsi.lun import LUN, OPEN_S, Chap, Lun
from relocator.processes import Process, run

COMMANDS = ("tgtd", "tgtadm", "nbdfuse", "qemu-nbd")
_ANSWERS_S = 3.0
#: tgtd's own: mode, operation, driver, length of all, target, session, LUN, and more of no use here
_REQUEST = struct.Struct("=II64sIiQQ24x")
_ACCOUNT, _NEW = 7, 0
_TARGET = ("--lld", "iscsi", "--mode", "target", "--tid", "1")


@contextmanager
def served(lun: Lun) -> Iterator[Callable[[], None]]:
    """`lun` is served within the block; what is given raises once it is no more.

    Raises:
        RelocatorError: it can't be served.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relocator-")))
        log = stack.enter_context((directory / "log").open("w+b"))
        environment = {**os.environ, "TGT_IPC_SOCKET": str(directory / "tgtd")}
        reaped = stack.enter_context(ExitStack())
        file, fuse = stack.enter_context(_file(lun, directory, log, environment))
        tgtd = stack.enter_context(_daemon(lun, log, environment))
        reaped.callback(tgtd.wait)
        _check_portals(lun, environment)
        _announce(lun, file, environment)

        def check() -> None:
            for process in (tgtd, fuse):
                if process.popen.poll() is not None:
                    raise RelocatorError(f"{process.name} ended: {process.last_words()}")

        yield check


@contextmanager
def _file(
    lun: Lun, directory: Path, log: IO[bytes], environment: dict[str, str]
) -> Iterator[tuple[Path, Process]]:
    """The disk as a file."""
    mount = directory / "disk"
    mount.touch()
    reader = ["qemu-nbd", "--cache=none", lun.image()]
    argv = ["nbdfuse", str(mount), "[", *reader, "]"]
    process = Process(argv, "TERM", log, environment)
    try:
        try:
            process.await_ready(lambda: mount.stat().st_size > 0, 2 * OPEN_S)
        except RelocatorError as error:
            raise lun.not_opened(str(error)) from error
        yield mount, process
    finally:
        process.end()  # which takes the file away


@contextmanager
def _daemon(lun: Lun, log: IO[bytes], environment: dict[str, str]) -> Iterator[Process]:
    """A tgtd that serves nothing yet."""
    argv = ["tgtd", "--foreground", "--iscsi", f"portal={lun.portal}"]
    process = Process(argv, "KILL", log, environment)
    try:
        process.await_ready(lambda: _answers(environment))
        yield process
    finally:
        if process.popen.poll() is None:
            try:
                run(["tgtadm", "--op", "delete", "--force", *_TARGET], environment, _ANSWERS_S)
                run(["tgtadm", "--op", "delete", "--mode", "sys"], environment, _ANSWERS_S)
            except RelocatorError:
                process.popen.kill()


def _check_portals(lun: Lun, environment: dict[str, str]) -> None:
    """tgtd listens where it was asked to: if it can't, it listens at every address it can have."""
    said = run(["tgtadm", "--lld", "iscsi", "--op", "show", "--mode", "portal"], environment)
    opened = re.findall(r"Portal: \[?(.+?)\]?:(\d+),", said)
    found = socket.getaddrinfo(lun.host, lun.port, type=socket.SOCK_STREAM)
    asked = {(str(address[0]).partition("%")[0], str(address[1])) for *_, address in found}
    if not opened or not asked.issuperset(opened):
        raise RelocatorError(f"--listen={lun.portal}: can't be listened on: somebody else does")


def _answers(environment: dict[str, str]) -> bool:
    try:
        run(["tgtadm", "--op", "show", "--mode", "sys"], environment)
    except RelocatorError:
        return False
    return True


def _announce(lun: Lun, file: Path, environment: dict[str, str]) -> None:
    """Make the target and its LUN, and let initiators in, last."""
    unit = ["--lld", "iscsi", "--mode", "logicalunit", "--tid", "1", "--lun", str(LUN)]
    named = f"vendor_id=RLOCATOR,product_id=relocator,scsi_sn={lun.serial}"
    identity = f"{named},scsi_id=relocator{lun.serial[:14]}"
    run(["tgtadm", "--op", "new", *_TARGET, "--targetname", lun.name], environment)
    backing = ["--backing-store", str(file), "--bstype", "rdwr", "--bsoflags", "direct"]
    run(["tgtadm", "--op", "new", *unit, *backing], environment)
    run(["tgtadm", "--op", "update", *unit, "--params", identity], environment)
    if lun.chap is not None:
        _add_account(lun.chap, environment)
        account = ["--lld", "iscsi", "--mode", "account", "--user", lun.chap.user]
        run(["tgtadm", "--op", "bind", *account, "--tid", "1"], environment)
    for initiator in lun.allow or ("ALL",):
        run(["tgtadm", "--op", "bind", *_TARGET, "--initiator-address", initiator], environment)


def _add_account(chap: Chap, environment: dict[str, str]) -> None:
    """As `tgtadm --mode account --op new`, which takes the password as an argument: ps shows it.

    Raises:
        RelocatorError: tgtd doesn't take it.
    """
    said = f"user={chap.user},password={chap.password}\0".encode()
    length = _REQUEST.size + len(said)
    request = _REQUEST.pack(_ACCOUNT, _NEW, b"iscsi", length, -1, 0, (1 << 64) - 1) + said
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(_ANSWERS_S)
            link.connect(f"{environment['TGT_IPC_SOCKET']}.0")
            link.sendall(request)
            answer = link.recv(8)
    except OSError as error:
        raise RelocatorError(f"tgtd takes no account: {error.strerror or error}") from error
    if len(answer) < 4 or any(answer[:4]):
        raise RelocatorError(f"tgtd takes no account: its answer is {answer.hex() or 'missing'}")
