"""nbdkit's callbacks, and nothing else: `nbdkit python relocator/plugin.py KEY=VALUE...`

Validation happens in `get_ready`, while nbdkit can still report on the terminal; threads and
connections start in `after_fork`. One wrapper turns the engine's errors into errno values.
"""

import builtins
import errno
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbdkit

# A bare nbdkit knows nothing of the package this file belongs to.
sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from relocator import config as settings
from relocator.control import ControlServer
from relocator.engine import ProxyEngine, TargetEngine, open_engine
from relocator.errors import ConfigError, RelocatorError

API_VERSION = 2

_pairs: dict[str, str] = {}
_engine: TargetEngine | ProxyEngine
_control: ControlServer | None = None
_disk: Any = None


def _with_errno(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def wrapped(*arguments: Any) -> Any:
        try:
            return callback(*arguments)
        except (RelocatorError, OSError) as error:
            nbdkit.set_error(error.errno or errno.EIO)
            raise

    return wrapped


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    if key in _pairs:
        raise ConfigError(f"{key}={value}: was given twice")
    _pairs[key] = value


def get_ready() -> None:
    global _engine, _control, _disk
    parsed = settings.parse(_pairs)
    _engine = open_engine(parsed)
    _disk = _engine.disk
    if parsed.control is not None:
        _control = ControlServer(parsed.control, _engine.call)


def after_fork() -> None:
    _engine.start()
    if _control is not None:
        _control.start()


def cleanup() -> None:
    if _control is not None:
        _control.stop()
    _engine.stop()


def open(readonly: builtins.bool) -> int:
    return 1


def get_size(h: int) -> int:
    return int(_disk.size_bytes)


def can_write(h: int) -> bool:
    return True


def can_flush(h: int) -> bool:
    return True


def can_trim(h: int) -> bool:
    return True


def can_zero(h: int) -> bool:
    return True


def can_fast_zero(h: int) -> bool:
    return False


def can_fua(h: int) -> int:
    return int(nbdkit.FUA_NATIVE)


def can_multi_conn(h: int) -> bool:
    return True


def can_extents(h: int) -> bool:
    return True


def is_rotational(h: int) -> bool:
    return False


@_with_errno
def pread(h: int, buf: memoryview, offset: int, flags: int) -> None:
    _disk.read_into(buf, offset)


@_with_errno
def pwrite(h: int, buf: memoryview, offset: int, flags: int) -> None:
    _disk.write(buf, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@_with_errno
def flush(h: int, flags: int) -> None:
    _disk.flush()


@_with_errno
def trim(h: int, count: int, offset: int, flags: int) -> None:
    _disk.trim(offset, count, fua=bool(flags & nbdkit.FLAG_FUA))


@_with_errno
def zero(h: int, count: int, offset: int, flags: int) -> None:
    punch, fua = bool(flags & nbdkit.FLAG_MAY_TRIM), bool(flags & nbdkit.FLAG_FUA)
    _disk.zero(offset, count, punch=punch, fua=fua)


@_with_errno
def extents(h: int, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(at, length, 0 if data else hole) for at, length, data in _disk.runs(offset, count)]
