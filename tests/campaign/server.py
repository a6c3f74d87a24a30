"""A site's nbdkit, unmodified: in its host's network, with the id of its site's current boot.

The kernel's boot id is that of the lab; a site that has lost power has another one, which its
servers see in a mount namespace of their own. Mounts made and unmade outside are seen there, too.
"""

import ctypes
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

_NEWNET, _NEWNS = 0x40000000, 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE, _MS_SHARED = 0x1000, 0x4000, 0x80000, 0x100000
_BOOT_ID = b"/proc/sys/kernel/random/boot_id"
_SEND_BUFFER = Path("/proc/sys/net/ipv4/tcp_wmem")  # of the network of whoever opens it
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [*(ctypes.c_char_p,) * 3, ctypes.c_ulong, ctypes.c_char_p]


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def share_mounts() -> None:
    """Mounts that come and go are to be seen in the servers' namespaces; once, at the beginning."""
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SHARED, None), "mount --make-rshared /")


def enter_network(pid: int) -> None:
    """This process joins the network of another one."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        _check(_libc.setns(fd, _NEWNET), f"the network of {pid}")
    finally:
        os.close(fd)


class Server:
    """The nbdkit of a site. `argv` makes its command line anew each time it is started.

    A socket of its network buffers up to `send_buffer_bytes` of what it sends.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        namespace_pid: int,
        argv: Callable[[], Sequence[str]],
        send_buffer_bytes: int,
    ) -> None:
        self.name = name
        self.control = directory / f"{name}.sock"
        self.log = directory / f"{name}.log"
        self.argv = argv
        self._send_buffer_bytes = send_buffer_bytes
        self._boot = directory / f"{name}.boot"
        self._boots = 0
        self._pid = namespace_pid
        self._popen: subprocess.Popen[bytes] | None = None
        #: whether it is meant to run
        self.wanted = False
        self.new_boot()

    def new_boot(self) -> None:
        """The site has been rebooted."""
        self._boots += 1
        self._boot.unlink(missing_ok=True)
        self._boot.write_text(f"{uuid.uuid5(uuid.NAMESPACE_URL, f'{self.name}/{self._boots}')}\n")

    def start(self) -> None:
        """Start it; it is not waited for."""

        def prepare() -> None:
            enter_network(self._pid)
            _SEND_BUFFER.write_text(f"4096 16384 {self._send_buffer_bytes}\n")
            _check(_libc.unshare(_NEWNS), "unshare")
            _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "slave mounts")
            boot = os.fsencode(self._boot)
            _check(_libc.mount(boot, _BOOT_ID, None, _MS_BIND, None), "boot id")

        self.wanted = True
        self.control.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=prepare,  # noqa: PLW1509 - the campaign has one thread
            )

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def ended_by_itself(self) -> int | None:
        """Its exit status, if it is meant to run and doesn't any more."""
        if not self.wanted or self._popen is None:
            return None
        return self._popen.poll()

    def kill(self) -> None:
        """kill -9; it is not meant to run until it is started again."""
        self.wanted = False
        if self._popen is not None:
            self._popen.send_signal(signal.SIGKILL)
            self._popen.wait()
