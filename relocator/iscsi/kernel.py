"""iSCSI by the kernel (LIO), from a disk that qemu-nbd connects to /dev/nbdN.

LIO is told what to do by directories and files in configfs, in the network namespace of whoever
makes them. Each of them is undone in the reverse order; a directory that is not there any more was
undone by somebody else. LIO admits initiators by name and not by address.

If this process is killed, qemu-nbd goes and with it the disk; the target stays in configfs, without
a disk. The next start with the same name removes it first. A lock tells such a one from one that is
served, and the name of its store one that somebody else has made. A device has a lock, too: several
may be started at once, and each looks for one that is free.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from relocator.errors import ConfigError, RelocatorError
from relocator.iscsi.lun import LUN, OPEN_S, Lun
from relocator.processes import Process, run

COMMANDS = ("qemu-nbd", "modprobe")
_MODULES = ("nbd", "target_core_mod", "target_core_iblock", "iscsi_target_mod")
_CONFIGFS = Path("/sys/kernel/config")
_TARGETS = _CONFIGFS / "target"
_BLOCKS = Path("/sys/block")
_LOCKS = Path("/run")
_HOST_BASE = "iblock_0"
#: initiators come without being known by name, and may write
_OPEN = {"generate_node_acls": "1", "cache_dynamic_acls": "1", "demo_mode_write_protect": "0"}


@contextmanager
def served(lun: Lun) -> Iterator[Callable[[], None]]:
    """`lun` is served within the block; what is given raises once it is no more.

    Raises:
        RelocatorError: it can't be served.
    """
    if lun.allow:
        raise ConfigError("--allow: not with --by=kernel, which knows initiators by name only")
    with ExitStack() as stack:
        stack.enter_context(_alone(lun))
        _load()
        store = _TARGETS / "core" / _HOST_BASE / f"relocator-{lun.serial}"
        fabric = _TARGETS / "iscsi" / lun.name
        _check_ours(lun, fabric, store)
        device, process = stack.enter_context(_device(lun))
        _remove(fabric, store)
        stack.callback(_remove, fabric, store)
        try:
            _announce(lun, device, fabric, store)
        except OSError as error:
            raise RelocatorError(f"{error.filename}: {error.strerror}") from error

        def check() -> None:
            if process.popen.poll() is not None:
                raise RelocatorError(f"{process.name} ended: {process.last_words()}")

        yield check


@contextmanager
def _alone(lun: Lun) -> Iterator[None]:
    """No other process of this host serves the same name within the block."""
    with (_LOCKS / f"relocator-iscsi-{lun.serial}.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            why = f"--name={lun.name}: is served by the kernel here already"
            raise RelocatorError(why) from error
        yield


def _check_ours(lun: Lun, fabric: Path, store: Path) -> None:
    """A target of that name, if there is one, is what is left of ours."""
    if fabric.exists() and not store.exists():  # ours is made after its store, and removed before
        raise RelocatorError(
            f"--name={lun.name}: the kernel serves a target of that name, which is none of ours"
        )


def _load() -> None:
    for module in _MODULES:
        with suppress(RelocatorError):  # it may be built into the kernel
            run(["modprobe", module])
    if not os.path.ismount(_CONFIGFS):
        run(["mount", "-t", "configfs", "configfs", str(_CONFIGFS)])
    if not (_BLOCKS / "nbd0").exists():
        raise RelocatorError("this kernel has no nbd; use --by=tgt")
    for directory in (_TARGETS, _TARGETS / "iscsi"):
        try:
            directory.mkdir(exist_ok=True)
        except OSError as error:
            why = f"{directory}: {error.strerror}; this kernel has no LIO; use --by=tgt"
            raise RelocatorError(why) from error


@contextmanager
def _device(lun: Lun) -> Iterator[tuple[Path, Process]]:
    """The disk as /dev/nbdN, which no other process of this program takes within the block."""
    with ExitStack() as stack:
        free = next((one for one in _unused() if _is_taken(stack, one)), None)
        if free is None:
            raise RelocatorError("every /dev/nbdN is in use")
        device = Path("/dev") / free.name
        how = ["--cache=none", "--persistent", "--verbose"]  # verbose: in the foreground
        process = Process(["qemu-nbd", f"--connect={device}", *how, lun.image()], "TERM")
        stack.callback(process.end)
        # a device of any size may be another process's, which has connected it just before
        connected, size = f"NBD device {device} is now connected", free / "size"
        try:
            process.await_ready(
                lambda: connected in process.last_words() and size.read_text().strip() != "0",
                2 * OPEN_S,
            )
        except RelocatorError as error:
            raise lun.not_opened(str(error)) from error
        yield device, process


def _unused() -> Iterator[Path]:
    """The kernel's descriptions of the devices that nobody has connected."""
    for one in sorted(_BLOCKS.glob("nbd*"), key=lambda one: int(one.name[3:])):
        if not (one / "pid").exists():
            yield one


def _is_taken(stack: ExitStack, one: Path) -> bool:
    """Whether the device is this process's now, as long as `stack` is open."""
    lock = (_LOCKS / f"relocator-{one.name}.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return False
    stack.enter_context(lock)
    return True


def _announce(lun: Lun, device: Path, fabric: Path, store: Path) -> None:
    """Make the target and its LUN, and let initiators in, last."""
    store.mkdir(parents=True)
    (store / "control").write_text(f"udev_path={device}")
    (store / "enable").write_text("1")
    (store / "wwn" / "vpd_unit_serial").write_text(lun.serial)
    group = fabric / "tpgt_1"
    group.mkdir(parents=True)
    try:
        (group / "np" / lun.portal).mkdir()
    except OSError as error:
        why = f"--listen={lun.portal}: can't be listened on: {error.strerror}"
        raise RelocatorError(why) from error
    unit = group / "lun" / f"lun_{LUN}"
    unit.mkdir()
    (unit / "store").symlink_to(store)
    secure = "0" if lun.chap is None else "1"
    for name, value in {**_OPEN, "authentication": secure}.items():
        (group / "attrib" / name).write_text(value)
    if lun.chap is not None:
        (group / "auth" / "userid").write_text(lun.chap.user)
        (group / "auth" / "password").write_text(lun.chap.password)
    (group / "enable").write_text("1")


def _remove(fabric: Path, store: Path) -> None:
    """Undo `_announce`, as far as it has come."""
    group = fabric / "tpgt_1"
    with suppress(OSError):
        (group / "enable").write_text("0")
    for unit in group.glob("lun/lun_*"):
        for link in unit.iterdir():
            if link.is_symlink():
                link.unlink()
        unit.rmdir()
    for directory in (*group.glob("np/*"), group, fabric, store):
        if directory.exists():
            directory.rmdir()
