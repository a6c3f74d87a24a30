"""Keeps Python's state of a thread that isn't Python's own from one call to the next.

nbdkit enters Python for every request from threads of its own. Python makes a *thread state* when
such a thread enters and destroys it when it leaves; CPython 3.11 maps and unmaps the first piece of
the thread's stack with it: two system calls, a page fault and, with several threads, an interrupt
to the other CPUs, which together cost more than the rest of a small request.

So a thread's first request enters once more and doesn't leave: the state stays until the thread
ends. Then pthread calls `_forget`, which destroys it in the proper way.

From Python 3.12 on nothing is kept: there, destroying a thread's kept state unbinds the one that
the call of `_forget` itself runs in, and the interpreter ends the process.
"""

import ctypes
import sys
import threading

_python = ctypes.pythonapi
_python.PyThreadState_Get.restype = ctypes.c_void_p
_python.PyThreadState_Clear.argtypes = _python.PyThreadState_Delete.argtypes = (ctypes.c_void_p,)
_libc = ctypes.CDLL(None)
_libc.pthread_setspecific.argtypes = (ctypes.c_uint, ctypes.c_void_p)


def _destroy(state: int) -> None:
    """Destroy the state of a thread that ends. (Another is made for this call, and not kept.)"""
    _python.PyThreadState_Clear(state)
    _python.PyThreadState_Delete(state)


_forget = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_destroy)


def _new_key() -> int:
    key = ctypes.c_uint()
    error = _libc.pthread_key_create(ctypes.byref(key), _forget)
    if error:
        raise OSError(error, "pthread_key_create")
    return key.value


KEEPS = sys.version_info < (3, 12)
_KEY = _new_key() if KEEPS else 0


class Threads(threading.local):
    """The threads that call `keep`: it does its work at a thread's first call."""

    def __init__(self) -> None:
        if not KEEPS:
            return
        _python.PyGILState_Ensure()
        _libc.pthread_setspecific(_KEY, _python.PyThreadState_Get())

    def keep(self) -> None:
        """Keep the calling thread's state until the thread ends."""
