"""nbdkit's callbacks, and nothing else: `nbdkit python relocator/plugin.py KEY=VALUE...`

Validation happens in `get_ready`, while nbdkit can still report on the terminal; threads and
connections start in `after_fork`. One wrapper turns the engine's errors into errno values.
"""

import builtins
import errno
import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbdkit

if importlib.util.find_spec("nbd") is None:
    sys.stderr.write(
        f"nbdkit: error: the Python inside nbdkit took its paths from {sys.prefix}, which has no "
        "module nbd; put nbdkit's own python3 first, as in `env -u PYTHONHOME PATH=/usr/bin:$PATH "
        "nbdkit ...`, or start the plugin by the command `relocator`\n"
    )
    os._exit(1)

# A bare nbdkit knows nothing of the package this file belongs to.
sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from relocator import config as settings
from relocator.errors import ConfigError, RelocatorError
from relocator.running.control import ControlServer
from relocator.running.engine import Engine, open_engine
from relocator.running.exports import NAMES
from relocator.running.readiness import notify
from relocator.running.sessions import Session
from relocator.running.threadstate import Threads

API_VERSION = 2
#: How long a thread may keep the interpreter from another. Python's 5 ms, and not the store, would
#: be what a guest's slowest writes take while the copy's threads have replies to handle.
SWITCH_S = 0.0001

_threads = Threads()
_pairs: dict[str, str] = {}
_engine: Engine
_control: ControlServer | None = None


def _with_errno(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def wrapped(*arguments: Any) -> Any:
        _threads.keep()
        try:
            return callback(*arguments)
        except (RelocatorError, OSError) as error:
            nbdkit.set_error(error.errno or errno.EIO)
            raise

    return wrapped


def _or_end(callback: Callable[..., None]) -> Callable[..., None]:
    """End nbdkit with one line for a wrong parameter; its own way would print a traceback."""

    @functools.wraps(callback)
    def wrapped(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except (RelocatorError, OSError) as error:
            sys.stderr.write(f"nbdkit: error: {error}\n")
            sys.stderr.flush()
            os._exit(1)

    return wrapped


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


@_or_end
def config(key: str, value: str) -> None:
    if key in _pairs:
        raise ConfigError(f"{key}={value}: was given twice")
    _pairs[key] = value


@_or_end
def get_ready() -> None:
    global _engine, _control
    parsed = settings.parse(_pairs)
    _check_control(parsed)
    _engine = open_engine(parsed)
    if parsed.control is not None:
        _control = ControlServer(parsed.control, _engine.verbs.call)


def _check_control(parsed: settings.Config) -> None:
    """Refuse a control path that can't be served while the source is not sealed yet."""
    path, store = parsed.control, parsed.store
    if path is None:
        return
    there = path.parent.resolve()
    if store is not None and not there.exists() and store.resolve().is_relative_to(there):
        return  # it is made with the store
    ControlServer(path, lambda _verb, _arguments: {}).stop()


def _fail_stop(failure: threading.ExceptHookArgs) -> None:
    """End nbdkit if a thread of the plugin dies of an exception: guests would wait for ever.

    What was acknowledged is in the store, as after a kill; a restarted plugin goes on from there.
    """
    threading.__excepthook__(failure)
    sys.stderr.write("nbdkit: error: a thread of relocator has died; ending, so as not to hang\n")
    sys.stderr.flush()
    os._exit(1)


def after_fork() -> None:
    threading.excepthook = _fail_stop
    sys.setswitchinterval(SWITCH_S)
    _engine.start()
    if _control is not None:
        _control.start()
    notify()


def cleanup() -> None:
    if _control is not None:
        _control.stop()
    _engine.stop()


def list_exports(readonly: builtins.bool, is_tls: builtins.bool) -> list[tuple[str, str]]:
    told = {"control": _engine.doors.describe()}
    return [(name, told.get(name, "")) for name in NAMES]


@_with_errno
def open(readonly: builtins.bool) -> Any:
    return _engine.open_session(nbdkit.export_name())


def get_size(h: Any) -> int:
    return int(h.size_bytes)


def can_write(h: Any) -> bool:
    return bool(h.is_disk)


can_flush = can_trim = can_zero = can_write


def can_fast_zero(h: Any) -> bool:
    return False


def can_fua(h: Any) -> int:
    return int(nbdkit.FUA_NATIVE if h.is_disk else nbdkit.FUA_NONE)


def can_multi_conn(h: Any) -> bool:
    return bool(h.is_disk)


def can_extents(h: Any) -> bool:
    return True


def is_rotational(h: Any) -> bool:
    return False


@_with_errno
def pread(h: Any, buf: memoryview, offset: int, flags: int) -> None:
    h.read_into(buf, offset)


@_with_errno
def pwrite(h: Session, buf: memoryview, offset: int, flags: int) -> None:
    h.disk.write(buf, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@_with_errno
def flush(h: Session, flags: int) -> None:
    h.disk.flush()


@_with_errno
def trim(h: Session, count: int, offset: int, flags: int) -> None:
    h.disk.trim(offset, count, fua=bool(flags & nbdkit.FLAG_FUA))


@_with_errno
def zero(h: Session, count: int, offset: int, flags: int) -> None:
    punch, fua = bool(flags & nbdkit.FLAG_MAY_TRIM), bool(flags & nbdkit.FLAG_FUA)
    h.disk.zero(offset, count, punch=punch, fua=fua)


@_with_errno
def extents(h: Any, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(at, length, 0 if data else hole) for at, length, data in h.runs(offset, count)]
