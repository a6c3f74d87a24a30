"""The system calls on files that Python's `os` doesn't have. Both release the GIL.

Each says False, and does nothing, where the file system, a sandbox or the kernel can't; any other
failure is the OSError that `os` would raise.
"""

import ctypes
import errno
import os

_CANT_ALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.EBUSY)
_CANT_BE_ASKED = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EPERM)
_WAIT_BEFORE = 1  # SYNC_FILE_RANGE_WAIT_BEFORE, linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Give or take room, `length` bytes from `offset`, as `mode` says (linux/falloc.h)."""
    return _done(_libc.fallocate(fd, mode, offset, length), _CANT_ALLOCATE)


def check_writeback(fd: int) -> bool:
    """Raise the OSError of a write by the kernel that failed, if nobody was told of it yet.

    What the kernel is writing is waited for; nothing is written for it.
    """
    return _done(_libc.sync_file_range(fd, 0, 0, _WAIT_BEFORE), _CANT_BE_ASKED)


def _done(result: int, cant: tuple[int, ...]) -> bool:
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in cant:
        return False
    raise OSError(number, os.strerror(number))
