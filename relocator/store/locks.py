"""An image's locks: two writers would corrupt it.

flock keeps other servers of ours away, and tools that use it. QEMU has locks of its own (see its
block/file-posix.c): of each permission who uses it locks a byte, and who lets nobody else have it
another one. All are shared; who has locked looks if somebody has locked what contradicts that.

Both belong to the open file: they last until whoever has inherited it has closed it, too.
"""

import errno
import fcntl
import os
import stat
import struct
import time

_LOOKED_AT_S = 3.0
_FLOCK = struct.Struct("hhqqi4x")  # struct flock in fcntl.h
_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_USED, _UNSHARED = 100, 200
_OURS = ((_USED, (_CONSISTENT_READ, _WRITE)), (_UNSHARED, (_WRITE, _WRITE_UNCHANGED, _RESIZE)))


def take(fd: int) -> None:
    """Take an image's locks, for as long as its file is open.

    Raises:
        BlockingIOError: another process may write it, or must not find it written.
    """
    _lock(fd)
    _lock_as_qemu(fd)


def _lock(fd: int) -> None:
    """Lock by flock; a device is waited for: udev locks it to look at it when somebody closed it.

    See systemd's "Locking Block Device Access".
    """
    device = stat.S_ISBLK(os.fstat(fd).st_mode)
    give_up_s = time.monotonic() + (_LOOKED_AT_S if device else 0)
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_s:
                raise
            time.sleep(0.02)


def _lock_as_qemu(fd: int) -> None:
    """Take and respect QEMU's locks; a file system that has none goes without, as in QEMU."""
    try:
        _byte(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, 0)
    except OSError:
        return
    for base, permissions in _OURS:
        for one in permissions:
            _byte(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, base + one)
    for base, permissions in _OURS:
        contrary = _USED + _UNSHARED - base
        for one in permissions:
            if _byte(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, contrary + one) != fcntl.F_UNLCK:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _byte(fd: int, command: int, kind: int, at: int) -> int:
    """Lock the byte `at`, or ask who is in the way of that; the kind of lock that is found."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0)
    return int(_FLOCK.unpack(fcntl.fcntl(fd, command, asked))[0])
