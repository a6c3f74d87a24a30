"""libnbd handles: how one is opened, and what may be asked of it.

Every connection to a source, for its data or for control, is opened by `open_handle`, which alone
knows of TLS, ssh and iSCSI.
"""

import errno
import os
import select
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import nbd

from relocator.errors import OtherDiskError, UpstreamError
from relocator.source import tls
from relocator.source.endpoint import Endpoint
from relocator.source.handshake import WAIT_S, Handshake
from relocator.source.sockets import LowWater, keep_alive, socket_of
from relocator.source.tunnel import Tunnel
from relocator.store.geometry import Extent

CONNECT_S = 10.0
FAREWELL_S = 1.0
_GOODBYE = 1  # libnbd counts it among what is in flight, though it has no reply
ALLOCATION = "base:allocation"
#: What a client may ask for at once when the server doesn't say (NBD protocol, "Block size").
DEFAULT_MAXIMUM_BYTES = 32 << 20
_TLS = {"off": nbd.TLS_DISABLE, "on": nbd.TLS_ALLOW, "require": nbd.TLS_REQUIRE}


@dataclass(frozen=True)
class Limits:
    """A server's block sizes in bytes: what it takes is a multiple of one, at most the other."""

    size_bytes: int
    minimum_bytes: int
    maximum_bytes: int

    def widen(self, offset: int, length: int) -> Extent:
        """The smallest extent around the given one that starts and ends at whole blocks."""
        start = offset // self.minimum_bytes * self.minimum_bytes
        end = -(-(offset + length) // self.minimum_bytes) * self.minimum_bytes
        return Extent(start, max(min(end, self.size_bytes), offset + length) - start)

    def pieces(self, offset: int, length: int) -> list[Extent]:
        """Requests that together cover the extent, each of which the server takes."""
        start, whole = self.widen(offset, length)
        most = self.maximum_bytes
        return [Extent(start + at, min(most, whole - at)) for at in range(0, whole, most)]


def limits_of(handle: Any) -> Limits:
    """What the server behind a connected handle asks for."""
    minimum = max(handle.get_block_size(nbd.SIZE_MINIMUM), 1)
    maximum = handle.get_block_size(nbd.SIZE_MAXIMUM) or DEFAULT_MAXIMUM_BYTES
    maximum = min(maximum, DEFAULT_MAXIMUM_BYTES) // minimum * minimum
    return Limits(handle.get_size(), minimum, max(maximum, minimum))


def open_handle(
    endpoint: Endpoint,
    *contexts: str,
    idle: Callable[[], None] | None = None,
    wake_fd: int | None = None,
    listed: dict[str, str] | None = None,
) -> Any:
    """A handle connected to `endpoint`, ready for requests.

    `contexts` are what block status may be asked for, if the server has it; holes unless given.
    `listed` is given the server's exports, description by name; nothing if it doesn't list them.
    `idle` is called while waiting, once a second and when `wake_fd` (an eventfd) was written to;
    what it raises ends the attempt.

    Raises:
        UpstreamError: it can't be connected to within `CONNECT_S`.
    """
    tunnel: Tunnel | None = None
    give_up_s = time.monotonic() + CONNECT_S
    if listed is None and _proves(endpoint):
        listed = {}

    def attend(wait: Callable[[float], object]) -> None:
        left_s = give_up_s - time.monotonic()
        if left_s <= 0:
            what = f"{endpoint.server}: no answer within {CONNECT_S:.0f} s"
            raise UpstreamError(what, errno.ETIMEDOUT)
        wait(min(left_s, 1.0))
        if idle is not None:
            idle()

    try:
        handle = _new_handle(endpoint, contexts or (ALLOCATION,), listed is not None)
        tunnel = _tunnel(endpoint)
        if tunnel is not None:
            weakref.finalize(handle, tunnel.end)
            handle.aio_connect_socket(tunnel.socket_fd)
        else:
            handle.aio_connect_uri(endpoint.uri)
        waits = _handshake(handle, endpoint, listed)
        if endpoint.encryption == "off":
            for _ in waits:
                attend(lambda left_s: progress(handle, left_s, wake_fd))
        else:
            with Handshake(handle, waits, lambda: progress(handle, WAIT_S)) as handshake:
                while not handshake.ended:
                    attend(lambda left_s: handshake.wait(left_s, wake_fd))
                handshake.check()
        with socket_of(handle.aio_get_fd()) as link:
            keep_alive(link)
    except nbd.Error as error:
        why = tunnel.complaint() if tunnel is not None else tls.explain(endpoint, error.string)
        why = why or error.string
        raise UpstreamError(f"{endpoint.server}: {why}", error.errnum or errno.EIO) from error
    except OSError as error:
        raise _not_from_here(endpoint, error) from error
    return handle


def _not_from_here(endpoint: Endpoint, error: OSError) -> UpstreamError:
    """What is wrong at our end: no file may be opened any more, say."""
    what = f"{endpoint.server}: no connection can be made from here: {error.strerror or error}"
    return UpstreamError(what, error.errno or errno.EIO)


def low_water_of(handle: Any, endpoint: Endpoint) -> LowWater:
    """The low-water mark of a handle connected to `endpoint`; errors as of `open_handle`."""
    try:
        return LowWater(handle.aio_get_fd())
    except OSError as error:
        raise _not_from_here(endpoint, error) from error


@contextmanager
def connected(endpoint: Endpoint) -> Iterator[Any]:
    """A handle for a few requests, with a goodbye at the end that waits for no answer.

    Raises:
        UpstreamError: it can't be connected to.
    """
    handle = open_handle(endpoint)
    try:
        yield handle
    finally:
        hang_up(handle)


def check_size(handle: Any, size_bytes: int) -> None:
    """Refuse a disk of another size, by OtherDiskError: no content is needed to tell."""
    if (found := handle.get_size()) != size_bytes:
        raise OtherDiskError(f"the source has become another disk: {found} bytes, not {size_bytes}")


def exports_at(endpoint: Endpoint) -> set[str]:
    """The names of the exports that the server of `endpoint` lists; none if it doesn't list them.

    Asked over one connection, which reaches the disk itself, too: so who answers has answered.

    Raises:
        UpstreamError: it can't be asked.
    """
    listed: dict[str, str] = {}
    hang_up(open_handle(endpoint, listed=listed))
    return set(listed)


def _handshake(handle: Any, endpoint: Endpoint, listed: dict[str, str] | None) -> Iterator[None]:
    """Negotiate until the handle is ready; yields where it has to go on. Errors as libnbd's.

    To fill `listed` takes a round trip more; so does to prove a key, whose nonce is in there.
    """
    if listed is None:
        yield from _until(handle.aio_is_ready)
        return
    yield from _until(lambda: handle.aio_is_negotiating() or handle.aio_is_ready())
    if handle.aio_is_ready():
        return  # the old handshake, which knows no options: not a relocator
    outcome: list[int] = []
    handle.aio_opt_list(lambda name, text: listed.update({name: text}) or 0, _ends(outcome))
    yield from _until(lambda: bool(outcome))
    if endpoint.further and endpoint.key is not None:
        handle.set_export_name(endpoint.key.prove(listed.get("control", ""), endpoint.export))
    outcome.clear()
    handle.aio_opt_go(_ends(outcome))
    yield from _until(lambda: bool(outcome))
    if outcome[0]:
        raise UpstreamError(f"{endpoint.server}: no such export", outcome[0])
    yield from _until(handle.aio_is_ready)


def _until(arrived: Callable[[], bool]) -> Iterator[None]:
    while not arrived():
        yield


def _proves(endpoint: Endpoint) -> bool:
    return endpoint.further and endpoint.key is not None


def _ends(outcome: list[int]) -> Callable[[Any], int]:
    def completed(error: Any) -> int:
        outcome.append(int(error.value if hasattr(error, "value") else error))
        return 1

    return completed


def hang_up(handle: Any) -> None:
    """Say goodbye, and wait for no answer; the handle is used no more."""
    with suppress(nbd.Error):  # the source has gone by itself
        handle.aio_disconnect(0)


def hear_out(handle: Any) -> None:
    """Say goodbye, and take what is still owed, for `FAREWELL_S` at most: see `Incoming.end`.

    Raises:
        nbd.Error: the connection broke.
    """
    handle.aio_disconnect(0)
    give_up_s = time.monotonic() + FAREWELL_S
    while handle.aio_in_flight() > _GOODBYE and not (
        handle.aio_is_dead() or handle.aio_is_closed()
    ):
        if (left_s := give_up_s - time.monotonic()) <= 0:
            break
        progress(handle, left_s)


def _tunnel(endpoint: Endpoint) -> Tunnel | None:
    """The process through which `endpoint` is reached, started; None if there is none."""
    if endpoint.scheme == "ssh":
        return Tunnel.on_stdio(endpoint.ssh_command())
    return Tunnel.on_listener(endpoint.iscsi_command()) if endpoint.scheme == "iscsi" else None


def _new_handle(endpoint: Endpoint, contexts: tuple[str, ...], asks_first: bool) -> Any:
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    handle.set_pread_initialize(False)
    handle.set_tls(_TLS[endpoint.encryption])
    if endpoint.certificates is not None:
        handle.set_tls_certificates(str(endpoint.certificates))
    if endpoint.psk is not None:
        handle.set_tls_psk_file(str(endpoint.psk))
    handle.set_export_name(endpoint.export)
    handle.set_opt_mode(asks_first)
    return handle


def progress(handle: Any, timeout_s: float, wake_fd: int | None = None) -> bool:
    """Wait for the handle, or for `wake_fd`, and let the handle go on; whether it had to read."""
    poller = select.poll()
    direction = handle.aio_get_direction()
    reads = bool(direction & nbd.AIO_DIRECTION_READ)
    writes = bool(direction & nbd.AIO_DIRECTION_WRITE)
    poller.register(
        handle.aio_get_fd(), (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0)
    )
    if wake_fd is not None:
        poller.register(wake_fd, select.POLLIN)
    heard = False
    for ready_fd, ready in poller.poll(max(timeout_s, 0.0) * 1000):
        if ready_fd == wake_fd:
            os.eventfd_read(wake_fd)
        elif reads and ready & ~select.POLLOUT:
            heard = True
            handle.aio_notify_read()
        else:  # an error too: a refused address makes libnbd try the host's next one
            handle.aio_notify_write()
    return heard


def read(handle: Any, offset: int, length: int, timeout_s: float = CONNECT_S) -> bytes:
    """Read over a handle that nothing else uses at the moment; errors as `read_many`."""
    return read_many(handle, [Extent(offset, length)], timeout_s)[0]


def read_many(handle: Any, extents: list[Extent], timeout_s: float = CONNECT_S) -> list[bytes]:
    """Read extents at once, pipelined, over a handle that nothing else uses at the moment.

    Raises:
        UpstreamError: one fails, or for `timeout_s` nothing comes.
    """
    errors: list[int] = []
    owed = 0

    def completed(error: Any) -> int:
        errors.append(error.value)
        return 1

    give_up_s = time.monotonic() + timeout_s
    try:
        limits = limits_of(handle)
        wholes = [limits.widen(*extent) for extent in extents]
        buffers = [bytearray(whole.length) for whole in wholes]
        for whole, buffer in zip(wholes, buffers, strict=True):
            for piece in limits.pieces(*whole):
                owed += 1
                aio_pread(handle, buffer, piece, whole.offset, completed)
        while len(errors) < owed:
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                raise UpstreamError(f"no answer within {timeout_s:g} s", errno.ETIMEDOUT)
            if progress(handle, left_s):  # a slow link may be shared by many that ask at once
                give_up_s = time.monotonic() + timeout_s
    except nbd.Error as error:
        raise UpstreamError(error.string, error.errnum or errno.EIO) from error
    if worst := max(errors, default=0):
        raise UpstreamError(f"the source failed a read: {os.strerror(worst)}", worst)
    return [
        bytes(memoryview(buffer)[extent.offset - whole.offset :][: extent.length])
        for extent, whole, buffer in zip(extents, wholes, buffers, strict=True)
    ]


def aio_pread(
    handle: Any, buffer: bytearray, piece: Extent, start: int, completed: Callable[[Any], int]
) -> None:
    """Ask for `piece`, to be put where it belongs in a buffer that begins at offset `start`.

    The view goes to libnbd as it is: wrapped in an `nbd.Buffer` its memory would never be freed
    (libnbd 1.14 takes a reference to what the wrapper holds and doesn't give it back).
    """
    view = memoryview(buffer)[piece.offset - start :][: piece.length]
    handle.aio_pread(view, piece.offset, completion=completed)
