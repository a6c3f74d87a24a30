"""Where a server is to listen: as flags for nbdkit, or as sockets that it inherits.

A socket that belongs to us and is inherited (systemd calls it socket activation) outlives the
server: while one server gives way to the next, a client that connects waits, and is not refused.
And what is set on it holds for the connections that it accepts: so a server gets a congestion
control of its own.
"""

import argparse
import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relocator import words
from relocator.errors import ConfigError, RelocatorError
from relocator.running.control import listen_at, remove_stale

DEFAULT_PORT = 10809
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


@dataclass(frozen=True)
class Address:
    """A Unix socket's path, or a port of a host; an empty host is every address of this one.

    `congestion`: the TCP congestion control of its connections, None for the kernel's choice.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None
    congestion: str | None = None

    def flags(self) -> list[str]:
        """The flags that make nbdkit listen there."""
        if self.path is not None:
            return ["--unix", str(self.path)]
        return ["--port", str(self.port), *(["--ipaddr", self.host] if self.host else [])]

    def listen(self) -> list[socket.socket]:
        """Listen there.

        Raises:
            ConfigError: the path is taken.
            RelocatorError: the address can't be listened on.
        """
        try:
            return [listen_at(self.path, "--socket")] if self.path is not None else self._tcp()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> RelocatorError:
        """Why nobody can listen there."""
        if self.path is not None:
            return RelocatorError(f"{self.path}: can't be listened on: {error.strerror}")
        host = f"[{self.host}]" if ":" in self.host else self.host
        what = f"--listen={host}:{self.port}"
        if error.errno == errno.EADDRNOTAVAIL:
            return ConfigError(f"{what}: not an address of this host; `ip address` shows those")
        if isinstance(error, socket.gaierror):
            return ConfigError(f"{what}: {error.strerror}; give an address of this host")
        why = error.strerror
        if error.errno == errno.EADDRINUSE:
            why = f"{why}; a server that was asked to end has it until its clients have gone"
        return RelocatorError(f"{what}: can't be listened on: {why}")

    def check(self) -> None:
        """A server can listen there: nbdkit would find that out with store and control socket made.

        A port is bound and let go, never listened on: nobody can connect to it meanwhile.

        Raises:
            ConfigError, RelocatorError: it can't; somebody is there already, say.
        """
        if self.path is not None:
            remove_stale(self.path, "--socket")
            return
        try:
            for family, kind, _, _, address in self._addresses():
                with _unless_unknown(family), socket.socket(family, kind) as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:  # as servers do: [::] is not 0.0.0.0 as well
                        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    one.bind(address)
        except OSError as error:
            raise self._refused(error) from error

    def forget(self) -> None:
        """Nobody listens there any more: remove what shows in the file system."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _addresses(self) -> Any:
        return socket.getaddrinfo(
            self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )

    def _tcp(self) -> list[socket.socket]:
        listeners: list[socket.socket] = []
        try:
            for family, _, _, _, address in self._addresses():
                with _unless_unknown(family):
                    one = socket.create_server(address, family=family, backlog=socket.SOMAXCONN)
                    listeners.append(one)
                    if self.congestion is not None:
                        set_congestion(one, self.congestion)
        except BaseException:
            for one in listeners:
                one.close()
            raise
        return listeners


@contextmanager
def _unless_unknown(family: int) -> Iterator[None]:
    """Do without IPv6 where the kernel lacks it: "every address" includes it."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT or family == socket.AF_INET:
            raise


def add_address(parser: argparse.ArgumentParser) -> None:
    """The options --listen and --socket."""
    listen = parser.add_mutually_exclusive_group()
    listen.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=f"127.0.0.1:{DEFAULT_PORT}",
        help=f"address to serve on (127.0.0.1:{DEFAULT_PORT})",
    )
    listen.add_argument("--socket", metavar="PATH", help="serve on a Unix socket instead")
    parser.add_argument(
        "--congestion",
        metavar="NAME",
        help="TCP congestion control of the connections, such as bbr for a link that loses packets "
        "(the kernel's choice)",
    )


def address_of(options: argparse.Namespace) -> Address:
    """The address that the options name.

    Raises:
        ConfigError: it is not one.
    """
    if options.socket is not None and options.congestion is not None:
        raise ConfigError(f"--congestion={options.congestion}: is for TCP; not with --socket")
    if options.socket is not None:
        if not words.is_path(options.socket):
            raise ConfigError(f"--socket={options.socket}: no file can have that name")
        return Address(path=Path(options.socket))
    address = parse_address(options.listen, f"127.0.0.1:{DEFAULT_PORT}")
    if options.congestion is None:
        return address
    with socket.socket() as trial:
        set_congestion(trial, options.congestion)
    return replace(address, congestion=options.congestion)


def set_congestion(one: socket.socket, name: str) -> None:
    """Choose a TCP socket's congestion control.

    Raises:
        ConfigError: the kernel doesn't have it, or not for this user.
    """
    try:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError as error:
        allowed = ALLOWED.read_text().split()
        raise ConfigError(
            f"--congestion={name}: {error.strerror}; who lacks CAP_NET_ADMIN, as the units do, may "
            f"have {' or '.join(allowed)} here; {name} by: {allow(name, allowed)}"
        ) from error


def allow(name: str, allowed: Sequence[str]) -> str:
    """What root types to let everybody have a congestion control, besides those `allowed` now."""
    key = ".".join(ALLOWED.parts[3:])
    return f"modprobe tcp_{name}; sysctl -w {key}='{' '.join([*allowed, name])}'"


def parse_address(text: str, example: str, least_port: int = 1) -> Address:
    """The address of `--listen=HOST:PORT`.

    Raises:
        ConfigError: it is not one.
    """
    host, colon, port = text.rpartition(":")
    number = words.whole(port)
    if not colon or number is None:
        raise ConfigError(f"--listen={text}: not HOST:PORT; write {example}")
    if not least_port <= number < 65536:
        raise ConfigError(f"--listen={text}: the port must be from {least_port} to 65535")
    return Address(host.strip("[]"), number)


def inherit(sockets: list[socket.socket], locks: Sequence[int]) -> None:
    """Give `sockets` to the program that this process is about to become, as systemd would.

    See sd_listen_fds(3): they are file descriptors from 3 on, and two variables say so. `locks`
    are file descriptors that merely stay open. All are moved out of the way before 3 is used.
    """
    above = 3 + len(sockets)
    copies = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, above) for one in sockets]
    for lock in locks:
        fcntl.fcntl(lock, fcntl.F_DUPFD, above)
    for at, copy in enumerate(copies):
        os.dup2(copy, 3 + at, inheritable=True)
    os.environ["LISTEN_FDS"] = str(len(sockets))
    os.environ["LISTEN_PID"] = str(os.getpid())
